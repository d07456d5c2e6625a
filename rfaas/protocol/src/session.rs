//! Executor to client: the executor process dials the client once, takes the code, answers with the
//! functions in it; each worker dials once more and offers its input slots.
//!
//! ```text
//!   executor ──connect, ExecutorHello (where the code goes)──▶ client
//!   executor ◀──write with immediate: the library────────────  client
//!   executor ──Functions… or LoadFailed──────────────────────▶ client
//!   worker   ──connect, WorkerHello (where the slots are)────▶ client       worker by worker
//! ```

use zerocopy::little_endian::{U16, U32, U64};

use super::{Secret, Text, messages, wire};

wire! {
    /// Behind the [`Hello`](super::Hello) of an executor process.
    pub struct ExecutorHello [32 bytes] {
        /// From the client's allocation request.
        pub session: Secret,
        /// Where the library is to be written.
        pub code_addr: U64,
        /// Key of that place.
        pub code_key: U64,
    }
}
const _: () = assert!(size_of::<ExecutorHello>() + 8 <= rdmalib::MAX_CONNECT_DATA);

wire! {
    /// Behind the [`Hello`](super::Hello) of a worker.
    pub struct WorkerHello [40 bytes] {
        /// From the client's allocation request.
        pub session: Secret,
        /// Index, from 0.
        pub worker: U16,
        /// Number of input slots.
        pub slots: U16,
        /// Distance between two slots, in bytes.
        pub slot_stride: U32,
        /// First byte of slot 0 (its header space); a multiple of 64.
        pub input_addr: U64,
        /// Key of all slots.
        pub input_key: U64,
    }
}
const _: () = assert!(size_of::<WorkerHello>() + 8 <= rdmalib::MAX_CONNECT_DATA);

/// Longest name of a function, in bytes; a longer symbol cannot be called.
pub const MAX_FUNCTION_NAME_BYTES: usize = 512;

/// Most functions of a library: a client keeps the names of all.
pub const MAX_FUNCTIONS: usize = 1 << 16;

wire! {
    /// One function of the library. Sent in order of index, all of them, before anything else.
    pub struct FunctionEntry [522 bytes] {
        /// Number to call it by, from 0.
        pub index: U32,
        /// How many there are in all.
        pub count: U32,
        /// Symbol.
        pub name: Text<MAX_FUNCTION_NAME_BYTES>,
    }

    /// The library could not be loaded.
    pub struct LoadFailed [514 bytes] {
        /// What the loader said.
        pub reason: Text<512>,
    }
}

messages! {
    /// Executor process to client.
    pub enum FromExecutor {
        /// A callable function.
        1 => Function(FunctionEntry),
        /// No code.
        2 => LoadFailed(LoadFailed),
    }
}
