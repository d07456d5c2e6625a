//! What goes out over HTTP: the JSON of nodes, leases and bills. Names and units are fixed for users.

use std::sync::Arc;
use std::time::SystemTime;

use rfaas::protocol::lease::Token;
use serde::Serialize;
use time::OffsetDateTime;

use crate::pool::{Billed, Grant, LeaseState, LeaseView, NodeView};

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
}

impl GrantJson {
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

/// One bill: an object in JSON, a line in CSV.
#[derive(Debug, Serialize)]
pub(super) struct BillRow {
    lease: u64,
    client: Arc<str>,
    node: Arc<str>,
    cores: u32,
    memory: u32,
    allocated_ms: u64,
    hot_polling_ns: u64,
    execution_ns: u64,
    invocations: u64,
    ended_at: String,
    reason: &'static str,
}

impl From<Billed> for BillRow {
    fn from(billed: Billed) -> Self {
        BillRow {
            lease: billed.lease.get(),
            client: billed.client,
            node: billed.node,
            cores: billed.cores,
            memory: billed.memory,
            allocated_ms: billed.bill.allocated_ns.get() / 1_000_000,
            hot_polling_ns: billed.bill.hot_polling_ns.get(),
            execution_ns: billed.bill.execution_ns.get(),
            invocations: billed.bill.invocations.get(),
            ended_at: rfc3339(billed.ended_at),
            reason: billed.reason.name(),
        }
    }
}

/// The keys of a bill, in order: the first line of the table.
const BILL_COLUMNS: [&str; 11] = [
    "lease",
    "client",
    "node",
    "cores",
    "memory",
    "allocated_ms",
    "hot_polling_ns",
    "execution_ns",
    "invocations",
    "ended_at",
    "reason",
];

/// The bills as a table (RFC 4180), its head also where there are none.
pub(super) fn csv(bills: &[BillRow]) -> Result<Vec<u8>, csv::Error> {
    let mut table = csv::WriterBuilder::new()
        .has_headers(false)
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new());
    table.write_record(BILL_COLUMNS)?;
    bills.iter().try_for_each(|bill| table.serialize(bill))?;
    table.into_inner().map_err(|error| error.into_error().into())
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
    fn a_bill_has_the_same_columns_and_keys() {
        let bill = BillRow {
            lease: 1,
            client: "a, \"b\"".into(),
            node: "n".into(),
            cores: 2,
            memory: 3,
            allocated_ms: 4,
            hot_polling_ns: 5,
            execution_ns: 6,
            invocations: 7,
            ended_at: rfc3339(SystemTime::UNIX_EPOCH),
            reason: "released",
        };
        let json = serde_json::to_string(&bill).unwrap();
        let keys: Vec<_> = json.split('"').filter(|word| BILL_COLUMNS.contains(word)).collect();
        assert_eq!(keys, BILL_COLUMNS);
        let table = String::from_utf8(csv(&[bill]).unwrap()).unwrap();
        let lines: Vec<_> = table.split_terminator("\r\n").collect();
        assert_eq!(lines[0], BILL_COLUMNS.join(","));
        let expected = r#"1,"a, ""b""",n,2,3,4,5,6,7,1970-01-01T00:00:00.000Z,released"#;
        assert_eq!(lines[1..], [expected]);
        assert_eq!(csv(&[]).unwrap(), (BILL_COLUMNS.join(",") + "\r\n").into_bytes());
    }

    #[test]
    fn times_are_rfc_3339_with_milliseconds() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        assert_eq!(rfc3339(at(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(at(1_709_210_096_007)), "2024-02-29T12:34:56.007Z");
        assert_eq!(rfc3339(at(999_999_999_999_999)), "9999-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), rfc3339(at(0)));
    }
}
