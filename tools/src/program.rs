//! What every program of `tools` and `benchmarks` does the same way: read its command line, log, and
//! end with one line and the right exit status.
//!
//! * ONE LINE - whatever ends a program early is one line on standard error, `error: …`.
//! * STATUS - 2 for what the caller got wrong (a flag, file, device, address), 1 for what went wrong
//!   later.

use std::fmt;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use rfaas::command_line::complaint;
use rfaas::config::ConfigError;
pub use rfaas::error::describe;
use tracing_subscriber::EnvFilter;

use crate::interrupt;

/// Why a program ends early.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// The caller's mistake, which repeating does not mend: exit status 2.
    pub fn input(message: impl fmt::Display) -> Self {
        Failure { status: 2, message: message.to_string() }
    }

    /// What failed although the input was right: exit status 1.
    pub fn later(message: impl fmt::Display) -> Self {
        Failure { status: 1, message: message.to_string() }
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

/// Whether the caller of the service gave something wrong, or it failed later.
impl From<rfaas::Error> for Failure {
    fn from(error: rfaas::Error) -> Self {
        use rfaas::Error as E;
        let text = describe(&error);
        match error {
            E::Config(_)
            | E::Address { .. }
            | E::Unreachable { .. }
            | E::Invalid(_)
            | E::LibraryUnreadable { .. }
            | E::Library { .. }
            | E::LoadFailed { .. }
            | E::UnknownFunction { .. }
            | E::InputTooLarge { .. } => Failure::input(text),
            _ => Failure::later(text),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        rfaas::Error::from(error).into()
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

/// Runs a program: parses its command line, starts its log and reports how it ended.
pub fn run<C: Parser>(
    verbose: impl FnOnce(&C) -> bool,
    main: impl FnOnce(C) -> Result<(), Failure>,
) -> ExitCode {
    let cli = match C::try_parse() {
        Ok(cli) => cli,
        Err(error) => return command_line(&error),
    };
    log_to_stderr(verbose(&cli));
    let ended = main(cli);
    interrupt::leave_the_end_to_the_signal();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.status)
        }
    }
}

/// Help and version go to standard output; a wrong flag is one line, without the usage behind it.
fn command_line(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A closed standard output (`--help | head -1`) is no failure.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", complaint(&error.to_string()));
    ExitCode::from(2)
}

/// Warnings and worse, or with `verbose` everything down to debug, on standard error; `RUST_LOG` overrides.
fn log_to_stderr(verbose: bool) {
    let otherwise = if verbose { "debug" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(otherwise));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
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
