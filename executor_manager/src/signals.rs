//! Signals as something to poll: the loop learns from one descriptor that it is to stop, or that a
//! child has changed.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that this program reads instead of being interrupted by them.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

/// What came since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// SIGINT and SIGTERM together.
    pub stops: u32,
    /// A child may have exited. Signals of one kind merge, so this may stand for several.
    pub child: bool,
}

impl Signals {
    /// Blocks the signals and opens their descriptor. To be called before there is another thread:
    /// later ones inherit the mask, and one that does not would be interrupted as by default.
    pub fn block() -> nix::Result<Self> {
        let set = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD]);
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Signals { fd })
    }

    /// Takes everything that came. Never waits.
    pub fn take(&self) -> nix::Result<Seen> {
        let mut seen = Seen::default();
        while let Some(info) = self.fd.read_signal()? {
            if info.ssi_signo == Signal::SIGCHLD as u32 {
                seen.child = true;
            } else {
                seen.stops += 1;
            }
        }
        Ok(seen)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
