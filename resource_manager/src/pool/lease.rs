//! A lease: its terms, its state, what is known of its use.
//!
//! Elsewhere: how leases are granted (`granting`), reported by nodes (`reporting`), ended (`ending`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdmalib::Peer;
use rfaas_protocol::lease::{ClientName, EndReason, LeaseId, LeaseTerms, NodeName};
use rfaas_protocol::node::Bill;

use super::node::Capacity;
use super::nodes::Slot;
use super::{LeaseRecord, Now};

/// What a lease gives to whom. As its node reports it: [`LeaseTerms`] that were read and make sense.
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
    pub instance: u64,
    /// Whom it is billed to.
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

/// As tokens have it: whole milliseconds, of which the last may be cut short.
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
            instance: self.terms.instance.into(),
            node: NodeName::new(&self.node).expect("checked when the node was added"),
            client: ClientName::new(&self.terms.client).expect("checked by Ask::new"),
        }
    }
}

/// A lease's state as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Its token was given out and not shown to the node yet.
    Granted,
    /// Claimed.
    Active,
    /// Told to end; its node has not reported yet that it did.
    Ending,
    /// Ended: there is a bill.
    Ended,
}

impl LeaseState {
    /// All, in order.
    pub const ALL: [LeaseState; 4] =
        [LeaseState::Granted, LeaseState::Active, LeaseState::Ending, LeaseState::Ended];

    /// As JSON names it.
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
    /// Whom it is billed to.
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

#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// At its deadline it ends as `then`.
    Granted { then: EndReason },
    /// At its deadline its node is told to end it.
    Active,
    /// Its node was told, or will be when it is back. At its deadline it ends without a report.
    Ending { reason: EndReason, grace_ends: Now },
}

impl State {
    pub(super) fn shown(self) -> LeaseState {
        match self {
            State::Granted { .. } => LeaseState::Granted,
            State::Active => LeaseState::Active,
            State::Ending { .. } => LeaseState::Ending,
        }
    }
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) terms: Terms,
    pub(super) node: Arc<str>,
    /// Where that node is kept; it stays as long as it has leases.
    pub(super) slot: Slot,
    pub(super) granted_at: SystemTime,
    /// Who asked for it, in this run of the program.
    pub(super) peer: Option<Peer>,
    pub(super) while_connected: bool,
    /// When it ends if nobody has claimed it.
    pub(super) claim_by: Instant,
    pub(super) claimed_at: Option<SystemTime>,
    /// When its node first reported it to this run of the program.
    pub(super) seen_from: Option<Instant>,
    /// Its node's connection ended then, and it was not reported again since.
    pub(super) unseen_since: Option<Instant>,
    /// What it has used, as its node last said.
    pub(super) used: Bill,
    /// Counted in [`Pool::states`](super::Pool); changed by [`Pool::set_state`](super::Pool) only.
    pub(super) state: State,
    /// Also in [`Pool::deadlines`](super::Pool); changed by [`Pool::set_state`](super::Pool) only.
    pub(super) deadline: Instant,
}

impl Lease {
    pub(super) fn view(&self) -> LeaseView {
        LeaseView {
            lease: self.terms.lease,
            client: self.terms.client.clone(),
            node: self.node.clone(),
            cores: self.terms.cores,
            memory: self.terms.memory,
            state: self.state.shown(),
            granted_at: self.granted_at,
            expires_at: self.terms.expires_at,
        }
    }

    pub(super) fn record(&self) -> LeaseRecord {
        LeaseRecord {
            terms: self.terms.clone(),
            node: self.node.clone(),
            granted_at: self.granted_at,
            while_connected: self.while_connected,
            claimed_at: self.claimed_at,
            ending: match self.state {
                State::Ending { reason, grace_ends } => Some((reason, grace_ends.wall)),
                State::Granted { .. } | State::Active => None,
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
