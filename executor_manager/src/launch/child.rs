//! An executor process of this manager: told to stop, killed, reaped. Nothing here waits.
//!
//! ```text
//!   running ──stop: SIGTERM──▶ terminating ──500 ms: SIGKILL──▶ killed
//!      └──────────────┴──────────── ends ─────────────────────────┴──▶ reaped
//! ```
//! * Its end is known from its pidfd, at once. A process that traces it (ptrace(2), a debugger) has
//!   its exit status first and keeps its parent from reaping it. Then the end counts as soon as no
//!   code of the executor can run any more. What is left is reaped when its tracer lets go of it
//!   (`reap`).
//! * With a process namespace, this is the executor's guardian. What it reports before its end is
//!   how the executor ended, and it is asked to have that stop.
//! * In a container, this is the process of an engine, which passes SIGTERM on and ends when the container does. What
//!   kills that is a command of the engine (`container`).
//! * Its process group is killed as a whole before its leader is reaped: what a function forked
//!   does not outlive the lease unless it left the group, and no signal can hit a stranger that was
//!   given a freed process id.

use std::fs;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use rfaas_program::local_channel::{LocalChannel, LocalError};
use rfaas_protocol::Empty;
use rfaas_protocol::launch::{FromGuardian, Grow, ToGuardian};
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal};

use super::container::{self, ContainerEnd};
use super::remains;
use super::zygote::Going;
use crate::allocations::Exit;
use crate::groups::{Group, GroupLimits, GroupMemory};
use crate::output::ExecutorOutput;

/// Time between SIGTERM and SIGKILL of one that ends alone: enough to send the counters of every worker, short enough
/// for the cores to be free within a second.
pub const STOP_GRACE: Duration = Duration::from_millis(500);
/// What each other one that is about to end adds to that: its end takes 4 ms of a processor, and there are two at least
/// on most nodes. So none is killed, and its last counters lost, for want of its turn.
const END: Duration = Duration::from_millis(2);
/// The most that these add: with [`STOP_GRACE`] less than what a manager that stops has.
const LONGEST_MORE: Duration = Duration::from_millis(1500);

/// How often a killed process is looked at, besides when something tells of it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long the exit status may take to come after the end or the kill. The kernel takes
/// microseconds; what takes longer is a tracer.
const STATUS_WITHIN: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Terminating {
        kill_at: Instant,
    },
    Killed {
        since: Instant,
        look_at: Instant,
    },
    /// The engine of its container has ended; what is left of the container is being removed.
    Removing {
        exit: Exit,
    },
    Reaped,
}

/// A process that was started and not reaped. Dropping it kills it.
#[derive(Debug)]
pub struct ExecutorChild {
    pid: Pid,
    /// Readable when it has ended. None where the kernel has no pidfds (before Linux 5.3): then
    /// SIGCHLD tells.
    pidfd: Option<OwnedFd>,
    stage: Stage,
    /// Ends the container, of whose engine this process then is.
    container: Option<ContainerEnd>,
    /// To the guardian, which this process then is.
    guardian: Option<LocalChannel>,
    /// What the guardian has reported.
    report: Option<Exit>,
    /// Its pidfd has told of the end.
    ended: bool,
    /// When it counts as ended without its exit status, once it was reported or told of.
    written_off_at: Option<Instant>,
    /// What it left in its sockets is read when this is dropped, which is when it was reaped.
    output: ExecutorOutput,
    /// What is left in it is killed when this is dropped.
    group: Option<Group>,
}

impl ExecutorChild {
    /// Watches child `pid` of this process, which was started just now and is reaped here only.
    pub fn spawned(pid: Pid, output: ExecutorOutput) -> Self {
        ExecutorChild::new(pid, pidfd_of(pid), None, output)
    }

    /// Watches one that was cloned, which is reaped here only, too.
    pub fn cloned(going: Going, output: ExecutorOutput) -> Self {
        ExecutorChild::new(going.pid, Some(going.pidfd), going.guardian, output)
    }

    fn new(
        pid: Pid,
        pidfd: Option<OwnedFd>,
        guardian: Option<LocalChannel>,
        output: ExecutorOutput,
    ) -> Self {
        ExecutorChild {
            pid,
            pidfd,
            stage: Stage::Running,
            container: None,
            guardian,
            report: None,
            ended: false,
            written_off_at: None,
            output,
            group: None,
        }
    }

    /// It is the engine's, of a container that `end` ends.
    pub fn in_container(mut self, end: ContainerEnd) -> Self {
        self.container = Some(end);
        self
    }

    /// It is in this control group.
    pub fn in_group(mut self, group: Option<Group>) -> Self {
        self.group = group;
        self
    }

    /// Sets what it may have, if it is in a control group.
    pub fn limit(&self, limits: &GroupLimits) -> io::Result<()> {
        self.group.as_ref().map_or(Ok(()), |group| group.limit(limits))
    }

    /// Returns what its control group says of memory, if it is in one.
    pub fn memory(&self) -> Option<GroupMemory> {
        self.group.as_ref()?.memory()
    }

    /// What it writes.
    pub fn output(&self) -> &ExecutorOutput {
        &self.output
    }

