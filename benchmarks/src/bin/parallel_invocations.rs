//! One invocation on each of several workers at a time.

use std::process::ExitCode;
use std::time::Instant;

use benchmarks::echo::Known;
use benchmarks::service::{self, Buffers};
use benchmarks::{Measure, Report, RunPlan, Service};
use clap::Parser;
use rfaas_program::{self as program, Failure};

/// Measures invocations on several cores at once: each repetition calls the function on every worker and waits for
/// all results.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    measure: Measure,
    #[command(flatten)]
    service: Service,
    /// Cores to lease, a worker on each; 0: as many as configured.
    #[arg(long, value_name = "N", default_value_t = 0)]
    cores: u32,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.measure.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let plan = RunPlan::of(&cli.measure)?;
    let name = &cli.service.name;
    let cores = if cli.cores == 0 { plan.settings.benchmark.numcores } else { cli.cores };
    let mut executor = service::deploy(&plan, &cli.service, cores)?;
    let function = executor.function(name)?;
    let mut buffers = Buffers::new(&plan, &executor, cores)?;
    let known = Known::of(name);

    let samples = plan.measure(|number| {
        buffers.stamp(known, number)?;
        let start = Instant::now();
        let sizes = executor.invoke_all(&function, &buffers.inputs, &mut buffers.outputs);
        let took = start.elapsed();
        buffers.check(known, &sizes?, number)?;
        Ok(took)
    })?;
    let bill = executor.release()?;

    let mut report = Report::new("parallel_invocations", &plan, Some(name));
    let invocations = f64::from(cores) * f64::from(plan.repetitions);
    let per_second = invocations / samples.total().as_secs_f64();
    report.set("workers", cores);
    report.set("invocations_per_second", per_second);
    report.round_trip(&samples);
    report.bill(&bill);
    let summary = report.summary(&samples);
    let text = format!("{summary}\n{cores} workers, {per_second:.0} invocations/s\n\n");
    report.finish(&cli.measure, &[("time", &samples)], &text)
}
