//! Who polls, who sleeps: one caller alone, or many threads and tasks at once.
//!
//! ```text
//!   alone   nobody else has the data path, that is, no asynchronous invocation: it was never lent, or
//!           `Arc::get_mut` proves it, so a blocking call takes no lock  poll ─▶ apply ─▶ mine done?
//!
//!   shared  Mutex { workers, driver: Some | None }                     held for moments, never waiting
//!           Some ──take──▶ leader: polls or sleeps, unlocked ──▶ lock, apply for all, put back
//!           None ──▶ follower: waits on `changed`, for a result or for the driver
//!           the reactor thread is one more of them, on behalf of tasks that sleep
//! ```
//! * ONE-DRIVER - completion queue and receiving halves are one value that is either in the state
//!   or in the hands of one leader. So no completion is seen twice and none is stolen: the leader
//!   resolves whatever comes, whoever asked for it.
//! * HANDOVER - a leader that has what it wanted puts the driver back and wakes the followers, one
//!   of whom takes it. A leader is never gone with anybody left behind: also the reactor, which is
//!   started by the first task that has to sleep, waits as a follower until it can lead.
//! * OUTSIDE - wakers are used without the lock: they run foreign code, which may call us.
//!
//! Elsewhere: what a completion means (`workers`), how a wait passes its time (`wait`).

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use rdmalib::{CompletionQueue, ForkMark, ReceiveQueue, WorkCompletion};

use super::buffer::Output;
use super::failure::{Failure, Outcome};
use super::life::Life;
use super::reactor::Reactor;
use super::tickets::Ticket;
use super::wait::{Pause, Waiter};
use super::workers::{Call, Worker, Workers, receive_id, receiver};
use super::{Deployment, Spin};
use crate::error::{Error, Result};
use rfaas_call::Sharing;
use rfaas_protocol::Malformed;

/// Completions taken from the queue at a time.
const BATCH: usize = 16;
/// A follower looks again so often even if nobody wakes it: a leader's waits have deadlines of
/// their own.
const FOLLOW: Duration = Duration::from_secs(1);

/// What it takes to see completions (ONE-DRIVER).
#[derive(Debug)]
pub(super) struct Driver {
    completions: CompletionQueue,
    receives: Vec<ReceiveQueue>,
    /// Workers whose replies used up a receive, to be posted again at the next wait: after the next request,
    /// and not before the caller has its result. At most a batch, which is less than there are to spare.
    owed: Vec<usize>,
    batch: [WorkCompletion; BATCH],
    /// Whether a worker needs the CPU that is spun on.
    sharing: Sharing,
}

/// What changes while invocations come and go.
#[derive(Debug)]
pub(super) struct State {
    pub(super) workers: Workers,
    /// `None`: a leader has it.
    driver: Option<Driver>,
    /// Threads that wait on `changed`.
    followers: usize,
    pub(super) reactor: Option<Reactor>,
}

/// The data path of one executor.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Ends a leader's sleep.
    bell: rdmalib::Waker,
    spin: Spin,
    limit: Duration,
    /// Most that a worker writes to an output.
    output_bytes: usize,
    functions: Vec<String>,
    /// Knows why connections end. Weak, since an unfinished invocation does not keep a lease.
    lease: Weak<Life>,
    process: ForkMark,
}

impl Driver {
    pub(super) fn new(completions: CompletionQueue, receives: Vec<ReceiveQueue>) -> Self {
        let batch = [WorkCompletion::default(); BATCH];
        Driver {
            completions,
            receives,
            owed: Vec::with_capacity(BATCH),
            batch,
            sharing: Sharing::default(),
        }
    }

    /// Ends the sleep of whoever drives.
    pub(super) fn waker(&self) -> rdmalib::Waker {
        self.completions.waker()
    }

