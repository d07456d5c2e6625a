//! Nodes: what an operator adds, what there is, what was removed.

use serde::{Deserialize, Serialize};

/// A node that is to be added, or changed. Its name is in the query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewNode {
    /// IPv4 or IPv6 address of the executor manager.
    pub ip_address: String,
    /// Port of the executor manager.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub port: u16,
    /// Cores that it may lease out.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub cores: u32,
    /// Memory that it may lease out, in MB.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4294967295_u64, format = Int64))]
    pub memory: u32,
    /// What it has that requests may ask for: up to 16 labels of up to 64 bytes, ASCII letters, digits and -_.:/=
    /// Without this field, a node that is known keeps its labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub labels: Option<Vec<String>>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Node {
    /// Its name.
    pub node: String,
    /// Address of its executor manager as it was given; a host name if it came from an executors database.
    pub ip_address: String,
    /// Port of its executor manager.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub port: u16,
    /// Cores that it may lease out.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub cores: u32,
    /// Cores that no lease holds.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub free_cores: u32,
    /// Memory that it may lease out, in MB.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4294967295_u64, format = Int64))]
    pub memory: u32,
    /// Memory that no lease holds, in MB.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, format = Int64))]
    pub free_memory: u32,
    /// Its state.
    pub state: NodeState,
    /// Its labels, if it has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// When it leaves (RFC 3339): no lease is granted there that would end later. Only of a node that does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, format = DateTime))]
    pub leaves_at: Option<String>,
    /// How far its clock is ahead of the resource manager's, in seconds (negative: behind). Only of a node that
    /// is connected. It is corrected for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub clock_ahead_s: Option<i64>,
    /// What its executors are isolated by: names of layers. Only of a node that is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub isolation: Option<Vec<String>>,
}

/// When a node leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Leaving {
    /// In so many milliseconds from now.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 2592000000_u64))]
    pub in_ms: u64,
}

/// How leases are placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Policy {
    /// `first_fit`, `bin_pack`, `compact` or `spread`.
    pub placement: String,
}

/// The state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum NodeState {
    /// Known; its executor manager has not connected or was stopped, or its host name was not found yet.
    Registered,
    /// It takes leases.
    Ready,
    /// Being withdrawn, or its executor manager is stopping: no new leases.
    Draining,
    /// Its executor manager was connected and is not any more, and has not said that it stops.
    Lost,
}

impl NodeState {
    /// All states.
    pub const ALL: [NodeState; 4] =
        [NodeState::Registered, NodeState::Ready, NodeState::Draining, NodeState::Lost];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Registered => "registered",
            NodeState::Ready => "ready",
            NodeState::Draining => "draining",
            NodeState::Lost => "lost",
        }
    }
}

/// The answer to a node's withdrawal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RemovedNode {
    /// Its name.
    pub node: String,
    /// What became of it.
    pub state: RemovedState,
}

/// What became of a node that was to be withdrawn. `unknown`: there is no node of this name (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RemovedState {
    /// It is known until its leases have ended.
    Draining,
    /// It is not known any more.
    Removed,
    /// There is no node of this name (any more).
    Unknown,
}
