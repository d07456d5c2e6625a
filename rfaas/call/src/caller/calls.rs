//! The calls of one caller, and which thread drives them: one that is alone, or one of many threads and tasks.
//!
//! ```text
//!   Exclusive   nobody else has the calls: they were never lent to an asynchronous call, or `Arc::get_mut` proves
//!               that none is left. So a blocking call takes no lock          poll ─▶ apply ─▶ mine resolved?
//!
//!   Locked      Mutex { workers, driver: Some | None }                      held for moments, never while waiting
//!               Some ──take──▶ leader: polls or sleeps, unlocked ──▶ lock, apply for all, put back
//!               None ──▶ follower: waits on `changed`, for its outcome or for the driver
//!               the reactor thread is one more of them, on behalf of tasks that sleep
//! ```
//! * A leader that has what it wanted puts the driver back and wakes the followers, one of which
//!   takes it. A leader never goes with a follower left behind. The reactor, which the first task that has to sleep
//!   starts, also waits as a follower until it can lead.
//!
//! Elsewhere: polling (`driver`), what a completion means (`workers`), the handle that applications' threads have
//! (`handle`).

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use rdmalib::ForkMark;

use super::buffer::OutputBuffer;
use super::call::Call;
use super::driver::{Driver, Wait};
use super::outcome::{CallError, Failure, Outcome, Owner};
use super::reactor::Reactor;
use super::workers::{Posted, Workers};
use crate::backoff::Spin;

/// A follower checks for its outcome so often even if nobody wakes it: a leader's waits have deadlines of their own.
const FOLLOW: Duration = Duration::from_secs(1);

/// How calls are made.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// How blocking callers wait.
    pub spin: Spin,
    /// Longest time of a call.
    pub timeout: Duration,
    /// Most bytes that a worker writes to an output.
    pub output_bytes: usize,
}

/// What changes while calls come and go.
#[derive(Debug)]
pub(super) struct InFlight<O: Owner> {
    pub(super) workers: Workers<O::Cause>,
    /// `None`: a leader has it.
    driver: Option<Driver>,
    /// Threads that wait on `changed`.
    followers: usize,
    reactor: Option<Reactor<Arc<Calls<O>>>>,
}

/// All calls of one caller.
#[derive(Debug)]
pub struct Calls<O: Owner> {
    in_flight: Mutex<InFlight<O>>,
    changed: Condvar,
    /// Ends a leader's sleep.
    bell: rdmalib::Waker,
    limits: CallLimits,
    owner: O,
    process: ForkMark,
}

impl<O: Owner> Calls<O> {
    /// Calls on `workers`, which `driver` drives and which belong to `owner`.
    pub fn new(workers: Workers<O::Cause>, driver: Driver, limits: CallLimits, owner: O) -> Self {
        let bell = driver.waker();
        let in_flight = InFlight { workers, driver: Some(driver), followers: 0, reactor: None };
        Calls {
            in_flight: Mutex::new(in_flight),
            changed: Condvar::new(),
            bell,
            limits,
            owner,
            process: ForkMark::new(),
        }
    }

    /// Fails in a child that has inherited the calls. To be asked before the lock is taken, which a thread may hold
    /// that the child does not have.
    #[inline]
    pub fn check_process(&self) -> rdmalib::Result<()> {
        self.process.check()
    }

    /// Returns the bytes of `output`, or why there are none. After a failure no worker can write to it.
    #[inline]
    pub fn read_outcome(
        &self,
        outcome: Outcome<O::Cause>,
        output: &mut OutputBuffer,
    ) -> Result<usize, CallError<O::Cause>> {
        match outcome {
            Outcome::Bytes(bytes) => Ok(bytes as usize),
            Outcome::OutputTooLarge => Err(CallError::OutputTooLarge {
                needed: output.failure_detail()?.needed_bytes.get(),
                capacity: output.capacity().min(self.limits.output_bytes),
            }),
            Outcome::UnknownFunction => Err(CallError::UnknownFunction),
            Outcome::Malformed => Err(CallError::Malformed),
            Outcome::Failed(failure) => {
                // Our end is closed (CUT FIRST), but a worker at the other end may be about to write.
                output.revoke();
                Err(CallError::Failed(failure))
            }
        }
    }

    /// Returns whether all connections are to be replaced before the next call
    /// (`workers`).
    pub fn must_be_replaced(&self) -> bool {
        self.lock().workers.must_be_replaced()
    }

    /// Returns whether calls are in flight on a callee that has not ended as far as is known.
    pub fn are_at_work(&self) -> bool {
        self.lock().workers.are_at_work()
    }

    /// Returns whether any call waits for its outcome.
    pub fn any_waiting(&self) -> bool {
        self.lock().workers.tickets.any_waiting()
    }

