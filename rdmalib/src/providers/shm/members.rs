//! The queue pairs that complete into one completion queue, and waking the thread that sleeps on
//! it.
//!
//! Sleeping uses one epoll set, the descriptor that users see: the sockets of all connected queue
//! pairs (a peer sends a byte when it finds `ARMED` set, and its end is seen there too) and one
//! eventfd for what happens in this process. Nothing a peer does to its socket can block us: we
//! only use it with MSG_DONTWAIT.
//!
//! * MEMBERS: `generation` is raised with Release after the list has changed, and loaded with
//!   Acquire by the poller, who then copies the list.
//! * LOCAL WAKE: as WAKE (`rdmalib_ring`), for completions that this process makes itself.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use rdmalib_ring::Arm;

use crate::events::Events;
use crate::sync::{AtomicU32, Ordering, fence};
use crate::types::{Error, Result};

/// A queue pair, as a completion queue knows it.
pub(crate) trait Member {
    fn number(&self) -> u32;

    /// Takes the bytes that a peer woke us with; sees its end.
    fn take_doorbells(&self);
}

/// What queue pairs and wakers know of a completion queue.
#[derive(Debug)]
pub(crate) struct QueueMembers<M> {
    events: Events,
    armed: AtomicU32,
    generation: AtomicU32,
    members: Mutex<Members<M>>,
}

#[derive(Debug)]
struct Members<M> {
    all: Vec<Arc<M>>,
    capacity: u32,
    needed: u32,
}

impl<M: Member> QueueMembers<M> {
    pub(super) fn new(capacity: u32) -> Result<Self> {
        Ok(QueueMembers {
            events: Events::new()?,
            armed: AtomicU32::new(Arm::Never as u32),
            generation: AtomicU32::new(0),
            members: Mutex::new(Members { all: Vec::new(), capacity, needed: 0 }),
        })
    }

    fn members(&self) -> MutexGuard<'_, Members<M>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets aside `entries` for a queue of a new queue pair.
    pub(super) fn reserve(&self, entries: u32) -> Result<()> {
        let mut members = self.members();
        let needed = members.needed.saturating_add(entries);
        if needed > members.capacity {
            return Err(Error::CompletionQueueTooSmall { capacity: members.capacity, needed });
        }
        members.needed = needed;
        Ok(())
    }

    /// Gives `entries` back.
    pub(super) fn unreserve(&self, entries: u32) {
        self.members().needed -= entries;
    }

    /// Shows the completions of `member` from now on.
    pub(super) fn attach(&self, member: &Arc<M>) {
        self.members().all.push(member.clone());
        self.changed();
    }

    /// Has the poller, also one that sleeps, read the members again.
    pub(super) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release); // MEMBERS
        self.notify(true);
    }

    /// Forgets the queue pair; completions that were not polled are lost, as in ibv_destroy_qp(3).
    pub(super) fn detach(&self, member: &M) {
        self.members().all.retain(|other| other.number() != member.number());
        self.generation.fetch_add(1, Ordering::Release); // MEMBERS
    }

    /// Lets a connected queue pair's socket wake the sleeper.
    pub(super) fn watch(&self, member: &M, socket: impl AsFd) -> Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        self.events.add(socket, member.number(), flags)
    }

    /// Stops doing so; without effect if it was not watched.
    pub(super) fn unwatch(&self, socket: impl AsFd) {
        self.events.remove(socket);
    }

    /// Tells a sleeper, if there is one, that a completion was made in this process.
    #[inline]
    pub(super) fn notify(&self, solicited_or_error: bool) {
        fence(Ordering::SeqCst); // LOCAL WAKE
        let armed = self.armed.load(Ordering::Relaxed);
        if armed == Arm::Any as u32 || (armed == Arm::Solicited as u32 && solicited_or_error) {
            self.armed.store(Arm::Never as u32, Ordering::Relaxed);
            self.events.wake();
        }
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

    /// Sets which completions of this process wake a sleeper. To be followed by a
    /// fence (LOCAL WAKE).
    pub(super) fn set_armed(&self, arm: Arm) {
        self.armed.store(arm as u32, Ordering::Relaxed);
    }

    /// Ends a sleep.
    pub(super) fn wake(&self) {
        self.events.wake();
    }

    /// Sleeps until there is an event, at most for `timeout`, and has members take their doorbells.
    pub(super) fn take_events(&self, timeout: Option<Duration>) -> Result<()> {
        self.events.sleep(timeout, |number| {
            let member = self.members().all.iter().find(|m| m.number() == number).cloned();
            if let Some(member) = member {
                member.take_doorbells();
            }
        })
    }

    /// Readable when there is an event.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}
