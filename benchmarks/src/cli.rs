//! Flags that several benchmarks have: the tutorial's, and a few more. Flags override the
//! configuration file.

use std::path::PathBuf;

use clap::Args;
use clap::value_parser;

/// What is printed and logged: flags of every benchmark.
#[derive(Clone, Copy, Debug, Args)]
pub struct Printing {
    /// Print one JSON object and nothing else.
    #[arg(long)]
    pub json: bool,
    /// Log more, to standard error; RUST_LOG overrides.
    #[arg(short, long)]
    pub verbose: bool,
}

/// What is measured, how often, and how it is reported: flags of benchmarks that have a configuration file.
#[derive(Clone, Debug, Args)]
pub struct Measure {
    /// Settings of the benchmark; config/README.md explains every key.
    #[arg(short, long, value_name = "FILE", default_value = "config/benchmark.json")]
    pub config: PathBuf,
    /// Devices of this machine.
    #[arg(long, value_name = "FILE", default_value = "config/devices.json")]
    pub device_database: PathBuf,
    /// Bytes of payload.
    #[arg(short, long, value_name = "BYTES", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    pub size: u32,
    /// Measured repetitions, instead of the configured ones.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub repetitions: Option<u32>,
    /// Repetitions before the measured ones, instead of the configured ones.
    #[arg(long, value_name = "N")]
    pub warmup_repetitions: Option<u32>,
    /// How both sides wait, instead of the configured way: -1 spin always (hot), 0 sleep always (warm), else
    /// spin so many milliseconds after an invocation.
    #[arg(long, value_name = "MS", allow_negative_numbers = true, value_parser = value_parser!(i64).range(-1..))]
    pub hot_timeout: Option<i64>,
    /// Write every sample to this file, as CSV with times in nanoseconds.
    #[arg(long, value_name = "FILE")]
    pub output_stats: Option<PathBuf>,
    /// What is printed and logged.
    #[command(flatten)]
    pub printing: Printing,
}

/// What is deployed, and where: flags of benchmarks of the function service.
#[derive(Clone, Debug, Args)]
pub struct Service {
    /// Function to call.
    #[arg(long, value_name = "FUNCTION", default_value = "empty")]
    pub name: String,
    /// Function library; without it the shipped libfunctions.so, next to this program.
    #[arg(long, value_name = "FILE")]
    pub functions: Option<PathBuf>,
    /// Lease straight from these executor managers, without a resource manager.
    #[arg(long, value_name = "FILE")]
    pub executors_database: Option<PathBuf>,
    /// Input slots of each worker.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=1024))]
    pub slots: u16,
    /// Largest payload that a slot takes, in bytes; without it the payload's.
    #[arg(long, value_name = "BYTES", value_parser = value_parser!(u32).range(1..))]
    pub slot_bytes: Option<u32>,
}
