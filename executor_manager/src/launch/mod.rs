//! Executor processes: how they come to be.
//!
//! ```text
//!   Launcher::start ─▶ zygote: cloned from a process that waits ─▶ ExecutorChild (`child`)
//!                      ├─ there is none, and exec has all layers ─▶ exec: posix_spawn(3) ─▶ ExecutorChild
//!                      └─ there is none ─▶ another one is waited for, for a moment
//!                   or ─▶ container: the process of an engine (`container`) ─▶ ExecutorChild
//! ```
//! * No executor lacks a layer of isolation that the node says that it has.
//! * An executor gets its instructions on standard input, sockets of its own (`output`) as standard
//!   output and error, the library's file (`cache`), no other descriptor of the manager, no signal
//!   blocked or ignored, and of the environment what is listed (`environment`).
//! * It leads a session, and in it a process group, which it can leave for no other: the terminal
//!   that the manager was started from is out of its reach.
//! * It is a child of this process, however it was started, and dies with it.
//! * It is in its control group, if there are any, before it does anything.
//!
//! What differs in a container is said there.
//!
//! Elsewhere: its end (`child`), when to stop one (`allocations`).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rfaas_config::{ContainerSettings, Engine};
use rfaas_program::inherited::told;
use rfaas_program::local_channel::{LocalChannel, to_file};
use rfaas_protocol::assignment::Instructions;
use rfaas_protocol::isolation::{IsolationReport, Layer, SandboxSettings};
use rfaas_protocol::launch::ZygoteSettings;

use crate::cache::Library;
use crate::environment;
use crate::groups::{Group, GroupLimits, Groups, limits_of};
use crate::output::{Outputs, StandardStreams};

mod child;
pub mod container;
mod exec;
mod probe;
mod remains;
mod zygote;

pub use child::{ExecutorChild, ended_child, reap};
use container::{ContainerError, Containers};
use exec::{Exec, PROGRAM};
use zygote::{Cloned, READY_WITHIN, Zygote};

/// Why an executor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
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
    #[error("cannot start `{}`: {}", program.display(), told(reason))]
    Exec {
        /// Where it was found.
        program: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// It does not say what it can be isolated by.
    #[error(
        "`{PROGRAM}` does not say which layers of isolation there are: {0}; it has to be of the \
         same release"
    )]
    Probe(io::Error),
    /// It cannot be cloned, and would lack a layer that the node has if it were started by itself.
    #[error(
        "cannot clone `{PROGRAM}`, which would lack a layer of isolation by itself: {0}; try again"
    )]
    NotCloned(String),
    /// The instructions could not be passed on.
    #[error("cannot pass its instructions to `{PROGRAM}`: {}", told(.0))]
    Instructions(io::Error),
    /// There is no control group for it.
    #[error("cannot put `{PROGRAM}` in a control group: {}", told(.0))]
    Group(io::Error),
    /// The engine of containers cannot be run.
    #[error("cannot start `{engine}`: {}", told(source))]
    Engine {
        /// Which it is.
        engine: Engine,
        /// What the system said.
        source: io::Error,
    },
    /// There are no sockets, or no thread, for what it writes.
    #[error("cannot read what `{PROGRAM}` writes: {}", told(.0))]
    Output(io::Error),
}

/// How long another zygote is waited for: a start takes a tenth of it. The loop waits for it, so clients
/// have to be told soon.
const ANOTHER_WITHIN: Duration = Duration::from_millis(500);

/// Starts executors.
#[derive(Debug)]
pub struct Launcher {
    exec: Arc<Exec>,
    /// What passes to executors.
    environment: Vec<(OsString, OsString)>,
    /// None: none is started in a container.
    containers: Option<Containers>,
    /// None: each is started by itself.
    zygote: Option<Zygote>,
    /// None is started by itself: it would lack a layer that others have.
    only_cloned: bool,
    outputs: Outputs,
    /// None: there are no control groups.
    groups: Option<Groups>,
}

