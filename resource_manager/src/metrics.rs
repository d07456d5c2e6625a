//! `/metrics`: counts of the pool and of its loop in the text format of Prometheus, version 0.0.4.

use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rfaas_protocol::isolation::Layer;
use rfaas_protocol::lease::EndReason;

use crate::pool::{LeaseState, NodeState, NodeSums, Pool, Totals};

/// Media type of [`Metrics::render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const REASONS: [EndReason; 7] = [
    EndReason::Released,
    EndReason::Expired,
    EndReason::ClientGone,
    EndReason::Withdrawn,
    EndReason::NodeLost,
    EndReason::Shutdown,
    EndReason::Unclaimed,
];

/// What happens in the loop beside the pool, counted since the start.
#[derive(Debug, Default)]
pub struct LoopEvents(Mutex<Counts>);

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    commits: u64,
    committing: Duration,
    silent_nodes: u64,
}

impl LoopEvents {
    /// The state was committed, which took so long.
    pub fn committed(&self, took: Duration) {
        let mut counts = self.lock();
        counts.commits += 1;
        counts.committing += took;
    }

    /// An executor manager was silent for too long.
    pub fn silent_node(&self) {
        self.lock().silent_nodes += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // whole after each statement
    }
}

/// What is shown, taken at one moment.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    nodes: [u64; 4],
    leases: [u64; 3],
    sums: NodeSums,
    totals: Totals,
    counts: Counts,
}

const LEASES: [LeaseState; 3] = [LeaseState::Granted, LeaseState::Active, LeaseState::Ending];

impl Metrics {
    /// Counts, without going through what there is.
    pub fn of(pool: &Pool, events: &LoopEvents) -> Self {
        Metrics {
            nodes: NodeState::ALL.map(|state| pool.count_nodes(state) as u64),
            leases: LEASES.map(|state| pool.count_leases(state) as u64),
            sums: pool.sums(),
            totals: pool.totals(),
            counts: *events.lock(),
        }
    }

    /// The text.
    pub fn render(&self) -> String {
        let mut text = Text(String::new());
        let nodes = NodeState::ALL.map(NodeState::name);
        text.labelled("rfaas_nodes", "gauge", "Nodes, by state.", "state", &nodes, &self.nodes);
        let leases = LEASES.map(LeaseState::name);
        let help = "Leases that have not ended, by state.";
        text.labelled("rfaas_leases", "gauge", help, "state", &leases, &self.leases);
        let totals = &self.totals;
        text.one("rfaas_leases_granted_total", "counter", "Leases granted.", totals.granted);
        let help = "Requests for leases that could not be met.";
        text.one("rfaas_leases_denied_total", "counter", help, totals.denied);
        let ended = REASONS.map(|reason| totals.ended[usize::from(reason as u16)]);
        let help = "Leases ended, by reason.";
        let reasons = REASONS.map(EndReason::name);
        text.labelled("rfaas_leases_ended_total", "counter", help, "reason", &reasons, &ended);
        text.one("rfaas_cores", "gauge", "Cores of nodes that are ready.", self.sums.cores);
        let help = "Cores of nodes that are ready that no lease holds.";
        text.one("rfaas_cores_free", "gauge", help, self.sums.free_cores);
        let help = "Memory of nodes that are ready, in MB.";
        text.one("rfaas_memory_megabytes", "gauge", help, self.sums.memory);
        let help = "Memory of nodes that are ready that no lease holds, in MB.";
        text.one("rfaas_memory_free_megabytes", "gauge", help, self.sums.free_memory);
        let help = "Nodes that are ready, by layer that isolates their executors.";
        let layers: Vec<_> = Layer::ALL.iter().map(|layer| layer.name()).collect();
        let isolated = &self.sums.isolated;
        text.labelled("rfaas_nodes_isolated", "gauge", help, "layer", &layers, isolated);
        let counts = &self.counts;
        let help = "Times that the state was committed.";
        text.one("rfaas_state_commits_total", "counter", help, counts.commits);
        let help = "Time that this took, in microseconds.";
        let micros = u64::try_from(counts.committing.as_micros()).unwrap_or(u64::MAX);
        text.one("rfaas_state_commit_microseconds_total", "counter", help, micros);
        let help = "Executor managers given up because they were silent.";
        text.one("rfaas_silent_nodes_total", "counter", help, counts.silent_nodes);
        text.0
    }
}

struct Text(String);

impl Text {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a String takes everything");
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.line(format_args!("{name} {value}"));
    }

    fn labelled(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        labels: &[&str],
        values: &[u64],
    ) {
        self.head(name, kind, help);
        for (of, value) in labels.iter().zip(values) {
            self.line(format_args!("{name}{{{label}=\"{of}\"}} {value}"));
        }
    }
}
