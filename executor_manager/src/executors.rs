//! The executor processes of this node, each with its counters: those that work, by their lease, and those that stand
//! by until there is one.
//!
//! ```text
//!   start ──▶ one stands by ──▶ it gets the assignment        (and is replaced when the lease is served)
//!     └─────▶ none does ──────▶ a process is started with it
//! ```
//! * A lease comes before those that stand by: if it cannot be served, some of these are given up for it.
//! * ALIVE - while there are any, each is given a sign of life in every period and looked at for its own.
//!   One that gave none for too long, stopped or hanging, is killed with everything that it started.
//!
//! Elsewhere: starting them (`start`), when one is to stand by (`prewarm`), what such a one is (`standing`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rdmalib::{ConnectRequest, Device};
use rfaas_program::describe;
use rfaas_program::descriptor_set::DescriptorSet;
use rfaas_protocol::Secret;
use rfaas_protocol::assignment::{Assignment, MANAGER_LOST, MEMORY_LIMIT};
use rfaas_protocol::channel::refuse;
use rfaas_protocol::heartbeat::{Beats, Heartbeat};
use rfaas_protocol::isolation::SandboxSettings;
use rfaas_protocol::lease::LeaseId;

use crate::accounting::{AcceptError, ExecutorAccount};
use crate::allocations::{Exit, Usage};
use crate::cache::Library;
use crate::groups::GroupMemory;
use crate::launch::{self, ExecutorChild, Launcher, container};
use crate::output::Outputs;
use crate::preload::Preload;
use crate::request::Deployment;

mod prewarm;
mod standing;
mod start;

use prewarm::Prewarms;
pub use standing::check_descriptors;
use standing::{READY_WITHIN, Standing};

/// How long executors may take to be gone that were told to stop: they are killed after a tenth of it, or
/// two fifths where many end at once.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How long the last words of an engine are waited for that has ended: its reader takes microseconds.
const WORDS_WITHIN: Duration = Duration::from_secs(1);
/// Processes of others that are reaped before everybody else has a turn.
const STRANGERS: usize = 64;

#[derive(Debug)]
struct Running {
    process: ExecutorChild, // first: it is killed before its counters go
    account: ExecutorAccount,
    /// Its number among those that run, if it is confined.
    user: Option<u32>,
    /// Of the process; that it was started is the first.
    beats: Beats,
    /// It was killed for its silence.
    silent: bool,
    /// Until when it may tell that it ended for ours: we were silent ourselves. An exit status alone, which a
    /// function can choose, is no reason to believe it.
    may_miss_us_until: Option<Instant>,
    /// When its container has to have started, until it has.
    start_by: Option<Instant>,
    /// How it ended, and until when the rest of what it has written is waited for.
    ended: Option<(Exit, Instant)>,
}

impl Running {
    /// Reaps it if it is gone; returns how it ended, once. One whose container has not started is looked at again until
    /// all was read that there is to tell of it.
    fn try_reap(&mut self, now: Instant) -> Option<Exit> {
        if let Some(exit) = self.process.try_reap(now) {
            self.process.output().end();
            self.ended = Some((exit, now + WORDS_WITHIN));
        }
        let (exit, until) = self.ended?;
        if self.start_by.is_some() && now < until && !self.process.output().is_read() {
            return None;
        }
        self.ended = None;
        Some(exit)
    }
}

/// Starts executors and keeps them until they are reaped.
#[derive(Debug)]
pub struct Executors {
    device: Device,
    manager: SocketAddr,
    running: BTreeMap<LeaseId, Running>,
    standing: Vec<Standing>,
    prewarm: Prewarms,
    preload: Preload,
    /// What the last executor worked for: what the next one that stands by is made for.
    last: Option<Assignment>,
    launcher: Launcher,
    /// What confines those that are started by themselves; `None`: nobody is confined.
    settings: Option<SandboxSettings>,
    /// Where the search for a user begins.
    next_user: u32,
    heartbeat: Heartbeat,
    /// Soft limit of descriptors that this manager was started with, for executors.
    open_files: u64,
    /// When signs of life are due, if any process is there.
    beat_at: Instant,
    /// When this node leaves: executors are told.
    leaves_at: Option<Instant>,
    /// Where the ends of processes are told, by process id.
    ends: DescriptorSet,
    /// Process ids of those that have told of their end, or may have.
    told: Vec<u64>,
}

