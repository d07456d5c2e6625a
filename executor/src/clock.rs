//! Time as this program counts it: nanoseconds on `CLOCK_MONOTONIC`, the same for all threads.

use nix::time::{ClockId, clock_gettime};

/// One millisecond.
pub const MS: u64 = 1_000_000;

/// Now. Read from the vDSO, without a system call.
#[inline]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .expect("Linux always has CLOCK_MONOTONIC (clock_gettime(2))");
    // Never negative: it counts from the machine's start.
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
