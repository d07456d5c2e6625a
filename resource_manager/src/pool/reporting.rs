//! What nodes report of leases, and what follows where that contradicts what is known here.
//!
//! ```text
//!   the node    claimed ──used──used──▶ ended, again and again until it is acknowledged
//!   the rules   1 ended here: stays ended; the node is told to end it, its bill replaces a provisional one
//!               2 in use here, not reported by a node that is back: ended there (`Pool::node_due`)
//!               3 of an earlier run of the executor manager: ended there (`Pool::node_connected`)
//!               4 not what was granted, or never granted: the node is told to end it, it is not billed
//!               5 of an earlier state, which was lost: taken over, if it fits
//! ```

use std::time::Duration;

use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;

use super::lease::{Lease, State, Terms};
use super::node::{Capacity, NodeState};
use super::nodes::Slot;
use super::{Action, Billed, EXPIRY_MARGIN, LinkId, Now, Pool};

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

impl Pool {
    /// The node on `link` reports that a lease is in use: for the first time, or again after a
    /// reconnection.
    pub fn claimed(&mut self, now: Now, link: LinkId, terms: &Terms, out: &mut Vec<Action>) {
        let Some((slot, node)) = self.nodes.on(link) else { return };
        let (id, node) = (terms.lease, node.spec.name());
        let end = if let Some(lease) = self.leases.get(&id) {
            if lease.slot == slot && lease.terms.allow(terms) {
                self.in_use(now, id)
            } else {
                tracing::warn!(lease = %id, ?node, "the node holds a lease that was granted otherwise: it is told to end it");
                Some((EndReason::Withdrawn, Duration::ZERO))
            }
        } else if let Some(billed) = self.open_bills.get(id) {
            // It was claimed just as it ended here, or its node was thought lost.
            tracing::warn!(lease = %id, ?node, "the node holds a lease that has ended: it is told to end it");
            Some((billed.reason, Duration::ZERO))
        } else {
            let taken_over = self.take_over(now, slot, terms, out);
            (!taken_over).then_some((EndReason::Withdrawn, Duration::ZERO))
        };
        if let Some((reason, grace)) = end {
            out.push(Action::EndLease { link, lease: id, reason, grace });
        }
    }

    /// Notes that a lease is in use. If it is to end, why, and within which time.
    fn in_use(&mut self, now: Now, id: LeaseId) -> Option<(EndReason, Duration)> {
        let lease = self.leases.get_mut(&id)?;
        lease.unseen_since = None;
        lease.seen_from.get_or_insert(now.monotonic);
        if lease.claimed_at.is_none() {
            lease.claimed_at = Some(now.wall);
            self.unsaved.lease_lazily(id);
        }
        match lease.state {
            State::Granted { .. } => {
                tracing::info!(lease = %id, node = ?lease.node, client = ?lease.terms.client, "lease claimed");
                let deadline = now.until(lease.terms.expires_at) + EXPIRY_MARGIN;
                self.set_state(id, State::Active, deadline);
                None
            }
            State::Active => None,
            State::Ending { reason, grace_ends } => {
                Some((reason, grace_ends.monotonic.saturating_duration_since(now.monotonic)))
            }
        }
    }

    /// Takes over a running lease of an earlier state, if it is one and fits. Leases that nobody claimed
    /// yet make room for it.
    fn take_over(&mut self, now: Now, slot: Slot, terms: &Terms, out: &mut Vec<Action>) -> bool {
        let Some(node) = self.nodes.get(slot) else { return false };
        let (lease, name) = (terms.lease, node.spec.name().clone());
        let fits = lease < self.first_id
            && terms.expires_at > now.wall
            && terms.instance == node.instance
            && node.state() != NodeState::Draining;
        let Some(spare) = self.spare(slot, terms.holds()).filter(|_| fits) else {
            tracing::warn!(%lease, node = ?name, "the node holds a lease that is not known here: it is told to end it");
            return false;
        };
        for id in spare {
            self.finish(now, id, EndReason::Withdrawn, None, out);
        }
        tracing::info!(%lease, node = ?name, client = ?terms.client, "lease of an earlier state taken over");
        self.insert(
            now,
            Lease {
                terms: terms.clone(),
                node: name,
                slot,
                peer: None,
                granted_at: now.wall,
                while_connected: false,
                claim_by: now.monotonic,
                claimed_at: Some(now.wall),
                seen_from: Some(now.monotonic),
                unseen_since: None,
                used: Bill::default(),
                state: State::Active,
                deadline: now.until(terms.expires_at) + EXPIRY_MARGIN,
            },
        );
        true
    }

