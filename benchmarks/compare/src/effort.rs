//! How often something is measured: until there are enough samples, or enough time has gone.

use std::time::Duration;

/// How long and how often one cell of the table is measured in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Samples that are enough.
    pub most: u32,
    /// Samples that are needed, however long they take.
    pub least: u32,
    /// Time that is enough, with the time of warming up.
    pub time: Duration,
}

impl Effort {
    /// For figures. A run of all contenders takes well under a minute.
    pub const FULL: Effort = Effort { most: 300_000, least: 20, time: Duration::from_millis(250) };
    /// To see that everything runs.
    pub const QUICK: Effort = Effort { most: 200, least: 3, time: Duration::from_millis(10) };

    /// What of it warms up.
    pub fn warm_up(self) -> Effort {
        Effort { most: self.most / 10, least: 2, time: self.time / 5 }
    }

    /// Whether `done` samples in `spent` are enough.
    #[inline]
    pub fn is_over(self, done: u32, spent: Duration) -> bool {
        done >= self.most || (done >= self.least && spent >= self.time)
    }

    /// Round trips of `payload` bytes for a program that must know the number before: as many as fit into the
    /// time if each takes a microsecond and its bytes are copied four times at 4 GB/s.
    pub fn planned(self, payload: u32) -> u32 {
        let each = Duration::from_nanos(1000 + u64::from(payload));
        let fit = self.time.as_nanos() / each.as_nanos();
        u32::try_from(fit).unwrap_or(u32::MAX).clamp(self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_payloads_are_sent_less_often_but_never_too_few() {
        let effort = Effort::FULL;
        assert_eq!(effort.planned(16 << 20), effort.least);
        assert!(effort.planned(1) > effort.planned(4096));
        assert!(effort.planned(1) <= effort.most);
    }

    #[test]
    fn enough_samples_end_it_at_once_and_too_few_never() {
        let effort = Effort::QUICK;
        assert!(effort.is_over(effort.most, Duration::ZERO));
        assert!(!effort.is_over(effort.least - 1, effort.time * 100));
        assert!(effort.is_over(effort.least, effort.time));
    }
}
