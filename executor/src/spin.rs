//! When an idle worker spins, lets others run, reads the clock, sleeps, or moves to another core. Pure.
//!
//! The policy is that of all that wait ([`Backoff`]). A worker differs in that it has no deadline,
//! and in that it notices whether others want its core: where there are fewer cores than threads
//! that spin, a client on the same machine may have none. That shows in how long a yield takes, and
//! in requests that only come when the core was given away ([`Sharing`]). Such a worker yields from
//! the start, and tries another core.

use std::time::{Duration, Instant};

use rfaas_call::{Awaited, Backoff, Pause, Sharing, Spin};

/// A yield, and the polls before it, that took longer than this gave the core to somebody else. It
/// is far more than they take alone (2 µs), and less than the shortest turn of the Linux scheduler.
const YIELD_TOOK_LONG: Duration = Duration::from_micros(20);
/// How long a core counts as wanted by others after that.
const CROWDED: Duration = Duration::from_millis(100);
/// Yields in a row that took long before a worker moves: one alone may have been an interrupt, or
/// the hypervisor; a worker that shares a core sees nothing else.
const YIELDS_A_MOVE: u32 = 4;
/// Shortest time between two moves to another core: a move costs some microseconds, and where all
/// cores are crowded it is in vain.
const MOVE_EACH: Duration = Duration::from_millis(10);

/// What to do after a poll that found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Poll again.
    Poll,
    /// Tell the [time](Spinner::time_is), then poll again.
    Clock,
    /// Let another thread run, tell the time, then poll again.
    Yield,
    /// Sleep until there is work, then poll again.
    Sleep,
}

/// The waits of one worker.
#[derive(Debug)]
pub struct Spinner {
    backoff: Backoff,
    /// Whether the client needs the core that is spun on.
    sharing: Sharing,
    /// Others want the core, or the client does: yields are due from the start.
    early: bool,
    sleeps: bool,
    /// There was work since the last reading of the clock.
    worked: bool,
    /// The last thing other than polling was a yield, and there was no work since.
    yielded: bool,
    /// The last reading of the clock.
    looked_at: Option<Instant>,
    /// Until when others want the core, as far as is known; and whether they did at the last reading.
    crowded_until: Option<Instant>,
    crowded: bool,
    /// Yields in a row that took long, or are likely to have given the core to the client.
    long_yields: u32,
    /// When it is worth trying another core again.
    move_after: Option<Instant>,
}

impl Spinner {
    /// Begins with a worker that counts as one that just had work: its client leased it to use it.
    pub fn new(spin: Spin) -> Self {
        let backoff = Backoff::new(spin, Awaited::Request);
        Spinner {
            sleeps: backoff.never_spins(),
            backoff,
            sharing: Sharing::default(),
            early: false,
            worked: false,
            yielded: false,
            looked_at: None,
            crowded_until: None,
            crowded: false,
            long_yields: 0,
            move_after: None,
        }
    }

    /// There was work until now. The next reading of the clock tells well enough when that was: it comes after so few
    /// polls that no time limit, in milliseconds, notices.
    #[inline]
    pub fn worked(&mut self) {
        self.backoff.fruitful(self.early, &mut self.sharing);
        self.yielded = false;
        self.worked = true;
        self.early = self.crowded || self.sharing.is_likely();
        self.sleeps = self.backoff.never_spins();
    }

    /// A poll found nothing. Returns what to do next.
    #[inline]
    pub fn idle(&mut self) -> Idle {
        if self.sleeps {
            return Idle::Sleep;
        }
        match self.backoff.fruitless(self.early) {
            Pause::Spin => Idle::Poll,
            Pause::Look => {
                self.yielded = false;
                Idle::Clock
            }
            Pause::Yield => {
                self.yielded = true;
                Idle::Yield
            }
        }
    }

    /// Takes the time, to be told when [`idle`](Self::idle) asks for it. Returns whether
    /// to move to another core, since others want this one: at most once in 10 ms.
    pub fn time_is(&mut self, now: Instant) -> bool {
        let moves = self.yielded && self.gave_the_core_away(now);
        self.worked = false;
        self.looked_at = Some(now);
        self.sleeps = self.backoff.looked(now);
        self.crowded = self.crowded_until.is_some_and(|until| now < until);
        self.early = self.crowded || self.sharing.is_likely();
        moves
    }