    /// Polls the way `waiter` says until there are completions (their number) or it is time to look
    /// at the clock (0).
    #[inline]
    fn wait(&mut self, waiter: &mut Waiter) -> usize {
        self.repay();
        if let Some(time) = waiter.sleep()
            && let Err(error) = self.completions.wait(Some(time))
        {
            // Without the bell we look now and then.
            tracing::error!(%error, "cannot sleep on the completion queue");
            thread::sleep(time.min(Duration::from_millis(1)));
        }
        let early = self.sharing.is_likely();
        loop {
            let taken = self.completions.poll(&mut self.batch);
            if taken > 0 {
                waiter.fruitful(&mut self.sharing);
                return taken;
            }
            match waiter.fruitless(early) {
                Pause::Spin => {
                    self.completions.stay_awake();
                    std::hint::spin_loop();
                }
                Pause::Yield => thread::yield_now(),
                Pause::Look => return 0,
            }
        }
    }

    /// Resolves the first `taken` completions of the batch.
    #[inline]
    fn apply(&mut self, taken: usize, workers: &mut Workers, woken: &mut Vec<Waker>) {
        for completion in &self.batch[..taken] {
            self.owed.extend(receiver(completion));
            workers.apply(completion, woken);
        }
    }

    /// Posts the receives that replies have used up.
    #[inline]
    fn repay(&mut self) {
        while let Some(worker) = self.owed.pop() {
            if let Some(receives) = self.receives.get_mut(worker) {
                // A failure means that the connection is gone, and other receives tell.
                receives.post(receive_id(worker), None).ok();
            }
        }
    }
}

impl Shared {
    /// The data path to `workers`, which `driver` drives and which offer `functions`.
    pub(super) fn new(
        workers: Vec<Worker>,
        driver: Driver,
        functions: Vec<String>,
        deployment: &Deployment,
        lease: Weak<Life>,
    ) -> Self {
        let limit = deployment.invocation_timeout;
        let bell = driver.waker();
        let workers = Workers::new(workers, limit);
        let state = State { workers, driver: Some(driver), followers: 0, reactor: None };
        Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            bell,
            spin: deployment.spin,
            limit,
            output_bytes: deployment.output_bytes,
            functions,
            lease,
            process: ForkMark::new(),
        }
    }

    /// [`Error::Forked`] in a child that has inherited it. To be asked before the lock is taken: a thread that
    /// the child does not have may hold it.
    #[inline]
    pub(super) fn check_process(&self) -> Result<()> {
        Ok(self.process.check()?)
    }

    /// Names of the functions, by index.
    pub(super) fn functions(&self) -> &[String] {
        &self.functions
    }

    /// Bytes of `output`, or why there are none. After a failure no worker can write to it.
    #[inline]
    pub(super) fn read_outcome(&self, outcome: Outcome, output: &mut Output) -> Result<usize> {
        match outcome {
            Outcome::Bytes(bytes) => Ok(bytes as usize),
            Outcome::OutputTooLarge => Err(Error::OutputTooLarge {
                needed: output.failure_detail()?.needed_bytes.get(),
                capacity: output.len().min(self.output_bytes),
            }),
            // The index came from the executor's own list: it contradicts itself.
            Outcome::UnknownFunction => Err(Malformed::Field("function list").into()),
            Outcome::Malformed => Err(Malformed::Field("request header").into()),
            Outcome::Failed(failure) => {
                // Our end is closed (`workers`, CUT), but a worker at the other end may be about to
                // write.
                output.revoke();
                Err(failure.into_error(self.limit))
            }
        }
    }

    /// The state. Nothing that panics with it locked leaves it half changed.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leads for a moment, or follows.
    fn advance<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        waiter: &mut Waiter,
    ) -> MutexGuard<'a, State> {
        let Some(mut driver) = state.driver.take() else {
            state.followers += 1;
            let (mut state, _) =
                self.changed.wait_timeout(state, FOLLOW).unwrap_or_else(PoisonError::into_inner);
            state.followers -= 1;
            return state;
        };
        drop(state);
        let taken = driver.wait(waiter);
        let mut woken = Vec::new();
        let mut state = self.lock();
        let resolved = state.workers.tickets.resolved();
        driver.apply(taken, &mut state.workers, &mut woken);
        if taken == 0 {
            look(&mut state.workers, &self.lease, waiter, &mut woken);
        }
        state.driver = Some(driver);
        if state.workers.tickets.resolved() != resolved {
            self.hand_over(&state);
        }
        if woken.is_empty() {
            return state;
        }
        drop(state);
        wake(woken); // OUTSIDE
        self.lock()
    }

    /// Resolves what is there without waiting, unless a leader is about to.
    pub(super) fn glance(&self, state: &mut State, woken: &mut Vec<Waker>) {
        let Some(mut driver) = state.driver.take() else { return };
        let resolved = state.workers.tickets.resolved();
        loop {
            driver.repay();
            let taken = driver.completions.poll(&mut driver.batch);
            driver.apply(taken, &mut state.workers, woken);
            if taken < BATCH {
                break;
            }
        }
        state.driver = Some(driver);
        if state.workers.tickets.resolved() != resolved {
            self.hand_over(state);
        }
    }

    /// HANDOVER. Lets the followers look: for their outcome, or for the driver.
    fn hand_over(&self, state: &State) {
        if state.followers > 0 {
            self.changed.notify_all();
        }
    }

    /// Fails everything in flight, cuts the workers, ends the reactor.
    pub(super) fn close(&self, failure: Failure) {
        let mut woken = Vec::new();
        let mut state = self.lock();
        state.workers.close(failure, &mut woken);
        let reactor = state.reactor.take();
        self.hand_over(&state);
        drop(state);
        self.bell.wake();
        wake(woken);
        drop(reactor); // waits for its thread, which needs the lock and its wake-up
    }
}

