//! What two ends tell each other, what is kept for them at most, and what is told of them.

use std::time::Duration;

use super::super::memory::Place;

/// Bytes of messages that are sent before it is known that there is a receive for them, and most
/// that a receiver keeps of them.
pub(super) const EAGER: usize = 64 << 10;

/// Payloads of more bytes are handed to the carrier where they are; others are copied behind their
/// header.
pub(super) const COPIED: usize = 16 << 10;

/// Frames are gathered for one call of the carrier until there are so many bytes.
pub(super) const GATHERED: usize = 64 << 10;

/// What one end tells the other in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Terms {
    /// Most requests that it has outstanding.
    pub(in super::super) send_depth: u32,
    /// How long a request of it waits for a receive; `None`: for ever.
    pub(in super::super) patience: Option<Duration>,
}

/// A posted receive.
#[derive(Debug)]
pub(super) struct Receive {
    pub(super) id: u64,
    /// Where a message goes, and how long it may be.
    pub(super) buffer: Option<(Place, usize)>,
}

/// Completions that came since the owner was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct News {
    pub(in super::super) sends: bool,
    pub(in super::super) receives: bool,
    /// One of them is an error or was solicited.
    pub(in super::super) urgent: bool,
}
