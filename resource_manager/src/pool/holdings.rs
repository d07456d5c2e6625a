//! What is held, as far as more than one table knows of it: nodes, leases and clients' shares that
//! agree, and go on agreeing when nodes report and when time passes.
//!
//! CAPACITY and ONE END (`pool`) are kept here: a lease is counted on its node and in its client's
//! share as long as it is in the table of leases, and no longer.
//!
//! Where a node and this program do not agree about a lease, these rules decide:
//! 1. A lease that has ended here stays ended. The node is asked to end it; its bill replaces a
//!    provisional one.
//! 2. A lease in use here that a node which is back does not report has ended there.
//! 3. A lease of an earlier run of the node's executor manager has ended with that run.
//! 4. What is not as it was granted, or never was, the node is asked to end. It is not billed.
//! 5. A lease of an earlier state, which was lost, is taken over if it fits.
//!
//! Elsewhere: what clients ask for, and how nodes come and leave ([`Pool`](super::Pool)).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdmalib::Peer;
use rfaas_api::NodeState;
use rfaas_protocol::Capacity;
use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;

use super::ask::Ask;
use super::distrust::Distrust;
use super::fair_use::Shares;
use super::lease::{EndReport, Grant, GrantedLease, LeasePhase, Terms, whole_ms};
use super::lease_table::{LeaseChanges, LeaseTable, Reported};
use super::node_index::NodeSlot;
use super::node_table::{NodeDue, NodeTable};
use super::{
    Action, Billed, Changes, EXPIRY_MARGIN, LeaseRecord, LinkId, Now, Snapshot, TRIED_LAST, Totals,
};

#[derive(Debug)]
pub(super) struct Holdings {
    pub(super) nodes: NodeTable,
    pub(super) leases: LeaseTable,
    /// What each client holds, and may hold.
    pub(super) shares: Shares,
    /// Nodes that clients could not use.
    pub(super) distrust: Distrust,
    pub(super) totals: Totals,
}

impl Holdings {
    /// Nothing is held; new leases get ids of this table.
    pub(super) fn new(leases: LeaseTable) -> Self {
        Holdings {
            nodes: NodeTable::default(),
            leases,
            shares: Shares::default(),
            distrust: Distrust::default(),
            totals: Totals::default(),
        }
    }

    /// What the last run held, as far as it fits together. Nodes have to come back.
    pub(super) fn restore(now: Now, snapshot: Snapshot) -> Self {
        let leases = LeaseTable::of_state(now, snapshot.first_id, snapshot.last_id);
        let mut held = Holdings::new(leases);
        snapshot.nodes.into_iter().for_each(|record| held.nodes.restore(now, record));
        for bill in &snapshot.bills {
            held.leases.restore_bill(now, bill);
        }
        let strays = snapshot.leases.into_iter().filter_map(|record| held.take_back(now, record));
        let strays: Vec<_> = strays.collect();
        held.leases.all_saved();
        for stray in strays {
            held.end_stray(now, stray);
        }
        for slot in held.nodes.expect_back(now) {
            held.forget_node(slot, &mut Vec::new()); // no node is connected
        }
        held
    }

    /// Has a lease go on as it was, or returns what does not fit.
    fn take_back(&mut self, now: Now, record: LeaseRecord) -> Option<LeaseRecord> {
        let fits = |slot: &NodeSlot| {
            let node = self.nodes.get(*slot);
            node.is_some_and(|node| {
                node.free().holds(record.terms.holds()) && node.instance == record.terms.instance
            })
        };
        let slot = self.nodes.find(&record.node).filter(fits);
        let Some(slot) = slot.filter(|_| self.leases.get(record.terms.lease).is_none()) else {
            return Some(record);
        };
        self.insert(now, GrantedLease::restored(now, record, slot));
        None
    }

    /// Ends a lease that has no place here, which no run of this program leaves behind: its state was
    /// changed by other hands.
    fn end_stray(&mut self, now: Now, stray: LeaseRecord) {
        let LeaseRecord { terms, node, used, claimed_at, .. } = stray;
        if self.leases.knows(terms.lease) {
            return; // it was there twice
        }
        tracing::warn!(lease = %terms.lease, ?node, "there is no room for a lease of the last run: it ends");
        self.leases.save(terms.lease);
        let (reason, claimed) = (EndReason::NodeLost, claimed_at.is_some());
        let (ended_at, reported) = (now.wall, false);
        let billed =
            Billed { reported, claimed, ..Billed::new(&terms, node, used, reason, ended_at) };
        self.leases.book(now, billed);
    }

