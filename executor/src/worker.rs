//! A worker thread's part in a call: calls the function, counts, and passes the time between calls.
//!
//! * Slots, areas, receives and the library exist before the first call. Per call there is no
//!   allocation, lock, log line or system call. Time is counted in ticks (`clock`), which are read
//!   at each poll that finds nothing and after each reply, and never from finding a request to its
//!   reply.
//! * A function may fork, and both processes return from it. The child has this worker's connection too, and ends here.
//!
//! Elsewhere: reading requests and replying (`rfaas_call::callee`), when to sleep (`spin`), counting (`meter`,
//! `account`), starting and stopping (`pool`).

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rdmalib::{CompletionQueue, Device, ForkMark};
use rfaas_call::callee::{Callee, CallerConnection, Service, ServiceEnd};
use rfaas_call::edge::{BatchRun, Hop, HopEnd, Turn};
use rfaas_call::{Place, Spin};

use crate::account::{Account, Published, SETTLE_EACH_NS};
use crate::clock::{ticks, ticks_of};
use crate::cpus::Cpus;
use crate::dial::{DialError, dial_client};
use crate::library::{GuardedMemory, Library, LoadError, leave_forked};
use crate::meter::Meter;
use crate::plan::Plan;
use crate::spin::{Idle, Spinner};
use crate::sync::{AtomicBool, Ordering};

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerStartError {
    /// A peer does not answer.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// An edge of a graph could not be made.
    #[error("an edge: {0}")]
    Edges(String),
    /// Its library does not want to be called.
    #[error(transparent)]
    Library(LoadError),
    /// The device cannot provide what the worker needs.
    #[error("{what} of a worker: {source}")]
    Device {
        /// What was asked of it.
        what: &'static str,
        /// Its error.
        #[source]
        source: rdmalib::Error,
    },
}

/// Why a worker has ended.
#[derive(Debug)]
pub enum WorkerEnd {
    /// It answered calls.
    Called(ServiceEnd),
    /// It served a graph.
    Hopped(HopEnd),
}

impl WorkerEnd {
    /// Returns whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        matches!(self, WorkerEnd::Called(ServiceEnd::Stopped) | WorkerEnd::Hopped(HopEnd::Stopped))
    }
}

impl fmt::Display for WorkerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkerEnd::Called(end) => end.fmt(f),
            WorkerEnd::Hopped(end) => end.fmt(f),
        }
    }
}

/// The connection to the client.
pub type Connection = CallerConnection<GuardedMemory>;

/// Makes an unconnected one, whose requests complete into `requests`. It is in a protection domain
/// of its own: the client reaches this worker's slots with it, and nothing else.
pub fn prepare(
    device: &Device,
    plan: &Plan,
    max_guards: usize,
    requests: &CompletionQueue,
) -> Result<Connection, WorkerStartError> {
    let failed = |what| move |source| WorkerStartError::Device { what, source };
    let domain = device.domain().map_err(failed("protection domain"))?;
    let memory = GuardedMemory::new(&domain, plan.layout, max_guards).map_err(failed("slots"))?;
    Connection::new(device, &domain, memory, requests)
        .map_err(|(what, source)| WorkerStartError::Device { what, source })
}

/// Connects to the client as worker `index`.
pub fn connect(connection: &mut Connection, plan: &Plan, index: u16) -> Result<(), DialError> {
    connection
        .connect(plan.session, index, |queue_pair, hello| dial_client(queue_pair, plan, hello))
}

/// What a worker and the main thread share.
#[derive(Clone, Copy, Debug)]
pub struct WorkerShare<'a> {
    /// The worker's account at the manager.
    pub account: &'a Mutex<Account>,
    /// What it shows of its calls.
    pub published: &'a Published,
    /// Set when it is to end.
    pub stop: &'a AtomicBool,
}

/// A worker at work.
#[derive(Debug)]
pub struct Worker<'a> {
    library: &'a Library,
    share: WorkerShare<'a>,
    spinner: Spinner,
    meter: Meter,
    process: ForkMark,
    /// Where it may go when it has to share its CPU; `None` if it is pinned.
    cpus: Option<Cpus>,
    /// The last poll that found nothing, in ticks.
    idle_at: u64,
    /// When the account is to be settled next, in ticks.
    settle_at: u64,
    /// What a function that takes batches gets; kept, so that a call allocates nothing.
    runs: Vec<*mut BatchRun>,
}

