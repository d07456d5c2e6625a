//! How much of what the executors of a lease write is passed on, however many it has one after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rfaas::program::log::MEASURED;

use super::lines::Line;

/// Lines that a lease may have passed on at once: a backtrace and what led to it.
pub(super) const BURST_LINES: u32 = 100;
/// Lines that it may have passed on a second, on and on.
const LINES_PER_SECOND: u32 = 10;
/// Their bytes at once, and a second: 350 MB of log a day, from a function that does nothing else.
const BURST_BYTES: u32 = 32 << 10;
const BYTES_PER_SECOND: u32 = 4 << 10;
/// Time between two lines that tell how many lines of a lease were dropped.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// Leases whose limits are remembered. Those without an executor are forgotten when they are as good as new,
/// which is after ten seconds; and before, if there are more than this: many times the leases of a large node.
const MOST_LEASES: usize = 4096;

/// The limits of the leases.
#[derive(Debug, Default)]
pub(super) struct Limits(HashMap<u64, Arc<LeaseLimit>>);

impl Limits {
    /// That of `lease`. It is in use for as long as somebody has it.
    pub(super) fn of(&mut self, lease: u64, now: Instant) -> Arc<LeaseLimit> {
        let crowded = self.0.len() >= MOST_LEASES;
        self.0.retain(|_, limit| {
            Arc::strong_count(limit) > 1 || !(crowded || limit.lock().is_as_new(now))
        });
        self.0.entry(lease).or_insert_with(|| Arc::new(LeaseLimit::new(lease, now))).clone()
    }
}

/// The limit of one lease, which the readers of its executors share.
#[derive(Debug)]
pub(super) struct LeaseLimit {
    lease: u64,
    limit: Mutex<Limit>,
}

impl LeaseLimit {
    pub(super) fn new(lease: u64, now: Instant) -> Self {
        LeaseLimit { lease, limit: Mutex::new(Limit::new(now)) }
    }

    fn lock(&self) -> MutexGuard<'_, Limit> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner) // numbers that fit in any order
    }

    /// Logs `line`, or counts it.
    pub(super) fn pass(&self, now: Instant, line: Line<'_>) {
        if !self.lock().admit(now, line.bytes.len()) {
            return;
        }
        let mut text = String::from_utf8_lossy(line.bytes).into_owned();
        if line.cut {
            text.push('…');
        }
        let (lease, stream) = (self.lease, line.stream);
        // A field, since those are quoted: a function cannot pass its words off as the manager's.
        tracing::info!(name: MEASURED, lease, stream, text, "an executor wrote");
    }

    /// When it is to be told that lines were dropped.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let limit = self.lock();
        (limit.dropped > 0).then_some(limit.tell)
    }

    /// Tells how many lines were dropped, if some were.
    pub(super) fn tell_dropped(&self, now: Instant) {
        let mut limit = self.lock();
        let (lines, lease) = (std::mem::take(&mut limit.dropped), self.lease);
        limit.tell = now + TELL_AGAIN;
        drop(limit);
        if lines > 0 {
            tracing::warn!(
                name: MEASURED,
                "{lines} lines of the functions of lease {lease} were dropped: they write too much"
            );
        }
    }
}

#[derive(Debug)]
struct Limit {
    lines: u32,
    bytes: u32,
    filled: Instant,
    dropped: u64,
    tell: Instant,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Limit { lines: BURST_LINES, bytes: BURST_BYTES, filled: now, dropped: 0, tell: now }
    }

    /// Gives back what time brings.
    fn elapse(&mut self, now: Instant) {
        let ms = now.saturating_duration_since(self.filled).as_millis().min(1 << 20) as u32;
        if ms >= 1000 / LINES_PER_SECOND {
            self.lines = (self.lines + ms * LINES_PER_SECOND / 1000).min(BURST_LINES);
            self.bytes = (self.bytes + ms / 10 * (BYTES_PER_SECOND / 100)).min(BURST_BYTES);
            self.filled = now;
        }
    }

    /// Whether a line of `bytes` may be passed on; counts it otherwise.
    fn admit(&mut self, now: Instant, bytes: usize) -> bool {
        let bytes = bytes as u32; // LINE_BYTES at most
        self.elapse(now);
        if self.lines == 0 || self.bytes < bytes {
            if self.dropped == 0 {
                self.tell = self.tell.max(now + TELL_AGAIN);
            }
            self.dropped += 1;
            return false;
        }
        (self.lines, self.bytes) = (self.lines - 1, self.bytes - bytes);
        true
    }

    fn is_as_new(&mut self, now: Instant) -> bool {
        self.elapse(now);
        self.lines == BURST_LINES && self.bytes == BURST_BYTES && self.dropped == 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines::LINE_BYTES;
    use super::*;

    fn passed(limit: &LeaseLimit, now: Instant, bytes: usize) -> u32 {
        (0..1000).filter(|_| limit.lock().admit(now, bytes)).count() as u32
    }

    #[test]
    fn a_lease_has_its_lines_and_bytes_and_time_brings_more() {
        let start = Instant::now();
        let limit = LeaseLimit::new(7, start);
        assert_eq!(passed(&limit, start, 5), BURST_LINES);
        assert_eq!(limit.lock().dropped, 1000 - u64::from(BURST_LINES));
        assert_eq!(limit.deadline(), Some(start + TELL_AGAIN));
        assert_eq!(passed(&limit, start + Duration::from_secs(1), 5), LINES_PER_SECOND);
        let limit = LeaseLimit::new(7, start);
        assert_eq!(passed(&limit, start, LINE_BYTES), BURST_BYTES / LINE_BYTES as u32);
        let much_later = start + Duration::from_secs(1 << 30);
        assert_eq!(passed(&limit, much_later, 1), BURST_LINES);
    }

    #[test]
    fn an_executor_that_is_started_again_has_what_its_lease_has_left() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        assert_eq!(passed(&limits.of(7, start), start, 5), BURST_LINES);
        let again = limits.of(7, start);
        assert_eq!(passed(&again, start, 5), 0, "the first executor has used it");
        assert_eq!(
            passed(&limits.of(8, start), start, 5),
            BURST_LINES,
            "another lease has its own"
        );
        again.tell_dropped(start);
        limits.of(8, start).tell_dropped(start);
        // What is as good as new is forgotten, but not what is in use.
        limits.of(9, start + Duration::from_secs(20));
        assert_eq!(limits.0.len(), 2);
        assert!(Arc::ptr_eq(&again, &limits.of(7, start)));
    }

    #[test]
    fn the_leases_that_are_remembered_are_bounded() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        for lease in 0..2 * MOST_LEASES as u64 {
            limits.of(lease, start).lock().admit(start, 1);
        }
        assert!(limits.0.len() <= MOST_LEASES);
    }
}
