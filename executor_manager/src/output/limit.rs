//! How much of what executors write is passed on: of each lease, however many executors it has one after the
//! other, and of all leases, however many come one after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rfaas_program::log::{Budget, MEASURED};

use super::lines::Line;

/// Lines that a lease may have passed on at once: a backtrace and what led to it.
pub(super) const BURST_LINES: u32 = 100;
/// Lines that it may have passed on a second, on and on.
const LINES_PER_SECOND: u32 = 10;
/// Their bytes at once, and a second: 350 MB of log a day, from a function that does nothing else.
const BURST_BYTES: u32 = 32 << 10;
const BYTES_PER_SECOND: u32 = 4 << 10;
/// Bytes of log that all leases may have at once: the bursts of some thirty.
const BURST_OF_ALL: u32 = 1 << 20;
/// What they may have on and on: 2.8 GB of log a day. That is eight functions that write as fast as they may, or many
/// leases one after the other that each use up their burst.
const BYTES_OF_ALL_PER_SECOND: u32 = 32_000;
/// The part of [`BURST_OF_ALL`] that is only for leases which are quiet: they have used at most a tenth of their own
/// bursts. So leases that write much do not keep them from the log.
const FOR_QUIET: u32 = BURST_OF_ALL / 4;
/// Bytes of a line around what the executor wrote: time, level, lease, stream.
const AROUND_BYTES: usize = 100;
/// Time between two lines that tell how many lines of a lease were dropped.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// Leases whose limits are remembered. Those without an executor are forgotten when they are as good as new,
/// which is after ten seconds; and before, if there are more than this: many times the leases of a large node.
const MOST_LEASES: usize = 4096;

/// The limits of the leases.
#[derive(Debug)]
pub(super) struct Limits {
    leases: HashMap<u64, Arc<LeaseLimit>>,
    of_all: Arc<Mutex<Budget>>,
}

impl Default for Limits {
    fn default() -> Self {
        let of_all = Budget::new(Instant::now(), BURST_OF_ALL, BYTES_OF_ALL_PER_SECOND);
        Limits { leases: HashMap::new(), of_all: Arc::new(Mutex::new(of_all)) }
    }
}

impl Limits {
    /// That of `lease`. It is in use for as long as somebody has it.
    pub(super) fn of(&mut self, lease: u64, now: Instant) -> Arc<LeaseLimit> {
        let crowded = self.leases.len() >= MOST_LEASES;
        self.leases.retain(|_, limit| {
            Arc::strong_count(limit) > 1 || !(crowded || limit.lock().is_as_new(now))
        });
        let new = || LeaseLimit::new(lease, self.of_all.clone(), now);
        self.leases.entry(lease).or_insert_with(|| Arc::new(new())).clone()
    }
}

/// The limit of one lease, which the readers of its executors share.
#[derive(Debug)]
pub(super) struct LeaseLimit {
    lease: u64,
    left: Mutex<Budgets>,
    of_all: Arc<Mutex<Budget>>,
}

impl LeaseLimit {
    fn new(lease: u64, of_all: Arc<Mutex<Budget>>, now: Instant) -> Self {
        LeaseLimit { lease, left: Mutex::new(Budgets::new(now)), of_all }
    }

    fn lock(&self) -> MutexGuard<'_, Budgets> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner) // numbers that fit in any order
    }

    /// Logs `line`, or counts it.
    pub(super) fn pass(&self, now: Instant, line: Line<'_>) {
        let Some(text) = self.admit(now, &line) else { return };
        let (lease, stream) = (self.lease, line.stream);
        // A field, since those are quoted: a function cannot pass its words off as the manager's.
        tracing::info!(name: MEASURED, lease, stream, text, "an executor wrote");
    }

    /// The text of `line`, if it may be passed on; counts it otherwise.
    fn admit(&self, now: Instant, line: &Line<'_>) -> Option<String> {
        let mut limit = self.lock();
        let quiet = limit.is_quiet(now);
        if !limit.admit(now, line.bytes.len()) {
            return None;
        }
        drop(limit);
        let mut text = String::from_utf8_lossy(line.bytes).into_owned();
        if line.cut {
            text.push('…');
        }
        let written = format!("{text:?}").len() + AROUND_BYTES; // it is escaped like this
        let mut of_all = self.of_all.lock().unwrap_or_else(PoisonError::into_inner); // numbers
        let kept = if quiet { 0 } else { FOR_QUIET };
        if !of_all.take(now, written as u32, kept) {
            drop(of_all);
            self.lock().count_dropped(now);
            return None;
        }
        Some(text)
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
            // Not of a measure: many leases would have one each. The place in the program is limited.
            tracing::warn!(
                "{lines} lines of the functions of lease {lease} were dropped: they, or those of all leases, write too much"
            );
        }
    }
}

