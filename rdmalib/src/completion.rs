//! Completion queues: where finished work requests of one or several queue pairs are found, by
//! spinning ([`CompletionQueue::poll`]) or asleep ([`CompletionQueue::wait`]).
//!
//! Sleeping is arm, look again, sleep: a completion that lands before `arm` rings no bell.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::device::{Device, Inner};
use crate::error::Result;
use crate::process::Owned;
use crate::{shm, verbs};

/// How a work request ended; names follow `enum ibv_wc_status`, `ibv_poll_cq(3)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// Carried out.
    #[default]
    Success,
    /// A message was longer than the receive buffer it went to.
    LocalLengthError,
    /// The local region does not allow it, or was freed.
    LocalProtectionError,
    /// The queue pair went into the error state before this request was carried out: the peer
    /// disconnected or died, or an earlier request failed.
    Flushed,
    /// The peer could not take the request (a message longer than its buffer).
    RemoteInvalidRequest,
    /// The remote key, range or access right was refused.
    RemoteAccessError,
    /// The peer failed while carrying it out.
    RemoteOperationError,
    /// The peer did not answer.
    RetryExceeded,
    /// The peer had posted no receive, as often as the queue pair was told to try.
    RnrRetryExceeded,
    /// Any other failure, with the provider's number.
    Other(u32),
}

/// What a completion completes; `enum ibv_wc_opcode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// A send of ours.
    #[default]
    Send,
    /// A write of ours, with or without immediate data.
    Write,
    /// A read of ours.
    Read,
    /// A fetch-add of ours.
    FetchAdd,
    /// A compare-swap of ours.
    CompareSwap,
    /// A posted receive took a peer's send.
    Receive,
    /// A posted receive was used up by a peer's write with immediate data.
    ReceiveWithImmediate,
}

/// One finished work request. With a [`Status`] other than success only `id`, `status` and
/// `queue_pair` mean something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkCompletion {
    /// The `id` that the request was posted with.
    pub id: u64,
    /// How it ended.
    pub status: Status,
    /// What it was.
    pub opcode: Opcode,
    /// Receives: bytes that the peer sent or wrote.
    pub bytes: u32,
    /// Receives: immediate data, in host byte order, if the peer sent any.
    pub immediate: Option<u32>,
    /// Number of the queue pair; [`QueuePair::number`](crate::QueuePair::number).
    pub queue_pair: u32,
}

/// Which completions ring the bell; `ibv_req_notify_cq(3)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// The next one.
    Any,
    /// The next receive whose sender set [`Flags::SOLICITED`](crate::Flags::SOLICITED), or the next
    /// error.
    Solicited,
}

/// Wakes whoever waits on a completion queue, from any thread; for shutdown.
#[derive(Clone)]
pub struct Waker(Owned<WakerInner>);

#[derive(Clone, Debug)]
pub(crate) enum WakerInner {
    Shm(shm::Waker),
    Verbs(verbs::Waker),
}

impl Waker {
    /// Makes the queue's descriptor readable: a wait under way returns, else the next one does.
    pub fn wake(&self) {
        if !self.0.is_ours() {
            return;
        }
        match &*self.0 {
            WakerInner::Shm(waker) => waker.wake(),
            WakerInner::Verbs(waker) => waker.wake(),
        }
    }
}

/// A completion queue. One poller at a time, checked at compile time: polling takes `&mut self`.
pub struct CompletionQueue {
    pub(crate) inner: Owned<CompletionQueueInner>,
}

#[derive(Debug)]
pub(crate) enum CompletionQueueInner {
    Shm(shm::CompletionQueue),
    Verbs(verbs::CompletionQueue),
}

impl CompletionQueue {
    pub(crate) fn new(device: &Device, capacity: u32) -> Result<Self> {
        device.inner.check()?;
        let inner = match &*device.inner {
            Inner::Shm(device) => CompletionQueueInner::Shm(device.completion_queue(capacity)?),
            Inner::Verbs(device) => CompletionQueueInner::Verbs(device.completion_queue(capacity)?),
        };
        Ok(CompletionQueue { inner: Owned::new(inner) })
    }

    /// Takes up to `out.len()` completions, returns how many. Never waits, makes no system call.
    #[inline]
    pub fn poll(&mut self, out: &mut [WorkCompletion]) -> usize {
        if !self.inner.is_ours() {
            return 0;
        }
        match &mut *self.inner {
            CompletionQueueInner::Shm(queue) => queue.poll(out),
            CompletionQueueInner::Verbs(queue) => queue.poll(out),
        }
    }

    /// Takes one completion, if there is one.
    #[inline]
    pub fn poll_one(&mut self) -> Option<WorkCompletion> {
        let mut one = [WorkCompletion::default()];
        (self.poll(&mut one) == 1).then_some(one[0])
    }

    /// Says that polls follow, and no wait for the time being: a peer on the embedded device then need not look
    /// whether somebody sleeps here. The first wait after that is short, and the first
    /// [`arm`](Self::arm) takes a millisecond. Costs nothing if it has been said already.
    #[inline]
    pub fn stay_awake(&mut self) {
        if !self.inner.is_ours() {
            return;
        }
        match &mut *self.inner {
            CompletionQueueInner::Shm(queue) => queue.stay_awake(),
            CompletionQueueInner::Verbs(_) => {}
        }
    }

    /// Asks for one event on [`as_fd`](AsFd::as_fd) when the next completion lands. Completions that
    /// landed before need not be announced: after arming, poll once more before sleeping.
    pub fn arm(&mut self, notify: Notify) -> Result<()> {
        self.inner.check()?;
        match &mut *self.inner {
            CompletionQueueInner::Shm(queue) => queue.arm(notify),
            CompletionQueueInner::Verbs(queue) => queue.arm(notify),
        }
    }

    /// Consumes the events that made the descriptor readable; does not wait. To be called after
    /// the descriptor was readable, before arming again.
    pub fn acknowledge(&mut self) -> Result<()> {
        self.inner.check()?;
        match &mut *self.inner {
            CompletionQueueInner::Shm(queue) => queue.acknowledge(),
            CompletionQueueInner::Verbs(queue) => queue.acknowledge(),
        }
    }

    /// Sleeps until a completion may be there, [`Waker::wake`] was called, or `timeout` has passed
    /// (`None`: no limit). Arms, looks again and acknowledges by itself. A return is a reason to
    /// poll, not a promise that a completion is there.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.inner.check()?;
        match &mut *self.inner {
            CompletionQueueInner::Shm(queue) => queue.wait(timeout),
            CompletionQueueInner::Verbs(queue) => queue.wait(timeout),
        }
    }

    /// A handle that ends a wait from another thread.
    pub fn waker(&self) -> Waker {
        let waker = match &*self.inner {
            CompletionQueueInner::Shm(queue) => WakerInner::Shm(queue.waker()),
            CompletionQueueInner::Verbs(queue) => WakerInner::Verbs(queue.waker()),
        };
        Waker(self.inner.also(waker))
    }
}

/// Readable when an armed queue has an event: for `poll(2)`, `epoll(7)` or an async runtime.
impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &*self.inner {
            CompletionQueueInner::Shm(queue) => queue.as_fd(),
            CompletionQueueInner::Verbs(queue) => queue.as_fd(),
        }
    }
}
