//! A first look: a cluster on this machine with the shipped configuration on free ports, functions
//! called on it hot and warm, a thumbnail made on it, everything stopped again. Run by the script
//! `tools/quickstart`, which builds what is needed.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use rfaas::describe;
use rfaas::{Deployment, LeaseRequest};
use rfaas_config::shell;
use rfaas_program::{self as program, Failure};
use serde_json::{Value, json};
use testkit::interrupt::stop_clusters_on_signals;
use testkit::{Binaries, LocalCluster, Options};

/// Calls of `empty` while the worker spins, and while it sleeps between them.
const HOT_CALLS: u32 = 10_000;
const WARM_CALLS: u32 = 1_000;
/// Their payload: a cache line.
const PAYLOAD_BYTES: u32 = 64;
/// Calls before those that are measured: they warm the caches of both sides up.
const WARMUP_CALLS: u32 = 100;
/// Most bytes of a thumbnail.
const THUMBNAIL_BYTES: usize = 1 << 20;
/// Longest time that bills may take from the executor manager to the resource manager.
const BILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts both managers with the shipped configuration on free ports, calls functions hot and warm,
/// makes a thumbnail of a photograph, and stops everything.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Where to put the thumbnail; without it next to this program.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON object and nothing else.
    #[arg(long)]
    json: bool,
    /// Log more, to standard error; RUST_LOG overrides.
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let _signals = stop_clusters_on_signals(None).map_err(Failure::later)?;
    let binaries = Binaries::beside_this_program();
    let output = cli.output.clone().unwrap_or_else(|| binaries.directory().join("thumbnail.jpg"));
    let options = Options { binaries: binaries.clone(), ..Options::default() };
    let cluster = LocalCluster::start(options).map_err(|error| Failure::input(describe(&error)))?;

    let isolation = isolation(&cluster)?;
    let hot = call_empty(&cluster, HOT_CALLS, -1)?;
    let warm = call_empty(&cluster, WARM_CALLS, 0)?;
    let thumbnail = make_thumbnail(&cluster, &binaries, &output)?;
    let leases = leases(&cluster, 3)?;
    cluster.stop().map_err(|error| Failure::later(describe(&error)))?;

    let told = json!({
        "hot": hot, "warm": warm, "thumbnail": thumbnail, "leases": leases, "isolation": isolation,
    });
    program::print(match cli.json {
        true => format!("{told}\n"),
        false => summary(&told) + &next(&binaries),
    })
}

/// What isolates executors on this machine, as the cluster's node says.
fn isolation(cluster: &LocalCluster) -> Result<Value, Failure> {
    let http = cluster.http().ok_or_else(|| Failure::later("no resource manager"))?;
    let nodes = http.get("/nodes").map_err(Failure::later)?.body;
    match &nodes[0]["isolation"] {
        layers @ Value::Array(_) => Ok(layers.clone()),
        _ => Err(Failure::later(format!("the node does not say what isolates executors: {nodes}"))),
    }
}

/// Has the shipped benchmark call `empty`; returns its figures.
fn call_empty(cluster: &LocalCluster, calls: u32, hot_timeout_ms: i64) -> Result<Value, Failure> {
    let mut command = cluster
        .benchmark_command("warm_benchmarker")
        .map_err(|error| Failure::input(describe(&error)))?;
    command.args(["--json", "--name", "empty"]);
    command.arg("--functions").arg(library(cluster, "functions")?);
    command.args(["--size", &PAYLOAD_BYTES.to_string()]);
    command.args(["--repetitions", &calls.to_string()]);
    command.args(["--warmup-repetitions", &WARMUP_CALLS.to_string()]);
    command.args(["--hot-timeout", &hot_timeout_ms.to_string()]);
    serde_json::from_slice(&output_of(command)?)
        .map_err(|error| Failure::later(format!("warm_benchmarker printed no JSON: {error}")))
}

