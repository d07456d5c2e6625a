//! Sender and receiver of edges of a graph: one worker to another, or to the client. Edges from one to the other
//! share a link, which is a connection, up to [`MAX_ON_LINK`] payloads. The sender dials and shows the secret of the
//! link, which the client has told both; the receiver answers with its slots.
//!
//! ```text
//!   sender ──connect, EdgeHello──▶ receiver      sender ◀──accepted, EdgeSlots── receiver
//!   sender ──write with immediate data: a payload to the place of its slot──▶ receiver
//! ```
//! Nothing else travels but, where they are asked for, traces. The receiver knows from the connection which link it is,
//! from the immediate data which edge and run the payload is of and which slot it is in, and from the write how long it
//! is. The slots of the edges of a link lie one behind the other, in the order of the edges' numbers on it; behind them
//! all, from a page of their own on, the lengths of payloads in place ([`InPlaceLength`]), one for each slot of each
//! edge. The client owns the slots of all edges: run after run, a slot is used again when all workers are done with it.

use zerocopy::little_endian::{U32, U64};

use super::invocation::MAX_SLOTS;
use super::{Malformed, Secret, numbered, wire};

/// Most edges that come to a worker, and most that go from it: a bit each in a word.
pub const MAX_EDGES: usize = 64;

/// Most payloads that may be on their way over a link: the slots of all its edges. Each costs a receive, of which
/// an adapter gives a connection at most `max_qp_wr` (`ibv_devinfo -v`). Which adapters have room for a full link was
/// not tried.
pub const MAX_ON_LINK: u32 = 1 << 11;
const _: () = assert!(MAX_ON_LINK as usize >= MAX_SLOTS, "an edge fits");

/// Most notes of a function in a run: as many as fit into two lines with their record.
pub const MAX_NOTES: usize = 4;
/// Most bytes of the name of a note.
pub const MAX_NOTE_KEY_BYTES: usize = 16;
/// Bytes of a trace with all its notes.
pub const TRACE_BYTES: usize = size_of::<TraceRecord>() + MAX_NOTES * size_of::<TraceNote>();

/// Slots begin at multiples of this.
const LINE: u64 = 64;

/// Payloads of edges that hold less are copied: that takes less than what being in place saves, and behind an output
/// of the sender's own there is a guard page.
const IN_PLACE_FROM: u32 = 16 << 10;

wire! {
    /// Behind the [`Hello`](super::Hello) of who will write.
    pub struct EdgeHello [16 bytes] {
        /// Of this link alone.
        pub secret: Secret,
    }

    /// Private data of the acceptance: where payloads go.
    pub struct EdgeSlots [16 bytes] {
        /// First byte of slot 0 of edge 0, a multiple of 64.
        pub addr: U64,
        /// Key of all slots.
        pub key: U64,
    }
}
const _: () = assert!(size_of::<EdgeHello>() + 8 <= rdmalib::MAX_CONNECT_DATA);
const _: () = assert!(size_of::<EdgeSlots>() <= rdmalib::MAX_ACCEPT_DATA);

/// The slots of an edge, which both ends know from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeShape {
    /// How many: runs that may be under way.
    pub slots: u16,
    /// Largest payload, in bytes.
    pub bytes: u32,
}

impl EdgeShape {
    /// Returns the distance between two slots, in bytes: room for a payload, or for an [`EdgeFailure`].
    pub fn stride(self) -> u64 {
        u64::from(self.bytes).max(size_of::<EdgeFailure>() as u64).next_multiple_of(LINE)
    }

    /// Returns whether a sender that can maps these slots and has its function write there.
    pub fn is_in_place(self) -> bool {
        self.bytes >= IN_PLACE_FROM
    }

    /// Returns where a slot starts, from the start of slot 0.
    pub fn start(self, slot: u16) -> u64 {
        u64::from(slot) * self.stride()
    }

    /// Returns the size of all slots, in bytes.
    pub fn all_bytes(self) -> u64 {
        self.start(self.slots)
    }
}

numbered! {
    /// What a payload is.
    pub enum EdgeStatus ("status of an edge") {
        /// Output of a function, or input of the client.
        0 => Value,
        /// An [`EdgeFailure`]: the run has failed.
        1 => Failed,
        /// The sender has mapped the slot, and the function wrote its output there. What is written is an
        /// [`InPlaceLength`], to the place of that.
        2 => InPlace,
    }
}

/// Where the number of the edge is in immediate data, and the status.
const EDGE_AT: u32 = MAX_SLOTS.ilog2();
const STATUS_AT: u32 = EDGE_AT + MAX_ON_LINK.ilog2();

/// Immediate data of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeImmediate {
    /// Which of the edges of its link it came over: less than [`MAX_ON_LINK`].
    pub edge: u16,
    /// Where it is: less than [`MAX_SLOTS`].
    pub slot: u16,
    /// What it is.
    pub status: EdgeStatus,
    /// Low byte of the number of the run.
    pub run: u8,
}

impl EdgeImmediate {
    /// Returns `run << 24 | status << 21 | edge << 10 | slot`.
    #[inline]
    pub fn to_wire(self) -> u32 {
        debug_assert!(usize::from(self.slot) < MAX_SLOTS && u32::from(self.edge) < MAX_ON_LINK);
        let edge = u32::from(self.edge) << EDGE_AT;
        u32::from(self.slot) | edge | (self.status as u32) << STATUS_AT | u32::from(self.run) << 24
    }

