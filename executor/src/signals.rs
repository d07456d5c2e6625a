//! Signals, as functions and the programs that they start find them: none is blocked, none is ignored.
//!
//! ```text
//!   SIGTERM, SIGINT, SIGHUP ──handler──▶ sent by the manager?  ──yes──▶ eventfd ──▶ watch
//!                                              └──no: nothing
//! ```
//! A program that a function starts inherits what is blocked and what is ignored, but no handler (execve(2)). So the
//! manager's signal arrives in a handler.
//! * This process ends on its manager's signal. A signal that another process sends to everybody (a
//!   terminal to its group, systemd to a control group) reaches the manager too, which lets calls
//!   finish and then sends its own.
//! * In a process that a function has forked, these signals do what they do by default.
//!
//! Elsewhere: how this process ends (`watch`, and the library's `run`).

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc::siginfo_t;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction, signal};
use nix::unistd::{Pid, getppid};

/// Signals that ask a process to end.
const ASKING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// What the handler needs. Made once, before there is a handler.
#[derive(Debug)]
struct Door {
    bell: EventFd,
    this: Pid,
    manager: Pid,
}

static DOOR: OnceLock<Door> = OnceLock::new();

/// The manager's signal, as something to wait for.
#[derive(Debug)]
pub struct Signals {
    bell: &'static EventFd,
}

impl Signals {
    /// Gives every signal the disposition that a program starts with, and begins to listen to the
    /// manager, which is the parent of this process. To be called before there is another thread: those
    /// inherit the mask.
    pub fn listen() -> nix::Result<Signals> {
        if DOOR.get().is_none() {
            let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            let door = Door { bell, this: Pid::this(), manager: getppid() };
            let _ = DOOR.set(door); // nobody else is there to have set it
        }
        let door = DOOR.get().ok_or(Errno::EINVAL)?;
        by_default(Signal::SIGPIPE)?; // std has it ignored; what we write to sockets asks for EPIPE
        by_default(Signal::SIGCHLD)?;
        ASKING.into_iter().try_for_each(handle)?;
        SigSet::empty().thread_set_mask()?;
        Ok(Signals { bell: &door.bell })
    }

    /// Returns whether the manager has given its word since the last look. Never waits.
    pub fn take(&self) -> io::Result<bool> {
        match self.bell.read() {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Gives `kind` its default disposition.
fn by_default(kind: Signal) -> nix::Result<()> {
    // SAFETY: the default disposition runs no code of this program. No other code of it relies on the
    // disposition that is replaced: std's, of SIGPIPE, which is nobody's to rely on.
    unsafe { signal(kind, SigHandler::SigDfl) }.map(drop)
}

/// Has [`on_signal`] handle `kind`. Calls that it interrupts go on: functions do not expect EINTR. It runs on
/// the thread's own stack for signals, if there is one: a function may have little of its own left.
fn handle(kind: Signal) -> nix::Result<()> {
    let flags = SaFlags::SA_RESTART | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(on_signal), flags, SigSet::empty());
    // SAFETY: the handler does only what signal-safety(7) allows: it reads a cell that was set before
    // (an atomic load), makes system calls, and restores errno.
    unsafe { sigaction(kind, &action) }.map(drop)
}

extern "C" fn on_signal(number: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    let errno = Errno::last_raw();
    if let Some(door) = DOOR.get() {
        if Pid::this() != door.this {
            end_by(number); // FORKED
        } else if sender(info) == door.manager {
            let _ = door.bell.write(1); // EAGAIN: it has been rung 2⁶⁴ times
        }
    }
    Errno::set_raw(errno);
}

/// Returns the process that sent the signal.
fn sender(info: *mut siginfo_t) -> Pid {
    // SAFETY: the kernel passes a valid siginfo_t to a handler with SA_SIGINFO (nix sets that flag for
    // such a handler), which lives until the handler returns; nobody else has it.
    let info = unsafe { &*info };
    // SAFETY: every siginfo_t is as large as the union with this field, and any bytes are a number. For
    // signals that no process has sent, the number means another thing, and never our parent: the three
    // signals come from processes, or from the kernel for a terminal, which sets it to 0.
    Pid::from_raw(unsafe { info.si_pid() })
}

/// Lets `number` do what it does by default to this process, as soon as the handler returns.
fn end_by(number: c_int) {
    if let Ok(kind) = Signal::try_from(number) {
        // Both succeed for these signals; without them the process would only live on.
        let _ = by_default(kind);
        let _ = raise(kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_of_somebody_else_is_not_the_managers_word() {
        let signals = Signals::listen().unwrap();
        for kind in ASKING {
            raise(kind).unwrap(); // this process is not its own parent
        }
        assert!(!signals.take().unwrap());
        assert_eq!(SigSet::thread_get_mask().unwrap(), SigSet::empty());
    }
}
