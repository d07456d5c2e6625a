//! A lease and the executor process that runs on it: makes calls, replaces the process, owns what ends with it.
//!
//! ```text
//!   running ──worker given up, nothing else in flight──▶ stopped ──next call, restart──▶ running
//!      │ process ended by itself: calls fail and say why,        │ it fails: the next call tries again
//!      │ or, if the deployment says so, it is stopped            │
//!      └──restart──▶ running, a new process                      └──drop──▶ the lease is free
//! ```
//! A thread in a function that never returns can only be ended with its process. So a worker is not repaired: the
//! process is replaced as a whole, on the same lease, and what the application has made for it stays valid
//! (`deployment`).
//!
//! Elsewhere: what an application sees (`executor`), starting a process (`session`), moving to another lease
//! (`failover`), how a call is made (`rfaas_call`).

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rfaas_call::caller::{
    Call, CallError, CallResult, Called, Caller, Failure, MappedSlot, Outcome,
};
use rfaas_protocol::Malformed;
use rfaas_protocol::channel::Channel;
use rfaas_protocol::invocation::InPlaceDetail;
use rfaas_protocol::lease::LeaseId;

use crate::buffer::{Input, Origin, Output};
use crate::cause::Cause;
use crate::deployment::{DeploymentSpecification, Phases};
use crate::error::{Error, Result};
use crate::held_lease::HeldLease;
use crate::lease_core::LeaseEnd;
use crate::session::{self, Started};

/// Why there are bounce buffers.
const BOUNCE_BUFFERS: &str = "made when a call in place begins";

/// A function of one executor, found by name once.
#[derive(Clone)]
pub struct Function {
    index: u16,
    origin: Origin,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Function(number {})", self.index)
    }
}

/// A lease that an executor runs on. Dropping it makes the lease free for another deployment.
pub(crate) struct LeaseInUse(pub(crate) Arc<HeldLease>);

impl Drop for LeaseInUse {
    fn drop(&mut self) {
        if self.0.check_process().is_ok() {
            self.0.lock().deployed = false;
        }
    }
}

/// The lease, the process, and what it was made from.
pub(crate) struct DeployedExecutor {
    // Dropped first: if this is the last holder, the manager hears the release before the connections end, and does
    // not report a failure.
    lease: LeaseInUse,
    caller: Caller<LeaseEnd>,
    /// Its end makes the executor process exit. `None`: stopped, to be replaced.
    control: Option<Channel>,
    specification: DeploymentSpecification,
    /// Names of the functions, by number.
    functions: Vec<String>,
    lease_id: LeaseId,
    phases: Phases,
    /// The end of the lease is announced and no other node has taken over (`failover`); none is tried before this.
    pub(crate) stays_until: Option<Instant>,
    /// For calls in place, one after the other, once there was one. Where the worker's memory is mapped: a header to
    /// send and a place for the reply's detail. Elsewhere: input and output themselves.
    bounce_buffers: Option<(Input, Output)>,
    pace: RestartPace,
}

/// How often a process that has ended by itself is replaced: a function that always fails would keep its node busy with
/// starting processes.
#[derive(Debug)]
struct RestartPace {
    /// When all that may be at once are there again.
    full_at: Instant,
}

impl RestartPace {
    /// Restarts that may be made at once, and the time that brings another.
    const AT_ONCE: u32 = 5;
    const EVERY: Duration = Duration::from_secs(1);

    fn new(now: Instant) -> Self {
        RestartPace { full_at: now }
    }

    /// Takes one; returns how long to wait before it is made.
    fn take(&mut self, now: Instant) -> Duration {
        let missing = self.full_at.saturating_duration_since(now);
        self.full_at = self.full_at.max(now) + Self::EVERY;
        missing.saturating_sub(Self::EVERY * (Self::AT_ONCE - 1))
    }
}

impl DeployedExecutor {
    pub(crate) fn new(
        lease: Arc<HeldLease>,
        specification: DeploymentSpecification,
        started: Started,
    ) -> Self {
        DeployedExecutor {
            lease: LeaseInUse(lease),
            caller: Caller::new(started.calls),
            control: Some(started.control),
            specification,
            functions: started.functions,
            lease_id: started.lease_id,
            phases: started.phases,
            stays_until: None,
            bounce_buffers: None,
            pace: RestartPace::new(Instant::now()),
        }
    }

    pub(crate) fn lease(&self) -> &Arc<HeldLease> {
        &self.lease.0
    }

    pub(crate) fn caller(&self) -> &Caller<LeaseEnd> {
        &self.caller
    }

    pub(crate) fn specification(&self) -> &DeploymentSpecification {
        &self.specification
    }

    pub(crate) fn functions(&self) -> &[String] {
        &self.functions
    }

    pub(crate) fn lease_id(&self) -> LeaseId {
        self.lease_id
    }

