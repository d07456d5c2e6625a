//! Idempotent calls: when executor, node or lease is lost they go on with another one.
//!
//! ```text
//!   call ──result, or what the function did──▶ returned
//!    └─lost─▶ calls in flight on other workers? ──▶ call again
//!             the lease lives, not tried yet?   ──▶ a new process there ──▶ call again
//!             else: a lease elsewhere, a new process there ───────────────▶ call again … until it is late
//! ```
//! * A call is repeated only after a loss that is not its own doing: a function that crashes, ends or overruns its
//!   process here would do so everywhere.
//! * Buffers and functions belong to the deployment specification and stay valid wherever the executor goes.
//! * If the end of a lease was announced, the new executor is ready before the old one is let go: a node
//!   that is taken back costs no failed call.

use std::mem;
use std::thread;
use std::time::{Duration, Instant};

use rfaas_protocol::allocation::RefusedBecause;
use rfaas_protocol::lease::EndReason;

use crate::buffer::{Input, Output};
use crate::deployed::{DeployedExecutor, Function};
use crate::error::{Error, Result};

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
    /// The next may bring one.
    Lost(Error),
    /// Somebody killed the executor. It may have been for want of memory, caused by this call.
    Killed(Error),
    /// The next would end in the same way.
    Final(Error),
}

/// One idempotent call.
pub(crate) struct Failover<'a> {
    pub(crate) executor: &'a mut DeployedExecutor,
    pub(crate) function: &'a Function,
    pub(crate) input: &'a Input,
    pub(crate) output: &'a mut Output,
}

impl Failover<'_> {
    /// Makes the call, again after losses until it is late. Returns the bytes of output.
    pub(crate) fn invoke(mut self) -> Result<usize> {
        self.executor.check_process()?;
        self.leave_in_time();
        match self.attempt() {
            Ok(bytes) => Ok(bytes),
            Err(Setback::Final(error)) => Err(error),
            Err(setback) => self.fail_over(setback),
        }
    }

    /// Makes one try.
    fn attempt(&mut self) -> Result<usize, Setback> {
        let Failover { executor, function, input, output } = self;
        let call = executor.check(function, input, output).map_err(Setback::Final)?;
        let outcome = executor.call(&call).map_err(|error| match error {
            // No worker got the call: whatever ended the executor, this was not it.
            Error::FunctionCrashed { .. }
            | Error::FunctionExited { .. }
            | Error::StackOverflow
            | Error::MemoryLimit { .. } => Setback::Lost(error),
            error => Setback::before_a_call(error),
        })?;
        executor.finish(outcome, output).map_err(|error| match error {
            Error::FunctionCrashed { signal: SIGKILL | SIGTERM } => Setback::Killed(error),
            error => Setback::before_a_call(error),
        })
    }

    /// Tries again after `setback`.
    #[cold]
    fn fail_over(&mut self, mut setback: Setback) -> Result<usize> {
        let start = Instant::now();
        let limit = self.timeout();
        let left = || limit.saturating_sub(start.elapsed());
        let (mut killed, mut restarted) = (false, false);
        let mut pause = Duration::ZERO;
        loop {
            let error = match setback {
                Setback::Final(error) => return Err(error),
                Setback::Killed(error) if mem::replace(&mut killed, true) => return Err(error),
                Setback::Killed(error) | Setback::Lost(error) => error,
            };
            thread::sleep(pause.min(left()));
            pause = (2 * pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            if left().is_zero() {
                return Err(error);
            }
            let node = self.executor.lease().node();
            tracing::debug!(%error, node, "idempotent call is tried again");
            let recovered = self.recover(&mut restarted, left());
            match recovered.and_then(|()| self.attempt()) {
                Ok(bytes) => return Ok(bytes),
                Err(next) => setback = next,
            }
        }
    }

    /// Makes another try possible. A new process on the same lease is tried once, with half of the
    /// time: if its node hangs, there is time for another.
    fn recover(&mut self, restarted: &mut bool, timeout: Duration) -> Result<(), Setback> {
        if !self.executor.is_stopped() && self.executor.caller().are_at_work() {
            return Ok(());
        }
        let recovered = if !mem::replace(restarted, true) && self.executor.lease().lives() {
            self.executor.restart_within(timeout / 2)
        } else {
            // Before another is asked for: its cores may be the only ones.
            self.executor.lease().give_up();
            self.relocate(timeout)
        };
        recovered.map_err(Setback::before_a_call)
    }

    /// Moves away from a lease whose end was announced, if that fails no call.
    fn leave_in_time(&mut self) {
        let Some(ending) = self.executor.lease().ending() else { return };
        let now = Instant::now();
        let late = ending.at <= now;
        let tried = self.executor.stays_until.is_some_and(|until| now < until);
        if late || tried || self.executor.caller().any_waiting() {
            return;
        }
        if let Err(error) = self.relocate(self.timeout()) {
            let node = self.executor.lease().node();
            tracing::debug!(%error, node, "no other node takes over yet");
            self.executor.stays_until = Some(Instant::now() + STAY);
        }
    }

    /// Leases elsewhere, starts an executor there, and lets the old one go. After an error everything is as it was.
    fn relocate(&mut self, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        let lease = self.executor.lease().another()?;
        self.executor.move_to(lease, timeout.saturating_sub(start.elapsed()))
    }

    fn timeout(&self) -> Duration {
        self.executor.specification().deployment.failover_timeout
    }
}

impl Setback {
    /// Returns what `error` means for another try, if no function is to blame.
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
            | Error::ConstraintUnmet { .. }
            | Error::StartFailed(_)
            | Error::StartTimeout { .. } => true,
            // An application that has given the lease back does not want another.
            Error::LeaseEnded { reason } => *reason != EndReason::Released,
            Error::AllocationRefused { because, .. } => match because {
                Draining | LeaseEnded | NoCapacity | SpawnFailed => true,
                BadRequest | BadToken => false,
            },
            _ => false,
        };
        if lost { Setback::Lost(error) } else { Setback::Final(error) }
    }
}
