//! When an idle worker spins, lets others run, looks at the clock, or sleeps. Pure.
//!
//! ```text
//!   work ──▶ spin, clock each 1000 polls ──50 µs without work──▶ spin a little, yield, clock ──▶ sleep
//!    ▲                                                                                  │ time limit
//!    └──────────────────────────────── work ────────────────────────────────────────────┘ passed
//! ```
//! A worker that was just used is likely used again at once, so at first nothing but the completion
//! queue is looked at. Later each turn gives the core away once: where there are fewer cores than
//! threads that spin (a client on the same machine), the one with work gets to run. Where that is
//! so shows in how long it takes to get the core back; there, workers give it away from the start, and
//! try another core. It also shows in work that only comes when the core was given away ([`Sharing`]): a client that
//! gives it back soon.

use rfaas_call::{Sharing, Spin};

use crate::clock::MS;

/// Polls between two looks at the clock: about 40 µs, against 25 ns for the look.
const POLLS_A_CLOCK: u32 = 1_000;
/// Time without work after which a worker lets others run, in ns.
const YIELD_AFTER_NS: u64 = 50_000;
/// Polls between two yields: about as long as a yield takes when nobody else wants the core.
const POLLS_A_YIELD: u32 = 32;

/// A yield, and the polls before it, that took longer than this gave the core to somebody else, in ns. Far
/// more than they take alone (2 µs), and less than the shortest turn of the Linux scheduler.
const YIELD_TOOK_LONG_NS: u64 = 20_000;
/// How long a core counts as wanted by others after that, in ns.
const CROWDED_NS: u64 = 100 * MS;
/// Yields in a row that took long before a worker moves: one alone may have been an interrupt, or the
/// hypervisor; who shares a core sees nothing else.
const YIELDS_A_MOVE: u32 = 4;
/// Shortest time between two moves to another core, in ns: a move costs some microseconds, and where all
/// cores are crowded it is in vain.
const MOVE_EACH_NS: u64 = 10 * MS;

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

/// Counts the polls of one worker since it last had work.
#[derive(Debug)]
pub struct Spinner {
    /// Spinning time after the last work, in ns; `u64::MAX` is 584 years, that is always.
    limit_ns: u64,
    worked_at_ns: u64,
    /// There was work since the last look at the clock.
    worked: bool,
    polls: u32,
    yields: bool,
    sleeps: bool,
    looked_at_ns: u64,
    /// Until when others want the core, as far as is known; and whether they did at the last look.
    crowded_until_ns: u64,
    crowded: bool,
    /// Whether the client needs the core that is spun on.
    sharing: Sharing,
    /// The last thing other than polling was a yield, and there was no work since.
    yielded: bool,
    /// Yields in a row that took long, or are likely to have given the core to the client.
    long_yields: u32,
    /// When it is worth trying another core again.
    move_after_ns: u64,
}

impl Spinner {
    /// For a worker that starts at `now_ns`, and then counts as one that just had work: its client
    /// leased it to use it.
    pub fn new(spin: Spin, now_ns: u64) -> Self {
        let limit_ns = match spin {
            Spin::Always => u64::MAX,
            Spin::Never => 0,
            Spin::For(time) => {
                u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_mul(MS)
            }
        };
        Spinner {
            limit_ns,
            worked_at_ns: now_ns,
            worked: false,
            polls: 0,
            yields: false,
            sleeps: limit_ns == 0,
            looked_at_ns: now_ns,
            crowded_until_ns: 0,
            crowded: false,
            sharing: Sharing::default(),
            yielded: false,
            long_yields: 0,
            move_after_ns: 0,
        }
    }

    /// There was work until now. When that was, the next look at the clock tells well enough: it comes after
    /// so few polls that no time limit, in milliseconds, notices.
    #[inline]
    pub fn worked(&mut self) {
        if self.polls > 0 {
            self.sharing.spun();
        } else if self.yielded {
            self.sharing.yielded();
        }
        self.yielded = false;
        self.worked = true;
        self.polls = 0;
        self.yields = self.crowded || self.sharing.is_likely();
        self.sleeps = self.limit_ns == 0;
    }

