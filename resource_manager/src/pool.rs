//! Who holds what: nodes, their leases, deadlines and bills. Pure: events and the time come in,
//! [`Action`]s go out.
//!
//! ```text
//!   node    registered ──connected──▶ ready ──connection ends──▶ lost ──connected──▶ ready
//!           any ──remove──▶ draining ──last lease ended──▶ forgotten
//!   lease   granted ──claimed──▶ active ──told to end──▶ ending ──▶ ended (a bill, no lease)
//!              └────────────────────┴── expired, given back, node lost ──▶ ended
//! ```
//! * CAPACITY - the leases of a node together never exceed its cores and memory. Only `Node::take` and
//!   `Node::give` change what is leased.
//! * ONCE - a lease ends once: `Pool::finish` alone removes it, books its one bill and gives its
//!   capacity back.
//! * PROVISIONAL - a bill that the node did not report (it was lost, or never claimed) is booked with
//!   what is known, and replaced, not repeated, if the node reports later.
//! * BOUNDED - a lease in any state has a deadline; at it the lease ends or gets a later one
//!   because its state changed. So every lease ends without any message.
//!
//! Elsewhere: which node a lease goes to (`placement`), connections (`nodes`, `clients`), tokens.
//! The only side effect here is log lines: a lease's life passes through this file.

mod bills;
mod lease;
mod node;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rfaas::protocol::lease::{EndReason, LeaseId};
use rfaas::protocol::node::Bill;

use bills::Bills;
pub use lease::{Ask, Denied, EndReport, Grant, LeaseState, LeaseView, NotRenewed, Terms};
use lease::{Lease, State};
pub use node::{Capacity, Conflict, NodeSpec, NodeState, NodeView, Removal};
use node::{Connection, Node};
pub use record::{Billed, Changes, LeaseRecord, NodeRecord, Snapshot};

/// Most cores of a node or lease: an executor's assignment counts its workers in 16 bits.
pub const MAX_CORES: u32 = u16::MAX as u32;
/// Most nodes of a request: it is answered by as many messages, all at once.
pub const MAX_NODES: u32 = 64;
/// Longest lease.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a lease lasts if the request does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Longest grace period of a node's withdrawal.
pub const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);
/// Grace period of a withdrawal that does not name one.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// How long after a start of this program nodes may take to register again before their leases end:
/// twice the longest pause between two tries of an executor manager to reconnect (5 s).
pub const RESTART_RETURN: Duration = Duration::from_secs(10);
/// How long a node that came back may take to report the leases that it still holds; it does so at
/// once, so this is generous.
pub const RECLAIM: Duration = Duration::from_secs(3);
/// How long after its client has gone an unclaimed lease is kept, since its claim may be under way
/// from the node.
pub const CLAIM_IN_FLIGHT: Duration = Duration::from_secs(2);
/// How long after its expiry an active lease may take to be reported as ended: the node ends it by
/// its own clock, and is told only if it did not.
pub const EXPIRY_MARGIN: Duration = Duration::from_secs(2);
/// How long after the grace period a node may take to report a lease as ended, before that is
/// taken as given: ten times what it waits before it kills an executor (500 ms).
pub const END_MARGIN: Duration = Duration::from_secs(5);
/// Pause before a node's host name is looked up again after it was not found.
pub const RESOLVE_AGAIN: Duration = Duration::from_secs(5);

/// One moment on both clocks: deadlines run on the first, tokens and bills show the second.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For deadlines.
    pub monotonic: Instant,
    /// For people and tokens.
    pub wall: SystemTime,
}

impl Now {
    /// This moment.
    pub fn read() -> Self {
        Now { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

/// Names a connection of an executor manager, while it lasts and never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell the node to end a lease.
    EndLease {
        /// Its connection.
        link: LinkId,
        /// The lease.
        lease: LeaseId,
        /// Why.
        reason: EndReason,
        /// How long running invocations may go on.
        grace: Duration,
    },
    /// Tell the node that the end of a lease was booked.
    AcknowledgeEnd {
        /// Its connection.
        link: LinkId,
        /// The lease.
        lease: LeaseId,
    },
    /// Tell the node what it may lease out now.
    TellCapacity {
        /// Its connection.
        link: LinkId,
        /// The new values.
        capacity: Capacity,
    },
    /// End the node's connection, telling it why.
    Close {
        /// Its connection.
        link: LinkId,
        /// For its log.
        reason: String,
    },
    /// Look up the node's address and report it with [`Pool::resolved`].
    Resolve {
        /// The node.
        node: Arc<str>,
        /// Host name.
        host: Arc<str>,
    },
    /// The set of nodes changed: the executors database is to be written.
    NodesChanged,
}

/// Events since the start, for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Leases granted, or taken over from an earlier run of this manager.
    pub granted: u64,
    /// Requests that could not be met.
    pub denied: u64,
    /// Leases ended, by [`EndReason`] as it was first known; index is its number.
    pub ended: [u64; 7],
}

/// All nodes, leases and bills of a cluster.
#[derive(Debug)]
pub struct Pool {
    nodes: BTreeMap<Arc<str>, Node>,
    leases: BTreeMap<LeaseId, Lease>,
    /// The deadline of each lease, once (BOUNDED).
    deadlines: BTreeSet<(Instant, LeaseId)>,
    bills: Bills,
    /// How long a node whose connection ended may stay away before its leases end.
    node_return: Duration,
    /// First id of this run: smaller ones are of earlier runs.
    first_id: LeaseId,
    next_id: LeaseId,
    totals: Totals,
}

impl Pool {
    /// An empty pool. Leases of a node whose connection has ended last for `node_return` without it.
    ///
    /// Lease ids count up from the wall clock's microseconds since the Unix epoch. So a manager that
    /// starts again does not reuse an id unless it granted more than one lease a microsecond all the
    /// time before, or the clock was set back over its whole life; and they are below 2^53 until the
    /// year 2255, so JSON readers that only know floating-point numbers keep them exact.
    pub fn new(now: Now, node_return: Duration) -> Self {
        let micros = now.wall.duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_micros());
        let first = u64::try_from(micros).ok().and_then(LeaseId::new);
        let first_id = first.unwrap_or(LeaseId(std::num::NonZeroU64::MIN));
        Pool {
            nodes: BTreeMap::new(),
            leases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            bills: Bills::default(),
            node_return,
            first_id,
            next_id: first_id,
            totals: Totals::default(),
        }
    }

