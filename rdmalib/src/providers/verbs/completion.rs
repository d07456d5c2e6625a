//! Completion queues: the device's, and from which queue pair and request each completion comes.
//!
//! A request carries in its `wr_id` the queue pair's number and its index ([`Tag`]), the only
//! fields that a failed completion is sure to have (ibv_poll_cq(3)).
//!
//! Elsewhere: which queue pairs there are, and sleeping (`members`).

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::bindings::types::*;
use super::core::Core;
use super::members::SharedQueue;
use super::objects::Context;
use super::places::{Kind, Tag};
use super::status;
use crate::contract;
use crate::types::{Notify, Result, Status, WorkCompletion};

/// Completions taken from the device at once.
const BATCH: usize = 16;

/// Ends a wait from another thread.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<SharedQueue<Core>>);

impl contract::Waker for Waker {
    fn wake(&self) {
        self.0.wake();
    }
}

/// The poller's end.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    shared: Arc<SharedQueue<Core>>,
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
        Ok(CompletionQueue {
            shared: Arc::new(SharedQueue::new(context, capacity, most)?),
            cores: Vec::new(),
            seen: 0,
            last: 0,
            early: VecDeque::new(),
            batch: Batch::default(),
        })
    }

    pub(super) fn shared(&self) -> &Arc<SharedQueue<Core>> {
        &self.shared
    }

    /// Brings `cores` up to date with the members.
    #[inline]
    fn follow(&mut self) {
        let generation = self.shared.generation(); // MEMBERS
        if generation != self.seen {
            self.seen = generation;
            self.refresh();
        }
    }

    #[cold]
    fn refresh(&mut self) {
        self.cores = self.shared.all();
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
}

impl contract::CompletionQueue for CompletionQueue {
    type Waker = Waker;

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
            let leaving = self.shared.leaving();
            let found = match self.shared.raw().poll(&mut self.batch.0[..room]) {
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
                    self.shared.left(leaving);
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
        self.shared.raw().request_event(notify == Notify::Solicited)
    }

    fn acknowledge(&mut self) -> Result<()> {
        self.shared.take_events(Some(Duration::ZERO))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.arm(Notify::Any)?;
        // Look again: one that landed before `arm` rang no bell, and we would sleep on it.
        let mut found = [WorkCompletion::default()];
        let waiting = !self.early.is_empty();
        if !waiting && self.poll(&mut found) == 0 {
            return self.shared.take_events(timeout);
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
        self.shared.as_fd()
    }
}
