//! What figures mean beside each other: ours over floors and peers, each of one run.

use rdmalib::Provider;
use serde::Serialize;

use crate::contender::Id;
use crate::results::{Results, Spread};

/// A ratio, a difference or a rate that is aimed at.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// Name in JSON and CSV.
    pub name: &'static str,
    /// What it is over what.
    pub what: &'static str,
    /// Device of ours.
    pub device: String,
    /// Unit: "×", "ns" or "/s".
    pub unit: &'static str,
    /// What is aimed at on a quiet machine with two cores.
    pub aim: Aim,
    /// It, over all runs.
    #[serde(flatten)]
    pub spread: Spread,
}

/// Where a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// Not above.
    AtMost(f64),
    /// Not below.
    AtLeast(f64),
}

impl Aim {
    /// Whether `figure` is there.
    pub fn is_met(self, figure: f64) -> bool {
        match self {
            Aim::AtMost(most) => figure <= most,
            Aim::AtLeast(least) => figure >= least,
        }
    }
}

/// Figures of one run, of ours on one device.
struct Run<'a> {
    results: &'a Results,
    device: &'a str,
    run: usize,
}

impl Run<'_> {
    fn p50(&self, id: Id, payload: u32) -> Option<f64> {
        Some(self.results.round(id, self.device, payload, self.run)?.p50)
    }

    fn p99(&self, id: Id, payload: u32) -> Option<f64> {
        self.results.round(id, self.device, payload, self.run)?.p99
    }

    fn p999(&self, id: Id, payload: u32) -> Option<f64> {
        self.results.round(id, self.device, payload, self.run)?.p999
    }

    /// p50 of `one` over p50 of `other`, both with `payload` bytes.
    fn over(&self, one: Id, other: Id, payload: u32) -> Option<f64> {
        Some(self.p50(one, payload)? / self.p50(other, payload)?)
    }

    /// Most calls per second of this run, whatever the number in flight.
    fn most_in_flight(&self) -> Option<f64> {
        let rates = self.results.in_flight.iter().find(|rates| rates.device == self.device)?;
        let this_run = rates.by.values().filter_map(|runs| runs.get(self.run).copied());
        this_run.max_by(f64::total_cmp)
    }
}

