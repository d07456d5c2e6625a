//! A cluster on this machine, for as long as this program runs.

use std::iter;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rfaas::describe;
use rfaas_config::shell;
use rfaas_program::{self as program, Failure};
use testkit::interrupt::stop_clusters_on_signals;
use testkit::{Binaries, LocalCluster, Options};

/// Runs a resource manager and an executor manager on this machine until Ctrl-C.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Cores that the node leases out.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    cores: u32,
    /// Memory that the node leases out, in MB.
    #[arg(long, value_name = "MB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    memory: u32,
    /// Pin each worker to a CPU of its own.
    #[arg(long)]
    pin_threads: bool,
    /// Only an executor manager; clients use the executors database.
    #[arg(long)]
    skip_resource_manager: bool,
    /// Where the programs are; without it next to this one.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Show what the managers log on standard error. What functions print is for their caller
    /// (`Executor::printed`).
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let _signals = stop_clusters_on_signals(Some(0)).map_err(Failure::later)?;
    let options = Options {
        cores: cli.cores,
        memory: cli.memory,
        pin_threads: cli.pin_threads,
        show_logs: cli.verbose,
        talkative: cli.verbose,
        resource_manager: !cli.skip_resource_manager,
        binaries: cli.binaries.map_or_else(Binaries::beside_this_program, Binaries::in_directory),
        ..Options::default()
    };
    let cluster = LocalCluster::start(options).map_err(|error| Failure::input(describe(&error)))?;
    print_usage(&cluster)?;
    loop {
        std::thread::park(); // the signal ends the process
    }
}

fn print_usage(cluster: &LocalCluster) -> Result<(), Failure> {
    let mut text = String::new();
    if let (Some(at), Some(http)) = (cluster.resource_manager_address(), cluster.http()) {
        text += &format!("resource manager   {at}, {}\n", http.base());
    }
    text += &format!("executor manager   {}\n", cluster.executor_manager_address());
    text += &format!("configuration      {}\n", cluster.directory().display());
    text += &format!("a caller of yours  {}\n", first_lines(cluster)?);
    let command = cluster.benchmark_command("warm_benchmarker").map_err(Failure::input)?;
    let example = shell::line(iter::once(command.get_program()).chain(command.get_args()));
    program::print(
        text + &format!(
            "\ntry: {example} -s 64\nCtrl-C stops it; with -v it shows what managers log and functions print\n"
        ),
    )
}

/// What a caller takes instead of what it has in README.md.
fn first_lines(cluster: &LocalCluster) -> Result<String, Failure> {
    let devices = cluster.devices();
    let device = &cluster.client_device().map_err(Failure::input)?.name;
    let client = match cluster.resource_manager_address() {
        Some(at) => format!("Client::connect(…, \"{at}\")"),
        None => {
            format!("Client::with_executors(…, ExecutorsDatabase::load({:?}))", cluster.executors())
        }
    };
    Ok(format!("Devices::load({devices:?}), open({device:?}), {client}"))
}
