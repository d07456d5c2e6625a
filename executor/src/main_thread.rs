//! The main thread of an executor: stands by, carries out an assignment, and sees to its end.
//!
//! Foreign code runs behind [`close`](MainThread::close): all threads have connected before that, and nothing connects
//! after it.
//!
//! Elsewhere: what is done before that (`run` of the crate), what it waits for (`watch`).

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_name;
use nix::unistd::alarm;
use rdmalib::{Access, Device, RemoteAddress};
use rfaas_program::describe;
use rfaas_protocol::assignment::{FUNCTIONS_WRITE, MANAGER_LOST, PreloadedLibrary};
use rfaas_protocol::channel::ChannelError;
use rfaas_protocol::session::{
    CodeDiffers, CodeFrom, ExecutorHello, FromExecutor, FunctionNames, Listening, LoadFailed,
};
use rfaas_protocol::{Role, Text};

use crate::assigned::Assigned;
use crate::beat::BeatError;
use crate::confinement::Confinement;
use crate::ended::{Ended, Error, LAST_LINES, LOAD_FAILED};
use crate::events::ThreadEvent;
use crate::introductions::Introductions;
use crate::library::{Code, GivenFile, Library, LoadError};
use crate::limits;
use crate::loader::Loader;
use crate::parts::Parts;
use crate::plan::{DIAL_TIMEOUT, PARTS_TIMEOUT, Plan, StandbyPlan};
use crate::pool::{self, WorkerPool};
use crate::watch::{News, Watch};
use crate::worker::WorkerStartError;

/// Time that the client has to read why its library was not loaded.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time between two checks for calls that take long.
const TICK: Duration = Duration::from_secs(1);
/// Time between two wake-ups for nothing while this process stands by.
const STANDBY_TICK: Duration = Duration::from_secs(3600);
/// Threads that connect to the manager without a lease: the signs of life, and the first worker.
const COUNT_HERE: usize = 2;