    /// What changed since this was last called. To be made durable before anything is said or done
    /// about it.
    pub(super) fn take_changes(&mut self) -> Changes {
        let nodes = self.nodes.take_unsaved();
        let LeaseChanges { leases, bills, urgent } = self.leases.take_unsaved();
        let urgent = urgent || !nodes.is_empty();
        Changes { nodes, leases, bills, policy: None, urgent }
    }

    /// What leases hold that a request grows, by node. Those of other clients, those that are ending or have ended, and
    /// those that never were count for nothing: the answer tells nothing of them.
    pub(super) fn grown(&self, ask: &Ask) -> Vec<(usize, Capacity)> {
        let mut nodes = BTreeMap::new();
        let grown: BTreeSet<_> = ask.grows.iter().collect();
        let leases = grown.into_iter().filter_map(|id| self.leases.get(*id));
        for lease in leases.filter(|lease| lease.terms.client == ask.client && !lease.is_ending()) {
            let held = nodes.entry(lease.slot.0).or_insert(Capacity::NOTHING);
            held.cores += lease.terms.cores;
            held.memory += lease.terms.memory;
        }
        nodes.into_iter().collect()
    }

    /// Grants a part of `ask`, to be claimed by then, on a node that is ready and has room for it; it belongs to the
    /// `gang` of that lease.
    pub(super) fn grant(
        &mut self,
        now: Now,
        ask: &Ask,
        slot: NodeSlot,
        part: Capacity,
        claim_by: Instant,
        gang: Option<LeaseId>,
    ) -> Option<Grant> {
        let node = self.nodes.get(slot)?;
        let manager = node.manager()?;
        let lease = self.leases.take_id();
        let terms = Terms {
            lease,
            cores: part.cores,
            memory: part.memory,
            expires_at: whole_ms(now.wall + ask.timeout),
            instance: node.instance,
            client: ask.client.clone(),
        };
        let node = node.spec.name().clone();
        tracing::info!(
            %lease, ?node, client = ?ask.client, cores = part.cores, memory = part.memory,
            timeout = ?ask.timeout, "lease granted"
        );
        let phase = LeasePhase::unclaimed(now, &terms, claim_by);
        let granted = GrantedLease {
            peer: ask.peer,
            while_connected: ask.while_connected,
            gang: gang.unwrap_or(lease),
            constraints: ask.shared_constraints(),
            claim_by,
            ..GrantedLease::new(now, terms.clone(), (node.clone(), slot), phase)
        };
        self.insert(now, granted);
        Some(Grant { terms, node, manager })
    }

    /// Books a new lease on its node, which has room for it.
    fn insert(&mut self, now: Now, mut lease: GrantedLease) {
        self.shares.take(now.monotonic, &lease);
        lease.waits_since = self.shares.wait_for_claim(now.monotonic, &lease);
        self.nodes.take(&lease);
        self.totals.granted += 1;
        self.leases.insert(lease);
    }

    /// Has the node of a claimed lease end it within `grace`; an unclaimed one ends at once. Repeated,
    /// it can only shorten the grace.
    pub(super) fn begin_ending(
        &mut self,
        now: Now,
        id: LeaseId,
        reason: EndReason,
        grace: Duration,
        out: &mut Vec<Action>,
    ) {
        let Some(lease) = self.leases.get(id) else { return };
        if lease.is_unclaimed() {
            return self.finish(now, id, reason, None, out);
        }
        let link = self.nodes.get(lease.slot).and_then(|node| node.link());
        let asked = self.leases.begin_ending(now, id, reason, grace);
        if let (Some(reason), Some(link)) = (asked, link) {
            out.push(Action::EndLease { link, lease: id, reason, grace });
        }
    }