    /// Whether `child` is its process or a command for its container: [`try_reap`](Self::try_reap) reaps it.
    pub fn waits_for(&self, child: Pid) -> bool {
        let is_reaped = matches!(self.stage, Stage::Removing { .. } | Stage::Reaped);
        let of_container = || self.container.as_ref().is_some_and(|it| it.waits_for(child));
        (self.pid == child && !is_reaped) || of_container()
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// It has `lease` from now on, whose is what it writes.
    pub fn gets_lease(&mut self, lease: u64) {
        self.output.belongs_to(lease);
    }

    /// Has its `/tmp` hold `memory` MB. When that is so, `growing` is closed.
    pub fn grow(&self, memory: u32, growing: PipeWriter) -> Result<(), LocalError> {
        if let Some(guardian) = &self.guardian {
            let grow = ToGuardian::Grow(Grow { memory: memory.into() });
            // Without a guardian there is no `/tmp` of its own.
            guardian.send(&grow, &[growing.as_fd()])?;
        }
        Ok(())
    }

    /// What is readable when it has ended. The end of a command for its container is told by SIGCHLD alone.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let of_guardian = self.guardian.as_ref().map(AsFd::as_fd);
        let of_process = self.pidfd.as_ref().map(AsFd::as_fd);
        of_guardian.into_iter().chain(of_process)
    }

    /// Asks it to send its counters and exit; [`tick`](ExecutorChild::tick) kills it if it does
    /// not, while `others` are about to end too.
    pub fn stop(&mut self, now: Instant, others: usize) {
        if self.stage == Stage::Running {
            match &self.guardian {
                // Any signal could come from somebody else. One that cannot hear is killed later.
                Some(guardian) => drop(guardian.send(&ToGuardian::Stop(Empty {}), &[])),
                None => self.signal(Signal::SIGTERM),
            }
            let others = u32::try_from(others).unwrap_or(u32::MAX);
            let more = END.saturating_mul(others).min(LONGEST_MORE);
            let of_container = self.container.as_ref().map(|_| container::STOP_GRACE);
            let grace = of_container.unwrap_or(STOP_GRACE + more);
            self.stage = Stage::Terminating { kill_at: now + grace };
        }
    }

    /// Kills it and everything that it started.
    pub fn kill(&mut self, now: Instant) {
        let since = match self.stage {
            Stage::Reaped | Stage::Removing { .. } => return,
            Stage::Killed { since, .. } => since,
            Stage::Running | Stage::Terminating { .. } => now,
        };
        if self.container.as_mut().is_none_or(|container| container.kill(since, now)) {
            self.signal(Signal::SIGKILL);
            let _ = killpg(self.pid, Signal::SIGKILL); // fails for a group that is gone
        }
        self.stage = Stage::Killed { since, look_at: now + LOOK_AGAIN };
    }

    /// Sends the process a signal. A zombie takes it too, so this cannot fail before it is reaped.
    fn signal(&self, signal: Signal) {
        let _ = match (&self.pidfd, rustix::process::Signal::from_named_raw(signal as i32)) {
            (Some(pidfd), Some(signal)) => pidfd_send_signal(pidfd, signal).is_ok(),
            _ => kill(self.pid, signal).is_ok(),
        };
    }

