//! Whether two threads that spin for each other share a CPU, learned from how their waits end. Pure.
//!
//! A thread that spins keeps the CPU from the other one, which could end the wait. Then what is
//! waited for is there after a yield, and never while spinning: each wait costs the time that is
//! spun before the first yield, dozens of times what a call takes. A thread that notices that
//! yields earlier. Where each thread has a CPU of its own, most waits end while spinning, and a
//! yield that no thread takes is short.

/// How many waits that ended with a yield make it likely. Chance does not bring so many where a yield takes half of the
/// time between two polls.
const LIKELY: u32 = 32;
/// How many are remembered, so that a few waits that end otherwise (the scheduler took the CPU away while one was
/// spinning) do not change it.
const REMEMBERED: u32 = 2 * LIKELY;
/// What one wait that ended while spinning counts.
const SPUN_COUNTS: u32 = 8;
/// One of so many waits does not yield early. If it ends while spinning, what was learned was wrong, or is over.
const TRY_EVERY: u32 = 256;

/// What one side has learned. Where nothing is shared it costs a comparison a wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sharing {
    /// How much evidence there is, at most [`REMEMBERED`].
    score: u32,
    /// Waits since it became likely.
    waits: u32,
}

impl Sharing {
    /// Returns whether to yield early in the wait that begins now.
    #[inline]
    pub fn is_likely(&self) -> bool {
        self.score >= LIKELY && !self.tries()
    }

    /// Returns whether this wait is to find out whether spinning would do.
    fn tries(&self) -> bool {
        self.waits % TRY_EVERY == TRY_EVERY - 1
    }

    /// Notes that what was waited for came while spinning.
    #[inline]
    pub fn spun(&mut self) {
        if self.score > 0 {
            self.doubt();
        }
    }

    #[cold]
    fn doubt(&mut self) {
        let was_tried = self.score >= LIKELY && self.tries();
        self.score = if was_tried { 0 } else { self.score.saturating_sub(SPUN_COUNTS) };
        self.count();
    }

    /// Notes that what was waited for was there at the first poll after a yield.
    #[cold]
    pub fn yielded(&mut self) {
        self.score = (self.score + 1).min(REMEMBERED);
        self.count();
    }

    fn count(&mut self) {
        self.waits = if self.score >= LIKELY { self.waits.wrapping_add(1) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Sharing {
        let mut sharing = Sharing::default();
        (0..REMEMBERED).for_each(|_| sharing.yielded());
        sharing
    }

    #[test]
    fn it_is_likely_when_only_yields_end_waits() {
        let mut sharing = Sharing::default();
        for _ in 0..LIKELY {
            assert!(!sharing.is_likely());
            sharing.yielded();
        }
        assert!(sharing.is_likely());
    }

    #[test]
    fn waits_that_end_one_way_or_the_other_by_chance_say_nothing() {
        let mut sharing = Sharing::default();
        for n in 0..10_000u32 {
            // Three of four, more than where nobody takes the CPU.
            if n % 4 == 0 {
                sharing.spun()
            } else {
                sharing.yielded()
            }
            assert!(!sharing.is_likely());
        }
    }

    #[test]
    fn a_spin_that_was_cut_short_by_the_scheduler_changes_nothing() {
        let mut sharing = shared();
        for _ in 0..20 {
            sharing.spun();
            assert!(sharing.is_likely() || sharing.tries());
            (0..SPUN_COUNTS).for_each(|_| sharing.yielded());
        }
    }

    #[test]
    fn it_is_over_when_waits_end_while_spinning() {
        let mut sharing = shared();
        (0..LIKELY / SPUN_COUNTS + 1).for_each(|_| sharing.spun());
        assert!(!sharing.is_likely());
    }

    #[test]
    fn a_try_now_and_then_ends_what_every_early_yield_confirms() {
        let mut sharing = shared();
        let mut waits = 0;
        // Each result comes a moment after the early yield: a little more spinning would have done.
        while sharing.score > 0 {
            if sharing.is_likely() {
                sharing.yielded()
            } else {
                sharing.spun()
            }
            waits += 1;
            assert!(waits <= TRY_EVERY);
        }
        let mut sharing = shared();
        let tries = (0..10 * TRY_EVERY).filter(|_| {
            let tries = !sharing.is_likely();
            sharing.yielded(); // spinning does not help
            tries
        });
        assert_eq!(tries.count(), 10);
    }
}
