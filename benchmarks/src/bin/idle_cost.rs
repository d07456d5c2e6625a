//! The cost of an idle cluster: processor time of both managers, and of executors that have nothing to do.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use benchmarks::Printing;
use benchmarks::crowd::{Crowd, Held, LEASE_MB, Watched};
use benchmarks::machine::Machine;
use benchmarks::plan::later;
use benchmarks::report::print_one;
use clap::{Parser, value_parser};
use rfaas_program::inherited::raise_descriptor_limit;
use rfaas_program::{self as program, Failure};
use serde_json::{Value, json};
use testkit::interrupt::stop_clusters_on_signals;
use testkit::procfs::{processor_time_of_threads, proportional_memory};
use testkit::{LocalCluster, Options};

/// Measures what an idle cluster costs: starts one on this machine and prints how much of a core its managers
/// use while they have nothing to do. With --executors, while so many leases have an executor that sleeps; then also
/// what these cost, and how soon nothing is left of them when all leases are given back at once.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// How long to measure, in seconds.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = value_parser!(u64).range(1..))]
    seconds: u64,
    /// Leases of one core meanwhile, each with an executor on which a function is called before and after.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u32).range(..=4000))]
    executors: u32,
    /// Let the managers poll ("rdma-sleep": false) instead of sleeping.
    #[arg(long)]
    poll: bool,
    #[command(flatten)]
    printing: Printing,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let _signals = stop_clusters_on_signals(None).map_err(Failure::later)?;
    raise_descriptor_limit().map_err(later)?;
    let usual = Options::default();
    let options = Options {
        rdma_sleep: !cli.poll,
        cores: usual.cores.max(cli.executors),
        memory: usual.memory.max(LEASE_MB * cli.executors),
        talkative: false,
        show_logs: cli.printing.verbose,
        ..usual
    };
    let mut cluster = LocalCluster::start(options).map_err(later)?;
    let managers = [
        cluster.resource_manager().map_or(0, |manager| manager.id()),
        cluster.executor_manager().map_or(0, |manager| manager.id()),
    ];
    let watched = Watched::new(managers[1]);
    let client = cluster.client().map_err(later)?;
    let library = cluster.library("functions").map_err(later)?;
    if cli.executors > 0 {
        Crowd::start(&client, 1, &library)?.release()?; // the node keeps the library from now on
    }
    // Starting costs something, being idle is what is asked about.
    std::thread::sleep(Duration::from_secs(1));
    let before = watched.at_rest();

    let mut crowd = Crowd::start(&client, cli.executors, &library)?;
    let idle = watched.at_rest();
    let processes = watched.processes();
    let (percent, elapsed) = processor_time(&managers, &processes, cli.seconds);
    let memory = processes.iter().filter_map(|id| proportional_memory(*id)).sum::<u64>();
    crowd.call()?;
    let starts = std::mem::take(&mut crowd.starts);
    let releasing = Instant::now();
    crowd.release()?;
    let released = releasing.elapsed();
    watched.wait_until_gone(before)?;
    let gone = releasing.elapsed();
    drop(client);
    cluster.stop().map_err(later)?;

    let both = rounded(percent[0] + percent[1]);
    let [resource_manager, executor_manager, executors, client] = percent.map(rounded);
    let machine = Machine::this();
    let mut object = json!({
        "benchmark": "idle_cost",
        "rdma_sleep": !cli.poll,
        "seconds": rounded(elapsed),
        "resource_manager_percent": resource_manager,
        "executor_manager_percent": executor_manager,
        "both_percent": both,
        "executors": cli.executors,
        "machine": machine,
    });
    let mut table = format!("idle_cost: {elapsed:.1} s, percent of a core\non {machine}\n\n");
    let mut rows = vec![
        ("resource_manager", resource_manager),
        ("executor_manager", executor_manager),
        ("both", both),
    ];
    if cli.executors > 0 {
        rows.extend([("executors", executors), ("client", client)]);
    }
    for (name, percent) in rows {
        table += &format!("{name:>18}{percent:>8.2}\n");
    }
    if cli.executors > 0 {
        let crowd = json!({
            "executors_percent": executors,
            "client_percent": client,
            "first_starts_ms": median_ms(&starts[..tenth(&starts)]),
            "last_starts_ms": median_ms(&starts[starts.len() - tenth(&starts)..]),
            "memory_bytes": memory,
            "release_ms": milliseconds(released),
            "gone_ms": milliseconds(gone),
            "held_before": held(before),
            "held_idle": held(idle),
        });
        table += &described(&crowd, cli.executors);
        merge(&mut object, crowd);
    }
    print_one(cli.printing, object, table)
}

/// Percent of a core that both managers, `executors` and this process use in the next `seconds`; and how long it was.
fn processor_time(managers: &[u32; 2], executors: &[u32], seconds: u64) -> ([f64; 4], f64) {
    let of = |id: u32| processor_time_of_threads(id).as_secs_f64();
    let used = || {
        let executors = executors.iter().map(|id| of(*id)).sum();
        [of(managers[0]), of(managers[1]), executors, of(std::process::id())]
    };
    let (start, before) = (Instant::now(), used());
    std::thread::sleep(Duration::from_secs(seconds));
    let (after, elapsed) = (used(), start.elapsed().as_secs_f64());
    ([0, 1, 2, 3].map(|at| 100.0 * (after[at] - before[at]) / elapsed), elapsed)
}

/// A tenth of all, at least one.
fn tenth(all: &[Duration]) -> usize {
    all.len().div_ceil(10)
}

fn median_ms(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| milliseconds(*time))
}

fn milliseconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1000.0)
}

/// `number` to three digits behind the point: no clock here says more.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

fn held(Held { processes, groups, descriptors }: Held) -> Value {
    json!({"processes": processes, "groups": groups, "manager_descriptors": descriptors})
}

fn described(crowd: &Value, executors: u32) -> String {
    let number = |key: &str| crowd[key].as_f64().unwrap_or_default();
    format!(
        "\n{executors} executors of one worker each, with what stands by\n\
         {:>18}{:>8.1} ms to the first result, median of the first tenth\n\
         {:>18}{:>8.1} ms, of the last tenth\n\
         {:>18}{:>8.2} MB for each (PSS, with its guardian)\n\
         {:>18}{:>8.0} ms until all leases, given back at once, have their bills\n\
         {:>18}{:>8.0} ms until nothing is left\n\
         {:>18}{:>8} before, {} then, of the executor manager\n",
        "start",
        number("first_starts_ms"),
        "",
        number("last_starts_ms"),
        "memory",
        number("memory_bytes") / f64::from(executors) / f64::from(1 << 20),
        "release",
        number("release_ms"),
        "gone",
        number("gone_ms"),
        "descriptors",
        crowd["held_before"]["manager_descriptors"].to_string(), // a Value ignores the width
        crowd["held_idle"]["manager_descriptors"],
    )
}

/// Adds all of `more` to `object`.
fn merge(object: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
}
