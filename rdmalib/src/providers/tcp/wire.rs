//! Frames: what two ends send each other once they are connected.
//!
//! ```text
//!   header (32 bytes) │ payload (`length` bytes; none in Read, Announce, Acknowledge, Clear, Failed)
//! ```
//! A frame is a header and then its payload, whatever carries the bytes. Requests are numbered by
//! `sequence`, from 0 on, in each direction. Every header says with `acknowledged` how many of the
//! peer's requests have been carried out.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::Status;

/// Deepest send or receive queue: what common network cards offer.
pub(super) const MAX_QUEUE_DEPTH: u32 = 16384;

/// Bytes of a header.
pub(super) const HEADER: usize = 32;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A message for the receive that comes next.
    Send = 1,
    /// Bytes for `address`.
    Write = 2,
    /// Asks for `length` bytes from `address` on.
    Read = 3,
    /// Payload: what is added.
    FetchAdd = 4,
    /// Payload: the expected value and the new one.
    CompareSwap = 5,
    /// A message of `length` bytes is to be sent; it follows as `Data` when the receiver is clear.
    Announce = 6,
    /// The message that was announced.
    Data = 7,
    /// Nothing but the count of requests that were carried out.
    Acknowledge = 16,
    /// Payload: what the read or atomic `sequence` asked for.
    Answer = 17,
    /// The message that was announced as `sequence` may come.
    Clear = 18,
    /// Request `sequence` failed, with the status that is in `immediate`. The last frame.
    Failed = 19,
}

const KINDS: [Kind; 11] = [
    Kind::Send,
    Kind::Write,
    Kind::Read,
    Kind::FetchAdd,
    Kind::CompareSwap,
    Kind::Announce,
    Kind::Data,
    Kind::Acknowledge,
    Kind::Answer,
    Kind::Clear,
    Kind::Failed,
];

bitflags::bitflags! {
    /// Options of a frame.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct FrameFlags: u8 {
        /// It has immediate data.
        const IMMEDIATE = 1;
        /// It wakes a receiver that waits for solicited completions.
        const SOLICITED = 2;
    }
}

/// What every frame begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    kind: u8,
    flags: u8,
    reserved: U16,
    pub(super) length: U32,
    pub(super) immediate: U32,
    pub(super) sequence: U32,
    pub(super) acknowledged: U32,
    pub(super) key: U32,
    pub(super) address: U64,
}
const _: () = assert!(size_of::<Header>() == HEADER);
// The old value of an atomic travels as it is in memory.
const _: () = assert!(cfg!(target_endian = "little"), "provider tcp is for little-endian machines");

impl Header {
    /// A frame of `length` bytes; what else it needs is filled in by its maker.
    pub(super) fn new(kind: Kind, sequence: u32, length: u32) -> Self {
        Header {
            kind: kind as u8,
            flags: 0,
            reserved: U16::new(0),
            length: U32::new(length),
            immediate: U32::new(0),
            sequence: U32::new(sequence),
            acknowledged: U32::new(0),
            key: U32::new(0),
            address: U64::new(0),
        }
    }

    pub(super) fn of_bytes(bytes: &[u8; HEADER]) -> Self {
        zerocopy::transmute!(*bytes)
    }

    /// `None`: no frame of this version.
    #[inline]
    pub(super) fn kind(&self) -> Option<Kind> {
        KINDS.into_iter().find(|kind| *kind as u8 == self.kind)
    }

    pub(super) fn flags(&self) -> FrameFlags {
        FrameFlags::from_bits_truncate(self.flags)
    }

    pub(super) fn set_flags(&mut self, flags: FrameFlags) {
        self.flags = flags.bits();
    }

    /// Immediate data, if it has any.
    pub(super) fn immediate(&self) -> Option<u32> {
        self.flags().contains(FrameFlags::IMMEDIATE).then(|| self.immediate.get())
    }
}

/// What a peer is told of a failure, by number in `Failed`.
const STATUSES: [Status; 4] = [
    Status::RemoteInvalidRequest,
    Status::RemoteAccessError,
    Status::RemoteOperationError,
    Status::RnrRetryExceeded,
];

/// Returns the number of `status` in `Failed`; any other counts as an operation that failed.
pub(super) fn status_code(status: Status) -> u32 {
    STATUSES.iter().position(|known| *known == status).unwrap_or(2) as u32
}

/// Returns the status with this number.
pub(super) fn status_of(code: u32) -> Status {
    STATUSES.get(code as usize).copied().unwrap_or(Status::RemoteOperationError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_these_bytes() {
        let mut header = Header::new(Kind::Write, 0x0403_0201, 0x0807_0605);
        header.set_flags(FrameFlags::IMMEDIATE | FrameFlags::SOLICITED);
        header.immediate = U32::new(0x0c0b_0a09);
        header.acknowledged = U32::new(0x100f_0e0d);
        header.key = U32::new(0x1413_1211);
        header.address = U64::new(0x1c1b_1a19_1817_1615);
        let bytes = header.as_bytes();
        assert_eq!(bytes[..8], [2, 3, 0, 0, 5, 6, 7, 8]);
        assert_eq!(bytes[8..16], [9, 10, 11, 12, 1, 2, 3, 4]);
        assert_eq!(bytes[16..24], [13, 14, 15, 16, 17, 18, 19, 20]);
        assert_eq!(bytes[24..], [21, 22, 23, 24, 25, 26, 27, 28]);
    }

    #[test]
    fn every_kind_and_status_is_read_as_it_was_written() {
        for kind in KINDS {
            assert_eq!(Header::new(kind, 0, 0).kind(), Some(kind));
        }
        for unknown in [0, 8, 15, 20, 255] {
            let header = Header { kind: unknown, ..Header::new(Kind::Send, 0, 0) };
            assert_eq!(header.kind(), None);
        }
        for status in STATUSES {
            assert_eq!(status_of(status_code(status)), status);
        }
        assert_eq!(status_of(u32::MAX), Status::RemoteOperationError);
    }
}
