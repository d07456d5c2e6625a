//! Measured durations, and what is told of them.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// What the histogram tells apart, in ns. A longer sample counts as a minute, except as the maximum.
const RANGE_NS: (u64, u64) = (1, 60_000_000_000);
/// Significant digits of a percentile: an error of at most one in a thousand.
const DIGITS: u8 = 3;

/// Durations of one kind, in ns.
#[derive(Clone, Debug)]
pub struct Samples {
    histogram: Histogram<u64>,
    sum: u128,
    min: u64,
    max: u64,
    each: Vec<u64>,
}

impl Samples {
    /// None yet; room for `expected`, so that recording them allocates nothing.
    pub fn with_capacity(expected: usize) -> Self {
        let histogram = Histogram::new_with_bounds(RANGE_NS.0, RANGE_NS.1, DIGITS)
            .expect("the bounds are valid: low is at least 1, high at least twice that");
        Samples { histogram, sum: 0, min: u64::MAX, max: 0, each: Vec::with_capacity(expected) }
    }

    /// Adds one.
    pub fn record(&mut self, sample: Duration) {
        let ns = u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX);
        self.histogram.saturating_record(ns.max(RANGE_NS.0));
        self.sum += u128::from(ns);
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
        self.each.push(ns);
    }

    /// Each of them in ns, in the order in which they were recorded.
    pub fn each(&self) -> &[u64] {
        &self.each
    }

    /// The sum of all.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.sum).unwrap_or(u64::MAX))
    }

    /// What is told of them; zeros if there are none. Minimum, mean and maximum are exact.
    pub fn statistics(&self) -> Statistics<u64> {
        let count = self.each.len() as u128;
        let quantile =
            |q| self.histogram.value_at_quantile(q).clamp(self.min.min(self.max), self.max);
        Statistics {
            min: self.min.min(self.max),
            mean: self.sum.checked_div(count).map_or(0, |mean| mean as u64),
            p50: quantile(0.50),
            p90: quantile(0.90),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: self.max,
        }
    }
}

/// A distribution in seven numbers, all of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Statistics<T> {
    /// Smallest.
    pub min: T,
    /// Arithmetic mean.
    pub mean: T,
    /// Median.
    pub p50: T,
    /// 90th percentile.
    pub p90: T,
    /// 99th percentile.
    pub p99: T,
    /// 99.9th percentile.
    pub p999: T,
    /// Largest.
    pub max: T,
}

impl Statistics<u64> {
    /// Nanoseconds as microseconds.
    pub fn microseconds(&self) -> Statistics<f64> {
        let us = |ns: u64| ns as f64 / 1000.0;
        Statistics {
            min: us(self.min),
            mean: us(self.mean),
            p50: us(self.p50),
            p90: us(self.p90),
            p99: us(self.p99),
            p999: us(self.p999),
            max: us(self.max),
        }
    }

    /// The numbers in order, for a table.
    pub fn columns(&self) -> [u64; 7] {
        [self.min, self.mean, self.p50, self.p90, self.p99, self.p999, self.max]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: impl IntoIterator<Item = u64>) -> Samples {
        let mut samples = Samples::with_capacity(0);
        of.into_iter().for_each(|ns| samples.record(Duration::from_nanos(ns)));
        samples
    }

    #[test]
    fn percentiles_are_right_to_a_thousandth() {
        let told = samples(1..=100_000).statistics();
        assert_eq!((told.min, told.mean, told.max), (1, 50_000, 100_000));
        for (value, expected) in
            [(told.p50, 50_000), (told.p90, 90_000), (told.p99, 99_000), (told.p999, 99_900)]
        {
            assert!(u64::abs_diff(value, expected) <= expected / 1000 + 1, "{value} {expected}");
        }
    }

    #[test]
    fn a_single_sample_is_every_percentile() {
        let told = samples([12_345]).statistics();
        assert_eq!(told.columns(), [12_345; 7]);
        assert_eq!(told.microseconds().p50, 12.345);
    }

    #[test]
    fn no_samples_are_all_zero_and_a_zero_or_endless_one_is_no_panic() {
        assert_eq!(samples([]).statistics().columns(), [0; 7]);
        let told = samples([0, u64::MAX]).statistics();
        assert_eq!((told.min, told.max), (0, u64::MAX));
    }
}
