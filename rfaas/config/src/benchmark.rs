//! `benchmark.json`.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::{ConfigError, File, Invalid, require, resource_manager};

/// Settings of a benchmark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenchmarkConfig {
    /// The client.
    #[serde(default)]
    pub config: BenchmarkNode,
    /// The measurement.
    #[serde(default)]
    pub benchmark: BenchmarkRun,
}

/// Where a benchmark runs and whom it asks for leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BenchmarkNode {
    /// Name in the device database; empty: its only device.
    pub rdma_device: String,
    /// Accepted, without effect: the port is the device's.
    pub rdma_device_port: u16,
    /// IP address or name of the resource manager; empty: there is none.
    pub resource_manager_address: String,
    /// Its port; 0: the usual one.
    pub resource_manager_port: u16,
}

/// What is measured, how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BenchmarkRun {
    /// Accepted, without effect: the executor manager pins the workers.
    pub pin_threads: bool,
    /// Measured repetitions.
    pub repetitions: u32,
    /// Repetitions before, not measured.
    pub warmup_repetitions: u32,
    /// Cores to lease: one worker each.
    pub numcores: u32,
    /// Memory to lease, in MB.
    pub memory: u32,
    /// How workers wait: −1 spin always, 0 sleep always, else milliseconds to spin after an
    /// invocation.
    pub hot_timeout: i64,
}

impl Default for BenchmarkRun {
    fn default() -> Self {
        BenchmarkRun {
            pin_threads: false,
            repetitions: 100,
            warmup_repetitions: 0,
            numcores: 1,
            memory: 256,
            hot_timeout: -1,
        }
    }
}

impl BenchmarkConfig {
    /// Reads the settings at `path`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::read(path.as_ref())
    }
}

impl BenchmarkNode {
    /// Returns where the resource manager is, if there is one: all addresses of its name.
    pub fn resource_manager(&self) -> Result<Option<Vec<SocketAddr>>, ConfigError> {
        resource_manager(&self.resource_manager_address, self.resource_manager_port)
    }
}

impl File for BenchmarkConfig {
    fn validate(&self) -> Result<(), Invalid> {
        let run = &self.benchmark;
        require(run.repetitions > 0, "benchmark.repetitions", "must be at least 1")?;
        require(run.numcores > 0, "benchmark.numcores", "must be at least 1")?;
        require(run.memory > 0, "benchmark.memory", "must be at least 1 (MB)")?;
        require(
            run.hot_timeout >= -1,
            "benchmark.hot_timeout",
            "must be -1 (always hot), 0 (always warm) or milliseconds",
        )
    }
}
