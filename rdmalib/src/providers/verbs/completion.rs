//! Completion queues: the device's, and from which queue pair and request each completion comes.
//!
//! A request carries in its `wr_id` the queue pair's number and its index ([`Tag`]), the only
//! fields that a failed completion is sure to have (ibv_poll_cq(3)). Sleeping uses one epoll set:
//! the device's channel of events and an eventfd for what happens in this process.
//!
//! * MEMBERS: `generation` is raised with Release after the list has changed, and loaded with
//!   Acquire by the poller after it took completions: a queue pair that posted was a member before.
//! * Drivers may leave the completions of a destroyed queue pair in the queue (ibv_destroy_qp(3)
//!   does not say). They take room until the poller has once found the queue empty (`leaving`). The
//!   device's queue is twice as large as asked for, so that this room is seldom missed.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::epoll::EpollFlags;

use super::Verbs;
use super::bindings::types::*;
use super::core::Core;
use super::objects::{Context, RawCompletionQueue};
use super::places::{Kind, Tag};
use super::status;
use crate::contract;
use crate::events::Events;
use crate::sync::{AtomicU32, Ordering};
use crate::types::{Error, Notify, Result, Status, WorkCompletion};

/// Number of the device's channel in the epoll set.
const CHANNEL: u32 = 0;
/// Completions taken from the device at once.
const BATCH: usize = 16;

/// What queue pairs and wakers know of a completion queue.
#[derive(Debug)]
pub(super) struct SharedQueue {
    events: Events,
    raw: Arc<RawCompletionQueue>,
    device_capacity: u32,
    generation: AtomicU32,
    leaving: AtomicU32,
    members: Mutex<Members>,
}

#[derive(Debug)]
struct Members {
    cores: Vec<Arc<Core>>,
    capacity: u32,
    needed: u32,
}

impl SharedQueue {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn raw(&self) -> &Arc<RawCompletionQueue> {
        &self.raw
    }

    /// Recognises the completions of `core` from now on.
    pub(super) fn attach(&self, core: &Arc<Core>) {
        self.members().cores.push(core.clone());
        self.generation.fetch_add(1, Ordering::Release); // MEMBERS
    }

    /// Forgets the queue pair; completions that were not polled are lost.
    pub(super) fn detach(&self, core: &Core) {
        self.members().cores.retain(|member| member.number() != core.number());
        self.generation.fetch_add(1, Ordering::Release); // MEMBERS
    }

    /// Ends a wait.
    pub(super) fn wake(&self) {
        self.events.wake();
    }
}

/// Places in a completion queue, set aside for a queue of a queue pair.
#[derive(Debug)]
pub(super) struct Reservation {
    queue: Arc<SharedQueue>,
    entries: u32,
}

impl Reservation {
    pub(super) fn new(queue: &Arc<SharedQueue>, entries: u32) -> Result<Self> {
        let mut members = queue.members();
        let needed = members.needed.saturating_add(entries);
        let occupied = needed.saturating_add(queue.leaving.load(Ordering::Acquire));
        let capacity = members.capacity;
        if needed > capacity || occupied > queue.device_capacity {
            return Err(Error::CompletionQueueTooSmall { capacity, needed });
        }
        members.needed = needed;
        Ok(Reservation { queue: queue.clone(), entries })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.queue.members().needed -= self.entries;
        self.queue.leaving.fetch_add(self.entries, Ordering::Release);
    }
}

/// Ends a wait from another thread.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<SharedQueue>);

impl contract::Waker for Waker {
    fn wake(&self) {
        self.0.wake();
    }
}

/// The poller's end.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    shared: Arc<SharedQueue>,
    /// The members, by number.
    cores: Vec<Arc<Core>>,
    seen: u32,
    /// Where the last completion's queue pair was found: often the next one's too.
    last: usize,
    /// Completions that were taken from the device while looking whether there are any.
    early: VecDeque<WorkCompletion>,
    batch: Batch,
}

/// Room for what the device hands out.
#[derive(Default)]
struct Batch(Box<[ibv_wc; BATCH]>);

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({BATCH})")
    }
}

