//! The floor: the round trip of an invocation's writes, without the function service.

use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use benchmarks::progress::Progress;
use benchmarks::report::write_csv;
use benchmarks::transport::{self, Transport};
use benchmarks::{Measure, Plan, Report, Samples, pattern};
use clap::Parser;
use rfaas_program::{self as program, Failure};

/// Measures the transport alone: writes with immediate data to another process and back, on the same device,
/// with the same buffers and the same way of waiting as an invocation. It starts that process itself.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    measure: Measure,
    /// Be the other process, and answer the one that waits at this address.
    #[arg(long, value_name = "ADDRESS", hide = true)]
    peer: Option<SocketAddr>,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.measure.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let plan = Plan::of(&cli.measure)?;
    if let Some(starter) = cli.peer {
        return transport::be_the_peer(&plan, starter);
    }
    let mut transport = Transport::start(&plan, peer_command(&cli.measure, &plan)?)?;

    let mut samples = Samples::with_capacity(plan.repetitions as usize);
    let mut progress = Progress::of(u64::from(plan.repetitions));
    for number in 0..plan.warmup_repetitions {
        round_trip(&mut transport, &plan, number.into())?;
    }
    for number in 0..plan.repetitions {
        samples.record(round_trip(&mut transport, &plan, number.into())?);
        progress.step();
    }
    drop(progress);
    compare_once(&mut transport, &plan)?;
    drop(transport); // before anything is printed: the peer is gone by then

    let mut report = Report::new("transport_benchmarker", &plan, None);
    report.round_trip(&samples);
    if let Some(file) = &cli.measure.output_stats {
        write_csv(file, &[("time", &samples)])?;
    }
    report.print(cli.measure.json, "")
}

fn peer_command(flags: &Measure, plan: &Plan) -> Result<Command, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::later(format!("this program's file cannot be found: {error}")))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&flags.config);
    command.arg("--device-database").arg(&flags.device_database);
    command.arg("--size").arg(plan.payload_bytes.to_string());
    command.arg("--hot-timeout").arg(plan.hot_timeout_ms.to_string());
    Ok(command)
}

/// Measures one round trip, and checks that it was that one.
fn round_trip(transport: &mut Transport, plan: &Plan, number: u64) -> Result<Duration, Failure> {
    let len = plan.payload_len();
    pattern::write_stamp(len, number, |offset, bytes| transport.write(offset, bytes))?;
    let start = Instant::now();
    transport.round_trip()?;
    let took = start.elapsed();
    pattern::check_stamp(len, number, |offset, out| transport.read(offset, out))?;
    Ok(took)
}

/// Compares one whole payload, after the measurement.
fn compare_once(transport: &mut Transport, plan: &Plan) -> Result<(), Failure> {
    let sent = pattern::payload(plan.payload_len());
    transport.write(0, &sent)?;
    transport.round_trip()?;
    let mut got = vec![0; sent.len()];
    transport.read(0, &mut got)?;
    pattern::compare(plan.repetitions.into(), 0, &sent, &got)
}