/// The descriptors that an executor starts with.
#[derive(Debug)]
struct Descriptors<'a> {
    /// The instructions, as standard input.
    input: File,
    streams: StandardStreams,
    /// The library's file, as [`LIBRARY_DESCRIPTOR`](rfaas_protocol::assignment::LIBRARY_DESCRIPTOR) and the next; or
    /// the channel of one that stands by, and the files of libraries that it loads.
    more: Vec<BorrowedFd<'a>>,
}

impl Launcher {
    /// Starts executors from this process's `PATH`, else from its own directory, with what they get
    /// of its environment, variables named `more` too.
    pub fn from_environment(more: &[String]) -> Self {
        let environment = environment::of_executors(more);
        let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_owned()));
        Launcher::new(std::env::var_os("PATH").unwrap_or_default(), beside, environment)
    }

    fn new(
        search: OsString,
        beside: Option<PathBuf>,
        environment: Vec<(OsString, OsString)>,
    ) -> Self {
        let exec = Arc::new(Exec::new(search, beside, environment.clone()));
        let outputs = Outputs::default();
        let (containers, zygote, groups) = (None, None, None);
        Launcher { exec, environment, containers, zygote, only_cloned: false, outputs, groups }
    }

    /// What executors write.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// Whether there is an executor to start.
    pub fn check(&self) -> Result<(), StartError> {
        self.exec.find().map(drop)
    }

    /// Has executors cloned from a zygote from now on. To be called by the thread that calls
    /// [`tick`](Launcher::tick) and lives as long as the process: what it starts dies with that
    /// thread.
    pub fn use_zygote(&mut self, settings: ZygoteSettings) {
        let now = Instant::now();
        self.zygote = Some(Zygote::new(settings, now));
        self.tick(now);
    }

    /// Has each executor in a container from now on, of the engine and with the settings that are given, for the node
    /// of this name and what tells its manager from others.
    pub fn use_containers(
        &mut self,
        contained: (Engine, &ContainerSettings),
        node: (&str, &str),
    ) -> Result<&Containers, ContainerError> {
        let environment = self.environment.clone();
        let containers = Containers::new(self.exec.clone(), contained, node, environment)?;
        Ok(self.containers.insert(containers))
    }

    /// What runs executors in containers, if they are.
    pub fn containers(&self) -> Option<&Containers> {
        self.containers.as_ref()
    }

    /// Waits until the zygote is ready, if there is to be one, or lost.
    pub fn wait_until_ready(&mut self) {
        if let Some(zygote) = &mut self.zygote {
            zygote.wait_until_ready(&self.exec, READY_WITHIN);
        }
    }

    /// Returns what is readable when [`tick`](Launcher::tick) has something to do.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.zygote.as_ref()?.descriptor()
    }

    /// When [`tick`](Launcher::tick) is due at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.zygote.as_ref()?.deadline()
    }

    /// Starts a zygote again that was lost, and hears what it says.
    pub fn tick(&mut self, now: Instant) {
        if let Some(zygote) = &mut self.zygote {
            zygote.tick(&self.exec, now);
        }
    }

    /// Returns which layers of isolation of `settings` its executors can have.
    pub fn probe(&self, settings: &SandboxSettings) -> Result<IsolationReport, StartError> {
        probe::probe(&self.exec, settings)
    }

    /// Returns what the zygote has found of these layers, if there is one.
    pub fn report(&self) -> Option<&IsolationReport> {
        self.zygote.as_ref()?.report()
    }

    /// Has no executor started by itself from now on, since that would lack a layer that others have.
    pub fn require_zygote(&mut self) {
        self.only_cloned = true;
    }

    /// Has each executor in a control group of its own from now on.
    pub fn use_groups(&mut self, groups: Groups) {
        self.groups = Some(groups);
    }

    /// Starts an executor for `lease` with `instructions`, which say what it has of `library`.
    pub fn start(
        &mut self,
        lease: u64,
        instructions: &Instructions,
        library: &Library,
    ) -> Result<ExecutorChild, StartError> {
        let input = to_file(c"instructions", instructions).map_err(StartError::Instructions)?;
        let (output, streams) = self.outputs.follow(Some(lease)).map_err(StartError::Output)?;
        if let Some(containers) = &self.containers {
            return containers.start(instructions, &input, (output, &streams));
        }
        let descriptors = Descriptors { input, streams, more: library.descriptors().collect() };
        let mut group = self.group(instructions).map_err(StartError::Group)?;
        let child = match self.clone_one(&descriptors) {
            Ok(cloned) => {
                let entrances = group.as_mut().map_or_else(Vec::new, Group::entrances);
                ExecutorChild::cloned(cloned.let_go(&entrances), output)
            }
            Err(reason) if self.only_cloned => return Err(StartError::NotCloned(reason)),
            Err(_) => {
                let child = ExecutorChild::spawned(self.exec.start(&descriptors)?, output);
                // It runs no foreign code before it has connected, for which it waits for this thread.
                if let Some(group) = &mut group {
                    group.attach(child.pid()).map_err(StartError::Group)?;
                }
                child
            }
        };
        Ok(child.in_group(group))
    }

    /// Returns the group of an executor with these instructions, if there are groups. What it may have is limited if
    /// the executor is confined, and has a lease.
    fn group(&self, instructions: &Instructions) -> io::Result<Option<Group>> {
        let Some(groups) = &self.groups else { return Ok(None) };
        let group = groups.take()?;
        if let Instructions { standby, assignment: Some(assignment) } = instructions
            && standby.sandbox.is_some()
        {
            group.limit(&limits_of(assignment, &standby.preload))?;
        }
        Ok(Some(group))
    }

    /// Whether [`start_standing`](Launcher::start_standing) starts something now: there is a zygote, and what its
    /// executors have can be fitted to a lease that comes later. Their `/tmp` cannot without a guardian.
    pub fn can_start_standing(&self) -> bool {
        let report = self.zygote.as_ref().and_then(Zygote::report);
        report.is_some_and(|report| {
            report.active.has(Layer::PidNamespace) || !report.active.has(Layer::View)
        })
    }

    /// Starts an executor that stands by, with `instructions` and the `files` of libraries that these name, limited to
    /// what is in `limits`; returns it, and where it hears of its lease.
    pub fn start_standing(
        &mut self,
        instructions: &Instructions,
        files: &[File],
        limits: Option<&GroupLimits>,
    ) -> Result<(ExecutorChild, LocalChannel), StartError> {
        let input = to_file(c"instructions", instructions).map_err(StartError::Instructions)?;
        let (channel, theirs) = LocalChannel::pair().map_err(StartError::Instructions)?;
        let (output, streams) = self.outputs.follow(None).map_err(StartError::Output)?;
        let more = iter::once(theirs.as_fd()).chain(files.iter().map(AsFd::as_fd)).collect();
        let descriptors = Descriptors { input, streams, more };
        let zygote = self.zygote.as_mut().ok_or_else(|| "none is to be cloned".to_owned());
        let cloned = zygote.and_then(|zygote| zygote.start(&descriptors));
        let cloned = cloned.map_err(StartError::NotCloned)?;
        let mut group = self.group(instructions).map_err(StartError::Group)?;
        if let (Some(group), Some(limits)) = (&group, limits) {
            group.limit(limits).map_err(StartError::Group)?;
        }
        let entrances = group.as_mut().map_or_else(Vec::new, Group::entrances);
        let child = ExecutorChild::cloned(cloned.let_go(&entrances), output);
        Ok((child.in_group(group), channel))
    }

    /// Has an executor cloned, or returns why there is none.
    fn clone_one(&mut self, descriptors: &Descriptors<'_>) -> Result<Cloned, String> {
        let zygote = self.zygote.as_mut().ok_or("none is to be cloned")?;
        let cloned = zygote.start(descriptors);
        if cloned.is_ok() || !self.only_cloned || zygote.is_ready() {
            return cloned;
        }
        zygote.wait_until_ready(&self.exec, ANOTHER_WITHIN);
        zygote.start(descriptors)
    }
}

#[cfg(test)]
mod tests;
