//! An executor: the process in which one client's functions run. Started by the executor manager for
//! one lease, ended with it.
//!
//! ```text
//!   main thread                                          worker threads
//!   signs of life to the manager (on a thread: beat)
//!   dial client ◀─ code ─ client, unless the node has it  dial manager (accounting), dial client (slots)
//!   load the library (on a thread: constructors hang)          │
//!   list its functions ─▶ client   ───── library ─────────────▶ serve invocations
//!   watch: signals, client, manager, workers                   │
//!   end ───────────── stop ───────────────────────────────────▶ last counts
//! ```
//! * It ends when its manager asks it to (SIGTERM) and when its client or its manager is gone or silent:
//!   within 300 ms, whatever the functions do, and within a second even if they keep it from that. It ends with its
//!   manager at once, which the kernel ensures.
//! * It works with all its threads or not at all: when one panics, or a function ends that of its worker, it
//!   aborts, and the manager tells the client.
//! * A process holds one client's code and connections. It gets its secrets on standard input and
//!   leaves no file behind.
//!
//! Elsewhere: how the process comes to be (`zygote`), one invocation (`worker`), foreign code (`library`),
//! what an assignment may say (`plan`).

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{alarm, dup2_stdin, getppid};
use rdmalib::{Access, Device, RemoteAddress};
use rfaas_program::describe;
use rfaas_protocol::assignment::{Assignment, FUNCTIONS_WRITE, MANAGER_LOST};
use rfaas_protocol::channel::{Channel, ChannelError};
use rfaas_protocol::session::{
    CodeDiffers, CodeFrom, ExecutorHello, FromExecutor, FunctionEntry, LoadFailed,
};
use rfaas_protocol::{Role, Text};

use crate::beat::BeatError;
use crate::events::{Notifier, ThreadEvent, events};
use crate::library::{Code, Library, LoadError, SealedFile};
use crate::plan::{BadAssignment, DIAL_TIMEOUT, Plan};
use crate::pool::{PoolError, WorkerPool};
use crate::signals::Signals;
use crate::watch::{News, Watch};
use crate::worker::WorkerStartError;

mod account;
mod beat;
mod clock;
mod confinement;
mod cpus;
mod dial;
mod events;
#[allow(unsafe_code)] // a signal handler, and the bounds of a stack: see there
mod fatal;
#[allow(unsafe_code)] // foreign code: see there
mod library;
mod limits;
mod meter;
pub mod plan;
mod pool;
#[allow(unsafe_code)] // signal handlers: see there
mod signals;
mod spin;
mod sync;
mod watch;
mod worker;
pub mod zygote;

pub use confinement::{Confinement, ConfinementError};
pub use library::{GivenFile, Inherited, leave, leave_at_once};

/// Longest wait for the manager to take the last lines of the log. It reads them while it runs.
pub const LAST_LINES: Duration = Duration::from_millis(100);

/// Receives of the control connection: the client writes once.
const CONTROL_RECEIVES: u32 = 4;
/// Time that the client has to write the code: 4 GB at 1 Gb/s.
const CODE_TIMEOUT: Duration = Duration::from_secs(40);
/// Time that the client has to read why its library was not loaded.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time between two checks for calls that take long.
const TICK: Duration = Duration::from_secs(1);

/// Exit status of an executor whose library could not be loaded; its client knows why.
pub const LOAD_FAILED: i32 = 3;

/// Why an executor failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The assignment makes no sense.
    #[error(transparent)]
    Assignment(#[from] BadAssignment),
    /// The device of the assignment cannot be opened.
    #[error("{0}")]
    Device(String),
    /// Anything that went wrong later.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// Exit status: 2 if what was asked for makes no sense, else 1.
    pub fn exit_status(&self) -> i32 {
        match self {
            Error::Assignment(_) | Error::Device(_) => 2,
            Error::Failed(_) => 1,
        }
    }

    fn failed(what: &str, error: &dyn std::error::Error) -> Self {
        Error::Failed(format!("{what}: {}", describe(error)))
    }
}

/// How an executor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Exit status: 0, [`LOAD_FAILED`] or [`MANAGER_LOST`].
    pub status: i32,
    /// No code of the library runs any more, so that the process may end in the orderly way ([`leave`]).
    pub orderly: bool,
}

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

