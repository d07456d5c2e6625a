//! Who holds what: nodes, their leases and deadlines. Pure: events and the time come in, [`Action`]s and
//! [`Changes`] go out.
//!
//! ```text
//!   node    registered ──connected──▶ ready ──connection ends──▶ lost ──connected──▶ ready
//!           any ──remove──▶ draining ──last lease ended──▶ forgotten
//!   lease   granted ──claimed──▶ active ──told to end──▶ ending ──▶ ended (a bill, no lease)
//!              └────────────────────┴── expired, not claimed in time, given back, node lost ──▶ ended
//! ```
//! * CAPACITY - the leases of a node together never exceed its cores and memory. Only `Node::take` and
//!   `Node::give` change what is leased.
//! * ONCE - a lease ends once: `Pool::finish` alone removes it, books its one bill and gives its
//!   capacity back.
//! * PROVISIONAL - a bill that the node did not report (it was lost, or never claimed) is booked with
//!   what is known, and replaced, not repeated, if the node reports later.
//! * BOUNDED - a lease in any state has a deadline; at it the lease ends or gets a later one
//!   because its state changed, or because it was renewed. So every lease ends without any message.
//! * DURABLE - all that a later run needs is in the changes that were taken, and nothing that was ever
//!   granted is granted again: ids only go up.
//!
//! Where a node and this program do not agree, the rules in `reporting` decide.
//!
//! Elsewhere: which node a lease goes to (`placement`), connections (`nodes`, `clients`), tokens, bills
//! that are final. The only side effect here is log lines: a lease's life passes through these files.

mod ask;
mod bills;
mod deadlines;
mod distrust;
mod ending;
mod fair_use;
mod granting;
mod lease;
mod membership;
mod node;
mod nodes;
mod record;
mod reporting;
mod restart;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rfaas_protocol::lease::{EndReason, LeaseId};

pub use ask::{Ask, Denied, NotRenewed};
use bills::OpenBills;
use deadlines::Deadlines;
use distrust::Distrust;
pub use distrust::{MOST_OF_ONE, NotReplaced, TRIED_LAST};
use fair_use::Shares;
pub use fair_use::{FairUse, Limit, Who};
use granting::unclaimed;
pub use lease::{Grant, LeaseState, LeaseView, Terms};
use lease::{Lease, State};
use node::Node;
pub use node::{Capacity, Conflict, NodeSpec, NodeState, NodeView, Removal, Run};
pub use nodes::Sums;
use nodes::{Nodes, Slot};
pub use record::{Billed, Changes, LeaseRecord, NodeRecord, Snapshot};
pub use reporting::EndReport;
use restart::Unsaved;

/// Most cores of a node or lease: an executor's assignment counts its workers in 16 bits.
pub const MAX_CORES: u32 = u16::MAX as u32;
/// Most nodes of a request: it is answered by as many messages at once, half of what may be under way to a
/// peer (`rfaas_protocol::channel`).
pub const MAX_NODES: u32 = 32;
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

    /// When the other clock will show `wall`; this moment if it has.
    fn until(self, wall: SystemTime) -> Instant {
        self.monotonic + wall.duration_since(self.wall).unwrap_or_default()
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
    pub ended: [u64; 8],
}

