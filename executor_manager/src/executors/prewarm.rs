//! When executors are started that stand by: pure, the caller has the clock and the processes.
//!
//! ```text
//!   due ──▶ starting ──ready──▶ standing ──taken──▶ a lease has it
//!    ▲          └──────── lost ────┘
//!    └── after a pause, doubled ◀──┘
//! ```
//! * One is started at a time, and not for a while after the last start of any executor: a lease that is being
//!   served does not compete with it. That is [`REST`], or several times as long as one takes to stand by.
//! * One that takes longer than [`LONGEST_REST`], as with a constructor that hangs, is waited for by its own kind only.
//! * One that is lost before a lease has it costs a pause, and each that is lost then a longer one, so that what makes
//!   them fail is not met a thousand times.

use std::time::{Duration, Instant};

use crate::preload::Kind;

/// Time after a start before another one stands by: some ten times what a lease takes to its first result.
pub const REST: Duration = Duration::from_millis(20);
/// The same in starts of one that stands by, where these take long, as on RDMA devices; and the longest time, since
/// libraries of the operator may take as long as they like.
const REST_IN_STARTS: u32 = 4;
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Pause after one is lost: the first one, doubled with each, and the longest.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Those of all kinds, by their numbers: as many of each.
#[derive(Debug)]
pub struct Prewarms(Vec<Prewarm>);

impl Prewarms {
    /// None yet, and `wanted` of each of so many `kinds` later.
    pub fn new(wanted: u32, kinds: usize, now: Instant) -> Self {
        Prewarms((0..kinds).map(|_| Prewarm::new(wanted, now)).collect())
    }

    /// When another one is to be started, if one is to be and nothing else happens before.
    pub fn due_at(&self) -> Option<Instant> {
        self.next().map(|(_, at)| at)
    }

    /// The kind of which one is to be started at `now`.
    pub fn due(&self, now: Instant) -> Option<Kind> {
        self.next().filter(|(_, at)| *at <= now).map(|(kind, _)| kind)
    }

    fn next(&self) -> Option<(Kind, Instant)> {
        let due = self.0.iter().enumerate();
        let due = due.filter_map(|(kind, it)| Some((Kind(kind), it.due_at()?)));
        let (kind, at) = due.min_by_key(|(_, at)| *at)?;
        let last_start = self.0.iter().filter_map(|of_kind| of_kind.starting).max();
        Some((kind, last_start.map_or(at, |start| at.max(start + LONGEST_REST))))
    }

    /// That of one kind.
    pub fn of(&mut self, kind: Kind) -> &mut Prewarm {
        &mut self.0[kind.0]
    }

    /// A lease gets an executor.
    pub fn rest(&mut self, now: Instant) {
        self.0.iter_mut().for_each(|of_kind| of_kind.rest(now));
    }

    /// None is started from now on.
    pub fn stop(&mut self) {
        self.0.iter_mut().for_each(Prewarm::stop);
    }
}

/// How many of one kind stand by, and when there is to be another one.
#[derive(Debug)]
pub struct Prewarm {
    wanted: u32,
    standing: u32,
    /// Since when one is being started.
    starting: Option<Instant>,
    rest: Duration,
    /// Since when one that is missing is put off for leases.
    put_off_since: Option<Instant>,
    not_before: Instant,
    pause: Duration,
    /// When one was lost last, unless one was taken since.
    lost_at: Option<Instant>,
}

impl Prewarm {
    /// None yet, and `wanted` later.
    pub fn new(wanted: u32, now: Instant) -> Self {
        let (standing, starting, pause, lost_at) = (0, None, FIRST_PAUSE, None);
        let (rest, put_off_since, not_before) = (REST, None, now);
        Prewarm { wanted, standing, starting, rest, put_off_since, not_before, pause, lost_at }
    }

    /// When another one is to be started, if one is to be and nothing else happens before.
    pub fn due_at(&self) -> Option<Instant> {
        (self.starting.is_none() && self.standing < self.wanted).then_some(self.not_before)
    }

    /// One is being started.
    pub fn started(&mut self, now: Instant) {
        self.starting = Some(now);
        self.put_off_since = None;
    }

    /// It is ready.
    pub fn ready(&mut self, now: Instant) {
        if let Some(since) = self.starting.take() {
            let took = now.saturating_duration_since(since);
            self.rest = took.saturating_mul(REST_IN_STARTS).clamp(REST, LONGEST_REST);
        }
        self.standing += 1;
    }

    /// A lease has one of those that stood by.
    pub fn taken(&mut self) {
        self.standing = self.standing.saturating_sub(1);
        self.pause = FIRST_PAUSE;
        self.lost_at = None;
    }