    pub(crate) fn phases(&self) -> &Phases {
        &self.phases
    }

    /// Returns whether there is no executor process, by our own will.
    #[inline]
    pub(crate) fn is_stopped(&self) -> bool {
        self.control.is_none()
    }

    /// Fails in a child that has inherited it.
    #[inline]
    pub(crate) fn check_process(&self) -> Result<()> {
        Ok(self.caller.check_process()?)
    }

    /// Finds the function called `name`.
    pub(crate) fn function(&self, name: &str) -> Result<Function> {
        let index = self.functions.iter().position(|function| function == name);
        let index = index.ok_or_else(|| Error::UnknownFunction {
            name: name.to_owned(),
            available: self.functions.clone(),
        })?;
        let index = u16::try_from(index).expect("MAX_FUNCTIONS fits 16 bits");
        Ok(Function { index, origin: self.specification.origin })
    }

    /// Fails if `function` belongs to another executor.
    #[inline]
    pub(crate) fn check_function(&self, function: &Function) -> Result<()> {
        if function.origin == self.specification.origin {
            Ok(())
        } else {
            Err(Error::Foreign("function"))
        }
    }

    /// Fails unless a slot takes an input of `bytes` bytes.
    #[inline]
    pub(crate) fn fits_slot(&self, bytes: usize) -> Result<()> {
        match self.specification.deployment.input_bytes {
            max if bytes > max => Err(Error::InputTooLarge { bytes, max }),
            _ => Ok(()),
        }
    }

