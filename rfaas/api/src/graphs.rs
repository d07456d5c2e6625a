//! Graphs, as the list of them has them.

use serde::{Deserialize, Serialize};

use crate::LeaseState;

/// A graph that has leases, as its client says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Graph {
    /// Its number, drawn by its client when it was compiled.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 9007199254740991_u64))]
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Whom its leases are billed to.
    pub client: String,
    /// How many leases it has.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4294967295_u64, format = Int64))]
    pub leases: u32,
    /// Its workers, a lease each, by lane and worker: the first 1024.
    pub workers: Vec<GraphWorker>,
}

/// A worker of a graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GraphWorker {
    /// Its lane, from 0.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 65535))]
    pub lane: u16,
    /// Its number in the lane, from 0.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 65535))]
    pub worker: u16,
    /// The functions that it calls. `…` stands for those whose names have no room.
    // A line each: a list has many.
    #[serde(with = "lines")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub functions: String,
    /// Its node.
    pub node: String,
    /// Id of its lease.
    pub lease: u64,
    /// The state of that.
    pub state: LeaseState,
}

/// Lines as an array.
mod lines {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(text.lines())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        Ok(Vec::<String>::deserialize(from)?.join("\n"))
    }
}
