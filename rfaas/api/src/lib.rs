//! What travels over the resource manager's HTTP interface: requests, answers, and their description for
//! other programs.
//!
//! ```text
//!   types here ─┬─▶ server (resource_manager::http): checks requests, writes answers
//!               ├─▶ client (feature `client`): tools and tests
//!               └─▶ openapi.json (feature `openapi`): what the server shows at /openapi.json
//! ```
//! Names, units and values of these types are fixed for users. Memory is in MB, times in a name's unit, and
//! moments are RFC 3339 in UTC with milliseconds.
//!
//! This crate is internal: an application asks for leases with the crate `rfaas`. Elsewhere: which values
//! the server accepts (`resource_manager::http::input`), paths and statuses (`document`).

mod bills;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "openapi")]
pub mod document;
mod graphs;
mod leases;
mod nodes;

use serde::{Deserialize, Serialize};

pub use bills::{Bill, ClientBill, Reason};
pub use graphs::{Graph, GraphWorker};
pub use leases::{
    Better, BetterAdvice, BetterMove, Constraints, EndedLease, EndedState, Grant, Lease,
    LeaseGraph, LeaseRequest, LeaseState, Renewal,
};
pub use nodes::{Leaving, NewNode, Node, NodeState, Policy, RemovedNode, RemovedState};

/// The description of the interface that the server shows, generated from the types of this crate.
pub const OPENAPI: &str = include_str!("../openapi.json");

/// What is wrong with a request, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Error {
    /// The reason.
    pub error: String,
}

/// The answer of a server that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// How it is.
    pub status: HealthStatus,
}

/// How a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HealthStatus {
    /// Well: it answers.
    Ok,
}
