//! An asynchronous call as an application has it: a standard future, or something to wait for in any thread.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use rfaas_call::caller::{Buffers, Finished, PendingCall};
use rfaas_config::describe;

use crate::buffer::{Input, Origin, Output};
use crate::cause::Cause;
use crate::error::Error;
use crate::lease_core::LeaseEnd;

/// An invocation that has been submitted.
///
/// As a [`Future`] it works in any runtime and without one: a thread of the executor's own wakes it. Or
/// [`wait`](Self::wait) for it, in any thread. Dropping it does not stop the function; it gives up the result, and the
/// buffers are freed when the worker has finished with them.
///
/// ```no_run
/// # async fn example(executor: &mut rfaas::Executor) -> rfaas::Result<()> {
/// let function = executor.function("sum")?;
/// let (input, output) = (executor.input(1024)?, executor.output(8)?);
/// let completed = executor.submit(&function, input, output)?.await?;
/// println!("{:?}", completed.output.to_vec(..completed.bytes)?);
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it gives up the result"]
pub struct Pending {
    call: PendingCall<LeaseEnd>,
    origin: Origin,
}

/// An invocation that succeeded, and its buffers.
#[derive(Debug)]
pub struct Completed {
    /// Bytes of output.
    pub bytes: usize,
    /// The input as it was submitted.
    pub input: Input,
    /// The output, in its first `bytes` bytes.
    pub output: Output,
}

/// An invocation that failed, and its buffers. `?` turns it into its [`Error`]. Its `Debug`, which is what `unwrap` and
/// a `main` that returns it show, is the error's text.
pub struct Failed {
    /// Why it failed.
    pub error: Error,
    /// The input as it was submitted.
    pub input: Input,
    /// The output, of unknown content.
    pub output: Output,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.call.buffers() {
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
    pub(crate) fn new(call: PendingCall<LeaseEnd>, origin: Origin) -> Self {
        Pending { call, origin }
    }

    /// Blocks until the invocation has ended, as the deployment's [`Spin`](crate::Spin) says.
    #[expect(clippy::result_large_err, reason = "a failed call gives its buffers back")]
    pub fn wait(self) -> Result<Completed, Failed> {
        completed(self.call.wait(), self.origin)
    }
}

/// Turns what a call comes to into what an application sees.
#[expect(clippy::result_large_err, reason = "a failed call gives its buffers back")]
fn completed((result, buffers): Finished<Cause>, origin: Origin) -> Result<Completed, Failed> {
    let (input, output): Buffers = buffers;
    let (input, output) = (Input { buffer: input, origin }, Output { buffer: output, origin });
    match result {
        Ok(bytes) => Ok(Completed { bytes, input, output }),
        Err(error) => Err(Failed { error: error.into(), input, output }),
    }
}

impl Future for Pending {
    type Output = Result<Completed, Failed>;

    /// # Panics
    ///
    /// If it was polled to its end before.
    #[expect(clippy::result_large_err, reason = "a failed call gives its buffers back")]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let origin = self.origin;
        self.call.poll(context).map(|finished| completed(finished, origin))
    }
}
