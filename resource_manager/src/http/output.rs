//! What goes out over HTTP: nodes, leases and graphs as the bodies that `rfaas_api` defines.
//!
//! Elsewhere: bills (`bills`).

use std::sync::Arc;
use std::time::SystemTime;

use rfaas_api as api;
use rfaas_protocol::lease::{LeaseId, Token};
use time::OffsetDateTime;

use super::pages::{Pages, ROWS, Row};
use super::{Api, Failure};
use crate::pool::{
    Better, Grant, GraphKey, GraphView, GraphWorker, LeaseState, LeaseView, NodeView, Pool,
};

/// A grant with its token, signed with the cluster secret.
pub(super) fn grant(grant: &Grant, secret: &[u8]) -> api::Grant {
    api::Grant {
        id: grant.terms.lease.get(),
        node: grant.node.to_string(),
        address: grant.manager.ip().to_string(),
        port: grant.manager.port(),
        cores: grant.terms.cores,
        memory: grant.terms.memory,
        expires_at: rfc3339(grant.terms.expires_at),
        token: Token::sign(grant.to_wire(), secret).to_text(),
        parts: None,
    }
}

/// The answer to a request that could be met from several nodes.
pub(super) fn grant_in_parts(grants: &[Grant], secret: &[u8]) -> Option<api::Grant> {
    let parts = grants.iter().map(|part| grant(part, secret)).collect();
    Some(api::Grant { parts: Some(parts), ..grant(grants.first()?, secret) })
}

pub(super) fn node(node: NodeView) -> api::Node {
    api::Node {
        node: node.spec.name().to_string(),
        ip_address: node.spec.address().to_string(),
        port: node.spec.port(),
        cores: node.spec.capacity().cores,
        free_cores: node.free.cores,
        memory: node.spec.capacity().memory,
        free_memory: node.free.memory,
        state: node.state,
        labels: node.spec.labels().to_vec(),
        leaves_at: node.leaves_at.map(rfc3339),
        clock_ahead_s: node.clock_ahead_s,
        isolation: node.isolation.map(|layers| layers.iter().map(|l| l.name().into()).collect()),
    }
}

impl Row for api::Node {}

/// All nodes, by name.
pub(super) struct NodeList {
    api: Api,
    after: Option<Arc<str>>,
}

impl NodeList {
    pub(super) fn new(api: Api) -> Self {
        NodeList { api, after: None }
    }
}

impl Pages for NodeList {
    type Row = api::Node;

    async fn next(&mut self) -> Result<Vec<api::Node>, Failure> {
        let after = self.after.clone();
        let nodes =
            self.api.ask(move |pool, _, _| pool.nodes_after(after.as_deref(), ROWS)).await?;
        self.after = nodes.last().map(|node| node.spec.name().clone());
        Ok(nodes.into_iter().map(node).collect())
    }
}

/// A lease that has not ended; `None` for one that has.
pub(super) fn lease(lease: LeaseView) -> Option<api::Lease> {
    Some(api::Lease {
        id: lease.lease.get(),
        client: lease.client.to_string(),
        node: lease.node.to_string(),
        cores: lease.cores,
        memory: lease.memory,
        state: state(lease.state)?,
        granted_at: rfc3339(lease.granted_at),
        expires_at: rfc3339(lease.expires_at),
    })
}

fn state(state: LeaseState) -> Option<api::LeaseState> {
    Some(match state {
        LeaseState::Granted => api::LeaseState::Granted,
        LeaseState::Active => api::LeaseState::Active,
        LeaseState::Ending => api::LeaseState::Ending,
        LeaseState::Ended => return None,
    })
}

impl Row for api::Lease {}

/// All leases that have not ended, oldest first.
pub(super) struct LeaseList {
    api: Api,
    after: Option<LeaseId>,
}

impl LeaseList {
    pub(super) fn new(api: Api) -> Self {
        LeaseList { api, after: None }
    }
}

impl Pages for LeaseList {
    type Row = api::Lease;

    async fn next(&mut self) -> Result<Vec<api::Lease>, Failure> {
        let after = self.after;
        let leases = self.api.ask(move |pool, _, _| pool.leases_after(after, ROWS)).await?;
        self.after = leases.last().map(|lease| lease.lease);
        Ok(leases.into_iter().filter_map(lease).collect())
    }
}

