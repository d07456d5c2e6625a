//! `executor_manager`: the command line around [`executor_manager::run`].

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use executor_manager::{Error, Options, run};
use rfaas::command_line::complaint;
use rfaas::config::{ConfigError, Devices, ExecutorManagerConfig};
use tracing_subscriber::EnvFilter;

/// Leases this machine's cores to clients: registers with a resource manager, starts executors.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Settings of this node; config/README.md explains every key.
    #[arg(short, long, value_name = "FILE", default_value = "config/executor_manager.json")]
    config: PathBuf,
    /// Devices of this machine, as written by device_generator.
    #[arg(long, value_name = "FILE", default_value = "config/devices.json")]
    device_database: PathBuf,
    /// Lease without a resource manager, to every client that reaches this node.
    #[arg(long)]
    skip_resource_manager: bool,
    /// Wait for a resource manager that is not there yet, instead of ending with an error.
    #[arg(long, conflicts_with = "skip_resource_manager")]
    wait: bool,
    /// Log what is done and why; RUST_LOG chooses in detail.
    #[arg(short, long)]
    verbose: bool,
}

/// Exit status for something wrong with what the program was given.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return fail(USAGE, &complaint(&error.to_string())),
        Err(help) => {
            let printed = help.print(); // it is asked for, so it is a result
            return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    log_to_stderr(cli.verbose);
    let options = match options(&cli) {
        Ok(options) => options,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ Error::Start(_)) => fail(USAGE, &error.to_string()),
        Err(error) => fail(1, &error.to_string()),
    }
}

fn options(cli: &Cli) -> Result<Options, ConfigError> {
    Ok(Options {
        config: ExecutorManagerConfig::load(&cli.config)?,
        devices: Devices::load(&cli.device_database)?,
        skip_resource_manager: cli.skip_resource_manager,
        wait: cli.wait,
        verbose: cli.verbose,
    })
}

fn log_to_stderr(verbose: bool) {
    let level = if verbose { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

fn fail(status: u8, what: &str) -> ExitCode {
    eprintln!("error: {what}");
    ExitCode::from(status)
}
