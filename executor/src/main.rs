//! The program `executor`: see the library of this crate.

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use rfaas::command_line::complaint;
use rfaas::protocol::assignment::Assignment;
use tracing_subscriber::EnvFilter;

/// Runs the functions of one lease. Not to be started by hand: executor_manager starts it from PATH for
/// each lease, with an assignment (one JSON object) on standard input, and ends it with the lease.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Log also what is of interest to developers; RUST_LOG overrides.
    #[arg(short, long)]
    verbose: bool,
}

/// Largest assignment, in bytes: a pinned CPU for each of 65,535 workers, and room for the rest.
const MAX_ASSIGNMENT_BYTES: u64 = 1 << 20;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            complain(&complaint(&error.to_string()));
            return ExitCode::from(2);
        }
        Err(help) => {
            let printed = help.print(); // it is asked for, so it is a result
            return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    log_to_stderr(cli.verbose);
    abort_on_panic();
    let assignment = match read_assignment() {
        Ok(assignment) => assignment,
        Err(error) => {
            complain(&format!("{error:#}"));
            return ExitCode::from(2);
        }
    };
    match executor::run(assignment) {
        Ok(ended) if ended.orderly => executor::leave(ended.status),
        Ok(ended) => executor::leave_at_once(ended.status),
        Err(error) => {
            complain(&error.to_string());
            executor::leave_at_once(error.exit_status())
        }
    }
}

/// One line on standard error, if anybody still reads it (`eprintln!` would panic else).
fn complain(error: &str) {
    let _ = writeln!(io::stderr(), "error: {error}");
}

fn read_assignment() -> anyhow::Result<Assignment> {
    let input = io::stdin();
    if input.is_terminal() {
        bail!("executor_manager starts this program, with an assignment on standard input");
    }
    let mut text = String::new();
    input
        .take(MAX_ASSIGNMENT_BYTES)
        .read_to_string(&mut text)
        .context("cannot read the assignment on standard input")?;
    serde_json::from_str(&text).context("assignment on standard input")
}

fn log_to_stderr(verbose: bool) {
    let default = if verbose { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
}

/// A panic of any thread is a bug of ours: the process ends, and the manager tells the client, instead
/// of going on with a worker missing.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}
