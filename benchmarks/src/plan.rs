//! What a run does: the configuration file, overridden by flags, on an open device.

use rfaas::Spin;
use rfaas::describe;
use rfaas_config::{BenchmarkConfig, Devices, OpenDevice};
use rfaas_program::Failure;

use crate::cli::Measure;

/// A run, ready to start.
#[derive(Debug)]
pub struct Plan {
    /// The configuration file.
    pub settings: BenchmarkConfig,
    /// Device to measure on.
    pub device: OpenDevice,
    /// Bytes of payload, at least one.
    pub payload_bytes: u32,
    /// Measured repetitions, at least one.
    pub repetitions: u32,
    /// Repetitions before them.
    pub warmup_repetitions: u32,
    /// How both sides wait: −1 spin, 0 sleep, else milliseconds of spinning after an invocation.
    pub hot_timeout_ms: i64,
}

impl Plan {
    /// Reads the files that `flags` name and opens the device.
    pub fn of(flags: &Measure) -> Result<Self, Failure> {
        let settings = BenchmarkConfig::load(&flags.config).map_err(input)?;
        let device = Devices::load(&flags.device_database)
            .and_then(|devices| devices.open(&settings.config.rdma_device))
            .map_err(input)?;
        let run = &settings.benchmark;
        Ok(Plan {
            payload_bytes: flags.size,
            repetitions: flags.repetitions.unwrap_or(run.repetitions),
            warmup_repetitions: flags.warmup_repetitions.unwrap_or(run.warmup_repetitions),
            hot_timeout_ms: flags.hot_timeout.unwrap_or(run.hot_timeout),
            settings,
            device,
        })
    }

    /// [`hot_timeout_ms`](Self::hot_timeout_ms) as a choice.
    pub fn spin(&self) -> Spin {
        Spin::from_hot_timeout_ms(self.hot_timeout_ms)
            .expect("files and flags are checked to hold no value below -1")
    }

    /// [`payload_bytes`](Self::payload_bytes) as a length in memory.
    pub fn payload_len(&self) -> usize {
        self.payload_bytes as usize // u32 to usize: 64-bit machines only
    }
}

/// Wrong settings.
pub fn input(error: impl std::error::Error) -> Failure {
    Failure::input(describe(&error))
}
