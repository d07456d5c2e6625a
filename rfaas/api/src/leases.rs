//! Leases: what is asked for, granted, renewed and ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A request for a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaseRequest {
    /// Cores.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub cores: u32,
    /// Memory in MB.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4294967295_u64, format = Int64))]
    pub memory: u32,
    /// How long the lease lasts, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(minimum = 1, maximum = 2592000000_u64, default = 3600000, nullable = false)
    )]
    pub timeout_ms: Option<u64>,
    /// If no node has room for all of it: on how many it may be met, each with a lease of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(minimum = 1, maximum = 32, default = 1, nullable = false)
    )]
    pub max_nodes: Option<u32>,
    /// How many leases of that, all of them or none. Not with `max_nodes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(minimum = 1, maximum = 32, default = 1, nullable = false)
    )]
    pub gang: Option<u32>,
    /// Where they may be. Not with `max_nodes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub constraints: Option<Constraints>,
    /// How long the request may wait for room, in milliseconds. Not with `max_nodes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(minimum = 0, maximum = 3600000, default = 0, nullable = false)
    )]
    pub wait_ms: Option<u64>,
    /// Leases of the same client that the request grows: it is met on their nodes first, where they hold most cores
    /// first of all, then as others are. `gang` is then how many workers of these cores and memory, all or none, and
    /// there is one lease for each node, which has all of them there. Not with `max_nodes`, `near` and `nodes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            min_items = 1,
            max_items = 32,
            nullable = false,
            inline,
            value_type = Option<Vec<LeaseNumber>>
        )
    )]
    pub grows: Option<Vec<u64>>,
    /// Whom to bill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 64, default = "http", nullable = false)
    )]
    pub client: Option<String>,
    /// The graph whose workers the leases are for, as it is listed. Not with `max_nodes` and `grows`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub graph: Option<LeaseGraph>,
}

/// What leases are for, for people: workers of a graph, a lease each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaseGraph {
    /// Its number. Leases of the same number, client and name are of one graph.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 9007199254740991_u64))]
    pub id: u64,
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 64))]
    pub name: String,
    /// Which of its lanes they are of, from 0.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 65535, default = 0))]
    pub lane: u16,
    /// The functions that each of them is for, in the order of the leases: up to 256 bytes a lease, with a byte between two.
    pub workers: Vec<Vec<String>>,
}

/// The id of a lease, as it is described.
#[cfg(feature = "openapi")]
enum LeaseNumber {}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for LeaseNumber {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
        let format = SchemaFormat::KnownFormat(KnownFormat::Int64);
        let number = ObjectBuilder::new().schema_type(Type::Integer).format(Some(format));
        number.minimum(Some(1)).into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for LeaseNumber {}

/// Where leases of a request may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Constraints {
    /// All on one node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub together: bool,
    /// Each on a node of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub apart: bool,
    /// A node that has some of them: as many as fit there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, max_length = 128))]
    pub near: Option<String>,
    /// So many cores stay free on each node that is taken.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 65535, default = 0))]
    pub leave_free: u32,
    /// So many cores of the request at least on each node that is taken.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 65535, default = 0))]
    pub at_least: u32,
    /// Labels that each node has: up to 256 bytes in all, with a byte between two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub has: Vec<String>,
    /// The nodes themselves, one a lease: up to 512 bytes in all, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A lease that was granted or renewed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Grant {
    /// Its id.
    pub id: u64,
    /// Its node.
    pub node: String,
    /// Address of the node's executor manager.
    pub address: String,
    /// Port of the node's executor manager.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub port: u16,
    /// Cores.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub cores: u32,
    /// Memory in MB.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4294967295_u64, format = Int64))]
    pub memory: u32,
    /// When it ends. RFC 3339, UTC, with milliseconds.
    #[cfg_attr(feature = "openapi", schema(format = DateTime))]
    pub expires_at: String,
    /// base64url without padding. Whoever holds it may use the lease.
    pub token: String,
    /// If `max_nodes` was more than 1, or `gang` or `grows` was given: all leases that together meet the request, this
    /// one first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, no_recursion))]
    pub parts: Option<Vec<Grant>>,
}

/// Without the token, so that no log has one by accident.
impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("id", &self.id)
            .field("node", &self.node)
            .field("address", &self.address)
            .field("port", &self.port)
            .field("cores", &self.cores)
            .field("memory", &self.memory)
            .field("expires_at", &self.expires_at)
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

/// A request for more time. The lease is in the path.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Renewal {
    /// The token of the lease, as it was granted or last renewed.
    pub token: String,
    /// How long the lease lasts from now on, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(minimum = 1, maximum = 2592000000_u64, default = 3600000, nullable = false)
    )]
    pub timeout_ms: Option<u64>,
}

/// Without the token, so that no log has one by accident.
impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewal").field("timeout_ms", &self.timeout_ms).finish_non_exhaustive()
    }
}

/// A lease that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Lease {
    /// Its id.
    pub id: u64,
    /// Whom it is billed to.
    pub client: String,
    /// Its node.
    pub node: String,
    /// Cores.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub cores: u32,
    /// Memory in MB.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4294967295_u64, format = Int64))]
    pub memory: u32,
    /// Its state.
    pub state: LeaseState,
    /// When it began. RFC 3339, UTC, with milliseconds.
    #[cfg_attr(feature = "openapi", schema(format = DateTime))]
    pub granted_at: String,
    /// When it ends. RFC 3339, UTC, with milliseconds.
    #[cfg_attr(feature = "openapi", schema(format = DateTime))]
    pub expires_at: String,
}

/// Whether leases that were granted together would be better placed elsewhere. It is advice: nobody is moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Better {
    /// `stay`, `move`, or `no_room`: a node leaves before they end, and there is room nowhere else.
    pub advice: BetterAdvice,
    /// The number of nodes that they are on.
    pub nodes: u32,
    /// The number of nodes that they would be on.
    pub better_nodes: u32,
    /// Which of them would move, and where to.
    pub moves: Vec<BetterMove>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum BetterAdvice {
    /// They are well placed.
    Stay,
    /// Lease elsewhere, and give these back.
    Move,
    /// They have to go, and there is room nowhere else.
    NoRoom,
}

/// A lease that would be better placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BetterMove {
    /// Its id.
    pub id: u64,
    /// Its node.
    pub from: String,
    /// The better one.
    pub to: String,
}

/// The state of a lease that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LeaseState {
    /// Its token was given out and not shown to the node yet.
    Granted,
    /// Claimed.
    Active,
    /// Asked to end; its node has not reported the end yet.
    Ending,
}

/// The answer to a lease's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndedLease {
    /// Its id.
    pub id: u64,
    /// What became of it.
    pub state: EndedState,
}

/// What became of a lease that was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EndedState {
    /// Its node was asked to end it.
    Ending,
    /// There is a bill.
    Ended,
}
