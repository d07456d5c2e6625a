//! The worker pool of an executor: workers are started, given a plan and the library, watched, ended.
//!
//! ```text
//!   first worker ──dials the manager──▶ plan ──┐
//!   the others                      plan ──────┴──dial manager, client──▶ library: its rfaas_init ──▶ serve
//!   thread ──reports its end (`WorkerEnded`)──▶ thread_local destructors ──▶ joined ──▶ destructors of the process
//!      └──gone without a report: a function has ended it ──▶ the process ends (`vanished`)
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdmalib::{CompletionQueue, Device, Domain, Waker};
use rfaas_call::callee::{Callee, ServiceEnd, request_queue};

use crate::account::{Account, Published};
use crate::clock::{MS, ticks};
use crate::cpus::{Cpus, pin};
use crate::events::{Notifier, ThreadEvent};
use crate::fatal;
use crate::hop::{self, Edges, INTRODUCED_WITHIN, Means};
use crate::introductions::{Expected, Introductions};
use crate::library::{Library, MAX_GUARDS};
use crate::parts::Work;
use crate::plan::{Plan, StandbyPlan};
use crate::sync::{AtomicBool, Ordering};
use crate::watch::{News, Watch};
use crate::worker::{self, Connection, Worker, WorkerEnd, WorkerShare, WorkerStartError, locked};
use rfaas_program::footprint::stack_bytes;

/// Time that a worker has at its end until the manager has its last counts.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(150);
/// Time that workers have to end by themselves. A function that runs longer is left running, and ends
/// with the process.
const STOP_TIMEOUT: Duration = Duration::from_millis(200);
/// Time for the last counts of those workers; or, where all have ended, for their threads to end too.
const LAST_COUNTS_TIMEOUT: Duration = Duration::from_millis(50);
/// A call that takes longer is settled while it runs.
const LONG_CALL_NS: u64 = 500 * MS;

/// One worker, as the main thread sees it.
#[derive(Debug)]
struct WorkerHandle {
    account: Arc<Mutex<Account>>,
    published: Arc<Published>,
    /// Once it has a plan.
    waker: Option<Waker>,
    tasks: Sender<Task>,
    library: Sender<Arc<Library>>,
    /// Its thread among those of this process, once that runs.
    place: Arc<OnceLock<PathBuf>>,
    ended: bool,
}

/// All workers.
#[derive(Debug)]
pub struct WorkerPool {
    members: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    notifier: Notifier,
    standby: Arc<StandbyPlan>,
    device: Device,
    /// Of the connections to the manager.
    domain: Domain,
}

/// What a worker's thread starts with.
struct WorkerStart {
    index: u16,
    standby: Arc<StandbyPlan>,
    device: Device,
    account: Arc<Mutex<Account>>,
    published: Arc<Published>,
    tasks: Receiver<Task>,
    library: Receiver<Arc<Library>>,
    /// Set to where this thread is to be found.
    place: Arc<OnceLock<PathBuf>>,
    notifier: Notifier,
    stop: Arc<AtomicBool>,
}

/// What a worker is to do.
#[derive(Debug)]
struct Task {
    plan: Arc<Plan>,
    /// Where what is sent to it completes.
    arrivals: CompletionQueue,
    max_guards: usize,
    /// What it is for, if that is a graph.
    work: Option<(Work, Sender<Expected>)>,
}

impl WorkerPool {
    /// Starts the thread of the first worker, which dials the manager and then waits for its part. `notifier` gets
    /// what becomes of it, and of the others. The ends of the connections to the manager complete into
    /// `manager_ends`.
    pub fn start(
        standby: &Arc<StandbyPlan>,
        device: &Device,
        manager_ends: &CompletionQueue,
        notifier: &Notifier,
    ) -> Result<WorkerPool, PoolError> {
        let mut pool = WorkerPool {
            members: Vec::new(),
            threads: Vec::new(),
            stop: Arc::new(AtomicBool::new(false)),
            notifier: notifier.clone(),
            standby: standby.clone(),
            device: device.clone(),
            domain: device.domain()?,
        };
        pool.start_worker(manager_ends)?;
        Ok(pool)
    }

