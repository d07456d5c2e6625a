//! `executor_manager`: the command line around [`executor_manager::run`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use executor_manager::{Error, Options};
use rfaas_config::{ConfigError, Devices, ExecutorManagerConfig};
use rfaas_program::Failure;

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

fn main() -> ExitCode {
    rfaas_program::run(|cli: &Cli| if cli.verbose { "debug" } else { "info" }, run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let options = Options {
        config: ExecutorManagerConfig::load(&cli.config)?,
        devices: Devices::load(&cli.device_database)?,
        skip_resource_manager: cli.skip_resource_manager,
        wait: cli.wait,
    };
    executor_manager::run(&options).map_err(|error| match error {
        Error::Start(_) => Failure::input(error),
        Error::Setting(invalid) => ConfigError::Invalid { path: cli.config, invalid }.into(),
        _ => Failure::later(error),
    })
}
