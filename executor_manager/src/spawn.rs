//! Executor processes: started from `PATH` or from beside this program, watched, stopped, reaped. Nothing here waits.
//!
//! ```text
//!   start ─▶ running ──stop: SIGTERM──▶ terminating ──500 ms: SIGKILL──▶ killed
//!               └──────────────┴──────────── exits ─────────────────────────┴──▶ reaped
//! ```
//! * An executor gets its assignment on standard input, sockets of its own (`output`) as standard
//!   output and error, no descriptor of the manager, no signal blocked or ignored, and of the environment what
//!   is listed (`environment`).
//! * It leads a session, and in it a process group, which it can leave for no other: the terminal
//!   that the manager was started from is out of its reach. The group is killed as a whole before its leader is
//!   reaped: what a function forked does not outlive the lease unless it left the group, and no signal can hit
//!   a stranger that was given a freed process id.
//!
//! Elsewhere: learning that a child changed (`signals`: SIGCHLD), when to stop one (`allocations`). An
//! executor asks the kernel itself to die with its manager.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{AccessFlags, Pid, access};
use rfaas_program::inherited::FEWEST_DESCRIPTORS;
use rfaas_protocol::assignment::Assignment;

use crate::allocations::Exit;
use crate::environment;
use crate::output::{ExecutorOutput, Outputs, StandardStreams};

/// Time between SIGTERM and SIGKILL: enough to send the counters of every worker, short enough for
/// the cores to be free within a second.
pub const STOP_GRACE: Duration = Duration::from_millis(500);

/// How often a killed process is looked at, besides when SIGCHLD tells of it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Name of the program.
const PROGRAM: &str = "executor";

/// Descriptors that may be open at the start where the system does not say: those below the fewest
/// that a manager starts with. Numbers beyond the limit could not be closed.
const GUESSED_DESCRIPTORS: RawFd = FEWEST_DESCRIPTORS as RawFd;

/// Has the child lead a session, and with that a process group: `POSIX_SPAWN_SETSID`, which nix has no name for
/// (glibc 2.26, musl 1.1.22).
const SET_SESSION: PosixSpawnFlags = PosixSpawnFlags::from_bits_retain(0x80);

/// Longest part of `PATH` in a message, so that what to do fits the answer to a client.
const SHOWN_PATH: usize = 100;

/// Why an executor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No directory of `PATH` has it, nor our own; the operator must set it.
    #[error(
        "cannot start `{PROGRAM}`: not found in PATH={path} nor beside executor_manager; add the \
         programs' directory to its PATH and restart it"
    )]
    NotFound {
        /// The value, shortened.
        path: String,
    },
    /// It is there but cannot be run.
    #[error("cannot start `{}`: {reason}", program.display())]
    Exec {
        /// Where it was found.
        program: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The assignment could not be passed on.
    #[error("cannot pass its assignment to `{PROGRAM}`: {0}")]
    Assignment(io::Error),
    /// There are no sockets, or no thread, for what it writes.
    #[error("cannot read what `{PROGRAM}` writes: {0}")]
    Output(io::Error),
}

/// Starts executors.
#[derive(Debug)]
pub struct Launcher {
    search: OsString,
    /// Where this program is: the last place to look.
    beside: Option<PathBuf>,
    environment: Vec<CString>,
    /// Open when this was made. Ours are closed on exec anyway; the parent of the manager may have
    /// left it some that are not.
    inherited: Vec<RawFd>,
    outputs: Outputs,
}

