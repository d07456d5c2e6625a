//! How a thread passes the time between two polls of its completion queue. Pure: the thread itself polls, yields,
//! reads the clock and sleeps.
//!
//! ```text
//!   FREE_POLLS polls ──▶ look at the clock ──▶ polls, with a yield and a look now and then
//!   (hot: no clock)              └── the spinning time is over ──▶ sleep, poll, look, sleep …
//! ```
//! What is waited for usually comes in the first phase, in which this policy asks for no clock and no system call. (A
//! worker counts its own time, and reads the time-stamp counter for that.) Where two threads that wait for each other
//! share a CPU, it never comes then, since one spins on the CPU that the other needs: there the first phase is short
//! ([`Sharing`]).
//!
//! Callers that wait for results and workers that wait for requests use the same policy. They differ in one number
//! ([`Awaited`]).

use std::time::{Duration, Instant};

use crate::sharing::Sharing;

/// Fruitless polls before the first look at the clock: some 50 µs, an empty poll and the pause after it taking about
/// 25 ns. A hot round trip takes less than one microsecond on one machine, and some microseconds between two.
pub const FREE_POLLS: u32 = 2048;
/// Polls between two looks at the clock after that. [`FREE_POLLS`] is a multiple, so the first look comes right then.
const LOOK_EVERY: u32 = 1024;

/// How long a thread that waits, for work or for a result, spins before it sleeps: the `hot_timeout` of
/// configurations and messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spin {
    /// Spins always. It has the lowest latency, and takes a core for every worker and for every blocked caller.
    Always,
    /// Sleeps at once. It takes no time of a core while idle, and some microseconds more for each invocation.
    Never,
    /// Spins for this long after the last invocation, then sleeps. Workers round it up to whole milliseconds.
    For(Duration),
}

impl Spin {
    /// Reads a `hot_timeout`: −1 is always, 0 never, and a positive number milliseconds. Other negative numbers mean
    /// nothing.
    pub fn from_hot_timeout_ms(hot_timeout_ms: i64) -> Option<Spin> {
        match hot_timeout_ms {
            -1 => Some(Spin::Always),
            0 => Some(Spin::Never),
            ms => Some(Spin::For(Duration::from_millis(u64::try_from(ms).ok()?))),
        }
    }

    /// Returns the number that stands for it. Part of a millisecond counts as a whole one.
    pub fn hot_timeout_ms(self) -> i64 {
        match self {
            Spin::Always => -1,
            Spin::Never => 0,
            Spin::For(time) => {
                i64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
            }
        }
    }
}

/// What a thread waits for, which decides after how many polls it lets other threads run: where there are fewer cores
/// than threads that spin, the one that is waited for may have no core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// A result. Where CPUs are shared, the first yield comes after some 1.5 µs, in which most results come from
    /// another core.
    Result,
    /// A request. Polls between two yields take about as long as a yield does when nobody else wants the core.
    Request,
}

impl Awaited {
    #[inline]
    const fn yield_every(self) -> u32 {
        match self {
            Awaited::Result => 64,
            Awaited::Request => 32,
        }
    }
}

/// What to do after a poll that found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Poll again.
    Spin,
    /// Let other threads run, then poll again.
    Yield,
    /// Read the clock, tell [`Backoff::looked`], and sleep if that says so.
    Look,
}

/// The waits of one thread, one after another.
#[derive(Debug)]
pub struct Backoff {
    spin: Spin,
    awaited: Awaited,
    /// Polls since something was found.
    polls: u32,
    /// The first look at the clock since something was found.
    since: Option<Instant>,
}

impl Backoff {
    /// Begins with a wait of a thread that spins as `spin` says.
    pub fn new(spin: Spin, awaited: Awaited) -> Self {
        Backoff { spin, awaited, polls: 0, since: None }
    }

