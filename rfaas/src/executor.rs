//! A deployed lease as an application has it: makes functions and buffers, and invokes.
//!
//! Elsewhere: the process behind it (`deployed`), calls in place (`in_place`), going on elsewhere (`failover`), what
//! happens between a call and its result (`rfaas_call`).

use std::fmt;
use std::sync::Arc;

use rfaas_call::caller::{Call, Called, Failure, Submitted};
use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;

use crate::buffer::{Input, Output};
use crate::cause::Cause;
use crate::deployed::{DeployedExecutor, Function};
use crate::deployment::{Deployment, Phases};
use crate::error::{Error, Result};
use crate::failover::Failover;
use crate::in_place::InPlaceCall;
use crate::lease::Lease;
use crate::pending::{Failed, Pending};
use crate::printed::Printed;

/// A leased, deployed executor: a process on another node that has the library loaded, with one worker for each leased
/// core.
///
/// A call past its time limit costs its worker. The next call that finds nothing in flight, or no worker left, starts a
/// new process first, as [`restart`](Self::restart) does. A process that a function has crashed or ended is
/// replaced by the next call if the deployment says so ([`Deployment::restart`]). Otherwise calls say how it ended.
///
/// Dropping it ends the process and, if no [`Lease`] handle is left, gives the lease back without waiting for the bill.
/// Invocations that are still in flight then fail.
///
/// ```no_run
/// # fn example(lease: &rfaas::Lease) -> rfaas::Result<()> {
/// let mut executor = lease.deploy("target/release/libfunctions.so")?;
/// let function = executor.function("empty")?; // echoes its input
/// let (mut input, mut output) = (executor.input(5)?, executor.output(64)?);
/// input.write(0, b"hello")?;
/// let bytes = executor.invoke(&function, &input, &mut output)?;
/// assert_eq!(output.to_vec(..bytes)?, b"hello");
/// # Ok(())
/// # }
/// ```
pub struct Executor {
    inner: DeployedExecutor,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Executor");
        out.field("node", &self.node()).field("lease", &self.lease_id().get());
        out.field("workers", &self.workers()).field("functions", &self.functions().len());
        out.field("running", &!self.inner.is_stopped()).finish()
    }
}

impl Executor {
    pub(crate) fn new(inner: DeployedExecutor) -> Self {
        Executor { inner }
    }

    /// Returns the number of worker threads, one for each leased core.
    pub fn workers(&self) -> usize {
        usize::from(self.inner.lease().cores)
    }

    /// Returns the names of the functions in the library, sorted.
    pub fn functions(&self) -> &[String] {
        self.inner.functions()
    }

    /// Returns how long the parts of the deployment took, or of the last restart.
    pub fn phases(&self) -> &Phases {
        self.inner.phases()
    }

    /// Returns what it was deployed with.
    pub fn deployment(&self) -> &Deployment {
        &self.inner.specification().deployment
    }

    /// Returns the number of the lease.
    pub fn lease_id(&self) -> LeaseId {
        self.inner.lease_id()
    }

    /// Returns the name of the node.
    pub fn node(&self) -> &str {
        self.inner.lease().node()
    }

    /// Returns a handle of the lease: to deploy it again after this executor has crashed and was dropped, or to ask
    /// when it ends. While a handle lives, dropping the executor does not give the lease back.
    pub fn lease(&self) -> Lease {
        Lease::from_inner(Arc::clone(self.inner.lease()))
    }

    /// Finds the function called `name`. Fails with [`Error::UnknownFunction`], which lists those that there are.
    pub fn function(&self, name: &str) -> Result<Function> {
        self.inner.function(name)
    }

    /// Allocates memory for an input of `bytes` bytes, registered, zeroed, 64-byte aligned. It may be used again and
    /// again, also after a restart.
    ///
    /// Fails with [`Error::Rdma`] if the device or this process has no room for it, [`Error::Invalid`] if nothing has,
    /// [`Error::Forked`] in a child. Whether a call takes an input so large, only the call says
    /// ([`Error::InputTooLarge`]).
    pub fn input(&self, bytes: usize) -> Result<Input> {
        let specification = self.inner.specification();
        Input::allocate(&specification.domain, specification.origin, bytes)
    }

    /// Allocates memory for an output of up to `bytes` bytes, registered, zeroed, 64-byte aligned. Fails as
    /// [`input`](Self::input) does. What does not fit is [`Error::OutputTooLarge`] of the call.
    pub fn output(&self, bytes: usize) -> Result<Output> {
        let specification = self.inner.specification();
        Output::allocate(&specification.domain, specification.origin, bytes)
    }

