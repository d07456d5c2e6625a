//! The command line of the resource manager.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use resource_manager::{Error, Options};
use rfaas::command_line::complaint;
use tracing_subscriber::EnvFilter;

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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    log(cli.verbose);
    let options = Options {
        config: cli.config,
        device_database: cli.device_database,
        input_database: cli.input_database,
        output_database: cli.output_database,
        state_file: cli.state_file,
    };
    match resource_manager::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error.to_string()));
            ExitCode::from(match error {
                Error::Start(_) => 2,
                Error::Run(_) => 1,
            })
        }
    }
}

/// Shows help and version as they are, a wrong command line as one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print(); // a reader that has gone has seen enough
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", complaint(&error.to_string()));
    ExitCode::from(2)
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

fn log(verbose: bool) {
    let default = if verbose { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
}
