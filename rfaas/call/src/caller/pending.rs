//! An asynchronous call: polled by a task, or waited for in any thread.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::call::Call;
use super::calls::{Calls, Locked, Progress};
use super::handle::{CallResult, Caller};
use super::outcome::{CallError, Outcome, Owner};
use super::tickets::{Buffers, Ticket};

/// A call that was posted. Its buffers are to be given to it next.
#[derive(Debug)]
pub struct Submitted<O: Owner> {
    calls: Arc<Calls<O>>,
    ticket: Ticket,
}

impl<O: Owner> Submitted<O> {
    /// Posts `call` without waiting; [`CallError::Busy`] if each slot of each worker has a call in flight.
    pub fn submit(caller: &mut Caller<O>, call: &Call<'_>) -> CallResult<Self, O::Cause> {
        let called = caller.submit(call)?;
        Ok(called.map(|ticket| Submitted { calls: Arc::clone(caller.lend()), ticket }))
    }

    /// Takes the buffers of the call.
    pub fn owning(self, buffers: Buffers) -> PendingCall<O> {
        PendingCall { calls: self.calls, ticket: self.ticket, buffers: Some(buffers) }
    }
}

/// A call in flight, which owns its buffers. Dropping it gives up its result; the buffers are freed when the worker has
/// finished with them.
#[derive(Debug)]
pub struct PendingCall<O: Owner> {
    calls: Arc<Calls<O>>,
    ticket: Ticket,
    /// `None` once the outcome was taken.
    buffers: Option<Buffers>,
}

/// Bytes of output or why there are none, and the buffers.
pub type Finished<C> = (Result<usize, CallError<C>>, Buffers);

impl<O: Owner> PendingCall<O> {
    /// Returns the buffers, until the call was waited for or polled to its end.
    pub fn buffers(&self) -> Option<&Buffers> {
        self.buffers.as_ref()
    }

    /// Blocks until the call has ended, as the caller's limits say.
    pub fn wait(mut self) -> Finished<O::Cause> {
        let buffers = self.buffers.take().expect("only a finished call has none, and this is not");
        if let Err(error) = self.calls.check_process() {
            return (Err(error.into()), buffers);
        }
        let mut locked = Locked::new(&self.calls);
        let outcome = loop {
            if let Some(outcome) = locked.workers().tickets.take(self.ticket) {
                break outcome;
            }
            locked.advance();
        };
        drop(locked);
        self.finish(outcome, buffers)
    }

    fn finish(&self, outcome: Outcome<O::Cause>, mut buffers: Buffers) -> Finished<O::Cause> {
        (self.calls.read_outcome(outcome, &mut buffers.1), buffers)
    }
}

impl<O> PendingCall<O>
where
    O: Owner<Cause: Send> + Send + Sync + 'static,
{
    /// Polls the call, as a future does.
    ///
    /// # Panics
    ///
    /// If it was polled to its end before.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Finished<O::Cause>> {
        let buffers = self.buffers.take().expect("a finished call is not polled again");
        if let Err(error) = self.calls.check_process() {
            return Poll::Ready((Err(error.into()), buffers));
        }
        let waker = context.waker().clone(); // foreign code: before the lock
        let mut locked = Locked::new(&self.calls);
        locked.poll_once();
        let outcome = locked.workers().tickets.take(self.ticket);
        if let Some(outcome) = outcome {
            drop(locked);
            return Poll::Ready(self.finish(outcome, buffers));
        }
        let previous = locked.workers().tickets.watch(self.ticket, waker);
        if let Err(error) = self.calls.activate_reactor(&mut locked) {
            // Without its thread the task itself has to wait, until there is one.
            tracing::error!(%error, "no thread waits for asynchronous invocations");
            locked.check_deadlines();
            context.waker().wake_by_ref();
        }
        drop(locked);
        drop(previous); // foreign code: after the lock
        self.buffers = Some(buffers);
        Poll::Pending
    }
}

impl<O: Owner> Drop for PendingCall<O> {
    fn drop(&mut self) {
        let Some(buffers) = self.buffers.take() else { return };
        if self.calls.check_process().is_err() {
            return; // the parent waits for it
        }
        let mut locked = Locked::new(&self.calls);
        let leftovers = locked.workers().tickets.abandon(self.ticket, buffers);
        drop(locked);
        drop(leftovers); // a waker is foreign code: after the lock
    }
}