    /// A poll found nothing. Returns what to do next. `early`: yields are due from the start, as
    /// [`Sharing::is_likely`] says.
    #[inline]
    pub fn fruitless(&mut self, early: bool) -> Pause {
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
            n if n % self.awaited.yield_every() == 0 => Pause::Yield,
            _ => Pause::Spin,
        }
    }

    /// A poll found something: spinning starts anew. `early` as for [`fruitless`](Self::fruitless). `sharing` learns
    /// from it.
    #[inline]
    pub fn fruitful(&mut self, early: bool, sharing: &mut Sharing) {
        let free = if early { self.awaited.yield_every() } else { FREE_POLLS };
        if self.polls >= free {
            match self.after_free_polls() {
                Pause::Yield => sharing.yielded(),
                Pause::Spin => sharing.spun(),
                Pause::Look => {} // in place of a yield
            }
        } else if self.polls > 0 {
            sharing.spun();
        }
        self.polls = 0;
        self.since = None;
    }

    /// Notes that the clock was read: it is `now`. Returns whether the spinning time is over.
    pub fn looked(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        match self.spin {
            Spin::Always => false,
            Spin::Never => true,
            Spin::For(time) => now.saturating_duration_since(since) >= time,
        }
    }

    /// The thread is about to sleep: it is to look at the clock after the next poll that finds nothing.
    pub fn about_to_sleep(&mut self) {
        self.polls = FREE_POLLS - 1;
    }

    /// Returns whether a thread sleeps without spinning first.
    #[inline]
    pub fn never_spins(&self) -> bool {
        self.spin == Spin::Never || self.spin == Spin::For(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls between two yields of a caller.
    const EVERY: u32 = Awaited::Result.yield_every();

    /// Caller and worker each have a CPU.
    fn alone() -> Sharing {
        Sharing::default()
    }

    /// Returns what `n` polls that find nothing lead to: looks, yields.
    fn polls(waits: &mut Backoff, n: u32) -> (u32, u32) {
        let mut counts = (0, 0);
        for _ in 0..n {
            match waits.fruitless(false) {
                Pause::Look => counts.0 += 1,
                Pause::Yield => counts.1 += 1,
                Pause::Spin => {}
            }
        }
        counts
    }

    #[test]
    fn a_hot_wait_reads_no_clock_and_yields_to_nobody_at_first() {
        let mut waits = Backoff::new(Spin::Always, Awaited::Result);
        assert_eq!(polls(&mut waits, FREE_POLLS - 1), (0, 0));
        assert_eq!(waits.fruitless(false), Pause::Look);
    }

    #[test]
    fn a_long_spin_yields_and_looks_at_the_clock_now_and_then() {
        let mut waits = Backoff::new(Spin::Always, Awaited::Result);
        polls(&mut waits, FREE_POLLS);
        let (looks, yields) = polls(&mut waits, 8 * LOOK_EVERY);
        assert_eq!((looks, yields), (8, 8 * (LOOK_EVERY / EVERY - 1)));
    }

    /// Polls until a result is there, which on a shared CPU is after a yield. Returns how many found nothing.
    fn wait_on_a_shared_cpu(sharing: &mut Sharing) -> u32 {
        let mut waits = Backoff::new(Spin::Always, Awaited::Result);
        let polls =
            1 + (0..).take_while(|_| waits.fruitless(sharing.is_likely()) != Pause::Yield).count();
        waits.fruitful(sharing.is_likely(), sharing);
        polls as u32
    }

    #[test]
    fn waits_that_only_a_yield_ends_yield_soon_and_those_that_spinning_ends_do_not() {
        let mut sharing = alone();
        assert_eq!(wait_on_a_shared_cpu(&mut sharing), FREE_POLLS + EVERY);
        let polls: Vec<u32> = (0..1_000).map(|_| wait_on_a_shared_cpu(&mut sharing)).collect();
        let soon = polls.iter().filter(|polls| **polls == EVERY).count();
        assert!(soon > 900, "{soon} of 1,000 waits");

        // The worker has got a CPU of its own.
        for _ in 0..100 {
            let mut waits = Backoff::new(Spin::Always, Awaited::Result);
            for _ in 0..EVERY / 2 {
                assert_eq!(waits.fruitless(sharing.is_likely()), Pause::Spin);
            }
            waits.fruitful(sharing.is_likely(), &mut sharing);
        }
        assert_eq!(wait_on_a_shared_cpu(&mut sharing), FREE_POLLS + EVERY);
    }

    #[test]
    fn what_comes_right_after_a_look_at_the_clock_teaches_nothing() {
        let mut sharing = alone();
        while !sharing.is_likely() {
            wait_on_a_shared_cpu(&mut sharing);
        }
        let mut waits = Backoff::new(Spin::Always, Awaited::Result);
        while waits.fruitless(true) != Pause::Look {}
        waits.fruitful(true, &mut sharing);
        assert!(sharing.is_likely());
    }

    #[test]
    fn a_hot_wait_among_many_stays_free_whatever_came_after_a_yield_once() {
        let mut sharing = alone();
        wait_on_a_shared_cpu(&mut sharing);
        let mut waits = Backoff::new(Spin::Always, Awaited::Result);
        for _ in 1..FREE_POLLS {
            assert_eq!(waits.fruitless(sharing.is_likely()), Pause::Spin);
        }
    }

    #[test]
    fn always_hot_never_sleeps_and_always_warm_sleeps_at_once() {
        let now = Instant::now();
        let mut hot = Backoff::new(Spin::Always, Awaited::Result);
        assert!(!hot.looked(now));
        assert!(!hot.looked(now + Duration::from_secs(100)));

        let mut warm = Backoff::new(Spin::Never, Awaited::Result);
        assert_eq!(warm.fruitless(false), Pause::Look);
        assert!(warm.looked(now));
        assert_eq!(warm.fruitless(false), Pause::Look);
    }

    #[test]
    fn a_spin_time_is_counted_from_the_last_find_and_then_over() {
        let (now, ms) = (Instant::now(), Duration::from_millis(1));
        let mut waits = Backoff::new(Spin::For(2 * ms), Awaited::Result);
        assert!(!waits.looked(now));
        assert!(!waits.looked(now + ms));
        waits.fruitful(false, &mut alone());
        assert!(!waits.looked(now + 2 * ms));
        assert!(waits.looked(now + 4 * ms));
        waits.about_to_sleep();
        assert_eq!(waits.fruitless(false), Pause::Look);
    }

    #[test]
    fn a_worker_yields_twice_as_often_as_a_caller_and_looks_as_often() {
        for awaited in [Awaited::Result, Awaited::Request] {
            let mut waits = Backoff::new(Spin::Always, awaited);
            polls(&mut waits, FREE_POLLS);
            let expected = (1, LOOK_EVERY / awaited.yield_every() - 1);
            assert_eq!(polls(&mut waits, LOOK_EVERY), expected);
        }
    }

    #[test]
    fn a_hot_timeout_is_in_milliseconds_and_keeps_its_two_special_values() {
        assert_eq!(Spin::from_hot_timeout_ms(-1), Some(Spin::Always));
        assert_eq!(Spin::from_hot_timeout_ms(0), Some(Spin::Never));
        assert_eq!(Spin::from_hot_timeout_ms(40_000), Some(Spin::For(Duration::from_secs(40))));
        assert_eq!(Spin::from_hot_timeout_ms(-2), None);
        for ms in [-1, 0, 1, 40_000, i64::MAX] {
            assert_eq!(Spin::from_hot_timeout_ms(ms).map(Spin::hot_timeout_ms), Some(ms));
        }
        assert_eq!(Spin::For(Duration::from_micros(1)).hot_timeout_ms(), 1);
    }
}