    /// A lease gets an executor.
    pub fn rest(&mut self, now: Instant) {
        let since = match self.standing < self.wanted {
            true => *self.put_off_since.get_or_insert(now),
            false => now,
        };
        // However soon leases follow each other, what is missing comes.
        let until = (now + self.rest).min(since + LONGEST_REST);
        self.not_before = self.not_before.max(until);
    }

    /// One that stood by, if it `was_ready`, or was to, has made room for a lease.
    pub fn given_up(&mut self, was_ready: bool, now: Instant) {
        self.is_gone(was_ready);
        self.not_before = self.not_before.max(now + LONGEST_REST);
    }

    fn is_gone(&mut self, was_ready: bool) {
        match was_ready {
            true => self.standing = self.standing.saturating_sub(1),
            false => self.starting = None,
        }
    }

    /// One has ended before a lease had it, or could not be started. `was_ready`: it stood by. Returns whether that is
    /// news: it was to be there, and is the first since one was taken, or for a long time.
    pub fn lost(&mut self, was_ready: bool, now: Instant) -> bool {
        self.is_gone(was_ready);
        let before = self.lost_at.replace(now);
        let is_news = before.is_none_or(|at| now >= at + 2 * LONGEST_PAUSE);
        if is_news {
            self.pause = FIRST_PAUSE;
        }
        self.not_before = self.not_before.max(now + self.pause);
        self.pause = LONGEST_PAUSE.min(2 * self.pause);
        is_news && self.wanted > 0
    }

