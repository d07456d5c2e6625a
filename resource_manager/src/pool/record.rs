//! What of the pool outlives the program: records of nodes and leases, and bills.
//!
//! ```text
//!   Pool ──take_changes──▶ Changes ──▶ a store ──▶ Snapshot ──restore──▶ Pool of the next run
//! ```
//! Pure data; writing and reading it is the store's business. The changes that were taken with actions are made
//! durable before the actions are carried out (DURABLE FIRST). Changes that are not urgent may be lost: what a
//! lease used in its last period; that it was claimed, which its node reports again; and what it is for.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::SystemTime;

use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;
use rfaas_protocol::placement::Policy;

use super::{GraphWorker, NodeSpec, Terms};

/// A node, as the next run needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// What the operator said.
    pub spec: NodeSpec,
    /// Which run of its executor manager registered last.
    pub instance: Option<NonZeroU64>,
    /// Whether the operator has withdrawn it.
    pub draining: bool,
    /// When it leaves.
    pub leaves_at: Option<SystemTime>,
    /// Whether another run of its executor manager has registered since that was said: then it stays.
    pub replaced: bool,
}

/// A lease that has not ended, likewise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// What it gives, and to which client.
    pub terms: Terms,
    /// On which node.
    pub node: Arc<str>,
    /// What it is for, if its client has said so.
    pub worker: Option<Arc<GraphWorker>>,
    /// Start.
    pub granted_at: SystemTime,
    /// Whether it ends with the connection that it was granted on, unless it is claimed before.
    pub while_connected: bool,
    /// When its node first reported it.
    pub claimed_at: Option<SystemTime>,
    /// Why it is to end, and until when its node may take its time about it.
    pub ending: Option<(EndReason, SystemTime)>,
    /// What it had used when its node last said so.
    pub used: Bill,
}

/// The bill of one lease that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Billed {
    /// The lease.
    pub lease: LeaseId,
    /// The client that pays.
    pub client: Arc<str>,
    /// Where it was.
    pub node: Arc<str>,
    /// Cores that it held.
    pub cores: u32,
    /// Memory that it held, in MB.
    pub memory: u32,
    /// What it used.
    pub bill: Bill,
    /// When it ended.
    pub ended_at: SystemTime,
    /// Why.
    pub reason: EndReason,
    /// Whether anybody claimed it, as far as is known. If not, there is nothing to pay.
    pub claimed: bool,
    /// Whether the node said so: then it is final, else provisional, and the node's later report replaces it.
    pub reported: bool,
}

impl Billed {
    /// A bill that is final, of a lease that was claimed.
    pub(super) fn new(
        terms: &Terms,
        node: Arc<str>,
        bill: Bill,
        reason: EndReason,
        ended_at: SystemTime,
    ) -> Self {
        Billed {
            lease: terms.lease,
            client: terms.client.clone(),
            node,
            cores: terms.cores,
            memory: terms.memory,
            bill,
            ended_at,
            reason,
            claimed: true,
            reported: true,
        }
    }

    /// Whether both are bills of the same lease, as far as that is seen.
    pub(super) fn is_of(&self, other: &Billed) -> bool {
        let of = |billed: &Billed| (billed.lease, billed.cores, billed.memory);
        of(self) == of(other) && (&self.node, &self.client) == (&other.node, &other.client)
    }
}

/// A policy that the operator has chosen while the program ran. It counts until the settings name another one than
/// then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChosenPolicy {
    /// What was chosen.
    pub chosen: Policy,
    /// What the settings said.
    pub settings: Policy,
}

/// What changed since changes were last taken; to be made durable together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Nodes by name; `None`: it was forgotten.
    pub nodes: BTreeMap<Arc<str>, Option<NodeRecord>>,
    /// Leases that have not ended; `None`: it has, and its bill is among the bills, of these changes or
    /// earlier ones.
    pub leases: BTreeMap<LeaseId, Option<LeaseRecord>>,
    /// Bills in the order in which they were booked. One for a lease that has a bill replaces it.
    pub bills: Vec<Billed>,
    /// The operator has chosen another policy.
    pub policy: Option<ChosenPolicy>,
    /// Whether actions and answers depend on them. Others may wait.
    pub urgent: bool,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        let Changes { nodes, leases, bills, policy, urgent: _ } = self;
        nodes.is_empty() && leases.is_empty() && bills.is_empty() && policy.is_none()
    }
}

/// What a store holds when the program starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// All nodes.
    pub nodes: Vec<NodeRecord>,
    /// All leases that have not ended.
    pub leases: Vec<LeaseRecord>,
    /// Bills that a report may still concern: those that are provisional, and those of leases
    /// below `first_id`. Older than [`MAX_TIMEOUT`](super::MAX_TIMEOUT), they are not needed.
    pub bills: Vec<Billed>,
    /// The policy that the operator has chosen while the program ran.
    pub policy: Option<ChosenPolicy>,
    /// The first id of this state: [`Pool::first_id`](super::Pool::first_id) of the run that began it.
    pub first_id: LeaseId,
    /// The largest id of a lease or a bill, if there is any.
    pub last_id: Option<LeaseId>,
}
