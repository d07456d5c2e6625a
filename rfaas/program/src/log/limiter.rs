//! Limits a log: what repeats is logged once with a count, so that no peer can fill a disk. Pure.
//!
//! A line that was logged a few times is counted from then on. Lines that differ but come from the
//! same place of the program, such as the refusals of a client that never asks for the same twice,
//! share a budget. The first line of those that were held back is logged again with how many there
//! were.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

use super::Budget;

/// How often the same line is told as it is, before it is counted: a connection that comes and goes a few
/// times is told each time.
const AS_IS: u32 = 5;
/// How long it is counted before the count is told.
const WINDOW: Duration = Duration::from_secs(10);
/// The window doubles up to this as long as the line still comes.
const LONGEST_WINDOW: Duration = Duration::from_secs(60);
/// Lines that are compared with at a time: a lease's few lines, for the leases of some hundred clients.
const MOST_LINES: usize = 1024;
/// Lines that one place of the program may have at once: the ends of all leases of a large node.
const BURST: u32 = 400;
/// Lines that it may have a second, on and on: at 150 bytes a line, some 260 MB a day.
const PER_SECOND: u32 = 20;
/// Longest line that is kept to be told again, in bytes; with [`MOST_LINES`] this bounds the memory.
const SAMPLE_BYTES: usize = 500;

/// Decides which lines are told. `Kind` is where in the program a line comes from, of which there are not many.
#[derive(Debug)]
pub(super) struct Limiter<Kind> {
    lines: HashMap<u64, Line>,
    kinds: HashMap<Kind, CallSite>,
    /// Its keys are chosen at random, so that nobody finds lines that pass for each other.
    hashing: RandomState,
    /// Nothing is due before.
    earliest: Option<Instant>,
}

/// A line that was told.
#[derive(Debug)]
struct Line {
    told: u32,
    held_back: Option<HeldBack>,
    since: Instant,
    window: Duration,
}

/// A place of the program: what it may still say.
#[derive(Debug)]
struct CallSite {
    budget: Budget,
    held_back: Option<HeldBack>,
}

/// Lines that were not told.
#[derive(Debug)]
struct HeldBack {
    first: String,
    count: u64,
    since: Instant,
}

impl HeldBack {
    fn add(held_back: &mut Option<HeldBack>, now: Instant, line: &str) {
        let first = || line[..line.floor_char_boundary(SAMPLE_BYTES)].to_owned();
        let held_back =
            held_back.get_or_insert_with(|| HeldBack { first: first(), count: 0, since: now });
        held_back.count += 1;
    }

    fn told(&self, now: Instant) -> String {
        let seconds = now.saturating_duration_since(self.since).as_secs().max(1);
        format!("{} … and {} more like this in {seconds} s", self.first, self.count)
    }
}

impl Line {
    fn due(&self) -> Instant {
        self.since + self.window
    }
}

impl CallSite {
    fn due(&self) -> Option<Instant> {
        self.held_back.as_ref().map(|held_back| held_back.since + WINDOW)
    }
}

impl<Kind> Default for Limiter<Kind> {
    fn default() -> Self {
        Limiter {
            lines: HashMap::new(),
            kinds: HashMap::new(),
            hashing: RandomState::new(),
            earliest: None,
        }
    }
}

impl<Kind: Eq + Hash> Limiter<Kind> {
    /// Returns whether `line` is to be told; counts it otherwise.
    pub(super) fn admit(&mut self, now: Instant, kind: Kind, line: &str) -> bool {
        let hash = self.hashing.hash_one(line);
        let known = self.lines.get_mut(&hash);
        let is_new = known.is_none();
        if let Some(known) = known {
            known.told = known.told.saturating_add(1);
            if known.told > AS_IS {
                HeldBack::add(&mut known.held_back, now, line);
                return false;
            }
        }
        let new = || CallSite { budget: Budget::new(now, BURST, PER_SECOND), held_back: None };
        let place = self.kinds.entry(kind).or_insert_with(new);
        if !place.budget.take(now, 1, 0) {
            HeldBack::add(&mut place.held_back, now, line);
            self.earliest = self.earliest.into_iter().chain(place.due()).min();
            return false;
        }
        if is_new && self.lines.len() < MOST_LINES {
            let line = Line { told: 1, held_back: None, since: now, window: WINDOW };
            self.earliest = self.earliest.into_iter().chain([line.due()]).min();
            self.lines.insert(hash, line);
        }
        true
    }