    /// Gives the workers their shares of `plan`: they dial the client, and all but the first the manager before.
    pub fn assign(
        &mut self,
        plan: &Arc<Plan>,
        manager_ends: &CompletionQueue,
    ) -> Result<(), PoolError> {
        for index in 0..plan.workers.len() {
            let requests = request_queue(&self.device, &plan.layout)?;
            self.assign_one(index, plan, requests, None, manager_ends)?;
        }
        Ok(())
    }

    /// Does the same for a graph, in which the workers are for these `works`: they are dialled by others at
    /// `introductions`, and dial others, before they dial the client.
    pub fn assign_parts(
        &mut self,
        plan: &Arc<Plan>,
        works: Vec<Work>,
        introductions: Introductions,
        manager_ends: &CompletionQueue,
    ) -> Result<(), PoolError> {
        let dialled = works.iter().map(Work::dialled_by).sum();
        let expected = introductions.accept(dialled, INTRODUCED_WITHIN)?;
        for (index, work) in works.into_iter().enumerate() {
            let arrivals = hop::arrivals(&self.device, plan.layout.slots(), &work)?;
            let work = Some((work, expected.clone()));
            self.assign_one(index, plan, arrivals, work, manager_ends)?;
        }
        Ok(())
    }

    fn assign_one(
        &mut self,
        index: usize,
        plan: &Arc<Plan>,
        arrivals: CompletionQueue,
        work: Option<(Work, Sender<Expected>)>,
        manager_ends: &CompletionQueue,
    ) -> Result<(), PoolError> {
        if index == self.members.len() {
            self.start_worker(manager_ends)?;
        }
        let max_guards = MAX_GUARDS / plan.workers.len();
        let member = &mut self.members[index];
        member.waker = Some(arrivals.waker());
        let task = Task { plan: plan.clone(), arrivals, max_guards, work };
        let _ = member.tasks.send(task); // one that has ended needs none
        Ok(())
    }

    fn start_worker(&mut self, manager_ends: &CompletionQueue) -> Result<(), PoolError> {
        let index = self.members.len();
        let account = Account::new(&self.device, &self.domain, manager_ends)?;
        let account = Arc::new(Mutex::new(account));
        let published = Arc::new(Published::default());
        let (tasks, of_worker) = mpsc::channel();
        let (library, receiver) = mpsc::channel();
        let place = Arc::new(OnceLock::new());
        let start = WorkerStart {
            index: index as u16, // at most 65,535
            standby: self.standby.clone(),
            device: self.device.clone(),
            account: account.clone(),
            published: published.clone(),
            tasks: of_worker,
            library: receiver,
            place: place.clone(),
            notifier: self.notifier.clone(),
            stop: self.stop.clone(),
        };
        let notifier = self.notifier.clone();
        let thread = thread::Builder::new().name(format!("worker-{index}"));
        self.threads.push(thread.stack_size(stack_bytes()).spawn(move || {
            let end = work(start);
            notifier.tell(ThreadEvent::WorkerEnded { worker: index, end });
        })?);
        let waker = None;
        let member =
            WorkerHandle { account, published, waker, tasks, library, place, ended: false };
        self.members.push(member);
        Ok(())
    }

    /// Lets the workers begin.
    pub fn begin(&self, library: &Arc<Library>) {
        for member in &self.members {
            let _ = member.library.send(library.clone()); // one that has ended needs none
        }
    }

    /// Notes that a worker has ended.
    pub fn ended(&mut self, worker: usize) {
        if let Some(member) = self.members.get_mut(worker) {
            member.ended = true;
        }
    }

