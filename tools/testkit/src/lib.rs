//! A cluster on this machine ([`LocalCluster`]), which programs, benchmarks and tests start, and what tests of whole
//! programs share.
//!
//! | for | modules |
//! | --- | --- |
//! | a cluster | [`cluster`], [`process`], [`procfs`], [`http`], [`interrupt`], [`binaries`], [`test_devices`] |
//! | tests alone | [`run`], [`wait`], [`service`], [`functions`], [`waiting`], [`leftovers`] |
//!
//! What is for tests alone panics where a test fails.
//!
//! Elsewhere: programs for users (`cli`), the tests (`tools/tests`), measuring (`benchmarks`), what clients call
//! (`rfaas`).

pub mod binaries;
pub mod cluster;
pub mod functions;
pub mod interrupt;
pub mod leftovers;
pub mod process;
pub mod procfs;
pub mod run;
pub mod service;
mod settings;
pub mod test_devices;
pub mod wait;
pub mod waiting;

pub use binaries::Binaries;
pub use cluster::{ClusterError, LocalCluster, Options};
pub use rfaas_api::client::{self as http, Http};
pub use settings::DEVICE;
pub use test_devices::TestDevices;