/// Makes a thumbnail of a photograph-sized picture, in one invocation on a leased core.
fn make_thumbnail(
    cluster: &LocalCluster,
    binaries: &Binaries,
    output_file: &Path,
) -> Result<Value, Failure> {
    let photograph = photograph(cluster.directory(), binaries)?;
    let library = library(cluster, "thumbnailer")?;
    let client = cluster.client().map_err(|error| Failure::later(describe(&error)))?;
    let deployment =
        Deployment::new().input_bytes(photograph.len()).output_bytes(THUMBNAIL_BYTES).slots(1);
    let invoke = || {
        let lease = client.lease(LeaseRequest::new(1, 256))?;
        let mut executor = lease.deploy_with(&library, &deployment)?;
        let function = executor.function("thumbnailer")?;
        let mut input = executor.input(photograph.len())?;
        input.write(0, &photograph)?;
        let mut output = executor.output(THUMBNAIL_BYTES)?;
        let start = Instant::now();
        let bytes = executor.invoke(&function, &input, &mut output)?;
        let took = start.elapsed();
        let thumbnail = output.to_vec(..bytes)?;
        executor.release()?;
        Ok((thumbnail, took))
    };
    let (thumbnail, took) =
        invoke().map_err(|error: rfaas::Error| Failure::later(describe(&error)))?;
    if thumbnail.is_empty() {
        return Err(Failure::later("the thumbnailer made nothing of the photograph"));
    }
    std::fs::write(output_file, &thumbnail).map_err(|error| {
        Failure::input(format!("{}: cannot be written: {error}", output_file.display()))
    })?;
    Ok(json!({
        "input_bytes": photograph.len(),
        "output_bytes": thumbnail.len(),
        "output_file": output_file,
        "round_trip_ms": took.as_secs_f64() * 1e3,
    }))
}

/// A JPEG file of a size that a camera makes.
fn photograph(directory: &Path, binaries: &Binaries) -> Result<Vec<u8>, Failure> {
    let file = directory.join("photograph.jpg");
    let mut command = Command::new(binaries.program("sample_image").map_err(Failure::input)?);
    command.arg(&file);
    output_of(command)?;
    std::fs::read(&file).map_err(Failure::later)
}

fn library(cluster: &LocalCluster, name: &str) -> Result<PathBuf, Failure> {
    cluster.library(name).map_err(|error| Failure::input(describe(&error)))
}

/// Runs a program that is to succeed; what it prints to standard error is ours too.
fn output_of(mut command: Command) -> Result<Vec<u8>, Failure> {
    let name = command.get_program().display().to_string();
    let failed = |why: String| Failure::later(format!("{name}: {why}"));
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    Ok(output.stdout)
}

/// What the resource manager has on its books, once all `expected` leases are billed.
fn leases(cluster: &LocalCluster, expected: usize) -> Result<Value, Failure> {
    let http = cluster.http().ok_or_else(|| Failure::later("no resource manager"))?;
    let deadline = Instant::now() + BILL_TIMEOUT;
    loop {
        let bills = http.get("/billing").map_err(Failure::later)?.body;
        let held = http.get("/leases").map_err(Failure::later)?.body;
        let billed = bills.as_array().map_or(0, Vec::len);
        if billed >= expected {
            return Ok(json!({"billed": bills, "held": held}));
        }
        if Instant::now() > deadline {
            return Err(Failure::later(format!("{billed} of {expected} leases were billed")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same for people.
fn summary(told: &Value) -> String {
    let mut text = String::new();
    for (mode, what) in [("hot", "the worker spins"), ("warm", "the worker sleeps between calls")] {
        let run = &told[mode];
        let us = |key: &str| run["round_trip_ns"][key].as_f64().unwrap_or(0.0) / 1000.0;
        text += &format!(
            "{:>6} calls of empty, {} bytes, {what}: median {:.1} µs, 99 % within {:.1} µs\n",
            run["repetitions"],
            run["payload_bytes"],
            us("p50"),
            us("p99"),
        );
    }
    let thumbnail = &told["thumbnail"];
    text += &format!(
        "thumbnail of a photograph: {} bytes in, {} bytes out, {:.0} ms: {}\n",
        thumbnail["input_bytes"],
        thumbnail["output_bytes"],
        thumbnail["round_trip_ms"].as_f64().unwrap_or(0.0),
        thumbnail["output_file"].as_str().unwrap_or_default(),
    );
    let layers = told["isolation"].as_array().map_or(&[][..], Vec::as_slice);
    let layers: Vec<_> = layers.iter().filter_map(Value::as_str).collect();
    text += &match &layers[..] {
        [] => "nothing isolates functions from this machine\n".to_owned(),
        some => format!("functions are isolated by {}\n", some.join(", ")),
    };
    let bills = told["leases"]["billed"].as_array().map_or(&[][..], Vec::as_slice);
    let invocations: u64 = bills.iter().filter_map(|bill| bill["invocations"].as_u64()).sum();
    text + &format!(
        "{} leases granted, used and billed: {invocations} invocations; everything is stopped\n",
        bills.len(),
    )
}

/// Where to go from here.
fn next(binaries: &Binaries) -> String {
    let cluster = shell::word(binaries.directory().join("cluster"));
    format!(
        "\nnext: {cluster}  starts a cluster that stays, on free ports, and prints a command to try on it\n      \
         README.md shows a client and a function to write; examples/ has whole programs\n"
    )
}