    /// None is started from now on.
    pub fn stop(&mut self) {
        self.wanted = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Starts all that are due at `now`, each of which is ready at once; returns how many.
    fn fill(prewarm: &mut Prewarm, now: Instant) -> u32 {
        let mut filled = 0;
        while prewarm.due_at().is_some_and(|at| at <= now) {
            prewarm.started(now);
            prewarm.ready(now);
            filled += 1;
        }
        filled
    }

    #[test]
    fn as_many_stand_as_are_wanted_and_one_is_started_at_a_time() {
        let now = Instant::now();
        let mut prewarm = Prewarm::new(2, now);
        assert_eq!(prewarm.due_at(), Some(now));
        prewarm.started(now);
        assert_eq!(prewarm.due_at(), None);
        prewarm.ready(now);
        assert_eq!(fill(&mut prewarm, now), 1);
        assert_eq!(prewarm.due_at(), None);
        assert_eq!(Prewarm::new(0, now).due_at(), None);
    }

    #[test]
    fn one_that_was_taken_is_replaced_when_the_lease_is_served() {
        let mut now = Instant::now();
        let mut prewarm = Prewarm::new(2, now);
        fill(&mut prewarm, now);
        prewarm.taken();
        prewarm.rest(now);
        assert_eq!(prewarm.due_at(), Some(now + REST));
        now += REST / 2;
        prewarm.rest(now); // another lease, for which there was none
        assert_eq!(prewarm.due_at(), Some(now + REST));
        assert_eq!(fill(&mut prewarm, now + REST), 1);
    }

    #[test]
    fn the_pause_is_longer_where_starts_take_long_and_not_for_ever() {
        let now = Instant::now();
        let rest_after = |took: Duration| {
            let mut prewarm = Prewarm::new(1, now);
            prewarm.started(now);
            prewarm.ready(now + took);
            prewarm.taken();
            prewarm.rest(now);
            prewarm.due_at().unwrap() - now
        };
        let ms = Duration::from_millis;
        assert_eq!(rest_after(ms(1)), REST);
        assert_eq!(rest_after(ms(100)), ms(400));
        assert_eq!(rest_after(ms(60_000)), LONGEST_REST);
    }

    #[test]
    fn leases_that_follow_each_other_put_off_what_is_missing_for_a_while_only() {
        let mut now = Instant::now();
        let mut prewarm = Prewarm::new(1, now);
        prewarm.started(now);
        prewarm.ready(now + Duration::from_millis(200)); // so that the pause is 800 ms
        prewarm.rest(now);
        prewarm.taken();
        let (begin, mut leases) = (now, 1);
        while prewarm.due_at().is_some_and(|at| at > now) {
            now += Duration::from_millis(500);
            prewarm.rest(now);
            leases += 1;
            assert!(leases < 10, "none stands by any more");
        }
        assert!(now - begin <= 2 * LONGEST_REST);
    }

    #[test]
    fn who_makes_room_is_no_failure_and_is_not_replaced_at_once() {
        let now = Instant::now();
        let mut prewarm = Prewarm::new(2, now);
        fill(&mut prewarm, now);
        for _ in 0..8 {
            prewarm.given_up(true, now);
            assert_eq!(prewarm.due_at(), Some(now + LONGEST_REST));
        }
    }

    #[test]
    fn those_that_are_lost_cost_longer_and_longer_pauses_and_are_news_once() {
        let mut now = Instant::now();
        let mut prewarm = Prewarm::new(1, now);
        let mut lose = |prewarm: &mut Prewarm, was_ready: bool| {
            prewarm.started(now);
            if was_ready {
                prewarm.ready(now);
            }
            let is_news = prewarm.lost(was_ready, now);
            let pause = prewarm.due_at().unwrap() - now;
            now += pause;
            (is_news, pause)
        };
        let lost: Vec<_> = (0..12).map(|n| lose(&mut prewarm, n % 2 == 0)).collect();
        let pauses: Vec<_> = lost.iter().map(|(_, pause)| *pause).collect();
        assert_eq!(pauses[..3], [1, 2, 4].map(|times| times * FIRST_PAUSE));
        assert_eq!(pauses[11], LONGEST_PAUSE);
        assert_eq!(lost.iter().filter(|(is_news, _)| *is_news).count(), 1);
        let any = Instant::now();
        prewarm.started(any);
        prewarm.ready(any);
        prewarm.taken();
        assert_eq!(lose(&mut prewarm, true), (true, FIRST_PAUSE), "it served a lease in between");
        now += 2 * LONGEST_PAUSE;
        prewarm.started(now);
        prewarm.ready(now);
        assert!(prewarm.lost(true, now), "one in a while is another matter");
        assert_eq!(prewarm.due_at(), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn none_is_started_by_a_manager_that_stops() {
        let now = Instant::now();
        let mut prewarm = Prewarm::new(2, now);
        fill(&mut prewarm, now);
        prewarm.stop();
        assert!(!prewarm.lost(true, now), "it was ended");
        prewarm.lost(true, now);
        assert_eq!(prewarm.due_at(), None);
    }

    #[test]
    fn one_of_all_kinds_is_started_at_a_time_and_each_has_pauses_of_its_own() {
        let now = Instant::now();
        let mut all = Prewarms::new(1, 3, now);
        assert_eq!(all.due(now), Some(Kind(0)));
        all.of(Kind(0)).started(now);
        assert_eq!((all.due(now), all.due_at()), (None, Some(now + LONGEST_REST)));
        all.of(Kind(0)).lost(false, now);
        assert_eq!(all.due(now), Some(Kind(1)), "the others do not wait for what fails");
        all.of(Kind(1)).started(now);
        all.of(Kind(1)).ready(now);
        all.of(Kind(2)).started(now);
        all.of(Kind(2)).ready(now);
        assert_eq!(all.due_at(), Some(now + FIRST_PAUSE));
        all.stop();
        assert_eq!(all.due_at(), None);
    }

    #[test]
    fn one_that_does_not_become_ready_keeps_others_for_a_second_only() {
        let now = Instant::now();
        let mut all = Prewarms::new(1, 3, now);
        all.of(Kind(0)).started(now);
        let later = now + LONGEST_REST;
        assert_eq!(all.due(later), Some(Kind(1)));
        all.of(Kind(1)).started(later);
        assert_eq!((all.due(later), all.due_at()), (None, Some(later + LONGEST_REST)));
        all.of(Kind(1)).ready(later);
        assert_eq!(all.due(later), Some(Kind(2)), "what hangs was waited for");
        all.of(Kind(2)).started(later);
        all.of(Kind(2)).ready(later);
        assert_eq!(all.due_at(), None, "its own kind waits for it");
    }

    proptest! {
        /// Whatever happens, never more stand by and start together than are wanted, and what is missing is due.
        #[test]
        fn there_are_never_too_many_and_what_is_missing_is_due(
            wanted in 0u32..5, steps in prop::collection::vec((0u8..5, 0u64..5000), 0..200)
        ) {
            let mut now = Instant::now();
            let mut prewarm = Prewarm::new(wanted, now);
            let (mut standing, mut starting) = (0, false);
            for (step, ms) in steps {
                now += Duration::from_millis(ms);
                match step {
                    0 if prewarm.due_at().is_some_and(|at| at <= now) => {
                        prop_assert!(!starting);
                        prewarm.started(now);
                        starting = true;
                    }
                    1 if starting => {
                        prewarm.ready(now);
                        (starting, standing) = (false, standing + 1);
                    }
                    2 if standing > 0 => {
                        prewarm.taken();
                        prewarm.rest(now);
                        standing -= 1;
                    }
                    3 if starting => {
                        prewarm.lost(false, now);
                        starting = false;
                    }
                    4 if standing > 0 => {
                        prewarm.lost(true, now);
                        standing -= 1;
                    }
                    _ => {}
                }
                prop_assert!(standing + u32::from(starting) <= wanted);
                prop_assert_eq!(prewarm.due_at().is_some(), !starting && standing < wanted);
                prop_assert!(prewarm.due_at().is_none_or(|at| at <= now + LONGEST_PAUSE));
            }
        }
    }
}
