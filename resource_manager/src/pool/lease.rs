//! A lease: its terms, its state, what is known of its use.
//!
//! Elsewhere: all leases and how they change (`lease_table`), what they take (`pool`).

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdmalib::Peer;
use rfaas_protocol::Capacity;
use rfaas_protocol::constraints::Constraints;
use rfaas_protocol::lease::{ClientName, EndReason, LeaseId, LeaseTerms, NodeName};
use rfaas_protocol::node::Bill;

use super::ask::{Ask, NotRenewed};
use super::graphs::GraphWorker;
use super::node_index::NodeSlot;
use super::{END_MARGIN, EXPIRY_MARGIN, LeaseRecord, MAX_TIMEOUT, Now, RESTART_RETURN};

/// What a lease gives, and to which client: [`LeaseTerms`] that were read and make sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The lease.
    pub lease: LeaseId,
    /// Cores.
    pub cores: u32,
    /// Memory in MB.
    pub memory: u32,
    /// End, in whole milliseconds.
    pub expires_at: SystemTime,
    /// For which run of the node's executor manager it holds.
    pub instance: Option<NonZeroU64>,
    /// The client that it is billed to.
    pub client: Arc<str>,
}

impl Terms {
    pub(super) fn holds(&self) -> Capacity {
        Capacity { cores: self.cores, memory: self.memory }
    }

    /// Whether a node may hold `reported` if it was granted this: the same, but for its end, if the
    /// node was not shown a renewal yet.
    pub(super) fn allow(&self, reported: &Terms) -> bool {
        let Terms { lease, cores, memory, expires_at, instance, client } = reported;
        (self.lease, self.holds(), self.instance)
            == (*lease, Capacity { cores: *cores, memory: *memory }, *instance)
            && self.client == *client
            && self.expires_at >= *expires_at
    }
}

/// The time in whole milliseconds, rounded down, as tokens have it.
pub(super) fn whole_ms(at: SystemTime) -> SystemTime {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    at - Duration::from_nanos((since.subsec_nanos() % 1_000_000).into())
}

/// A lease that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What is granted.
    pub terms: Terms,
    /// On which node.
    pub node: Arc<str>,
    /// Where the node's executor manager takes the token.
    pub manager: SocketAddr,
}

impl Grant {
    /// The terms to sign.
    pub fn to_wire(&self) -> LeaseTerms {
        let expires_at = self.terms.expires_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        LeaseTerms {
            lease: self.terms.lease.get().into(),
            cores: self.terms.cores.into(),
            memory: self.terms.memory.into(),
            expires_at_ms: u64::try_from(expires_at.as_millis()).unwrap_or(u64::MAX).into(),
            instance: self.terms.instance.map_or(0, NonZeroU64::get).into(),
            node: NodeName::new(&self.node).expect("checked when the node was added"),
            client: ClientName::new(&self.terms.client).expect("checked by Ask::new"),
        }
    }
}

/// What a node reports about the end of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndReport {
    /// The lease.
    pub terms: Terms,
    /// Why it ended.
    pub reason: EndReason,
    /// What it used.
    pub bill: Bill,
}

/// A lease's state as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Its token was given out and not shown to the node yet.
    Granted,
    /// Claimed.
    Active,
    /// Asked to end; its node has not reported the end yet.
    Ending,
    /// Ended: there is a bill.
    Ended,
}

impl LeaseState {
    /// All states, in order.
    pub const ALL: [LeaseState; 4] =
        [LeaseState::Granted, LeaseState::Active, LeaseState::Ending, LeaseState::Ended];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            LeaseState::Granted => "granted",
            LeaseState::Active => "active",
            LeaseState::Ending => "ending",
            LeaseState::Ended => "ended",
        }
    }
}

/// A lease as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Its id.
    pub lease: LeaseId,
    /// The client that it is billed to.
    pub client: Arc<str>,
    /// Its node.
    pub node: Arc<str>,
    /// Cores.
    pub cores: u32,
    /// Memory in MB.
    pub memory: u32,
    /// Its state.
    pub state: LeaseState,
    /// Start.
    pub granted_at: SystemTime,
    /// End.
    pub expires_at: SystemTime,
}

