//! The queue pairs that complete into one completion queue, and waking the thread that sleeps on
//! it.
//!
//! Users see the bell, an eventfd that is rung when the queue is armed and a completion lands. A
//! thread in `wait` also sleeps on the sockets themselves, and so needs no other thread.
//!
//! * MEMBERS: `generation` is raised with Release after the list has changed, and loaded with
//!   Acquire by the poller, who then copies the list.
//! * Nothing is slept through: a completion is added under the lock of its queue pair, and the bell
//!   is rung after that if the queue is armed. The sleeper arms, and then looks under that lock.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::epoll::EpollFlags;

use crate::events::Events;
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::types::{Error, Result};

/// What an armed queue is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Arm {
    Never,
    Any,
    Urgent,
}

/// A queue pair, as a completion queue knows it.
pub(super) trait Member {
    fn number(&self) -> u32;
}

/// What queue pairs and wakers know of a completion queue.
#[derive(Debug)]
pub(super) struct Members<M> {
    /// The bell: nothing else is in the set.
    bell: Events,
    /// Where a thread in `wait` sleeps: bell and sockets. Made when one does.
    sleep: OnceLock<Events>,
    armed: AtomicU32,
    is_asleep: AtomicBool,
    generation: AtomicU32,
    list: Mutex<List<M>>,
}

#[derive(Debug)]
struct List<M> {
    all: Vec<Arc<M>>,
    capacity: u32,
    needed: u32,
}

/// Number of the bell among the sockets, which have those of queue pairs.
pub(super) const BELL: u32 = u32::MAX;

impl<M: Member> Members<M> {
    pub(super) fn new(capacity: u32) -> Result<Self> {
        Ok(Members {
            bell: Events::new()?,
            sleep: OnceLock::new(),
            armed: AtomicU32::new(Arm::Never as u32),
            is_asleep: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            list: Mutex::new(List { all: Vec::new(), capacity, needed: 0 }),
        })
    }

    fn list(&self) -> MutexGuard<'_, List<M>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets aside `entries` for a queue of a new queue pair.
    pub(super) fn reserve(&self, entries: u32) -> Result<()> {
        let mut list = self.list();
        let needed = list.needed.saturating_add(entries);
        if needed > list.capacity {
            return Err(Error::CompletionQueueTooSmall { capacity: list.capacity, needed });
        }
        list.needed = needed;
        Ok(())
    }

    /// Gives `entries` back.
    pub(super) fn unreserve(&self, entries: u32) {
        self.list().needed -= entries;
    }

    /// Shows the completions of `core` from now on.
    pub(super) fn attach(&self, core: &Arc<M>) {
        self.list().all.push(core.clone());
        self.changed();
    }

    /// Has the poller, also one that sleeps, read the members again.
    pub(super) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release); // MEMBERS
        if self.is_asleep() {
            self.bell.wake();
        }
    }

    /// Forgets the queue pair; completions that were not polled are lost, as in ibv_destroy_qp(3).
    pub(super) fn detach(&self, number: u32) {
        self.list().all.retain(|core| core.number() != number);
        self.generation.fetch_add(1, Ordering::Release); // MEMBERS
    }

    /// Returns the generation of the list (MEMBERS).
    #[inline]
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns a copy of the list.
    pub(super) fn all(&self) -> Vec<Arc<M>> {
        self.list().all.clone()
    }

    pub(super) fn set_armed(&self, arm: Arm) {
        self.armed.store(arm as u32, Ordering::SeqCst);
    }

    /// Rings the bell, if the queue is armed for such a completion.
    #[inline]
    pub(super) fn notify(&self, is_urgent: bool) {
        let armed = self.armed.load(Ordering::SeqCst);
        if armed == Arm::Any as u32 || (armed == Arm::Urgent as u32 && is_urgent) {
            self.armed.store(Arm::Never as u32, Ordering::SeqCst);
            self.bell.wake();
        }
    }

    /// Ends a sleep.
    pub(super) fn wake(&self) {
        self.bell.wake();
    }

    /// Takes what made the bell readable.
    pub(super) fn take_bell(&self) -> Result<()> {
        self.bell.sleep(Some(std::time::Duration::ZERO), |_| {})
    }

    /// A thread is in `wait`, and serves the sockets itself.
    pub(super) fn set_asleep(&self, is_asleep: bool) {
        self.is_asleep.store(is_asleep, Ordering::SeqCst);
    }

    pub(super) fn is_asleep(&self) -> bool {
        self.is_asleep.load(Ordering::SeqCst)
    }

    /// Where a thread in `wait` sleeps.
    pub(super) fn sleep(&self) -> Result<&Events> {
        if let Some(sleep) = self.sleep.get() {
            return Ok(sleep);
        }
        let sleep = Events::new()?;
        sleep.add(&self.bell, BELL, EpollFlags::EPOLLIN)?;
        Ok(self.sleep.get_or_init(|| sleep))
    }

    /// Forgets a socket, which ends.
    pub(super) fn forget(&self, socket: impl AsFd) {
        if let Some(sleep) = self.sleep.get() {
            sleep.remove(socket);
        }
    }

    /// Readable when the bell was rung.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
