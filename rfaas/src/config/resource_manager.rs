//! `resource_manager.json`.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    ClusterSecret, ConfigError, File, Invalid, RESOURCE_MANAGER_PORT, SecretValue, require,
    require_heartbeat, resolve,
};
use crate::heartbeat::Heartbeat;

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
    /// Cluster secret that signs leases, unless it is elsewhere ([`ClusterSecret`]).
    #[serde(rename = "rdma-secret")]
    pub rdma_secret: SecretValue,
    /// File that has the cluster secret; empty: none.
    pub secret_file: String,
    /// Wait for events asleep; false: poll for them.
    #[serde(rename = "rdma-sleep")]
    pub rdma_sleep: bool,
    /// How often it and executor managers say something to each other, in milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which they give each other up, in milliseconds.
    pub silence_ms: u32,
    /// How long an executor manager whose connection has ended may stay away before its leases end, in
    /// milliseconds.
    pub node_return_ms: u32,
    /// File that keeps nodes, leases and bills; empty: they are lost with the program.
    pub state_file: String,
}

impl Default for ResourceManagerNode {
    fn default() -> Self {
        ResourceManagerNode {
            rdma_device: String::new(),
            rdma_device_port: RESOURCE_MANAGER_PORT,
            http_network_address: "0.0.0.0".into(),
            http_network_port: 5000,
            rdma_threads: 1,
            rdma_secret: SecretValue::default(),
            secret_file: String::new(),
            rdma_sleep: true,
            heartbeat_ms: 1000,
            silence_ms: 5000,
            node_return_ms: 1500,
            state_file: String::new(),
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
    /// Where to serve HTTP: the first of these that is an address of this machine.
    pub fn http_addresses(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        resolve(&self.http_network_address, self.http_network_port)
    }

    /// The cluster secret, from wherever it is configured.
    pub fn secret(&self) -> Result<ClusterSecret, ConfigError> {
        ClusterSecret::load(&self.rdma_secret, &self.secret_file)
    }

    /// Signs of life between it and executor managers.
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat::from_ms(self.heartbeat_ms, self.silence_ms)
    }
}

impl File for ResourceManagerConfig {
    fn validate(&self) -> Result<(), Invalid> {
        require_heartbeat(self.config.heartbeat_ms, self.config.silence_ms)?;
        require(
            !self.config.http_network_address.is_empty(),
            "config.http_network_address",
            "must not be empty; \"0.0.0.0\" serves all interfaces",
        )
    }
}