/// A lease's state, with what follows at its deadline.
#[derive(Clone, Copy, Debug)]
pub(super) enum LeasePhase {
    /// At its deadline it ends as `then`.
    Granted { then: EndReason },
    /// At its deadline its node is asked to end it.
    Active,
    /// Its node was asked to end it, or will be when it is back. At its deadline it ends without a report.
    Ending { reason: EndReason, grace_ends: Now },
}

impl LeasePhase {
    /// The phase of a lease that is to be claimed by then, and its deadline.
    pub(super) fn unclaimed(now: Now, terms: &Terms, claim_by: Instant) -> (Self, Instant) {
        let expires = now.until(terms.expires_at);
        match claim_by < expires {
            true => (LeasePhase::Granted { then: EndReason::Unclaimed }, claim_by),
            false => (LeasePhase::Granted { then: EndReason::Expired }, expires),
        }
    }

    pub(super) fn shown(self) -> LeaseState {
        match self {
            LeasePhase::Granted { .. } => LeaseState::Granted,
            LeasePhase::Active => LeaseState::Active,
            LeasePhase::Ending { .. } => LeaseState::Ending,
        }
    }
}

#[derive(Debug)]
pub(super) struct GrantedLease {
    pub(super) terms: Terms,
    pub(super) node: Arc<str>,
    /// Where that node is kept; it stays as long as it has leases.
    pub(super) slot: NodeSlot,
    pub(super) granted_at: SystemTime,
    /// The peer that asked for it, in this run of the program.
    pub(super) peer: Option<Peer>,
    pub(super) while_connected: bool,
    /// The first of the leases that were granted with it, as far as this run of the program knows.
    pub(super) gang: LeaseId,
    /// What it was granted with, if anything, likewise.
    pub(super) constraints: Option<Arc<Constraints>>,
    /// What it is for, if its client has said so.
    pub(super) worker: Option<Arc<GraphWorker>>,
    /// When it ends if nobody has claimed it.
    pub(super) claim_by: Instant,
    /// Since when it counts among the leases of its peer that wait for their claim, if it does (`fair_use`).
    pub(super) waits_since: Option<Instant>,
    pub(super) claimed_at: Option<SystemTime>,
    /// When its node first reported it to this run of the program.
    pub(super) seen_from: Option<Instant>,
    /// Its node's connection ended then, and it was not reported again since.
    pub(super) unseen_since: Option<Instant>,
    /// What it has used, as its node last said.
    pub(super) used: Bill,
    /// Counted by the table of leases, which alone changes it.
    pub(super) phase: LeasePhase,
    /// Likewise.
    pub(super) deadline: Instant,
}

impl GrantedLease {
    /// A lease that is granted now, of which nothing else is known.
    pub(super) fn new(
        now: Now,
        terms: Terms,
        (node, slot): (Arc<str>, NodeSlot),
        (phase, deadline): (LeasePhase, Instant),
    ) -> Self {
        GrantedLease {
            gang: terms.lease,
            constraints: None,
            worker: None,
            terms,
            node,
            slot,
            granted_at: now.wall,
            peer: None,
            while_connected: false,
            claim_by: now.monotonic,
            waits_since: None,
            claimed_at: None,
            seen_from: None,
            unseen_since: None,
            used: Bill::default(),
            phase,
            deadline,
        }
    }