/// Works for the lease of `assignment` until it ends. `given`: the library's file, as far as this process was
/// started with it. `confinement`: what this process is confined by.
pub fn run(
    assignment: Assignment,
    given: GivenFile,
    confinement: Option<Confinement>,
) -> Result<Ended, Error> {
    clock::start();
    let plan = Arc::new(Plan::try_from(assignment)?);
    forget_input().map_err(|errno| Error::failed("/dev/null", &errno))?;
    let os = |error: &dyn std::error::Error| Error::failed("cannot start", error);
    let signals = Signals::listen().map_err(|error| os(&error))?;
    fatal::watch().map_err(|errno| os(&errno))?;
    end_with_parent()?;
    limits::set(plan.open_files, plan.workers.len());
    let device = Device::open(&plan.device).map_err(|error| Error::Device(describe(&error)))?;
    let (notifier, events) = events().map_err(|error| os(&error))?;
    let manager_ends = pool::manager_ends(&device, &plan).map_err(|error| os(&error))?;
    let beat_ended = notifier.clone();
    let beat_ended = move |error| beat_ended.tell(ThreadEvent::BeatEnded(error));
    let beat_connected = notifier.clone();
    let beat_connected = move || beat_connected.tell(ThreadEvent::Connected);
    beat::start(&plan, &device, &manager_ends, beat_connected, beat_ended)
        .map_err(|error| os(&error))?;
    let (client, code) = dial_client(&plan, &device, given)?;
    let pool = WorkerPool::start(&plan, &device, &manager_ends, &notifier);
    let pool = pool.map_err(|error: PoolError| Error::failed("cannot start workers", &error))?;
    let watch = Watch::new(signals, events, client, manager_ends);
    let connecting = plan.workers.len() + 1; // and the signs of life
    let loading = false;
    Executor { plan, pool, watch, notifier, confinement, connecting, loading }.run(code)
}

