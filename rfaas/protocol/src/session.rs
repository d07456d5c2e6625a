//! Executor to client: the executor process dials the client once, takes the code unless its node has it, answers
//! with the functions in it; each worker dials once more and offers its input slots.
//!
//! ```text
//!   executor ──connect, ExecutorHello (where the code goes)──▶ client
//!   executor ◀──write with immediate: the library, if wanted─  client
//!   executor ──Functions…, LoadFailed or CodeDiffers─────────▶ client
//!   worker   ──connect, WorkerHello (where the slots are)────▶ client       worker by worker
//! ```
//! An executor of a graph is told what its workers are for. They do not answer the client but hand on what functions
//! return (`edge`); the slots of a worker that the client gives no input are of no bytes.
//! ```text
//!   executor ──Listening (where edges come in)──▶ client
//!   executor ◀──Part, its inputs, its outputs; the next…; Complete──  client       once all have said where they listen
//! ```
//! A worker may have several parts: functions that it calls one after the other.

use zerocopy::little_endian::{U16, U32, U64};

use super::library::LibraryHash;
use super::{Empty, Malformed, Secret, Text, WireAddress, messages, numbered, wire};

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

/// Most bytes of names in a message: at least one, and all of a usual library.
const MAX_NAMES_BYTES: usize = 1000;
const _: () = assert!(MAX_FUNCTION_NAME_BYTES < MAX_NAMES_BYTES);

wire! {
    /// Functions of the library. Sent in the order of their numbers, until all are named, before anything else; once if
    /// there are none, in a library whose functions all take batches.
    pub struct FunctionNames [1010 bytes] {
        /// Number to call the first of these by, from 0.
        pub first: U32,
        /// How many there are in all.
        pub count: U32,
        /// How many of the bytes count.
        len: U16,
        /// Symbols, each with a 0 behind it.
        bytes: [u8; MAX_NAMES_BYTES],
    }

    /// The library could not be loaded.
    pub struct LoadFailed [514 bytes] {
        /// What the loader said.
        pub reason: Text<512>,
    }

    /// Where workers are dialled that edges come to.
    pub struct Listening [18 bytes] {
        /// Address.
        pub address: WireAddress,
    }

    /// A function of the graph that a worker calls. Sent before its edges; functions that others of the same worker
    /// lead to are behind those.
    pub struct Part [538 bytes] {
        /// Index of the worker, from 0. Parts come in this order.
        pub worker: U16,
        /// Number of its function in the graph.
        pub function: U16,
        /// Which of the workers of that function this is, from 0.
        pub member: U16,
        /// How many it has.
        pub members: U16,
        /// [`Join`](super::edge::Join).
        pub join: U16,
        /// How many inputs [`Join::Of`](super::edge::Join::Of) waits for.
        pub wanted: U16,
        /// [`Takes`](super::edge::Takes).
        pub takes: U16,
        /// How many runs it is called with at once, at most. 0: it does not take batches, and is called for each run.
        pub batch: U16,
        /// After so many milliseconds from the first input on, the function is called with those that are there. 0: it
        /// waits for all that it wants.
        pub within_ms: U32,
        /// How many microseconds the first run of a batch waits for others.
        pub batch_wait_us: U32,
        /// Name of the function in the library, of one that takes batches without
        /// [`BATCH_PREFIX`](super::library::BATCH_PREFIX).
        pub name: Text<MAX_FUNCTION_NAME_BYTES>,
    }

    /// The part that was sent last has input of the client: that is in the slots that its worker offers when it dials.
    pub struct InputOfClient [4 bytes] {
        /// Largest payload, in bytes.
        pub bytes: U32,
    }

    /// An edge to that part. Inputs are numbered in the order in which they are sent.
    pub struct EdgeIn [24 bytes] {
        /// What who dials shows: of its link.
        pub secret: Secret,
        /// Largest payload, in bytes.
        pub bytes: U32,
        /// [`InputKind`](super::edge::InputKind).
        pub kind: U16,
        /// Which of the edges of that link it is, from 0.
        pub on_link: U16,
    }

    /// An edge to that part from another one of the same worker, which was sent before.
    pub struct EdgeHere [10 bytes] {
        /// Which, counted from the first part of the worker.
        pub from: U16,
        /// Number of the edge among those from there.
        pub edge: U16,
        /// Largest payload, in bytes.
        pub bytes: U32,
        /// [`InputKind`](super::edge::InputKind).
        pub kind: U16,
    }

    /// An edge from that part to a worker, or to the client.
    pub struct EdgeOut [44 bytes] {
        /// Whom to dial.
        pub to: WireAddress,
        /// What to show there: of its link.
        pub secret: Secret,
        /// Largest payload, in bytes.
        pub bytes: U32,
        /// Number of the edge among those from this function. One to several workers of a function has this message
        /// for each of them, in their order.
        pub edge: U16,
        /// [`OutputKind`](super::edge::OutputKind).
        pub kind: U16,
        /// Which of the edges of that link it is, from 0.
        pub on_link: U16,
    }

    /// The code that was written is not what was announced. It was not loaded.
    pub struct CodeDiffers [32 bytes] {
        /// What was written.
        pub received: LibraryHash,
    }
}

