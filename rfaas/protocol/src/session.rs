//! Executor to client: the executor process dials the client once, takes the code unless its node has it, answers
//! with the functions in it; each worker dials once more and offers its input slots.
//!
//! ```text
//!   executor ──connect, ExecutorHello (where the code goes)──▶ client
//!   executor ◀──write with immediate: the library, if wanted─  client
//!   executor ──Functions…, LoadFailed or CodeDiffers─────────▶ client
//!   worker   ──connect, WorkerHello (where the slots are)────▶ client       worker by worker
//! ```

use zerocopy::little_endian::{U16, U32, U64};

use super::library::LibraryHash;
use super::{Secret, Text, messages, numbered, wire};

wire! {
    /// Behind the [`Hello`](super::Hello) of an executor process.
    pub struct ExecutorHello [34 bytes] {
        /// From the client's allocation request.
        pub session: Secret,
        /// Where the library is to be written, if the client is to write it.
        pub code_addr: U64,
        /// Key of that place.
        pub code_key: U64,
        /// [`CodeFrom`].
        pub code_from: U16,
    }
}
const _: () = assert!(size_of::<ExecutorHello>() + 8 <= rdmalib::MAX_CONNECT_DATA);

numbered! {
    /// Who provides an executor with the library.
    pub enum CodeFrom ("where the code comes from") {
        /// The client writes it.
        1 => Client,
        /// The node has it. Nothing is to be written.
        2 => Node,
    }
}

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

    /// The code that was written is not what was announced. It was not loaded.
    pub struct CodeDiffers [32 bytes] {
        /// What was written.
        pub received: LibraryHash,
    }
}

messages! {
    /// Executor process to client.
    pub enum FromExecutor {
        /// A callable function.
        1 => Function(FunctionEntry),
        /// No code.
        2 => LoadFailed(LoadFailed),
        /// Other code.
        3 => CodeDiffers(CodeDiffers),
    }
}
