//! The program `executor`: see the library of this crate.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use executor::{Inherited, zygote};
use rfaas_program::local_channel::from_file;
use rfaas_program::{Failure, log};
use rfaas_protocol::assignment::Assignment;

/// Runs the functions of one lease. Not to be started by hand: executor_manager starts it from PATH for
/// each lease, with an assignment (one JSON object) on standard input, and ends it with the lease.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Log also what is of interest to developers; RUST_LOG overrides.
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    // Looked at before there is a log, whose thread a process that is cloned must not have.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == zygote::ARGUMENT) {
        return zygote::serve(|handed| rfaas_program::run_forked("info", || run(handed)));
    }
    let inherited = Inherited::at_start(); // before anything is opened
    let level = |cli: &Cli| if cli.verbose { "debug" } else { "info" };
    rfaas_program::run(level, |_| run(inherited))
}

fn run(inherited: Inherited) -> Result<(), Failure> {
    abort_on_panic();
    let assignment = read_assignment().map_err(|error| Failure::input(format!("{error:#}")))?;
    let given = inherited
        .take(assignment.library)
        .map_err(|error| Failure::input(format!("the library's file: {error}")))?;
    match executor::run(assignment, given) {
        Ok(ended) => {
            log::finish(executor::LAST_LINES);
            if ended.orderly {
                executor::leave(ended.status)
            }
            executor::leave_at_once(ended.status)
        }
        Err(error) => {
            log::complain(&error);
            log::finish(executor::LAST_LINES);
            executor::leave_at_once(error.exit_status())
        }
    }
}

fn read_assignment() -> anyhow::Result<Assignment> {
    let input = io::stdin();
    if input.is_terminal() {
        bail!("executor_manager starts this program, with an assignment on standard input");
    }
    from_file(input).context("assignment on standard input")
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
