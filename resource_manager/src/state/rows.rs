//! The tables of a state file, and what their rows mean: format 1.
//!
//! Keys and values are tuples in redb's encoding (little-endian numbers, lengths before texts). redb
//! keeps the types with each table and compares them, so a row is never read as one of another shape;
//! a change of a shape or a meaning raises [`FORMAT`]. Times are in µs since the Unix epoch, memory is
//! in MB.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::TableDefinition;
use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;
use rfaas_protocol::placement::Policy;

use super::StateError;
use crate::pool::{
    Billed, Capacity, ChosenPolicy, GraphWorker, LeaseRecord, NodeRecord, NodeSpec, Terms,
};

/// Version of all this.
pub(super) const FORMAT: u64 = 1;

/// What a state file says about itself, by name: [`FORMAT_KEY`], [`FIRST_ID_KEY`], [`POLICY_KEY`].
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Key of [`FORMAT`].
pub(super) const FORMAT_KEY: &str = "format";
/// Key of the first id of a lease in this state.
pub(super) const FIRST_ID_KEY: &str = "first_id";
/// The policy that the operator has chosen, and that of the settings then ([`policy_number`]). Not there: none.
pub(super) const POLICY_KEY: &str = "policy";

/// Address, port, cores, memory, instance of its executor manager (0: none), whether it is withdrawn.
type NodeRow<'a> = (&'a str, u16, u32, u32, u64, bool);
/// Nodes by name.
pub(super) const NODES: TableDefinition<&str, NodeRow<'static>> = TableDefinition::new("nodes");

/// Labels, with blanks between them; when it leaves (0: it does not), with [`REPLACED`].
type MarksRow<'a> = (&'a str, u64);
/// In the time when a node leaves: it was replaced since. That time is in whole milliseconds, so the bit is free.
const REPLACED: u64 = 1;
/// What nodes have besides, by name; earlier programs do not know it, and do not mind it.
pub(super) const MARKS: TableDefinition<&str, MarksRow<'static>> =
    TableDefinition::new("node_marks");

/// Allocated, hot polling, execution (ns); invocations.
type BillFields = (u64, u64, u64, u64);

/// Node, client, (cores, memory), instance, granted at, expires at, whether it ends with the connection of
/// its client, claimed at, (reason, until when) of its ending, used so far.
type LeaseRow<'a> = (
    &'a str,
    &'a str,
    (u32, u32),
    u64,
    u64,
    u64,
    bool,
    Option<u64>,
    Option<(u16, u64)>,
    BillFields,
);
/// Leases that have not ended, by id.
pub(super) const LEASES: TableDefinition<u64, LeaseRow<'static>> = TableDefinition::new("leases");

/// Number and name of the graph, lane, worker, functions.
type WorkerRow<'a> = (u64, &'a str, u16, u16, &'a str);
/// What leases that have not ended are for, by id, as far as their clients say; earlier programs do not know it, and do
/// not mind it.
pub(super) const WORKERS: TableDefinition<u64, WorkerRow<'static>> =
    TableDefinition::new("graph_workers");

/// Node, client, (cores, memory), bill, reason, whether the node reported it.
type BilledRow<'a> = (&'a str, &'a str, (u32, u32), BillFields, u16, bool);
/// Bills by (ended at, lease): in the order in which the leases ended, so that those since a time are a
/// range.
pub(super) const BILLS: TableDefinition<(u64, u64), BilledRow<'static>> =
    TableDefinition::new("bills");
/// Bills of leases that nobody claimed, which are kept for a while, likewise. A table of its own,
/// since it is bounded.
pub(super) const UNCLAIMED: TableDefinition<(u64, u64), BilledRow<'static>> =
    TableDefinition::new("unclaimed_bills");
/// The same in another shape, of no release: only to be deleted.
pub(super) const UNCLAIMED_BEFORE: TableDefinition<u64, ()> = TableDefinition::new("unclaimed");
/// When a lease ended, by lease: with it, the key of its bill.
pub(super) const ENDED_AT: TableDefinition<u64, u64> = TableDefinition::new("ended_at");

pub(super) fn micros(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn time(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros)
}

fn lease_id(id: u64) -> Result<LeaseId, StateError> {
    LeaseId::new(id).ok_or_else(|| StateError::Row("a lease has id 0".into()))
}

fn reason(lease: u64, reason: u16) -> Result<EndReason, StateError> {
    EndReason::from_wire(reason.into())
        .map_err(|_| StateError::Row(format!("lease {lease} has an end reason {reason}")))
}

fn bill_fields(bill: &Bill) -> BillFields {
    let Bill { allocated_ns, hot_polling_ns, execution_ns, invocations } = bill;
    (allocated_ns.get(), hot_polling_ns.get(), execution_ns.get(), invocations.get())
}

fn bill((allocated_ns, hot_polling_ns, execution_ns, invocations): BillFields) -> Bill {
    Bill {
        allocated_ns: allocated_ns.into(),
        hot_polling_ns: hot_polling_ns.into(),
        execution_ns: execution_ns.into(),
        invocations: invocations.into(),
    }
}