/// What a lease may still have passed on, and how much was dropped.
#[derive(Debug)]
struct Budgets {
    lines: Budget,
    bytes: Budget,
    dropped: u64,
    tell: Instant,
}

impl Budgets {
    fn new(now: Instant) -> Self {
        let lines = Budget::new(now, BURST_LINES, LINES_PER_SECOND);
        let bytes = Budget::new(now, BURST_BYTES, BYTES_PER_SECOND);
        Budgets { lines, bytes, dropped: 0, tell: now }
    }

    /// Whether a line of `bytes` may be passed on; counts it otherwise.
    fn admit(&mut self, now: Instant, bytes: usize) -> bool {
        let bytes = bytes as u32; // LINE_BYTES at most
        let admitted = self.bytes.left(now) >= bytes && self.lines.take(now, 1, 0);
        if admitted {
            self.bytes.take(now, bytes, 0);
        } else {
            self.count_dropped(now);
        }
        admitted
    }

    fn count_dropped(&mut self, now: Instant) {
        if self.dropped == 0 {
            self.tell = self.tell.max(now + TELL_AGAIN);
        }
        self.dropped += 1;
    }

    /// Whether it has used little of late: see [`FOR_QUIET`].
    fn is_quiet(&mut self, now: Instant) -> bool {
        self.lines.is_quiet(now) && self.bytes.is_quiet(now)
    }

    fn is_as_new(&mut self, now: Instant) -> bool {
        self.lines.is_full(now) && self.bytes.is_full(now) && self.dropped == 0
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
        let limit = Limits::default().of(7, start);
        assert_eq!(passed(&limit, start, 5), BURST_LINES);
        assert_eq!(limit.lock().dropped, 1000 - u64::from(BURST_LINES));
        assert_eq!(limit.deadline(), Some(start + TELL_AGAIN));
        assert_eq!(passed(&limit, start + Duration::from_secs(1), 5), LINES_PER_SECOND);
        let limit = Limits::default().of(7, start);
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
        assert_eq!(limits.leases.len(), 2);
        assert!(Arc::ptr_eq(&again, &limits.of(7, start)));
    }

    #[test]
    fn the_leases_that_are_remembered_are_bounded() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        for lease in 0..2 * MOST_LEASES as u64 {
            limits.of(lease, start).lock().admit(start, 1);
        }
        assert!(limits.leases.len() <= MOST_LEASES);
    }

    /// Bytes of log that `lease` gets, of which the functions write `line` again and again.
    fn logged(limits: &mut Limits, lease: u64, now: Instant, line: &[u8]) -> usize {
        let limit = limits.of(lease, now);
        let line = Line { stream: "stdout", bytes: line, cut: false };
        let lines = (0..2 * BURST_LINES).filter_map(|_| limit.admit(now, &line));
        lines.map(|text| format!("{text:?}").len() + AROUND_BYTES).sum()
    }

    #[test]
    fn leases_one_after_the_other_share_what_the_manager_logs() {
        // The second is all that is escaped, and the third all that is around it.
        for line in [&[b'x'; LINE_BYTES][..], &[1; 300], b"x"] {
            let mut limits = Limits::default();
            let start = Instant::now();
            let flood = |limits: &mut Limits, leases: std::ops::Range<u64>, now| {
                leases.map(|lease| logged(limits, lease, now, line)).sum::<usize>()
            };
            let all = flood(&mut limits, 0..500, start);
            assert!(all > BURST_OF_ALL as usize / 2, "{all}");
            assert!(all <= BURST_OF_ALL as usize, "{all}");
            let more = flood(&mut limits, 500..1000, start + Duration::from_secs(10));
            let most = (BURST_OF_ALL + 10 * BYTES_OF_ALL_PER_SECOND) as usize;
            assert!(all + more <= most, "{all} and {more}");
            let told = limits.of(999, start).lock().dropped;
            assert!(told > 0, "what is dropped is counted");
        }
    }

    #[test]
    fn a_quiet_lease_is_heard_beside_those_that_write_all_they_may() {
        let mut limits = Limits::default();
        let start = Instant::now();
        // Old leases, which have used what is theirs.
        let loud: Vec<_> = (0..100).map(|lease| limits.of(lease, start)).collect();
        for limit in &loud {
            while limit.lock().admit(start, 100) {}
        }
        for second in 1..100 {
            let now = start + Duration::from_secs(second);
            for limit in &loud {
                let line = Line { stream: "stdout", bytes: &[b'x'; 300], cut: false };
                (0..BURST_LINES).for_each(|_| drop(limit.admit(now, &line)));
            }
            let line = Line { stream: "stderr", bytes: b"once a second", cut: false };
            assert!(limits.of(1000, now).admit(now, &line).is_some(), "after {second} s");
        }
    }
}
