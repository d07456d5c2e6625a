//! Nodes that clients could not use: they are tried last for a while, and the client gets another one.
//!
//! * LAST, NOT NEVER - it only changes the order in which nodes are tried. Who lies about a node takes nothing from
//!   anybody: it is used like every other one when the others are full.
//! * BOUNDED - each user's word holds for a few nodes at a time, the oldest of which is forgiven for a new one, so
//!   that nobody orders a cluster as he likes.
//!
//! Elsewhere: where a lease goes then (`nodes`, `placement`).

use std::time::{Duration, Instant};

use rdmalib::Peer;
use rfaas_protocol::lease::{EndReason, LeaseId, Unusable};

use super::ask::Ask;
use super::fair_use::Limit;
use super::lease::{Grant, State};
use super::nodes::Slot;
use super::{Action, Now, Pool};

/// How long a node that a client could not use is tried last. A node that is full of clients which claim nothing drops
/// them after 30 s at the latest, and can be used again then. A node that was restarted can be used within seconds, and
/// is not put last for much longer than that.
pub const TRIED_LAST: Duration = Duration::from_secs(30);
/// Nodes that one user's word holds for at a time: a few more than a client tries for one lease.
pub const MOST_OF_ONE: usize = 8;
/// Nodes that all words together hold for: they are looked at one by one.
const MOST: usize = 256;

/// Why there is no other lease in exchange for one: it is as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReplaced {
    /// It is not one that was granted and not claimed yet.
    #[error("lease {0} is not one that waits to be claimed")]
    NotUnclaimed(LeaseId),
    /// There is no room elsewhere.
    #[error("no other node has {cores} cores and {memory} MB free now")]
    NoRoom {
        /// Cores of the lease.
        cores: u32,
        /// Memory of the lease, in MB.
        memory: u32,
    },
    /// The client has asked too often.
    #[error(transparent)]
    Limit(#[from] Limit),
}

#[derive(Debug)]
struct Word {
    slot: Slot,
    /// Whose.
    origin: Peer,
    until: Instant,
}

/// Nodes that are tried last, oldest first.
#[derive(Debug, Default)]
pub(super) struct Distrust(Vec<Word>);

impl Distrust {
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.0.first().map(|word| word.until) // all last equally long
    }

    /// Takes `origin`'s word against the node in `slot`; returns those that are forgiven for it.
    fn take(&mut self, now: Instant, slot: Slot, origin: Peer) -> Vec<Slot> {
        self.0.retain(|word| word.slot != slot);
        let of_origin = |word: &Word| word.origin == origin;
        let too_many = self.0.len() >= MOST;
        let mut forgiven = Vec::new();
        if self.0.iter().filter(|word| of_origin(word)).count() >= MOST_OF_ONE || too_many {
            let oldest = self.0.iter().position(of_origin).unwrap_or(0);
            forgiven.push(self.0.remove(oldest).slot);
        }
        self.0.push(Word { slot, origin, until: now + TRIED_LAST });
        forgiven
    }

    /// Nodes whose time is over.
    fn due(&mut self, now: Instant) -> Vec<Slot> {
        let due = self.0.iter().take_while(|word| word.until <= now).count();
        self.0.drain(..due).map(|word| word.slot).collect()
    }

    /// The node in `slot` is gone.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.0.retain(|word| word.slot != slot);
    }
}

impl Pool {
    /// Exchanges a lease that nobody has claimed for one like it, until the same time, on another node; the client of
    /// `origin` says that it could not use it. It is a request of that client, and the new lease is to be claimed when
    /// the old one was: who exchanges leases again and again holds them no longer than others.
    pub fn replace(
        &mut self,
        now: Now,
        id: LeaseId,
        because: Unusable,
        origin: Peer,
        out: &mut Vec<Action>,
    ) -> Result<Grant, NotReplaced> {
        let lease = self.leases.get(&id);
        let lease = lease.filter(|lease| matches!(lease.state, State::Granted { .. }));
        let lease = lease.ok_or(NotReplaced::NotUnclaimed(id))?;
        let (slot, wanted, node) = (lease.slot, lease.terms.holds(), lease.node.clone());
        let left = lease.terms.expires_at.duration_since(now.wall).unwrap_or_default();
        let ask = Ask::new(wanted.cores, wanted.memory, left, &lease.terms.client);
        let ask = ask.map_err(|_| NotReplaced::NotUnclaimed(id))?; // its time is over
        let ask = Ask { while_connected: lease.while_connected, peer: lease.peer, ..ask };
        let claim_by = lease.claim_by;
        self.shares.count(now, &ask.clone().by(origin))?;
        self.try_last(now, slot, origin);
        let (cores, memory) = (wanted.cores, wanted.memory);
        let elsewhere = self.nodes.place_elsewhere(wanted, slot);
        let grant = elsewhere.and_then(|other| self.grant(now, &ask, other, wanted, claim_by));
        let grant = grant.ok_or(NotReplaced::NoRoom { cores, memory })?;
        tracing::info!(lease = %id, by = %grant.terms.lease, from = %node, to = %grant.node, why = because.in_words(), "lease replaced");
        self.finish(now, id, EndReason::Released, None, out);
        Ok(grant)
    }

    fn try_last(&mut self, now: Now, slot: Slot, origin: Peer) {
        for forgiven in self.distrust.take(now.monotonic, slot, origin) {
            self.nodes.change(forgiven, |node| node.tried_last = false);
        }
        let news = self.nodes.change(slot, |node| {
            let news = !std::mem::replace(&mut node.tried_last, true);
            news.then(|| node.spec.name().clone())
        });
        if let Some(node) = news.flatten() {
            tracing::warn!(%node, by = ?origin, "a client could not use a lease on this node: for {TRIED_LAST:?} it is tried last");
        }
    }

    /// Forgives nodes whose time is over.
    pub(super) fn forgive(&mut self, now: Instant) {
        for slot in self.distrust.due(now) {
            self.nodes.change(slot, |node| node.tried_last = false);
        }
    }
}
