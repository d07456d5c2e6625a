//! Round trips of one function on one leased core, one after the other.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use benchmarks::in_place::InPlace;
use benchmarks::progress::Progress;
use benchmarks::report::write_csv;
use benchmarks::service::{self, Buffers, Known};
use benchmarks::{Measure, Plan, Report, Samples, Service, pattern};
use clap::Parser;
use rfaas::{Executor, Function};
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
    program::run(|cli: &Cli| program::level(cli.measure.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let plan = Plan::of(&cli.measure)?;
    let library = service::library(&cli.service)?;
    let client = service::connect(&plan, &cli.service)?;
    let lease = client.lease(service::request(&plan, 1))?;
    let deployment = service::deployment(&plan, &cli.service);
    let mut executor = lease.deploy_with(&library, &deployment)?;
    let function = executor.function(&cli.service.name)?;
    let run = Run::new(&cli, &plan, &mut executor, function)?;
    let (samples, shown) = measure(run, &plan)?;
    let bill = executor.release()?;

    let mut report = Report::new("warm_benchmarker", &plan, Some(&cli.service.name));
    if cli.in_place {
        report.set("in_place", true);
    }
    report.round_trip(&samples);
    report.bill(&bill);
    if let Some(file) = &cli.measure.output_stats {
        write_csv(file, &[("time", &samples)])?;
    }
    report.print(cli.measure.json, &format!("{}\nData: {shown}\n\n", report.summary(&samples)))
}

/// All repetitions; and the start of the last output, for people.
fn measure(mut run: Run<'_>, plan: &Plan) -> Result<(Samples, String), Failure> {
    for number in 0..plan.warmup_repetitions {
        run.round_trip(number.into())?;
    }
    let mut samples = Samples::with_capacity(plan.repetitions as usize);
    let mut progress = Progress::of(plan.repetitions.into());
    for number in 0..plan.repetitions {
        samples.record(run.round_trip(number.into())?);
        progress.step();
    }
    drop(progress);
    run.compare_once(plan.repetitions.into())?;
    let shown = run.last_output()?;
    let shown = shown.iter().map(u8::to_string).collect::<Vec<_>>().join(" ");
    Ok((samples, shown))
}

/// How a repetition is done.
enum Run<'a> {
    Sent(Sent<'a>),
    InPlace(InPlace<'a>),
}

impl<'a> Run<'a> {
    fn new(
        cli: &Cli,
        plan: &Plan,
        executor: &'a mut Executor,
        function: Function,
    ) -> Result<Self, Failure> {
        let name = &cli.service.name;
        if cli.in_place {
            let known = Known::of(name);
            let run = InPlace::new(executor, &function, known, plan.payload_len())?;
            return Ok(Run::InPlace(run));
        }
        let buffers = Buffers::new(plan, executor, name, 1)?;
        Ok(Run::Sent(Sent { executor, function, buffers }))
    }

    fn round_trip(&mut self, number: u64) -> Result<Duration, Failure> {
        match self {
            Run::Sent(run) => run.round_trip(number),
            Run::InPlace(run) => run.round_trip(number),
        }
    }

    fn compare_once(&mut self, number: u64) -> Result<(), Failure> {
        match self {
            Run::Sent(run) => run.compare_once(number),
            Run::InPlace(run) => run.compare_once(number),
        }
    }

    fn last_output(&mut self) -> Result<Vec<u8>, Failure> {
        match self {
            Run::Sent(run) => run.last_output(),
            Run::InPlace(run) => run.last_output(SHOWN_BYTES),
        }
    }
}

/// What a repetition needs whose payload is sent.
struct Sent<'a> {
    executor: &'a mut Executor,
    function: Function,
    buffers: Buffers,
}

impl Sent<'_> {
    /// Measures one invocation, and checks that its result is its own.
    fn round_trip(&mut self, number: u64) -> Result<Duration, Failure> {
        self.buffers.stamp(number)?;
        let (input, output) = (&self.buffers.inputs[0], &mut self.buffers.outputs[0]);
        let start = Instant::now();
        let invoked = self.executor.invoke(&self.function, input, output);
        let took = start.elapsed();
        self.buffers.check(&[invoked?], number)?;
        Ok(took)
    }

    /// Compares one whole payload, after the measurement, if the function is one that returns it.
    fn compare_once(&mut self, number: u64) -> Result<(), Failure> {
        if self.buffers.known() != Known::All {
            return Ok(());
        }
        let sent = pattern::payload(self.buffers.inputs[0].len());
        self.buffers.inputs[0].write(0, &sent)?;
        pattern::compare(number, 0, &sent, &self.result(sent.len())?)
    }

    /// The start of what the function makes of the tutorial's input, all ones.
    fn last_output(&mut self) -> Result<Vec<u8>, Failure> {
        self.buffers.inputs[0].fill(1);
        self.result(SHOWN_BYTES)
    }

    /// Calls the function; returns at most `most` bytes of its output.
    fn result(&mut self, most: usize) -> Result<Vec<u8>, Failure> {
        let (input, output) = (&self.buffers.inputs[0], &mut self.buffers.outputs[0]);
        let returned = self.executor.invoke(&self.function, input, output)?;
        output.to_vec(..returned.min(most)).map_err(Failure::from)
    }
}
