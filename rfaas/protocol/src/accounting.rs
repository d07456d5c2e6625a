//! Executor to executor manager: each worker adds the time it spent to counters in the manager's
//! memory, with remote fetch-add. No message after the handshake.
//!
//! Signs of life go the same way: the executor adds to its beats, and sees from the value of the
//! manager's, to which it adds nothing, whether the manager still counts them up. Likewise it sees when its node leaves.

use zerocopy::little_endian::U64;

use super::{Secret, wire};

wire! {
    /// Behind the [`Hello`](super::Hello) of a worker.
    pub struct AccountingHello [16 bytes] {
        /// From the executor's assignment.
        pub secret: Secret,
    }

    /// Private data of the acceptance: where the counters of the executor are.
    pub struct Counters [16 bytes] {
        /// Remote address of the first.
        pub addr: U64,
        /// Its key.
        pub key: U64,
    }
}

/// Offset of the time spent spinning without work, in ns.
pub const HOT_POLLING_NS: u64 = 0;
/// Offset of the time spent on invocations, each from being found until it is answered, in ns.
pub const EXECUTION_NS: u64 = 8;
/// Offset of the number of functions called.
pub const INVOCATIONS: u64 = 16;
/// Offset of the executor's signs of life: it adds one in every period.
pub const EXECUTOR_BEATS: u64 = 24;
/// Offset of the manager's signs of life: it adds one in every period.
pub const MANAGER_BEATS: u64 = 32;
/// Offset of when the node leaves, in ns of its monotonic clock, which both processes have (`CLOCK_MONOTONIC`). 0: it stays.
pub const LEAVES_AT_NS: u64 = 40;
/// Size of all counters.
pub const COUNTERS_BYTES: usize = 48;
