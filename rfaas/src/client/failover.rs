//! Idempotent calls: when executor, node or lease is lost they go on with another one.
//!
//! ```text
//!   call ──result, or what the function did──▶ told
//!    └─lost─▶ calls in flight on other workers? ──▶ call again
//!             the lease lives, not tried yet?   ──▶ a new process there ──▶ call again
//!             else: a lease elsewhere, a new process there ───────────────▶ call again … until it is late
//! ```
//! * LOSSES - a call is repeated only after a loss that is not its own doing: a function that crashes,
//!   ends or overruns its process here would do so everywhere.
//! * STAYS - buffers and functions are of the `Blueprint` and stay valid wherever the executor goes.
//! * AHEAD - if the end of a lease was announced, the new executor is ready before the old one is let
//!   go: a node that is taken back costs no failed call.

use std::mem;
use std::thread;
use std::time::{Duration, Instant};

use super::buffer::{Input, Output};
use super::executor::{Executor, Function};
use super::session;
use crate::error::{Error, Result};
use rfaas_protocol::allocation::RefusedBecause;
use rfaas_protocol::lease::EndReason;

/// Pauses between tries double from the first, which is about what starting an executor takes, to the
/// longest: a manager asked by many clients answers thousands of such questions a second.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// If nobody else takes the lease whose end was announced, calls go on there for so long before the
/// next try to leave.
const STAY: Duration = Duration::from_millis(100);
/// Signals that functions do not die of by themselves; signal(7).
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// Why a try brought no result.
enum Setback {
    /// The next may.
    Lost(Error),
    /// Somebody killed the executor: perhaps for want of memory, which this call may be the reason of.
    Killed(Error),
    /// The next would end in the same way.
    Told(Error),
}

impl Executor {
    /// Calls `function` as [`invoke`](Self::invoke) does, and again if executor, node or lease is
    /// lost: on a new process, on the same lease if that still lives, else on a new one like it of
    /// the same client. So the function may run more than once. Buffers and functions stay valid;
    /// [`lease`](Self::lease) and [`node`](Self::node) are then the new ones. It also moves, before
    /// anything fails, when the end of the lease was announced and nothing is in flight.
    ///
    /// It goes on until `failover_timeout` after the first loss; then the error is that of the last
    /// try. What the function does itself is told at once: that it crashed, ended the process,
    /// returned too much, or ran past its time limit, which it would elsewhere too, at the caller's
    /// cost. An executor that was killed is replaced once in a call.
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
        self.data.check_process()?;
        self.leave_in_time();
        match self.attempt(function, input, output) {
            Ok(bytes) => Ok(bytes),
            Err(Setback::Told(error)) => Err(error),
            Err(setback) => self.fail_over(setback, function, input, output),
        }
    }

    /// One try.
    fn attempt(
        &mut self,
        function: &Function,
        input: &Input,
        output: &mut Output,
    ) -> Result<usize, Setback> {
        let call = self.check(function, input, output).map_err(Setback::Told)?;
        let outcome = self.call(&call).map_err(|error| match error {
            // No worker got the call: whatever ended the executor, this was not it.
            Error::FunctionCrashed { .. } | Error::FunctionExited { .. } => Setback::Lost(error),
            error => Setback::before_a_call(error),
        })?;
        self.finish(outcome, output).map_err(|error| match error {
            Error::FunctionCrashed { signal: SIGKILL | SIGTERM } => Setback::Killed(error),
            error => Setback::before_a_call(error),
        })
    }

    /// Tries again after `setback`.
    #[cold]
    fn fail_over(
        &mut self,
        mut setback: Setback,
        function: &Function,
        input: &Input,
        output: &mut Output,
    ) -> Result<usize> {
        let start = Instant::now();
        let limit = self.deployment().failover_timeout;
        let left = || limit.saturating_sub(start.elapsed());
        let (mut killed, mut restarted) = (false, false);
        let mut pause = Duration::ZERO;
        loop {
            let error = match setback {
                Setback::Told(error) => return Err(error),
                Setback::Killed(error) if mem::replace(&mut killed, true) => return Err(error),
                Setback::Killed(error) | Setback::Lost(error) => error,
            };
            thread::sleep(pause.min(left()));
            pause = (2 * pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            if left().is_zero() {
                return Err(error);
            }
            tracing::debug!(%error, node = self.node(), "idempotent call is tried again");
            let recovered = self.recover(&mut restarted, left());
            match recovered.and_then(|()| self.attempt(function, input, output)) {
                Ok(bytes) => return Ok(bytes),
                Err(next) => setback = next,
            }
        }
    }

    /// Makes another try possible. A new process on the same lease is tried once, with half of the
    /// time: if its node hangs, there is time for another.
    fn recover(&mut self, restarted: &mut bool, timeout: Duration) -> Result<(), Setback> {
        if !self.is_stopped() && self.data.lock().workers.at_work() {
            return Ok(());
        }
        let recovered = if !mem::replace(restarted, true) && self.lease.0.lives() {
            self.restart_within(timeout / 2)
        } else {
            // Before another is asked for: its cores may be the only ones.
            self.lease.0.give_up();
            self.relocate(timeout)
        };
        recovered.map_err(Setback::before_a_call)
    }

    /// AHEAD. Moves away from a lease whose end was announced, if that fails no call.
    fn leave_in_time(&mut self) {
        let Some(ending) = self.lease().ending() else { return };
        let now = Instant::now();
        let late = ending.at <= now;
        let tried = self.stays_until.is_some_and(|until| now < until);
        if late || tried || self.data.lock().workers.tickets.any_waiting() {
            return;
        }
        if let Err(error) = self.relocate(self.deployment().failover_timeout) {
            tracing::debug!(%error, node = self.node(), "no other node takes over yet");
            self.stays_until = Some(Instant::now() + STAY);
        }
    }

    /// Leases elsewhere, starts an executor there, and lets the old one go. After an error everything
    /// is as it was.
    fn relocate(&mut self, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        let lease = self.lease.0.another()?;
        let left = timeout.saturating_sub(start.elapsed());
        let (deployed, started) = session::start(&lease, &self.blueprint, left)?;
        self.check_functions(&started)?;
        let from = mem::replace(&mut self.lease, deployed);
        from.0.give_up(); // first: the manager is to take the end for what it is
        self.stop();
        self.install(started);
        self.stays_until = None;
        tracing::info!(from = from.0.node(), to = self.node(), lease = %self.lease_id(), "executor moved");
        Ok(())
    }
}

impl Setback {
    /// LOSSES. What `error` means for another try, if no function is to blame.
    fn before_a_call(error: Error) -> Self {
        use RefusedBecause::{BadRequest, BadToken, Draining, LeaseEnded, NoCapacity, SpawnFailed};
        let lost = match &error {
            Error::ExecutorGone
            | Error::ExecutorSilent
            | Error::WorkerLost { .. }
            | Error::Unreachable { .. }
            | Error::Unproved { .. }
            | Error::Connection { .. }
            | Error::NoAnswer { .. }
            | Error::LeaseRefused { .. }
            | Error::StartFailed(_)
            | Error::StartTimeout { .. } => true,
            // Who has given the lease back does not want another.
            Error::LeaseEnded { reason } => *reason != EndReason::Released,
            Error::AllocationRefused { because, .. } => match because {
                Draining | LeaseEnded | NoCapacity | SpawnFailed => true,
                BadRequest | BadToken => false,
            },
            _ => false,
        };
        if lost { Setback::Lost(error) } else { Setback::Told(error) }
    }
}
