//! Cold starts of each kind, in one table: a cluster of this machine for each, measured by `cold_benchmarker`.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use benchmarks::Printing;
use benchmarks::machine::Machine;
use benchmarks::plan::later;
use benchmarks::progress::ProgressBar;
use benchmarks::report::print_one;
use benchmarks::service::enlarge;
use clap::{Parser, value_parser};
use rfaas_program::{self as program, Failure};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use testkit::interrupt::stop_clusters_on_signals;
use testkit::{Binaries, LocalCluster, Options};

/// Measures cold starts of each kind, on clusters of this machine that it starts one after the other: of a node that
/// has nothing ready, the library, executors that stand by, or those with the library loaded; with a library as it is
/// shipped or of 50 MB, with 1 and 8 workers. Beside each are the floors of the same run.
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
    ready: Ready,
    size: Size,
    workers: u32,
}

/// What a node has ready for a lease.
#[derive(Clone, Copy, Debug)]
enum Ready {
    /// Nothing: it has never seen the library.
    Nothing,
    /// The library.
    Library,
    /// The library, and executors that stand by.
    Executors,
    /// Executors that stand by and have loaded the library.
    Loaded,
}

/// How large a library is.
#[derive(Clone, Copy, Debug)]
enum Size {
    Shipped,
    Large,
}

/// A large library, in bytes: one that brings a language's runtime.
const LARGE: usize = 50 << 20;

impl Ready {
    /// Its name, in the table and in the object.
    fn name(self) -> &'static str {
        match self {
            Ready::Nothing => "first ever",
            Ready::Library => "cached",
            Ready::Executors => "prewarmed",
            Ready::Loaded => "preloaded",
        }
    }
}

/// All rows.
fn kinds() -> impl Iterator<Item = Kind> {
    let readies = [Ready::Nothing, Ready::Library, Ready::Executors, Ready::Loaded].into_iter();
    let sizes = || [Size::Shipped, Size::Large].into_iter();
    readies.flat_map(move |ready| {
        sizes().flat_map(move |size| [1, 8].map(|workers| Kind { ready, size, workers }))
    })
}

/// The files of libraries.
struct Libraries {
    shipped: PathBuf,
    large: NamedTempFile,
}

impl Libraries {
    /// That which is shipped, and one that has bytes behind it.
    fn new() -> Result<Self, Failure> {
        let shipped = Binaries::beside_this_program().library("functions");
        let shipped = shipped.map_err(Failure::input)?;
        let made = fs::read(&shipped).and_then(|mut code| {
            enlarge(&mut code, LARGE);
            let mut large = NamedTempFile::new()?;
            large.write_all(&code)?;
            Ok(large)
        });
        let failed = |error| Failure::later(format!("a library of {LARGE} bytes: {error}"));
        Ok(Libraries { large: made.map_err(failed)?, shipped })
    }

    fn of(&self, size: Size) -> &Path {
        match size {
            Size::Shipped => &self.shipped,
            Size::Large => self.large.path(),
        }
    }
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let _signals = stop_clusters_on_signals(None).map_err(Failure::later)?;
    let libraries = Libraries::new()?;
    let mut progress = ProgressBar::of(kinds().count() as u64);
    let mut rows = Vec::new();
    for kind in kinds() {
        rows.push((kind, measure(kind, libraries.of(kind.size), &cli)?));
        progress.step();
    }
    drop(progress);
    let machine = Machine::this();
    let table = table(&rows, &cli, &machine.to_string());
    let rows: Vec<Value> = rows.into_iter().map(|(kind, measured)| row(kind, measured)).collect();
    print_one(cli.printing, json!({"benchmark": "cold_starts", "rows": rows}), table)
}

/// Runs `cold_benchmarker` on a cluster for starts of this `kind`, with `library`; returns its report.
fn measure(kind: Kind, library: &Path, cli: &Cli) -> Result<Value, Failure> {
    let usual = Options::default();
    let (prewarm, preload) = match kind.ready {
        Ready::Nothing | Ready::Library => (0, Vec::new()),
        Ready::Executors => (usual.prewarm, Vec::new()),
        Ready::Loaded => (usual.prewarm, vec![library.to_owned()]),
    };
    let options = Options { cores: 8, memory: 4096, talkative: false, prewarm, preload, ..usual };
    let cluster = LocalCluster::start(options).map_err(later)?;
    let mut command = cluster.benchmark_command("cold_benchmarker").map_err(Failure::input)?;
    command.args(["--json", "--size", "64", "--warmup-repetitions", "3"]);
    command.args(["--cores", &kind.workers.to_string(), "--pause", &cli.pause.to_string()]);
    command.args(["--repetitions", &cli.repetitions.to_string()]);
    command.arg("--functions").arg(library);
    if let Ready::Nothing = kind.ready {
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
    measured["ready"] = kind.ready.name().into();
    measured
}

const PHASES: [&str; 7] =
    ["lease", "connect", "submit", "spawn_connect", "initialize", "execute", "total"];
const FLOORS: [&str; 2] = ["fork", "exec_dlopen"];

fn table(rows: &[(Kind, Value)], cli: &Cli, machine: &str) -> String {
    let mut table = format!(
        "cold_starts: p50 of {} repetitions, µs\n\
         (fork), (exec dlopen): a minimal C program, in the same run\n\
         ÷ floor: total by (exec dlopen)\n\
         on {machine}\n\n{:>11}{:>9}{:>8}",
        cli.repetitions, "ready", "bytes", "workers"
    );
    for phase in PHASES {
        let _ = write!(table, "{:>14}", phase.replace('_', " "));
    }
    for floor in FLOORS {
        let _ = write!(table, "{:>14}", format!("({})", floor.replace('_', " ")));
    }
    let _ = write!(table, "{:>9}", "÷ floor");
    for (kind, measured) in rows {
        let bytes = &measured["library_bytes"];
        let _ =
            write!(table, "\n{:>11}{:>9}{:>8}", kind.ready.name(), bytes.to_string(), kind.workers);
        let p50 = |of: &str, name| measured[of][name]["p50"].as_f64();
        let columns = PHASES.map(|phase| p50("phases_us", phase)).into_iter();
        for time in columns.chain(FLOORS.map(|floor| p50("floors_us", floor))) {
            let time = time.map_or("–".to_owned(), |time| format!("{time:.0}"));
            let _ = write!(table, "{time:>14}");
        }
        let floor = p50("floors_us", "exec_dlopen");
        let ratio = p50("phases_us", "total").zip(floor).map(|(total, floor)| total / floor);
        let ratio = ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        let _ = write!(table, "{ratio:>9}");
    }
    table + "\n"
}
