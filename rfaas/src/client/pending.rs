//! An asynchronous invocation: a standard future, or something to wait for in any thread.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::buffer::{Input, Output};
use super::drive::{Drive, Shared, Together};
use super::failure::Outcome;
use super::reactor;
use super::tickets::{Buffers, Ticket};
use crate::error::{Error, describe};

/// An invocation that has been submitted.
///
/// As a [`Future`] it works in any runtime and without one: a thread of the executor's own wakes
/// it. Or [`wait`](Self::wait) for it, in any thread. Dropping it does not stop the function; it
/// gives up the result, and the buffers are freed when the worker has finished with them.
#[must_use = "dropping it gives up the result"]
pub struct Pending {
    shared: Arc<Shared>,
    ticket: Ticket,
    /// Gone once the result was taken.
    buffers: Option<Buffers>,
}

/// An invocation that succeeded, and its buffers.
#[derive(Debug)]
pub struct Completed {
    /// Bytes of output.
    pub bytes: usize,
    /// As it was submitted.
    pub input: Input,
    /// The first `bytes` bytes are the output.
    pub output: Output,
}

/// An invocation that failed, and its buffers. Turns into its [`Error`] with `?`; its `Debug`, which is what
/// `unwrap` and a `main` that returns it show, is the error's text.
pub struct Failed {
    /// Why.
    pub error: Error,
    /// As it was submitted.
    pub input: Input,
    /// Of unknown content.
    pub output: Output,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.buffers {
            Some((input, output)) => write!(f, "Pending({input:?}, {output:?})"),
            None => f.write_str("Pending(finished)"),
        }
    }
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(&self.error))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Error {
        failed.error
    }
}

impl Pending {
    pub(super) fn new(shared: Arc<Shared>, ticket: Ticket, buffers: Buffers) -> Self {
        Pending { shared, ticket, buffers: Some(buffers) }
    }

    /// Blocks until the invocation has ended, as the deployment's [`Spin`](super::Spin) says.
    pub fn wait(mut self) -> Result<Completed, Failed> {
        let buffers =
            self.buffers.take().expect("only a finished future has none, and this is not");
        if let Err(error) = self.shared.check_process() {
            let (input, output) = buffers;
            return Err(Failed { error, input, output });
        }
        let mut together = Together::new(&self.shared);
        let outcome = loop {
            if let Some(outcome) = together.workers().tickets.take(self.ticket) {
                break outcome;
            }
            together.advance();
        };
        drop(together);
        self.finish(outcome, buffers)
    }

    fn finish(&self, outcome: Outcome, (input, mut output): Buffers) -> Result<Completed, Failed> {
        match self.shared.read_outcome(outcome, &mut output) {
            Ok(bytes) => Ok(Completed { bytes, input, output }),
            Err(error) => Err(Failed { error, input, output }),
        }
    }
}

impl Future for Pending {
    type Output = Result<Completed, Failed>;

    /// # Panics
    ///
    /// If it was polled to its end before, or waited for.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let buffers = this.buffers.take().expect("a finished invocation is not polled again");
        if let Err(error) = this.shared.check_process() {
            let (input, output) = buffers;
            return Poll::Ready(Err(Failed { error, input, output }));
        }
        let waker = context.waker().clone(); // foreign code: before the lock
        let mut together = Together::new(&this.shared);
        together.glance();
        let outcome = together.workers().tickets.take(this.ticket);
        if let Some(outcome) = outcome {
            drop(together);
            return Poll::Ready(this.finish(outcome, buffers));
        }
        let previous = together.workers().tickets.watch(this.ticket, waker);
        if let Err(error) = reactor::activate(&this.shared, &mut together) {
            // Without its thread the task itself has to look, until there is one.
            tracing::error!(%error, "no thread waits for asynchronous invocations");
            together.look();
            context.waker().wake_by_ref();
        }
        drop(together);
        drop(previous); // foreign code: after the lock
        this.buffers = Some(buffers);
        Poll::Pending
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(buffers) = self.buffers.take() else { return };
        if self.shared.check_process().is_err() {
            return; // the parent waits for it
        }
        let mut together = Together::new(&self.shared);
        let leftovers = together.workers().tickets.abandon(self.ticket, buffers);
        drop(together);
        drop(leftovers); // a waker is foreign code: after the lock
    }
}
