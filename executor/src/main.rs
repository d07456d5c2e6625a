//! The program `executor`: see the library of this crate.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use executor::{Confinement, ConfinementError, Inherited, Work, zygote};
use nix::sys::prctl::set_name;
use rfaas_program::local_channel::from_file;
use rfaas_program::{Failure, log};
use rfaas_protocol::assignment::{Instructions, Standby};
use rfaas_protocol::isolation::SandboxSettings;
use rfaas_sandbox::Launch;

/// Runs the functions of one lease. Not to be started by hand: executor_manager starts it from PATH for
/// each lease, with instructions (one JSON object) on standard input, and ends it with the lease.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Log also what is of interest to developers; RUST_LOG overrides.
    #[arg(short, long)]
    verbose: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What an executor manager asks besides.
#[derive(Debug, Subcommand)]
enum Command {
    /// Prints which layers of isolation this machine has, and why not the others, as a JSON object.
    #[command(hide = true)]
    Probe {
        /// The layers that are wanted, as a JSON object.
        settings: String,
    },
    /// Likewise, in a container, and what that is.
    #[command(hide = true)]
    Contained {
        /// The layers that are wanted, as a JSON object.
        settings: String,
    },
}

/// What was done before there was a second thread.
enum Prepared {
    /// The answer to a [`Command`], a JSON object.
    Report(String),
    /// An executor.
    Executor(Box<Standby>, Box<Work>, Option<Confinement>),
}

fn main() -> ExitCode {
    // Both before there is a log, whose thread neither a process that is cloned nor one that is confined may have.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == zygote::ARGUMENT) {
        return zygote::serve(|handed, sandbox| {
            let prepared =
                executor(handed, |instructions| Confinement::inherit(sandbox, instructions));
            rfaas_program::run_forked("info", || run(prepared))
        });
    }
    let inherited = Inherited::at_start(); // before anything is opened
    let prepared = Cli::try_parse().ok().map(|cli| prepare(cli.command, inherited));
    rfaas_program::run(
        |cli: &Cli| if cli.verbose { "debug" } else { "info" },
        |_| run(prepared.expect("its command line was read before")),
    )
}

fn prepare(command: Option<Command>, inherited: Inherited) -> Result<Prepared, Failure> {
    let report = match command {
        None => return executor(inherited, Confinement::enter),
        Some(Command::Probe { settings }) => {
            let report = rfaas_sandbox::probe(&read(&settings)?, Launch::Exec);
            serde_json::to_string(&report.map_err(Failure::later)?)
        }
        Some(Command::Contained { settings }) => {
            let report = executor::contained(&read(&settings)?);
            serde_json::to_string(&report.map_err(Failure::later)?)
        }
    };
    Ok(Prepared::Report(report.map_err(Failure::later)?))
}

fn read(settings: &str) -> Result<SandboxSettings, Failure> {
    serde_json::from_str(settings).map_err(Failure::input)
}

/// Reads the instructions and confines this process by them.
fn executor(
    inherited: Inherited,
    confine: impl FnOnce(&Instructions) -> Result<Option<Confinement>, ConfinementError>,
) -> Result<Prepared, Failure> {
    executor::make_room();
    let instructions = read_instructions().map_err(|error| Failure::input(format!("{error:#}")))?;
    let _ = set_name(if instructions.assignment.is_some() { c"executor" } else { c"standby" });
    let confinement = confine(&instructions);
    let Instructions { standby, assignment } = instructions;
    let work = match assignment {
        Some(assignment) => {
            let given = inherited.take(assignment.library);
            given.map(|given| Work::Assigned(assignment, given)).map_err(|e| ("library's file", e))
        }
        None => {
            let awaited = inherited.take_channel(standby.preload.len());
            let awaited = awaited.map(|(channel, files)| Work::Awaited(channel, files));
            awaited.map_err(|e| ("manager's channel", e))
        }
    };
    let work = work.map_err(|(what, error)| Failure::input(format!("the {what}: {error}")))?;
    let confinement = confinement.map_err(Failure::later)?;
    Ok(Prepared::Executor(Box::new(standby), Box::new(work), confinement))
}

fn run(prepared: Result<Prepared, Failure>) -> Result<(), Failure> {
    abort_on_panic();
    let (standby, work, confinement) = match prepared? {
        Prepared::Report(report) => return rfaas_program::print(report),
        Prepared::Executor(standby, work, confinement) => (standby, work, confinement),
    };
    match executor::run(*standby, *work, confinement) {
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

fn read_instructions() -> anyhow::Result<Instructions> {
    let input = io::stdin();
    if input.is_terminal() {
        bail!("executor_manager starts this program, with instructions on standard input");
    }
    from_file(input).context("instructions on standard input")
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