    /// Returns the counts that are due; forgets lines that did not come again.
    pub(super) fn due(&mut self, now: Instant) -> Vec<String> {
        let mut due = Vec::new();
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return due;
        }
        self.lines.retain(|_, line| {
            if now < line.due() {
                return true;
            }
            let Some(held_back) = line.held_back.take() else { return false };
            due.push(held_back.told(now));
            line.since = now;
            line.window = (2 * line.window).min(LONGEST_WINDOW);
            true
        });
        for place in self.kinds.values_mut() {
            if place.due().is_some_and(|at| at <= now) {
                due.extend(place.held_back.take().map(|held_back| held_back.told(now)));
            }
        }
        let lines = self.lines.values().map(Line::due);
        self.earliest = lines.chain(self.kinds.values().filter_map(CallSite::due)).min();
        due
    }

    /// Returns the counts that were not told yet, for a program that ends.
    pub(super) fn rest(&mut self, now: Instant) -> Vec<String> {
        let lines = self.lines.values_mut().map(|line| &mut line.held_back);
        let kinds = self.kinds.values_mut().map(|place| &mut place.held_back);
        lines.chain(kinds).filter_map(Option::take).map(|held_back| held_back.told(now)).collect()
    }

    /// Returns when [`due`](Self::due) has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.earliest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_line_is_told_a_few_times_and_then_with_its_count() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let told = (0..1239).filter(|_| limiter.admit(start, "here", "refused")).count();
        assert_eq!(told, AS_IS as usize);
        assert_eq!(limiter.due(start + WINDOW / 2), Vec::<String>::new());
        let due = limiter.next_deadline().unwrap();
        assert_eq!(limiter.due(due), ["refused … and 1234 more like this in 10 s"]);
        // It still comes: it is counted on, and told with growing pauses.
        assert!(!limiter.admit(due, "here", "refused"));
        assert_eq!(limiter.due(due + WINDOW), Vec::<String>::new());
        assert_eq!(limiter.due(due + 2 * WINDOW).len(), 1);
        // Nor is it lost when the program ends in the meantime.
        assert!(!limiter.admit(due + 2 * WINDOW, "here", "refused"));
        assert_eq!(limiter.rest(due + 2 * WINDOW), ["refused … and 1 more like this in 1 s"]);
        // It comes no more: it is forgotten, and then news again.
        assert_eq!(limiter.due(due + 10 * WINDOW), Vec::<String>::new());
        assert_eq!(limiter.next_deadline(), None);
        assert!(limiter.admit(due + 10 * WINDOW, "here", "refused"));
    }

    #[test]
    fn lines_that_differ_share_the_budget_of_the_place_they_come_from() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let flood = |limiter: &mut Limiter<_>, now| {
            (0..100_000).filter(|i| limiter.admit(now, "here", &format!("line {i}"))).count()
        };
        assert_eq!(flood(&mut limiter, start), BURST as usize);
        assert!(limiter.admit(start, "elsewhere", "another line"), "others are not kept from it");
        assert!(limiter.lines.len() <= MOST_LINES);
        let due = limiter.due(start + WINDOW);
        assert_eq!(due, [format!("line {BURST} … and {} more like this in 10 s", 100_000 - BURST)]);
        assert_eq!(flood(&mut limiter, start + WINDOW), 10 * PER_SECOND as usize);
    }

    #[test]
    fn a_line_that_is_kept_to_be_told_again_is_cut_to_its_bound() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let long = "ü".repeat(100_000);
        while limiter.admit(start, "here", &long) {}
        let told = limiter.due(start + WINDOW).pop().unwrap();
        assert!(told.len() < SAMPLE_BYTES + 60, "{}", told.len());
    }
}