    /// The pool of a run that goes on where the last one stopped. Nodes whose executor manager has not
    /// registered again count as lost; if it does not within [`RESTART_RETURN`], their leases end.
    pub fn restore(now: Now, node_return: Duration, snapshot: Snapshot) -> Self {
        let _ = snapshot;
        Pool::new(now, node_return)
    }

    /// What changed since this was last called. To be made durable before anything is said or done
    /// about it.
    pub fn take_changes(&mut self) -> Changes {
        Changes::default()
    }

    /// Where ids of this state begin: a store keeps it from the first run on.
    pub fn first_id(&self) -> LeaseId {
        self.first_id
    }

    /// Whether this was a lease once and is none any more.
    pub fn has_ended(&self, id: LeaseId) -> bool {
        self.bills.get(id).is_some()
    }

    /// When [`tick`](Self::tick) has something to do next, if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let lease = self.deadlines.first().map(|(at, _)| *at);
        self.nodes.values().filter_map(Node::deadline).chain(lease).min()
    }

    /// Does what was due by `now`.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        let due: Vec<Arc<str>> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.deadline().is_some_and(|at| at <= now.monotonic))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.node_due(now, &name, out);
        }
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now.monotonic
        {
            self.lease_due(now, id, out);
        }
    }

    /// Everything about the nodes.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.nodes.values().map(Node::view).collect()
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<NodeView> {
        self.nodes.get(name).map(Node::view)
    }

    /// Leases that have not ended, oldest first.
    pub fn leases(&self) -> Vec<LeaseView> {
        self.leases.values().map(Lease::view).collect()
    }

    /// One lease that has not ended.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseView> {
        self.leases.get(&id).map(Lease::view)
    }

    /// Bills of `client`, or all, for leases that ended at `since` or later, or ever; in the order in which they
    /// ended.
    pub fn bills(&self, client: Option<&str>, since: Option<SystemTime>) -> Vec<Billed> {
        self.bills
            .iter()
            .filter(|bill| client.is_none_or(|client| *bill.client == *client))
            .filter(|bill| since.is_none_or(|since| bill.ended_at >= since))
            .cloned()
            .collect()
    }

    /// The bill of one lease.
    pub fn bill(&self, id: LeaseId) -> Option<&Billed> {
        self.bills.get(id)
    }

    /// Events since the start.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Ends a lease (ONCE): it is removed, billed, its capacity is free, and its node is forgotten if
    /// it was only waiting for this. Without `report` the bill is what is known here (PROVISIONAL).
    fn finish(
        &mut self,
        now: Now,
        id: LeaseId,
        reason: EndReason,
        report: Option<Bill>,
        out: &mut Vec<Action>,
    ) {
        let Some(lease) = self.leases.remove(&id) else { return };
        self.deadlines.remove(&(lease.deadline, id));
        self.totals.ended[usize::from(reason as u16)] += 1;
        let bill = report.unwrap_or_else(|| lease.known_bill(now));
        self.bills.book(Billed {
            lease: id,
            client: lease.client.clone(),
            node: lease.node.clone(),
            cores: lease.cores,
            memory: lease.memory,
            bill,
            ended_at: now.wall,
            reason,
            reported: report.is_some(),
        });
        tracing::info!(
            lease = %id, node = %lease.node, client = %lease.client, reason = reason.name(),
            allocated_ms = bill.allocated_ns.get() / 1_000_000, "lease ended"
        );
        let Some(node) = self.nodes.get_mut(&lease.node) else { return };
        node.give(&lease);
        if node.drained() {
            self.forget_node(&lease.node, out);
        }
    }

    /// Gives a lease a new state and, with it, a new deadline.
    fn set_state(&mut self, id: LeaseId, state: State, deadline: Instant) {
        if let Some(lease) = self.leases.get_mut(&id) {
            self.deadlines.remove(&(lease.deadline, id));
            self.deadlines.insert((deadline, id));
            lease.state = state;
            lease.deadline = deadline;
        }
    }

    /// Removes a node, which has no leases any more, and ends its connection.
    fn forget_node(&mut self, name: &str, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.remove(name) else { return };
        debug_assert!(node.leases.is_empty(), "its leases were ended before");
        if let Connection::Up { link, .. } = node.connection {
            out.push(Action::Close { link, reason: format!("node {name} was removed") });
        }
        tracing::info!(node = name, "node removed");
    }

    fn leases_of(&self, node: &str) -> Vec<LeaseId> {
        self.nodes.get(node).map(|node| node.leases.iter().copied().collect()).unwrap_or_default()
    }
}

/// Whether `name` can name a node or a client: `Err` says what is wrong with it.
fn check_name(what: &str, name: &str, max_bytes: usize) -> Result<(), String> {
    if name.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if name.len() > max_bytes {
        return Err(format!("{what} has {} bytes; at most {max_bytes} are possible", name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("{what} contains a control character"));
    }
    Ok(())
}
