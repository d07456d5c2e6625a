//! Runs each graph on leased cores and, to compare, calls the same functions one by one.
//!
//! Elsewhere: the functions (`lib.rs` and what it names), callers of one function (`caller.rs`), the examples
//! (`words.rs`, `rod.rs`, `image.rs`).

mod caller;
mod image;
mod rod;
mod words;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use rfaas::{Client, CompiledGraph, Deployment, Graph, Spin};
use rfaas_config::{BenchmarkConfig, Devices};
use rfaas_program::{self as program, Failure};

/// Runs a graph of functions on leased cores.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    example: Example,
    /// Do the same through the client as often, and print the median times of both.
    #[arg(long, global = true, value_name = "TIMES")]
    compare: Option<u32>,
    /// Device and resource manager to use, memory to lease; config/README.md explains every key.
    #[arg(
        short,
        long,
        global = true,
        value_name = "FILE",
        default_value = "config/benchmark.json"
    )]
    config: PathBuf,
    /// Device database of this machine.
    #[arg(long, global = true, value_name = "FILE", default_value = "config/devices.json")]
    device_database: PathBuf,
    /// Function library; by default libgraphs.so beside this program.
    #[arg(long, global = true, value_name = "FILE")]
    functions: Option<PathBuf>,
    /// Log what happens on standard error.
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Example {
    /// Count the words of a text.
    Words {
        /// The text.
        file: PathBuf,
        /// Workers that count.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=32))]
        workers: u16,
    },
    /// The temperature along a rod that is heated in its middle.
    Rod {
        /// Points of the rod.
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
        points: u16,
    },
    /// A thumbnail of a photograph, and the colour that most of it has.
    Image {
        /// A JPEG or PNG file.
        file: PathBuf,
        /// Where the thumbnail goes; a file that exists is replaced.
        #[arg(short, long, value_name = "FILE", default_value = "thumbnail.jpg")]
        out_file: PathBuf,
    },
}

/// Makes a result through the client.
type Make = Box<dyn FnMut() -> Result<Vec<u8>, Failure>>;

/// What all examples have.
struct Scene {
    client: Client,
    library: PathBuf,
    spin: Spin,
    memory: u32,
    /// How often both ways are measured; not at all, the graph runs once.
    compare: Option<u32>,
}

impl Scene {
    fn compile(&self, graph: &mut Graph) -> rfaas::Result<CompiledGraph> {
        let deployment = Deployment::new().slots(1).spin(self.spin);
        self.client.compile_with(graph.memory_mb(self.memory), &deployment)
    }

    /// Compares both ways if that is asked for: each returns `expected`. Returns what is printed of it.
    fn compared(
        &self,
        expected: &[u8],
        mut by_graph: impl FnMut() -> Result<Vec<u8>, Failure>,
        by_client: impl FnOnce() -> Result<Make, Failure>,
    ) -> Result<String, Failure> {
        let Some(times) = self.compare else { return Ok(String::new()) };
        let graph = median(times, expected, &mut by_graph)?;
        let client = median(times, expected, &mut *by_client()?)?;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let ratio = client.as_secs_f64() / graph.as_secs_f64();
        let (graph, client) = (ms(graph), ms(client));
        Ok(format!("graph {graph:.3} ms, through the client {client:.3} ms: {ratio:.2} times\n"))
    }
}

/// The median time of a call of `make`, which returns `expected`.
fn median(
    times: u32,
    expected: &[u8],
    make: &mut dyn FnMut() -> Result<Vec<u8>, Failure>,
) -> Result<Duration, Failure> {
    make()?; // brings memory and caches into use
    let mut took = Vec::new();
    for _ in 0..times.max(1) {
        let begin = Instant::now();
        let made = make()?;
        took.push(begin.elapsed());
        if made != expected {
            return Err(Failure::later("the two ways lead to different results"));
        }
    }
    took.sort();
    Ok(took[took.len() / 2])
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let file = match &cli.example {
        Example::Words { file, .. } | Example::Image { file, .. } => read(file)?,
        Example::Rod { .. } => Vec::new(),
    };
    let scene = scene(&cli)?;
    program::print(match cli.example {
        Example::Words { workers, .. } => words::run(&scene, &file, workers.into())?,
        Example::Rod { points } => rod::run(&scene, points.into())?,
        Example::Image { out_file, .. } => image::run(&scene, &file, &out_file)?,
    })
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(file)
        .map_err(|error| Failure::input(format!("{}: cannot be read: {error}", file.display())))
}

fn scene(cli: &Cli) -> Result<Scene, Failure> {
    let settings = BenchmarkConfig::load(&cli.config)?;
    let device = Devices::load(&cli.device_database)?.open(&settings.config.rdma_device)?;
    let Some(manager) = settings.config.resource_manager()? else {
        let config = cli.config.display();
        return Err(Failure::input(format!("{config}: config.resource_manager_address is empty")));
    };
    let library = match &cli.functions {
        Some(file) => file.clone(),
        None => env::current_exe().map_err(Failure::later)?.with_file_name("libgraphs.so"),
    };
    Ok(Scene {
        client: Client::connect(device, &manager[..])?,
        library,
        spin: Spin::from_hot_timeout_ms(settings.benchmark.hot_timeout).unwrap_or(Spin::Never),
        memory: settings.benchmark.memory,
        compare: cli.compare,
    })
}
