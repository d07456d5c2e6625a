//! The command line of the resource manager.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use resource_manager::{Error, Options};
use rfaas_program::Failure;

/// Hands out leases of executors, over RDMA and HTTP; watches and bills them.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Settings; config/README.md explains every key.
    #[arg(short, long, value_name = "FILE", default_value = "config/resource_manager.json")]
    config: PathBuf,
    /// RDMA devices of this machine.
    #[arg(long, value_name = "FILE", default_value = "config/devices.json")]
    device_database: PathBuf,
    /// Executors database: nodes to start with, besides those of the state file.
    #[arg(short, long, value_name = "FILE")]
    input_database: Option<PathBuf>,
    /// Executors database: where to write the nodes, after each change.
    #[arg(short, long, value_name = "FILE")]
    output_database: Option<PathBuf>,
    /// Where nodes, leases and bills are kept, instead of the configured file.
    #[arg(long, value_name = "FILE")]
    state_file: Option<PathBuf>,
    /// Accepted for compatibility, without effect.
    #[arg(long, value_name = "N")]
    rdma_threads: Option<i32>,
    /// Log more (debug); RUST_LOG overrides it.
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    rfaas_program::run(|cli: &Cli| if cli.verbose { "debug" } else { "info" }, run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let options = Options {
        config: cli.config,
        device_database: cli.device_database,
        input_database: cli.input_database,
        output_database: cli.output_database,
        state_file: cli.state_file,
    };
    resource_manager::run(&options).map_err(|error| match error {
        Error::Start(_) => Failure::input(error),
        Error::Run(_) => Failure::later(error),
    })
}
