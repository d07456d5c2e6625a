//! What was measured, run by run, and its medians.
//!
//! A ratio has both of its figures from the same run. Of figures and ratios the median of all runs is printed, and how
//! far they lie apart.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use crate::contender::{Contender, Id, Kind, Round};

/// One figure over all runs that have it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Median of the runs.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Each, in the order of the runs.
    pub runs: Vec<f64>,
}

impl Spread {
    /// Of the figure of each run; `None` without any. The median of an even number is the mean of both in the middle.
    pub fn of(runs: impl IntoIterator<Item = f64>) -> Option<Self> {
        let runs: Vec<f64> = runs.into_iter().filter(|figure| figure.is_finite()).collect();
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Spread { median: f64::midpoint(low, high), min, max, runs })
    }
}

/// A contender and its rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its identity.
    pub id: Id,
    /// What it is.
    pub kind: Kind,
    /// As tables and plots call it.
    pub name: String,
    /// Its device, if it is there once per device.
    pub device: Option<String>,
    /// How it was set up.
    pub settings: String,
    /// Why it, or the rest of it, was not run.
    pub not_run: Option<String>,
    /// By payload in bytes.
    #[serde(serialize_with = "as_list")]
    pub cells: BTreeMap<u32, Cell>,
}

/// A payload of a contender: a round each run.
#[derive(Clone, Debug, Default)]
pub struct Cell(pub Vec<Round>);

impl Cell {
    /// Median round trip in ns.
    pub fn p50(&self) -> Option<Spread> {
        Spread::of(self.0.iter().map(|round| round.p50))
    }

    /// 99th percentile in ns, if every run has it: medians of fewer would not fit beside the others.
    pub fn p99(&self) -> Option<Spread> {
        Spread::of(self.0.iter().map(|round| round.p99).collect::<Option<Vec<_>>>()?)
    }

    /// 99.9th percentile in ns, if it has one.
    pub fn p999(&self) -> Option<Spread> {
        Spread::of(self.0.iter().map(|round| round.p999).collect::<Option<Vec<_>>>()?)
    }

    /// Whether the p50 is a mean.
    pub fn is_mean(&self) -> bool {
        self.0.iter().any(|round| round.is_mean)
    }
}

/// Cells as they are written.
fn as_list<S: Serializer>(cells: &BTreeMap<u32, Cell>, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown {
        payload_bytes: u32,
        repetitions: u64,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        p50_is_mean: bool,
        p50_ns: Option<Spread>,
        p99_ns: Option<Spread>,
        p999_ns: Option<Spread>,
    }
    let mut list = to.serialize_seq(Some(cells.len()))?;
    for (&payload_bytes, cell) in cells {
        list.serialize_element(&Shown {
            payload_bytes,
            repetitions: cell.0.iter().map(|round| round.repetitions).sum(),
            p50_is_mean: cell.is_mean(),
            p50_ns: cell.p50(),
            p99_ns: cell.p99(),
            p999_ns: cell.p999(),
        })?;
    }
    list.end()
}

impl Row {
    /// An empty one.
    pub fn of(contender: &dyn Contender) -> Self {
        let id = contender.id();
        let device = contender.device().map(str::to_owned);
        Row {
            id,
            kind: id.kind(),
            name: match &device {
                Some(device) => format!("{id}, {device}"),
                None => id.to_string(),
            },
            device,
            settings: contender.settings(),
            not_run: None,
            cells: BTreeMap::new(),
        }
    }
}

/// Something per second on a device, by a number: of invocations in flight, of workers, of bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Rates {
    /// The device.
    pub device: String,
    /// Why it was not run.
    pub not_run: Option<String>,
    /// What was measured in each run.
    #[serde(serialize_with = "as_rates")]
    pub by: BTreeMap<u32, Vec<f64>>,
}

impl Rates {
    /// None yet.
    pub fn on(device: &str) -> Self {
        Rates { device: device.to_owned(), not_run: None, by: BTreeMap::new() }
    }
}

fn as_rates<S: Serializer>(by: &BTreeMap<u32, Vec<f64>>, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown {
        number: u32,
        per_second: Option<Spread>,
    }
    let mut list = to.serialize_seq(Some(by.len()))?;
    for (&number, runs) in by {
        list.serialize_element(&Shown { number, per_second: Spread::of(runs.clone()) })?;
    }
    list.end()
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Contenders, in the order of the table.
    pub rows: Vec<Row>,
    /// By invocations in flight, one worker.
    pub in_flight: Vec<Rates>,
    /// By workers.
    pub scaling: Vec<Rates>,
    /// Bytes per second of `ib_write_bw`, by bytes of a message.
    pub bandwidth: Vec<Rates>,
}

impl Results {
    /// The row of `id`, on `device` if it is there once per device.
    pub fn row(&self, id: Id, device: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.id == id && row.device.as_deref().is_none_or(|has| has == device))
    }

    /// The round of `id` with `payload` bytes in run `run`.
    pub fn round(&self, id: Id, device: &str, payload: u32, run: usize) -> Option<&Round> {
        self.row(id, device)?.cells.get(&payload)?.0.get(run)
    }

    /// How many runs there were.
    pub fn runs(&self) -> usize {
        let cells = self.rows.iter().flat_map(|row| row.cells.values());
        cells.map(|cell| cell.0.len()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_the_spread_around_it() {
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(odd.runs, [3.0, 1.0, 2.0]);
        let even = Spread::of([4.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((even.median, even.min, even.max), (3.0, 1.0, 10.0));
        assert_eq!(Spread::of([7.0]).unwrap().median, 7.0);
    }

    #[test]
    fn without_figures_there_is_no_median_and_what_is_no_number_is_none() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN, f64::INFINITY]), None);
        assert_eq!(Spread::of([f64::NAN, 5.0]).unwrap().runs, [5.0]);
    }

    #[test]
    fn a_percentile_that_a_run_does_not_have_is_not_reported() {
        let round = |p99| Round {
            repetitions: 1,
            p50: 10.0,
            is_mean: false,
            p99,
            p999: None,
            each: vec![],
        };
        let some = Cell(vec![round(Some(20.0)), round(None)]);
        assert_eq!(some.p50().unwrap().runs, [10.0, 10.0]);
        assert_eq!(some.p99(), None);
        let all = Cell(vec![round(Some(20.0)), round(Some(30.0))]);
        assert_eq!(all.p99().unwrap().median, 25.0);
        assert_eq!(all.p999(), None);
    }
}