    /// A poll found nothing: what next?
    #[inline]
    pub fn idle(&mut self) -> Idle {
        if self.sleeps {
            return Idle::Sleep;
        }
        self.polls += 1;
        if self.polls < if self.yields { POLLS_A_YIELD } else { POLLS_A_CLOCK } {
            return Idle::Poll;
        }
        self.polls = 0;
        self.yielded = self.yields;
        if self.yields { Idle::Yield } else { Idle::Clock }
    }

    /// What time it is; to be told when [`idle`](Self::idle) asks for it. Returns whether to move to
    /// another core: others want this one. Not more often than each 10 ms.
    pub fn time_is(&mut self, now_ns: u64) -> bool {
        let mut moves = false;
        // With work in between, how long it took says nothing.
        let took_long = !self.worked
            && self.yields
            && now_ns.saturating_sub(self.looked_at_ns) > YIELD_TOOK_LONG_NS;
        if took_long {
            self.crowded_until_ns = now_ns.saturating_add(CROWDED_NS);
        }
        let shares = self.yielded && self.sharing.is_likely();
        if took_long || shares {
            self.long_yields += 1;
            if self.long_yields >= YIELDS_A_MOVE && now_ns >= self.move_after_ns {
                moves = true;
                self.long_yields = 0;
                self.move_after_ns = now_ns.saturating_add(MOVE_EACH_NS);
            }
        } else if !self.worked {
            self.long_yields = 0;
        }
        if self.worked {
            self.worked = false;
            self.worked_at_ns = now_ns;
        }
        self.looked_at_ns = now_ns;
        let without_work_ns = now_ns.saturating_sub(self.worked_at_ns);
        self.crowded = now_ns < self.crowded_until_ns;
        self.yields = without_work_ns >= YIELD_AFTER_NS || self.crowded || self.sharing.is_likely();
        self.sleeps = without_work_ns >= self.limit_ns;
        moves
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Polls in vain, each costing `poll_ns`, until the worker sleeps or `until_ns` has come.
    fn idle_until(spinner: &mut Spinner, now: &mut u64, poll_ns: u64, until_ns: u64) -> Vec<Idle> {
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
                    spinner.time_is(*now);
                }
                Idle::Sleep => break,
            }
        }
        seen
    }

    #[test]
    fn always_hot_never_sleeps() {
        let mut spinner = Spinner::new(Spin::Always, 0);
        let seen = idle_until(&mut spinner, &mut 0, MS, 3_600_000 * MS);
        assert!(!seen.contains(&Idle::Sleep));
        assert_eq!(seen.last(), Some(&Idle::Yield));
    }

    #[test]
    fn always_warm_sleeps_at_once_also_after_work() {
        let mut spinner = Spinner::new(Spin::Never, 5);
        assert_eq!(spinner.idle(), Idle::Sleep);
        spinner.worked();
        assert_eq!(spinner.idle(), Idle::Sleep);
    }

    #[test]
    fn a_timeout_of_3000_ms_spins_for_3_s_after_the_last_work_each_time() {
        let spin = Spin::from_hot_timeout_ms(3_000).unwrap();
        let mut spinner = Spinner::new(spin, 0);
        let mut now = 0;
        for _ in 0..3 {
            let start = now;
            spinner.worked();
            let seen = idle_until(&mut spinner, &mut now, 100, start + 10_000 * MS);
            assert_eq!(seen.last(), Some(&Idle::Sleep));
            let spun = now - start;
            assert!((3_000 * MS..3_001 * MS).contains(&spun), "{spun} ns");
        }
    }

    #[test]
    fn hot_timeouts_that_do_not_fit_sixteen_bits_are_kept() {
        assert_eq!(
            Spin::from_hot_timeout_ms(40_000),
            Some(Spin::For(Duration::from_millis(40_000)))
        );
        let mut spinner = Spinner::new(Spin::from_hot_timeout_ms(i64::MAX).unwrap(), 0);
        let seen = idle_until(&mut spinner, &mut 0, 1_000_000, 60_000 * MS);
        assert!(!seen.contains(&Idle::Sleep));
    }

    #[test]
    fn a_busy_worker_neither_yields_nor_reads_the_clock() {
        let mut spinner = Spinner::new(Spin::Always, 0);
        for _ in 0..10_000 {
            for _ in 0..POLLS_A_CLOCK - 1 {
                assert_eq!(spinner.idle(), Idle::Poll);
            }
            spinner.worked();
        }
    }

    #[test]
    fn a_worker_without_work_yields_from_50_us_on_and_stops_when_it_has_work() {
        let mut spinner = Spinner::new(Spin::Always, 0);
        let mut now = 0;
        let seen = idle_until(&mut spinner, &mut now, 10, YIELD_AFTER_NS);
        assert!(seen.iter().all(|idle| *idle == Idle::Clock), "{seen:?}");
        let seen = idle_until(&mut spinner, &mut now, 10, 2 * YIELD_AFTER_NS);
        assert!(seen.ends_with(&[Idle::Yield, Idle::Yield]), "{seen:?}");
        spinner.worked();
        assert_eq!(spinner.idle(), Idle::Poll);
        assert!(!spinner.yields);
    }

    /// The first thing other than polling that a worker does after work.
    fn first_after_work(spinner: &mut Spinner) -> Idle {
        spinner.worked();
        std::iter::repeat_with(|| spinner.idle()).find(|idle| *idle != Idle::Poll).unwrap()
    }

    #[test]
    fn who_waited_for_the_core_gives_it_away_soon_after_work_for_a_while() {
        let mut spinner = Spinner::new(Spin::Always, 0);
        let mut now = 0;
        idle_until(&mut spinner, &mut now, 10, 2 * YIELD_AFTER_NS);
        assert_eq!(first_after_work(&mut spinner), Idle::Clock, "nobody else wants it");
        spinner.time_is(now);

        let until = now + 2 * YIELD_AFTER_NS;
        idle_until(&mut spinner, &mut now, 10, until);
        while spinner.idle() != Idle::Yield {}
        now += MS; // somebody else had it
        spinner.time_is(now);
        assert_eq!(first_after_work(&mut spinner), Idle::Yield);
        spinner.time_is(now + CROWDED_NS - 1);
        assert_eq!(first_after_work(&mut spinner), Idle::Yield);
        spinner.time_is(now + CROWDED_NS);
        assert_eq!(first_after_work(&mut spinner), Idle::Clock);
    }

    /// The client has the core while it is given away, and at no other time; each turn takes it 3 µs. Returns when
    /// the worker moved.
    fn serve_a_client_on_the_same_core(
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
                if spinner.time_is(*now) {
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
        let mut spinner = Spinner::new(Spin::Always, 0);
        let mut now = 0;
        assert!(serve_a_client_on_the_same_core(&mut spinner, &mut now, 10).is_empty());
        assert!(now > 10 * YIELD_AFTER_NS, "{now} ns: it does not yet know");
        serve_a_client_on_the_same_core(&mut spinner, &mut now, 100);
        let before = now;
        let moves = serve_a_client_on_the_same_core(&mut spinner, &mut now, 10_000);
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

    #[test]
    fn a_worker_that_has_to_share_its_core_moves_at_most_each_10_ms() {
        let mut spinner = Spinner::new(Spin::Always, 0);
        assert!(!spinner.time_is(YIELD_AFTER_NS));
        let mut now = YIELD_AFTER_NS;
        for n in 1..100 {
            // Long now and then, but not several times in a row: it has the core for itself.
            now += if n % 3 == 0 { 2_000 } else { YIELD_TOOK_LONG_NS + 1 };
            assert!(!spinner.time_is(now));
        }
        let mut spinner = Spinner::new(Spin::Always, 0);
        assert!(!spinner.time_is(YIELD_AFTER_NS));
        let mut now = 2 * YIELD_AFTER_NS;
        let mut moves = vec![];
        while now < 35 * MS {
            now += YIELD_TOOK_LONG_NS + 1;
            if spinner.time_is(now) {
                moves.push(now / MS);
            }
        }
        assert_eq!(moves, [0, 10, 20, 30]);
    }
}