impl Launcher {
    /// Starts executors from this process's `PATH`, else from its own directory, with what they get of its
    /// environment, variables named `more` too. `verbose` makes them log what they do, unless `RUST_LOG`
    /// says what to log.
    pub fn from_environment(verbose: bool, more: &[String]) -> io::Result<Self> {
        let mut environment = environment::of_executors(more);
        if verbose && std::env::var_os("RUST_LOG").is_none() {
            environment.push(("RUST_LOG".into(), "debug".into()));
        }
        let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_owned()));
        Launcher::new(std::env::var_os("PATH").unwrap_or_default(), beside, environment)
    }

    fn new(
        search: OsString,
        beside: Option<PathBuf>,
        environment: Vec<(OsString, OsString)>,
    ) -> io::Result<Self> {
        let environment = environment
            .into_iter()
            .map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'='))
            .filter_map(|entry| CString::new(entry).ok()) // the environment has no NUL bytes
            .collect();
        let (inherited, outputs) = (open_descriptors(), Outputs::default());
        Ok(Launcher { search, beside, environment, inherited, outputs })
    }

    /// Whether there is an executor to start.
    pub fn check(&self) -> Result<(), SpawnError> {
        self.find().map(drop)
    }

    /// Starts an executor for `assignment`.
    pub fn start(&self, assignment: &Assignment) -> Result<ExecutorChild, SpawnError> {
        let program = self.find()?;
        // A file and not a pipe: it takes an assignment of any length at once.
        let input = assignment_file(assignment).map_err(SpawnError::Assignment)?;
        let failed =
            |errno: Errno| SpawnError::Exec { program: program.clone(), reason: errno.into() };
        let (output, ends) = self.outputs.follow(assignment.lease).map_err(SpawnError::Output)?;
        let (actions, attributes) = self.prepare(&input, &ends).map_err(failed)?;
        let arguments = [CString::from(c"executor")];
        let pid = posix_spawn(&program, &actions, &attributes, &arguments, &self.environment)
            .map_err(failed)?;
        Ok(ExecutorChild { pid, stage: Stage::Running, _output: output })
    }

    /// The executor leads a session of its own and inherits nothing but what is said at the top of this file.
    fn prepare(
        &self,
        input: &File,
        ends: &StandardStreams,
    ) -> nix::Result<(PosixSpawnFileActions, PosixSpawnAttr)> {
        let mut actions = PosixSpawnFileActions::init()?;
        actions.add_dup2(input.as_raw_fd(), 0)?;
        actions.add_dup2(ends.stdout.as_raw_fd(), 1)?;
        actions.add_dup2(ends.stderr.as_raw_fd(), 2)?;
        for &descriptor in &self.inherited {
            actions.add_close(descriptor)?;
        }
        let mut attributes = PosixSpawnAttr::init()?;
        // The manager blocks the signals that it reads from a descriptor, std ignores SIGPIPE, and whoever
        // started the manager may have had it ignore others; an executor inherits nothing of it.
        attributes.set_sigmask(&SigSet::empty())?;
        attributes.set_sigdefault(&SigSet::all())?;
        attributes.set_flags(
            SET_SESSION
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
        )?;
        Ok((actions, attributes))
    }

    /// The first `executor` in `PATH` that can be run, as `execvp` chooses; else the one beside this program.
    fn find(&self) -> Result<PathBuf, SpawnError> {
        let mut unusable = None;
        for directory in std::env::split_paths(&self.search).chain(self.beside.clone()) {
            let program = directory.join(PROGRAM);
            if !program.is_file() {
                continue;
            }
            match access(&program, AccessFlags::X_OK) {
                Ok(()) => return Ok(program),
                Err(errno) => unusable = unusable.or(Some((program, errno))),
            }
        }
        Err(match unusable {
            Some((program, errno)) => SpawnError::Exec { program, reason: errno.into() },
            None => SpawnError::NotFound { path: shown(&self.search) },
        })
    }
}

/// The assignment as a file that exists only as a descriptor, which a child gets only as its input.
fn assignment_file(assignment: &Assignment) -> io::Result<File> {
    let json = serde_json::to_vec(assignment)?;
    let mut file = File::from(memfd_create(c"assignment", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&json)?;
    file.rewind()?; // the offset is the child's too
    Ok(file)
}

/// Descriptors of this process beyond the standard ones; closing one in a child that is not open
/// there any more does no harm.
fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return (3..GUESSED_DESCRIPTORS).collect(); // no /proc: any of these may be open
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&descriptor| descriptor > 2)
        .collect()
}

