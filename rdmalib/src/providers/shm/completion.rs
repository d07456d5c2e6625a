//! Completion queues of the embedded device: no memory of their own, but a list of the queue pairs
//! whose arrivals and finished sends they show.
//!
//! Sleeping uses one epoll set, the descriptor that users see: the sockets of all connected queue
//! pairs (a peer sends a byte when it finds `ARMED` set, and its end is seen there too) and one
//! eventfd for what happens in this process. Nothing a peer does to its socket can block us: we only
//! use it with MSG_DONTWAIT.
//!
//! * MEMBERS - `generation` is raised with Release after the list has changed, loaded with Acquire by
//!   the poller, who then copies the list.
//! * LOCAL WAKE - as WAKE (`rdmalib_ring`), for completions that this process makes itself.
//! * NAP - who spins says so once (`stay_awake`) and spares its peers a fence (AWAKE in `rdmalib_ring`). A peer that has
//!   not seen that this was taken back rings no bell, so the sleep after that is a short one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::epoll::EpollFlags;

use super::Shm;
use super::core::{Core, Source};
use crate::contract;
use crate::events::Events;
use crate::sync::{AtomicU32, Ordering, fence};
use crate::types::{Error, Notify, Result, WorkCompletion};
use rdmalib_ring::Arm;

/// The sleep after having been awake. What a processor has stored, others see within microseconds: it is
/// written out in order, whatever else the processor does, also when it is interrupted.
const NAP: Duration = Duration::from_millis(1);

/// What queue pairs and wakers know of a completion queue.
#[derive(Debug)]
pub(crate) struct Shared {
    events: Events,
    armed: AtomicU32,
    generation: AtomicU32,
    members: Mutex<Members>,
}

#[derive(Debug)]
struct Members {
    cores: Vec<Arc<Core>>,
    capacity: u32,
    needed: u32,
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets aside `entries` for a queue of a new queue pair.
    pub(crate) fn reserve(&self, entries: u32) -> Result<()> {
        let mut members = self.members();
        let needed = members.needed.saturating_add(entries);
        if needed > members.capacity {
            return Err(Error::CompletionQueueTooSmall { capacity: members.capacity, needed });
        }
        members.needed = needed;
        Ok(())
    }

    /// Gives `entries` back.
    pub(crate) fn unreserve(&self, entries: u32) {
        self.members().needed -= entries;
    }

    /// Shows the completions of `core` from now on.
    pub(crate) fn attach(&self, core: &Arc<Core>) {
        self.members().cores.push(core.clone());
        self.changed();
    }

    /// Has the poller look at its members anew; a sleeper too.
    pub(crate) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release); // MEMBERS
        self.notify(true);
    }

    /// Forgets the queue pair; completions that were not polled are lost, as in ibv_destroy_qp(3).
    pub(crate) fn detach(&self, core: &Core) {
        self.members().cores.retain(|member| member.number() != core.number());
        self.generation.fetch_add(1, Ordering::Release); // MEMBERS
    }

    /// Lets a connected queue pair's socket wake the sleeper.
    pub(crate) fn watch(&self, core: &Core, socket: impl AsFd) -> Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        self.events.add(socket, core.number(), flags)
    }

    /// Stops doing so; without effect if it was not watched.
    pub(crate) fn unwatch(&self, socket: impl AsFd) {
        self.events.remove(socket);
    }

    /// Tells a sleeper, if there is one, that a completion was made in this process.
    #[inline]
    pub(crate) fn notify(&self, solicited_or_error: bool) {
        fence(Ordering::SeqCst); // LOCAL WAKE
        let armed = self.armed.load(Ordering::Relaxed);
        if armed == Arm::Any as u32 || (armed == Arm::Solicited as u32 && solicited_or_error) {
            self.armed.store(Arm::Never as u32, Ordering::Relaxed);
            self.events.wake();
        }
    }
}

/// Ends a wait from another thread.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<Shared>);

impl contract::Waker for Waker {
    fn wake(&self) {
        self.0.events.wake();
    }
}

/// The poller's end.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    shared: Arc<Shared>,
    sources: Vec<Source>,
    seen: u32,
    /// Peers were told that nobody sleeps here (NAP).
    awake: bool,
    /// Where the next poll starts, so that a busy queue pair does not starve the others.
    next: usize,
}