/// All nodes and leases of a cluster.
#[derive(Debug)]
pub struct Pool {
    nodes: Nodes,
    leases: HashMap<LeaseId, Lease>,
    /// Their ids in order.
    ids: BTreeSet<LeaseId>,
    /// How many are in each state.
    states: [usize; LeaseState::ALL.len()],
    /// The deadline of each lease (BOUNDED).
    deadlines: Deadlines,
    open_bills: OpenBills,
    distrust: Distrust,
    unsaved: Unsaved,
    shares: Shares,
    /// How long a node whose connection ended may stay away before its leases end.
    node_return: Duration,
    /// First id of this state: smaller ones are of a state that was lost. Of those from it to the next one,
    /// all have ended that are neither leases nor open bills.
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
            nodes: Nodes::default(),
            leases: HashMap::new(),
            ids: BTreeSet::new(),
            states: Default::default(),
            deadlines: Deadlines::default(),
            open_bills: OpenBills::default(),
            distrust: Distrust::default(),
            unsaved: Unsaved::default(),
            shares: Shares::default(),
            node_return,
            first_id,
            next_id: first_id,
            totals: Totals::default(),
        }
    }

    /// Has it keep to these rules from now on; at the start, before anything is asked of it. Leases of an earlier run
    /// have the time of one to be claimed, and that of their nodes to come back.
    pub fn with_rules(mut self, now: Now, rules: FairUse) -> Self {
        self.shares = Shares::new(now, rules, self.leases.values());
        let claim_by = now.monotonic + rules.claim_timeout.max(RESTART_RETURN);
        let ids: Vec<_> = self.leases.keys().copied().collect();
        for id in ids {
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            lease.claim_by = claim_by;
            // Others end sooner, with their client's connection, unless they are renewed.
            if let State::Granted { then: EndReason::Expired } = lease.state {
                let (state, deadline) = unclaimed(now, &lease.terms, claim_by);
                self.set_state(id, state, deadline);
            }
        }
        self
    }

    /// Where ids of this state begin: a store keeps it from the first run on.
    pub fn first_id(&self) -> LeaseId {
        self.first_id
    }

    /// Whether this was a lease once and is none any more.
    pub fn has_ended(&self, id: LeaseId) -> bool {
        let granted = (self.first_id..self.next_id).contains(&id);
        (granted && !self.leases.contains_key(&id)) || self.open_bills.get(id).is_some()
    }

    /// When [`tick`](Self::tick) has something to do next, if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let node = self.nodes.first_deadline().map(|(at, _)| at);
        let forgiven = self.distrust.first_deadline();
        node.into_iter().chain(self.deadlines.first()).chain(forgiven).min()
    }

    /// Does what was due by `now`.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        self.forgive(now.monotonic);
        while let Some((at, slot)) = self.nodes.first_deadline()
            && at <= now.monotonic
        {
            self.node_due(now, slot, out);
        }
        while let Some(id) = self.deadlines.due(now.monotonic, &self.leases) {
            self.lease_due(now, id, out);
        }
    }

    /// Everything about the nodes, by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.nodes.after(None).map(Node::view).collect()
    }

    /// The first `most` of those whose names come after `name`, or of all.
    pub fn nodes_after(&self, name: Option<&str>, most: usize) -> Vec<NodeView> {
        self.nodes.after(name).take(most).map(Node::view).collect()
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<NodeView> {
        self.nodes.named(name).map(|node| node.view())
    }

    /// Leases that have not ended, oldest first.
    pub fn leases(&self) -> Vec<LeaseView> {
        self.leases_after(None, usize::MAX)
    }

    /// The first `most` of those after `id`, or of all.
    pub fn leases_after(&self, id: Option<LeaseId>, most: usize) -> Vec<LeaseView> {
        let start = id.map_or(Bound::Unbounded, Bound::Excluded);
        let after = self.ids.range((start, Bound::Unbounded));
        after.take(most).filter_map(|id| self.lease(*id)).collect()
    }

    /// One lease that has not ended.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseView> {
        self.leases.get(&id).map(Lease::view)
    }

    /// How many leases are in `state`.
    pub fn count_leases(&self, state: LeaseState) -> usize {
        self.states[state as usize]
    }

    /// How many nodes are in `state`.
    pub fn count_nodes(&self, state: NodeState) -> usize {
        self.nodes.count(state)
    }

    /// What the nodes that are ready have together.
    pub fn sums(&self) -> Sums {
        self.nodes.sums()
    }

    /// Whether this lease was granted, and neither was claimed nor has ended.
    pub fn is_unclaimed(&self, id: LeaseId) -> bool {
        self.leases.get(&id).is_some_and(|lease| matches!(lease.state, State::Granted { .. }))
    }

    /// Events since the start.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    fn leases_on(&self, slot: Slot) -> Vec<LeaseId> {
        self.nodes.get(slot).map(|node| node.leases.iter().copied().collect()).unwrap_or_default()
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
