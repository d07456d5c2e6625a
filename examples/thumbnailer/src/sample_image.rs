//! Writes an image to try the thumbnailer with: `thumbnailer::sample` says what is on it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rfaas_program::{self as program, Failure};
use thumbnailer::sample;

/// Writes a JPEG image as large as a photograph, always the same.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where to write it; a file that exists is replaced.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Width in pixels.
    #[arg(long, default_value_t = sample::WIDTH, value_parser = clap::value_parser!(u32).range(1..=65535))]
    width: u32,
    /// Height in pixels.
    #[arg(long, default_value_t = sample::HEIGHT, value_parser = clap::value_parser!(u32).range(1..=65535))]
    height: u32,
}

fn main() -> ExitCode {
    program::run(|_: &Cli| program::level(false), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let jpeg = sample::photograph(cli.width, cli.height).map_err(|error| {
        Failure::input(format!("a sample of {}x{}: {error}", cli.width, cli.height))
    })?;
    std::fs::write(&cli.file, jpeg)
        .map_err(|error| Failure::input(format!("{}: {error}", cli.file.display())))
}
