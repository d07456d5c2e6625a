//! What tests, benchmarks and newcomers share: a cluster on this machine ([`LocalCluster`]), and what
//! command-line programs do alike ([`program`]).
//!
//! Elsewhere: measuring (`benchmarks`), what clients call (`rfaas`).

pub mod binaries;
pub mod cluster;
pub mod http;
pub mod interrupt;
pub mod process;
pub mod procfs;
pub mod program;
pub mod rdma_devices;
mod settings;
pub mod test_devices;

pub use binaries::Binaries;
pub use cluster::{ClusterError, LocalCluster, Options};
pub use http::Http;
pub use settings::DEVICE;
pub use test_devices::TestDevices;
