//! The resource manager's clock, by which leases end, as this node knows it: the two need not agree.
//!
//! It is what the resource manager said last and the time since then, which a clock measures that nobody sets. So
//! neither a clock that is wrong nor one that is set matters here, however far it is off. What it said is older by
//! its way here; leases so end later rather than earlier, and the resource manager sees to their end too.

use std::time::{Instant, SystemTime};

use rfaas_protocol::{Clock, ClockWatch};

/// What the resource manager said last.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterClock {
    heard: Option<(Instant, SystemTime)>,
    watch: ClockWatch,
}

impl ClusterClock {
    /// It says `clock`, at `now`; `ours` is what this node's clock says.
    pub fn set(&mut self, now: Instant, ours: SystemTime, clock: Clock) {
        self.heard = Some((now, clock.time()));
        let ahead = Clock::from(ours).ahead_of(clock.time());
        if self.watch.is_to_be_told(now, ahead) {
            // Whole seconds: the message was under way for a part of one.
            let (seconds, which) =
                (ahead.unsigned_abs() / 1000, if ahead > 0 { "ahead of" } else { "behind" });
            tracing::warn!(
                "the clock of this node is {seconds} s {which} the resource manager's: corrected for, but set it right"
            );
        }
    }

    /// What it says now; ours, if it was never heard.
    pub fn now(&self, now: Instant) -> SystemTime {
        let since = |heard: Instant| now.saturating_duration_since(heard);
        let now = self.heard.map(|(at, clock)| clock + since(at));
        now.unwrap_or_else(SystemTime::now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_goes_on_from_what_was_said_last_whatever_our_clock_says() {
        let (start, said) = (Instant::now(), Clock { ms: 1_000_000.into() });
        let mut clock = ClusterClock::default();
        let wrong = SystemTime::UNIX_EPOCH + Duration::from_secs(7_200_000);
        clock.set(start, wrong, said);
        let later = start + Duration::from_secs(5);
        assert_eq!(clock.now(later), said.time() + Duration::from_secs(5));
        clock.set(later, said.time() + Duration::from_secs(5), Clock { ms: 1_005_001.into() });
        assert_eq!(clock.now(later), said.time() + Duration::from_millis(5_001));
    }
}
