//! The guardian of an executor: the first process of its process namespace.
//!
//! ```text
//!   executor_manager ──lifeline: Stop──▶ guardian ──SIGTERM──▶ executor
//!                    ◀──Ended───────────          ◀──ends────
//! ```
//! * The kernel ends all processes of the namespace with it: nothing that a function started is
//!   left.
//! * It is not the executor itself, since the first process of a namespace does not end by a signal
//!   that it does not handle: abort(3) would come to another end than elsewhere.
//! * It says how the executor ended, and then ends. It ends with its manager, and reaps what
//!   functions leave behind.
//! * It has no secret and runs no foreign code. It keeps its rights, and uses them once: when an executor that stands
//!   by gets a lease of other memory than was expected, `/tmp` is made as large, which the executor itself may not do.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl::set_name;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdout};
use rfaas_program::local_channel::{LocalChannel, wait};
use rfaas_protocol::launch::{Ended, FromGuardian, Grow, ToGuardian};
use rfaas_sandbox::Sandbox;
use rustix::process::{PidfdFlags, WaitOptions, WaitStatus, pidfd_open};
use zerocopy::little_endian::U32;

use super::error::{ZygoteError, os};
use super::sibling;
use crate::library::leave_at_once;

/// How long the exit status may take to come after the end. The kernel takes microseconds; what
/// takes longer is a process that traces the executor.
const STATUS_WITHIN: Duration = Duration::from_millis(200);

/// Forks the executor off this process, which has one thread, and returns in it with what is the
/// executor's. This process becomes its guardian, and keeps nothing of that.
pub fn leave_behind<T>(
    lifeline: LocalChannel,
    sandbox: &Sandbox,
    executors: T,
) -> Result<T, ZygoteError> {
    let ends = SigSet::from(Signal::SIGCHLD);
    ends.thread_block().map_err(os("sigprocmask"))?;
    match sibling::fork_child().map_err(os("fork"))? {
        ForkResult::Child => {
            ends.thread_unblock().map_err(os("sigprocmask"))?;
            Ok(executors)
        }
        ForkResult::Parent { child } => {
            drop(executors);
            let guardian = Guardian::new(lifeline, sandbox, child, &ends);
            guardian.and_then(|mut guardian| guardian.guard()).map_err(os("guarding"))?;
            leave_at_once(0)
        }
    }
}

struct Guardian<'a> {
    lifeline: LocalChannel,
    sandbox: &'a Sandbox,
    executor: Pid,
    /// Tells that a child has changed.
    signals: SignalFd,
    /// Tells that the executor has ended, also while another process traces it; until that is seen.
    pidfd: Option<OwnedFd>,
    /// When it was seen.
    unexplained: Option<Instant>,
}

impl<'a> Guardian<'a> {
    fn new(
        lifeline: LocalChannel,
        sandbox: &'a Sandbox,
        executor: Pid,
        ends: &SigSet,
    ) -> nix::Result<Self> {
        set_name(c"guardian")?;
        let nothing = std::io::stdin();
        dup2_stdout(nothing.as_fd())?;
        dup2_stderr(nothing.as_fd())?;
        let pidfd = rustix::process::Pid::from_raw(executor.as_raw())
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let signals = SignalFd::with_flags(ends, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Guardian { lifeline, sandbox, executor, signals, pidfd, unexplained: None })
    }

    /// Returns when the executor has ended and the manager was told, or the manager has ended.
    fn guard(&mut self) -> nix::Result<()> {
        loop {
            let status_by = self.unexplained.map(|since| since + STATUS_WITHIN);
            if let Some(ended) = self.reap() {
                return self.tell(ended);
            }
            if status_by.is_some_and(|at| Instant::now() >= at) {
                return self.tell(UNKNOWN);
            }
            match self.lifeline.try_receive::<ToGuardian>() {
                Ok(None) => {}
                Ok(Some((ToGuardian::Stop(_), _))) => {
                    let _ = kill(self.executor, Signal::SIGTERM); // a zombie takes it too
                }
                Ok(Some((ToGuardian::Go(_), _))) => {} // it is going
                Ok(Some((ToGuardian::Grow(grow), pipe))) => self.grow(grow, pipe),
                Err(_) => return Ok(()),
            }
            self.sleep(status_by)?;
        }
    }

    /// Has `/tmp` hold as much as the lease has memory. What comes with that is closed then.
    fn grow(&self, grow: Grow, pipe: Vec<OwnedFd>) {
        let memory = u64::from(grow.memory.get()) << 20;
        if self.sandbox.grow(memory).is_err() {
            // The executor ends then, and says why.
            let _ = pipe.into_iter().try_for_each(|end| File::from(end).write_all(&[1]));
        }
    }

    /// Reaps all that has ended; returns how the executor has, if it was among that.
    fn reap(&self) -> Option<Ended> {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        let mut ended = None;
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(None) | Err(_) => return ended,
                Ok(Some((child, status))) if child.as_raw_pid() == self.executor.as_raw() => {
                    ended = Some(how(status));
                }
                Ok(Some(_)) => {}
            }
        }
    }

    fn tell(&self, ended: Ended) -> nix::Result<()> {
        let _ = self.lifeline.send(&FromGuardian::Ended(ended), &[]); // the manager may have ended too
        Ok(())
    }

    /// Waits for something to do.
    fn sleep(&mut self, status_by: Option<Instant>) -> nix::Result<()> {
        let descriptors = [self.signals.as_fd(), self.lifeline.as_fd()].into_iter();
        let descriptors = descriptors.chain(self.pidfd.as_ref().map(AsFd::as_fd));
        let mut polled: Vec<_> =
            descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
        wait(&mut polled, status_by.map(|at| at.saturating_duration_since(Instant::now())))?;
        if polled.get(2).and_then(PollFd::any).unwrap_or(false) {
            self.pidfd = None;
            self.unexplained = Some(Instant::now());
        }
        Ok(())
    }
}

/// How an executor ended whose status nobody tells.
const UNKNOWN: Ended = Ended { signal: U32::ZERO, status: U32::MAX_VALUE };

fn how(status: WaitStatus) -> Ended {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(signal), _) => Ended { signal: signal.cast_unsigned().into(), status: 0.into() },
        (None, Some(status)) => Ended { signal: 0.into(), status: status.cast_unsigned().into() },
        (None, None) => UNKNOWN, // without further flags nothing else is told
    }
}
