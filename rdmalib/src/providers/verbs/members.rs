//! The queue pairs that complete into one completion queue, and waking the thread that sleeps on
//! it: one epoll set with the device's channel of events and an eventfd for what happens in this
//! process.
//!
//! * MEMBERS: `generation` is raised with Release after the list has changed, and loaded with
//!   Acquire by the poller after it took completions: a queue pair that posted was a member before.
//! * Drivers may leave the completions of a destroyed queue pair in the queue (ibv_destroy_qp(3)
//!   does not say). They take room until the poller has once found the queue empty (`leaving`). The
//!   device's queue is twice as large as asked for, so that this room is seldom missed.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::epoll::EpollFlags;

use super::objects::{Context, RawCompletionQueue};
use crate::events::Events;
use crate::sync::{AtomicU32, Ordering};
use crate::types::{Error, Result};

/// Number of the device's channel in the epoll set.
const CHANNEL: u32 = 0;

/// A queue pair, as a completion queue knows it.
pub(super) trait Member {
    fn number(&self) -> u32;
}

/// What queue pairs and wakers know of a completion queue.
#[derive(Debug)]
pub(super) struct SharedQueue<M> {
    events: Events,
    raw: Arc<RawCompletionQueue>,
    device_capacity: u32,
    generation: AtomicU32,
    leaving: AtomicU32,
    members: Mutex<Members<M>>,
}

#[derive(Debug)]
struct Members<M> {
    all: Vec<Arc<M>>,
    capacity: u32,
    needed: u32,
}

impl<M: Member> SharedQueue<M> {
    /// For `capacity` entries; `most`: entries that the device can have in one queue.
    pub(super) fn new(context: &Arc<Context>, capacity: u32, most: u32) -> Result<Self> {
        let device_capacity = capacity.saturating_mul(2).min(most); // see the top
        let raw = Arc::new(RawCompletionQueue::new(context, device_capacity as i32)?);
        let events = Events::new()?;
        events.add(raw.fd(), CHANNEL, EpollFlags::EPOLLIN)?;
        let members = Mutex::new(Members { all: Vec::new(), capacity, needed: 0 });
        let (generation, leaving) = (AtomicU32::new(0), AtomicU32::new(0));
        Ok(SharedQueue { events, raw, device_capacity, generation, leaving, members })
    }

    fn members(&self) -> MutexGuard<'_, Members<M>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn raw(&self) -> &Arc<RawCompletionQueue> {
        &self.raw
    }

    /// Recognises the completions of `member` from now on.
    pub(super) fn attach(&self, member: &Arc<M>) {
        self.members().all.push(member.clone());
        self.generation.fetch_add(1, Ordering::Release); // MEMBERS
    }

    /// Forgets the queue pair; completions that were not polled are lost.
    pub(super) fn detach(&self, member: &M) {
        self.members().all.retain(|other| other.number() != member.number());
        self.generation.fetch_add(1, Ordering::Release); // MEMBERS
    }

    /// Returns the generation of the list (MEMBERS).
    #[inline]
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire) // MEMBERS
    }

    /// Returns a copy of the list.
    pub(super) fn all(&self) -> Vec<Arc<M>> {
        self.members().all.clone()
    }

    /// Returns how many entries completions of destroyed queue pairs may take.
    #[inline]
    pub(super) fn leaving(&self) -> u32 {
        self.leaving.load(Ordering::Acquire)
    }

    /// The device's queue was found empty after `leaving` was returned: so many have left.
    pub(super) fn left(&self, leaving: u32) {
        self.leaving.fetch_sub(leaving, Ordering::Release);
    }

    /// Ends a wait.
    pub(super) fn wake(&self) {
        self.events.wake();
    }

    /// Sleeps until there is an event, at most for `timeout`, and takes it.
    pub(super) fn take_events(&self, timeout: Option<Duration>) -> Result<()> {
        // The one number there is: the device's channel.
        self.events.sleep(timeout, |_| self.raw.take_events())
    }

    /// Readable when there is an event.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Places in a completion queue, set aside for a queue of a queue pair.
#[derive(Debug)]
pub(super) struct Reservation<M: Member> {
    queue: Arc<SharedQueue<M>>,
    entries: u32,
}

impl<M: Member> Reservation<M> {
    pub(super) fn new(queue: &Arc<SharedQueue<M>>, entries: u32) -> Result<Self> {
        let mut members = queue.members();
        let needed = members.needed.saturating_add(entries);
        let occupied = needed.saturating_add(queue.leaving());
        let capacity = members.capacity;
        if needed > capacity || occupied > queue.device_capacity {
            return Err(Error::CompletionQueueTooSmall { capacity, needed });
        }
        members.needed = needed;
        Ok(Reservation { queue: queue.clone(), entries })
    }
}

impl<M: Member> Drop for Reservation<M> {
    fn drop(&mut self) {
        self.queue.members().needed -= self.entries;
        self.queue.leaving.fetch_add(self.entries, Ordering::Release);
    }
}