    /// Makes a call of its parts, if it can be made.
    #[inline]
    pub(crate) fn check<'a>(
        &self,
        function: &Function,
        input: &'a Input,
        output: &Output,
    ) -> Result<Call<'a>> {
        self.check_process()?;
        self.check_function(function)?;
        let DeploymentSpecification { origin, deployment, .. } = &self.specification;
        if input.origin != *origin || output.origin != *origin {
            return Err(Error::Foreign("buffer"));
        }
        self.fits_slot(input.len())?;
        let (input, output) = (&input.buffer, &output.buffer);
        Ok(Call::new(function.index, input, output, deployment.output_bytes))
    }

    /// Posts `call` and waits for its outcome. After an error no worker has it.
    #[inline]
    pub(crate) fn call(&mut self, call: &Call<'_>) -> Result<Outcome<Cause>> {
        self.replacing(|caller| caller.call(call))
    }

    /// Does `what` with the caller, replacing the process first if `what` asks for that, or fails since the process has
    /// ended and the deployment asks for it. After such a failure, `what` has done nothing.
    #[inline]
    pub(crate) fn replacing<T>(
        &mut self,
        mut what: impl FnMut(&mut Caller<LeaseEnd>) -> CallResult<T, Cause>,
    ) -> Result<T> {
        loop {
            if !self.is_stopped() {
                match what(&mut self.caller) {
                    Ok(Called::Done(done)) => return Ok(done),
                    Ok(Called::MustReplace) => {}
                    Err(error) => self.stop_after(error)?,
                }
            }
            self.restart()?; // nothing is to be replaced right after it
        }
    }

    /// Stops the executor after `error`, if that says that the process has ended by itself and the deployment asks for
    /// another; waits until it is time for that. Returns any other error.
    #[cold]
    fn stop_after(&mut self, error: CallError<Cause>) -> Result<()> {
        let CallError::Failed(Failure::Ended(Cause::Exited(exit))) = error else {
            return Err(error.into());
        };
        if !self.specification.deployment.restart {
            return Err(error.into());
        }
        tracing::info!(lease = %self.lease_id, %exit, "executor has ended: it is replaced");
        thread::sleep(self.pace.take(Instant::now()));
        self.stop();
        Ok(())
    }

    /// Makes the buffers that calls in place need beside the worker's memory, which is `mapped` or not.
    pub(crate) fn make_bounce_buffers(&mut self, mapped: bool) -> Result<()> {
        if self.bounce_buffers.is_none() {
            let DeploymentSpecification { deployment, domain, origin, .. } = &self.specification;
            let (input, output) = if mapped {
                (0, size_of::<InPlaceDetail>())
            } else {
                (deployment.input_bytes, deployment.output_bytes)
            };
            let input = Input::allocate(domain, *origin, input)?;
            self.bounce_buffers = Some((input, Output::allocate(domain, *origin, output)?));
        }
        Ok(())
    }

    pub(crate) fn bounce_buffers(&self) -> &(Input, Output) {
        self.bounce_buffers.as_ref().expect(BOUNCE_BUFFERS)
    }

    pub(crate) fn bounce_buffers_mut(&mut self) -> &mut (Input, Output) {
        self.bounce_buffers.as_mut().expect(BOUNCE_BUFFERS)
    }

    /// Calls `function` in `slot`, with the first `bytes` bytes of the input there. Returns the bytes of output.
    #[inline]
    pub(crate) fn call_in_place(
        &mut self,
        slot: &mut MappedSlot,
        function: &Function,
        bytes: usize,
    ) -> Result<usize> {
        let (header, reply) = self.bounce_buffers.as_mut().expect(BOUNCE_BUFFERS);
        let most = self.specification.deployment.output_bytes;
        let buffers = (&header.buffer, &reply.buffer);
        let call = slot.request(function.index, bytes, buffers, most);
        let outcome = self.caller.call_in_place(&call)?;
        let result = slot.read_outcome(&mut self.caller, &call, outcome, &mut reply.buffer);
        self.noting_losses(result)
    }

    /// Calls `function` with the first `bytes` bytes of the bounce buffer. Returns the bytes of output.
    pub(crate) fn call_with_bounce_buffers(
        &mut self,
        function: &Function,
        bytes: usize,
    ) -> Result<usize> {
        let (mut input, mut output) = self.bounce_buffers.take().expect(BOUNCE_BUFFERS);
        let result = input.set_len(bytes).and_then(|()| self.invoke(function, &input, &mut output));
        self.bounce_buffers = Some((input, output));
        result
    }

    /// Calls `function` and waits for its result. Returns the bytes of output.
    #[inline]
    pub(crate) fn invoke(
        &mut self,
        function: &Function,
        input: &Input,
        output: &mut Output,
    ) -> Result<usize> {
        let call = self.check(function, input, output)?;
        let outcome = self.call(&call)?;
        self.finish(outcome, output)
    }

    /// Returns the bytes of `output`, or why there are none.
    #[inline]
    pub(crate) fn finish(&mut self, outcome: Outcome<Cause>, output: &mut Output) -> Result<usize> {
        let result = self.caller.read_outcome(outcome, &mut output.buffer);
        self.noting_losses(result)
    }

    #[inline]
    fn noting_losses<T>(&mut self, result: Result<T, CallError<Cause>>) -> Result<T> {
        if let Err(CallError::Failed(Failure::TimeLimit(_) | Failure::WorkerLost(_))) = &result {
            self.stop_if_replaced_next();
        }
        Ok(result?)
    }

    /// Ends the process now if the next call is to replace it: the function that ran past its limit is not to use its
    /// core until then.
    #[cold]
    fn stop_if_replaced_next(&mut self) {
        if self.caller.must_be_replaced() {
            self.stop();
        }
    }

    pub(crate) fn restart(&mut self) -> Result<()> {
        self.restart_within(self.specification.deployment.start_timeout)
    }

    pub(crate) fn restart_within(&mut self, timeout: Duration) -> Result<()> {
        self.check_process()?;
        self.stop();
        let started = session::start_again(&self.lease.0, &self.specification, timeout)?;
        self.check_functions(&started)?;
        self.install(started);
        tracing::info!(lease = %self.lease_id, "executor replaced");
        Ok(())
    }

    /// Ends the executor process. Its workers are cut first, so that nothing of it reaches buffers that are used again.
    fn stop(&mut self) {
        self.caller.close(Failure::WorkerLost("its executor was ended to be replaced"));
        self.control = None;
    }

    /// Fails unless the process that was started has the same functions: they go by their numbers.
    fn check_functions(&self, started: &Started) -> Result<()> {
        if started.functions == self.functions {
            Ok(())
        } else {
            Err(Malformed::Field("function list").into())
        }
    }

    fn install(&mut self, started: Started) {
        self.caller = Caller::new(started.calls);
        self.control = Some(started.control);
        self.lease_id = started.lease_id;
        self.phases = started.phases;
    }

    /// Starts a process on `lease` and lets the old one go with its lease. After an error everything is as it was.
    pub(crate) fn move_to(&mut self, lease: Arc<HeldLease>, timeout: Duration) -> Result<()> {
        let started = session::start(&lease, &self.specification, timeout)?;
        let lease = LeaseInUse(lease);
        self.check_functions(&started)?;
        let from = std::mem::replace(&mut self.lease, lease);
        from.0.give_up(); // first, so that the manager does not take the end for a failure
        self.stop();
        self.install(started);
        self.stays_until = None;
        let (from, to) = (from.0.node(), self.lease.0.node());
        tracing::info!(from, to, lease = %self.lease_id, "executor moved");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_restarts_are_made_at_once_and_then_one_a_second() {
        let start = Instant::now();
        let mut pace = RestartPace::new(start);
        let waits =
            |pace: &mut RestartPace, now| (0..7).map(|_| pace.take(now).as_secs()).collect();
        let waited: Vec<_> = waits(&mut pace, start);
        assert_eq!(waited, [0, 0, 0, 0, 0, 1, 2]);
        let later = start + Duration::from_secs(3600);
        let waited: Vec<_> = waits(&mut pace, later);
        assert_eq!(waited, [0, 0, 0, 0, 0, 1, 2], "time brings no more than these");
    }
}
