//! From nothing to the first result, again and again: lease, deployment, invocation, release.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use benchmarks::echo::Known;
use benchmarks::floor::Floor;
use benchmarks::progress::ProgressBar;
use benchmarks::service::{self, Buffers};
use benchmarks::{Measure, Report, RunPlan, Samples, Service};
use clap::{Parser, value_parser};
use rfaas::Client;
use rfaas_program::{self as program, Failure};

/// Measures cold starts: each repetition leases cores, deploys the library, calls the function once on each core
/// and releases the lease. In turn with it, the floors: a fork, and fork + exec + dlopen of a minimal
/// C program with the same library (not measured where there is no C compiler, cc).
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    measure: Measure,
    #[command(flatten)]
    service: Service,
    /// Cores to lease, a worker on each.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    cores: u32,
    /// Pause after each repetition.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pause: u64,
}

/// Phases in the order of the samples file: the original's, then those that it did not measure.
const COLUMNS: [&str; 7] =
    ["connect", "submit", "spawn_connect", "initialize", "execute", "lease", "total"];
/// Phases in the order in which they happen.
const ORDER: [&str; 7] =
    ["lease", "connect", "submit", "spawn_connect", "initialize", "execute", "total"];

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.measure.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let plan = RunPlan::of(&cli.measure)?;
    let library = service::library(&cli.service)?;
    let client = service::connect(&plan, &cli.service)?;
    let start = ColdStart { plan: &plan, cli: &cli, client: &client, library: &library };

    for number in 0..plan.warmup_repetitions {
        start.once(number.into())?;
    }
    let repetitions = plan.repetitions as usize;
    let mut columns = COLUMNS.map(|name| (name, Samples::with_capacity(repetitions)));
    let mut floor = Floor::start(&library)?;
    let mut floors = [Samples::with_capacity(repetitions), Samples::with_capacity(repetitions)];
    let mut progress = ProgressBar::of(plan.repetitions.into());
    for number in 0..plan.repetitions {
        let times = start.once(number.into())?;
        for ((_, samples), time) in columns.iter_mut().zip(times) {
            samples.record(time);
        }
        if let Some(floor) = &mut floor {
            let times = floor.once()?;
            floors[0].record(times.fork);
            floors[1].record(times.exec);
        }
        progress.step();
        std::thread::sleep(Duration::from_millis(cli.pause));
    }
    drop(progress);

    let mut report = Report::new("cold_benchmarker", &plan, Some(&cli.service.name));
    report.set("workers", cli.cores);
    for name in ORDER {
        let (_, samples) =
            columns.iter().find(|(column, _)| *column == name).expect("both lists have all names");
        report.phase(name, samples);
    }
    if floor.is_some() {
        report.floor("fork", &floors[0]);
        report.floor("exec_dlopen", &floors[1]);
    }
    let columns = columns.each_ref().map(|(name, samples)| (*name, samples));
    report.finish(&cli.measure, &columns, "")
}

/// What a repetition needs.
struct ColdStart<'a> {
    plan: &'a RunPlan,
    cli: &'a Cli,
    client: &'a Client,
    library: &'a std::path::Path,
}

impl ColdStart<'_> {
    /// One repetition: its times, in the order of [`COLUMNS`].
    fn once(&self, number: u64) -> Result<[Duration; 7], Failure> {
        let begin = Instant::now();
        let request = service::request(self.plan, self.cli.cores);
        let lease = self.client.lease(request)?;
        let leased = begin.elapsed();
        let deployment = service::deployment(self.plan, &self.cli.service);
        let mut executor = lease.deploy_with(self.library, &deployment)?;
        let deployed = begin.elapsed();

        let function = executor.function(&self.cli.service.name)?;
        let mut buffers = Buffers::new(self.plan, &executor, self.cli.cores)?;
        let known = Known::of(&self.cli.service.name);
        buffers.stamp(known, number)?;
        let ready = Instant::now();
        let sizes = executor.invoke_all(&function, &buffers.inputs, &mut buffers.outputs);
        let execute = ready.elapsed();
        buffers.check(known, &sizes?, number)?;

        let phases = *executor.phases();
        executor.release()?;
        Ok([
            phases.connect,
            phases.submit,
            phases.spawn_connect,
            phases.initialize,
            execute,
            leased,
            deployed + execute,
        ])
    }
}
