//! Completion queues: finished work requests of one or several queue pairs, taken by spinning
//! ([`CompletionQueue::poll`]) or asleep ([`CompletionQueue::wait`]).
//!
//! To sleep without `wait`: arm, poll again, sleep. A completion that lands before
//! [`arm`](CompletionQueue::arm) makes nothing readable.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::contract::{CompletionQueue as _, Waker as _};
use crate::process::Owned;
use crate::providers::{AnyCompletionQueue, AnyWaker, each, each_into};
use crate::types::{Notify, Result, WorkCompletion};

/// Ends a wait on a completion queue from any thread, for example for a shutdown
/// ([`CompletionQueue::waker`]). It keeps what it needs alive.
#[derive(Clone)]
pub struct Waker(Owned<AnyWaker>);

impl Waker {
    /// Makes the queue's descriptor readable: a wait under way returns, or else the next one does
    /// at once. Several calls before a wait count as one.
    pub fn wake(&self) {
        if self.0.is_ours() {
            each!(&*self.0, waker => waker.wake());
        }
    }
}

/// A completion queue: finished requests of one or several queue pairs.
///
/// A thread spins on [`poll`](Self::poll) or sleeps in [`wait`](Self::wait). To sleep on something
/// of its own (`poll(2)`, `epoll(7)`, an async runtime) it uses the descriptor
/// ([`AsFd`](#impl-AsFd-for-CompletionQueue)), in this order:
/// 1. [`arm`](Self::arm);
/// 2. [`poll`](Self::poll) until there is nothing: what landed before `arm` makes nothing readable;
/// 3. sleep until the descriptor is readable;
/// 4. [`acknowledge`](Self::acknowledge), and begin again.
///
/// Readable is a reason to poll, not a promise that a completion is there.
///
/// There is one poller at a time, checked at compile time: polling takes `&mut self`.
/// ```compile_fail,E0499
/// # use rdmalib::*;
/// fn two_pollers(queue: &mut CompletionQueue) {
///     std::thread::scope(|scope| {
///         scope.spawn(|| queue.poll_one());
///         scope.spawn(|| queue.poll_one());
///     });
/// }
/// ```
pub struct CompletionQueue {
    pub(super) device: u32,
    pub(super) inner: Owned<AnyCompletionQueue>,
}

impl CompletionQueue {
    pub(super) fn new(device: u32, inner: AnyCompletionQueue) -> Self {
        CompletionQueue { device, inner: Owned::new(inner) }
    }

    /// Takes up to `out.len()` completions, into the first entries of `out`, and returns how many.
    /// Never waits. The completions of one queue come in the order of posting. Look at
    /// [`status`](WorkCompletion::status) first: with any other than success, most fields mean
    /// nothing.
    ///
    /// In a forked child it returns 0.
    #[inline]
    pub fn poll(&mut self, out: &mut [WorkCompletion]) -> usize {
        if !self.inner.is_ours() {
            return 0;
        }
        each!(&mut *self.inner, queue => queue.poll(out))
    }

    /// Takes one completion, if there is one; see [`poll`](Self::poll).
    #[inline]
    pub fn poll_one(&mut self) -> Option<WorkCompletion> {
        let mut one = [WorkCompletion::default()];
        (self.poll(&mut one) == 1).then_some(one[0])
    }

    /// Says that this thread spins, until it next waits or arms: peers then need not look whether
    /// they have to wake it, which makes their posts faster. Only on the embedded device.
    ///
    /// No event is lost if the thread sleeps after all. But the first [`wait`](Self::wait) then
    /// returns after a millisecond at most, and the first [`arm`](Self::arm) takes a millisecond.
    /// So it is for a thread that spins for long. Saying it again costs nothing.
    #[inline]
    pub fn stay_awake(&mut self) {
        if self.inner.is_ours() {
            each!(&mut *self.inner, queue => queue.stay_awake());
        }
    }

    /// Asks for one event on [`as_fd`](AsFd::as_fd) when the next completion that `notify` names
    /// lands. Completions that landed before need not be announced: after arming, poll once more
    /// before sleeping. After the event, arm again.
    ///
    /// # Errors
    /// [`Error::Forked`](crate::Error::Forked); [`Error::Os`](crate::Error::Os) if the device does
    /// not do it.
    pub fn arm(&mut self, notify: Notify) -> Result<()> {
        self.inner.check()?;
        each!(&mut *self.inner, queue => queue.arm(notify))
    }

    /// Consumes the events that made the descriptor readable; does not wait. To be called after
    /// the descriptor was readable, before arming again. Fails as [`arm`](Self::arm) does.
    pub fn acknowledge(&mut self) -> Result<()> {
        self.inner.check()?;
        each!(&mut *self.inner, queue => queue.acknowledge())
    }

    /// Sleeps until a completion of any kind ([`Notify::Any`]) may be there, [`Waker::wake`] was
    /// called, or `timeout` has passed (`None`: no limit). Arms, polls again and acknowledges by
    /// itself. Afterwards do not rely on an earlier [`arm`](Self::arm).
    ///
    /// All of these are `Ok`, also that the time is over. A return is a reason to poll, not a
    /// promise that a completion is there: it may come early. So a caller with a limit keeps a
    /// deadline of its own ([example](crate#example)). Fails as [`arm`](Self::arm) does.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.inner.check()?;
        each!(&mut *self.inner, queue => queue.wait(timeout))
    }

    /// Returns a handle that ends a wait from another thread.
    pub fn waker(&self) -> Waker {
        Waker(self.inner.also(each_into!(&*self.inner, queue => queue.waker())))
    }
}

/// Readable when an armed queue has an event: for `poll(2)`, `epoll(7)` or an async runtime.
impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(&*self.inner, queue => queue.as_fd())
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue").finish_non_exhaustive()
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}
