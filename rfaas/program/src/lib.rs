//! What every program does the same way: read its command line, log, print its result, and end with one
//! line and the right exit status.
//!
//! * Whatever ends a program early is one line on standard error, `error: …`.
//! * The exit status is 2 for what the caller got wrong (a flag, file, device, address), and 1 for what
//!   went wrong later.
//!
//! Standard descriptors that are closed when a program starts are `/dev/null` before `main` runs: the
//! standard library sees to that, so no connection is ever taken for standard error.
//!
//! Elsewhere: how lines get to standard error (`log`), the loop of both managers (`poll_loop`), what a manager and its
//! processes say to each other (`local_channel`), what an executor needs (`footprint`), control groups
//! (`control_groups`), files that stay as they are (`sealed_file`).

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use rfaas_config::ProgramError;

mod command_line;
pub mod control_groups;
pub mod descriptor_set;
pub mod footprint;
pub mod inherited;
pub mod local_channel;
pub mod log;
pub mod poll_loop;
pub mod sealed_file;

pub use log::LAST_LINES;
pub use rfaas_config::describe;

/// Why a program ends early.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// Makes one of a mistake of the caller, which repeating does not mend: exit status 2.
    pub fn input(message: impl fmt::Display) -> Self {
        Failure { status: 2, message: message.to_string() }
    }

    /// Makes one of something that failed although the input was right: exit status 1.
    pub fn later(message: impl fmt::Display) -> Self {
        Failure { status: 1, message: message.to_string() }
    }

    /// Returns the exit status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

impl<E: ProgramError> From<E> for Failure {
    fn from(error: E) -> Self {
        let message = describe(&error);
        if error.is_wrong_input() { Failure::input(message) } else { Failure::later(message) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some messages of libraries (the dynamic loader's) have several lines; ours has one.
        let mut lines = self.message.lines().map(str::trim).filter(|line| !line.is_empty());
        f.write_str(lines.next().unwrap_or("unknown failure"))?;
        lines.try_for_each(|line| write!(f, " {line}"))
    }
}

/// Returns the level of a program that is no server: warnings and worse or, with `verbose`,
/// everything down to debug.
pub fn level(verbose: bool) -> &'static str {
    if verbose { "debug" } else { "warn" }
}

/// Runs a program: starts its log, parses its command line, and reports how it ended. `level` is what it
/// logs unless `RUST_LOG` says otherwise.
pub fn run<C: Parser>(
    level: impl FnOnce(&C) -> &'static str,
    main: impl FnOnce(C) -> Result<(), Failure>,
) -> ExitCode {
    logged(|| match C::try_parse() {
        Ok(cli) => {
            log::subscribe(level(&cli));
            main(cli)
        }
        Err(told) => not_run(&told),
    })
}

/// Runs a program in a process that was forked, whose command line is that of another program. `level` is what
/// it logs unless `RUST_LOG` says otherwise.
pub fn run_forked(level: &str, main: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    logged(|| {
        log::subscribe(level);
        main()
    })
}

/// Runs `main` with a log, and reports how it ended.
fn logged(main: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    if let Err(error) = log::start() {
        // Nobody can be told that this cannot be told either.
        let _ = writeln!(io::stderr(), "error: the log cannot be started: {error}");
        return ExitCode::FAILURE;
    }
    let status = main().map_or_else(
        |failure| {
            log::complain(&failure);
            failure.status
        },
        |()| 0,
    );
    log::finish(LAST_LINES);
    ExitCode::from(status)
}

/// Help and version go to standard output; a wrong flag is one line, without the usage behind it.
fn not_run(told: &clap::Error) -> Result<(), Failure> {
    if told.use_stderr() {
        return Err(Failure::input(command_line::complaint(&told.to_string())));
    }
    match told.print().and_then(|()| io::stdout().flush()) {
        // A closed standard output (`--help | head -1`) is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(not_printed(&error)),
        _ => Ok(()),
    }
}

/// Prints a result on standard output. `println!` would panic if that is a full disk or its reader has gone.
pub fn print(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).map_err(|error| not_printed(&error))
}

fn not_printed(error: &io::Error) -> Failure {
    Failure::later(format!("standard output: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_is_told_in_one() {
        let failure = Failure::input("cannot load\n  libx.so:\n\n no such file");
        assert_eq!(failure.to_string(), "cannot load libx.so: no such file");
    }
}
