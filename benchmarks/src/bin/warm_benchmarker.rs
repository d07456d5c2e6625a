//! Round trips of one function on one leased core, one after the other.

use std::process::ExitCode;

use benchmarks::calls::{Calls, CallsInPlace};
use benchmarks::echo::{self, Echo, Known};
use benchmarks::service;
use benchmarks::{Measure, Report, RunPlan, Samples, Service};
use clap::Parser;
use rfaas_program::{self as program, Failure};

/// How many bytes of the last output are shown, as in the tutorial.
const SHOWN_BYTES: usize = 100;

/// Measures blocking invocations of a function: leases one core, deploys the library, calls the function again
/// and again.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    measure: Measure,
    #[command(flatten)]
    service: Service,
    /// Build the payload in the memory that the function reads and look at the result where it wrote it; the device
    /// must be of this machine to save the copies.
    #[arg(long)]
    in_place: bool,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.measure.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let plan = RunPlan::of(&cli.measure)?;
    let mut executor = service::deploy(&plan, &cli.service, 1)?;
    let function = executor.function(&cli.service.name)?;
    let known = Known::of(&cli.service.name);
    let (samples, shown) = if cli.in_place {
        let calls = CallsInPlace::new(&mut executor, &function, plan.payload_len());
        measure(&mut calls?, known, &plan)?
    } else {
        measure(&mut Calls::new(&plan, &mut executor, &function)?, known, &plan)?
    };
    let bill = executor.release()?;

    let mut report = Report::new("warm_benchmarker", &plan, Some(&cli.service.name));
    if cli.in_place {
        report.set("in_place", true);
    }
    report.round_trip(&samples);
    report.bill(&bill);
    let text = format!("{}\nData: {shown}\n\n", report.summary(&samples));
    report.finish(&cli.measure, &[("time", &samples)], &text)
}

/// All repetitions; and the start of what the function makes of the tutorial's input, all ones, for people.
fn measure(
    calls: &mut impl Echo,
    known: Known,
    plan: &RunPlan,
) -> Result<(Samples, String), Failure> {
    let len = plan.payload_len();
    let samples = plan.measure(|number| echo::once(calls, known, len, number))?;
    if known == Known::All {
        echo::compare_once(calls, len, plan.repetitions.into())?;
    }
    calls.write(0, &vec![1; len])?;
    let shown = echo::call(calls, SHOWN_BYTES)?;
    Ok((samples, shown.iter().map(u8::to_string).collect::<Vec<_>>().join(" ")))
}