impl FunctionNames {
    /// Returns a message of as many of `names` as it has room for, from number `first` on, and the number of the next.
    /// It has room for at least one, since names have at most [`MAX_FUNCTION_NAME_BYTES`].
    pub fn from(names: &[String], first: usize) -> (Self, usize) {
        let (mut bytes, mut len, mut next) = ([0; MAX_NAMES_BYTES], 0, first);
        for name in names.iter().skip(first) {
            let end = len + name.len();
            if end >= MAX_NAMES_BYTES {
                break;
            }
            bytes[len..end].copy_from_slice(name.as_bytes());
            (len, next) = (end + 1, next + 1);
        }
        let number = |n: usize| u32::try_from(n).expect("at most `MAX_FUNCTIONS`").into();
        let len = u16::try_from(len).expect("at most `MAX_NAMES_BYTES`").into();
        (FunctionNames { first: number(first), count: number(names.len()), len, bytes }, next)
    }

    /// Returns the names, at least one unless there are none in all; an error if the peer's bytes are none.
    pub fn get(&self) -> Result<Vec<&str>, Malformed> {
        const BAD: Malformed = Malformed::Field("names of functions");
        if (self.count.get(), self.len.get()) == (0, 0) {
            return Ok(Vec::new());
        }
        let bytes = self.bytes.get(..usize::from(self.len.get())).ok_or(BAD)?;
        let bytes = bytes.strip_suffix(&[0]).ok_or(BAD)?;
        let is_name = |name: &[u8]| (1..=MAX_FUNCTION_NAME_BYTES).contains(&name.len());
        let names = bytes.split(|byte| *byte == 0).map(|name| match is_name(name) {
            true => std::str::from_utf8(name).map_err(|_| BAD),
            false => Err(BAD),
        });
        names.collect()
    }
}

messages! {
    /// Executor process to client.
    pub enum FromExecutor {
        /// Callable functions.
        1 => Functions(FunctionNames),
        /// No code.
        2 => LoadFailed(LoadFailed),
        /// Other code.
        3 => CodeDiffers(CodeDiffers),
        /// It waits for edges.
        4 => Listening(Listening),
    }
}
messages! {
    /// Client to executor process, of a graph.
    pub enum ToExecutor {
        /// What a worker is for.
        1 => Part(Part),
        /// That has input of the client.
        2 => InputOfClient(InputOfClient),
        /// An edge to it.
        3 => EdgeIn(EdgeIn),
        /// An edge to it from the same worker.
        4 => EdgeHere(EdgeHere),
        /// An edge from it.
        5 => EdgeOut(EdgeOut),
        /// That is all.
        6 => Complete(Empty),
    }
}
