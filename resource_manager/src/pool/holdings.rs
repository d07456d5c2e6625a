//! What is held, as far as more than one table knows of it: nodes, leases and clients' shares that agree.
//!
//! CAPACITY and ONE END (`pool`) are kept here: a lease is counted on its node and in its client's share as
//! long as it is in the table of leases, and no longer.

use std::time::{Duration, Instant};

use rfaas_protocol::Capacity;
use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;

use super::ask::Ask;
use super::distrust::Distrust;
use super::fair_use::Shares;
use super::lease::{Grant, GrantedLease, LeasePhase, Terms, whole_ms};
use super::lease_table::{LeaseChanges, LeaseTable};
use super::node_index::NodeSlot;
use super::node_table::NodeTable;
use super::{Action, Billed, Changes, LeaseRecord, Now, Totals};

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

    /// Has a lease go on as it was, or returns what does not fit.
    pub(super) fn take_back(&mut self, now: Now, record: LeaseRecord) -> Option<LeaseRecord> {
        let fits = |slot: &NodeSlot| {
            let node = self.nodes.get(*slot);
            node.is_some_and(|node| {
                node.free().holds(record.terms.holds()) && node.instance == record.terms.instance
            })
        };
        let slot = self.nodes.find(&record.node).filter(fits);
        match slot.filter(|_| self.leases.get(record.terms.lease).is_none()) {
            Some(slot) => self.insert(now, GrantedLease::restored(now, record, slot)),
            None => return Some(record),
        }
        None
    }

    /// Ends a lease that has no place here, which no run of this program leaves behind: its state was
    /// changed by other hands.
    pub(super) fn end_stray(&mut self, now: Now, stray: LeaseRecord) {
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
        Changes { nodes, leases, bills, urgent }
    }

    /// Grants a part of `ask`, to be claimed by then, on a node that is ready and has room for it.
    pub(super) fn grant(
        &mut self,
        now: Now,
        ask: &Ask,
        slot: NodeSlot,
        part: Capacity,
        claim_by: Instant,
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
            claim_by,
            ..GrantedLease::new(now, terms.clone(), (node.clone(), slot), phase)
        };
        self.insert(now, granted);
        Some(Grant { terms, node, manager })
    }

    /// Books a new lease on its node, which has room for it.
    pub(super) fn insert(&mut self, now: Now, lease: GrantedLease) {
        self.shares.take(now.monotonic, &lease);
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
        self.shares.give(&lease);
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

    pub(super) fn is_away(&self, slot: NodeSlot) -> bool {
        self.nodes.get(slot).is_none_or(|node| node.link().is_none())
    }

    /// Unclaimed leases, newest first, without which there is room for `wanted` on a node; `None` if there
    /// are too few.
    pub(super) fn spare(&self, slot: NodeSlot, wanted: Capacity) -> Option<Vec<LeaseId>> {
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
}
