//! `executor_manager.json`.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    ConfigError, EXECUTOR_MANAGER_PORT, File, Invalid, require, require_node_name, resource_manager,
};

/// Settings of an executor manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorManagerConfig {
    /// The manager itself.
    pub config: ExecutorManagerNode,
    /// The executors that it starts.
    #[serde(default)]
    pub executor: ExecutorSettings,
}

/// Where an executor manager listens, whom it belongs to, what it has to lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorManagerNode {
    /// Name in the device database; empty: its only device.
    #[serde(default)]
    pub rdma_device: String,
    /// Port for clients and executors; 0: any free one.
    #[serde(default = "usual_port")]
    pub rdma_device_port: u16,
    /// Name of this node, as the resource manager knows it.
    pub node_name: String,
    /// IP address or name of the resource manager; empty: there is none.
    #[serde(default)]
    pub resource_manager_address: String,
    /// Its port; 0: the usual one.
    #[serde(default)]
    pub resource_manager_port: u16,
    /// Cluster secret that signs leases; [`cluster_secret`](super::cluster_secret).
    #[serde(default = "usual_secret")]
    pub resource_manager_secret: u32,
    /// Wait for events asleep; false: poll for them.
    #[serde(rename = "rdma-sleep", default = "yes")]
    pub rdma_sleep: bool,
    /// Cores to lease without a resource manager; none: those of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Memory to lease without a resource manager, in MB; none: that of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
}

/// How executors run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExecutorSettings {
    /// Must be false: executors are processes of this node.
    pub use_docker: bool,
    /// Accepted, without effect.
    pub repetitions: u32,
    /// Accepted, without effect.
    pub warmup_iters: u32,
    /// Give each worker a CPU of its own.
    pub pin_threads: bool,
}

impl ExecutorManagerConfig {
    /// Reads the settings at `path`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::read(path.as_ref())
    }
}

impl ExecutorManagerNode {
    /// Where the resource manager is, if there is one.
    pub fn resource_manager(&self) -> Result<Option<SocketAddr>, ConfigError> {
        resource_manager(&self.resource_manager_address, self.resource_manager_port)
    }
}

impl File for ExecutorManagerConfig {
    fn validate(&self) -> Result<(), Invalid> {
        require_node_name(&self.config.node_name, "config.node_name")?;
        require(self.config.cores != Some(0), "config.cores", "must be at least 1")?;
        require(self.config.memory != Some(0), "config.memory", "must be at least 1 (MB)")?;
        require(
            !self.executor.use_docker,
            "executor.use_docker",
            "must be false: executors run as processes of this node, containers are not supported",
        )
    }
}

fn usual_port() -> u16 {
    EXECUTOR_MANAGER_PORT
}

/// As in the resource manager's settings.
fn usual_secret() -> u32 {
    super::ResourceManagerNode::default().rdma_secret
}

fn yes() -> bool {
    true
}
