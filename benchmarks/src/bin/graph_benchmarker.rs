//! What graphs take, beside their floors: the ratios that are the targets of the design.

use std::fmt::Write as _;
use std::process::ExitCode;

use benchmarks::Printing;
use benchmarks::graphs::{Bench, HOPS, LARGE, SMALL, library};
use benchmarks::machine::Machine;
use benchmarks::plan::later;
use benchmarks::report::print_one;
use clap::{Parser, value_parser};
use rfaas_program::{self as program, Failure};
use serde_json::{Value, json};
use testkit::interrupt::stop_clusters_on_signals;
use testkit::{LocalCluster, Options};

/// Measures graphs on a cluster of this machine that it starts: a hop from worker to worker, chains, fan-out, map,
/// compiling, memory. Beside each figure is that of the same run which it is compared with, and the target of their
/// ratio.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Runs of each kind.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u32).range(1..=100_000))]
    repetitions: u32,
    /// Calls of a map.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = value_parser!(u32).range(1..))]
    calls: u32,
    /// Graphs that are compiled.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u32).range(1..))]
    compiles: u32,
    #[command(flatten)]
    printing: Printing,
}

/// A figure beside another one.
struct Row {
    /// Name of the target.
    target: &'static str,
    what: String,
    value: f64,
    beside: f64,
    unit: &'static str,
    bound: Bound,
}

/// What the ratio shall be.
#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Row {
    fn ratio(&self) -> f64 {
        self.value / self.beside
    }

    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.ratio() <= most,
            Bound::AtLeast(least) => self.ratio() >= least,
        }
    }

    fn json(&self) -> Value {
        let (bound, number) = match self.bound {
            Bound::AtMost(most) => ("at_most", most),
            Bound::AtLeast(least) => ("at_least", least),
        };
        json!({
            "target": self.target, "what": self.what, "value": self.value, "beside": self.beside, "unit": self.unit,
            "ratio": self.ratio(), bound: number, "met": self.is_met(),
        })
    }
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let _signals = stop_clusters_on_signals(None).map_err(Failure::later)?;
    let directory = tempfile::tempdir()
        .map_err(|error| Failure::later(format!("no directory for the functions: {error}")))?;
    let library = library(directory.path())?;
    let options = Options {
        cores: 16,
        memory: 16 << 10,
        prewarm: HOPS as u32 + 2,
        talkative: false,
        show_logs: cli.printing.verbose,
        ..Options::default()
    };
    let mut cluster = LocalCluster::start(options).map_err(later)?;
    let client = cluster.client().map_err(later)?;
    let executor_manager = cluster.executor_manager().map_or(0, |manager| manager.id());
    let bench = Bench {
        executor_manager,
        cluster: &cluster,
        client: &client,
        library: &library,
        repetitions: cli.repetitions,
        calls: cli.calls,
    };
    let machine = Machine::this();
    let rows = measure(&bench, cli.compiles, machine.cores)?;
    drop(client);
    cluster.stop().map_err(later)?;

    let table = table(&rows, &machine);
    let rows: Vec<_> = rows.iter().map(Row::json).collect();
    let object = json!({"benchmark": "graph_benchmarker", "machine": machine, "rows": rows});
    print_one(cli.printing, object, table)
}

fn measure(bench: &Bench<'_>, compiles: u32, cores: usize) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let mut row = |target, what: String, (value, beside), unit, bound| {
        rows.push(Row { target, what, value, beside, unit, bound });
    };
    let ping_pong = bench.round_trip_ns("transport_benchmarker")?;
    let hop = bench.hop_ns()?;
    let direct = bench.round_trip_ns("warm_benchmarker")?;
    let what = format!("hop of {SMALL} B ÷ half a ping-pong of the transport");
    row("T1", what, (hop, ping_pong / 2.0), "ns", Bound::AtMost(1.2));
    let what = format!("hop of {SMALL} B ÷ direct invocation, hot");
    row("T1", what, (hop, direct), "ns", Bound::AtMost(0.6));

    let (client, edges) = bench.through_the_client_and_by_edges_ns()?;
    let what = format!("chain of {HOPS} through the client ÷ by edges, warm");
    row("T2", what, (client / 1e3, edges / 1e3), "µs", Bound::AtLeast(1.8));
    let what = format!("the same, hot: {HOPS} direct invocations ÷ {} hops", HOPS + 1);
    let hops = HOPS as f64;
    row("T2", what, (hops * direct, (hops + 1.0) * hop), "ns", Bound::AtLeast(1.8));

    let large = bench.chain_ns(HOPS, LARGE, "chain_pass")?;
    let small = bench.chain_ns(HOPS, SMALL, "chain_pass")?;
    let what = format!("1 MiB ÷ {SMALL} B through {HOPS} hops, in place");
    row("T3", what, (large, small), "ns", Bound::AtMost(1.2));

    let what = format!("hop of {SMALL} B, traced ÷ not");
    row("T6", what, (bench.traced_hop_ns()?, hop), "ns", Bound::AtMost(1.15));

    let width = cores.saturating_sub(1).max(1);
    let (alone, joined) = bench.direct_and_joined_ns(width)?;
    let what = format!("fan-out to {width} and join ÷ slowest of {width} invocations");
    row("T4", what, (joined, alone), "ns", Bound::AtMost(1.3));

    let workers = cores.max(2);
    let one = bench.calls_per_second(1)?;
    let all = bench.calls_per_second(workers)?;
    let what = format!("map over {workers} workers ÷ {workers} × one");
    row("T5", what, (all, workers as f64 * one), "calls/s", Bound::AtLeast(0.9));

    let (lease, compile) = bench.lease_and_compile_ns(compiles)?;
    let what = format!("compile of {HOPS} ÷ {HOPS} × one lease, both ready");
    row("T14", what, (compile / 1e3, hops * lease / 1e3), "µs", Bound::AtMost(0.5));

    let (bytes, percent) = bench.bytes_of_an_edge_and_idle_percent()?;
    let what = "memory of an edge of 16 slots of 4 KiB ÷ 80 KiB".to_owned();
    row("T18", what, (bytes / 1024.0, 80.0), "KiB", Bound::AtMost(1.0));
    let what = "processor time of an idle graph ÷ 1 % of a core".to_owned();
    row("T18", what, (percent, 1.0), "%", Bound::AtMost(1.0));
    Ok(rows)
}

fn table(rows: &[Row], machine: &Machine) -> String {
    let mut table = format!("graph_benchmarker: medians\non {machine}\n\n");
    for row in rows {
        let Row { target, what, value, beside, unit, bound } = row;
        let bound = match bound {
            Bound::AtMost(most) => format!("≤ {most}"),
            Bound::AtLeast(least) => format!("≥ {least}"),
        };
        let met = if row.is_met() { "met" } else { "missed" };
        let ratio = row.ratio();
        let _ = writeln!(
            table,
            "{target:>4}  {what:<56}{value:>12.1} ÷ {beside:<10.1}{unit:<8}{ratio:>8.2}  {bound:<6} {met}"
        );
    }
    table
}