/// A caller that posts and waits, alone or not.
pub(super) trait Drive {
    /// What it posts to and takes outcomes from.
    fn workers(&mut self) -> &mut Workers;

    /// Posts `call`, [`Workers::post`].
    fn post(&mut self, call: &Call<'_>) -> Result<Option<Ticket>>;

    /// Passes time; something may have happened after it.
    fn advance(&mut self);
}

/// The data path as its executor has it: its own, until the first asynchronous invocation shares it.
#[derive(Debug)]
pub(super) struct DataPath(Handle);

#[derive(Debug)]
enum Handle {
    Own(Box<Shared>),
    Lent(Arc<Shared>),
    /// Between the two.
    Moving,
}

impl DataPath {
    pub(super) fn new(shared: Shared) -> Self {
        DataPath(Handle::Own(Box::new(shared)))
    }

    /// A handle for somebody else.
    pub(super) fn lend(&mut self) -> &Arc<Shared> {
        if let Handle::Own(_) = self.0
            && let Handle::Own(own) = std::mem::replace(&mut self.0, Handle::Moving)
        {
            self.0 = Handle::Lent(Arc::from(own));
        }
        match &self.0 {
            Handle::Lent(shared) => shared,
            Handle::Own(_) | Handle::Moving => unreachable!("just lent"),
        }
    }

    /// `None` if anybody else may use it too.
    #[inline]
    fn alone(&mut self) -> Option<&mut Shared> {
        match &mut self.0 {
            Handle::Own(own) => Some(own),
            Handle::Lent(shared) => Arc::get_mut(shared),
            Handle::Moving => None,
        }
    }
}

impl Deref for DataPath {
    type Target = Shared;

    #[inline]
    fn deref(&self) -> &Shared {
        match &self.0 {
            Handle::Own(own) => own,
            Handle::Lent(shared) => shared,
            Handle::Moving => unreachable!("only while `lend` runs"),
        }
    }
}

impl Drop for DataPath {
    /// Fails what is in flight: invocations may outlive their executor.
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return; // what is in flight is the parent's
        }
        self.close(Failure::WorkerLost("its executor was dropped"));
    }
}

/// A caller that has the [`Shared`] for itself: no lock.
pub(super) struct Alone<'a> {
    state: &'a mut State,
    lease: &'a Weak<Life>,
    waiter: Waiter,
    woken: Vec<Waker>,
}

