//! How a blocking wait passes the time between two looks at the completion queue: pure, the caller
//! polls, yields, reads the clock and sleeps.
//!
//! ```text
//!   FREE_POLLS polls ──▶ look at the clock ──▶ polls, a yield and a look now and then
//!   (hot: no clock)              └── the policy says so ──▶ sleep, poll, look, sleep …
//! ```
//! A result that comes hot comes in the first phase, which reads no clock and makes no system call. Where it never
//! does, since the worker needs the CPU for it that we spin on, the first phase is short ([`Sharing`]).

use std::time::{Duration, Instant};

use super::Spin;
use rfaas_call::Sharing;

/// Fruitless polls before the first look at the clock: some 50 µs, an empty poll and the pause
/// after it taking about 25 ns. A hot round trip takes a few microseconds.
const FREE_POLLS: u32 = 2048;
/// Then a yield every so many polls: where there are fewer cores than spinning threads, the worker
/// that is waited for may be one that has no core. The first comes after so many where that is likely: some 1.5 µs,
/// in which most results come from another core.
const YIELD_EVERY: u32 = 64;
/// And a look at the clock every so many; [`FREE_POLLS`] is a multiple, so the first comes right
/// then.
const LOOK_EVERY: u32 = 1024;
/// Longest sleep, after which the deadlines are looked at again.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// Sleep while news is awaited that rings no bell here.
const NAP: Duration = Duration::from_millis(1);

/// What to do after a poll that found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Poll again.
    Spin,
    /// Let other threads run, then poll again.
    Yield,
    /// Read the clock and tell [`Waiter::looked`].
    Look,
}

/// One wait.
#[derive(Debug)]
pub(super) struct Waiter {
    spin: Spin,
    polls: u32,
    /// First look at the clock since something was found.
    since: Option<Instant>,
    /// Time to sleep before the next poll.
    sleep: Option<Duration>,
}

impl Waiter {
    pub(super) fn new(spin: Spin) -> Self {
        Waiter { spin, polls: 0, since: None, sleep: None }
    }

    /// A poll found nothing. `early`: yields early, as [`Sharing::is_likely`] says.
    #[inline]
    pub(super) fn fruitless(&mut self, early: bool) -> Pause {
        self.polls = self.polls.wrapping_add(1);
        if self.spin == Spin::Never {
            return Pause::Look;
        }
        if self.polls < FREE_POLLS && !early {
            return Pause::Spin;
        }
        self.after_free_polls()
    }

    fn after_free_polls(&self) -> Pause {
        match self.polls {
            n if n % LOOK_EVERY == 0 => Pause::Look,
            n if n % YIELD_EVERY == 0 => Pause::Yield,
            _ => Pause::Spin,
        }
    }

    /// A poll found something: spinning starts anew. `sharing` learns from it.
    #[inline]
    pub(super) fn fruitful(&mut self, sharing: &mut Sharing) {
        let free = if sharing.is_likely() { YIELD_EVERY } else { FREE_POLLS };
        if self.polls >= free && self.after_free_polls() == Pause::Yield {
            sharing.yielded();
        } else if self.polls > 0 {
            sharing.spun();
        }
        self.polls = 0;
        self.since = None;
    }

    /// The clock was read: it is `now`, and `until` something happens by itself. `news`: something
    /// is awaited that does not ring this completion queue's bell.
    pub(super) fn looked(&mut self, now: Instant, until: Option<Instant>, news: bool) {
        let since = *self.since.get_or_insert(now);
        let sleeps = match self.spin {
            Spin::Always => false,
            Spin::Never => true,
            Spin::For(time) => now.saturating_duration_since(since) >= time,
        };
        self.sleep = if news {
            Some(NAP)
        } else if sleeps {
            let left = until.map_or(LONGEST_SLEEP, |until| until.saturating_duration_since(now));
            Some(left.min(LONGEST_SLEEP))
        } else {
            None
        };
        if self.sleep.is_some() {
            // Who sleeps looks at the clock after the next poll that finds nothing.
            self.polls = FREE_POLLS - 1;
        }
    }

