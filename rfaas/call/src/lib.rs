//! How a function is called over a connection, from both ends.
//!
//! ```text
//!   caller ──request: WRITE with immediate──▶ a slot of the callee's worker ──▶ function
//!          ◀──reply: WRITE with immediate──── its output
//! ```
//! The [`caller`] half posts requests and waits for replies. The [`callee`] half reads requests,
//! checks them, and replies. A caller passes the time by one policy ([`Backoff`]). A callee leaves
//! that to its [`Service`](callee::Service), which in an executor has the same policy. Neither half
//! knows leases or managers, and all that it knows of a session is the hello with which a worker
//! connects. Whoever uses them owns the connections and is asked why they end.
//!
//! This crate is internal: applications use `rfaas`.

mod backoff;
pub mod callee;
pub mod caller;
pub mod edge;
mod place;
mod sharing;
mod turn;
mod writer;

pub use backoff::{Awaited, Backoff, FREE_POLLS, Pause, Spin};
pub use place::Place;
pub use sharing::Sharing;
