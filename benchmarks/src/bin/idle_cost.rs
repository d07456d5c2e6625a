//! The cost of an idle cluster: processor time of both managers.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use benchmarks::Printing;
use benchmarks::machine::Machine;
use benchmarks::plan::later;
use benchmarks::report::print_one;
use clap::{Parser, value_parser};
use rfaas_program::{self as program, Failure};
use serde_json::json;
use testkit::interrupt::stop_clusters_on_signals;
use testkit::procfs::Stat;
use testkit::{LocalCluster, Options};

/// Measures what an idle cluster costs: starts one on this machine and prints how much of a core its managers
/// use while they have nothing to do.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// How long to measure, in seconds.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = value_parser!(u64).range(1..))]
    seconds: u64,
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
    let options = Options { rdma_sleep: !cli.poll, ..Options::default() };
    let mut cluster = LocalCluster::start(options).map_err(later)?;
    let managers = [
        ("resource_manager", cluster.resource_manager().map(|manager| manager.id())),
        ("executor_manager", cluster.executor_manager().map(|manager| manager.id())),
    ];
    // Starting costs something, being idle is what is asked about.
    std::thread::sleep(Duration::from_secs(1));

    let start = Instant::now();
    let seconds = |id| Stat::of(id).map_or(0.0, |stat| stat.processor_time().as_secs_f64());
    let before = managers.map(|(_, id)| id.map_or(0.0, seconds));
    std::thread::sleep(Duration::from_secs(cli.seconds));
    let after = managers.map(|(_, id)| id.map_or(0.0, seconds));
    let elapsed = start.elapsed().as_secs_f64();
    let percent = [0, 1].map(|manager| 100.0 * (after[manager] - before[manager]) / elapsed);
    let both = percent.iter().sum::<f64>();
    cluster.stop().map_err(later)?;

    let machine = Machine::this();
    let object = json!({
        "benchmark": "idle_cost",
        "rdma_sleep": !cli.poll,
        "seconds": elapsed,
        "resource_manager_percent": percent[0],
        "executor_manager_percent": percent[1],
        "both_percent": both,
        "machine": machine,
    });
    let mut table = format!("idle_cost: {elapsed:.1} s, percent of a core\non {machine}\n\n");
    for ((name, _), percent) in managers.iter().zip(percent) {
        table += &format!("{name:>18}{percent:>8.2}\n");
    }
    table += &format!("{:>18}{both:>8.2}\n", "both");
    print_one(cli.printing, object, table)
}
