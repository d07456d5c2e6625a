//! The caller's half of a connection: posts calls to workers and waits for their results.
//!
//! ```text
//!   Call ──▶ Caller (handle) ──▶ Workers: a free slot of the worker with the least to do ──▶ WorkerConnection: a write
//!                 │ waits (calls: alone, leader or follower; driver: polls, sleeps)
//!                 ◀── Outcome ◀── Workers: the reply frees the slot and resolves the ticket ◀── completion
//! ```
//! It knows connections, slots, sequence numbers, completions and deadlines. Why a connection has ended, it asks its
//! [`Owner`].

mod buffer;
mod call;
mod calls;
mod connection;
mod driver;
mod handle;
mod in_place;
mod outcome;
mod pending;
mod reactor;
mod slots;
mod tickets;
mod workers;

pub use buffer::{CallMemory, InputBuffer, OutputBuffer, check_range, copy_range};
pub use call::Call;
pub use calls::{CallLimits, Calls};
pub use connection::{Accepted, SlotNeeds, Unconnected, WorkerConnection, completion_queue};
pub use driver::Driver;
pub use handle::{CallResult, Called, Caller};
pub use in_place::MappedSlot;
pub use outcome::{CallError, End, Failure, Outcome, Owner};
pub use pending::{Finished, PendingCall, Submitted};
pub use tickets::Buffers;
pub use workers::Workers;
