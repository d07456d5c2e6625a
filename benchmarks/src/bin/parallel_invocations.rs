//! One invocation on each of several workers at a time.

use std::process::ExitCode;
use std::time::Instant;

use benchmarks::progress::Progress;
use benchmarks::report::write_csv;
use benchmarks::service::{self, Buffers};
use benchmarks::{Measure, Plan, Report, Samples, Service};
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
    program::run(|cli: &Cli| program::level(cli.measure.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let plan = Plan::of(&cli.measure)?;
    let name = &cli.service.name;
    let cores = if cli.cores == 0 { plan.settings.benchmark.numcores } else { cli.cores };
    let library = service::library(&cli.service)?;
    let client = service::connect(&plan, &cli.service)?;
    let lease = client.lease(service::request(&plan, cores))?;
    let deployment = service::deployment(&plan, &cli.service);
    let mut executor = lease.deploy_with(&library, &deployment)?;
    let function = executor.function(name)?;
    let mut buffers = Buffers::new(&plan, &executor, name, cores)?;

    let mut once = |number: u64| {
        buffers.stamp(number)?;
        let start = Instant::now();
        let sizes = executor.invoke_all(&function, &buffers.inputs, &mut buffers.outputs);
        let took = start.elapsed();
        buffers.check(&sizes?, number)?;
        Ok::<_, Failure>(took)
    };
    for number in 0..plan.warmup_repetitions {
        once(number.into())?;
    }
    let mut samples = Samples::with_capacity(plan.repetitions as usize);
    let mut progress = Progress::of(plan.repetitions.into());
    for number in 0..plan.repetitions {
        samples.record(once(number.into())?);
        progress.step();
    }
    drop(progress);
    let bill = executor.release()?;

    let mut report = Report::new("parallel_invocations", &plan, Some(name));
    let invocations = f64::from(cores) * f64::from(plan.repetitions);
    let per_second = invocations / samples.total().as_secs_f64();
    report.set("workers", cores);
    report.set("invocations_per_second", per_second);
    report.round_trip(&samples);
    report.bill(&bill);
    if let Some(file) = &cli.measure.output_stats {
        write_csv(file, &[("time", &samples)])?;
    }
    let summary = report.summary(&samples);
    report.print(
        cli.measure.json,
        &format!("{summary}\n{cores} workers, {per_second:.0} invocations/s\n\n"),
    )
}