impl<'a> Worker<'a> {
    /// Starts now; moves among `cpus`.
    pub fn new(
        library: &'a Library,
        spin: Spin,
        cpus: Option<Cpus>,
        share: WorkerShare<'a>,
    ) -> Self {
        let now = ticks();
        Worker {
            library,
            share,
            spinner: Spinner::new(spin),
            meter: Meter::new(now),
            process: ForkMark::new(),
            cpus,
            idle_at: now,
            settle_at: now + ticks_of(SETTLE_EACH_NS),
            runs: Vec::new(),
        }
    }

    /// Serves the requests of `callee` until its connection ends or `stop` is set. The account is not
    /// yet closed then; [`Meter::used`] has what is due.
    pub fn serve(&mut self, callee: &mut Callee<GuardedMemory>) -> ServiceEnd {
        let end = callee.serve(self);
        self.meter.polled(ticks());
        end
    }

    /// Serves the runs of `hop` likewise.
    pub fn serve_graph(&mut self, hop: &mut Hop<GuardedMemory>) -> HopEnd {
        let end = hop.serve(self);
        self.meter.polled(ticks());
        end
    }

    /// Returns what it has used.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Counts a call of a function.
    #[inline]
    fn counted<T>(&mut self, call: impl FnOnce() -> T) -> T {
        self.share.published.begin(self.meter.used(), self.meter.mark());
        let returned = call();
        if !self.process.is_here() {
            leave_forked(); // this is the child of a function that has forked
        }
        self.share.published.end();
        self.meter.called();
        returned
    }

    fn read_clock(&mut self) {
        if self.spinner.time_is(Instant::now())
            && let Some(cpus) = &self.cpus
        {
            cpus.move_on();
        }
        let now = ticks();
        self.meter.polled(now);
        self.settle_if_due(now);
    }

    fn sleep(
        &mut self,
        requests: &mut CompletionQueue,
        until: Option<Instant>,
    ) -> rdmalib::Result<()> {
        let now = ticks();
        self.meter.polled(now);
        self.settle(now);
        let until = until.map(|at| at.saturating_duration_since(Instant::now()));
        requests.wait(until)?; // ended by its waker when `stop` is set
        self.meter.slept(ticks());
        Ok(())
    }

    #[inline]
    fn settle_if_due(&mut self, now: u64) {
        if now >= self.settle_at {
            self.settle(now);
        }
    }

    #[cold]
    fn settle(&mut self, now: u64) {
        self.settle_at = now + ticks_of(SETTLE_EACH_NS);
        // Not waited for: the main thread has it only after a call that took long, and settles then.
        if let Ok(mut account) = self.share.account.try_lock() {
            account.settle(&self.meter.used().totals());
        }
    }
}

impl<'a> Service for Worker<'a> {
    #[inline]
    fn is_stopped(&self) -> bool {
        self.share.stop.load(Ordering::Relaxed)
    }

    #[inline]
    fn stop(&self) -> impl Fn() -> bool + use<'a> {
        let stop = self.share.stop;
        move || stop.load(Ordering::Relaxed)
    }

    #[inline]
    fn arrived(&mut self) {
        self.meter.polled(self.idle_at);
    }

    #[inline]
    fn call(&mut self, function: u32, place: Place<'_>) -> Option<u32> {
        let function = self.library.function(function)?;
        Some(self.counted(|| function.call(place)))
    }

    #[inline]
    fn call_in(&mut self, function: u32, place: Place<'_>, turn: &mut dyn Turn) -> Option<u32> {
        let function = self.library.function(function)?;
        Some(self.counted(|| function.call_in(place, turn)))
    }

    fn call_batch(
        &mut self,
        function: u32,
        runs: &mut [BatchRun],
        turn: &mut dyn Turn,
    ) -> Option<i32> {
        let function = self.library.batch_function(function)?;
        let mut pointers = std::mem::take(&mut self.runs);
        let returned = self.counted(|| function.call(runs, &mut pointers, turn));
        self.runs = pointers;
        Some(returned)
    }

    #[inline]
    fn answered(&mut self) {
        let now = ticks(); // now, when the client has its reply
        self.meter.executed(now);
        self.spinner.worked();
        self.settle_if_due(now);
    }

    #[inline]
    fn idle(
        &mut self,
        requests: &mut CompletionQueue,
        until: Option<Instant>,
    ) -> rdmalib::Result<()> {
        match self.spinner.idle() {
            Idle::Poll => {
                requests.stay_awake();
                self.idle_at = ticks();
                std::hint::spin_loop();
            }
            Idle::Clock => self.read_clock(),
            Idle::Yield => {
                std::thread::yield_now();
                self.read_clock();
            }
            Idle::Sleep => self.sleep(requests, until)?,
        }
        Ok(())
    }
}

/// Locks the account, also after a thread that held it has died.
pub fn locked(account: &Mutex<Account>) -> std::sync::MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}
