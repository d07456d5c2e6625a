//! What a worker's time is: spinning without work, or in a function. Pure.
//!
//! ```text
//!   mark ─────▶ polled(now) ─────▶ executed(now) ─────▶ … ─────▶ slept(now)
//!        hot polling         execution             hot polling     counts as nothing
//! ```
//! Two clock readings an invocation, at the start and at the end of the function, divide all of the
//! time between them: what lies between the end of one and the start of the next was polling,
//! unless the worker says that it slept.

/// What was used so far; times in ns. Only grows, and stops at `u64::MAX` (584 years).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Spinning without work.
    pub hot_polling_ns: u64,
    /// In functions.
    pub execution_ns: u64,
    /// Functions called.
    pub invocations: u64,
}

impl Totals {
    /// What was used since `earlier`; nothing where `earlier` is ahead.
    #[must_use]
    pub fn since(&self, earlier: &Totals) -> Totals {
        Totals {
            hot_polling_ns: self.hot_polling_ns.saturating_sub(earlier.hot_polling_ns),
            execution_ns: self.execution_ns.saturating_sub(earlier.execution_ns),
            invocations: self.invocations.saturating_sub(earlier.invocations),
        }
    }
}

/// The meter of one worker.
#[derive(Debug)]
pub struct Meter {
    totals: Totals,
    /// Until when everything is counted.
    mark_ns: u64,
}

impl Meter {
    /// Starts at `now_ns`.
    pub fn new(now_ns: u64) -> Self {
        Meter { totals: Totals::default(), mark_ns: now_ns }
    }

    /// What was used until the last call of any of the methods below.
    #[inline]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// When that call was: until when everything is counted.
    #[inline]
    pub fn counted_until_ns(&self) -> u64 {
        self.mark_ns
    }

    /// The worker polled until `now_ns`.
    #[inline]
    pub fn polled(&mut self, now_ns: u64) {
        let ns = self.advance(now_ns);
        self.totals.hot_polling_ns = self.totals.hot_polling_ns.saturating_add(ns);
    }

    /// A function ran until `now_ns`, from the moment that the worker [polled](Self::polled) to.
    #[inline]
    pub fn executed(&mut self, now_ns: u64) {
        let ns = self.advance(now_ns);
        self.totals.execution_ns = self.totals.execution_ns.saturating_add(ns);
        self.totals.invocations = self.totals.invocations.saturating_add(1);
    }

    /// The worker slept until `now_ns`.
    pub fn slept(&mut self, now_ns: u64) {
        self.advance(now_ns);
    }

    #[inline]
    fn advance(&mut self, now_ns: u64) -> u64 {
        let ns = now_ns.saturating_sub(self.mark_ns);
        self.mark_ns = now_ns.max(self.mark_ns);
        ns
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
        meter.executed(1_500);
        meter.polled(1_505);
        meter.slept(1_000_000);
        meter.polled(1_000_001);
        meter.executed(1_000_101);
        let used = Totals { hot_polling_ns: 10 + 5 + 1, execution_ns: 490 + 100, invocations: 2 };
        assert_eq!(meter.totals(), used);
    }

    #[test]
    fn an_hour_in_a_function_is_an_hour() {
        const HOUR_NS: u64 = 3_600_000_000_000; // more than 32 bits hold
        let mut meter = Meter::new(0);
        meter.executed(HOUR_NS);
        meter.polled(2 * HOUR_NS);
        assert_eq!(meter.totals().execution_ns, HOUR_NS);
        assert_eq!(meter.totals().hot_polling_ns, HOUR_NS);
    }

    #[test]
    fn totals_stop_at_the_largest_number_instead_of_wrapping() {
        let nearly = Totals { execution_ns: u64::MAX - 1, ..Totals::default() };
        let mut meter = Meter { totals: nearly, mark_ns: 0 };
        meter.executed(1_000);
        assert_eq!(meter.totals().execution_ns, u64::MAX);
    }

    proptest! {
        #[test]
        fn all_time_is_counted_once(steps in prop::collection::vec((0u8..3, 0u64..1_000_000), 0..200)) {
            let (mut now, mut slept, mut called) = (17, 0, 0);
            let mut meter = Meter::new(now);
            let start = now;
            for (kind, ns) in steps {
                now += ns;
                match kind {
                    0 => meter.polled(now),
                    1 => { called += 1; meter.executed(now) }
                    _ => { slept += ns; meter.slept(now) }
                }
            }
            let totals = meter.totals();
            prop_assert_eq!(totals.hot_polling_ns + totals.execution_ns + slept, now - start);
            prop_assert_eq!(totals.invocations, called);
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
