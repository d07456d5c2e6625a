//! `executors_database.json`: the executor managers of a cluster.

use std::net::SocketAddr;
use std::path::Path;

use rfaas_protocol::placement::check_labels;
use serde::{Deserialize, Serialize};

use super::file::{ConfigError, File, Invalid, require, require_node_name, resolve};

/// The nodes that a resource manager starts with, or that a client without one tries in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorsDatabase {
    /// The nodes, each with its own name.
    pub executors: Vec<ExecutorEntry>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorEntry {
    /// Name: `node_name` of its executor manager.
    pub node: String,
    /// IP address or name where its executor manager listens.
    pub address: String,
    /// Port there.
    pub port: u16,
    /// Cores that it leases.
    pub cores: u32,
    /// Memory that it leases, in MB.
    pub memory: u32,
    /// What it has that requests may ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

impl ExecutorsDatabase {
    /// Reads the database at `path`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::read(path.as_ref())
    }
}

impl ExecutorEntry {
    /// Returns where its executor manager listens: at one of these.
    pub fn socket_addrs(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        resolve(&self.address, self.port)
    }
}

impl File for ExecutorsDatabase {
    fn validate(&self) -> Result<(), Invalid> {
        for (i, entry) in self.executors.iter().enumerate() {
            let key = |name| format!("executors[{i}].{name}");
            require_node_name(&entry.node, &key("node"))?;
            require(
                self.executors[..i].iter().all(|earlier| earlier.node != entry.node),
                &key("node"),
                &format!("node {:?} is listed twice", entry.node),
            )?;
            require(!entry.address.is_empty(), &key("address"), "must not be empty")?;
            require(entry.port > 0, &key("port"), "must be from 1 to 65535")?;
            require(entry.cores > 0, &key("cores"), "must be at least 1")?;
            require(entry.memory > 0, &key("memory"), "must be at least 1 (MB)")?;
            check_labels(&entry.labels).map_err(|reason| Invalid { key: key("labels"), reason })?;
        }
        Ok(())
    }
}