/// A process that is gone.
#[derive(Clone, Debug)]
pub struct Gone {
    /// The lease that it worked for.
    pub lease: LeaseId,
    /// How it ended.
    pub exit: Exit,
    /// Everything that it counted.
    pub usage: Usage,
    /// Why its container has not started, if it has not.
    pub not_started: Option<String>,
}

impl Executors {
    /// No executors yet. They will use `device`, reach this manager at `manager`, and be confined by `settings`.
    /// `prewarm` of them will stand by, and as many with each library of `preload` loaded. Fails only if this process
    /// has no descriptor left.
    pub fn new(
        device: Device,
        manager: SocketAddr,
        (launcher, settings): (Launcher, Option<SandboxSettings>),
        heartbeat: Heartbeat,
        open_files: u64,
        (prewarm, preload): (u32, Preload),
    ) -> nix::Result<Self> {
        let now = Instant::now();
        Ok(Executors {
            device,
            manager,
            launcher,
            settings,
            next_user: 0,
            heartbeat,
            open_files,
            running: BTreeMap::new(),
            standing: Vec::new(),
            prewarm: Prewarms::new(prewarm, preload.kinds(), now),
            preload,
            last: None,
            beat_at: now,
            leaves_at: None,
            ends: DescriptorSet::new()?,
            told: Vec::new(),
        })
    }

    /// What they write.
    pub fn outputs(&self) -> &Outputs {
        self.launcher.outputs()
    }

    /// All processes.
    fn all(&self) -> impl Iterator<Item = &Running> {
        self.running.values().chain(self.standing.iter().map(|standing| &standing.running))
    }

    /// All processes.
    fn all_mut(&mut self) -> impl Iterator<Item = &mut Running> {
        let standing = self.standing.iter_mut().map(|standing| &mut standing.running);
        self.running.values_mut().chain(standing)
    }

    /// Returns the operator's library that `deployment` is of, if it is one.
    pub fn preloaded(&self, deployment: &Deployment) -> Option<Library> {
        let file = self.preload.find(deployment.code_hash, deployment.code_bytes)?;
        Some(Library::Preloaded(file))
    }

    /// Stops the executor of `lease`: asks it first, kills it later.
    pub fn stop(&mut self, lease: LeaseId, now: Instant) {
        let ending = self.running.values().filter(|running| !running.process.is_running()).count();
        if let Some(running) = self.running.get_mut(&lease) {
            running.process.stop(now, ending);
        }
    }

    /// How long it may take until all of them are gone that were told to stop.
    pub fn stop_within(&self) -> Duration {
        self.launcher.containers().map_or(STOP_WITHIN, |_| container::STOP_WITHIN)
    }

    /// Kills all of them, at once.
    pub fn kill_all(&mut self, now: Instant) {
        self.all_mut().for_each(|running| running.process.kill(now));
    }

    /// Ends those that stand by; there will be no others.
    pub fn end_standing(&mut self, now: Instant) {
        self.prewarm.stop();
        self.standing.iter_mut().for_each(|standing| standing.running.process.kill(now));
    }

    /// Whether none stands by, or is about to end that did.
    pub fn none_stands(&self) -> bool {
        self.standing.is_empty()
    }

    /// What the executor of `lease` has counted so far; nothing if there is none.
    pub fn usage(&self, lease: LeaseId) -> Usage {
        self.running.get(&lease).map(|running| running.account.read()).unwrap_or_default()
    }

    /// The number of processes that work for a lease.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Connects a thread of the executor that was given `secret`, or refuses it.
    pub fn accept(&mut self, secret: Secret, request: ConnectRequest) {
        let Some(running) = self.all_mut().find(|running| running.account.secret() == secret)
        else {
            refuse(request, "no executor of this node was given this secret");
            return;
        };
        let pid = running.process.pid();
        match running.account.accept(request) {
            Ok(()) => {
                running.start_by = None;
                tracing::debug!(pid, "executor counts here");
            }
            Err(AcceptError::TooMany(request)) => {
                tracing::debug!(pid, "an executor connects more often than it has workers");
                refuse(*request, "all connections of this executor are there already");
            }
            Err(AcceptError::Rdma(rdmalib::Error::Disconnected)) => {
                tracing::debug!(pid, "an executor did not wait to be connected");
            }
            Err(AcceptError::Rdma(error)) => {
                let error = describe(&error);
                tracing::warn!(pid, error, "an executor cannot count its time here");
            }
        }
    }