/// Why work stops before its end.
enum Stop {
    /// The lease is over, or client or manager is gone.
    Over(&'static str),
    /// The manager is silent. If it is not dead, it is to know why the executor ends.
    ManagerLost,
    /// A function has ended the thread of this worker.
    ThreadEnded(usize),
    /// The library is of no use.
    Load(LoadError),
    /// Something broke.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

/// The main thread.
pub struct MainThread {
    standby: Arc<StandbyPlan>,
    device: Device,
    pool: WorkerPool,
    watch: Watch,
    loader: Loader,
    /// `None`: this process is not confined.
    confinement: Option<Confinement>,
    /// For logs.
    lease: Option<u64>,
    /// Threads of those that connect without a lease that have not done so.
    to_manager: usize,
    /// Workers that have not connected yet.
    to_client: usize,
    /// Workers that have initialised the library.
    initialised: usize,
    /// Libraries of the operator, in the order of the instructions. Others than that of the lease stay loaded.
    preloaded: Vec<Library>,
    /// A constructor of the library may be running. It holds the dynamic loader's lock, which the end
    /// of a process in the orderly way would wait for.
    loading: bool,
}

impl MainThread {
    /// Makes one that waits for `watch`, and confines this process further if it is confined.
    pub fn new(
        (standby, device): (Arc<StandbyPlan>, Device),
        pool: WorkerPool,
        watch: Watch,
        loader: Loader,
        confinement: Option<Confinement>,
    ) -> Self {
        MainThread {
            standby,
            device,
            pool,
            watch,
            loader,
            confinement,
            lease: None,
            to_manager: COUNT_HERE,
            to_client: 0,
            initialised: 0,
            preloaded: Vec::new(),
            loading: false,
        }
    }

    /// Carries out what is `assigned` or will be. `early`: files of the libraries that are loaded until then.
    pub fn run(mut self, assigned: Option<Assigned>, early: Vec<OwnedFd>) -> Result<Ended, Error> {
        let stop = match self.work(assigned, early) {
            Err(stop) => stop,
            Ok(never) => match never {},
        };
        let (status, failed) = match stop {
            Stop::Over(why) => {
                tracing::debug!(lease = self.lease, why, "ending");
                (0, None)
            }
            Stop::ManagerLost => {
                tracing::debug!(lease = self.lease, "the executor manager is silent: ending");
                (MANAGER_LOST, None)
            }
            Stop::ThreadEnded(worker) => self.abort(worker),
            Stop::Load(error) => {
                self.tell_load_failed(&error);
                (LOAD_FAILED, None)
            }
            Stop::Failed(error) => (error.exit_status(), Some(error)),
        };
        end_at_last();
        let stopped = self.pool.stop(&mut self.watch);
        let stopped = stopped.map_err(|error| Error::failed("cannot stop workers", &error))?;
        let orderly = stopped && !self.loading;
        match failed {
            Some(error) => Err(error),
            None => Ok(Ended { status, orderly }),
        }
    }

    fn work(
        &mut self,
        assigned: Option<Assigned>,
        early: Vec<OwnedFd>,
    ) -> Result<Infallible, Stop> {
        let Assigned { assignment, plan, given, grown } = match assigned {
            Some(assigned) => assigned,
            None => {
                self.load_early(early)?;
                self.stand_by()?
            }
        };
        self.lease = Some(plan.lease);
        match &mut self.confinement {
            Some(confinement) => {
                confinement.fit(&assignment, grown).map_err(|error| failed(&error))?;
            }
            None => drop(grown), // no function is to have it
        }
        limits::set_files(self.standby.open_files, plan.workers.len());
        let plan = Arc::new(plan);
        self.to_client = plan.workers.len();
        if !plan.graph {
            let assigned = self.pool.assign(&plan, self.watch.manager_ends());
            assigned.map_err(|error| Error::failed("cannot start workers", &error))?;
        }
        let is_loaded = matches!(given, GivenFile::Preloaded);
        if let Some(code) = self.dial_client(&plan, given)? {
            self.wait_for_code(&plan)?;
            self.loader.check(code, &plan);
        }
        if plan.graph {
            self.introduce(&plan)?;
        }
        self.close(plan.graph)?;
        let library = if is_loaded { self.publish(&plan)? } else { self.load(&plan)? };
        let library = Arc::new(library);
        self.pool.begin(&library);
        if library.has_init() {
            self.wait_until_initialised(plan.workers.len())?;
        }
        self.list_functions(&library)?;
        tracing::debug!(
            lease = self.lease,
            workers = plan.workers.len(),
            functions = library.names().len(),
            "serving"
        );
        loop {
            match self.next(TICK)? {
                News::Nothing => self.check_workers()?,
                _ => return Err(Stop::Over("the client broke the protocol")),
            }
        }
    }

    /// Waits for an assignment.
    fn stand_by(&mut self) -> Result<Assigned, Stop> {
        let mut ready = false;
        let given = loop {
            if !ready && self.to_manager == 0 {
                ready = true;
                self.watch.tell_ready();
            }
            match self.next(STANDBY_TICK)? {
                News::Assigned(given) => break given,
                News::Nothing => {}
                _ => return Err(Stop::Over("the executor manager broke the protocol")),
            }
        };
        let _ = set_name(c"executor"); // it was "standby"
        Ok(Assigned::received(given, &self.standby)?)
    }

    /// Connects to the client, offering it a place for its code unless that is `given`: then it is checked meanwhile.
    /// Returns what the client writes.
    fn dial_client(&mut self, plan: &Arc<Plan>, given: GivenFile) -> Result<Option<Code>, Error> {
        let failed = |error: &dyn std::error::Error| {
            Error::failed(&format!("cannot connect to the client at {}", plan.client), error)
        };
        let channel = &mut self.watch.client;
        let from_client = |into| {
            let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
            let region = channel.domain().allocate(plan.code_bytes as usize, access);
            Ok::<_, Error>(Code::FromClient { region: region.map_err(|e| failed(&e))?, into })
        };
        let code = match given {
            GivenFile::Absent => Some(from_client(None)?),
            GivenFile::Empty { file, filled } => Some(from_client(Some((file, filled)))?),
            GivenFile::Sealed(file) => {
                self.loader.check(Code::FromNode(file), plan);
                None
            }
            GivenFile::Preloaded => None,
        };
        let (place, code_from) = match &code {
            Some(Code::FromClient { region, .. }) => (region.remote(), CodeFrom::Client),
            Some(Code::FromNode(_)) | None => (RemoteAddress { addr: 0, key: 0 }, CodeFrom::Node),
        };
        let hello = ExecutorHello {
            session: plan.session,
            code_addr: place.addr.into(),
            code_key: place.key.into(),
            code_from: code_from.to_wire(),
        };
        channel
            .connect(plan.client, Role::Executor, &hello, self.standby.first_dial_timeout)
            .map_err(|error| failed(&error))?;
        Ok(code)
    }

    /// Has workers find their places in the graph: tells the client where others dial them, and gives them their parts
    /// when it has told these.
    fn introduce(&mut self, plan: &Arc<Plan>) -> Result<(), Stop> {
        let failed = |error: &dyn std::error::Error| Error::failed("the graph", error);
        let introductions = Introductions::listen(&self.device).map_err(|error| failed(&error))?;
        let listening = Listening { address: introductions.address().into() };
        let told = self.watch.client.send(&FromExecutor::Listening(listening));
        told.map_err(|error| failed(&error))?;
        let (inputs, output) = (plan.layout.input_bytes(), plan.layout.output_bytes());
        let slots = plan.layout.slots();
        let mut parts = Parts::new(plan.workers.len(), (inputs, output), slots);
        // Before that, all executors of the graph start.
        let deadline = Instant::now() + PARTS_TIMEOUT;
        let parts = loop {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                News::Told(message) => {
                    if let Some(parts) = parts.take(&message).map_err(|error| failed(&error))? {
                        break parts;
                    }
                }
                News::Nothing if Instant::now() < deadline => {}
                News::Nothing => return Err(Stop::Over("the client has told no graph")),
                _ => return Err(Stop::Over("the client broke the protocol")),
            }
        };
        let manager_ends = self.watch.manager_ends();
        let assigned = self.pool.assign_parts(plan, parts, introductions, manager_ends);
        assigned.map_err(|error| Error::failed("cannot start workers", &error))?;
        Ok(())
    }

    /// Settles for workers whose call takes long, unless there is none left to make it.
    fn check_workers(&mut self) -> Result<(), Stop> {
        if self.pool.vanished().is_some() {
            // Its last word, if it had one, came before the thread's end, maybe behind those of other threads.
            self.next(Duration::ZERO)?;
            if let Some(worker) = self.pool.vanished() {
                return Err(Stop::ThreadEnded(worker));
            }
        }
        self.pool.settle_long_calls();
        Ok(())
    }

    /// Aborts. Locks that the thread of `worker` held stay locked, so no other code of the library runs.
    fn abort(&mut self, worker: usize) -> ! {
        end_at_last();
        tracing::error!(
            lease = self.lease,
            worker,
            "a function has ended its worker's thread: aborting"
        );
        self.pool.write_off(worker);
        let _ = self.pool.stop(&mut self.watch); // what others have used is counted, if that is possible
        rfaas_program::log::finish(LAST_LINES);
        std::process::abort()
    }

    /// Takes sockets away, once all threads have connected. Where nothing is taken away, that is waited for in a graph
    /// only: a constructor would keep workers from meeting each other.
    fn close(&mut self, graph: bool) -> Result<(), Stop> {
        let confinement = self.confinement.take();
        if confinement.is_none() && !graph {
            return Ok(());
        }
        while self.to_manager + self.to_client > 0 {
            match self.next(TICK)? {
                News::Nothing => {}
                _ => return Err(Stop::Over("the client broke the protocol")),
            }
        }
        match confinement {
            Some(confinement) => confinement.close().map_err(|error| failed(&error)),
            None => Ok(()),
        }
    }

    /// Waits until the client has written its code.
    fn wait_for_code(&mut self, plan: &Plan) -> Result<(), Stop> {
        let within = plan.code_within(self.standby.first_dial_timeout);
        let deadline = Instant::now() + within;
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                News::Written(bytes) if bytes == plan.code_bytes => return Ok(()),
                News::Written(bytes) => {
                    let expected = plan.code_bytes;
                    let what =
                        format!("the client sent {bytes} bytes of code instead of {expected}");
                    return Err(Error::Failed(what).into());
                }
                News::Nothing if Instant::now() < deadline => {}
                _ => {
                    let what = format!("the client sent no code within {within:?}");
                    return Err(Error::Failed(what).into());
                }
            }
        }
    }

    /// Loads the library of `plan`, which the loader has checked.
    fn load(&mut self, plan: &Plan) -> Result<Library, Stop> {
        // Also the first log line of this thread, which a constructor that hangs would keep waiting
        // (`end_at_last`); so it ends in the orderly time.
        let (bytes, hash) = (plan.code_bytes, plan.code_hash);
        tracing::debug!(lease = self.lease, bytes, %hash, "loading the library");
        self.loading = true;
        let_functions_write();
        self.loader.load();
        loop {
            match self.next(TICK)? {
                News::Event(ThreadEvent::Loaded(loaded)) => {
                    self.loading = false;
                    return loaded.map_err(Stop::Load);
                }
                News::Nothing => {}
                _ => return Err(Stop::Over("the client broke the protocol")),
            }
        }
    }

    /// Loads the libraries of the operator, whose files are `early`.
    fn load_early(&mut self, early: Vec<OwnedFd>) -> Result<(), Stop> {
        if early.is_empty() {
            return Ok(());
        }
        // A constructor holds a lock that threads take when they start.
        while self.to_manager > 0 {
            match self.next(TICK)? {
                News::Nothing => {}
                _ => return Err(Stop::Over("the executor manager broke the protocol")),
            }
        }
        self.loading = true;
        let started = self.loader.load_early(early, &self.standby);
        started.map_err(|error| Error::failed("cannot start a thread", &error))?;
        loop {
            match self.next(TICK)? {
                News::Event(ThreadEvent::Preloaded(loaded)) => {
                    self.loading = false;
                    self.preloaded = loaded.map_err(|error| {
                        Error::failed("cannot load a library of executor.preload", &error)
                    })?;
                    return Ok(());
                }
                News::Nothing => {}
                _ => return Err(Stop::Over("the executor manager broke the protocol")),
            }
        }
    }

    /// Takes the library of `plan` from those that were loaded before there was a lease.
    fn publish(&mut self, plan: &Plan) -> Result<Library, Stop> {
        let wanted = |library: &PreloadedLibrary| {
            (library.hash, library.bytes) == (plan.code_hash, plan.code_bytes)
        };
        let at = self.standby.preload.iter().position(wanted);
        let Some(at) = at.filter(|&at| at < self.preloaded.len()) else {
            return Err(Error::Failed("the assignment: its library is not loaded".into()).into());
        };
        let library = self.preloaded.swap_remove(at);
        tracing::debug!(lease = self.lease, hash = %plan.code_hash, "the library is loaded already");
        let_functions_write();
        library.publish().map_err(Stop::Load)?;
        Ok(library)
    }

    /// Waits until each of `workers` has initialised the library: a client that knows its functions can call them.
    fn wait_until_initialised(&mut self, workers: usize) -> Result<(), Stop> {
        while self.initialised < workers {
            match self.next(TICK)? {
                News::Nothing => self.check_workers()?,
                _ => return Err(Stop::Over("the client broke the protocol")),
            }
        }
        Ok(())
    }

    fn list_functions(&mut self, library: &Library) -> Result<(), Stop> {
        let mut next = 0;
        loop {
            let names;
            (names, next) = FunctionNames::from(library.names(), next);
            let message = FromExecutor::Functions(names);
            let sent = match self.watch.client.send(&message) {
                // The client takes them one by one.
                Err(ChannelError::Busy) => self
                    .watch
                    .client
                    .flush(DIAL_TIMEOUT)
                    .and_then(|()| self.watch.client.send(&message)),
                other => other,
            };
            match sent {
                Ok(()) => {}
                Err(ChannelError::Disconnected) => return Err(Stop::Over("the client is gone")),
                Err(error) => {
                    return Err(Error::failed("cannot list the functions", &error).into());
                }
            }
            if next >= library.names().len() {
                return Ok(());
            }
        }
    }

    /// Tells the client, and stays until it has heard.
    fn tell_load_failed(&mut self, error: &LoadError) {
        let reason = describe(error);
        tracing::debug!(lease = self.lease, reason, "library not loaded");
        let message = match *error {
            LoadError::Differs { received } => FromExecutor::CodeDiffers(CodeDiffers { received }),
            _ => FromExecutor::LoadFailed(LoadFailed { reason: Text::truncated(&reason) }),
        };
        if let Err(error) = self.watch.client.send(&message) {
            tracing::debug!(%error, "the client could not be told");
            return;
        }
        let deadline = Instant::now() + LAST_WORDS;
        // Ends when the time is up, or the client or the lease is gone; not when another worker says the same.
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now())) {
                Ok(News::Nothing) if Instant::now() >= deadline => return,
                Ok(_) | Err(Stop::Load(_)) => {}
                Err(_) => return,
            }
        }
    }

    /// Returns what happens next that is not the end of everything, within `timeout`; nothing also when another thread
    /// has connected. Then all that threads have told by now is noted.
    fn next(&mut self, timeout: Duration) -> Result<News, Stop> {
        let mut deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let news: io::Result<News> = self.watch.next(left);
            let news = news.map_err(|error| Error::failed("cannot wait for news", &error))?;
            if news.is_the_end() {
                end_at_last(); // before anything that may wait, such as a log line
            }
            match news {
                News::Signal => return Err(Stop::Over("asked to")),
                News::ManagerGone => return Err(Stop::Over("the executor manager is gone")),
                News::ClientGone(error) => {
                    tracing::debug!(%error, "client gone");
                    return Err(Stop::Over("the client is gone"));
                }
                News::Event(ThreadEvent::BeatEnded(BeatError::Silent)) => {
                    return Err(Stop::ManagerLost);
                }
                News::Event(ThreadEvent::BeatEnded(error)) => {
                    return Err(Error::failed("cannot give signs of life", &error).into());
                }
                News::Event(ThreadEvent::CountsHere) => {
                    self.to_manager = self.to_manager.saturating_sub(1);
                    deadline = Instant::now();
                }
                News::Event(ThreadEvent::WorkerConnected) => {
                    self.to_client = self.to_client.saturating_sub(1);
                    deadline = Instant::now();
                }
                News::Event(ThreadEvent::Initialised) => {
                    self.initialised += 1;
                    deadline = Instant::now();
                }
                News::Event(ThreadEvent::WorkerEnded { worker, end }) => {
                    pool::log_end(worker, &end);
                    self.pool.ended(worker);
                    // One that does not start is missed by the client, which waits for all.
                    match end {
                        Ok(_) => {}
                        Err(WorkerStartError::Library(error)) => return Err(Stop::Load(error)),
                        Err(error) => return Err(worker_failed(worker, &error).into()),
                    }
                }
                other => return Ok(other),
            }
        }
    }
}

fn worker_failed(worker: usize, error: &WorkerStartError) -> Error {
    Error::failed(&format!("worker {worker} could not start"), error)
}

fn failed(error: &dyn std::error::Error) -> Stop {
    Stop::Failed(Error::failed("the assignment", error))
}

/// Has the kernel end this process in a second, wherever it is then. A constructor that hangs
/// holds the dynamic loader's lock, for which every thread waits that uses a thread-local variable
/// for the first time (`__cxa_thread_atexit_impl` of glibc): logging does, and so do channels.
fn end_at_last() {
    alarm::set(1);
}

/// Ends the part of standard error that is for the operator: foreign code runs from here on, and may write there too.
fn let_functions_write() {
    rfaas_program::log::finish(LAST_LINES); // what was logged before comes before
    // It fails only if nobody reads what is written there.
    let _ = io::stderr().write_all(&[FUNCTIONS_WRITE]);
}
