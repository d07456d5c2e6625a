//! The floor: the round trip of an invocation's writes, without the function service.

use std::net::SocketAddr;
use std::process::{Command, ExitCode};

use benchmarks::echo::{self, Known};
use benchmarks::transport::{self, Transport};
use benchmarks::{Measure, Report, RunPlan};
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
    program::run(|cli: &Cli| program::level(cli.measure.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let plan = RunPlan::of(&cli.measure)?;
    if let Some(starter) = cli.peer {
        return transport::be_the_peer(&plan, starter);
    }
    let mut transport = Transport::start(&plan, peer_command(&cli.measure, &plan)?)?;

    let len = plan.payload_len();
    let samples = plan.measure(|number| echo::once(&mut transport, Known::All, len, number))?;
    echo::compare_once(&mut transport, len, plan.repetitions.into())?;
    drop(transport); // before anything is printed: the peer is gone by then

    let mut report = Report::new("transport_benchmarker", &plan, None);
    report.round_trip(&samples);
    report.finish(&cli.measure, &[("time", &samples)], "")
}

fn peer_command(flags: &Measure, plan: &RunPlan) -> Result<Command, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::later(format!("this program's file cannot be found: {error}")))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&flags.config);
    command.arg("--device-database").arg(&flags.device_database);
    command.arg("--size").arg(plan.payload_bytes.to_string());
    command.arg("--hot-timeout").arg(plan.hot_timeout_ms.to_string());
    Ok(command)
}