/// Returns whether `news` is a reason to end.
fn is_the_end(news: &News) -> bool {
    match news {
        News::Signal | News::ManagerGone | News::ClientGone(_) => true,
        News::Event(ThreadEvent::BeatEnded(_) | ThreadEvent::WorkerEnded { end: Err(_), .. }) => {
            true
        }
        News::Event(ThreadEvent::Loaded(_) | ThreadEvent::WorkerEnded { end: Ok(_), .. }) => false,
        News::Event(ThreadEvent::Connected | ThreadEvent::WorkersJoined) => false,
        News::Written(_) | News::Nothing => false,
    }
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

/// Closes the assignment, with its secrets: what functions start would have it as standard input.
fn forget_input() -> nix::Result<()> {
    let nothing = open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(nothing)
}

/// Asks the kernel to end this process with its parent, the executor manager: if that is killed,
/// nobody else would.
fn end_with_parent() -> Result<(), Error> {
    let parent = getppid();
    set_pdeathsig(Signal::SIGKILL).map_err(|errno| Error::failed("prctl", &errno))?;
    // Look again: a parent that ended before the call ends nobody.
    if getppid() == parent {
        Ok(())
    } else {
        Err(Error::Failed("the executor manager ended while this executor started".into()))
    }
}

/// Connects to the client, offering it a place for its code unless that is given.
fn dial_client(plan: &Plan, device: &Device, given: GivenFile) -> Result<(Channel, Code), Error> {
    let failed = |error: &dyn std::error::Error| {
        Error::failed(&format!("cannot connect to the client at {}", plan.client), error)
    };
    let mut channel = Channel::new(device, CONTROL_RECEIVES).map_err(|error| failed(&error))?;
    let from_client = |into| {
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let region = channel.domain().allocate(plan.code_bytes as usize, access);
        Ok::<_, Error>(Code::FromClient { region: region.map_err(|error| failed(&error))?, into })
    };
    let code = match given {
        GivenFile::Absent => from_client(None)?,
        GivenFile::Empty { file, filled } => from_client(Some((file, filled)))?,
        GivenFile::Sealed(file) => Code::FromNode(file),
    };
    let (place, code_from) = match &code {
        Code::FromClient { region, .. } => (region.remote(), CodeFrom::Client),
        Code::FromNode(_) => (RemoteAddress { addr: 0, key: 0 }, CodeFrom::Node),
    };
    let hello = ExecutorHello {
        session: plan.session,
        code_addr: place.addr.into(),
        code_key: place.key.into(),
        code_from: code_from.to_wire(),
    };
    channel
        .connect(plan.client, Role::Executor, &hello, plan.first_dial_timeout)
        .map_err(|error| failed(&error))?;
    Ok((channel, code))
}

/// The main thread, connected.
struct Executor {
    plan: Arc<Plan>,
    pool: WorkerPool,
    watch: Watch,
    notifier: Notifier,
    /// `None`: this process is not confined.
    confinement: Option<Confinement>,
    /// Threads that have not connected yet.
    connecting: usize,
    /// A constructor of the library may be running. It holds the dynamic loader's lock, which the end
    /// of a process in the orderly way would wait for.
    loading: bool,
}

impl Executor {
    fn run(mut self, code: Code) -> Result<Ended, Error> {
        let stop = match self.work(code) {
            Err(stop) => stop,
            Ok(never) => match never {},
        };
        let (status, failed) = match stop {
            Stop::Over(why) => {
                tracing::debug!(lease = self.plan.lease, why, "ending");
                (0, None)
            }
            Stop::ManagerLost => {
                tracing::debug!(lease = self.plan.lease, "the executor manager is silent: ending");
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

    fn work(&mut self, code: Code) -> Result<std::convert::Infallible, Stop> {
        if let Code::FromClient { .. } = code {
            self.wait_for_code()?;
        }
        self.close()?;
        let library = Arc::new(self.load(code)?);
        self.pool.begin(&library);
        self.list_functions(&library)?;
        tracing::debug!(
            lease = self.plan.lease,
            workers = self.plan.workers.len(),
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

    /// Settles for workers whose call takes long, unless there is none left to make it.
    fn check_workers(&mut self) -> Result<(), Stop> {
        if self.pool.vanished().is_some() {
            self.next(Duration::ZERO)?; // its last word, if it had one, came before the thread's end
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
            lease = self.plan.lease,
            worker,
            "a function has ended its worker's thread: aborting"
        );
        self.pool.write_off(worker);
        let _ = self.pool.stop(&mut self.watch); // what others have used is counted, if that is possible
        rfaas_program::log::finish(LAST_LINES);
        std::process::abort()
    }

    /// Takes sockets away, once all threads have connected.
    fn close(&mut self) -> Result<(), Stop> {
        let Some(confinement) = self.confinement.take() else { return Ok(()) };
        while self.connecting > 0 {
            match self.next(TICK)? {
                News::Nothing => {}
                _ => return Err(Stop::Over("the client broke the protocol")),
            }
        }
        Ok(confinement.close().map_err(|error| Error::Failed(error.to_string()))?)
    }

    /// Waits until the client has written its code.
    fn wait_for_code(&mut self) -> Result<(), Stop> {
        let deadline = Instant::now() + CODE_TIMEOUT;
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                News::Written(bytes) if bytes == self.plan.code_bytes => return Ok(()),
                News::Written(bytes) => {
                    let expected = self.plan.code_bytes;
                    let what =
                        format!("the client sent {bytes} bytes of code instead of {expected}");
                    return Err(Error::Failed(what).into());
                }
                News::Nothing if Instant::now() < deadline => {}
                _ => {
                    let what = format!("the client sent no code within {CODE_TIMEOUT:?}");
                    return Err(Error::Failed(what).into());
                }
            }
        }
    }

    /// Copies and loads the library on a thread of its own: that may take long, and its constructors as long as they
    /// like, while this thread still hears that the lease is over.
    fn load(&mut self, code: Code) -> Result<Library, Stop> {
        let notifier = self.notifier.clone();
        // Also the first log line of this thread, which a constructor that hangs would keep waiting
        // (`end_at_last`); so it ends in the orderly time.
        let (bytes, hash) = (self.plan.code_bytes, self.plan.code_hash);
        let on_node = matches!(code, Code::FromNode(_));
        tracing::debug!(lease = self.plan.lease, bytes, %hash, on_node, "loading the library");
        self.loading = true;
        let_functions_write();
        let load = move || Library::load(SealedFile::of(code, bytes as usize, &hash)?);
        std::thread::Builder::new()
            .name("loader".into())
            .stack_size(limits::stack_bytes()) // constructors are functions too
            .spawn(move || {
                fatal::note_stack();
                notifier.tell(ThreadEvent::Loaded(load()));
            })
            .map_err(|error| Error::failed("cannot start the loader", &error))?;
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

    fn list_functions(&mut self, library: &Library) -> Result<(), Stop> {
        let names = library.names();
        for (index, name) in names.iter().enumerate() {
            let name = Text::new(name).expect("longer names are not listed (`exported_functions`)");
            let (index, count) = (index as u32, names.len() as u32); // an ELF file has fewer than 2³²
            let entry = FunctionEntry { index: index.into(), count: count.into(), name };
            let message = FromExecutor::Function(entry);
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
        }
        Ok(())
    }

    /// Tells the client, and stays until it has heard.
    fn tell_load_failed(&mut self, error: &LoadError) {
        let reason = describe(error);
        tracing::debug!(lease = self.plan.lease, reason, "library not loaded");
        let message = match *error {
            LoadError::Differs { received } => FromExecutor::CodeDiffers(CodeDiffers { received }),
            _ => FromExecutor::LoadFailed(LoadFailed { reason: Text::truncated(&reason) }),
        };
        if let Err(error) = self.watch.client.send(&message) {
            tracing::debug!(%error, "the client could not be told");
            return;
        }
        let deadline = Instant::now() + LAST_WORDS;
        // Ends when the time is up, or the client or the lease is gone.
        while let Ok(news) = self.next(deadline.saturating_duration_since(Instant::now())) {
            if matches!(news, News::Nothing) && Instant::now() >= deadline {
                return;
            }
        }
    }

    /// Returns what happens next that is not the end of everything, within `timeout`; nothing also when another thread
    /// has connected.
    fn next(&mut self, timeout: Duration) -> Result<News, Stop> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let news: io::Result<News> = self.watch.next(left);
            let news = news.map_err(|error| Error::failed("cannot wait for news", &error))?;
            if is_the_end(&news) {
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
                News::Event(ThreadEvent::Connected) => {
                    self.connecting = self.connecting.saturating_sub(1);
                    return Ok(News::Nothing);
                }
                News::Event(ThreadEvent::WorkerEnded { worker, end }) => {
                    pool::log_end(worker, &end);
                    self.pool.ended(worker);
                    // One that does not start is missed by the client, which waits for all.
                    if let Err(error) = end {
                        return Err(worker_failed(worker, &error).into());
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
