//! All that was measured, as one JSON object and as CSV files: the same figures as the table's, run by run.

use std::fs;
use std::path::Path;

use rdmalib::Provider;
use rfaas_program::Failure;
use serde_json::{Value, json};

use crate::contender::Id;
use crate::ratios::Ratio;
use crate::results::{Cell, Rates, Results, Row};
use crate::{SHOWN, Settings};
use benchmarks::machine::Machine;

/// All that a run of the program has measured.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Where it ran.
    pub machine: Machine,
    /// How many runs there were.
    pub runs: u32,
    /// Whether there were too few repetitions for figures.
    pub quick: bool,
    /// Devices of ours: name and provider.
    pub devices: Vec<(String, Provider)>,
    /// Figures.
    pub results: Results,
    /// What they mean beside each other.
    pub ratios: Vec<Ratio>,
    /// Distributions of round trips of [`SHOWN`] bytes, for contenders that report each of them.
    pub distributions: Vec<Distribution>,
}

/// A distribution of round trips, of all runs together.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// Whose.
    pub id: Id,
    /// As tables and plots call it.
    pub name: String,
    /// Share of round trips, and the time in ns in which they were done; both rise.
    pub points: Vec<(f64, u64)>,
}

impl Comparison {
    /// Of `results`, on this machine.
    pub fn of(
        settings: &Settings,
        quick: bool,
        results: Results,
        devices: Vec<(String, Provider)>,
        ratios: Vec<Ratio>,
    ) -> Self {
        let distributions = results.rows.iter().filter_map(distribution).collect();
        let (machine, runs) = (Machine::this(), settings.runs);
        Comparison { machine, runs, quick, devices, results, ratios, distributions }
    }

    /// One object.
    pub fn json(&self) -> Value {
        let devices = self.devices.iter();
        let devices = devices.map(|(name, of)| json!({"device": name, "provider": of.to_string()}));
        let shown = self.distributions.iter().map(|of| {
            let points = of.points.iter().map(|(share, ns)| json!([share, ns]));
            json!({"id": of.id, "name": of.name, "share_ns": points.collect::<Vec<_>>()})
        });
        json!({
            "benchmark": "compare",
            "machine": self.machine,
            "runs": self.runs,
            "quick": self.quick,
            "devices": devices.collect::<Vec<_>>(),
            "contenders": self.results.rows,
            "in_flight": self.results.in_flight,
            "scaling": self.results.scaling,
            "write_bandwidth": self.results.bandwidth,
            "ratios": self.ratios,
            "distribution": {"payload_bytes": SHOWN, "of": shown.collect::<Vec<_>>()},
        })
    }
}

/// Shares that are written: every half percent, and the tail.
fn shares() -> impl Iterator<Item = f64> {
    let body = (0..=198).map(|half| f64::from(half) / 200.0);
    body.chain([0.992, 0.994, 0.996, 0.998, 0.999, 0.9995, 0.9999, 1.0])
}

fn distribution(row: &Row) -> Option<Distribution> {
    let cell = row.cells.get(&SHOWN)?;
    let mut each: Vec<u64> = cell.0.iter().flat_map(|round| round.each.iter().copied()).collect();
    each.sort_unstable();
    let last = each.len().checked_sub(1)?;
    let at = |share: f64| (share, each[(share * last as f64).round() as usize]);
    Some(Distribution { id: row.id, name: row.name.clone(), points: shares().map(at).collect() })
}

/// Makes `directory`, unless it is there.
pub fn make(directory: &Path) -> Result<(), Failure> {
    fs::create_dir_all(directory).map_err(unwritable(directory))
}

/// Writes JSON and CSV files into `directory`.
pub fn write(directory: &Path, comparison: &Comparison) -> Result<(), Failure> {
    for (name, text) in [
        ("compare.json", format!("{:#}\n", comparison.json())),
        ("round_trips.csv", round_trips(&comparison.results.rows)),
        ("distribution.csv", distributions(&comparison.distributions)),
        ("in_flight.csv", rates("in_flight", "per_second", &comparison.results.in_flight)),
        ("scaling.csv", rates("workers", "per_second", &comparison.results.scaling)),
        ("write_bandwidth.csv", rates("bytes", "bytes_per_second", &comparison.results.bandwidth)),
        ("ratios.csv", ratios(&comparison.ratios)),
    ] {
        let file = directory.join(name);
        fs::write(&file, text).map_err(unwritable(&file))?;
    }
    Ok(())
}