impl CompletionQueue {
    pub(crate) fn new(capacity: u32) -> Result<Self> {
        let shared = Arc::new(Shared {
            events: Events::new()?,
            armed: AtomicU32::new(Arm::Never as u32),
            generation: AtomicU32::new(0),
            members: Mutex::new(Members { cores: Vec::new(), capacity, needed: 0 }),
        });
        Ok(CompletionQueue { shared, sources: Vec::new(), seen: 0, awake: false, next: 0 })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn poll_all(&mut self, out: &mut [WorkCompletion]) -> usize {
        let mut taken = 0;
        for _ in 0..self.sources.len() {
            if taken == out.len() {
                break;
            }
            if self.next >= self.sources.len() {
                self.next = 0;
            }
            taken += self.sources[self.next].poll(&mut out[taken..]);
            self.next += 1;
        }
        taken
    }

    /// Brings `sources` up to date with the members.
    #[inline]
    fn follow(&mut self) {
        let generation = self.shared.generation.load(Ordering::Acquire); // MEMBERS
        if generation != self.seen {
            self.seen = generation;
            self.refresh();
        }
    }

    #[cold]
    fn refresh(&mut self) {
        let members = self.shared.members();
        self.sources.retain(|source| {
            members.cores.iter().any(|core| core.number() == source.core().number())
        });
        for core in &members.cores {
            if !self.sources.iter().any(|s| s.core().number() == core.number()) {
                let source = Source::new(core.clone(), &self.shared);
                source.stay_awake(self.awake);
                self.sources.push(source);
            }
        }
        let alone = self.sources.len() == 1;
        self.sources.iter_mut().for_each(|source| source.connect(alone));
    }

    /// [`ArrivalTaker::places_used`](rdmalib_ring::ArrivalTaker::places_used) of the queue pair `number`.
    #[cfg(test)]
    pub(super) fn places_used(&self, number: u32) -> u32 {
        self.sources.iter().find(|s| s.core().number() == number).map_or(0, Source::places_used)
    }

    #[cold]
    fn set_awake(&mut self, awake: bool) {
        self.awake = awake;
        self.sources.iter().for_each(|source| source.stay_awake(awake));
        fence(Ordering::SeqCst); // NAP: it counts from now
    }

    fn set_armed(&self, arm: Arm) {
        self.shared.armed.store(arm as u32, Ordering::Relaxed);
        self.sources.iter().for_each(|source| source.arm(arm));
        fence(Ordering::SeqCst); // LOCAL WAKE
    }

    fn ready(&mut self) -> bool {
        self.follow();
        self.sources.iter_mut().any(Source::ready)
    }

    fn take_events(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.shared.events.sleep(timeout, |number| {
            if let Some(core) = self.member(number) {
                core.take_doorbells();
            }
        })
    }

    fn member(&self, number: u32) -> Option<Arc<Core>> {
        let members = self.shared.members();
        members.cores.iter().find(|core| core.number() == number).cloned()
    }
}

impl contract::CompletionQueue<Shm> for CompletionQueue {
    #[inline]
    fn poll(&mut self, out: &mut [WorkCompletion]) -> usize {
        self.follow();
        match self.sources.as_mut_slice() {
            [only] => only.poll(out),
            _ => self.poll_all(out),
        }
    }

    #[inline]
    fn stay_awake(&mut self) {
        if !self.awake {
            self.set_awake(true);
        }
    }

    fn arm(&mut self, notify: Notify) -> Result<()> {
        self.follow();
        if self.awake {
            self.set_awake(false);
            std::thread::sleep(NAP);
        }
        let arm = match notify {
            Notify::Any => Arm::Any,
            Notify::Solicited => Arm::Solicited,
        };
        self.set_armed(arm);
        Ok(())
    }

    fn acknowledge(&mut self) -> Result<()> {
        self.take_events(Some(Duration::ZERO))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.follow();
        let mut timeout = timeout;
        if self.awake {
            self.set_awake(false);
            timeout = Some(timeout.map_or(NAP, |timeout| timeout.min(NAP)));
        }
        self.set_armed(Arm::Any);
        // Look again: one that landed before `arm` rang no bell, and we would sleep on it.
        let result = if self.ready() { Ok(()) } else { self.take_events(timeout) };
        self.set_armed(Arm::Never);
        result
    }

    fn waker(&self) -> Waker {
        Waker(self.shared.clone())
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.events.as_fd()
    }
}
