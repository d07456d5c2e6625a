//! What a worker's time is: spinning without work, or on an invocation. Pure.
//!
//! ```text
//!   mark ─────▶ polled(now) ─────▶ executed(now) ─────▶ … ─────▶ slept(now)
//!        hot polling         execution             hot polling     counts as nothing
//! ```
//! Time is counted in ticks (`clock`). The marks are set where they cost an invocation nothing: one is the
//! last poll that found no work, the other follows the reply. So execution is what an invocation takes from
//! being found until it is answered, and what lies between the end of one and the next is polling, unless the
//! worker says that it slept.

use crate::clock::ns_of;

/// What was used so far; times in ns. Only grows, and stops at `u64::MAX` (584 years).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Spinning without work.
    pub hot_polling_ns: u64,
    /// On invocations, each from being found until it is answered.
    pub execution_ns: u64,
    /// Functions called.
    pub invocations: u64,
}

impl Totals {
    /// Returns what was used since `earlier`; nothing where `earlier` is ahead.
    #[must_use]
    pub fn since(&self, earlier: &Totals) -> Totals {
        Totals {
            hot_polling_ns: self.hot_polling_ns.saturating_sub(earlier.hot_polling_ns),
            execution_ns: self.execution_ns.saturating_sub(earlier.execution_ns),
            invocations: self.invocations.saturating_sub(earlier.invocations),
        }
    }
}

/// The same in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Spinning without work.
    pub hot_polling: u64,
    /// On invocations, each from being found until it is answered.
    pub execution: u64,
    /// Functions called.
    pub invocations: u64,
}

impl Used {
    /// In nanoseconds, as long as ticks are by what is known now: a later answer for the same ticks may be
    /// some millionths less.
    pub fn totals(&self) -> Totals {
        Totals {
            hot_polling_ns: ns_of(self.hot_polling),
            execution_ns: ns_of(self.execution),
            invocations: self.invocations,
        }
    }
}

/// The meter of one worker.
#[derive(Debug)]
pub struct Meter {
    used: Used,
    /// Until when everything is counted, in ticks.
    mark: u64,
}

impl Meter {
    /// Starts at `now`.
    pub fn new(now: u64) -> Self {
        Meter { used: Used::default(), mark: now }
    }

    /// Returns what was used until the mark.
    #[inline]
    pub fn used(&self) -> &Used {
        &self.used
    }

    /// Until when everything is counted.
    #[inline]
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// The worker polled until `now`, unless more is counted already.
    #[inline]
    pub fn polled(&mut self, now: u64) {
        self.used.hot_polling += self.advance(now);
    }

    /// A function was called.
    #[inline]
    pub fn called(&mut self) {
        self.used.invocations += 1;
    }

    /// The worker was busy with an invocation until `now`.
    #[inline]
    pub fn executed(&mut self, now: u64) {
        self.used.execution += self.advance(now);
    }

    /// The worker slept until `now`.
    pub fn slept(&mut self, now: u64) {
        self.advance(now);
    }

    /// Ticks never add up to more than have passed, so no sum of them overflows.
    #[inline]
    fn advance(&mut self, now: u64) -> u64 {
        let passed = now.saturating_sub(self.mark);
        self.mark += passed;
        passed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sleep_counts_as_neither_polling_nor_execution() {
        let mut meter = Meter::new(1_000);
        meter.polled(1_010);
        meter.called();
        meter.executed(1_500);
        meter.polled(1_505);
        meter.slept(1_000_000);
        meter.polled(1_000_001);
        meter.called();
        meter.executed(1_000_101);
        let used = Used { hot_polling: 10 + 5 + 1, execution: 490 + 100, invocations: 2 };
        assert_eq!(*meter.used(), used);
    }

    #[test]
    fn an_hour_in_a_function_is_an_hour() {
        const HOUR: u64 = 3_600_000_000_000; // in nanoseconds, more than 32 bits hold
        let mut meter = Meter::new(0);
        meter.executed(HOUR);
        meter.polled(2 * HOUR);
        assert_eq!(*meter.used(), Used { hot_polling: HOUR, execution: HOUR, invocations: 0 });
    }

    #[test]
    fn a_poll_before_the_last_reply_counts_nothing() {
        let mut meter = Meter::new(0);
        meter.polled(10);
        meter.executed(30);
        meter.polled(10); // the next invocation came with the last one
        meter.executed(40);
        assert_eq!(*meter.used(), Used { hot_polling: 10, execution: 30, invocations: 0 });
    }

    proptest! {
        #[test]
        fn all_time_is_counted_once(steps in prop::collection::vec((0u8..3, 0u64..1_000_000), 0..200)) {
            let (mut now, mut slept, mut called) = (17, 0, 0);
            let mut meter = Meter::new(now);
            let start = now;
            for (kind, ticks) in steps {
                now += ticks;
                match kind {
                    0 => meter.polled(now),
                    1 => { called += 1; meter.called(); meter.executed(now) }
                    _ => { slept += ticks; meter.slept(now) }
                }
            }
            let used = meter.used();
            prop_assert_eq!(used.hot_polling + used.execution + slept, now - start);
            prop_assert_eq!(used.invocations, called);
        }

        #[test]
        fn what_was_used_since_adds_up(now in any::<(u32, u32, u32)>(), then in any::<(u32, u32, u32)>()) {
            let totals = |(a, b, c): (u32, u32, u32)| Totals {
                hot_polling_ns: a.into(), execution_ns: b.into(), invocations: c.into(),
            };
            let (now, then) = (totals(now), totals(then));
            let since = now.since(&then);
            prop_assert_eq!(then.execution_ns + since.execution_ns, now.execution_ns.max(then.execution_ns));
            prop_assert_eq!(now.since(&now), Totals::default());
        }
    }
}
