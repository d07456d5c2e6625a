//! The executor processes of this node, each with its counters, by the lease that it works for.
//!
//! * ALIVE - while there are any, each is given a sign of life in every period and looked at for its own.
//!   One that gave none for too long, stopped or hanging, is killed with everything that it started.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::sys::signal::Signal;
use rdmalib::{ConnectRequest, Device};
use rfaas_protocol::Secret;
use rfaas_protocol::assignment::{
    AssignedDevice, AssignedSandbox, Assignment, HexSecret, Instructions, MANAGER_LOST, MEMORY_LIMIT,
    Standby,
};
use rfaas_protocol::channel::refuse;
use rfaas_protocol::heartbeat::{Beats, Heartbeat};
use rfaas_protocol::isolation::SandboxSettings;
use rfaas_protocol::lease::LeaseId;

use crate::accounting::{AcceptError, ExecutorAccount};
use crate::allocations::{Exit, Usage};
use crate::cache::Library;
use crate::groups::GroupMemory;
use crate::launch::{self, ExecutorChild, Launcher};
use crate::output::Outputs;
use crate::request::Deployment;
use rfaas_program::describe;

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
}

/// Starts executors and keeps them until they are reaped.
#[derive(Debug)]
pub struct Executors {
    device: Device,
    manager: SocketAddr,
    running: BTreeMap<LeaseId, Running>,
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
}

/// A process that is gone.
#[derive(Clone, Copy, Debug)]
pub struct Gone {
    /// The lease that it worked for.
    pub lease: LeaseId,
    /// How it ended.
    pub exit: Exit,
    /// Everything that it counted.
    pub usage: Usage,
}

impl Executors {
    /// No executors yet. They will use `device`, reach this manager at `manager`, and be confined by `settings`.
    pub fn new(
        device: Device,
        manager: SocketAddr,
        (launcher, settings): (Launcher, Option<SandboxSettings>),
        heartbeat: Heartbeat,
        open_files: u64,
    ) -> Self {
        Executors {
            device,
            manager,
            launcher,
            settings,
            next_user: 0,
            heartbeat,
            open_files,
            running: BTreeMap::new(),
            beat_at: Instant::now(),
        }
    }

    /// What they write.
    pub fn outputs(&self) -> &Outputs {
        self.launcher.outputs()
    }

    /// Starts the executor of `lease`, which has none; returns its process id, or an explanation for
    /// client and operator.
    pub fn start(
        &mut self,
        lease: LeaseId,
        deployment: &Deployment,
        library: Library,
        (workers, memory): (u16, u32),
        pins: Option<Vec<usize>>,
    ) -> Result<i32, String> {
        let sandbox = self.sandbox()?;
        let account = ExecutorAccount::new(&self.device, workers)
            .map_err(|error| format!("no counters for the executor: {}", describe(&error)))?;
        let user = sandbox.as_ref().map(|sandbox| sandbox.user);
        let standby = self.standby(&account, workers, sandbox);
        let assignment = Assignment {
            lease: lease.get(),
            memory,
            client: deployment.client,
            session_secret: HexSecret(deployment.session),
            workers,
            pin_to: pins,
            slots: deployment.slots,
            input_bytes: deployment.input_bytes,
            output_bytes: deployment.output_bytes,
            code_bytes: deployment.code_bytes,
            code_hash: deployment.code_hash,
            library: library.kind(),
            hot_timeout_ms: deployment.hot_timeout_ms,
        };
        let instructions = Instructions { standby, assignment: Some(assignment) };
        let process = self.launcher.start(lease.get(), &instructions, library);
        let process = process.map_err(|error| error.to_string())?;
        let pid = process.pid();
        if self.running.is_empty() {
            self.beat_at = Instant::now() + self.heartbeat.period;
        }
        let beats = Beats::new(self.heartbeat);
        let running =
            Running { process, account, user, beats, silent: false, may_miss_us_until: None };
        self.running.insert(lease, running);
        Ok(pid)
    }

    /// Returns what an executor of `most_workers` has to know before it has a lease.
    fn standby(
        &self,
        account: &ExecutorAccount,
        most_workers: u16,
        sandbox: Option<AssignedSandbox>,
    ) -> Standby {
        let spec = self.device.spec();
        Standby {
            device: AssignedDevice {
                name: spec.name.clone(),
                provider: spec.provider.to_string(),
                ip_address: spec.ip_address,
                max_inline_data: spec.max_inline_data,
            },
            manager: self.manager,
            manager_secret: HexSecret(account.secret()),
            most_workers,
            open_files: self.open_files,
            heartbeat_ms: self.heartbeat.period_ms(),
            silence_ms: self.heartbeat.silence_ms(),
            sandbox,
        }
    }

    /// Returns the sandbox of one more executor: with a user whom no other has.
    fn sandbox(&mut self) -> Result<Option<AssignedSandbox>, String> {
        let Some(settings) = &self.settings else { return Ok(None) };
        let used: BTreeSet<u32> =
            self.running.values().filter_map(|running| running.user).collect();
        let count = settings.users.count;
        let user = free_user(self.next_user, count, &used)
            .ok_or_else(|| format!("all {count} users of executor.users have an executor"))?;
        let sandbox = AssignedSandbox { settings: settings.clone(), user };
        self.next_user = user.wrapping_add(1);
        Ok(Some(sandbox))
    }

