//! Client and worker: one write with immediate data there, one back. No other message, no server.
//!
//! ```text
//!   slot:    | 32 bytes unused | RequestHeader (32) | input ……… |     64 + input bytes, 64-byte aligned
//!            written from the header on; immediate = slot
//!   output:  | FailureDetail   | unused ………… to 64   | output ………|     64-byte aligned, at the client
//!            written from the output on (a failure: its detail only); immediate = ReplyImmediate
//! ```
//! A slot belongs to one invocation from its request to its reply and is not reused before, so the
//! slot names the invocation and no number can be confused after it wraps around. The sequence in
//! header and reply only exposes a peer that answers twice.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Malformed;

/// Space in front of every input and output: a cache line, so that the data is aligned to one.
pub const HEADER_SPACE: usize = 64;
/// Most input slots of one worker: what the immediate can name.
pub const MAX_SLOTS: usize = 1 << 10;

/// What a client writes in front of an input: which function, and where the output goes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RequestHeader {
    /// First byte of the output, behind [`HEADER_SPACE`] bytes that are the worker's too.
    pub reply_addr: U64,
    /// Key of that place.
    pub reply_key: U32,
    /// Bytes that fit there.
    pub output_capacity: U32,
    /// Index of the function.
    pub function: U32,
    /// Bytes of input.
    pub input_bytes: U32,
    /// Number of this use of the slot; its low byte returns in the reply.
    pub sequence: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<RequestHeader>() == 32);

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
    /// `sequence << 24 | status << 16 | slot`.
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

/// Written to the start of the output's header space with a reply that is not [`ReplyStatus::Ok`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FailureDetail {
    /// Output too large: bytes that the function returned.
    pub needed_bytes: U64,
}
