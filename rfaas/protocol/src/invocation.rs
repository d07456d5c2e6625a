//! Client and worker: one write with immediate data there, one back. No other message, no server.
//!
//! ```text
//!   slot:    | 32 bytes unused | RequestHeader (32) | input ……… |     64 + input bytes, 64-byte aligned
//!            written from the header on; immediate = RequestImmediate
//!   output:  | FailureDetail   | unused ………… to 64   | output ………|     64-byte aligned, at the client
//!            written from the output on (a failure: its detail only); immediate = ReplyImmediate
//! ```
//! A request whose header says what the slot's last one said, but for its sequence and the size of its input, is
//! that *again*: only the input is written, which is the whole message. The worker has kept the header. So what
//! travels for a call that is made again and again is its input and its output, and nothing else.
//!
//! In place, nothing of that size travels. A client that has mapped the slot
//! ([`map_remote`](rdmalib::SendQueue::map_remote)) builds the input there and writes the header only
//! ([`INPUT_IN_PLACE`]); the worker leaves the output where the function wrote it and replies where that is
//! ([`OUTPUT_IN_PLACE`], [`InPlaceDetail`]). It writes there again when the slot is used again.
//!
//! A slot belongs to one invocation from its request to its reply and is not reused before, so the
//! slot names the invocation and no number can be confused after it wraps around. The sequence in
//! header and reply only exposes a peer that answers twice.

use zerocopy::little_endian::{U16, U32, U64};

use super::{Malformed, wire};

/// Space in front of every input and output: a cache line, so that the data is aligned to one.
pub const HEADER_SPACE: usize = 64;
/// Most input slots of one worker: what the immediate can name.
pub const MAX_SLOTS: usize = 1 << 10;

wire! {
    /// What a client writes in front of an input: which function, and where the output goes.
    pub struct RequestHeader [32 bytes] {
        /// First byte of the output, behind [`HEADER_SPACE`] bytes that are the worker's too.
        pub reply_addr: U64,
        /// Key of that place.
        pub reply_key: U64,
        /// Bytes that fit there.
        pub output_capacity: U32,
        /// Index of the function.
        pub function: U16,
        /// [`INPUT_IN_PLACE`] and [`OUTPUT_IN_PLACE`], or zero; other bits are not used.
        pub flags: U16,
        /// Bytes of input.
        pub input_bytes: U32,
        /// Number of this use of the slot; its low byte returns in the reply.
        pub sequence: U32,
    }
}
const _: () = assert!(crate::session::MAX_FUNCTIONS <= 1 << 16, "an index has 16 bits");

/// The output stays in the worker's memory; an [`InPlaceDetail`] is written in its stead. The capacity is
/// then that of no place of the client's, only the most that it takes.
pub const OUTPUT_IN_PLACE: u16 = 1;
/// The input is in the slot already; only the header is sent.
pub const INPUT_IN_PLACE: u16 = 2;

impl RequestHeader {
    /// Returns the bytes of the message that brings it: itself, and the input unless that is in place.
    /// `None` if it has flags that are not known.
    #[inline]
    pub fn message_bytes(&self) -> Option<u64> {
        let whole = size_of::<Self>() as u64 + u64::from(self.input_bytes.get());
        match self.flags.get() {
            0 | OUTPUT_IN_PLACE => Some(whole),
            flags if flags & !(OUTPUT_IN_PLACE | INPUT_IN_PLACE) == 0 => {
                Some(size_of::<Self>() as u64)
            }
            _ => None,
        }
    }

    /// Returns whether the output stays where the function writes it.
    #[inline]
    pub fn output_stays(&self) -> bool {
        self.flags.get() & OUTPUT_IN_PLACE != 0
    }
}

/// Immediate data of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestImmediate {
    /// The slot that it is written to; one of a worker's, of which there are at most [`MAX_SLOTS`].
    pub slot: u32,
    /// It is the slot's last request again, which was answered with [`ReplyStatus::Ok`]: with the next sequence,
    /// and the message as its input.
    pub again: bool,
}

/// Bit of the wire form.
const AGAIN: u32 = 1 << 31;

impl RequestImmediate {
    /// Returns `again << 31 | slot`.
    #[inline]
    pub fn to_wire(self) -> u32 {
        debug_assert!(self.slot < AGAIN);
        self.slot | if self.again { AGAIN } else { 0 }
    }

    /// Reads the wire form. Whether there is such a slot is for the worker to say.
    #[inline]
    pub fn from_wire(wire: u32) -> Self {
        RequestImmediate { slot: wire & !AGAIN, again: wire & AGAIN != 0 }
    }
}

/// How an invocation ended, as the worker tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplyStatus {
    /// The output is there.
    Ok = 0,
    /// The library has no function of this index.
    UnknownFunction = 1,
    /// The function returned more bytes than fit; [`FailureDetail`] says how many.
    OutputTooLarge = 2,
    /// Header and message do not agree; a client of ours does not send this.
    Malformed = 3,
}

/// Immediate data of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyImmediate {
    /// Slot of the request.
    pub slot: u16,
    /// How it ended.
    pub status: ReplyStatus,
    /// Low byte of the request's sequence.
    pub sequence: u8,
}

impl ReplyImmediate {
    /// Returns `sequence << 24 | status << 16 | slot`.
    #[inline]
    pub fn to_wire(self) -> u32 {
        u32::from(self.slot) | (self.status as u32) << 16 | u32::from(self.sequence) << 24
    }

    /// Reads the wire form.
    #[inline]
    pub fn from_wire(wire: u32) -> Result<Self, Malformed> {
        let status = match wire >> 16 & 0xff {
            0 => ReplyStatus::Ok,
            1 => ReplyStatus::UnknownFunction,
            2 => ReplyStatus::OutputTooLarge,
            3 => ReplyStatus::Malformed,
            _ => return Err(Malformed::Field("reply status")),
        };
        Ok(ReplyImmediate { slot: wire as u16, status, sequence: (wire >> 24) as u8 })
    }
}

wire! {
    /// Written to the start of the output's header space with a reply that is not [`ReplyStatus::Ok`].
    pub struct FailureDetail [8 bytes] {
        /// Output too large: bytes that the function returned.
        pub needed_bytes: U64,
    }

    /// Written to where the output would go, with a reply that is [`ReplyStatus::Ok`] to a request with
    /// [`OUTPUT_IN_PLACE`].
    pub struct InPlaceDetail [20 bytes] {
        /// First byte of the output, in the worker's memory; a multiple of 64.
        pub output_addr: U64,
        /// Key of that place, which allows reading as many bytes as the deployment has for an output.
        pub output_key: U64,
        /// Bytes of output.
        pub output_bytes: U32,
    }
}