    /// Notes what the last yield says about the core. Returns whether to move.
    fn gave_the_core_away(&mut self, now: Instant) -> bool {
        // With work in between, how long it took says nothing.
        let took = self.looked_at.map(|at| now.saturating_duration_since(at));
        let took_long = !self.worked && took.is_some_and(|took| took > YIELD_TOOK_LONG);
        if took_long {
            self.crowded_until = Some(now + CROWDED);
        }
        if took_long || self.sharing.is_likely() {
            self.long_yields += 1;
            let may_move = self.move_after.is_none_or(|after| now >= after);
            if self.long_yields >= YIELDS_A_MOVE && may_move {
                self.long_yields = 0;
                self.move_after = Some(now + MOVE_EACH);
                return true;
            }
        } else if !self.worked {
            self.long_yields = 0;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use rfaas_call::FREE_POLLS;

    use super::*;

    const MS: u64 = 1_000_000;

    /// Time in nanoseconds, from some moment on.
    struct Clock(Instant);

    impl Clock {
        fn new() -> Self {
            Clock(Instant::now())
        }

        fn at(&self, ns: u64) -> Instant {
            self.0 + Duration::from_nanos(ns)
        }
    }

    /// Polls in vain, each costing `poll_ns`, until the worker sleeps or `until_ns` has come.
    fn idle_until(
        clock: &Clock,
        spinner: &mut Spinner,
        now: &mut u64,
        poll_ns: u64,
        until_ns: u64,
    ) -> Vec<Idle> {
        let mut seen = vec![];
        while *now < until_ns {
            *now += poll_ns;
            let idle = spinner.idle();
            if idle != Idle::Poll {
                seen.push(idle);
            }
            match idle {
                Idle::Poll => {}
                Idle::Clock | Idle::Yield => {
                    spinner.time_is(clock.at(*now));
                }
                Idle::Sleep => break,
            }
        }
        seen
    }

    #[test]
    fn always_hot_never_sleeps() {
        let mut spinner = Spinner::new(Spin::Always);
        let seen = idle_until(&Clock::new(), &mut spinner, &mut 0, MS, 3_600_000 * MS);
        assert!(!seen.contains(&Idle::Sleep));
        // To the end: of so many turns, one reads the clock and does not yield.
        assert!(seen.ends_with(&[Idle::Yield]) || seen.ends_with(&[Idle::Yield, Idle::Clock]));
    }

    #[test]
    fn always_warm_sleeps_at_once_also_after_work() {
        let mut spinner = Spinner::new(Spin::Never);
        assert_eq!(spinner.idle(), Idle::Sleep);
        spinner.worked();
        assert_eq!(spinner.idle(), Idle::Sleep);
    }

    #[test]
    fn a_timeout_of_3000_ms_spins_for_3_s_after_the_last_work_each_time() {
        let clock = Clock::new();
        let mut spinner = Spinner::new(Spin::from_hot_timeout_ms(3_000).unwrap());
        let mut now = 0;
        for _ in 0..3 {
            let start = now;
            spinner.worked();
            let seen = idle_until(&clock, &mut spinner, &mut now, 100, start + 10_000 * MS);
            assert_eq!(seen.last(), Some(&Idle::Sleep));
            let spun = now - start;
            assert!((3_000 * MS..3_001 * MS).contains(&spun), "{spun} ns");
        }
    }

    #[test]
    fn with_the_longest_timeout_a_worker_does_not_sleep() {
        let mut spinner = Spinner::new(Spin::from_hot_timeout_ms(i64::MAX).unwrap());
        let seen = idle_until(&Clock::new(), &mut spinner, &mut 0, MS, 60_000 * MS);
        assert!(!seen.contains(&Idle::Sleep));
    }

    #[test]
    fn a_busy_worker_neither_yields_nor_reads_the_clock() {
        let mut spinner = Spinner::new(Spin::Always);
        for _ in 0..10_000 {
            for _ in 0..FREE_POLLS - 1 {
                assert_eq!(spinner.idle(), Idle::Poll);
            }
            spinner.worked();
        }
    }

    #[test]
    fn a_worker_without_work_yields_after_the_free_polls_and_stops_when_it_has_work() {
        let clock = Clock::new();
        let mut spinner = Spinner::new(Spin::Always);
        let (mut now, free) = (0, u64::from(FREE_POLLS));
        let seen = idle_until(&clock, &mut spinner, &mut now, 1, free);
        assert_eq!(seen, [Idle::Clock]);
        let seen = idle_until(&clock, &mut spinner, &mut now, 1, 2 * free - 1);
        assert!(seen.starts_with(&[Idle::Yield, Idle::Yield]), "{seen:?}");
        assert!(seen.ends_with(&[Idle::Yield, Idle::Yield]), "{seen:?}");
        spinner.worked();
        assert_eq!(spinner.idle(), Idle::Poll);
        assert!(!spinner.early);
    }

    /// Returns the first thing other than polling that a worker does after work.
    fn first_after_work(spinner: &mut Spinner) -> Idle {
        spinner.worked();
        std::iter::repeat_with(|| spinner.idle()).find(|idle| *idle != Idle::Poll).unwrap()
    }

    #[test]
    fn a_worker_that_waited_for_its_core_gives_it_away_soon_after_work_for_a_while() {
        let clock = Clock::new();
        let mut spinner = Spinner::new(Spin::Always);
        let mut now = 0;
        idle_until(&clock, &mut spinner, &mut now, 10, 100_000);
        assert_eq!(first_after_work(&mut spinner), Idle::Clock, "nobody else wants it");
        spinner.time_is(clock.at(now));

        let until = now + 100_000;
        idle_until(&clock, &mut spinner, &mut now, 10, until);
        while spinner.idle() != Idle::Yield {}
        now += MS; // somebody else had it
        spinner.time_is(clock.at(now));
        assert_eq!(first_after_work(&mut spinner), Idle::Yield);
        let crowded = CROWDED.as_nanos() as u64;
        spinner.time_is(clock.at(now + crowded - 1));
        assert_eq!(first_after_work(&mut spinner), Idle::Yield);
        spinner.time_is(clock.at(now + crowded));
        assert_eq!(first_after_work(&mut spinner), Idle::Clock);
    }

    /// The client has the core while it is given away, and at no other time; each turn
    /// takes it 3 µs. Returns when the worker moved.
    fn serve_a_client_on_the_same_core(
        clock: &Clock,
        spinner: &mut Spinner,
        now: &mut u64,
        calls: u32,
    ) -> Vec<u64> {
        let mut moves = vec![];
        for _ in 0..calls {
            spinner.worked();
            loop {
                *now += 20;
                match spinner.idle() {
                    Idle::Poll => continue,
                    Idle::Yield => *now += 3_000,
                    Idle::Clock => {}
                    Idle::Sleep => panic!("always hot"),
                }
                if spinner.time_is(clock.at(*now)) {
                    moves.push(*now / MS);
                }
                if spinner.yielded {
                    break;
                }
            }
        }
        moves
    }

    #[test]
    fn a_worker_whose_work_only_comes_with_yields_yields_soon_after_work_and_tries_other_cores() {
        let clock = Clock::new();
        let mut spinner = Spinner::new(Spin::Always);
        let mut now = 0;
        let moves = serve_a_client_on_the_same_core(&clock, &mut spinner, &mut now, 10);
        assert!(moves.is_empty());
        assert!(now > 10 * 40_000, "{now} ns: it does not yet know");
        serve_a_client_on_the_same_core(&clock, &mut spinner, &mut now, 100);
        let before = now;
        let moves = serve_a_client_on_the_same_core(&clock, &mut spinner, &mut now, 10_000);
        let a_call = (now - before) / 10_000;
        assert!(a_call < 4_500, "{a_call} ns a call, of which 3,640 are necessary");
        assert!(moves.len() > 2 && moves.windows(2).all(|two| two[1] - two[0] >= 10), "{moves:?}");

        // It has moved to a core of its own, or the client has: work comes while it spins.
        for _ in 0..100 {
            spinner.worked();
            assert_eq!(spinner.idle(), Idle::Poll);
        }
        assert_eq!(first_after_work(&mut spinner), Idle::Clock);
    }

    /// Polls until the worker yields, and tells it then that it is `ns`.
    fn yields_until(clock: &Clock, spinner: &mut Spinner, ns: u64) -> bool {
        while spinner.idle() != Idle::Yield {}
        spinner.time_is(clock.at(ns))
    }

    #[test]
    fn a_worker_that_has_to_share_its_core_moves_at_most_each_10_ms() {
        let clock = Clock::new();
        let long = YIELD_TOOK_LONG.as_nanos() as u64 + 1;
        let mut spinner = Spinner::new(Spin::Always);
        let mut now = 0;
        spinner.time_is(clock.at(now));
        for n in 1..100 {
            // Long now and then, but not several times in a row: it has the core for itself.
            now += if n % 3 == 0 { 2_000 } else { long };
            assert!(!yields_until(&clock, &mut spinner, now));
        }
        let mut spinner = Spinner::new(Spin::Always);
        spinner.time_is(clock.at(0));
        let (mut now, mut moves) = (0, vec![]);
        while now < 35 * MS {
            now += long;
            if yields_until(&clock, &mut spinner, now) {
                moves.push(now / MS);
            }
        }
        assert_eq!(moves, [0, 10, 20, 30]);
    }
}