    /// A lease of an earlier run of this program, whose node is in `slot`. Nobody has seen it since.
    pub(super) fn restored(now: Now, record: LeaseRecord, slot: NodeSlot) -> Self {
        let LeaseRecord { terms, node, worker, granted_at, .. } = record;
        let LeaseRecord { while_connected, claimed_at, ending, used, .. } = record;
        let expires = now.until(terms.expires_at);
        let (phase, deadline) = match ending {
            Some((reason, grace_ends)) => {
                let ends = now.until(grace_ends);
                let grace_ends = Now { monotonic: ends, wall: grace_ends };
                let deadline = ends.min(expires + EXPIRY_MARGIN) + END_MARGIN;
                (LeasePhase::Ending { reason, grace_ends }, deadline)
            }
            None if claimed_at.is_some() => (LeasePhase::Active, expires + EXPIRY_MARGIN),
            // Its connection has ended. If it was claimed, its node tells so when it is back.
            None if while_connected => {
                let then = EndReason::ClientGone;
                (LeasePhase::Granted { then }, expires.min(now.monotonic + RESTART_RETURN))
            }
            None => (LeasePhase::Granted { then: EndReason::Expired }, expires),
        };
        GrantedLease {
            granted_at,
            while_connected,
            worker,
            claim_by: now.monotonic + MAX_TIMEOUT,
            claimed_at,
            unseen_since: claimed_at.map(|_| now.monotonic),
            used,
            ..GrantedLease::new(now, terms, (node, slot), (phase, deadline))
        }
    }

    /// Whether its node was asked to end it, or will be.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, LeasePhase::Ending { .. })
    }

    /// Whether nobody has claimed it yet.
    pub(super) fn is_unclaimed(&self) -> bool {
        matches!(self.phase, LeasePhase::Granted { .. })
    }

    /// The request that a renewal for `timeout` from now is, which `peer` makes.
    pub(super) fn renewal(&self, timeout: Duration, peer: Option<Peer>) -> Ask {
        let wanted = self.terms.holds();
        let (client, while_connected) = (self.terms.client.clone(), self.while_connected);
        let (leases, constraints, grows) = (1, Default::default(), Vec::new());
        let max_nodes = 1;
        Ask {
            wanted,
            leases,
            constraints,
            grows,
            timeout,
            max_nodes,
            while_connected,
            client,
            peer,
        }
    }

    /// Whether it may get more time from a node that is not `stopping`.
    pub(super) fn may_renew(&self, now: Now, stopping: bool) -> Result<(), NotRenewed> {
        let lease = self.terms.lease;
        match self.phase {
            LeasePhase::Ending { reason, .. } => Err(NotRenewed::Ending { lease, reason }),
            _ if self.terms.expires_at <= now.wall => Err(NotRenewed::Ended(lease)),
            _ if stopping => Err(NotRenewed::Ending { lease, reason: EndReason::Shutdown }),
            LeasePhase::Granted { .. } | LeasePhase::Active => Ok(()),
        }
    }

    pub(super) fn view(&self) -> LeaseView {
        LeaseView {
            lease: self.terms.lease,
            client: self.terms.client.clone(),
            node: self.node.clone(),
            cores: self.terms.cores,
            memory: self.terms.memory,
            state: self.phase.shown(),
            granted_at: self.granted_at,
            expires_at: self.terms.expires_at,
        }
    }

    pub(super) fn record(&self) -> LeaseRecord {
        LeaseRecord {
            terms: self.terms.clone(),
            node: self.node.clone(),
            worker: self.worker.clone(),
            granted_at: self.granted_at,
            while_connected: self.while_connected,
            claimed_at: self.claimed_at,
            ending: match self.phase {
                LeasePhase::Ending { reason, grace_ends } => Some((reason, grace_ends.wall)),
                LeasePhase::Granted { .. } | LeasePhase::Active => None,
            },
            used: self.used,
        }
    }

    /// What is known of its use without its node's last word: what the node said before. If it said
    /// nothing, the time for which it was claimed, as far as the node was there to see it.
    pub(super) fn known_bill(&self, now: Now) -> Bill {
        if self.used != Bill::default() {
            return self.used;
        }
        let end = self.unseen_since.unwrap_or(now.monotonic);
        let allocated = self.seen_from.map(|start| end.saturating_duration_since(start));
        let allocated_ns = allocated.unwrap_or_default().as_nanos();
        Bill {
            allocated_ns: u64::try_from(allocated_ns).unwrap_or(u64::MAX).into(),
            ..Bill::default()
        }
    }
}