    /// How long to sleep before the next poll, told once.
    #[inline]
    pub(super) fn sleep(&mut self) -> Option<Duration> {
        self.sleep.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Client and worker each have a CPU.
    fn alone() -> Sharing {
        Sharing::default()
    }

    /// What `n` polls that find nothing lead to: looks, yields.
    fn polls(waiter: &mut Waiter, n: u32) -> (u32, u32) {
        let mut counts = (0, 0);
        for _ in 0..n {
            match waiter.fruitless(false) {
                Pause::Look => counts.0 += 1,
                Pause::Yield => counts.1 += 1,
                Pause::Spin => {}
            }
        }
        counts
    }

    #[test]
    fn a_hot_wait_reads_no_clock_and_yields_to_nobody_at_first() {
        let mut waiter = Waiter::new(Spin::Always);
        assert_eq!(polls(&mut waiter, FREE_POLLS - 1), (0, 0));
        assert_eq!(waiter.fruitless(false), Pause::Look);
    }

    #[test]
    fn a_long_spin_yields_and_looks_at_the_clock_now_and_then() {
        let mut waiter = Waiter::new(Spin::Always);
        polls(&mut waiter, FREE_POLLS);
        let (looks, yields) = polls(&mut waiter, 8 * LOOK_EVERY);
        assert_eq!((looks, yields), (8, 8 * (LOOK_EVERY / YIELD_EVERY - 1)));
    }

    /// Polls until a result is there, which on a shared CPU is after a yield. Returns how many found nothing.
    fn wait_on_a_shared_cpu(sharing: &mut Sharing) -> u32 {
        let mut waiter = Waiter::new(Spin::Always);
        let polls =
            1 + (0..).take_while(|_| waiter.fruitless(sharing.is_likely()) != Pause::Yield).count();
        waiter.fruitful(sharing);
        polls as u32
    }

    #[test]
    fn waits_that_only_a_yield_ends_yield_soon_and_those_that_spinning_ends_do_not() {
        let mut sharing = alone();
        assert_eq!(wait_on_a_shared_cpu(&mut sharing), FREE_POLLS + YIELD_EVERY);
        let polls: Vec<u32> = (0..1_000).map(|_| wait_on_a_shared_cpu(&mut sharing)).collect();
        let soon = polls.iter().filter(|polls| **polls == YIELD_EVERY).count();
        assert!(soon > 900, "{soon} of 1,000 waits");

        // The worker has got a CPU of its own.
        for _ in 0..100 {
            let mut waiter = Waiter::new(Spin::Always);
            for _ in 0..YIELD_EVERY / 2 {
                assert_eq!(waiter.fruitless(sharing.is_likely()), Pause::Spin);
            }
            waiter.fruitful(&mut sharing);
        }
        assert_eq!(wait_on_a_shared_cpu(&mut sharing), FREE_POLLS + YIELD_EVERY);
    }

    #[test]
    fn a_hot_wait_among_many_stays_free_whatever_came_after_a_yield_once() {
        let mut sharing = alone();
        wait_on_a_shared_cpu(&mut sharing);
        let mut waiter = Waiter::new(Spin::Always);
        for _ in 1..FREE_POLLS {
            assert_eq!(waiter.fruitless(sharing.is_likely()), Pause::Spin);
        }
    }

    #[test]
    fn always_hot_never_sleeps_and_always_warm_sleeps_at_once() {
        let now = Instant::now();
        let mut hot = Waiter::new(Spin::Always);
        hot.looked(now, None, false);
        hot.looked(now + Duration::from_secs(100), None, false);
        assert_eq!(hot.sleep(), None);

        let mut warm = Waiter::new(Spin::Never);
        assert_eq!(warm.fruitless(false), Pause::Look);
        warm.looked(now, Some(now + Duration::from_millis(5)), false);
        assert_eq!(warm.sleep(), Some(Duration::from_millis(5)));
        assert_eq!(warm.sleep(), None);
        assert_eq!(warm.fruitless(false), Pause::Look);
    }

    #[test]
    fn a_spin_time_is_counted_from_the_last_find_and_then_sleeps() {
        let (now, ms) = (Instant::now(), Duration::from_millis(1));
        let mut waiter = Waiter::new(Spin::For(2 * ms));
        waiter.looked(now, None, false);
        waiter.looked(now + ms, None, false);
        assert_eq!(waiter.sleep(), None);
        waiter.fruitful(&mut alone());
        waiter.looked(now + 2 * ms, None, false);
        assert_eq!(waiter.sleep(), None);
        waiter.looked(now + 4 * ms, None, false);
        assert_eq!(waiter.sleep(), Some(LONGEST_SLEEP));
        assert_eq!(waiter.fruitless(false), Pause::Look);
    }

    #[test]
    fn awaited_news_makes_every_wait_a_nap() {
        let mut waiter = Waiter::new(Spin::Always);
        waiter.looked(Instant::now(), None, true);
        assert_eq!(waiter.sleep(), Some(NAP));
        assert_eq!(waiter.fruitless(false), Pause::Look);
    }
}