    /// Whether it was neither told to stop nor killed, as far as is known.
    pub fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// When [`tick`](ExecutorChild::tick) is due at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let of_stage = match self.stage {
            Stage::Terminating { kill_at } => Some(kill_at),
            Stage::Killed { look_at, .. } => Some(look_at),
            Stage::Removing { .. } => self.container.as_ref().and_then(ContainerEnd::deadline),
            Stage::Running | Stage::Reaped => None,
        };
        of_stage.into_iter().chain(self.written_off_at).min()
    }

    /// Does what is due at `now`; returns whether it was due.
    pub fn tick(&mut self, now: Instant) -> bool {
        let due = self.deadline().is_some_and(|deadline| deadline <= now);
        match self.stage {
            Stage::Terminating { kill_at } if kill_at <= now => {
                tracing::warn!(
                    pid = self.pid(),
                    "executor ignored SIGTERM: killing it; what it counted last may be missing \
                     from the bill"
                );
                self.kill(now);
            }
            Stage::Killed { look_at, .. } if look_at <= now => self.kill(now),
            _ => {}
        }
        due
    }

    /// Reaps it if it has exited, together with its group; returns how it ended, once.
    pub fn try_reap(&mut self, now: Instant) -> Option<Exit> {
        let is_removed = self.container.as_mut().is_none_or(|container| container.is_over(now));
        match self.stage {
            Stage::Reaped => return None,
            Stage::Removing { exit } if is_removed => {
                self.stage = Stage::Reaped;
                return Some(exit);
            }
            Stage::Removing { .. } => return None,
            Stage::Running | Stage::Terminating { .. } | Stage::Killed { .. } => {}
        }
        let looked = look_at(self.pid);
        self.hear(); // behind that: a guardian reports before it ends
        let exited = match looked {
            Ok(None) => self.end_without_status(now)?,
            Ok(Some(exit)) => self.report.unwrap_or(exit),
            // Reaped behind our back, as the kernel does for a parent that was started with SIGCHLD
            // ignored: it is gone, and how is not known.
            Err(_) => UNKNOWN,
        };
        // The whole group. The zombie keeps the group's number until the second wait.
        let _ = killpg(self.pid, Signal::SIGKILL);
        reap(self.pid);
        let Some(container) = &mut self.container else {
            self.stage = Stage::Reaped;
            return Some(exited);
        };
        let exit = container.engine_ended(exited, now);
        let is_removed = container.is_over(now);
        self.stage = if is_removed { Stage::Reaped } else { Stage::Removing { exit } };
        self.output.end();
        is_removed.then_some(exit)
    }

    /// Returns how the engine of its container has ended, while what is left of the container is being removed.
    pub fn engine_exit(&self) -> Option<Exit> {
        match self.stage {
            Stage::Removing { exit } => Some(exit),
            _ => None,
        }
    }

    /// Hears how its guardian says that it ended.
    fn hear(&mut self) {
        let Some(guardian) = &self.guardian else { return };
        match guardian.try_receive() {
            Ok(None) => {}
            Ok(Some((FromGuardian::Ended(ended), _))) => {
                self.report = Some(match ended.signal.get() {
                    0 => Exit::Status(ended.status.get().cast_signed()),
                    signal => Exit::Signal(signal.cast_signed()),
                });
                self.guardian = None;
            }
            Err(_) => self.guardian = None, // it was killed
        }
    }

    /// Returns how it ended if it has, although nobody may reap it yet.
    fn end_without_status(&mut self, now: Instant) -> Option<Exit> {
        self.ended |= self.pidfd.as_ref().is_some_and(|pidfd| is_readable(pidfd.as_fd()));
        let killed = match self.stage {
            Stage::Killed { since, .. } => Some(since),
            _ => None,
        };
        if self.ended || self.report.is_some() {
            self.written_off_at.get_or_insert(now + STATUS_WITHIN);
        }
        let over_at = self.written_off_at.or(killed.map(|since| since + STATUS_WITHIN))?;
        if now < over_at {
            return None;
        }
        if !self.ended && !remains::is_harmless(self.pid) {
            // Its memory is large, or it was not killed and is at its end.
            self.written_off_at = self.written_off_at.map(|_| now + LOOK_AGAIN);
            return None;
        }
        tracing::warn!(
            pid = self.pid(),
            "executor has ended and cannot be reaped: another process traces it, as a debugger does"
        );
        let killed = killed.map(|_| Exit::Signal(Signal::SIGKILL as i32));
        let left = || remains::exit(self.pid);
        self.report.or_else(left).or(killed).or(Some(UNKNOWN))
    }
}

impl Drop for ExecutorChild {
    fn drop(&mut self) {
        let now = Instant::now();
        match (&mut self.container, self.stage) {
            (_, Stage::Reaped) => return,
            (Some(container), _) => {
                container.abandon(now);
                self.container = None; // the engine's process goes with it
            }
            (None, _) => {}
        }
        self.kill(now);
        self.try_reap(now); // if it is too early for that, init reaps it after us
    }
}

/// How a process ended of which nobody can tell.
const UNKNOWN: Exit = Exit::Status(-1);

/// A child that has ended and is not reaped yet, if there is one.
pub fn ended_child() -> Option<Pid> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, look) {
        Ok(status) => status.pid(),
        // It has no name for the signal (a real-time one) that has ended the first of them, and says nothing of it.
        Err(Errno::EINVAL) => children().find(|&child| matches!(look_at(child), Ok(Some(_)))),
        Err(_) => None,
    }
}

/// The children of this process: of each of its threads, proc_pid_task(5).
pub(super) fn children() -> impl Iterator<Item = Pid> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of_thread = |thread: fs::DirEntry| {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let ids = children.split_whitespace().filter_map(|id| id.parse().ok());
        ids.map(Pid::from_raw).collect::<Vec<_>>()
    };
    threads.flat_map(of_thread)
}

/// Returns how a child has ended, if it has. It is not reaped by that.
pub(super) fn look_at(child: Pid) -> rustix::io::Result<Option<Exit>> {
    let child = rustix::process::Pid::from_raw(child.as_raw()).ok_or(rustix::io::Errno::CHILD)?;
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = rustix::process::waitid(WaitId::Pid(child), look)?;
    Ok(status.map(|status| match (status.terminating_signal(), status.exit_status()) {
        (Some(signal), _) => Exit::Signal(signal),
        (None, Some(status)) => Exit::Status(status),
        (None, None) => UNKNOWN, // of one that has exited, nothing else is told
    }))
}

/// Reaps a child that has ended.
pub fn reap(child: Pid) {
    // Fails only if it is reaped already.
    let _ = waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
}

/// Returns the pidfd of a child that is not reaped, where the kernel has them.
pub(super) fn pidfd_of(child: Pid) -> Option<OwnedFd> {
    let child = rustix::process::Pid::from_raw(child.as_raw())?;
    pidfd_open(child, PidfdFlags::empty()).ok()
}

/// Whether `descriptor` is readable now.
fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
