//! The comparison: floors, ours and peers, with the same payloads on the same CPUs in one run.
//!
//! ```text
//!   for each run, for each contender, for each payload:
//!     a thread of its own ── starts the other process, goes to the first CPU ──▶ Echo: there and back ──▶ Round
//!                            the other process goes to the last CPU
//!   Round, Round, … ──▶ Results ──▶ table (or one JSON object), compare.json, *.csv, *.svg
//! ```
//! * Everything is measured once a run, and nothing while something else is: what changes about the machine
//!   changes for all.
//! * Ratios are computed within a run; medians and spread are over runs (`results`).
//! * How each contender is set up is printed, and why one that is missing was not run. Only a failure
//!   of ours, or of what is built in, ends the program.
//!
//! | contender | other process | file |
//! | --- | --- | --- |
//! | cache-line bounce, eventfd ping-pong, two `memcpy` | this program, `--serve` | `floors` |
//! | transport, invocation, also in place | `transport_benchmarker --peer`; `executor` of a cluster of this machine | `ours` |
//! | Unix socket, gRPC, HTTP | this program, `--serve` | `peers` |
//! | verbs ping-pong | a C program that is compiled here | `floors` |
//! | UCX, libfabric, perftest | theirs, where they are installed | `installed` |
//!
//! A contender more is an [`Id`], a [`Contender`] and its place in the list of `run`; a ratio more is a line in
//! `ratios`.

pub mod contender;
pub mod echo;
pub mod effort;
pub mod files;
pub mod floors;
pub mod installed;
pub mod ours;
pub mod peers;
pub mod plots;
pub mod ratios;
pub mod results;
pub mod run;
pub mod server;
pub mod shared_line;
pub mod table;

pub use contender::{Contender, Id};
pub use effort::Effort;
pub use run::{Settings, run};
pub use server::Role;

/// Payloads that are compared, in bytes.
pub const PAYLOADS: [u32; 10] = [1, 8, 32, 64, 256, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 16 << 20];
/// Those of them that a quick run has: all that ratios are about, and the largest.
pub const QUICK_PAYLOADS: [u32; 6] = [8, 32, 64, 4 << 10, 1 << 20, 16 << 20];
/// The payload whose distribution is shown, in bytes.
pub const SHOWN: u32 = 64;