    /// Returns a worker whose thread is no more and has not reported its end, as far as is known: a
    /// function has ended the thread, by a raw exit(2), or with seccomp(2).
    pub fn vanished(&self) -> Option<usize> {
        let gone = |member: &WorkerHandle| {
            let place = member.place.get().filter(|_| !member.ended);
            place.is_some_and(|place| matches!(fs::exists(place), Ok(false)))
        };
        self.members.iter().position(gone)
    }

    /// Settles for what `worker`, which has vanished in a call, had used before it. When in the call it ended is not
    /// known. No thread is joined after that: the standard library panics over one that ended past it.
    pub fn write_off(&mut self, worker: usize) {
        self.threads.clear();
        if let Some(member) = self.members.get_mut(worker) {
            member.ended = true;
            let totals = member.published.before_call();
            member.with_account(|account| account.close(&totals, LAST_COUNTS_TIMEOUT));
        }
    }

    /// Settles for workers whose call takes long.
    pub fn settle_long_calls(&self) {
        let now = ticks();
        for member in &self.members {
            if let Some(totals) = member.published.in_call(LONG_CALL_NS, now) {
                member.with_account(|account| account.settle(&totals));
            }
        }
    }

    /// Ends all workers within 300 ms and settles for those that do not end by themselves. Returns
    /// whether all did, and their threads too. Nothing cuts it short: the client's end and the manager's signal come
    /// together, and the last counts are on their way.
    pub fn stop(&mut self, watch: &mut Watch) -> io::Result<bool> {
        self.stop.store(true, Ordering::Relaxed);
        self.members.iter_mut().for_each(|member| {
            // One that still waits for its part or for the library waits in vain.
            member.tasks = mpsc::channel().0;
            member.library = mpsc::channel().0;
            member.waker.iter().for_each(Waker::wake);
        });
        let start = Instant::now();
        let deadline = start + STOP_TIMEOUT;
        while self.members.iter().any(|member| !member.ended) {
            match watch.next(deadline.saturating_duration_since(Instant::now()))? {
                News::Event(ThreadEvent::WorkerEnded { worker, end }) => {
                    log_end(worker, &end);
                    self.ended(worker);
                }
                News::Nothing => break,
                _ => {} // whatever else happens: it is over
            }
        }
        if self.members.iter().all(|member| member.ended) {
            return self.join(watch, start + STOP_TIMEOUT + LAST_COUNTS_TIMEOUT);
        }
        let deadline = Instant::now() + LAST_COUNTS_TIMEOUT;
        let now = ticks();
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| !member.ended) {
            tracing::debug!(worker = index, "its function still runs; ended with the process");
            if let Some(totals) = member.published.in_call(0, now) {
                let timeout = deadline.saturating_duration_since(Instant::now());
                member.with_account(|account| account.close(&totals, timeout));
            }
        }
        Ok(false)
    }

    /// Waits until the threads of all workers, which have ended, are no more: so that destructors of the library's
    /// thread_local objects have run before those of its static ones. Returns whether they were by `deadline`.
    fn join(&mut self, watch: &mut Watch, deadline: Instant) -> io::Result<bool> {
        let (threads, notifier) = (std::mem::take(&mut self.threads), self.notifier.clone());
        // On a thread of its own, since such a destructor may hang.
        thread::Builder::new().name("joiner".into()).spawn(move || {
            for thread in threads {
                let _ = thread.join(); // a panic has ended the process
            }
            notifier.tell(ThreadEvent::WorkersJoined);
        })?;
        loop {
            match watch.next(deadline.saturating_duration_since(Instant::now()))? {
                News::Event(ThreadEvent::WorkersJoined) => return Ok(true),
                News::Nothing => return Ok(false),
                _ => {}
            }
        }
    }
}

