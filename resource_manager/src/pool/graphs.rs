//! Which leases are workers of graphs, as their clients say: for people who look who runs what where.
//!
//! Nothing depends on it: what a client says of its own leases is shown, and no more. Leases are of the same graph if
//! number, client and name are the same, so nobody else's names are changed by who draws the same number.
//!
//! Elsewhere: the leases (`lease_table`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use rfaas_protocol::Malformed;
use rfaas_protocol::lease::{
    self, LeaseId, MAX_FUNCTION_NAMES_BYTES, MAX_GRAPH, MAX_GRAPH_NAME_BYTES,
};

use super::lease::{GrantedLease, LeaseView};

/// Most leases of a graph that are shown, and of the graphs of a page together: so that has a bound.
pub const MOST_SHOWN: usize = 1024;

/// What a lease is for: a worker of a graph. It takes less than half a KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphWorker {
    /// Number of the graph, drawn by its client.
    pub graph: u64,
    /// Name of the graph.
    pub name: Arc<str>,
    /// Which lane of it.
    pub lane: u16,
    /// Which worker of that.
    pub worker: u16,
    /// Its functions, a line each.
    pub functions: Arc<str>,
}

impl GraphWorker {
    /// Reads what a client says, and of which lease.
    pub fn from_wire(said: &lease::GraphWorker) -> Result<(LeaseId, Self), Malformed> {
        let lease = LeaseId::new(said.lease.get()).ok_or(Malformed::Field("lease"))?;
        let (lane, worker) = (said.lane.get(), said.worker.get());
        let (name, functions) = (said.name.get()?, said.functions.get()?);
        Ok((lease, GraphWorker::new(said.graph.get(), name, (lane, worker), functions)?))
    }

    /// Makes one, of functions that are a line each.
    pub fn new(
        graph: u64,
        name: &str,
        (lane, worker): (u16, u16),
        functions: &str,
    ) -> Result<Self, Malformed> {
        if !(1..=MAX_GRAPH).contains(&graph) {
            return Err(Malformed::Field("number of a graph"));
        }
        let is_plain = |name: &str| !name.is_empty() && !name.chars().any(char::is_control);
        if !is_plain(name) || name.len() > MAX_GRAPH_NAME_BYTES {
            return Err(Malformed::Field("name of a graph"));
        }
        if !functions.split('\n').all(is_plain) || functions.len() > MAX_FUNCTION_NAMES_BYTES {
            return Err(Malformed::Field("functions of a worker"));
        }
        Ok(GraphWorker { graph, name: name.into(), lane, worker, functions: functions.into() })
    }
}

/// Which graph it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GraphKey {
    /// Its number.
    pub graph: u64,
    /// The client that its leases are billed to.
    pub client: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A graph as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphView {
    /// Which it is.
    pub key: GraphKey,
    /// How many leases it has.
    pub leases: usize,
    /// The first of them, by lane and worker, up to [`MOST_SHOWN`].
    pub shown: Vec<(LeaseView, Arc<GraphWorker>)>,
}

/// The graphs that have leases.
#[derive(Debug, Default)]
pub(super) struct Graphs(BTreeMap<GraphKey, BTreeSet<Place>>);

/// A lease in the order of lanes and workers.
type Place = (u16, u16, LeaseId);

fn place(lease: &GrantedLease) -> Option<(GraphKey, Place)> {
    let GraphWorker { graph, name, lane, worker, .. } = &**lease.worker.as_ref()?;
    let key = GraphKey { graph: *graph, client: lease.terms.client.clone(), name: name.clone() };
    Some((key, (*lane, *worker, lease.terms.lease)))
}

impl Graphs {
    /// Notes a lease, if it is one of a graph.
    pub(super) fn add(&mut self, lease: &GrantedLease) {
        if let Some((key, place)) = place(lease) {
            self.0.entry(key).or_default().insert(place);
        }
    }

    /// Forgets it.
    pub(super) fn remove(&mut self, lease: &GrantedLease) {
        let Some((key, place)) = place(lease) else { return };
        if let Some(leases) = self.0.get_mut(&key)
            && leases.remove(&place)
            && leases.is_empty()
        {
            self.0.remove(&key);
        }
    }

    /// Whether there are graphs after `key`.
    pub(super) fn any_after(&self, key: &GraphKey) -> bool {
        self.0.range((Bound::Excluded(key), Bound::Unbounded)).next().is_some()
    }

    /// The first `most` graphs after `key`, or of all; fewer if more than [`MOST_SHOWN`] leases would be shown.
    pub(super) fn after<'a>(
        &self,
        key: Option<&GraphKey>,
        most: usize,
        lease: impl Fn(LeaseId) -> Option<&'a GrantedLease>,
    ) -> Vec<GraphView> {
        let start = key.map_or(Bound::Unbounded, Bound::Excluded);
        let shown = |(_, _, id): &Place| {
            let lease = lease(*id)?;
            Some((lease.view(), lease.worker.clone()?))
        };
        let view = |(key, leases): (&GraphKey, &BTreeSet<Place>)| GraphView {
            key: key.clone(),
            leases: leases.len(),
            shown: leases.iter().take(MOST_SHOWN).filter_map(shown).collect(),
        };
        let mut shown_before = 0;
        let fits = |(_, leases): &(&GraphKey, &BTreeSet<Place>)| {
            shown_before += leases.len().min(MOST_SHOWN);
            shown_before <= MOST_SHOWN // the first always
        };
        self.0.range((start, Bound::Unbounded)).take(most).take_while(fits).map(view).collect()
    }
}
