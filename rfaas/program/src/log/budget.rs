//! So much at once, and so much a second on and on. Pure.

use std::time::{Duration, Instant};

const NANOS: u128 = 1_000_000_000;

/// What may be said, in lines or bytes: some of it at once, and time gives back what was used.
#[derive(Debug)]
pub struct Budget {
    left: u32,
    most: u32,
    per_second: u32,
    /// When `left` was right.
    filled: Instant,
}

impl Budget {
    /// Makes a budget of `most` at once, and `per_second`, which is not 0, on and on.
    pub fn new(now: Instant, most: u32, per_second: u32) -> Self {
        Budget { left: most, most, per_second, filled: now }
    }

    /// Returns what is left at `now`.
    pub fn left(&mut self, now: Instant) -> u32 {
        let rate = u128::from(self.per_second);
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        let earned = elapsed.saturating_mul(rate) / NANOS;
        let missing = self.most - self.left;
        if earned >= missing.into() {
            (self.left, self.filled) = (self.most, self.filled.max(now));
        } else if earned > 0 {
            self.left += earned as u32; // less than is missing, just checked
            // The rest of the time counts for the next one. This part is no more than `elapsed`, so it fits.
            self.filled += Duration::from_nanos((earned * NANOS / rate) as u64);
        }
        self.left
    }

    /// Returns whether all of it is left at `now`.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.left(now) == self.most
    }

    /// Returns whether at most a tenth of it is used at `now`.
    pub fn is_quiet(&mut self, now: Instant) -> bool {
        self.left(now) >= self.most / 10 * 9
    }

    /// Takes `amount` out of it if there is as much beside `kept`; whether there is.
    pub fn take(&mut self, now: Instant, amount: u32, kept: u32) -> bool {
        let left = self.left(now).checked_sub(amount).filter(|left| *left >= kept);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_gives_back_all_that_it_is_to_however_often_it_is_looked_at() {
        for per_second in [1, 3, 20, 1000, 32_000] {
            let start = Instant::now();
            let mut budget = Budget::new(start, 100_000, per_second);
            assert!(budget.take(start, 100_000, 0));
            for look in 0..=1499 {
                budget.left(start + Duration::from_micros(667) * look); // no multiple of anything
            }
            assert_eq!(budget.left(start + Duration::from_secs(1)), per_second);
        }
    }

    #[test]
    fn there_is_no_more_than_all_of_it() {
        let start = Instant::now();
        let mut budget = Budget::new(start, 10, 20);
        let later = start + Duration::from_secs(1 << 30);
        assert_eq!(budget.left(later), 10);
        assert!(!budget.take(later, 8, 3) && budget.take(later, 8, 2));
        assert!(!budget.is_quiet(later));
        assert_eq!(budget.left(start), 2, "a time before");
        assert!(budget.is_full(later + Duration::from_secs(1)));
    }
}