impl WorkerHandle {
    /// Does something with the account, unless the worker has it.
    fn with_account<T>(&self, f: impl FnOnce(&mut Account) -> T) -> Option<T> {
        match self.account.try_lock() {
            Ok(mut account) => Some(f(&mut account)),
            Err(TryLockError::Poisoned(account)) => Some(f(&mut account.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Why workers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The device cannot provide what they need.
    #[error(transparent)]
    Device(#[from] rdmalib::Error),
    /// There is no thread.
    #[error("cannot start a worker thread: {0}")]
    Thread(#[from] io::Error),
}

/// Logs how a worker ended, at a low level: a client may cut one off at any time.
pub fn log_end(worker: usize, end: &Result<WorkerEnd, WorkerStartError>) {
    match end {
        Ok(end) if end.is_stopped() => {}
        Ok(end) => tracing::debug!(worker, %end, "worker ended"),
        Err(error) => tracing::debug!(worker, %error, "worker did not start"),
    }
}

/// Returns where this thread is to be found as long as it lives. `None`: nothing will miss it.
fn place_of_this_thread() -> Option<PathBuf> {
    // A link to "PID/task/TID", in the numbers of whichever namespace this /proc shows.
    Some(Path::new("/proc").join(fs::read_link("/proc/thread-self").ok()?))
}

/// Runs a worker's thread from its begin to its end.
fn work(start: WorkerStart) -> Result<WorkerEnd, WorkerStartError> {
    fatal::note_stack();
    if let Some(place) = place_of_this_thread() {
        let _ = start.place.set(place); // nobody else does
    }
    let (account, index) = (&start.account, start.index);
    locked(account).connect(&start.standby)?;
    if index == 0 {
        start.notifier.tell(ThreadEvent::CountsHere);
    }
    let stopped = Ok(WorkerEnd::Called(ServiceEnd::Stopped));
    let Ok(Task { plan, arrivals, max_guards, work }) = start.tasks.recv() else { return stopped };
    let cpus = match plan.workers[usize::from(index)] {
        Some(cpu) => {
            pin(cpu);
            None
        }
        None => Cpus::of_this_thread().ok(), // unknown: it stays where the scheduler puts it
    };
    let connected = match work {
        None => {
            let mut connection = worker::prepare(&start.device, &plan, max_guards, &arrivals)?;
            worker::connect(&mut connection, &plan, index)?;
            Connected::ToCaller(connection)
        }
        Some((work, introductions)) => {
            let device = &start.device;
            let means = Means { device, plan: &plan, arrivals: &arrivals, max_guards };
            let edges = Edges::connect(&means, index, &work, &introductions)?;
            Connected::InGraph(edges, work)
        }
    };
    start.notifier.tell(ThreadEvent::WorkerConnected);
    let Ok(library) = start.library.recv() else { return stopped };
    if library.has_init() {
        let room = match &connected {
            Connected::ToCaller(_) => plan.layout.output_bytes(),
            Connected::InGraph(..) => 0, // a function of a graph asks its turn
        };
        library.initialise(index, room).map_err(WorkerStartError::Library)?;
        start.notifier.tell(ThreadEvent::Initialised);
    }
    let share = WorkerShare { account, published: &start.published, stop: &start.stop };
    let mut worker = Worker::new(&library, plan.spin, cpus, share);
    let close = |worker: &Worker<'_>| {
        let totals = worker.meter().used().totals();
        if !locked(account).close(&totals, CLOSE_TIMEOUT) {
            tracing::debug!(worker = index, ?totals, "the manager does not have the last counts");
        }
    };
    // What is taken down at the end of each arm is so after the count: that may take long, and is not time of the
    // worker.
    match connected {
        Connected::ToCaller(connection) => {
            let mut callee = Callee::new(connection, arrivals);
            let end = worker.serve(&mut callee);
            close(&worker);
            Ok(WorkerEnd::Called(end))
        }
        Connected::InGraph(edges, work) => {
            let (mut hop, _client) = edges.begin(arrivals, &library, work)?;
            let end = worker.serve_graph(&mut hop);
            close(&worker);
            Ok(WorkerEnd::Hopped(end))
        }
    }
}

/// The connections of a worker.
enum Connected {
    /// It answers calls.
    ToCaller(Connection),
    /// It hands on what functions return.
    InGraph(Edges, Work),
}
