//! A bell of eventfd(2) that wakes a thread.

use nix::sys::eventfd::EventFd;

/// Wakes the thread that sleeps on `bell`.
pub(crate) fn ring(bell: &EventFd) {
    let _ = bell.write(1); // fails only if it has been ringing 2^64 times already
}
