//! What goes out over HTTP: the JSON of nodes and leases. Names and units are fixed for users.
//!
//! Elsewhere: bills (`bills`).

use std::sync::Arc;
use std::time::SystemTime;

use rfaas_protocol::lease::{LeaseId, Token};
use serde::Serialize;
use time::OffsetDateTime;

use super::pages::{Pages, ROWS, Row};
use super::{Api, Failure};
use crate::pool::{Grant, LeaseState, LeaseView, NodeView};

/// Serialised here only, so that no token gets into another type by accident.
#[derive(Debug, Serialize)]
pub(super) struct GrantJson {
    id: u64,
    node: Arc<str>,
    address: String,
    port: u16,
    cores: u32,
    memory: u32,
    expires_at: String,
    token: String,
    /// All of a request that could be met from several nodes, this one first.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<GrantJson>>,
}

impl GrantJson {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The answer to a request that could be met from several nodes.
    pub(super) fn in_parts(grants: &[Grant], secret: &[u8]) -> Option<Self> {
        let parts = grants.iter().map(|grant| GrantJson::new(grant, secret)).collect();
        Some(GrantJson { parts: Some(parts), ..GrantJson::new(grants.first()?, secret) })
    }

    pub(super) fn new(grant: &Grant, secret: &[u8]) -> Self {
        GrantJson {
            id: grant.terms.lease.get(),
            node: grant.node.clone(),
            address: grant.manager.ip().to_string(),
            port: grant.manager.port(),
            cores: grant.terms.cores,
            memory: grant.terms.memory,
            expires_at: rfc3339(grant.terms.expires_at),
            token: Token::sign(grant.to_wire(), secret).to_text(),
            parts: None,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct NodeJson {
    node: Arc<str>,
    ip_address: Arc<str>,
    port: u16,
    cores: u32,
    free_cores: u32,
    memory: u32,
    free_memory: u32,
    state: &'static str,
    /// Only of a node that is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_ahead_s: Option<i64>,
}

impl Row for NodeJson {}

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
    type Row = NodeJson;

    async fn next(&mut self) -> Result<Vec<NodeJson>, Failure> {
        let after = self.after.clone();
        let nodes =
            self.api.ask(move |pool, _, _| pool.nodes_after(after.as_deref(), ROWS)).await?;
        self.after = nodes.last().map(|node| node.spec.name().clone());
        Ok(nodes.into_iter().map(NodeJson::from).collect())
    }
}

impl From<NodeView> for NodeJson {
    fn from(node: NodeView) -> Self {
        NodeJson {
            node: node.spec.name().clone(),
            ip_address: node.spec.address().clone(),
            port: node.spec.port(),
            cores: node.spec.capacity().cores,
            free_cores: node.free.cores,
            memory: node.spec.capacity().memory,
            free_memory: node.free.memory,
            state: node.state.name(),
            clock_ahead_s: node.clock_ahead_s,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct LeaseJson {
    id: u64,
    client: Arc<str>,
    node: Arc<str>,
    cores: u32,
    memory: u32,
    state: &'static str,
    granted_at: String,
    expires_at: String,
}

impl Row for LeaseJson {}

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
    type Row = LeaseJson;

    async fn next(&mut self) -> Result<Vec<LeaseJson>, Failure> {
        let after = self.after;
        let leases = self.api.ask(move |pool, _, _| pool.leases_after(after, ROWS)).await?;
        self.after = leases.last().map(|lease| lease.lease);
        Ok(leases.into_iter().map(LeaseJson::from).collect())
    }
}

impl From<LeaseView> for LeaseJson {
    fn from(lease: LeaseView) -> Self {
        LeaseJson {
            id: lease.lease.get(),
            client: lease.client,
            node: lease.node,
            cores: lease.cores,
            memory: lease.memory,
            state: lease.state.name(),
            granted_at: rfc3339(lease.granted_at),
            expires_at: rfc3339(lease.expires_at),
        }
    }
}

/// Answer to a lease's end.
#[derive(Debug, Serialize)]
pub(super) struct EndedJson {
    pub(super) id: u64,
    pub(super) state: &'static str,
}

impl EndedJson {
    pub(super) fn new(id: u64, state: LeaseState) -> Self {
        EndedJson { id, state: state.name() }
    }
}

/// Answer to a node's withdrawal.
#[derive(Debug, Serialize)]
pub(super) struct RemovedJson {
    pub(super) node: String,
    pub(super) state: &'static str,
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