fn graph(graph: GraphView) -> api::Graph {
    let worker = |(lease, worker): (LeaseView, Arc<GraphWorker>)| {
        Some(api::GraphWorker {
            lane: worker.lane,
            worker: worker.worker,
            functions: worker.functions.to_string(),
            node: lease.node.to_string(),
            lease: lease.lease.get(),
            state: state(lease.state)?,
        })
    };
    api::Graph {
        id: graph.key.graph,
        name: graph.key.name.to_string(),
        client: graph.key.client.to_string(),
        leases: u32::try_from(graph.leases).unwrap_or(u32::MAX),
        workers: graph.shown.into_iter().filter_map(worker).collect(),
    }
}

impl Row for api::Graph {}

/// Most graphs of a page, whose workers have a bound of their own ([`MOST_SHOWN`](crate::pool::MOST_SHOWN)): with the
/// longest names some 512 KiB as text.
const GRAPHS: usize = 8;

/// All graphs that have leases, by number.
pub(super) struct GraphList {
    api: Api,
    after: Option<GraphKey>,
    more: bool,
}

impl GraphList {
    pub(super) fn new(api: Api) -> Self {
        GraphList { api, after: None, more: true }
    }
}

impl Pages for GraphList {
    type Row = api::Graph;
    async fn next(&mut self) -> Result<Vec<api::Graph>, Failure> {
        let after = self.after.clone();
        let asked = move |pool: &mut Pool, _, _: &mut _| {
            let graphs = pool.graphs_after(after.as_ref(), GRAPHS);
            let more = graphs.last().is_some_and(|last| pool.any_graphs_after(&last.key));
            (graphs, more)
        };
        let (graphs, more) = self.api.ask(asked).await?;
        self.after = graphs.last().map(|graph| graph.key.clone());
        self.more = more;
        Ok(graphs.into_iter().map(graph).collect())
    }

    fn is_last(&self, _: &[api::Graph]) -> bool {
        !self.more
    }
}

/// Where leases would be better placed.
pub(super) fn better(better: &Better) -> api::Better {
    let moved = better.leases.iter().filter(|(_, from, to)| from != to);
    let one = |(lease, from, to): &(LeaseId, Arc<str>, Arc<str>)| api::BetterMove {
        id: lease.get(),
        from: from.to_string(),
        to: to.to_string(),
    };
    let moves: Vec<_> = moved.map(one).collect();
    let (nodes, better_nodes) = better.nodes();
    let few = |nodes: usize| u32::try_from(nodes).unwrap_or(u32::MAX);
    api::Better {
        advice: match (better.no_room, moves.is_empty()) {
            (true, _) => api::BetterAdvice::NoRoom,
            (false, true) => api::BetterAdvice::Stay,
            (false, false) => api::BetterAdvice::Move,
        },
        nodes: few(nodes),
        better_nodes: few(better_nodes),
        moves,
    }
}

/// What became of a lease that was to end.
pub(super) fn ended(lease: LeaseId, state: LeaseState) -> api::EndedLease {
    let state = match state {
        LeaseState::Ended => api::EndedState::Ended,
        LeaseState::Granted | LeaseState::Active | LeaseState::Ending => api::EndedState::Ending,
    };
    api::EndedLease { id: lease.get(), state }
}

/// RFC 3339 in UTC, always with milliseconds.
pub(super) fn rfc3339(at: SystemTime) -> String {
    // A node may report any time for a lease of an earlier run; `time` knows the years to 9999.
    const LAST: i64 = 253_402_300_799;
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(LAST).min(LAST);
    let utc = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = utc.to_calendar_date();
    let (hour, minute, second) = utc.to_hms();
    let month = u8::from(month);
    let ms = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_rfc_3339_with_milliseconds() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        assert_eq!(rfc3339(at(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(at(1_709_210_096_007)), "2024-02-29T12:34:56.007Z");
        assert_eq!(rfc3339(at(999_999_999_999_999)), "9999-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), rfc3339(at(0)));
    }
}
