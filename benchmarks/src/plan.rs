//! What a run does: the configuration file, overridden by flags, on an open device.

use std::time::Duration;

use rfaas::{Spin, describe};
use rfaas_config::{BenchmarkConfig, Devices, OpenDevice};
use rfaas_program::Failure;

use crate::cli::Measure;
use crate::progress::ProgressBar;
use crate::samples::Samples;

/// A run, ready to start.
#[derive(Debug)]
pub struct RunPlan {
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

impl RunPlan {
    /// Reads the files that `flags` name and opens the device.
    pub fn of(flags: &Measure) -> Result<Self, Failure> {
        let settings = BenchmarkConfig::load(&flags.config).map_err(input)?;
        let device = Devices::load(&flags.device_database)
            .and_then(|devices| devices.open(&settings.config.rdma_device))
            .map_err(input)?;
        let run = &settings.benchmark;
        Ok(RunPlan {
            payload_bytes: flags.size,
            repetitions: flags.repetitions.unwrap_or(run.repetitions),
            warmup_repetitions: flags.warmup_repetitions.unwrap_or(run.warmup_repetitions),
            hot_timeout_ms: flags.hot_timeout.unwrap_or(run.hot_timeout),
            settings,
            device,
        })
    }

    /// Warms up, and then measures: `once` is given the number of a repetition, and returns how long it took.
    pub fn measure(
        &self,
        mut once: impl FnMut(u64) -> Result<Duration, Failure>,
    ) -> Result<Samples, Failure> {
        for number in 0..self.warmup_repetitions {
            once(number.into())?;
        }
        let mut samples = Samples::with_capacity(self.repetitions as usize);
        let mut progress = ProgressBar::of(self.repetitions.into());
        for number in 0..self.repetitions {
            samples.record(once(number.into())?);
            progress.step();
        }
        Ok(samples)
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

/// Wrong settings, with their causes.
pub fn input(error: impl std::error::Error) -> Failure {
    Failure::input(describe(&error))
}

/// What failed although the settings were right, with its causes.
pub fn later(error: impl std::error::Error) -> Failure {
    Failure::later(describe(&error))
}