impl<'a> Alone<'a> {
    /// `None` if anybody else may use `data` too.
    #[inline]
    pub(super) fn new(data: &'a mut DataPath) -> Option<Self> {
        let shared = data.alone()?;
        let state = shared.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let waiter = Waiter::new(shared.spin);
        Some(Alone { state, lease: &shared.lease, waiter, woken: Vec::new() })
    }
}

impl Drive for Alone<'_> {
    #[inline]
    fn workers(&mut self) -> &mut Workers {
        &mut self.state.workers
    }

    /// The first look at the clock gives the deadline: on the hot path there is none.
    #[inline]
    fn post(&mut self, call: &Call<'_>) -> Result<Option<Ticket>> {
        self.state.workers.post(call, None, &mut self.woken)
    }

    #[inline]
    fn advance(&mut self) {
        let driver = self.state.driver.as_mut().expect("nobody else leads");
        let taken = driver.wait(&mut self.waiter);
        driver.apply(taken, &mut self.state.workers, &mut self.woken);
        if taken == 0 {
            look(&mut self.state.workers, self.lease, &mut self.waiter, &mut self.woken);
        }
        debug_assert!(self.woken.is_empty(), "who sleeps on a waker has a handle");
    }
}

/// One of several callers, with the state locked except while it advances.
pub(super) struct Together<'a> {
    shared: &'a Shared,
    /// Always there, except within `advance`.
    state: Option<MutexGuard<'a, State>>,
    waiter: Waiter,
    woken: Vec<Waker>,
}

impl<'a> Together<'a> {
    /// Waits as the deployment says.
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self::waiting(shared, shared.spin)
    }

    /// Waits as `spin` says.
    pub(super) fn waiting(shared: &'a Shared, spin: Spin) -> Self {
        let state = Some(shared.lock());
        Together { shared, state, waiter: Waiter::new(spin), woken: Vec::new() }
    }

    pub(super) fn state(&mut self) -> &mut State {
        self.state.as_mut().expect("taken only within `advance`")
    }

    /// Looks at the clock, at deadlines, at news.
    pub(super) fn look(&mut self) {
        let state = self.state.as_mut().expect("taken only within `advance`");
        look(&mut state.workers, &self.shared.lease, &mut self.waiter, &mut self.woken);
    }

    /// Resolves what is there, without waiting.
    pub(super) fn glance(&mut self) {
        let state = self.state.as_mut().expect("taken only within `advance`");
        self.shared.glance(state, &mut self.woken);
    }
}

impl Drive for Together<'_> {
    fn workers(&mut self) -> &mut Workers {
        &mut self.state().workers
    }

    fn post(&mut self, call: &Call<'_>) -> Result<Option<Ticket>> {
        let workers = &mut self.state.as_mut().expect("taken only within `advance`").workers;
        // With a deadline, since a leader that sleeps now may not look at the clock for long.
        let deadline = workers.deadline(Instant::now());
        workers.post(call, deadline, &mut self.woken)
    }

    fn advance(&mut self) {
        let mut state = self.state.take().expect("put back at the end");
        if !self.woken.is_empty() {
            drop(state);
            wake(std::mem::take(&mut self.woken)); // OUTSIDE
            state = self.shared.lock();
        } else {
            state = self.shared.advance(state, &mut self.waiter);
        }
        self.state = Some(state);
    }
}

impl Drop for Together<'_> {
    /// HANDOVER.
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            self.shared.hand_over(&state);
        }
        wake(std::mem::take(&mut self.woken)); // OUTSIDE
    }
}

/// Looks at the clock, at deadlines, at news.
#[cold]
fn look(workers: &mut Workers, lease: &Weak<Life>, waiter: &mut Waiter, woken: &mut Vec<Waker>) {
    let now = Instant::now();
    let lease = lease.upgrade();
    let over = lease.as_ref().and_then(|lease| lease.over());
    let looked = workers.look(now, over, || lease.and_then(|lease| lease.news()), woken);
    waiter.looked(now, looked.until, looked.news);
}

/// Wakes tasks; never called with a lock held (OUTSIDE).
pub(super) fn wake(woken: Vec<Waker>) {
    woken.into_iter().for_each(Waker::wake);
}
