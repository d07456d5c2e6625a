//! Bills over HTTP: one by one or summed up by client, as JSON or as a table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use rfaas_api as api;
use rfaas_protocol::lease::EndReason;
use rfaas_protocol::node::Bill;

use super::output::rfc3339;
use super::pages::{Pages, ROWS, Row, cell};
use super::{Api, Failure};
use crate::pool::Billed;
use crate::state::{Cursor, MANY, StateFile};

/// Nanoseconds in a millisecond.
const NS_PER_MS: u64 = 1_000_000;

impl Row for api::Bill {
    const COLUMNS: &'static [&'static str] = &[
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
        "allocated_core_ms",
        "allocated_mb_ms",
        "provisional",
    ];

    fn guard(&mut self) {
        for text in [&mut self.client, &mut self.node] {
            if let Some(guarded) = cell(text) {
                *text = guarded;
            }
        }
    }
}

fn row(billed: Billed) -> api::Bill {
    api::Bill {
        lease: billed.lease.get(),
        allocated_ms: billed.bill.allocated_ns.get() / NS_PER_MS,
        hot_polling_ns: billed.bill.hot_polling_ns.get(),
        execution_ns: billed.bill.execution_ns.get(),
        invocations: billed.bill.invocations.get(),
        ended_at: rfc3339(billed.ended_at),
        reason: reason(billed.reason),
        allocated_core_ms: times_ms(billed.cores, &billed.bill),
        allocated_mb_ms: times_ms(billed.memory, &billed.bill),
        // A lease that nobody claimed has used nothing, whatever comes. Of one at a node that was lost, it is not
        // known: the node may have had no time left to say that it was claimed.
        provisional: !billed.reported && (billed.claimed || billed.reason == EndReason::NodeLost),
        client: billed.client.to_string(),
        node: billed.node.to_string(),
        cores: billed.cores,
        memory: billed.memory,
    }
}

fn reason(reason: EndReason) -> api::Reason {
    match reason {
        EndReason::Released => api::Reason::Released,
        EndReason::Expired => api::Reason::Expired,
        EndReason::ClientGone => api::Reason::ClientGone,
        EndReason::Withdrawn => api::Reason::Withdrawn,
        EndReason::NodeLost => api::Reason::NodeLost,
        EndReason::Shutdown => api::Reason::Shutdown,
        EndReason::Unclaimed => api::Reason::Unclaimed,
    }
}

/// `amount` of something for the time that `bill` says, in milliseconds.
fn times_ms(amount: u32, bill: &Bill) -> u64 {
    let ns = u128::from(amount) * u128::from(bill.allocated_ns.get());
    u64::try_from(ns / u128::from(NS_PER_MS)).unwrap_or(u64::MAX)
}

impl Row for api::ClientBill {
    const COLUMNS: &'static [&'static str] = &[
        "client",
        "leases",
        "allocated_core_ms",
        "allocated_mb_ms",
        "hot_polling_ns",
        "execution_ns",
        "invocations",
    ];

    fn guard(&mut self) {
        if let Some(guarded) = cell(&self.client) {
            self.client = guarded;
        }
    }
}

/// Adds a bill to the sum of its client's.
fn add(sum: &mut api::ClientBill, billed: &Billed) {
    let Billed { cores, memory, bill, .. } = billed;
    for (sum, more) in [
        (&mut sum.leases, 1),
        (&mut sum.allocated_core_ms, times_ms(*cores, bill)),
        (&mut sum.allocated_mb_ms, times_ms(*memory, bill)),
        (&mut sum.hot_polling_ns, bill.hot_polling_ns.get()),
        (&mut sum.execution_ns, bill.execution_ns.get()),
        (&mut sum.invocations, bill.invocations.get()),
    ] {
        *sum = sum.saturating_add(more);
    }
}

/// Bills of `client`, or all, for leases that ended at `since` or later and before the question, in
/// the order in which they ended.
pub(super) struct Bills {
    api: Api,
    client: Option<Arc<str>>,
    /// Where the next page begins; `None`: there is none.
    at: Option<Cursor>,
    until: SystemTime,
}

impl Bills {
    pub(super) fn new(api: Api, client: Option<String>, since: Option<SystemTime>) -> Self {
        let (client, at) = (client.map(Arc::from), Some(Cursor::at(since)));
        // What ends meanwhile waits for the next question: a bill that is replaced meanwhile would be there twice.
        Bills { api, client, at, until: SystemTime::now() }
    }
}

impl Bills {
    /// Up to `most` more, and whether there may be still more. None may be found although there are more: each read is
    /// bounded, and others come in between.
    async fn read(&mut self, most: usize) -> Result<(Vec<Billed>, bool), Failure> {
        let Some(at) = self.at else { return Ok((Vec::new(), false)) };
        let (client, until) = (self.client.clone(), self.until);
        let read = move |state: &StateFile| state.bills(client.as_deref(), at, until, most);
        let (bills, next) = self.api.read(read).await?;
        self.at = next;
        Ok((bills, next.is_some()))
    }

    /// Their sums by client.
    pub(super) async fn by_client(mut self) -> Result<Vec<api::ClientBill>, Failure> {
        let mut sums = ClientSums::default();
        loop {
            let (bills, more) = self.read(MANY).await?;
            bills.iter().for_each(|billed| sums.add(billed));
            if !more {
                return Ok(sums.0.into_values().collect());
            }
        }
    }
}

impl Pages for Bills {
    type Row = api::Bill;

    async fn next(&mut self) -> Result<Vec<api::Bill>, Failure> {
        let mut rows = Vec::new();
        loop {
            let (bills, more) = self.read(ROWS - rows.len()).await?;
            rows.extend(bills.into_iter().map(row));
            if !more || rows.len() == ROWS {
                return Ok(rows);
            }
        }
    }
}

