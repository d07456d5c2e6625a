//! `resource_manager.json`.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ConfigError, File, Invalid, RESOURCE_MANAGER_PORT, require, resolve};

/// Settings of a resource manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceManagerConfig {
    /// All of them.
    pub config: ResourceManagerNode,
}

/// Where a resource manager listens and what it shares with the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceManagerNode {
    /// Name in the device database; empty: its only device.
    pub rdma_device: String,
    /// Port for clients and executor managers; 0: any free one.
    pub rdma_device_port: u16,
    /// IP address or name to serve HTTP at; unspecified (`0.0.0.0`): all interfaces.
    pub http_network_address: String,
    /// Port to serve HTTP at; 0: any free one.
    pub http_network_port: u16,
    /// Accepted, without effect.
    #[serde(rename = "rdma-threads")]
    pub rdma_threads: u32,
    /// Cluster secret that signs leases; [`cluster_secret`](super::cluster_secret).
    #[serde(rename = "rdma-secret")]
    pub rdma_secret: u32,
    /// Wait for events asleep; false: poll for them.
    #[serde(rename = "rdma-sleep")]
    pub rdma_sleep: bool,
}

impl Default for ResourceManagerNode {
    fn default() -> Self {
        ResourceManagerNode {
            rdma_device: String::new(),
            rdma_device_port: RESOURCE_MANAGER_PORT,
            http_network_address: "0.0.0.0".into(),
            http_network_port: 5000,
            rdma_threads: 1,
            rdma_secret: 42,
            rdma_sleep: true,
        }
    }
}

impl ResourceManagerConfig {
    /// Reads the settings at `path`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::read(path.as_ref())
    }
}

impl ResourceManagerNode {
    /// Where to serve HTTP.
    pub fn http_address(&self) -> Result<SocketAddr, ConfigError> {
        resolve(&self.http_network_address, self.http_network_port)
    }
}

impl File for ResourceManagerConfig {
    fn validate(&self) -> Result<(), Invalid> {
        require(
            !self.config.http_network_address.is_empty(),
            "config.http_network_address",
            "must not be empty; \"0.0.0.0\" serves all interfaces",
        )
    }
}