    /// Unclaimed leases, newest first, without which there is room for `wanted` on a node; `None` if there
    /// are too few.
    fn spare(&self, slot: Slot, wanted: Capacity) -> Option<Vec<LeaseId>> {
        let node = self.nodes.get(slot)?;
        let leases = node.leases.iter().rev().filter_map(|id| self.leases.get(id));
        let mut unclaimed = leases.filter(|lease| matches!(lease.state, State::Granted { .. }));
        let mut free = node.free();
        let mut spare = Vec::new();
        while !free.holds(wanted) {
            let lease = unclaimed.next()?;
            free.cores += lease.terms.cores;
            free.memory += lease.terms.memory;
            spare.push(lease.terms.lease);
        }
        Some(spare)
    }

    /// The node on `link` reports what a lease has used so far.
    pub fn used(&mut self, link: LinkId, id: LeaseId, bill: Bill) {
        let bill = countable(bill);
        let Some((slot, _)) = self.nodes.on(link) else { return };
        let lease = self.leases.get_mut(&id).filter(|lease| lease.slot == slot);
        // Of a lease that is not in use here, or older than what is known: no news.
        if let Some(lease) = lease.filter(|lease| lease.claimed_at.is_some())
            && bill.allocated_ns.get() > lease.used.allocated_ns.get()
        {
            lease.used = bill;
            self.unsaved.lease_lazily(id);
        }
    }

    /// The node on `link` reports that a lease has ended, and what it used. Acknowledged also if it
    /// is no news, since the node repeats it until it is.
    pub fn ended(&mut self, now: Now, link: LinkId, report: &EndReport, out: &mut Vec<Action>) {
        let Some((slot, node)) = self.nodes.on(link) else { return };
        let &EndReport { ref terms, reason, bill } = report;
        let bill = countable(bill);
        let (id, name) = (terms.lease, node.spec.name());
        // Before a connection is closed because this was a removed node's last lease.
        out.push(Action::AcknowledgeEnd { link, lease: id });
        let not_granted = || {
            tracing::warn!(lease = %id, node = ?name, "the node reports the end of a lease that was not granted so: it is not billed");
        };
        if let Some(lease) = self.leases.get(&id) {
            match lease.slot == slot && lease.terms.allow(terms) {
                true => self.finish(now, id, reason, Some(bill), out),
                false => not_granted(),
            }
        } else if let Some(known) = self.open_bills.get(id) {
            let same = (&known.node, &known.client, known.cores, known.memory)
                == (name, &terms.client, terms.cores, terms.memory);
            match same {
                true if known.reported => tracing::debug!(lease = %id, "already billed"),
                true => {
                    let (ended_at, reported) = (now.wall, true);
                    let claimed = true;
                    let billed =
                        Billed { bill, reason, ended_at, claimed, reported, ..known.clone() };
                    self.book(now, billed);
                }
                false => not_granted(),
            }
        } else if id < self.first_id {
            let client = terms.client.clone();
            let (cores, memory, ended_at) = (terms.cores, terms.memory, now.wall);
            let (lease, node, claimed, reported) = (id, name.clone(), true, true);
            #[rustfmt::skip]
            let billed = Billed {
                lease, client, node, cores, memory, bill, ended_at, reason, claimed, reported,
            };
            self.book(now, billed);
        } else if self.has_ended(id) {
            tracing::debug!(lease = %id, "already billed");
        } else {
            not_granted();
        }
    }
}

/// A bill as it can be believed: what is in an executor's memory, its functions may write.
fn countable(bill: Bill) -> Bill {
    Bill { invocations: bill.invocations.get().min(Bill::MOST_INVOCATIONS).into(), ..bill }
}