    /// What is readable when a process has ended, or one that is to stand by is ready.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let starting = self.standing.iter().filter_map(Standing::descriptor);
        starting.chain(self.launcher.descriptor()).chain([self.ends.as_fd()])
    }

    /// Notes which processes have told of their end.
    pub fn acknowledge(&mut self) {
        self.ends.take_readable(&mut self.told);
    }

    /// Whether any have, and were not looked at since.
    pub fn knows_of_ends(&self) -> bool {
        !self.told.is_empty()
    }

    /// When [`tick`](Executors::tick) is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let beat = self.all().next().map(|_| self.beat_at);
        let ends = self.all().filter_map(|running| running.process.deadline());
        let ready = self.standing.iter().filter_map(Standing::ready_by);
        let running = self.running.values();
        let starts = running.clone().filter(|it| it.process.is_running());
        let starts = starts.filter_map(|running| running.start_by);
        let words = running.filter_map(|running| Some(running.ended?.1));
        let next = self.prewarm.due_at().filter(|_| self.launcher.can_start_standing());
        let of_containers = starts.chain(words);
        let of_launcher = self.launcher.deadline();
        ends.chain(ready).chain(beat).chain(next).chain(of_containers).chain(of_launcher).min()
    }

    /// Kills what did not stop in time or is silent, and keeps the launcher going; returns whether anything was due,
    /// so that it is worth looking for processes that are gone.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.launcher.tick(now);
        let mut due = false;
        self.all_mut().for_each(|running| due |= running.process.tick(now));
        due |= self.running.values().any(|running| running.ended.is_some());
        self.see_to_standing(now);
        if self.all().next().is_some() && now >= self.beat_at {
            let Heartbeat { period, silence } = self.heartbeat;
            if now + period >= self.beat_at + silence {
                tracing::debug!(
                    "no sign of life of ours for {silence:?}: executors may have ended"
                );
                let until = Some(now + silence);
                self.all_mut().for_each(|running| running.may_miss_us_until = until);
            }
            self.beat_at = now + self.heartbeat.period;
            self.beat(now);
        }
        due
    }

    /// Gives up executors whose containers have not started: kills those that are late, and does not wait until the
    /// rest of those is removed whose engine has ended. Returns whose they are, and why for the client.
    pub fn give_up_not_started(&mut self, now: Instant) -> Vec<(LeaseId, String)> {
        let Some(containers) = self.launcher.containers() else { return Vec::new() };
        let not_started = self.running.iter_mut().filter_map(|(&lease, running)| {
            let (start_by, output) = (running.start_by?, running.process.output());
            let why = match running.process.engine_exit() {
                Some(exit) if output.is_read() => containers.not_started(exit, &output.words()),
                None if running.process.is_running() && now >= start_by => {
                    let why = containers.late(&output.words());
                    running.process.kill(now);
                    why
                }
                _ => return None,
            };
            running.start_by = None; // that is told now
            Some((lease, why))
        });
        not_started.collect()
    }

    /// Hears which are ready now that will stand by, kills those that are late, and starts another one if it is time.
    fn see_to_standing(&mut self, now: Instant) {
        for standing in &mut self.standing {
            let pid = standing.running.process.pid();
            if standing.hears_ready() {
                tracing::debug!(pid, "an executor stands by");
                self.prewarm.of(standing.kind).ready(now);
            } else if standing.ready_by().is_some_and(|at| now >= at) {
                standing.running.process.kill(now); // told when it is gone
            }
        }
        if self.launcher.can_start_standing()
            && let Some(kind) = self.prewarm.due(now)
        {
            self.prewarm.of(kind).started(now);
            if let Err(reason) = self.start_standing(kind, now)
                && self.prewarm.of(kind).lost(false, now)
            {
                tracing::warn!(reason, "cannot start an executor that stands by; trying again");
            }
        }
    }

    /// Tells executors, those that come later too, when this node leaves.
    pub fn set_leaving(&mut self, at: Option<Instant>) {
        self.leaves_at = at;
        self.all_mut().for_each(|running| running.account.set_leaving(at));
    }

    /// Kills executors that are silent (ALIVE).
    fn beat(&mut self, now: Instant) {
        for running in self.all_mut() {
            let beats = running.account.beat();
            let silent = running.start_by.is_none() && running.beats.silent(beats);
            if silent && running.process.is_running() {
                tracing::warn!(pid = running.process.pid(), "executor is silent: killing it");
                running.process.kill(now);
                running.silent = true;
            }
        }
    }

    /// Reaps processes that this program has not started: those of a program that has become it with exec(2), and,
    /// as process 1 of a container, those that functions left behind. Returns whether there may be more.
    pub fn reap_strangers(&mut self) -> bool {
        for _ in 0..STRANGERS {
            let Some(gone) = launch::ended_child() else { return false };
            // One of ours: `reap` knows what to do.
            let ours = self.all().find(|ours| ours.process.waits_for(gone));
            if let Some(number) = ours.map(|ours| number_of(&ours.process)) {
                self.told.push(number);
                return true;
            }
            launch::reap(gone);
        }
        true
    }

    /// Reaps the processes that are gone, of all or of those that have told of it; returns those that had a lease.
    pub fn reap(&mut self, all: bool) -> Vec<Gone> {
        let now = Instant::now();
        let told = std::mem::take(&mut self.told);
        let may_be_gone = |process: &ExecutorChild| all || told.contains(&number_of(process));
        let Executors { standing, prewarm, preload, .. } = self;
        standing.retain_mut(|standing| {
            if !may_be_gone(&standing.running.process) {
                return true;
            }
            let Some(exit) = standing.running.process.try_reap(now) else { return true };
            let (pid, was_ready) = (standing.running.process.pid(), standing.was_ready());
            let library = preload.path(standing.kind);
            match (prewarm.of(standing.kind).lost(was_ready, now), library) {
                (false, _) => tracing::debug!(
                    pid, ?exit, was_ready, ?library, "another executor that stood by is gone"
                ),
                (true, _) if was_ready => tracing::warn!(pid, ?exit, "an executor that stood by is gone"),
                (true, Some(library)) => tracing::warn!(
                    pid, ?exit, ?library,
                    "an executor that stood by is gone: it did not load this library of executor.preload in \
                     {READY_WITHIN:?}, or has ended in its constructors"
                ),
                (true, None) => tracing::warn!(
                    pid, ?exit,
                    "an executor that stood by is gone: it was not ready in {READY_WITHIN:?}, or has ended before"
                ),
            }
            false
        });
        let containers = self.launcher.containers();
        let gone: Vec<_> = self
            .running
            .iter_mut()
            .filter(|(_, running)| may_be_gone(&running.process))
            .filter_map(|(&lease, running)| {
                let exit = match running.try_reap(now)? {
                    Exit::Signal(_) if running.silent => Exit::Silent,
                    Exit::Status(MANAGER_LOST) if running.may_miss_us_until >= Some(now) => {
                        Exit::Silent // of us: we were stopped
                    }
                    exit => with_memory(exit, || running.process.memory()),
                };
                let not_started = running.start_by.and(containers).map(|containers| {
                    containers.not_started(exit, &running.process.output().words())
                });
                // Only now: what it counted last has landed when its process is no more.
                Some(Gone { lease, exit, usage: running.account.read(), not_started })
            })
            .collect();
        for gone in &gone {
            self.running.remove(&gone.lease);
        }
        gone
    }
}