    /// Stops the executor of `lease`: asks it first, kills it later.
    pub fn stop(&mut self, lease: LeaseId, now: Instant) {
        if let Some(running) = self.running.get_mut(&lease) {
            running.process.stop(now);
        }
    }

    /// Kills all of them, at once.
    pub fn kill_all(&mut self, now: Instant) {
        for running in self.running.values_mut() {
            running.process.kill(now);
        }
    }

    /// What the executor of `lease` has counted so far; nothing if there is none.
    pub fn usage(&self, lease: LeaseId) -> Usage {
        self.running.get(&lease).map(|running| running.account.read()).unwrap_or_default()
    }

    /// The number of processes.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Connects a thread of the executor that was given `secret`, or refuses it.
    pub fn accept(&mut self, secret: Secret, request: ConnectRequest) {
        let found = self.running.iter_mut().find(|(_, running)| running.account.secret() == secret);
        let Some((lease, running)) = found else {
            refuse(request, "no executor of this node was given this secret");
            return;
        };
        match running.account.accept(request) {
            Ok(()) => tracing::debug!(%lease, "executor counts here"),
            Err(AcceptError::TooMany(request)) => {
                tracing::debug!(%lease, "an executor connects more often than it has workers");
                refuse(*request, "all connections of this executor are there already");
            }
            Err(AcceptError::Rdma(rdmalib::Error::Disconnected)) => {
                tracing::debug!(%lease, "an executor did not wait to be connected");
            }
            Err(AcceptError::Rdma(error)) => {
                let error = describe(&error);
                tracing::warn!(%lease, error, "an executor cannot count its time here");
            }
        }
    }

    /// What is readable when a process has ended, of all.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let processes = self.running.values().flat_map(|running| running.process.descriptors());
        processes.chain(self.launcher.descriptor())
    }

    /// When [`tick`](Executors::tick) is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let beat = (!self.running.is_empty()).then_some(self.beat_at);
        let ends = self.running.values().filter_map(|running| running.process.deadline());
        ends.chain(beat).chain(self.launcher.deadline()).min()
    }

    /// Kills what did not stop in time or is silent, and keeps the launcher going; returns whether anything was due,
    /// so that it is worth looking for processes that are gone.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.launcher.tick(now);
        let mut due = false;
        for running in self.running.values_mut() {
            due |= running.process.tick(now);
        }
        if !self.running.is_empty() && now >= self.beat_at {
            let Heartbeat { period, silence } = self.heartbeat;
            if now + period >= self.beat_at + silence {
                tracing::debug!(
                    "no sign of life of ours for {silence:?}: executors may have ended"
                );
                let until = Some(now + silence);
                self.running.values_mut().for_each(|running| running.may_miss_us_until = until);
            }
            self.beat_at = now + self.heartbeat.period;
            self.beat(now);
        }
        due
    }

    /// Kills executors that are silent (ALIVE).
    fn beat(&mut self, now: Instant) {
        for (lease, running) in &mut self.running {
            let silent = running.beats.silent(running.account.beat());
            if silent && running.process.is_running() {
                tracing::warn!(%lease, pid = running.process.pid(), "executor is silent: killing it");
                running.process.kill(now);
                running.silent = true;
            }
        }
    }

    /// Reaps processes that this program has not started: those of a program that has become it with exec(2), and,
    /// as process 1 of a container, those that functions left behind. Returns whether there may be more.
    pub fn reap_strangers(&self) -> bool {
        for _ in 0..STRANGERS {
            let Some(gone) = launch::ended_child() else { return false };
            // One of ours, which ended just now: `reap` knows what to do, and there is a SIGCHLD for it.
            if self.running.values().any(|running| running.process.pid() == gone.as_raw()) {
                return false;
            }
            launch::reap(gone);
        }
        true
    }

    /// Reaps the processes that are gone.
    pub fn reap(&mut self) -> Vec<Gone> {
        let now = Instant::now();
        let gone: Vec<_> = self
            .running
            .iter_mut()
            .filter_map(|(&lease, running)| {
                let exit = match running.process.try_reap(now)? {
                    Exit::Signal(_) if running.silent => Exit::Silent,
                    Exit::Status(MANAGER_LOST) if running.may_miss_us_until >= Some(now) => {
                        Exit::Silent // of us: we were stopped
                    }
                    exit => with_memory(exit, || running.process.memory()),
                };
                // Only now: what it counted last has landed when its process is no more.
                Some(Gone { lease, exit, usage: running.account.read() })
            })
            .collect();
        for gone in &gone {
            self.running.remove(&gone.lease);
        }
        gone
    }
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

/// Returns the first of `count` users from `next` on, and then from 0, that is not `used`. So one that was free is not
/// taken at once: what a killed executor has left behind may still be ending, and counts for its user.
fn free_user(next: u32, count: u32, used: &BTreeSet<u32>) -> Option<u32> {
    let start = next.min(count);
    (start..count).chain(0..start).find(|user| !used.contains(user))
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

    #[test]
    fn a_user_that_was_just_free_is_taken_last() {
        let used = BTreeSet::from([1, 3]);
        assert_eq!(free_user(0, 4, &used), Some(0));
        assert_eq!(free_user(1, 4, &used), Some(2));
        assert_eq!(free_user(3, 4, &used), Some(0));
        assert_eq!(free_user(4, 4, &used), Some(0));
        assert_eq!(free_user(u32::MAX, 4, &used), Some(0));
        assert_eq!(free_user(2, 2, &BTreeSet::from([0, 1])), None);
    }
}