/// Sums of bills, by client.
#[derive(Default)]
struct ClientSums(BTreeMap<Arc<str>, api::ClientBill>);

impl ClientSums {
    fn add(&mut self, billed: &Billed) {
        let sum = self.0.entry(billed.client.clone()).or_insert_with(|| api::ClientBill {
            client: billed.client.to_string(),
            ..api::ClientBill::default()
        });
        add(sum, billed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::extract;
    use http_body_util::BodyExt;
    use rfaas_protocol::lease::{EndReason, LeaseId};
    use serde::Serialize;

    use super::*;
    use crate::commands::commands;
    use crate::http::pages::Format;
    use crate::http::{Access, SUMS, billing};
    use crate::pool::Changes;

    fn billed(lease: u64, client: &str) -> Billed {
        Billed {
            lease: LeaseId::new(lease).unwrap(),
            client: client.into(),
            node: "n".into(),
            cores: 2,
            memory: 3,
            bill: Bill {
                allocated_ns: 4_500_000.into(),
                hot_polling_ns: 5.into(),
                execution_ns: 6.into(),
                invocations: 7.into(),
            },
            ended_at: SystemTime::UNIX_EPOCH + Duration::from_millis(lease),
            reason: EndReason::Released,
            claimed: true,
            reported: lease != 3,
        }
    }

    #[test]
    fn a_sum_has_its_turn_until_it_is_made_not_until_it_is_read() {
        const CLIENTS: usize = 2 * ROWS + 1;
        let (commands, _inbox) = commands().unwrap();
        let state = Arc::new(StateFile::in_memory().unwrap());
        let bills = (1..=CLIENTS as u64).map(|n| billed(n, &format!("client-{n}"))).collect();
        state.commit(&Changes { bills, ..Changes::default() }).unwrap();
        let api = Api::new(commands, state, Arc::default(), b"42"[..].into(), Access::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let uri = "/billing?by=client".parse().unwrap();
            let answer = billing(extract::State(api.clone()), uri).await.unwrap();
            assert_eq!(api.sums.available_permits(), SUMS);
            let text = answer.into_body().collect().await.unwrap().to_bytes();
            let rows: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
            assert_eq!(rows.len(), CLIENTS);
        });
    }

    fn keys(row: &impl Serialize) -> Vec<String> {
        let json = serde_json::to_string(row).unwrap();
        let keys = json.split("\":").filter_map(|before| before.rsplit_once('"'));
        keys.map(|(_, key)| key.to_owned()).take(json.matches("\":").count()).collect()
    }

    #[test]
    fn a_row_has_the_same_columns_and_keys() {
        let bill = row(billed(1, "a, \"b\""));
        assert_eq!(keys(&bill), api::Bill::COLUMNS);
        let bills = vec![bill, row(billed(2, "=HYPERLINK(\"http://x\")"))];
        let table = Format::Csv.write(bills, true, true).unwrap();
        let table = String::from_utf8(table).unwrap();
        let lines: Vec<_> = table.split_terminator("\r\n").collect();
        assert_eq!(lines[0], api::Bill::COLUMNS.join(","));
        let rest = "n,2,3,4,5,6,7,1970-01-01T00:00:00.00";
        let expected = [
            format!(r#"1,"a, ""b""",{rest}1Z,released,9,13,false"#),
            format!(r#"2,"'=HYPERLINK(""http://x"")",{rest}2Z,released,9,13,false"#),
        ];
        assert_eq!(lines[1..], expected, "a formula is shown as text");
        assert_eq!(keys(&api::ClientBill::default()), api::ClientBill::COLUMNS);
        let empty = Format::Csv.write(Vec::<api::ClientBill>::new(), true, true).unwrap();
        assert_eq!(empty, (api::ClientBill::COLUMNS.join(",") + "\r\n").into_bytes());
    }

    #[test]
    fn sums_are_those_of_a_clients_bills_and_never_overflow() {
        let state = StateFile::in_memory().unwrap();
        let huge = Bill { execution_ns: u64::MAX.into(), ..Bill::default() };
        let huge = |lease| Billed { bill: huge, ..billed(lease, "huge") };
        let bills = vec![billed(1, "b"), billed(2, "a"), billed(3, "b"), huge(4), huge(5)];
        state.commit(&Changes { bills, ..Changes::default() }).unwrap();
        let by_client = |client, since| {
            let mut sums = ClientSums::default();
            state.for_each_bill(client, since, |billed| sums.add(&billed)).unwrap();
            sums.0.into_values().collect::<Vec<_>>()
        };
        let rows = by_client(None, None);
        let clients: Vec<_> = rows.iter().map(|row| (&*row.client, row.leases)).collect();
        assert_eq!(clients, [("a", 1), ("b", 2), ("huge", 2)]);
        let of_b = &rows[1];
        assert_eq!((of_b.allocated_core_ms, of_b.allocated_mb_ms, of_b.invocations), (18, 26, 14));
        assert_eq!(rows[2].execution_ns, u64::MAX);
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(3);
        let late = by_client(Some("b"), Some(since));
        assert_eq!(late.iter().map(|row| row.leases).collect::<Vec<_>>(), [1]);
        let mut provisional = Vec::new();
        let note = |bill| provisional.push(row(bill).provisional);
        state.for_each_bill(Some("b"), None, note).unwrap();
        assert_eq!(provisional, [false, true]);
        let unclaimed = Billed { claimed: false, reported: false, ..billed(9, "b") };
        assert!(!row(unclaimed.clone()).provisional, "nothing more will be known");
        let lost = Billed { reason: EndReason::NodeLost, ..unclaimed };
        assert!(row(lost).provisional, "it may have been claimed just before");
    }
}
