//! Measured durations and their statistics.

use std::time::Duration;

use serde::Serialize;

/// Durations of one kind, in ns.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    each: Vec<u64>,
}

impl Samples {
    /// None yet; room for `expected`, so that recording them allocates nothing.
    pub fn with_capacity(expected: usize) -> Self {
        Samples { each: Vec::with_capacity(expected) }
    }

    /// Adds one.
    pub fn record(&mut self, sample: Duration) {
        self.each.push(u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Each of them in ns, in the order in which they were recorded.
    pub fn each(&self) -> &[u64] {
        &self.each
    }

    /// The sum of all.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.sum()).unwrap_or(u64::MAX))
    }

    fn sum(&self) -> u128 {
        self.each.iter().map(|ns| u128::from(*ns)).sum()
    }

    /// The statistics of all samples, exact; zeros if there are none. A percentile is the smallest sample that so many
    /// samples do not exceed.
    pub fn statistics(&self) -> Statistics<u64> {
        let mut sorted = self.each.clone();
        sorted.sort_unstable();
        let quantile = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        Statistics {
            min: quantile(0.0),
            mean: self.sum().checked_div(sorted.len() as u128).map_or(0, |mean| mean as u64),
            p50: quantile(0.50),
            p90: quantile(0.90),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: quantile(1.0),
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
    fn percentiles_are_exact() {
        let statistics = samples((1..=100_000).rev()).statistics();
        assert_eq!((statistics.min, statistics.mean, statistics.max), (1, 50_000, 100_000));
        assert_eq!(
            (statistics.p50, statistics.p90, statistics.p99, statistics.p999),
            (50_000, 90_000, 99_000, 99_900)
        );
    }

    #[test]
    fn a_single_sample_is_every_percentile() {
        let statistics = samples([12_345]).statistics();
        assert_eq!(statistics.columns(), [12_345; 7]);
        assert_eq!(statistics.microseconds().p50, 12.345);
    }

    #[test]
    fn no_samples_are_all_zero_and_a_zero_or_endless_one_is_no_panic() {
        assert_eq!(samples([]).statistics().columns(), [0; 7]);
        let statistics = samples([0, u64::MAX]).statistics();
        assert_eq!((statistics.min, statistics.max), (0, u64::MAX));
    }
}