    /// Calls `function` with `input` on a worker that has the least to do, and blocks until its result is in `output`.
    /// Returns the bytes of output.
    ///
    /// With asynchronous invocations in all slots it first waits for one of them.
    ///
    /// Input and output are borrowed until the result is there, so neither can be changed meanwhile. After an error the
    /// output has no particular content.
    ///
    /// # Errors
    /// * [`Error::InputTooLarge`], [`Error::Foreign`], [`Error::Forked`]: nothing was called.
    /// * [`Error::OutputTooLarge`]: the function has run.
    /// * [`Error::FunctionCrashed`], [`Error::FunctionExited`], [`Error::StackOverflow`], [`Error::MemoryLimit`],
    ///   [`Error::ExecutorSilent`], [`Error::WorkerLost`],
    ///   [`Error::TimeLimit`], [`Error::ExecutorGone`], [`Error::LeaseEnded`]: it may have run or not.
    /// * If the process is replaced first, also those of [`restart`](Self::restart); then nothing was called.
    // Not inlined into applications: the path below is compiled here, once and as a whole.
    pub fn invoke(
        &mut self,
        function: &Function,
        input: &Input,
        output: &mut Output,
    ) -> Result<usize> {
        self.inner.invoke(function, input, output)
    }

    /// Calls `function` once for each of `inputs`, each time on the worker that has the least to do, so that all
    /// workers are at work. Blocks until all results are in `outputs`, of which there are as many. Returns the bytes of
    /// each output.
    ///
    /// If calls fail, the error is that of the first in the list; nothing is in flight any more then.
    ///
    /// ```no_run
    /// # fn example(executor: &mut rfaas::Executor, parts: &[Vec<u8>]) -> rfaas::Result<()> {
    /// let function = executor.function("sum")?;
    /// let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    /// for part in parts {
    ///     let mut input = executor.input(part.len())?;
    ///     input.write(0, part)?;
    ///     inputs.push(input);
    ///     outputs.push(executor.output(8)?);
    /// }
    /// let sizes = executor.invoke_all(&function, &inputs, &mut outputs)?;
    /// for (output, bytes) in outputs.iter().zip(sizes) {
    ///     println!("{:?}", output.to_vec(..bytes)?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn invoke_all(
        &mut self,
        function: &Function,
        inputs: &[Input],
        outputs: &mut [Output],
    ) -> Result<Vec<usize>> {
        if inputs.len() != outputs.len() {
            return Err(Error::Invalid("there are as many outputs as inputs"));
        }
        let calls: Vec<Call<'_>> = inputs
            .iter()
            .zip(outputs.iter())
            .map(|(input, output)| self.inner.check(function, input, output))
            .collect::<Result<_>>()?;
        let mut outcomes = Vec::with_capacity(calls.len());
        let posted = self.inner.replacing(|caller| match caller.call_all(&calls, &mut outcomes) {
            // Some were posted: no process is to make these again.
            Err(error) if !outcomes.is_empty() => Ok(Called::Done(Err(error))),
            called => called.map(|called| called.map(Ok)),
        });
        let posted = posted.and_then(|posted| Ok(posted?));
        // All are read, also after an error: reading a failed one takes its output from its worker.
        let mut sizes = Ok(Vec::with_capacity(outcomes.len()));
        for (outcome, output) in outcomes.into_iter().zip(outputs) {
            match (self.inner.finish(outcome, output), &mut sizes) {
                (Ok(bytes), Ok(sizes)) => sizes.push(bytes),
                (Err(error), Ok(_)) => sizes = Err(error),
                (_, Err(_)) => {}
            }
        }
        let sizes = sizes?;
        posted.map(|()| sizes)
    }

    /// Starts a call of `function` on a worker that has the least to do and returns at once, unless workers were lost
    /// and the executor is replaced first. The buffers come back with the result, or with the error:
    /// [`Error::AllSlotsBusy`] if each slot of each worker has an invocation in flight.
    ///
    /// ```no_run
    /// # fn prepare() {}
    /// # fn example(executor: &mut rfaas::Executor) -> rfaas::Result<()> {
    /// let function = executor.function("empty")?;
    /// let (input, output) = (executor.input(64)?, executor.output(64)?);
    /// let pending = executor.submit(&function, input, output)?;
    /// prepare(); // the next one, while this one runs
    /// let completed = pending.wait()?; // or `pending.await?`
    /// println!("{:?}", completed.output.to_vec(..completed.bytes)?);
    /// let (input, output) = (completed.input, completed.output); // to be used again
    /// # Ok(())
    /// # }
    /// ```
    #[expect(clippy::result_large_err, reason = "a failed call gives its buffers back")]
    pub fn submit(
        &mut self,
        function: &Function,
        input: Input,
        output: Output,
    ) -> Result<Pending, Failed> {
        let submitted = self
            .inner
            .check(function, &input, &output)
            .and_then(|call| self.inner.replacing(|caller| Submitted::submit(caller, &call)));
        match submitted {
            Ok(submitted) => {
                let origin = input.origin;
                Ok(Pending::new(submitted.owning((input.buffer, output.buffer)), origin))
            }
            Err(error) => Err(Failed { error, input, output }),
        }
    }

    /// Calls `function` as [`invoke`](Self::invoke) does, and again if executor, node or lease is lost: on a new
    /// process, on the same lease if that still lives, else on a new one like it of the same client, where the
    /// constraints hold that the lease has by itself. So the function may run more than once. Buffers and functions stay
    /// valid; [`lease`](Self::lease) and [`node`](Self::node) are then the new ones. It also moves, before anything
    /// fails, when the end of the lease was announced and nothing is in flight.
    ///
    /// It goes on until `failover_timeout` after the first loss; then the error is that of the last try. What the
    /// function does itself is an error at once: that it crashed, ended the process, returned too much, or ran past its
    /// time limit, which it would elsewhere too, at the caller's cost. An executor that was killed is replaced once in
    /// a call.
    ///
    /// ```no_run
    /// # fn example(executor: &mut rfaas::Executor) -> rfaas::Result<()> {
    /// let function = executor.function("sum")?;
    /// let (input, mut output) = (executor.input(1024)?, executor.output(8)?);
    /// let bytes = executor.invoke_idempotent(&function, &input, &mut output)?;
    /// println!("{:?}, from {}", output.to_vec(..bytes)?, executor.node());
    /// # Ok(())
    /// # }
    /// ```
    pub fn invoke_idempotent(
        &mut self,
        function: &Function,
        input: &Input,
        output: &mut Output,
    ) -> Result<usize> {
        Failover { executor: &mut self.inner, function, input, output }.invoke()
    }

    /// Begins a call of `function` in place, with `input_bytes` bytes of input, on a worker that has the least to do:
    /// [`Error::AllSlotsBusy`] if each slot of each has an invocation in flight. Unlike [`invoke`](Self::invoke), whose
    /// input and output are copied, it costs the same at any size. On a network device, where memory cannot be shared,
    /// it costs as much as `invoke`.
    ///
    /// It borrows the executor until call and result are dropped. A loop reuses them
    /// ([`InPlaceResult::again`](crate::InPlaceResult::again)).
    ///
    /// ```no_run
    /// # fn example(executor: &mut rfaas::Executor, frames: &[Vec<u8>]) -> rfaas::Result<()> {
    /// let function = executor.function("detect")?;
    /// let mut call = executor.in_place(&function, 16 << 20)?;
    /// for frame in frames {
    ///     call.write(0, frame)?; // or render it there, through `as_mut_ptr`
    ///     let result = call.invoke()?;
    ///     println!("{:?}", result.to_vec(..result.len().min(100))?);
    ///     call = result.again(16 << 20)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    /// Nothing else can be called meanwhile:
    ///
    /// ```compile_fail,E0499
    /// # fn example(executor: &mut rfaas::Executor) -> rfaas::Result<()> {
    /// let function = executor.function("detect")?;
    /// let first = executor.in_place(&function, 64)?;
    /// let second = executor.in_place(&function, 64)?; // error: `first` borrows the executor
    /// first.invoke()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_place(&mut self, function: &Function, input_bytes: usize) -> Result<InPlaceCall<'_>> {
        InPlaceCall::begin(&mut self.inner, function, input_bytes)
    }

    /// Ends the executor process, whatever its functions do, and starts a new one with the same library on the same
    /// lease. Buffers and functions stay valid; what the library kept in memory is gone. Invocations in flight fail
    /// with [`Error::WorkerLost`].
    ///
    /// After an error there is no process; the next call, or another restart, tries again.
    ///
    /// # Errors
    /// [`Error::LeaseEnded`], [`Error::ExecutorGone`]: lease anew. [`Error::StartFailed`], [`Error::StartTimeout`],
    /// [`Error::LoadFailed`], [`Error::LibraryGarbled`], [`Error::AllocationRefused`],
    /// [`Error::NoAnswer`]: it did not start this time.
    pub fn restart(&mut self) -> Result<()> {
        self.inner.restart()
    }

    /// Reads what functions have written on standard output and error so far, with descriptors or with their language's
    /// own means as far as those have flushed it, in all processes that the lease has had. Everything that was written
    /// before a result, a crash or another end was known to the caller is there.
    ///
    /// The node keeps the last 256 KiB, or less if many leases write much, and says how much it has dropped. It can be
    /// read until the lease was given back; after another end of the lease for 30 s.
    ///
    /// ```no_run
    /// # fn example(executor: &mut rfaas::Executor) -> rfaas::Result<()> {
    /// let function = executor.function("simulate")?;
    /// let (input, mut output) = (executor.input(1024)?, executor.output(8)?);
    /// if let Err(error) = executor.invoke(&function, &input, &mut output) {
    ///     eprintln!("{error}; its last words:\n{}", executor.printed()?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoAnswer`] after five seconds, [`Error::LeaseEnded`], [`Error::ExecutorGone`], [`Error::Connection`]:
    /// the node is not to be asked.
    pub fn printed(&self) -> Result<Printed> {
        self.inner.lease().read_printed()
    }

    /// Gives the lease back and waits for its bill; the executor process is then gone. Fails as
    /// [`Lease::release`] does.
    pub fn release(self) -> Result<Bill> {
        let bill = self.inner.lease().release()?;
        self.inner.caller().close(Failure::Ended(Cause::LeaseEnded(EndReason::Released)));
        bill.ok_or(Error::ExecutorGone)
    }
}
