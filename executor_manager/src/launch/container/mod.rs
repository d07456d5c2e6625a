//! Executors in containers: each is started by a process of an engine (Podman, Docker, Apptainer), which has its
//! standard streams and ends as it does.
//!
//! ```text
//!   Launcher::start ─▶ engine's process ──instructions, on standard input──▶ executor in a container
//!                         │ pidfd, standard output and error        host's network: device, client, manager
//!                         └── Containers' end (`end`): SIGTERM is passed on; killed by name
//! ```
//! * No descriptor gets into a container, and no library's file: the client sends the code.
//! * The engine is foreign, and slow. The loop starts its processes and waits for none; how long one may take until its
//!   executor has connected is a setting.
//! * What a manager that was killed has left is removed when the next one of this node starts.
//! * What isolates an executor is what was found in a container like its own (`surroundings`).
//!
//! Elsewhere: the command lines (`command`), the engine's program (`engine`), the executor's (`program`).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::geteuid;
use rfaas_config::{ContainerSettings, Engine as EngineName, SECRET_VARIABLE};
use rfaas_protocol::Secret;
use rfaas_protocol::assignment::Instructions;
use rfaas_protocol::isolation::{ContainedReport, Layers, SandboxSettings};

use super::exec::Exec;
use super::{ExecutorChild, StartError};
use crate::allocations::Exit;
use crate::groups::{GroupLimits, limits_of};
use crate::output::{ExecutorOutput, StandardStreams};
use crate::signals::Signals;

mod command;
mod end;
mod engine;
mod program;
mod surroundings;

use command::{Contained, EngineCommand, Limit};
pub use end::{ContainerEnd, STOP_GRACE, STOP_WITHIN};
use engine::Engine;
use program::Program;

/// How long the engine may take to list containers, or to remove all that are left: at the start of this manager, which
/// a signal ends.
const SWEEP_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to remove the one that was tried, which no signal ends: supervisors wait for longer.
const REMOVE_WITHIN: Duration = Duration::from_secs(10);
/// Most that is told of what an engine said, in bytes: it fits the answer to a client.
const MOST_SAID: usize = 120;
/// Memory of the container in which layers are looked for, in bytes, and the size of its `/tmp`.
const TRIED_MEMORY: u64 = 256 << 20;
const TRIED_TMP: u64 = 16 << 20;

/// Variables that say where something is on the node, or who runs the manager: the image has its own.
const OF_THE_NODE: [&str; 9] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TZDIR",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "IBV_CONFIG_DIR",
];

/// Prefix of variables of Apptainer's environment that it passes on without that.
const OF_APPTAINER: &str = "APPTAINERENV_";

/// Why containers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// A command of the engine could not be run, or failed.
    #[error("executor.container: `{command}`: {reason}")]
    Engine {
        /// Its first words.
        command: String,
        /// What came of it, and what it said.
        reason: String,
    },
    /// A signal is to stop this manager.
    #[error("executor.container: a signal has stopped what was waited for")]
    Stopped,
    /// What the executor needs cannot be passed to containers.
    #[error("executor.container: cannot see what `executor` needs to run: {0}")]
    Program(io::Error),
}

/// Runs the commands of the engine.
#[derive(Debug)]
pub struct Runner {
    exec: Arc<Exec>,
    engine: Engine,
    command: EngineCommand,
}

/// Starts executors in containers.
#[derive(Debug)]
pub struct Containers {
    runner: Arc<Runner>,
    program: Program,
    environment: Vec<String>,
    start_within: Duration,
}

