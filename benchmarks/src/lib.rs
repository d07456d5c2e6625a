//! What the benchmarks share: flags, warm-up, statistics, report.
//!
//! ```text
//!   flags + benchmark.json ──▶ RunPlan ──▶ a program's loop ──▶ Samples ──▶ Report: table, --json, CSV
//! ```
//! | program | measures |
//! | --- | --- |
//! | `transport_benchmarker` | the writes of an invocation there and back, without the service |
//! | `warm_benchmarker`, `cold_benchmarker`, `parallel_invocations` | one invocation after the other; the way to the first; several workers |
//! | `cold_starts` | cold starts of each kind, on clusters of its own |
//! | `graph_benchmarker` | graphs: hops, chains, fan-out, map, compiling, memory |
//! | `idle_cost`, `pool_scale`, `placement_scale`, `manager_load` | what managers cost, and how many leases they grant |
//!
//! * Nothing but the measured call is between two clock readings; patterns, checks and
//!   progress come after the second.
//! * What comes back is compared with what was sent, so that a figure is never one of a broken
//!   run.
//!
//! Elsewhere: floors, ours and what others use beside each other in one run (`compare`, a crate of its own for what it
//! depends on), starting a cluster to measure (`tools`), the calls that are measured (`rfaas`, `rdmalib`).

pub mod calls;
pub mod cli;
pub mod crowd;
pub mod echo;
pub mod floor;
pub mod graphs;
pub mod machine;
pub mod pattern;
pub mod peer;
pub mod plan;
pub mod progress;
pub mod report;
pub mod samples;
pub mod service;
pub mod transport;

pub use cli::{Measure, Printing, Service};
pub use plan::RunPlan;
pub use report::Report;
pub use samples::{Samples, Statistics};