    /// Ends a lease (ONE END): it is removed and billed, its capacity is free, and its node is forgotten if
    /// it was only waiting for this. Without `report` the bill is what is known here.
    pub(super) fn finish(
        &mut self,
        now: Now,
        id: LeaseId,
        reason: EndReason,
        report: Option<Bill>,
        out: &mut Vec<Action>,
    ) {
        let Some(lease) = self.leases.remove(id) else { return };
        self.totals.ended[usize::from(reason as u16)] += 1;
        let bill = report.unwrap_or_else(|| lease.known_bill(now));
        tracing::info!(
            lease = %id, node = ?lease.node, client = ?lease.terms.client, reason = reason.name(),
            allocated_ms = bill.allocated_ns.get() / 1_000_000, "lease ended"
        );
        // What the client could not help is not held against it.
        let in_vain = report.is_none()
            && matches!(
                reason,
                EndReason::Unclaimed
                    | EndReason::Released
                    | EndReason::ClientGone
                    | EndReason::Expired
            );
        self.shares.give(now.monotonic, &lease, in_vain);
        let drained = self.nodes.give(&lease);
        let (reported, claimed) = (report.is_some(), lease.claimed_at.is_some());
        let billed = Billed::new(&lease.terms, lease.node, bill, reason, now.wall);
        self.leases.book(now, Billed { reported, claimed: claimed || reported, ..billed });
        if drained {
            self.forget_node(lease.slot, out);
        }
    }

    pub(super) fn forget_node(&mut self, slot: NodeSlot, out: &mut Vec<Action>) {
        self.distrust.forget(slot);
        self.nodes.forget(slot, out);
    }

    fn is_away(&self, slot: NodeSlot) -> bool {
        self.nodes.get(slot).is_none_or(|node| node.link().is_none())
    }

    /// Unclaimed leases, newest first, without which there is room for `wanted` on a node; `None` if there
    /// are too few.
    fn spare(&self, slot: NodeSlot, wanted: Capacity) -> Option<Vec<LeaseId>> {
        let node = self.nodes.get(slot)?;
        let leases = node.leases.iter().rev().filter_map(|id| self.leases.get(*id));
        let mut unclaimed = leases.filter(|lease| lease.is_unclaimed());
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

    /// Has other nodes tried before the one in `slot`, which a client of `origin` could not use.
    pub(super) fn try_last(&mut self, now: Now, slot: NodeSlot, origin: Peer) {
        for forgiven in self.distrust.take(now.monotonic, slot, origin) {
            self.nodes.set_tried_last(forgiven, false);
        }
        if let Some(node) = self.nodes.set_tried_last(slot, true) {
            tracing::warn!(%node, by = ?origin, "a client could not use a lease on this node: for {TRIED_LAST:?} it is tried last");
        }
    }

    // What is due.

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let node = self.nodes.first_deadline().map(|(at, _)| at);
        let forgiven = self.distrust.first_deadline();
        node.into_iter().chain(self.leases.first_deadline()).chain(forgiven).min()
    }