pub(super) fn node_row(node: &NodeRecord) -> NodeRow<'_> {
    let NodeRecord { spec, instance, draining, .. } = node;
    let Capacity { cores, memory } = spec.capacity();
    (spec.address(), spec.port(), cores, memory, number(*instance), *draining)
}

/// A policy that was chosen, with that of the settings: what is chosen is in the lowest byte.
pub(super) fn policy_number(policy: ChosenPolicy) -> u64 {
    let number = |policy: Policy| policy as u64;
    number(policy.settings) << 8 | number(policy.chosen)
}

/// Likewise; `None`: of no release that is known.
pub(super) fn policy(number: u64) -> Option<ChosenPolicy> {
    let policy = |number: u64| Policy::ALL.get(usize::try_from(number).ok()?).copied();
    Some(ChosenPolicy { chosen: policy(number & 0xff)?, settings: policy(number >> 8)? })
}

/// Its labels, and when it leaves; `None`: neither.
pub(super) fn marks(node: &NodeRecord) -> Option<(String, u64)> {
    let labels = node.spec.labels().join(" ");
    let replaced = if node.replaced { REPLACED } else { 0 };
    let leaves_at = node.leaves_at.map_or(0, |at| micros(at) & !REPLACED | replaced);
    (!labels.is_empty() || leaves_at > 0).then_some((labels, leaves_at))
}

pub(super) fn node(
    name: &str,
    row: NodeRow<'_>,
    (labels, leaves_at): MarksRow<'_>,
) -> Result<NodeRecord, StateError> {
    let labels: Vec<_> = labels.split_whitespace().map(str::to_owned).collect();
    let (address, port, cores, memory, instance, draining) = row;
    let spec = NodeSpec::new(name, address, port, Capacity { cores, memory })
        .and_then(|spec| spec.with_labels(&labels))
        .map_err(|wrong| StateError::Row(format!("node {name:?}: {wrong}")))?;
    let replaced = leaves_at & REPLACED != 0;
    let leaves_at = (leaves_at > 0).then(|| time(leaves_at & !REPLACED));
    Ok(NodeRecord { spec, instance: NonZeroU64::new(instance), draining, leaves_at, replaced })
}

pub(super) fn lease_row(lease: &LeaseRecord) -> LeaseRow<'_> {
    let LeaseRecord { terms, node, granted_at, while_connected, claimed_at, ending, used, .. } =
        lease;
    (
        node,
        &terms.client,
        (terms.cores, terms.memory),
        number(terms.instance),
        micros(*granted_at),
        micros(terms.expires_at),
        *while_connected,
        claimed_at.map(micros),
        ending.map(|(reason, until)| (reason as u16, micros(until))),
        bill_fields(used),
    )
}

/// What it is for, if that is known.
pub(super) fn worker_row(lease: &LeaseRecord) -> Option<WorkerRow<'_>> {
    let GraphWorker { graph, name, lane, worker, functions } = &**lease.worker.as_ref()?;
    Some((*graph, name, *lane, *worker, functions))
}

fn worker((graph, name, lane, worker, functions): WorkerRow<'_>) -> Arc<GraphWorker> {
    let (name, functions) = (name.into(), functions.into());
    Arc::new(GraphWorker { graph, name, lane, worker, functions })
}

pub(super) fn lease(
    id: u64,
    row: LeaseRow<'_>,
    its_worker: Option<WorkerRow<'_>>,
) -> Result<LeaseRecord, StateError> {
    let (node, client, (cores, memory), instance, granted_at, expires_at, ..) = row;
    let (.., while_connected, claimed_at, ending, used) = row;
    let ending = match ending {
        Some((why, until)) => Some((reason(id, why)?, time(until))),
        None => None,
    };
    Ok(LeaseRecord {
        terms: Terms {
            lease: lease_id(id)?,
            cores,
            memory,
            expires_at: time(expires_at),
            instance: NonZeroU64::new(instance),
            client: client.into(),
        },
        node: node.into(),
        worker: its_worker.map(worker),
        granted_at: time(granted_at),
        while_connected,
        claimed_at: claimed_at.map(time),
        ending,
        used: bill(used),
    })
}

pub(super) fn billed_row(billed: &Billed) -> BilledRow<'_> {
    let Billed { client, node, cores, memory, bill, reason, reported, .. } = billed;
    (node, client, (*cores, *memory), bill_fields(bill), *reason as u16, *reported)
}

pub(super) fn billed(
    key: (u64, u64),
    row: BilledRow<'_>,
    claimed: bool,
) -> Result<Billed, StateError> {
    let (ended_at, id) = key;
    let (node, client, (cores, memory), used, why, reported) = row;
    Ok(Billed {
        lease: lease_id(id)?,
        client: client.into(),
        node: node.into(),
        cores,
        memory,
        bill: bill(used),
        ended_at: time(ended_at),
        reason: reason(id, why)?,
        claimed,
        reported,
    })
}

/// An instance as rows have it: 0 for none.
fn number(instance: Option<NonZeroU64>) -> u64 {
    instance.map_or(0, NonZeroU64::get)
}
