//! An executor: the process in which one client's functions run. Started by the executor manager, for one lease or to
//! stand by until there is one, and ended with it.
//!
//! ```text
//!   main thread                                          worker threads
//!   open the device, give signs of life (thread: beat)    the first: dial manager (accounting)
//!   stand by, unless there is an assignment already            │
//!   assignment ──────────── plan ─────────────────────────────▶ the others: dial manager; all: dial client (slots)
//!   dial client ◀─ code ─ client, unless the node has it       │
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
//! * A process holds one client's code and connections. It gets its secrets on standard input or over a channel, and
//!   leaves no file behind.
//!
//! Elsewhere: how the process comes to be (`zygote`), what the main thread does (`main_thread`), one invocation
//! (`worker`), foreign code (`library`), what an assignment may say (`plan`).

use std::sync::Arc;

use nix::fcntl::{OFlag, open};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stdin, getppid};
use rdmalib::Device;
use rfaas_program::describe;
use rfaas_protocol::assignment::Standby;
use rfaas_protocol::channel::Channel;

use crate::assigned::Assigned;
use crate::events::{ThreadEvent, events};
use crate::loader::Loader;
use crate::main_thread::MainThread;
use crate::plan::StandbyPlan;
use crate::pool::{PoolError, WorkerPool};
use crate::signals::Signals;
use crate::watch::Watch;

mod account;
mod assigned;
mod beat;
mod clock;
mod confinement;
mod contained;
mod cpus;
mod dial;
mod ended;
mod events;
#[allow(unsafe_code)] // a signal handler, and the bounds of a stack: see there
mod fatal;
mod hop;
mod introductions;
#[allow(unsafe_code)] // foreign code: see there
mod library;
mod limits;
mod loader;
mod main_thread;
mod meter;
mod parts;
pub mod plan;
mod pool;
#[allow(unsafe_code)] // signal handlers: see there
mod signals;
mod spin;
mod sync;
mod watch;
mod worker;
pub mod zygote;

pub use assigned::Work;
pub use confinement::{Confinement, ConfinementError};
pub use contained::contained;
pub use ended::{Ended, Error, LAST_LINES, LOAD_FAILED};
pub use library::{GivenFile, Inherited, leave, leave_at_once};
pub use limits::make_room;

/// Receives of the control connection: the client writes once, and tells of a graph as fast as it is heard.
const CONTROL_RECEIVES: u32 = 16;

/// Works until the lease ends, or there is none any more to wait for. `confinement`: what this process is confined by.
pub fn run(standby: Standby, work: Work, confinement: Option<Confinement>) -> Result<Ended, Error> {
    clock::start();
    let standby = Arc::new(StandbyPlan::try_from(standby)?);
    let (assigned, channel, early) = match work {
        Work::Assigned(assignment, given) => {
            (Some(Assigned::new(assignment, given, None, &standby)?), None, Vec::new())
        }
        Work::Awaited(channel, early) => (None, Some(channel), early),
    };
    forget_input().map_err(|errno| Error::failed("/dev/null", &errno))?;
    let os = |error: &dyn std::error::Error| Error::failed("cannot start", error);
    let signals = Signals::listen().map_err(|error| os(&error))?;
    fatal::watch().map_err(|errno| os(&errno))?;
    end_with_parent()?;
    limits::set();
    let device = Device::open(&standby.device).map_err(|error| Error::Device(describe(&error)))?;
    let (notifier, events) = events().map_err(|error| os(&error))?;
    let ends = u32::from(standby.most_workers) + 1; // and the signs of life
    let manager_ends = device.completion_queue(ends).map_err(|error| os(&error))?;
    let beat_ended = notifier.clone();
    let beat_ended = move |error| beat_ended.tell(ThreadEvent::BeatEnded(error));
    let beat_connected = notifier.clone();
    let beat_connected = move || beat_connected.tell(ThreadEvent::CountsHere);
    beat::start(&standby, &device, &manager_ends, beat_connected, beat_ended)
        .map_err(|error| os(&error))?;
    let pool = WorkerPool::start(&standby, &device, &manager_ends, &notifier);
    let pool = pool.map_err(|error: PoolError| Error::failed("cannot start workers", &error))?;
    let loader = Loader::start(notifier).map_err(|error| os(&error))?;
    let client = Channel::new(&device, CONTROL_RECEIVES).map_err(|error| os(&error))?;
    let watch = Watch::new(signals, events, client, manager_ends, channel);
    MainThread::new((standby, device), pool, watch, loader, confinement).run(assigned, early)
}

/// Closes the instructions, with their secrets: what functions start would have it as standard input.
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
