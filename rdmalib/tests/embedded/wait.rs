//! Waiting in tests, also of other crates (by `#[path]`), with a limit that only a test that fails reaches.
#![allow(dead_code)] // each test program uses a part

use std::thread;
use std::time::{Duration, Instant};

/// Far longer than anything takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until `look` finds something, and returns that.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until `holds` returns true.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}