    pub(super) fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        for slot in self.distrust.due(now.monotonic) {
            self.nodes.set_tried_last(slot, false);
        }
        while let Some((at, slot)) = self.nodes.first_deadline()
            && at <= now.monotonic
        {
            self.node_due(now, slot, out);
        }
        while let Some(id) = self.leases.due(now.monotonic) {
            self.lease_due(now, id, out);
        }
    }

    fn node_due(&mut self, now: Now, slot: NodeSlot, out: &mut Vec<Action>) {
        let Some(due) = self.nodes.due(now, slot, out) else { return };
        for id in self.nodes.leases_on(slot) {
            let unseen = self.leases.get(id).is_some_and(|lease| lease.unseen_since.is_some());
            if unseen && due == NodeDue::EndUnreported {
                tracing::warn!(lease = %id, "its node is back and does not report it: it has ended there");
            }
            if unseen || due == NodeDue::GiveUp {
                self.finish(now, id, EndReason::NodeLost, None, out);
            }
        }
    }

    fn lease_due(&mut self, now: Now, id: LeaseId, out: &mut Vec<Action>) {
        let Some(lease) = self.leases.get(id) else { return };
        match lease.phase {
            LeasePhase::Granted { then: EndReason::Unclaimed } if self.is_away(lease.slot) => {
                // Its claim could not be reported. If its node does not come back, the lease ends with that.
                let claim_by = now.monotonic + self.shares.claim_timeout();
                self.leases.wait_for_claim(now, id, claim_by);
            }
            LeasePhase::Granted { then } => self.finish(now, id, then, None, out),
            LeasePhase::Active => {
                self.begin_ending(now, id, EndReason::Expired, Duration::ZERO, out);
            }
            LeasePhase::Ending { reason, .. } => {
                tracing::warn!(lease = %id, node = ?lease.node, "the node did not report the end of a lease in time");
                self.finish(now, id, reason, None, out);
            }
        }
    }

    // What nodes report of leases.

    pub(super) fn claimed(&mut self, now: Now, link: LinkId, terms: &Terms, out: &mut Vec<Action>) {
        let Some((slot, node)) = self.nodes.on(link) else { return };
        let (id, node) = (terms.lease, node.spec.name());
        let end = match self.leases.reported(slot, terms) {
            Reported::Granted => {
                if let Some(lease) = self.leases.get(id).filter(|lease| lease.is_unclaimed()) {
                    self.shares.claimed(now.monotonic, lease);
                }
                self.leases.in_use(now, id)
            }
            Reported::Otherwise => {
                tracing::warn!(lease = %id, ?node, "the node holds a lease that was granted otherwise: it is told to end it");
                Some((EndReason::Withdrawn, Duration::ZERO))
            }
            Reported::OpenBill(billed) => {
                // It was claimed just as it ended here, or its node was thought lost.
                tracing::warn!(lease = %id, ?node, "the node holds a lease that has ended: it is told to end it");
                Some((billed.reason, Duration::ZERO))
            }
            Reported::Earlier | Reported::Ended | Reported::Unknown => {
                let taken_over = self.take_over(now, slot, terms, out);
                (!taken_over).then_some((EndReason::Withdrawn, Duration::ZERO))
            }
        };
        if let Some((reason, grace)) = end {
            out.push(Action::EndLease { link, lease: id, reason, grace });
        }
    }

    /// Takes over a running lease of an earlier state, if it is one and fits. Leases that nobody claimed
    /// yet make room for it.
    fn take_over(
        &mut self,
        now: Now,
        slot: NodeSlot,
        terms: &Terms,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(node) = self.nodes.get(slot) else { return false };
        let (lease, name) = (terms.lease, node.spec.name().clone());
        let fits = lease < self.leases.first_id()
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
        let phase = (LeasePhase::Active, now.until(terms.expires_at) + EXPIRY_MARGIN);
        let lease = GrantedLease {
            claimed_at: Some(now.wall),
            seen_from: Some(now.monotonic),
            ..GrantedLease::new(now, terms.clone(), (name, slot), phase)
        };
        self.insert(now, lease);
        true
    }

    pub(super) fn used(&mut self, link: LinkId, id: LeaseId, bill: Bill) {
        let Some((slot, _)) = self.nodes.on(link) else { return };
        self.leases.used(slot, id, countable(bill));
    }

    pub(super) fn ended(
        &mut self,
        now: Now,
        link: LinkId,
        report: &EndReport,
        out: &mut Vec<Action>,
    ) {
        let Some((slot, node)) = self.nodes.on(link) else { return };
        let &EndReport { ref terms, reason, bill } = report;
        let (id, name, bill) = (terms.lease, node.spec.name(), countable(bill));
        // Before a connection is closed because this was a removed node's last lease.
        out.push(Action::AcknowledgeEnd { link, lease: id });
        let billed = Billed::new(terms, name.clone(), bill, reason, now.wall);
        match self.leases.reported(slot, terms) {
            Reported::Granted => self.finish(now, id, reason, Some(bill), out),
            Reported::OpenBill(known) if known.is_of(&billed) => match known.reported {
                true => tracing::debug!(lease = %id, "already billed"),
                false => self.leases.book(now, billed),
            },
            Reported::Earlier => self.leases.book(now, billed),
            Reported::Ended => tracing::debug!(lease = %id, "already billed"),
            Reported::Otherwise | Reported::OpenBill(_) | Reported::Unknown => {
                tracing::warn!(lease = %id, node = ?name, "the node reports the end of a lease that was not granted so: it is not billed");
            }
        }
    }
}

/// A bill as it can be believed: what is in an executor's memory, its functions may write.
fn countable(bill: Bill) -> Bill {
    Bill { invocations: bill.invocations.get().min(Bill::MOST_INVOCATIONS).into(), ..bill }
}
