//! Cold starts of each kind, in one table: a cluster of this machine for each, measured by `cold_benchmarker`.

use std::fmt::Write as _;
use std::process::{ExitCode, Stdio};

use benchmarks::Printing;
use benchmarks::machine::Machine;
use benchmarks::plan::later;
use benchmarks::progress::ProgressBar;
use benchmarks::report::print_one;
use clap::{Parser, value_parser};
use rfaas_program::{self as program, Failure};
use serde_json::{Value, json};
use testkit::interrupt::stop_clusters_on_signals;
use testkit::{LocalCluster, Options};

/// Measures cold starts of each kind, on clusters of this machine that it starts one after the other: with a library
/// that the node has never seen or has kept, as it is shipped or of 50 MB, with 1 and 8 workers. Beside each are
/// the floors of the same run.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Cold starts of each kind.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Pause after each one, in which the node gets ready for the next.
    #[arg(long, value_name = "MS", default_value_t = 50)]
    pause: u64,
    #[command(flatten)]
    printing: Printing,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
struct Kind {
    /// What the node has of the library.
    library: &'static str,
    /// Its size in MB; `None`: as it is shipped.
    mb: Option<u32>,
    workers: u32,
}

const FIRST_EVER: &str = "first ever";
const CACHED: &str = "cached";

/// All rows.
fn kinds() -> impl Iterator<Item = Kind> {
    let sizes = || [None, Some(50)].into_iter();
    [FIRST_EVER, CACHED].into_iter().flat_map(move |library| {
        sizes().flat_map(move |mb| [1, 8].map(|workers| Kind { library, mb, workers }))
    })
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let _signals = stop_clusters_on_signals(None).map_err(Failure::later)?;
    let mut progress = ProgressBar::of(kinds().count() as u64);
    let mut rows = Vec::new();
    for kind in kinds() {
        rows.push((kind, measure(kind, &cli)?));
        progress.step();
    }
    drop(progress);
    let machine = Machine::this();
    let table = table(&rows, &cli, &machine.to_string());
    let rows: Vec<Value> = rows.into_iter().map(|(kind, measured)| row(kind, measured)).collect();
    print_one(cli.printing, json!({"benchmark": "cold_starts", "rows": rows}), table)
}

/// Runs `cold_benchmarker` on a cluster for starts of this `kind`; returns its report.
fn measure(kind: Kind, cli: &Cli) -> Result<Value, Failure> {
    let options = Options { cores: 8, memory: 4096, talkative: false, ..Options::default() };
    let cluster = LocalCluster::start(options).map_err(later)?;
    let mut command = cluster.benchmark_command("cold_benchmarker").map_err(Failure::input)?;
    command.args(["--json", "--size", "64", "--warmup-repetitions", "3"]);
    command.args(["--cores", &kind.workers.to_string(), "--pause", &cli.pause.to_string()]);
    command.args(["--repetitions", &cli.repetitions.to_string()]);
    if let Some(mb) = kind.mb {
        command.args(["--library-mb", &mb.to_string()]);
    }
    if kind.library == FIRST_EVER {
        command.arg("--first-ever");
    }
    let failed = |why: String| Failure::later(format!("{kind:?}: {why}"));
    let output = command.stderr(Stdio::inherit()).output().map_err(|e| failed(e.to_string()))?;
    cluster.stop().map_err(later)?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
}

/// A row of the object.
fn row(kind: Kind, mut measured: Value) -> Value {
    measured["library"] = kind.library.into();
    measured
}

const PHASES: [&str; 7] =
    ["lease", "connect", "submit", "spawn_connect", "initialize", "execute", "total"];
const FLOORS: [&str; 2] = ["fork", "exec_dlopen"];

fn table(rows: &[(Kind, Value)], cli: &Cli, machine: &str) -> String {
    let mut table = format!(
        "cold_starts: p50 of {} repetitions, µs; in brackets the floors of the same run\non {machine}\n\n{:>11}{:>9}{:>8}",
        cli.repetitions, "library", "bytes", "workers"
    );
    for phase in PHASES {
        let _ = write!(table, "{:>14}", phase.replace('_', " "));
    }
    for floor in FLOORS {
        let _ = write!(table, "{:>14}", format!("({})", floor.replace('_', " ")));
    }
    for (kind, measured) in rows {
        let bytes = &measured["library_bytes"];
        let _ = write!(table, "\n{:>11}{:>9}{:>8}", kind.library, bytes.to_string(), kind.workers);
        let p50 = |of: &str, name| measured[of][name]["p50"].as_f64();
        let columns = PHASES.map(|phase| p50("phases_us", phase)).into_iter();
        for time in columns.chain(FLOORS.map(|floor| p50("floors_us", floor))) {
            let time = time.map_or("–".to_owned(), |time| format!("{time:.0}"));
            let _ = write!(table, "{time:>14}");
        }
    }
    table + "\n"
}
