//! Writes the device database of this machine, `devices.json`.

mod scan;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rfaas::describe;
use rfaas_program::{self as program, Failure};

/// Writes the device database of this machine: its active RDMA devices, or the embedded device "shm0" if
/// there are none.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Only this device; may be given several times. "shm0" is the embedded one.
    #[arg(short, long = "device", value_name = "DEV")]
    devices: Vec<String>,
    /// Default port of the devices; 0: any free one.
    #[arg(short, long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// File to write; without it the database goes to standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Tell on standard error what was found.
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.verbose), generate)
}

fn generate(cli: Cli) -> Result<(), Failure> {
    let devices =
        scan::scan(&cli.devices, cli.port).map_err(|error| Failure::input(describe(&error)))?;
    let text = serde_json::to_string_pretty(&devices).map_err(Failure::later)? + "\n";
    let Some(file) = &cli.output else { return program::print(text) };
    std::fs::write(file, text)
        .map_err(|error| Failure::input(format!("{}: cannot be written: {error}", file.display())))
}