    /// Does `what` with the workers, and wakes whomever that resolves.
    pub(super) fn with_workers<T>(
        &self,
        what: impl FnOnce(&mut Workers<O::Cause>, &mut Vec<Waker>) -> T,
    ) -> T {
        let mut woken = Vec::new();
        let done = what(&mut self.lock().workers, &mut woken);
        wake(woken);
        done
    }

    /// Locks what is in flight. Nothing that panics with it locked leaves it half changed.
    fn lock(&self) -> MutexGuard<'_, InFlight<O>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leads for a moment, or follows.
    fn advance<'a>(
        &'a self,
        mut in_flight: MutexGuard<'a, InFlight<O>>,
        wait: &mut Wait,
    ) -> MutexGuard<'a, InFlight<O>> {
        let Some(mut driver) = in_flight.driver.take() else {
            in_flight.followers += 1;
            let (mut in_flight, _) = self
                .changed
                .wait_timeout(in_flight, FOLLOW)
                .unwrap_or_else(PoisonError::into_inner);
            in_flight.followers -= 1;
            return in_flight;
        };
        drop(in_flight);
        let taken = driver.wait(wait);
        let mut woken = Vec::new();
        let mut in_flight = self.lock();
        let resolved = in_flight.workers.tickets.resolved();
        driver.apply(taken, &mut in_flight.workers, &mut woken);
        if taken == 0 {
            check_deadlines(&mut in_flight.workers, &self.owner, wait, &mut woken);
        }
        in_flight.driver = Some(driver);
        if in_flight.workers.tickets.resolved() != resolved {
            self.hand_on(&in_flight);
        }
        if woken.is_empty() {
            return in_flight;
        }
        drop(in_flight);
        wake(woken);
        self.lock()
    }

    /// Resolves what has completed by now without waiting, unless a leader is about to.
    fn poll_once(&self, in_flight: &mut InFlight<O>, woken: &mut Vec<Waker>) {
        let Some(driver) = &mut in_flight.driver else { return };
        let resolved = in_flight.workers.tickets.resolved();
        driver.poll_all(&mut in_flight.workers, woken);
        if in_flight.workers.tickets.resolved() != resolved {
            self.hand_on(in_flight);
        }
    }

    /// Wakes the followers, which check for their outcome and for the driver.
    fn hand_on(&self, in_flight: &InFlight<O>) {
        if in_flight.followers > 0 {
            self.changed.notify_all();
        }
    }

    /// Fails everything in flight, cuts the workers, ends the reactor.
    pub fn close(&self, failure: Failure<O::Cause>) {
        let mut woken = Vec::new();
        let mut in_flight = self.lock();
        in_flight.workers.close(failure, &mut woken);
        let reactor = in_flight.reactor.take();
        self.hand_on(&in_flight);
        drop(in_flight);
        self.bell.wake();
        wake(woken);
        drop(reactor); // waits for its thread, which needs the lock and its wake-up
    }
}

impl<O> Calls<O>
where
    O: Owner<Cause: Send> + Send + Sync + 'static,
{
    /// Has the reactor wait for the tasks that sleep. To be called with the lock held under which a task was
    /// registered, which is that of `locked`.
    pub(super) fn activate_reactor(self: &Arc<Self>, locked: &mut Locked<'_, O>) -> io::Result<()> {
        let reactor = match &mut locked.in_flight().reactor {
            Some(reactor) => reactor,
            none => none.insert(Reactor::start(wait_for_tasks)?),
        };
        reactor.activate(|| Arc::clone(self));
        Ok(())
    }
}

/// The reactor's work: drives `calls` as long as tasks sleep.
fn wait_for_tasks<O: Owner>(calls: Arc<Calls<O>>) {
    let mut locked = Locked::waiting(&calls, Spin::Never);
    while locked.workers().tickets.watched() > 0 {
        locked.advance();
    }
    if let Some(reactor) = &mut locked.in_flight().reactor {
        reactor.rests();
    }
}

/// A caller that makes progress, alone or not: it posts calls, and passes time until they are resolved.
pub(super) trait Progress {
    /// What its owner says when a connection has ended.
    type Cause: Copy + Debug + PartialEq;

    /// Returns what it posts to and takes outcomes from.
    fn workers(&mut self) -> &mut Workers<Self::Cause>;

    /// Posts `call`, [`Workers::post`].
    fn post(&mut self, call: &Call<'_>) -> Result<Posted, CallError<Self::Cause>>;

    /// Passes time. Something may have happened after it.
    fn advance(&mut self);
}

/// A caller that has the [`Calls`] for itself: no lock.
pub(super) struct Exclusive<'a, O: Owner> {
    in_flight: &'a mut InFlight<O>,
    owner: &'a O,
    wait: Wait,
    woken: Vec<Waker>,
}

impl<'a, O: Owner> Exclusive<'a, O> {
    #[inline]
    pub(super) fn new(calls: &'a mut Calls<O>) -> Self {
        let in_flight = calls.in_flight.get_mut().unwrap_or_else(PoisonError::into_inner);
        let wait = Wait::new(calls.limits.spin);
        Exclusive { in_flight, owner: &calls.owner, wait, woken: Vec::new() }
    }
}

