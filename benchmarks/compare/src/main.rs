//! Floors, ours and peers side by side, in one run.

use std::path::PathBuf;
use std::process::ExitCode;

use benchmarks::Printing;
use benchmarks::plan::input;
use clap::{Parser, value_parser};
use compare::files::{self, Comparison};
use compare::{Effort, Role, Settings, plots, ratios, table};
use rfaas_config::Devices;
use rfaas_program::{self as program, Failure};
use testkit::interrupt::stop_clusters_on_signals;

/// Compares, on this machine and in one run: what the machine can do at most, this project's transport and function
/// service, and what else there is. It starts everything that it needs, and leaves out what is not installed.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Devices of this machine.
    #[arg(long, value_name = "FILE", default_value = "config/devices.json")]
    device_database: PathBuf,
    /// Device to measure ours on, by its name in the database; may be given several times. Without it the only one
    /// that is there.
    #[arg(long = "device", value_name = "NAME", default_value = "")]
    devices: Vec<String>,
    /// Runs: everything is measured once in each, and medians are over all of them.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u32).range(1..))]
    runs: u32,
    /// Few repetitions and payloads: to see that everything runs, not for figures.
    #[arg(long)]
    quick: bool,
    /// Write compare.json, tables as CSV and plots as SVG into this directory, which is made if need be.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    #[command(flatten)]
    printing: Printing,
    /// Be the other process of a contender.
    #[arg(long, value_name = "CONTENDER", hide = true)]
    serve: Option<Role>,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    if let Some(role) = cli.serve {
        return role.serve();
    }
    let database = Devices::load(&cli.device_database).map_err(input)?;
    if let Some(directory) = &cli.output_dir {
        files::make(directory)?; // before minutes of measuring
    }
    let _signals = stop_clusters_on_signals(None).map_err(Failure::later)?;
    let (effort, payloads) = match cli.quick {
        true => (Effort::QUICK, compare::QUICK_PAYLOADS.to_vec()),
        false => (Effort::FULL, compare::PAYLOADS.to_vec()),
    };
    let settings = Settings { devices: cli.devices, runs: cli.runs, effort, payloads };
    let (results, devices) = compare::run(&settings, &database)?;
    let ratios = ratios::ratios(&results, &devices);
    let comparison = Comparison::of(&settings, cli.quick, results, devices, ratios);
    if let Some(directory) = &cli.output_dir {
        files::write(directory, &comparison)?;
        plots::draw(directory, &comparison)?;
    }
    let text =
        if cli.printing.json { comparison.json().to_string() } else { table::table(&comparison) };
    program::print(text + "\n")
}