/// One line of the list below.
struct Definition {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    aim: Aim,
    /// The only devices that it is about.
    provider: Option<Provider>,
    figure: fn(&Run<'_>) -> Option<f64>,
}

const SHM: Option<Provider> = Some(Provider::Shm);
const VERBS: Option<Provider> = Some(Provider::Verbs);
const MIB: u32 = 1 << 20;
/// Bytes that the two floors of a single word carry.
const WORD: u32 = 8;

const DEFINITIONS: [Definition; 17] = [
    Definition {
        name: "transport_64_over_bounce",
        what: "transport 64 B p50 / cache-line bounce p50",
        unit: "×",
        aim: Aim::AtMost(1.35),
        provider: SHM,
        figure: |run| Some(run.p50(Id::Transport, 64)? / run.p50(Id::Bounce, WORD)?),
    },
    Definition {
        name: "transport_32_over_bounce",
        what: "transport 32 B p50 / cache-line bounce p50",
        unit: "×",
        aim: Aim::AtMost(1.2),
        provider: SHM,
        figure: |run| Some(run.p50(Id::Transport, 32)? / run.p50(Id::Bounce, WORD)?),
    },
    Definition {
        name: "invocation_64_over_transport",
        what: "invocation 64 B p50 / transport 64 B p50",
        unit: "×",
        aim: Aim::AtMost(1.25),
        provider: None,
        figure: |run| run.over(Id::Service, Id::Transport, 64),
    },
    Definition {
        name: "invocation_64_less_transport",
        what: "invocation 64 B p50 − transport 64 B p50",
        unit: "ns",
        aim: Aim::AtMost(45.0),
        provider: SHM,
        figure: |run| Some(run.p50(Id::Service, 64)? - run.p50(Id::Transport, 64)?),
    },
    Definition {
        name: "invocation_64_over_ucx_message",
        what: "invocation 64 B p50 / (2 × ucp_am_lat 64 B p50)",
        unit: "×",
        aim: Aim::AtMost(1.0),
        provider: SHM,
        figure: |run| run.over(Id::Service, Id::UcxMessage, 64),
    },
    Definition {
        name: "invocation_64_tail",
        what: "invocation 64 B p99.9 / p50",
        unit: "×",
        aim: Aim::AtMost(4.0),
        provider: None,
        figure: |run| Some(run.p999(Id::Service, 64)? / run.p50(Id::Service, 64)?),
    },
    Definition {
        name: "warm_64_over_eventfd",
        what: "warm invocation 64 B p50 / eventfd ping-pong p50",
        unit: "×",
        aim: Aim::AtMost(1.5),
        provider: SHM,
        figure: |run| Some(run.p50(Id::ServiceWarm, 64)? / run.p50(Id::Eventfd, WORD)?),
    },
    Definition {
        name: "warm_64_tail",
        what: "warm invocation 64 B p99 / p50",
        unit: "×",
        aim: Aim::AtMost(5.0),
        provider: None,
        figure: |run| Some(run.p99(Id::ServiceWarm, 64)? / run.p50(Id::ServiceWarm, 64)?),
    },
    Definition {
        name: "in_flight_per_second",
        what: "invocations of 64 B in flight on one worker, the best number of them",
        unit: "/s",
        aim: Aim::AtLeast(4e6),
        provider: SHM,
        figure: |run| run.most_in_flight(),
    },
    Definition {
        name: "transport_goodput_1_mib",
        what: "two memcpy 1 MiB p50 / transport 1 MiB p50, two copies as well",
        unit: "×",
        aim: Aim::AtLeast(0.9),
        provider: SHM,
        figure: |run| run.over(Id::Copies, Id::Transport, MIB),
    },
    Definition {
        name: "goodput_1_mib",
        what: "two memcpy 1 MiB p50 / invocation 1 MiB p50, and the function's copy",
        unit: "×",
        aim: Aim::AtLeast(0.9),
        provider: SHM,
        figure: |run| run.over(Id::Copies, Id::Service, MIB),
    },
    Definition {
        name: "in_place_16_mib_over_64",
        what: "invocation in place 16 MiB p50 / 64 B p50",
        unit: "×",
        aim: Aim::AtMost(3.0),
        provider: SHM,
        figure: |run| Some(run.p50(Id::InPlace, 16 * MIB)? / run.p50(Id::InPlace, 64)?),
    },
    Definition {
        name: "grpc_unix_64_over_invocation",
        what: "gRPC over a Unix socket 64 B p50 / invocation 64 B p50",
        unit: "×",
        aim: Aim::AtLeast(50.0),
        provider: SHM,
        figure: |run| run.over(Id::GrpcUnix, Id::Service, 64),
    },
    Definition {
        name: "invocation_8_over_write_lat",
        what: "invocation 8 B p50 / (2 × ib_write_lat 8 B p50)",
        unit: "×",
        aim: Aim::AtMost(1.25),
        provider: VERBS,
        figure: |run| run.over(Id::Service, Id::WriteLat, 8),
    },
    Definition {
        name: "invocation_8_over_ping_pong",
        what: "invocation 8 B p50 / verbs ping-pong 8 B p50, polling",
        unit: "×",
        aim: Aim::AtMost(1.1),
        provider: VERBS,
        figure: |run| run.over(Id::Service, Id::VerbsPolling, WORD),
    },
    Definition {
        name: "warm_8_over_ping_pong",
        what: "warm invocation 8 B p50 / verbs ping-pong 8 B p50, sleeping",
        unit: "×",
        aim: Aim::AtMost(1.1),
        provider: VERBS,
        figure: |run| run.over(Id::ServiceWarm, Id::VerbsSleeping, WORD),
    },
    Definition {
        name: "invocation_4_kib_over_write_lat",
        what: "invocation 4 KiB p50 / (2 × ib_write_lat 4 KiB p50)",
        unit: "×",
        aim: Aim::AtMost(1.15),
        provider: VERBS,
        figure: |run| run.over(Id::Service, Id::WriteLat, 4096),
    },
];

/// All ratios whose figures are there, of each of `devices`: name and provider.
pub fn ratios(results: &Results, devices: &[(String, Provider)]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for (device, provider) in devices {
        let here = |of: &&Definition| of.provider.is_none_or(|only| only == *provider);
        for definition in DEFINITIONS.iter().filter(here) {
            let figure = |run| (definition.figure)(&Run { results, device, run });
            let Some(spread) = Spread::of((0..results.runs()).filter_map(figure)) else { continue };
            let Definition { name, what, unit, aim, .. } = *definition;
            ratios.push(Ratio { name, what, device: device.clone(), unit, aim, spread });
        }
    }
    ratios
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::contender::Round;
    use crate::results::{Cell, Rates, Row};

    fn row(id: Id, payload: u32, runs: &[f64]) -> Row {
        let round = |&p50: &f64| Round {
            repetitions: 1,
            p50,
            is_mean: false,
            p99: Some(2.0 * p50),
            p999: None,
            each: vec![],
        };
        Row {
            id,
            kind: id.kind(),
            name: id.to_string(),
            device: None,
            settings: String::new(),
            not_run: None,
            cells: BTreeMap::from([(payload, Cell(runs.iter().map(round).collect()))]),
        }
    }

    fn found<'a>(ratios: &'a [Ratio], name: &str) -> Option<&'a Spread> {
        ratios.iter().find(|ratio| ratio.name == name).map(|ratio| &ratio.spread)
    }

    #[test]
    fn a_ratio_has_both_figures_from_the_same_run() {
        let rows = vec![
            row(Id::Bounce, 8, &[100.0, 200.0, 400.0]),
            row(Id::Transport, 64, &[150.0, 200.0, 400.0]),
        ];
        let results = Results { rows, ..Results::default() };
        let ratios = ratios(&results, &[("shm0".into(), Provider::Shm)]);
        let spread = found(&ratios, "transport_64_over_bounce").unwrap();
        assert_eq!(spread.runs, [1.5, 1.0, 1.0]);
        assert_eq!(spread.median, 1.0);
        assert!(
            found(&ratios, "transport_32_over_bounce").is_none(),
            "its figure was not measured"
        );
        assert!(found(&ratios, "warm_64_tail").is_none());
    }

    #[test]
    fn two_payloads_of_a_row_are_of_the_same_run_too() {
        let mut small = row(Id::InPlace, 64, &[100.0, 200.0]);
        small.cells.append(&mut row(Id::InPlace, 16 * MIB, &[250.0, 300.0]).cells);
        let results = Results { rows: vec![small], ..Results::default() };
        let ratios = ratios(&results, &[("shm0".into(), Provider::Shm)]);
        assert_eq!(found(&ratios, "in_place_16_mib_over_64").unwrap().runs, [2.5, 1.5]);
    }

    #[test]
    fn tails_and_rates_are_of_one_run_too() {
        let by = BTreeMap::from([(1, vec![1e6, 1e6]), (8, vec![3e6, 5e6])]);
        let results = Results {
            rows: vec![row(Id::ServiceWarm, 64, &[10.0, 20.0])],
            in_flight: vec![Rates { by, ..Rates::on("shm0") }],
            ..Results::default()
        };
        let ratios = ratios(&results, &[("shm0".into(), Provider::Shm)]);
        assert_eq!(found(&ratios, "warm_64_tail").unwrap().runs, [2.0, 2.0]);
        assert_eq!(found(&ratios, "in_flight_per_second").unwrap().runs, [3e6, 5e6]);
    }

    #[test]
    fn what_is_about_verbs_is_reported_of_verbs_devices_only() {
        let rows = vec![row(Id::WriteLat, 8, &[10.0]), row(Id::Service, 8, &[12.0])];
        let results = Results { rows, ..Results::default() };
        let of = |provider| ratios(&results, &[("any".into(), provider)]);
        let name = "invocation_8_over_write_lat";
        assert_eq!(found(&of(Provider::Verbs), name).unwrap().median, 1.2);
        assert!(found(&of(Provider::Shm), name).is_none());
    }

    #[test]
    fn an_aim_is_met_at_its_bound() {
        assert!(Aim::AtMost(1.0).is_met(1.0) && !Aim::AtMost(1.0).is_met(1.01));
        assert!(Aim::AtLeast(4.0).is_met(4.0) && !Aim::AtLeast(4.0).is_met(3.9));
    }
}
