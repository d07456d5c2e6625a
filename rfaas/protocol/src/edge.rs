//! Sender and receiver of an edge of a graph: one worker to another, or to the client. The sender dials and shows the
//! secret of the edge, which the client has told both; the receiver answers with its slots.
//!
//! ```text
//!   sender ──connect, EdgeHello──▶ receiver      sender ◀──accepted, EdgeSlots── receiver
//!   sender ──write with immediate data: a payload to the place of its slot──▶ receiver
//! ```
//! Nothing else travels. The receiver knows from the connection which edge it is, from the immediate data which run
//! the payload is of and which slot it is in, and from the write how long it is. The client owns the slots of all
//! edges: run after run, a slot is used again when all workers are done with it.

use zerocopy::little_endian::U64;

use super::{Malformed, Secret, numbered, wire};

/// Most edges that come to a worker, and most that go from it: a bit each in a word.
pub const MAX_EDGES: usize = 64;

/// Slots begin at multiples of this.
const LINE: u64 = 64;

wire! {
    /// Behind the [`Hello`](super::Hello) of who will write.
    pub struct EdgeHello [16 bytes] {
        /// Of this edge alone.
        pub secret: Secret,
    }

    /// Private data of the acceptance: where payloads go.
    pub struct EdgeSlots [16 bytes] {
        /// First byte of slot 0, a multiple of 64.
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
    }
}

/// Immediate data of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeImmediate {
    /// Where it is.
    pub slot: u16,
    /// What it is.
    pub status: EdgeStatus,
    /// Low byte of the number of the run.
    pub run: u8,
}

impl EdgeImmediate {
    /// Returns `run << 24 | status << 16 | slot`.
    #[inline]
    pub fn to_wire(self) -> u32 {
        u32::from(self.slot) | (self.status as u32) << 16 | u32::from(self.run) << 24
    }

    /// Reads the wire form.
    #[inline]
    pub fn from_wire(wire: u32) -> Result<Self, Malformed> {
        let status = EdgeStatus::from_wire(((wire >> 16) as u16 & 0xff).into())?;
        Ok(EdgeImmediate { slot: wire as u16, status, run: (wire >> 24) as u8 })
    }
}

wire! {
    /// Why a run has failed, as the worker tells it that has noticed; passed on from there.
    pub struct EdgeFailure [16 bytes] {
        /// [`FailedBecause`].
        pub because: zerocopy::little_endian::U16,
        /// Number of the function in its graph.
        pub function: zerocopy::little_endian::U16,
        /// Bytes that it returned.
        pub returned: zerocopy::little_endian::U32,
        /// Bytes that fit.
        pub most: U64,
    }
}

numbered! {
    /// Why a run has failed.
    pub enum FailedBecause ("why a run has failed") {
        /// A function returned more bytes than its edges hold.
        1 => OutputTooLarge,
    }
}
