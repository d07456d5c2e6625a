//! Signals as something to poll: the loop learns from one descriptor that it is to stop, or that a
//! child has changed.
//!
//! A program inherits which signals are blocked and ignored from its parent (execve(2)). This one sets both
//! itself.
//! * Two kinds of signals are blocked, and no others: those that are read here, and SIGXFSZ, which would end
//!   the program at the limit of file sizes. SIGCHLD is never ignored. If it were, the kernel would reap executors
//!   by itself, and their process ids could be given to other processes while they are still in use here.
//! * A SIGHUP that is ignored, as nohup(1) has it, stays ignored.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rfaas_program::inherited::is_ignored;

/// The signals that this program reads instead of being interrupted by them.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

/// What came since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// SIGTERM, SIGHUP or SIGINT came.
    pub stop: bool,
    /// How many of them were SIGINT.
    pub interrupts: u32,
    /// A child may have exited. Signals of one kind merge, so this may stand for several.
    pub child: bool,
}

impl Signals {
    /// Blocks the signals and opens their descriptor. To be called before there is another thread:
    /// later ones inherit the mask, and one that does not would be interrupted as by default.
    pub fn block() -> nix::Result<Self> {
        // SAFETY: the default disposition runs no code of this program, and none of it relies on another
        // disposition of SIGCHLD.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
        let mut set = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD]);
        if !is_ignored(Signal::SIGHUP as i32) {
            set.add(Signal::SIGHUP); // an ignored one could be read, too
        }
        let mut blocked = set;
        blocked.add(Signal::SIGXFSZ); // a write beyond the limit of file sizes then fails
        blocked.thread_set_mask()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Signals { fd })
    }

    /// Takes everything that came. Never waits.
    pub fn take(&self) -> nix::Result<Seen> {
        let mut seen = Seen::default();
        while let Some(info) = self.fd.read_signal()? {
            seen.child |= info.ssi_signo == Signal::SIGCHLD as u32;
            seen.stop |= info.ssi_signo != Signal::SIGCHLD as u32;
            seen.interrupts += u32::from(info.ssi_signo == Signal::SIGINT as u32);
        }
        Ok(seen)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
