//! The command of users: so far, graphs that files describe.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use rfaas::{Client, Deployment, Error, Graph, Spin, describe};
use rfaas_api::LeaseState;
use rfaas_api::client::Http;
use rfaas_config::{BenchmarkConfig, Devices, ExecutorsDatabase};
use rfaas_program::{self as program, Failure};

/// Functions on leased cores, from the command line.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log what happens on standard error.
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Graphs of functions, each described in a JSON file; docs/graphs.md explains its keys.
    #[command(subcommand)]
    Graph(GraphCommand),
}

#[derive(Debug, Subcommand)]
enum GraphCommand {
    /// Check a graph without a cluster, and show what leads where.
    Check {
        /// The graph.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Run a graph once.
    Run(Run),
    /// Show the graphs that have leases: who runs what where.
    List {
        /// The HTTP interface of the resource manager.
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5000")]
        http: String,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// The graph.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Input of the run; `-` is standard input.
    #[arg(short, long, value_name = "PATH")]
    input: PathBuf,
    /// Where the output goes; of several outputs, PATH.0, PATH.1 and so on. Without it, standard output:
    /// of several, each behind a line `output NUMBER: BYTES bytes`, and a line end behind it.
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Device and resource manager to use; config/README.md explains every key.
    #[arg(short, long, value_name = "FILE", default_value = "config/benchmark.json")]
    config: PathBuf,
    /// Device database of this machine.
    #[arg(long, value_name = "FILE", default_value = "config/devices.json")]
    device_database: PathBuf,
    /// Executor managers to lease from, without a resource manager.
    #[arg(long, value_name = "FILE")]
    executors_database: Option<PathBuf>,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Graph(GraphCommand::Check { file }) => program::print(checked(&file)?),
        Command::Graph(GraphCommand::Run(run)) => run_graph(&run),
        Command::Graph(GraphCommand::List { http }) => {
            let answer = Http::at(http.trim_end_matches('/')).get("/graphs");
            let answer = answer.map_err(|error| Failure::later(error.to_string()))?;
            let graphs: Vec<rfaas_api::Graph> =
                answer.read().map_err(|error| Failure::later(error.to_string()))?;
            program::print(Listed(graphs))
        }
    }
}

/// Graphs, a line each and one for each of their workers.
struct Listed(Vec<rfaas_api::Graph>);

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rfaas_api::Graph { id, name, client, leases, workers } in &self.0 {
            let s = if *leases == 1 { "" } else { "s" };
            writeln!(f, "{id}  {name}  {client}  {leases} lease{s}")?;
            for worker in workers {
                let rfaas_api::GraphWorker { lane, worker, functions, node, lease, state } = worker;
                let functions = functions.replace('\n', ", ");
                let state = match state {
                    LeaseState::Granted => "granted",
                    LeaseState::Active => "active",
                    LeaseState::Ending => "ending",
                };
                writeln!(f, "  {lane}.{worker}  {node}  {lease}  {state}  {functions}")?;
            }
            let more = (*leases as usize).saturating_sub(workers.len());
            if more > 0 {
                writeln!(f, "  and {more} more")?;
            }
        }
        Ok(())
    }
}

/// The graph in `file`, which can be.
fn checked(file: &Path) -> Result<Graph, Failure> {
    let graph = Graph::read(file)?;
    graph.check().map_err(|error| of_graph(file, &error))?;
    Ok(graph)
}

/// What is wrong with the graph in `file`.
fn of_graph(file: &Path, error: &Error) -> Failure {
    Failure::input(format!("{}: {}", file.display(), describe(error)))
}

fn run_graph(run: &Run) -> Result<(), Failure> {
    let graph = checked(&run.file)?;
    let input = read(&run.input, graph.input_bytes())?;
    if let Some(directory) = run.output.as_deref().and_then(Path::parent)
        && !directory.as_os_str().is_empty()
    {
        // Now, not when functions have done their work.
        fs::metadata(directory)
            .map_err(|error| failed(directory, "cannot be written to", &error))?;
    }
    let settings = BenchmarkConfig::load(&run.config)?;
    let spin = Spin::from_hot_timeout_ms(settings.benchmark.hot_timeout).unwrap_or(Spin::Never);
    let client = connect(run, &settings)?;
    let mut compiled = client.compile_with(&graph, &Deployment::new().slots(1).spin(spin))?;
    let outputs = compiled.run(&input)?;
    let released = compiled.release(); // before anybody is waited for who reads them
    write(run.output.as_deref(), &outputs)?;
    Ok(released.map(drop)?)
}

/// All of the input, which has at most `most` bytes.
fn read(path: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    let from: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(io::stdin()),
        false => {
            Box::new(File::open(path).map_err(|error| failed(path, "cannot be read", &error))?)
        }
    };
    let mut input = Vec::new();
    from.take(most as u64 + 1)
        .read_to_end(&mut input)
        .map_err(|error| failed(path, "cannot be read", &error))?;
    if input.len() > most {
        let path = path.display();
        return Err(Failure::input(format!("{path}: the graph takes at most {most} bytes")));
    }
    Ok(input)
}

fn write(path: Option<&Path>, outputs: &[Vec<u8>]) -> Result<(), Failure> {
    let Some(path) = path else {
        let mut out = io::stdout().lock();
        let written = match outputs {
            [one] => out.write_all(one),
            several => several.iter().enumerate().try_for_each(|(number, output)| {
                writeln!(out, "output {number}: {} bytes", output.len())?;
                out.write_all(output)?;
                writeln!(out)
            }),
        };
        return written
            .and_then(|()| out.flush())
            .map_err(|error| Failure::later(format!("standard output: {error}")));
    };
    for (number, output) in outputs.iter().enumerate() {
        let mut file = OsString::from(path);
        if outputs.len() > 1 {
            file.push(format!(".{number}"));
        }
        let file = Path::new(&file);
        fs::write(file, output).map_err(|error| failed(file, "cannot be written", &error))?;
    }
    Ok(())
}

fn failed(file: &Path, what: &str, error: &io::Error) -> Failure {
    Failure::input(format!("{}: {what}: {error}", file.display()))
}

/// A client of the resource manager, or of the executor managers in the database.
fn connect(run: &Run, settings: &BenchmarkConfig) -> Result<Client, Failure> {
    let device = Devices::load(&run.device_database)?.open(&settings.config.rdma_device)?;
    if let Some(file) = &run.executors_database {
        return Ok(Client::with_executors(device, ExecutorsDatabase::load(file)?)?);
    }
    let Some(manager) = settings.config.resource_manager()? else {
        return Err(Failure::input(format!(
            "{}: config.resource_manager_address is empty, and no --executors-database is given",
            run.config.display()
        )));
    };
    Ok(Client::connect(device, &manager[..])?)
}