impl CompletionQueue {
    /// `most`: entries that the device can have in one queue.
    pub(super) fn new(context: &Arc<Context>, capacity: u32, most: u32) -> Result<Self> {
        let device_capacity = capacity.saturating_mul(2).min(most); // see the top
        let raw = Arc::new(RawCompletionQueue::new(context, device_capacity as i32)?);
        let events = Events::new()?;
        events.add(raw.fd(), CHANNEL, EpollFlags::EPOLLIN)?;
        let members = Mutex::new(Members { cores: Vec::new(), capacity, needed: 0 });
        let (generation, leaving) = (AtomicU32::new(0), AtomicU32::new(0));
        Ok(CompletionQueue {
            shared: Arc::new(SharedQueue {
                events,
                raw,
                device_capacity,
                generation,
                leaving,
                members,
            }),
            cores: Vec::new(),
            seen: 0,
            last: 0,
            early: VecDeque::new(),
            batch: Batch::default(),
        })
    }

    pub(super) fn shared(&self) -> &Arc<SharedQueue> {
        &self.shared
    }

    /// Brings `cores` up to date with the members.
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
        self.cores.clone_from(&self.shared.members().cores);
        self.cores.sort_unstable_by_key(|core| core.number());
    }

    /// Whose it is, or `None` if its queue pair is gone.
    #[inline]
    fn recognise(&mut self, entry: &ibv_wc) -> Option<WorkCompletion> {
        let tag = Tag::from_wr_id(entry.wr_id);
        if self.cores.get(self.last).is_none_or(|core| core.number() != tag.number) {
            self.last = self.cores.binary_search_by_key(&tag.number, |core| core.number()).ok()?;
        }
        let core = &*self.cores[self.last];
        let status = status::of(entry.status);
        let mut completion = WorkCompletion {
            id: core.retire(tag),
            status,
            opcode: status::opcode(entry.opcode, tag.kind == Kind::Receive),
            queue_pair: tag.number,
            ..WorkCompletion::default()
        };
        if status != Status::Success {
            core.request_failed(tag.kind, status);
        } else if tag.kind == Kind::Receive {
            completion.bytes = entry.byte_len;
            completion.immediate = status::immediate(entry);
        }
        Some(completion)
    }

    /// The device cannot go on with this queue, and so no queue pair that completes into it can.
    #[cold]
    fn broken(&mut self) -> usize {
        self.follow();
        if self.cores.iter().any(|core| !core.has_failed()) {
            tracing::error!("ibv_poll_cq failed; the connections of this completion queue end");
        }
        self.cores.iter().for_each(|core| core.disconnect());
        0
    }

    fn take_events(&mut self, timeout: Option<Duration>) -> Result<()> {
        // The one number there is: the device's channel.
        self.shared.events.sleep(timeout, |_| self.shared.raw.take_events())
    }
}

impl contract::CompletionQueue<Verbs> for CompletionQueue {
    #[inline]
    fn poll(&mut self, out: &mut [WorkCompletion]) -> usize {
        let mut taken = 0;
        while taken < out.len() {
            let Some(completion) = self.early.pop_front() else { break };
            out[taken] = completion;
            taken += 1;
        }
        while taken < out.len() {
            let room = (out.len() - taken).min(BATCH);
            let leaving = self.shared.leaving.load(Ordering::Acquire);
            let found = match self.shared.raw.poll(&mut self.batch.0[..room]) {
                Some(found) => found,
                None => self.broken(),
            };
            if found > 0 {
                self.follow();
            }
            for index in 0..found {
                let entry = self.batch.0[index];
                if let Some(completion) = self.recognise(&entry) {
                    out[taken] = completion;
                    taken += 1;
                }
            }
            if found < room {
                if leaving > 0 {
                    self.shared.leaving.fetch_sub(leaving, Ordering::Release);
                }
                break;
            }
        }
        taken
    }

    /// A card needs no thread to be awake.
    #[inline]
    fn stay_awake(&mut self) {}

    fn arm(&mut self, notify: Notify) -> Result<()> {
        self.shared.raw.request_event(notify == Notify::Solicited)
    }

    fn acknowledge(&mut self) -> Result<()> {
        self.take_events(Some(Duration::ZERO))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.arm(Notify::Any)?;
        // Look again: one that landed before `arm` rang no bell, and we would sleep on it.
        let mut found = [WorkCompletion::default()];
        let waiting = !self.early.is_empty();
        if !waiting && self.poll(&mut found) == 0 {
            return self.take_events(timeout);
        }
        if !waiting {
            self.early.push_back(found[0]);
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        Waker(self.shared.clone())
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.events.as_fd()
    }
}
