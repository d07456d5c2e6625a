//! Which requests of a queue are outstanding, under which ids, and how a completion finds its own.
//!
//! * A request leaves its queue when its own or a later completion is polled: `retired` is stored
//!   with Release in `retire` and loaded with Acquire in `check`.
//! * An id is stored before its request is posted. The device's own ordering between posting and
//!   completing (verbs(7)) lets the poller see it.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::types::{Error, Result};

/// Which queue a request was posted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Send,
    Receive,
}

/// What a `wr_id` says: the queue pair's number in the high half, then one bit for the queue, then
/// the low 31 bits of the request's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) number: u32,
    pub(super) kind: Kind,
    /// Low bits of the index.
    index: u32,
}

const RECEIVE_BIT: u32 = 1 << 31;

impl Tag {
    pub(super) fn to_wr_id(number: u32, kind: Kind, index: u32) -> u64 {
        let bit = if kind == Kind::Receive { RECEIVE_BIT } else { 0 };
        u64::from(number) << 32 | u64::from(index & !RECEIVE_BIT | bit)
    }

    #[inline]
    pub(super) fn from_wr_id(wr_id: u64) -> Self {
        let low = wr_id as u32;
        let kind = if low & RECEIVE_BIT == 0 { Kind::Send } else { Kind::Receive };
        Tag { number: (wr_id >> 32) as u32, kind, index: low & !RECEIVE_BIT }
    }
}

/// The places of one queue: under which id each outstanding request was posted.
#[derive(Debug)]
pub(super) struct Places {
    depth: u32,
    ids: Box<[AtomicU64]>,
    /// Requests whose place is free again.
    retired: AtomicU32,
}

impl Places {
    pub(super) fn new(depth: u32) -> Self {
        let size = depth.next_power_of_two();
        let ids = (0..size).map(|_| AtomicU64::new(0)).collect();
        Places { depth, ids, retired: AtomicU32::new(0) }
    }

    fn id(&self, index: u32) -> &AtomicU64 {
        &self.ids[index as usize & (self.ids.len() - 1)]
    }

    /// Whether there is room for the request with this index.
    #[inline]
    pub(super) fn check(&self, index: u32) -> Result<()> {
        if index.wrapping_sub(self.retired.load(Ordering::Acquire)) >= self.depth {
            return Err(Error::QueueFull { depth: self.depth });
        }
        Ok(())
    }

    /// Notes the request with this index as `id`, if there is room for it.
    #[inline]
    pub(super) fn note(&self, index: u32, id: u64) -> Result<()> {
        self.check(index)?;
        self.id(index).store(id, Ordering::Relaxed);
        Ok(())
    }

    /// The id of the request that `tag` is of; it and all before it are through. For the poller.
    #[inline]
    pub(super) fn retire(&self, tag: Tag) -> u64 {
        let low = tag.index;
        let id = self.id(low).load(Ordering::Relaxed);
        let retired = self.retired.load(Ordering::Relaxed); // only the poller stores it
        // At most `depth` are outstanding, far less than 2^31: the low bits are enough.
        let ahead = low.wrapping_sub(retired) & !RECEIVE_BIT;
        self.retired.store(retired.wrapping_add(ahead).wrapping_add(1), Ordering::Release);
        id
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tag_survives_the_device() {
        for (number, kind, index) in
            [(1, Kind::Send, 0), (u32::MAX, Kind::Receive, 5), (7, Kind::Send, RECEIVE_BIT | 9)]
        {
            let tag = Tag::from_wr_id(Tag::to_wr_id(number, kind, index));
            assert_eq!((tag.number, tag.kind, tag.index), (number, kind, index & !RECEIVE_BIT));
        }
    }

    proptest! {
        /// From any index on, around the end of the numbers too: a queue takes `depth` requests,
        /// and a completion frees its own place and those before it.
        #[test]
        fn as_many_requests_fit_as_the_queue_is_deep(
            start: u32,
            depth in 1u32..40,
            steps in prop::collection::vec((1u32..50, 0u32..50), 1..40),
        ) {
            let places = Places::new(depth);
            places.retired.store(start, Ordering::Relaxed);
            let (mut posted, mut done) = (start, start);
            for (post, complete) in steps {
                for _ in 0..post {
                    let room = posted.wrapping_sub(done) < depth;
                    prop_assert_eq!(places.note(posted, u64::from(posted)).is_ok(), room);
                    if room {
                        posted = posted.wrapping_add(1);
                    }
                }
                // One completion for all of them: the others were not signaled.
                let outstanding = posted.wrapping_sub(done);
                if complete > 0 && outstanding > 0 {
                    done = done.wrapping_add(complete.min(outstanding));
                    let last = done.wrapping_sub(1);
                    let tag = Tag::from_wr_id(Tag::to_wr_id(1, Kind::Send, last));
                    prop_assert_eq!(places.retire(tag), u64::from(last));
                }
            }
        }
    }
}
