//! One arrival: two cache lines, in a ring or in the ball.
//!
//! ```text
//!   word 0  stamp|immediate    1  bytes|tag    2  address    3  key    4 …  payload (96 bytes)
//! ```
//! A small write travels inside of it: 32 bytes in the line that announces them, up to 96 with the next.
//! That is one line less to fetch from the other processor than payload and announcement apart. Such a
//! payload is *carried*: the owner puts it where it belongs when it takes the arrival (`carried`, LANDING).
//! In place of a large payload, an arrival carries what its owner needs to help with copying it
//! (`shared_copy`).
//! * PUBLISH - the word with the stamp is stored last, with Release, and loaded with Acquire: payload before
//!   completion.

use crate::sync::{AtomicU64, Ordering};

/// Two lines of 64 bytes, which processors like to fetch as a pair.
pub(super) const WORDS: usize = 16;
/// The word in which the second line starts.
pub(super) const SECOND_LINE: usize = WORDS / 2;
/// The word in which the payload starts.
pub(crate) const PAYLOAD: usize = 4;
/// Most bytes that an arrival carries.
pub(crate) const MAX_CARRIED: usize = 8 * (WORDS - PAYLOAD);
/// Those that are in its first line.
pub(crate) const FIRST_LINE: usize = 8 * (SECOND_LINE - PAYLOAD);
/// Bit of the tag word, above the user's: the arrival carries its payload.
pub(crate) const CARRIED: u32 = 1 << 31;

/// What arrived for one receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) immediate: u32,
    pub(crate) bytes: u32,
    /// Free for the user of the ring.
    pub(crate) tag: u32,
    /// Of a payload that it carries: address and key of where it belongs.
    pub(crate) carried_to: Option<(u64, u32)>,
}

/// The first word of an arrival, as it was read once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head(u64);

impl Head {
    /// That of the arrival in `entry`.
    #[inline]
    pub(super) fn read(entry: &[AtomicU64]) -> Head {
        Head(entry[0].load(Ordering::Acquire)) // PUBLISH
    }

    #[inline]
    pub(super) fn stamp(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl Arrival {
    /// Puts it into `entry`; its payload, if it carries one, is there.
    #[inline]
    pub(super) fn write(self, entry: &[AtomicU64], stamp: u32) {
        let mut tag = self.tag;
        if let Some((addr, key)) = self.carried_to {
            tag |= CARRIED;
            entry[2].store(addr, Ordering::Relaxed);
            entry[3].store(u64::from(key), Ordering::Relaxed);
        }
        entry[1].store(u64::from(self.bytes) << 32 | u64::from(tag), Ordering::Relaxed);
        let head = u64::from(stamp) << 32 | u64::from(self.immediate);
        entry[0].store(head, Ordering::Release); // PUBLISH
    }

    /// What is in `entry`, whose head is `head`. The values are the peer's: not to be trusted.
    #[inline]
    pub(super) fn read(entry: &[AtomicU64], head: Head) -> Arrival {
        let body = entry[1].load(Ordering::Relaxed);
        let (bytes, tag) = ((body >> 32) as u32, body as u32);
        let carried_to = (tag & CARRIED != 0)
            .then(|| (entry[2].load(Ordering::Relaxed), entry[3].load(Ordering::Relaxed) as u32));
        Arrival { immediate: head.0 as u32, bytes, tag: tag & !CARRIED, carried_to }
    }

    /// Whether its payload reaches into the second line.
    #[inline]
    pub(super) fn has_two_lines(&self) -> bool {
        self.carried_to.is_some() && (FIRST_LINE + 1..=MAX_CARRIED).contains(&(self.bytes as usize))
    }
}