/// Number of a process in the set of those that tell of their end.
fn number_of(process: &ExecutorChild) -> u64 {
    process.pid().unsigned_abs().into()
}

/// Returns how a process ended, with what its control group says if it had no memory: it has said so itself, or the
/// kernel has killed a process of the group.
fn with_memory(exit: Exit, memory: impl FnOnce() -> Option<GroupMemory>) -> Exit {
    let Exit::Signal(signal) = exit else { return exit };
    if ![MEMORY_LIMIT, Signal::SIGKILL as i32].contains(&signal) {
        return exit;
    }
    match memory() {
        Some(GroupMemory { limit, used, killed }) if killed || signal == MEMORY_LIMIT => {
            Exit::Memory { limit, used }
        }
        _ => exit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_killed_for_want_of_memory_is_told_how_much_there_was() {
        let kill = Signal::SIGKILL as i32;
        let memory = |killed| move || Some(GroupMemory { limit: 7, used: 6, killed });
        let told = Exit::Memory { limit: 7, used: 6 };
        assert_eq!(with_memory(Exit::Signal(kill), memory(true)), told);
        assert_eq!(with_memory(Exit::Signal(kill), memory(false)), Exit::Signal(kill));
        assert_eq!(with_memory(Exit::Signal(MEMORY_LIMIT), memory(false)), told);
        assert_eq!(with_memory(Exit::Signal(MEMORY_LIMIT), || None), Exit::Signal(MEMORY_LIMIT));
        assert_eq!(with_memory(Exit::Signal(11), memory(true)), Exit::Signal(11));
        assert_eq!(with_memory(Exit::Status(0), memory(true)), Exit::Status(0));
    }
}