impl Containers {
    /// Those of `settings`, for the node of this name and what tells its manager from others, with `environment` of
    /// this manager's.
    pub(super) fn new(
        exec: Arc<Exec>,
        (name, settings): (EngineName, &ContainerSettings),
        node: (&str, &str),
        environment: Vec<(OsString, OsString)>,
    ) -> Result<Self, ContainerError> {
        let command = EngineCommand::new(name, settings, node);
        let own = std::env::vars_os().filter(|(variable, _)| variable != SECRET_VARIABLE);
        let passed = |variable: &OsString| OF_THE_NODE.iter().all(|listed| variable != *listed);
        let environment: Vec<_> =
            environment.into_iter().filter(|(variable, _)| passed(variable)).collect();
        let more: Vec<_> = match name {
            EngineName::Apptainer => environment
                .iter()
                .map(|(variable, value)| {
                    let mut prefixed = OsString::from(OF_APPTAINER);
                    prefixed.push(variable);
                    (prefixed, value.clone())
                })
                .collect(),
            EngineName::Podman | EngineName::Docker => Vec::new(),
        };
        let begin = &command.begin[0];
        let engine = Engine::find(begin, exec.search(), own.chain(more)).map_err(|error| {
            ContainerError::Engine { command: begin.clone(), reason: error.to_string() }
        })?;
        let executor = exec.find().map_err(|e| ContainerError::Program(io::Error::other(e)))?;
        let program = Program::find(&exec, &executor).map_err(ContainerError::Program)?;
        let names = environment.into_iter().filter_map(|(variable, _)| variable.into_string().ok());
        Ok(Containers {
            environment: names.collect(),
            program,
            runner: Arc::new(Runner { exec, engine, command }),
            start_within: Duration::from_millis(settings.start_ms.into()),
        })
    }

    /// How long one may take until its executor has connected.
    pub fn start_within(&self) -> Duration {
        self.start_within
    }

    /// What runs them.
    pub fn engine(&self) -> EngineName {
        self.runner.command.engine
    }

    /// Removes what another manager of this node has left. At the start: waits for the engine.
    pub fn sweep(&self, signals: &Signals) -> Result<(), ContainerError> {
        let Some(words) = self.runner.command.list() else { return Ok(()) };
        let listed = self.runner.run(&words, SWEEP_WITHIN, Some(signals))?;
        let left: Vec<_> = listed.split_whitespace().collect();
        if left.is_empty() {
            return Ok(());
        }
        tracing::warn!(containers = left.len(), "removing what the last manager of this node left");
        let words = self.runner.command.remove(&left).expect("it lists, so it removes");
        match self.runner.run(&words, SWEEP_WITHIN, Some(signals)) {
            Err(ContainerError::Stopped) => return Err(ContainerError::Stopped),
            // No other has its name.
            Err(error) => {
                tracing::warn!(%error, "a container of the last manager may still be there");
            }
            Ok(_) => {}
        }
        Ok(())
    }

    /// Returns what an executor is isolated by in a container: `wanted` layers of its own that can be put on there, and
    /// what the container is. At the start: runs one, which shows that the image can be used.
    pub fn probe(
        &self,
        wanted: &SandboxSettings,
        signals: &Signals,
    ) -> Result<surroundings::Found, ContainerError> {
        let asked = serde_json::to_string(wanted).expect("settings are JSON");
        let user = self.user(wanted, 0);
        let name = self.runner.name(0);
        let arguments = ["contained".to_owned(), asked];
        let program = [self.program.words.as_slice(), &arguments].concat();
        let contained = Contained {
            memory: TRIED_MEMORY,
            tmp: TRIED_TMP,
            user,
            ..self.contained(&name, &program, wanted.rdma)
        };
        let words = self.runner.command.run(&contained);
        let answered = self.runner.run(&words, self.start_within, Some(signals));
        // One that was late, or stopped, is still there.
        if answered.is_err()
            && let Some(words) = self.runner.command.remove(&[&name])
        {
            let _ = self.runner.run(&words, REMOVE_WITHIN, None);
        }
        let answer = answered?;
        let report: ContainedReport = serde_json::from_str(answer.trim()).map_err(|error| {
            let reason = format!("the program `executor` answers {:?}: {error}", said(&answer));
            ContainerError::Engine { command: self.runner.shown(&words), reason }
        })?;
        Ok(surroundings::found(report, user, TRIED_MEMORY))
    }

    /// Returns why an executor is given up whose engine has said `words`.
    pub fn late(&self, words: &str) -> String {
        let (engine, within, said) = (self.engine(), self.start_within, said(words));
        format!("{engine} has not started the executor within {within:?}; it said: {said}")
    }

    /// Returns why an executor has not started, whose engine has ended with `exit` and has said `words`.
    pub fn not_started(&self, exit: Exit, words: &str) -> String {
        let (engine, said) = (self.engine(), said(words));
        match exit {
            Exit::Status(status) => {
                format!("{engine} has not started the executor (status {status}); it said: {said}")
            }
            _ => format!("{engine} has not started the executor, and was killed; it said: {said}"),
        }
    }

