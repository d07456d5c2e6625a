//! What every program of `tools`, `benchmarks` and `examples` does the same way: what `rfaas_program` says, and
//! its end is left to a signal that stops its clusters.

use std::process::ExitCode;

use clap::Parser;
pub use rfaas::describe;
pub use rfaas_program::{Failure, print};

use crate::interrupt;

/// Runs a program: parses its command line, starts its log and reports how it ended. It logs warnings and
/// worse, or with `verbose` everything down to debug; `RUST_LOG` overrides.
pub fn run<C: Parser>(
    verbose: impl FnOnce(&C) -> bool,
    main: impl FnOnce(C) -> Result<(), Failure>,
) -> ExitCode {
    let level = |cli: &C| if verbose(cli) { "debug" } else { "warn" };
    rfaas_program::run(level, |cli| {
        let ended = main(cli);
        interrupt::leave_the_end_to_the_signal();
        ended
    })
}
