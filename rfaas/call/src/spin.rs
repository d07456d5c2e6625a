//! The `hot_timeout` of configurations and messages: whether a thread that waits spins or sleeps.

use std::time::Duration;

/// How long a thread that waits, for work or for a result, spins before it sleeps.
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

#[cfg(test)]
mod tests {
    use super::*;

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