/// What cannot be written is the caller's mistake.
pub fn unwritable<E: std::fmt::Display>(file: &Path) -> impl FnOnce(E) -> Failure + '_ {
    move |error| Failure::input(format!("{}: cannot be written: {error}", file.display()))
}

fn round_trips(rows: &[Row]) -> String {
    let mut csv = "contender,payload_bytes,run,repetitions,p50_ns,p99_ns,p999_ns\n".to_owned();
    for row in rows {
        for (payload, Cell(rounds)) in &row.cells {
            for (run, round) in rounds.iter().enumerate() {
                let maybe = |ns: Option<f64>| ns.map(|ns| ns.to_string()).unwrap_or_default();
                let (p99, p999) = (maybe(round.p99), maybe(round.p999));
                csv += &format!("{},{payload},{run},", quoted(&row.name));
                csv += &format!("{},{},{p99},{p999}\n", round.repetitions, round.p50);
            }
        }
    }
    csv
}

fn distributions(all: &[Distribution]) -> String {
    let mut csv = "contender,share,ns\n".to_owned();
    for Distribution { name, points, .. } in all {
        for (share, ns) in points {
            csv += &format!("{},{share},{ns}\n", quoted(name));
        }
    }
    csv
}

fn rates(by: &str, what: &str, all: &[Rates]) -> String {
    let mut csv = format!("device,{by},run,{what}\n");
    for rates in all {
        for (number, runs) in &rates.by {
            for (run, rate) in runs.iter().enumerate() {
                csv += &format!("{},{number},{run},{rate:.0}\n", quoted(&rates.device));
            }
        }
    }
    csv
}

fn ratios(all: &[Ratio]) -> String {
    let mut csv = "ratio,device,unit,median,min,max\n".to_owned();
    for Ratio { name, device, unit, spread, .. } in all {
        let (median, min, max) = (spread.median, spread.min, spread.max);
        csv += &format!("{name},{},{unit},{median},{min},{max}\n", quoted(device));
    }
    csv
}

/// A field of CSV: names have commas in them.
fn quoted(field: &str) -> String {
    format!("\"{}\"", field.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::contender::{Kind, Round};

    fn row(each: Vec<u64>) -> Row {
        let round = Round {
            repetitions: each.len() as u64,
            p50: 2.0,
            is_mean: false,
            p99: Some(3.0),
            p999: None,
            each,
        };
        Row {
            id: Id::Unix,
            kind: Kind::Peer,
            name: "Unix socket, so \"called\"".into(),
            device: None,
            settings: String::new(),
            not_run: None,
            cells: BTreeMap::from([(SHOWN, Cell(vec![round.clone(), round]))]),
        }
    }

    #[test]
    fn each_round_is_a_line_and_what_is_not_known_is_empty() {
        let csv = round_trips(&[row(vec![1, 2, 3])]);
        let lines: Vec<_> = csv.lines().collect();
        assert_eq!(lines[1], "\"Unix socket, so \"\"called\"\"\",64,0,3,2,3,");
        assert_eq!(lines[2], "\"Unix socket, so \"\"called\"\"\",64,1,3,2,3,");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn a_distribution_rises_from_the_least_to_the_most() {
        let of = distribution(&row((1..=1000).rev().collect())).unwrap();
        assert_eq!(of.points.first(), Some(&(0.0, 1)));
        assert_eq!(of.points.last(), Some(&(1.0, 1000)));
        let half = of.points.iter().find(|(share, _)| *share == 0.5).unwrap();
        assert!((499..=501).contains(&half.1), "{half:?}");
        assert!(of.points.is_sorted());
        assert!(distribution(&row(vec![])).is_none());
    }
}
