//! Waiting in tests, with a limit.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::test_devices::are_rdma;

/// The longest time that anything in a test takes, unless it hangs. In the virtual machine too several of these end
/// before the time of a test program is up (`tools/check`), so that the test that hangs says so.
pub fn deadline() -> Duration {
    Duration::from_secs(if are_rdma() { 240 } else { 120 })
}

/// Spinning processes slow each other down, and leftovers are looked for in the whole machine: tests of one file
/// run one after the other.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner) // a failed test does not fail the others
}

/// `times`, or a tenth of it on RDMA devices: there each round makes system calls, in a machine that may be emulated,
/// and some tests would take minutes.
pub fn rounds(times: u32) -> u32 {
    if are_rdma() { times / 10 } else { times }
}

/// Waits until `done` returns true, which must be before [`deadline`].
pub fn eventually(what: &str, done: impl FnMut() -> bool) {
    eventually_or(what, deadline(), done, String::new);
}

/// Waits until `done` returns true, which must be before `limit`. A failure names the `state`.
pub fn eventually_or(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> bool,
    state: impl Fn() -> String,
) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?} {}", state());
        std::thread::sleep(Duration::from_millis(5));
    }
}