impl<O: Owner> Progress for Exclusive<'_, O> {
    type Cause = O::Cause;

    #[inline]
    fn workers(&mut self) -> &mut Workers<O::Cause> {
        &mut self.in_flight.workers
    }

    /// The first reading of the clock gives the deadline. On the hot path there is none.
    #[inline]
    fn post(&mut self, call: &Call<'_>) -> Result<Posted, CallError<O::Cause>> {
        self.in_flight.workers.post(call, None, &mut self.woken)
    }

    #[inline]
    fn advance(&mut self) {
        let driver = self.in_flight.driver.as_mut().expect("nobody else leads");
        let taken = driver.wait(&mut self.wait);
        driver.apply(taken, &mut self.in_flight.workers, &mut self.woken);
        if taken == 0 {
            check_deadlines(
                &mut self.in_flight.workers,
                self.owner,
                &mut self.wait,
                &mut self.woken,
            );
        }
        debug_assert!(self.woken.is_empty(), "a task that sleeps has a handle");
    }
}

/// One of several callers, with the calls locked except while it advances.
pub(super) struct Locked<'a, O: Owner> {
    calls: &'a Calls<O>,
    /// Always there, except within `advance`.
    guard: Option<MutexGuard<'a, InFlight<O>>>,
    wait: Wait,
    woken: Vec<Waker>,
}

impl<'a, O: Owner> Locked<'a, O> {
    /// Waits as blocking callers do.
    pub(super) fn new(calls: &'a Calls<O>) -> Self {
        Self::waiting(calls, calls.limits.spin)
    }

    /// Waits as `spin` says.
    pub(super) fn waiting(calls: &'a Calls<O>, spin: Spin) -> Self {
        let guard = Some(calls.lock());
        Locked { calls, guard, wait: Wait::new(spin), woken: Vec::new() }
    }

    fn in_flight(&mut self) -> &mut InFlight<O> {
        self.guard.as_mut().expect("taken only within `advance`")
    }

    /// Reads the clock and checks deadlines.
    pub(super) fn check_deadlines(&mut self) {
        let in_flight = self.guard.as_mut().expect("taken only within `advance`");
        let owner = &self.calls.owner;
        check_deadlines(&mut in_flight.workers, owner, &mut self.wait, &mut self.woken);
    }

    /// Resolves what has completed by now, without waiting.
    pub(super) fn poll_once(&mut self) {
        let in_flight = self.guard.as_mut().expect("taken only within `advance`");
        self.calls.poll_once(in_flight, &mut self.woken);
    }

    /// Does `what` with the workers.
    pub(super) fn with_workers<T>(
        &mut self,
        what: impl FnOnce(&mut Workers<O::Cause>, &mut Vec<Waker>) -> T,
    ) -> T {
        let in_flight = self.guard.as_mut().expect("taken only within `advance`");
        what(&mut in_flight.workers, &mut self.woken)
    }
}

impl<O: Owner> Progress for Locked<'_, O> {
    type Cause = O::Cause;

    fn workers(&mut self) -> &mut Workers<O::Cause> {
        &mut self.in_flight().workers
    }

    fn post(&mut self, call: &Call<'_>) -> Result<Posted, CallError<O::Cause>> {
        // With a deadline, since a leader that sleeps now may not read the clock for long.
        self.with_workers(|workers, woken| {
            let deadline = workers.deadline(Instant::now());
            workers.post(call, deadline, woken)
        })
    }

    fn advance(&mut self) {
        let mut guard = self.guard.take().expect("put back at the end");
        if !self.woken.is_empty() {
            drop(guard);
            wake(std::mem::take(&mut self.woken));
            guard = self.calls.lock();
        } else {
            guard = self.calls.advance(guard, &mut self.wait);
        }
        self.guard = Some(guard);
    }
}

impl<O: Owner> Drop for Locked<'_, O> {
    /// Hands the driver on, if others follow.
    fn drop(&mut self) {
        if let Some(in_flight) = self.guard.take() {
            self.calls.hand_on(&in_flight);
        }
        wake(std::mem::take(&mut self.woken));
    }
}

/// Reads the clock, checks deadlines, and asks the owner what it knows.
#[cold]
fn check_deadlines<O: Owner>(
    workers: &mut Workers<O::Cause>,
    owner: &O,
    wait: &mut Wait,
    woken: &mut Vec<Waker>,
) {
    let now = Instant::now();
    let next = workers.check_deadlines(now, owner.noted(), || owner.ask(), woken);
    wait.looked(now, next);
}

/// Wakes tasks. Never called with a lock held, since a waker runs foreign code (`tickets`).
fn wake(woken: Vec<Waker>) {
    woken.into_iter().for_each(Waker::wake);
}