    /// Reads the wire form.
    #[inline]
    pub fn from_wire(wire: u32) -> Result<Self, Malformed> {
        let bits = |from: u32, to: u32| (wire >> from & ((1 << (to - from)) - 1)) as u16; // at most 11
        let status = EdgeStatus::from_wire(bits(STATUS_AT, 24).into())?;
        let (edge, slot) = (bits(EDGE_AT, STATUS_AT), bits(0, EDGE_AT));
        Ok(EdgeImmediate { edge, slot, status, run: (wire >> 24) as u8 })
    }
}

numbered! {
    /// When a function is called.
    pub enum Join ("join of a function") {
        /// When all inputs are there. If one has failed, the run has, and it is not called.
        0 => All,
        /// When so many inputs are there, with these; those that have failed, and the later ones, do not count.
        1 => Of,
        /// With each input as it comes, until it returns a value; the later ones do not count.
        2 => Any,
    }
}

numbered! {
    /// How a function is called when its inputs are there.
    pub enum Takes ("how a function takes its input") {
        /// Once.
        0 => Whole,
        /// Once for each item of the inputs that are items. What it returns are items with the same keys.
        1 => Each,
        /// Once for each key of these, with all items of that key. What it returns are items with these keys.
        2 => Keyed,
    }
}

numbered! {
    /// What comes over an edge.
    pub enum InputKind ("kind of an input") {
        /// Bytes.
        0 => Whole,
        /// Items ([`ItemHeader`]).
        1 => Items,
        /// The answer to a call that the function makes. It does not wait for it before it is called itself.
        2 => Answer,
        /// Nothing comes: the function may say that it is called again, with what it has made so far.
        3 => Again,
    }
}

numbered! {
    /// What goes over an edge.
    pub enum OutputKind ("kind of an output") {
        /// All that the function returns, to each worker.
        0 => Whole,
        /// Items ([`ItemHeader`]): the first goes to the first worker, the next to the next one, and so on.
        1 => Each,
        /// Items ([`ItemHeader`]): those of a key go to the same worker.
        2 => Keyed,
        /// A call that the function makes while it runs. The answer comes over the input that is
        /// [`InputKind::Answer`], in the order in which both were sent.
        3 => Call,
        /// Nothing but that the function is done with the run: it may have sent before, or not waited for all inputs.
        4 => Done,
        /// A [`TraceRecord`], and behind it up to [`MAX_NOTES`] [notes](TraceNote), without immediate data.
        5 => Trace,
    }
}

wire! {
    /// In front of each item of a payload that is a list of items. The bytes of an item follow, and as many as bring
    /// the next header to a multiple of 8 bytes from the start of the payload.
    pub struct ItemHeader [8 bytes] {
        /// Any number.
        pub key: U32,
        /// Bytes of the item.
        pub bytes: U32,
    }

    /// How long a payload in place is.
    pub struct InPlaceLength [4 bytes] {
        /// In bytes.
        pub bytes: U32,
    }

    /// What a worker did in a run.
    pub struct TraceRecord [32 bytes] {
        /// When it began: nanoseconds of the clock of its node (`CLOCK_REALTIME`).
        pub begin_ns: U64,
        /// How long it took from the last input to the last output, in nanoseconds.
        pub took_ns: U64,
        /// Bytes of its inputs.
        pub bytes_in: U32,
        /// Bytes that it returned.
        pub bytes_out: U32,
        /// With how many runs at once the function was called, this one included.
        pub together: zerocopy::little_endian::U16,
        /// How many [notes](TraceNote) follow it, at most [`MAX_NOTES`].
        pub notes: zerocopy::little_endian::U16,
        /// How often the function was called.
        pub calls: zerocopy::little_endian::U16,
        /// Low byte of the number of the run.
        pub run: u8,
        /// 1: the run failed here, or before. 0: it did not.
        pub failed: u8,
    }

    /// What a function has noted of a run. It is written before the record that says how many there are.
    pub struct TraceNote [24 bytes] {
        /// Its name; zeros behind it.
        pub key: [u8; MAX_NOTE_KEY_BYTES],
        /// A number.
        pub value: zerocopy::little_endian::I64,
    }

    /// Why a run has failed, as the worker tells it that has noticed; passed on from there.
    pub struct EdgeFailure [16 bytes] {
        /// [`FailedBecause`].
        pub because: zerocopy::little_endian::U16,
        /// Number of the function in its graph.
        pub function: zerocopy::little_endian::U16,
        /// Which of the workers of that it was.
        pub member: zerocopy::little_endian::U16,
        /// Not used.
        pub unused: zerocopy::little_endian::U16,
        /// Bytes that it returned; or its code; or how many inputs had a value.
        pub returned: U32,
        /// Bytes that fit; or how many inputs it waits for.
        pub most: U32,
    }
}

numbered! {
    /// Why a run has failed.
    pub enum FailedBecause ("why a run has failed") {
        /// A function returned more bytes than its edges hold.
        1 => OutputTooLarge,
        /// A function says that it failed, with a code.
        2 => Function,
        /// A function says that it has no value.
        3 => NoValue,
        /// A function returned no list of items over an edge that takes items.
        4 => NotItems,
        /// Fewer inputs than a function waits for had a value.
        5 => TooFew,
    }
}
