//! The posted receives of one queue pair, as this process counts them: the count in the ring can be
//! written by the peer.
//!
//! * Ids are stored before `posted` (Release) and loaded after it (Acquire).
//! * A receive leaves the queue when its completion is polled: `taken` is stored with Release in
//!   `retire` and loaded with Acquire in `check_room`.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::types::{Error, Result};

/// The receives of one queue pair. One thread posts, the poller retires.
#[derive(Debug)]
pub(super) struct Receives {
    depth: u32,
    posted: AtomicU32,
    taken: AtomicU32,
    ids: Box<[AtomicU64]>,
}

impl Receives {
    /// For a receive queue of `depth` requests.
    pub(super) fn new(depth: u32) -> Self {
        let ids = (0..depth.next_power_of_two()).map(|_| AtomicU64::new(0)).collect();
        Receives { depth, posted: AtomicU32::new(0), taken: AtomicU32::new(0), ids }
    }

    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    #[inline]
    fn id(&self, index: u32) -> &AtomicU64 {
        &self.ids[index as usize & (self.ids.len() - 1)]
    }

    /// Whether one more receive fits. For the thread that posts, as is `note`.
    #[inline]
    pub(super) fn check_room(&self) -> Result<()> {
        let posted = self.posted.load(Ordering::Relaxed); // only the caller stores it
        if posted.wrapping_sub(self.taken.load(Ordering::Acquire)) >= self.depth {
            return Err(Error::QueueFull { depth: self.depth });
        }
        Ok(())
    }

    /// Counts a receive that is posted next, under `id`.
    #[inline]
    pub(super) fn note(&self, id: u64) {
        let posted = self.posted.load(Ordering::Relaxed);
        self.id(posted).store(id, Ordering::Relaxed);
        self.posted.store(posted.wrapping_add(1), Ordering::Release); // the id before the count
    }

    /// Whether there are more than the `taken` that were taken.
    #[inline]
    pub(super) fn has_more(&self, taken: u32) -> bool {
        self.posted.load(Ordering::Acquire) != taken
    }

    /// Returns the id of the last of the `taken` receives that were taken, whose place is free
    /// again.
    #[inline]
    pub(super) fn retire(&self, taken: u32) -> u64 {
        let id = self.id(taken.wrapping_sub(1)).load(Ordering::Relaxed);
        self.taken.store(taken, Ordering::Release);
        id
    }
}
