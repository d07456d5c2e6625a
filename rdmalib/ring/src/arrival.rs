//! One arrival: two cache lines, in a ring or in the shared turn slot.
//!
//! ```text
//!   word 0  sequence|immediate   1  bytes|tag   2  address   3  key   4 …  payload (96 bytes)
//! ```
//! A small write travels inside its arrival: 32 bytes in the line that announces it, and up to 96
//! with the next line. That is one line less to fetch from the other processor than a payload apart
//! from its announcement. Such a payload is *carried*: the owner copies it to its destination when
//! it takes the arrival. In place of a large payload, an arrival carries the words that its owner
//! needs to help with copying.
//!
//! PUBLISH: the word with the sequence number is stored last, with Release, and loaded with
//! Acquire: whoever sees an arrival sees its payload.

use crate::sync::{AtomicU64, Ordering};

/// Two lines of 64 bytes, which processors like to fetch as a pair.
pub(crate) const WORDS: usize = 16;
/// The word in which the second line starts.
pub(crate) const SECOND_LINE: usize = WORDS / 2;
/// The word of an arrival in which its payload starts.
pub const PAYLOAD: usize = 4;
/// Most bytes that an arrival carries.
pub const MAX_CARRIED: usize = 8 * (WORDS - PAYLOAD);
/// Bytes of a payload that are in the first line of its arrival.
pub const FIRST_LINE: usize = 8 * (SECOND_LINE - PAYLOAD);
/// Bit of the tag word, above the user's bits: the arrival carries its payload.
pub const CARRIED: u32 = 1 << 31;

/// What arrived for one receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Immediate data.
    pub immediate: u32,
    /// Length of the message, in bytes.
    pub bytes: u32,
    /// Free for the user of the ring, except the highest bit.
    pub tag: u32,
    /// Destination of a payload that it carries: address and key.
    pub carried_to: Option<(u64, u64)>,
}

/// The first word of an arrival, as it was read once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head(u64);

impl Head {
    /// Reads that of the arrival in `entry`.
    #[inline]
    pub(crate) fn read(entry: &[AtomicU64]) -> Head {
        Head(entry[0].load(Ordering::Acquire)) // PUBLISH
    }

    #[inline]
    pub(crate) fn sequence(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl Arrival {
    /// Writes the arrival into `entry`. A payload that it carries is there already.
    #[inline]
    pub(crate) fn write(self, entry: &[AtomicU64], sequence: u32) {
        let mut tag = self.tag;
        if let Some((addr, key)) = self.carried_to {
            tag |= CARRIED;
            entry[2].store(addr, Ordering::Relaxed);
            entry[3].store(key, Ordering::Relaxed);
        }
        entry[1].store(u64::from(self.bytes) << 32 | u64::from(tag), Ordering::Relaxed);
        let head = u64::from(sequence) << 32 | u64::from(self.immediate);
        entry[0].store(head, Ordering::Release); // PUBLISH
    }

    /// Reads the arrival in `entry`, whose head is `head`. The values are the peer's and may be
    /// lies.
    #[inline]
    pub(crate) fn read(entry: &[AtomicU64], head: Head) -> Arrival {
        let body = entry[1].load(Ordering::Relaxed);
        let (bytes, tag) = ((body >> 32) as u32, body as u32);
        let carried_to = (tag & CARRIED != 0)
            .then(|| (entry[2].load(Ordering::Relaxed), entry[3].load(Ordering::Relaxed)));
        Arrival { immediate: head.0 as u32, bytes, tag: tag & !CARRIED, carried_to }
    }

    /// Whether its payload reaches into the second line.
    #[inline]
    pub(crate) fn has_two_lines(&self) -> bool {
        self.carried_to.is_some() && (FIRST_LINE + 1..=MAX_CARRIED).contains(&(self.bytes as usize))
    }
}
