//! Trying something in a child process, so that it has no effect on this one.

use std::fmt;
use std::io::{Read, Write, pipe};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

/// Longest reason, in bytes: what a pipe takes at once.
const MAX_REASON: u64 = 4096;

/// Exit statuses of a child.
const REFUSED: i32 = 1;
const NOT_TRIED: i32 = 2;

/// Why an attempt has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The system refuses, and would again.
    Refused(String),
    /// It could not be tried: there was no process, no descriptor or no memory for that.
    NotTried(String),
}

impl Failure {
    /// Returns what it means that the system has said `errno`, which `reason` tells.
    pub fn of(errno: Option<i32>, reason: String) -> Self {
        match errno.map(Errno::from_raw) {
            Some(Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) => Failure::NotTried(reason),
            _ => Failure::Refused(reason),
        }
    }

    fn reason(&self) -> &str {
        match self {
            Failure::Refused(reason) | Failure::NotTried(reason) => reason,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// Runs `f` in a child, which ends with this process; returns why it failed there. To be called in a process with one
/// thread.
pub fn attempt(f: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let not_tried = |what: &str, error: &dyn fmt::Display| -> Failure {
        Failure::NotTried(format!("{what}: {error}"))
    };
    let (mut reader, mut writer) = pipe().map_err(|error| not_tried("pipe", &error))?;
    let parent = getpid();
    // SAFETY: this process has one thread (the caller's promise, which `probe` passes on), so the child's memory is
    // as consistent as ours, and it may do everything that we may.
    let child = match unsafe { fork() }.map_err(|errno| not_tried("fork", &errno))? {
        ForkResult::Child => {
            let panicked = || Err(Failure::Refused("panicked".into()));
            // A panic must not go on with what the parent does.
            let result = end_with(parent)
                .and_then(|()| catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| panicked()));
            let Err(failure) = result else { leave(0) };
            let _ = writer.write_all(failure.reason().as_bytes()); // without a reason, it still fails
            leave(if matches!(failure, Failure::Refused(_)) { REFUSED } else { NOT_TRIED })
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);
    let mut reason = String::new();
    // Ends with the child, which is the only writer: what it starts by itself ends with it, or inherits the writer only
    // until it has written too.
    let _ = (&mut reader).take(MAX_REASON).read_to_string(&mut reason);
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, 0)) => Ok(()),
        Ok(WaitStatus::Exited(_, REFUSED)) => Err(Failure::Refused(reason)),
        Ok(WaitStatus::Exited(_, _)) => Err(Failure::NotTried(reason)),
        // Somebody has killed it, as the kernel does when there is no memory.
        Ok(status) => Err(Failure::NotTried(format!("the attempt ended with {status:?}"))),
        Err(errno) => Err(not_tried("waitpid", &errno)),
    }
}

/// Has the kernel end this process with `parent`. A change of user undoes it.
fn end_with(parent: Pid) -> Result<(), Failure> {
    let not_tried = |what: String| Err(Failure::NotTried(what));
    match set_pdeathsig(Signal::SIGKILL) {
        Err(errno) => not_tried(format!("prctl(PR_SET_PDEATHSIG): {errno}")),
        // In a process namespace of its own, it does not see its parent.
        Ok(()) if [parent, Pid::from_raw(0)].contains(&getppid()) => Ok(()),
        Ok(()) => not_tried("its parent has ended".into()),
    }
}

/// Ends this child without running what is to run at the end of its parent.
fn leave(status: i32) -> ! {
    // SAFETY: _exit(2) takes any number and does not return.
    unsafe { libc::_exit(status) }
}
