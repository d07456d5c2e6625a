//! Trying something in a child process, so that it has no effect on this one.

use std::io::{self, Read, Write, pipe};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// Longest reason, in bytes: what a pipe takes at once.
const MAX_REASON: u64 = 4096;

/// Runs `f` in a child; returns why it failed there. To be called in a process with one thread.
pub fn attempt(f: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let os = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let (mut reader, mut writer) = pipe().map_err(os("pipe"))?;
    // SAFETY: this process has one thread (the caller's promise, which `probe` passes on), so the child's memory is
    // as consistent as ours, and it may do everything that we may.
    let child = match unsafe { fork() }.map_err(io::Error::from).map_err(os("fork"))? {
        ForkResult::Child => {
            // A panic must not go on with what the parent does.
            let result = catch_unwind(AssertUnwindSafe(f)).unwrap_or(Err("panicked".into()));
            if let Err(reason) = &result {
                let _ = writer.write_all(reason.as_bytes()); // without a reason, it still fails
            }
            leave(result.is_ok())
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
        Ok(_) if !reason.is_empty() => Err(reason),
        Ok(status) => Err(format!("the attempt ended with {status:?}")),
        Err(errno) => Err(format!("waitpid: {errno}")),
    }
}

/// Ends this child without running what is to run at the end of its parent.
fn leave(well: bool) -> ! {
    // SAFETY: _exit(2) takes any number and does not return.
    unsafe { libc::_exit(i32::from(!well)) }
}
