//! From one run of the program to the next: what changed goes out, all of it comes back in.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rfaas_protocol::lease::{EndReason, LeaseId};

use super::lease::{Lease, State};
use super::node::{Connection, Node};
use super::nodes::Slot;
use super::{
    Billed, Changes, END_MARGIN, EXPIRY_MARGIN, LeaseRecord, MAX_TIMEOUT, Now, Pool,
    RESTART_RETURN, Snapshot,
};

/// What changed since changes were last taken.
#[derive(Debug, Default)]
pub(super) struct Unsaved {
    nodes: BTreeSet<Arc<str>>,
    leases: BTreeSet<LeaseId>,
    pub(super) bills: Vec<Billed>,
    urgent: bool,
}

impl Unsaved {
    pub(super) fn node(&mut self, name: &str) {
        self.nodes.insert(name.into());
        self.urgent = true;
    }

    pub(super) fn lease(&mut self, id: LeaseId) {
        self.leases.insert(id);
        self.urgent = true;
    }

    /// Likewise, if nobody is told of it.
    pub(super) fn lease_lazily(&mut self, id: LeaseId) {
        self.leases.insert(id);
    }

    pub(super) fn bill(&mut self, billed: Billed) {
        self.bills.push(billed);
        self.urgent = true;
    }
}

impl Pool {
    /// What changed since this was last called. To be made durable before anything is said or done
    /// about it.
    pub fn take_changes(&mut self) -> Changes {
        let Unsaved { nodes, leases, bills, urgent } = std::mem::take(&mut self.unsaved);
        let node = |name: Arc<str>| {
            let record = self.nodes.named(&name).map(Node::record);
            (name, record)
        };
        Changes {
            nodes: nodes.into_iter().map(node).collect(),
            leases: leases
                .into_iter()
                .map(|id| (id, self.leases.get(&id).map(Lease::record)))
                .collect(),
            bills,
            urgent,
        }
    }

    /// The pool of a run that goes on where the last one stopped. Nodes whose executor manager has not
    /// registered again count as lost; if it does not within [`RESTART_RETURN`], their leases end.
    pub fn restore(now: Now, node_return: Duration, snapshot: Snapshot) -> Self {
        let mut pool = Pool::new(now, node_return);
        pool.first_id = snapshot.first_id;
        let after = snapshot.last_id.and_then(|last| last.0.checked_add(1)).map(LeaseId);
        pool.next_id = pool.next_id.max(pool.first_id).max(after.unwrap_or(pool.first_id));
        for record in snapshot.nodes {
            if pool.nodes.find(record.spec.name()).is_none() {
                pool.nodes.insert(Node::restored(record));
            }
        }
        for bill in &snapshot.bills {
            pool.open_bills.book(now, pool.first_id, bill);
        }
        let strays: Vec<_> =
            snapshot.leases.into_iter().filter_map(|record| pool.take_back(now, record)).collect();
        pool.unsaved = Unsaved::default(); // so far all is as the store has it
        for stray in strays {
            pool.end_stray(now, stray);
        }
        let slots: Vec<_> = pool.nodes.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let drained = pool.nodes.change(slot, |node| {
                if let Connection::Lost { give_up_at } = &mut node.connection
                    && !node.leases.is_empty()
                {
                    *give_up_at = Some(now.monotonic + RESTART_RETURN);
                }
                node.drained()
            });
            if drained == Some(true) {
                pool.forget_node(slot, &mut Vec::new()); // nobody is connected who would be told
            }
        }
        pool
    }

    /// Has a lease go on as it was, or returns what does not fit.
    fn take_back(&mut self, now: Now, record: LeaseRecord) -> Option<LeaseRecord> {
        let holds = record.terms.holds();
        let fits = |slot: &Slot| {
            let node = self.nodes.get(*slot);
            node.is_some_and(|node| {
                node.free().holds(holds) && node.instance == record.terms.instance
            })
        };
        let Some(slot) = self.nodes.find(&record.node).filter(fits) else { return Some(record) };
        if self.leases.contains_key(&record.terms.lease) {
            return Some(record);
        }
        let LeaseRecord { terms, node, granted_at, while_connected, claimed_at, ending, used } =
            record;
        let expires = now.until(terms.expires_at);
        let (state, deadline) = match ending {
            Some((reason, grace_ends)) => {
                let ends = now.until(grace_ends);
                let grace_ends = Now { monotonic: ends, wall: grace_ends };
                let deadline = ends.min(expires + EXPIRY_MARGIN) + END_MARGIN;
                (State::Ending { reason, grace_ends }, deadline)
            }
            None if claimed_at.is_some() => (State::Active, expires + EXPIRY_MARGIN),
            // Its connection has ended. If it was claimed, its node tells so when it is back.
            None if while_connected => {
                let then = EndReason::ClientGone;
                (State::Granted { then }, expires.min(now.monotonic + RESTART_RETURN))
            }
            None => (State::Granted { then: EndReason::Expired }, expires),
        };
        self.insert(
            now,
            Lease {
                terms,
                node,
                slot,
                peer: None,
                granted_at,
                while_connected,
                claim_by: now.monotonic + MAX_TIMEOUT,
                claimed_at,
                seen_from: None,
                unseen_since: claimed_at.map(|_| now.monotonic),
                used,
                state,
                deadline,
            },
        );
        None
    }

    /// Ends a lease that has no place here, which no run of this program leaves behind: its state was
    /// changed by other hands.
    fn end_stray(&mut self, now: Now, stray: LeaseRecord) {
        let LeaseRecord { terms, node, used, claimed_at, .. } = stray;
        if self.leases.contains_key(&terms.lease) || self.open_bills.get(terms.lease).is_some() {
            return; // it was there twice
        }
        tracing::warn!(lease = %terms.lease, ?node, "there is no room for a lease of the last run: it ends");
        self.unsaved.lease(terms.lease);
        self.book(
            now,
            Billed {
                lease: terms.lease,
                client: terms.client,
                node,
                cores: terms.cores,
                memory: terms.memory,
                bill: used,
                ended_at: now.wall,
                reason: EndReason::NodeLost,
                claimed: claimed_at.is_some(),
                reported: false,
            },
        );
    }
}
