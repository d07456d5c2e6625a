//! Graphs: functions that hand what they return to other functions, from worker to worker.
//!
//! ```text
//!   Graph ──check, layout──▶ leases, executors, introductions ──▶ CompiledGraph ──submit──▶ Run ──wait──▶ outputs
//!   (description)            (compile, lane, start)              (compiled, slots)                      (outcome)
//! ```
//! A compiled graph asks nobody: an input is written to the workers of the functions that take it, each writes what its
//! function returns to those that take that, and the last ones to the client.
//!
//! Elsewhere: how an edge works (`rfaas_call::edge`), its bytes (`rfaas_protocol::edge`).

mod check;
mod compile;
mod compiled;
mod description;
mod file;
mod lane;
mod layout;
mod links;
mod listed;
mod map;
mod outcome;
mod picture;
mod slots;
mod start;
mod trace;
mod workers;

pub use compiled::{CompiledGraph, Run};
pub use description::{Graph, GraphFunction, Join};
pub use lane::Lanes;
pub use map::Map;
pub use trace::{Span, Trace};