fn shown(path: &OsStr) -> String {
    let text = String::from_utf8_lossy(path.as_bytes());
    match text.char_indices().nth(SHOWN_PATH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Terminating { kill_at: Instant },
    Killed { look_at: Instant },
    Reaped,
}

/// A process that was started and not reaped. Dropping it kills it.
#[derive(Debug)]
pub struct ExecutorChild {
    pid: Pid,
    stage: Stage,
    /// What it left in its sockets is read when this is dropped, which is when it was reaped.
    _output: ExecutorOutput,
}

impl ExecutorChild {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Asks it to send its counters and exit; [`tick`](ExecutorChild::tick) kills it if it does not.
    pub fn stop(&mut self, now: Instant) {
        if self.stage == Stage::Running {
            // A zombie takes the signal too, so this cannot fail before it is reaped.
            let _ = kill(self.pid, Signal::SIGTERM);
            self.stage = Stage::Terminating { kill_at: now + STOP_GRACE };
        }
    }

    /// Kills it and everything that it started.
    pub fn kill(&mut self, now: Instant) {
        if self.stage != Stage::Reaped {
            // The whole group. It fails for a process that is gone.
            let _ = killpg(self.pid, Signal::SIGKILL);
            self.stage = Stage::Killed { look_at: now + LOOK_AGAIN };
        }
    }

    /// Whether it was neither told to stop nor killed, as far as is known.
    pub fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// When [`tick`](ExecutorChild::tick) is due at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Terminating { kill_at } => Some(kill_at),
            Stage::Killed { look_at } => Some(look_at),
            Stage::Running | Stage::Reaped => None,
        }
    }

    /// Does what is due at `now`; returns whether it was due.
    pub fn tick(&mut self, now: Instant) -> bool {
        let due = self.deadline().is_some_and(|deadline| deadline <= now);
        if due {
            if let Stage::Terminating { .. } = self.stage {
                tracing::warn!(
                    pid = self.pid(),
                    "executor ignored SIGTERM for {STOP_GRACE:?}: killing it; what it counted last \
                     may be missing from the bill"
                );
            }
            self.kill(now);
        }
        due
    }

    /// Reaps it if it has exited, together with its group; returns how it ended, once.
    pub fn try_reap(&mut self) -> Option<Exit> {
        if self.stage == Stage::Reaped {
            return None;
        }
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        let exited = match waitid(Id::Pid(self.pid), look | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::StillAlive) => return None,
            Ok(status) => exit_of(status),
            // Reaped behind our back, as the kernel does for a parent that was started with SIGCHLD
            // ignored: it is gone, and how is not known.
            Err(_) => Exit::Status(-1),
        };
        // The whole group. The zombie keeps the group's number until the second wait.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = waitid(Id::Pid(self.pid), look);
        self.stage = Stage::Reaped;
        Some(exited)
    }
}

impl Drop for ExecutorChild {
    fn drop(&mut self) {
        self.kill(Instant::now());
        self.try_reap(); // if it is too early for that, init reaps it after us
    }
}

/// A child that has ended and is not reaped yet, if there is one.
pub fn ended_child() -> Option<Pid> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, look).ok()?.pid()
}

/// Reaps a child that has ended.
pub fn reap(child: Pid) {
    // Fails only if it is reaped already.
    let _ = waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
}

fn exit_of(status: WaitStatus) -> Exit {
    match status {
        WaitStatus::Signaled(_, signal, _) => Exit::Signal(signal as i32),
        WaitStatus::Exited(_, status) => Exit::Status(status),
        _ => Exit::Status(-1), // WEXITED reports nothing else
    }
}

#[cfg(test)]
mod tests;