    /// Returns the user and group id of an executor's container. Whoever may not choose them runs it as itself.
    fn user(&self, settings: &SandboxSettings, number: u32) -> Option<u32> {
        let may = match self.engine() {
            EngineName::Podman => geteuid().is_root(),
            EngineName::Docker => true, // its daemon is root
            EngineName::Apptainer => false,
        };
        may.then(|| settings.users.first.checked_add(number)).flatten()
    }

    fn contained<'a>(&'a self, name: &'a str, program: &'a [String], rdma: bool) -> Contained<'a> {
        Contained {
            name,
            memory: 0,
            tmp: 0,
            cpus: None,
            open_files: limit(Resource::RLIMIT_NOFILE),
            locked_memory: limit(Resource::RLIMIT_MEMLOCK),
            user: None,
            rdma,
            mounted: &self.program.mounted,
            environment: &self.environment,
            program,
        }
    }

    /// Starts an executor. Returns as soon as the engine's process is there.
    pub fn start(
        &self,
        instructions: &Instructions,
        input: &File,
        (output, streams): (ExecutorOutput, &StandardStreams),
    ) -> Result<ExecutorChild, StartError> {
        let Some(assignment) = &instructions.assignment else {
            return Err(StartError::Instructions(io::Error::other("containers do not stand by")));
        };
        let GroupLimits { memory, cpus } = limits_of(assignment, &[]);
        let name = self.runner.name(assignment.lease);
        let sandbox = instructions.standby.sandbox.as_ref();
        let rdma = sandbox.is_some_and(|sandbox| sandbox.settings.rdma);
        let (_, most_files) = limit(Resource::RLIMIT_NOFILE);
        let contained = Contained {
            memory,
            tmp: u64::from(assignment.memory) << 20,
            cpus: cpus.as_deref(),
            open_files: (Some(instructions.standby.open_files), most_files),
            user: sandbox.and_then(|sandbox| self.user(&sandbox.settings, sandbox.user)),
            ..self.contained(&name, &self.program.words, rdma)
        };
        let Runner { exec, engine, command } = &*self.runner;
        let standard = [input.as_fd(), streams.stdout.as_fd(), streams.stderr.as_fd()];
        let started = engine.spawn(exec, &command.run(&contained), standard);
        let pid =
            started.map_err(|source| StartError::Engine { engine: command.engine, source })?;
        let end = ContainerEnd::new(self.runner.clone(), name);
        Ok(ExecutorChild::spawned(pid, output).in_container(end))
    }
}

impl Runner {
    /// A name that no container has had.
    fn name(&self, lease: u64) -> String {
        let [a, b, c, d, ..] = Secret::generate().0;
        self.command.name(lease, u32::from_le_bytes([a, b, c, d]))
    }

    /// Runs a command to its end, which one of `signals` brings about; returns what it printed.
    fn run(
        &self,
        words: &[String],
        within: Duration,
        signals: Option<&Signals>,
    ) -> Result<String, ContainerError> {
        let failed = |reason| ContainerError::Engine { command: self.shown(words), reason };
        let printed = self.engine.run(&self.exec, words, within, signals);
        let printed = printed.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => ContainerError::Stopped,
            _ => failed(error.to_string()),
        })?;
        match printed.status {
            Some(0) => Ok(printed.stdout),
            Some(status) => Err(failed(format!(
                "ended with status {status}; it said: {}",
                said(&printed.stderr)
            ))),
            None => Err(failed("a signal has ended it".into())),
        }
    }

    /// The words that say which command it is.
    fn shown(&self, words: &[String]) -> String {
        words[..words.len().min(self.command.begin.len() + 1)].join(" ")
    }
}

/// Returns what of its words tells most: the last line that names an error, else the last one.
fn said(text: &str) -> String {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rfind(|line| line.contains("rror")).or_else(|| lines().next_back());
    match line {
        None => "nothing".into(),
        Some(line) if line.len() <= MOST_SAID => line.into(),
        Some(line) => format!("{}…", &line[..line.floor_char_boundary(MOST_SAID)]),
    }
}

fn limit(resource: Resource) -> Limit {
    let finite = |limit| (limit != RLIM_INFINITY).then_some(limit);
    getrlimit(resource).map_or((None, None), |(soft, hard)| (finite(soft), finite(hard)))
}

/// Layers that an executor in a container may put on by itself, without any right.
pub fn own_layers(wanted: Layers) -> Layers {
    surroundings::OWN.iter().copied().filter(|&layer| wanted.has(layer)).collect()
}
