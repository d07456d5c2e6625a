//! All leases that have not ended, and what is known of those that have: which they are, and the bills
//! that a report may still change.
//!
//! ```text
//!   granted ──claimed──▶ active ──asked to end──▶ ending        (ended: no lease, a bill)
//! ```
//! Every lease has a deadline in every state, and its state changes here only. Ids only go up, so none is
//! ever granted twice.
//!
//! Elsewhere: a lease (`lease`), its deadline (`deadlines`), what it takes of a node and of its client's
//! share ([`Pool`](super::Pool)).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;

use super::bills::OpenBills;
use super::deadlines::Deadlines;
use super::graphs::{GraphKey, GraphView, GraphWorker, Graphs};
use super::lease::{GrantedLease, LeasePhase, LeaseState, LeaseView, Terms, whole_ms};
use super::node_index::NodeSlot;
use super::{Billed, CLAIM_IN_FLIGHT, END_MARGIN, EXPIRY_MARGIN, LeaseRecord, Now};

#[derive(Debug)]
pub(super) struct LeaseTable {
    leases: HashMap<LeaseId, GrantedLease>,
    /// The ids of these leases, in order.
    ids: BTreeSet<LeaseId>,
    /// Those that are workers of graphs.
    graphs: Graphs,
    /// The number of leases in each state.
    states: [usize; LeaseState::ALL.len()],
    deadlines: Deadlines,
    open_bills: OpenBills,
    /// The first id of this state: smaller ones are of a state that was lost. All leases from it up to the
    /// next one have ended unless they are in this table.
    first_id: LeaseId,
    next_id: LeaseId,
    unsaved: UnsavedLeases,
}

/// What changed since changes were last taken.
#[derive(Debug, Default)]
struct UnsavedLeases {
    leases: BTreeSet<LeaseId>,
    bills: Vec<Billed>,
    urgent: bool,
}

/// The changes of leases, to be made durable.
pub(super) struct LeaseChanges {
    pub(super) leases: BTreeMap<LeaseId, Option<LeaseRecord>>,
    pub(super) bills: Vec<Billed>,
    /// Whether actions and answers depend on them.
    pub(super) urgent: bool,
}

/// What a node's report is about, as far as leases are known here.
pub(super) enum Reported<'a> {
    /// A lease that was granted with these terms.
    Granted,
    /// A lease that was granted with other terms, or on another node.
    Otherwise,
    /// One that has ended, whose bill may still change.
    OpenBill(&'a Billed),
    /// One of an earlier state, which was lost.
    Earlier,
    /// One that has ended; its bill is final.
    Ended,
    /// No lease that ever was.
    Unknown,
}

impl LeaseTable {
    /// An empty table. Ids count up from the wall clock's microseconds since the Unix epoch. So a manager
    /// that starts again does not use an id again unless it granted more than one lease a microsecond all
    /// the time before, or the clock was set back over its whole life. They are below 2^53 until the year
    /// 2255, so JSON readers that only know floating-point numbers keep them exact.
    pub(super) fn new(now: Now) -> Self {
        let micros = now.wall.duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_micros());
        let first = u64::try_from(micros).ok().and_then(LeaseId::new);
        let first_id = first.unwrap_or(LeaseId(NonZeroU64::MIN));
        LeaseTable {
            leases: HashMap::new(),
            ids: BTreeSet::new(),
            graphs: Graphs::default(),
            states: Default::default(),
            deadlines: Deadlines::default(),
            open_bills: OpenBills::default(),
            first_id,
            next_id: first_id,
            unsaved: UnsavedLeases::default(),
        }
    }

    /// An empty table of a state that began with `first_id` and had granted leases up to `last_id`.
    pub(super) fn of_state(now: Now, first_id: LeaseId, last_id: Option<LeaseId>) -> Self {
        let new = LeaseTable::new(now);
        let after = last_id.and_then(|last| last.0.checked_add(1)).map(LeaseId);
        let next_id = new.next_id.max(first_id).max(after.unwrap_or(first_id));
        LeaseTable { first_id, next_id, ..new }
    }

    pub(super) fn first_id(&self) -> LeaseId {
        self.first_id
    }

    /// An id for a new lease.
    pub(super) fn take_id(&mut self) -> LeaseId {
        let id = self.next_id;
        self.next_id = LeaseId(id.0.checked_add(1).expect("2^64 leases were not granted"));
        id
    }

    pub(super) fn get(&self, id: LeaseId) -> Option<&GrantedLease> {
        self.leases.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &GrantedLease> {
        self.leases.values()
    }

    /// Leases from `first` up to, but without, `end`.
    pub(super) fn between(
        &self,
        first: LeaseId,
        end: LeaseId,
    ) -> impl Iterator<Item = &GrantedLease> {
        self.ids.range(first..end.max(first)).filter_map(|id| self.leases.get(id))
    }

    /// The first `most` leases with ids after `id`, or of all.
    pub(super) fn after(&self, id: Option<LeaseId>, most: usize) -> Vec<LeaseView> {
        let start = id.map_or(Bound::Unbounded, Bound::Excluded);
        let after = self.ids.range((start, Bound::Unbounded)).take(most);
        after.filter_map(|id| self.leases.get(id)).map(GrantedLease::view).collect()
    }

    /// Whether there are graphs after `key`.
    pub(super) fn any_graphs_after(&self, key: &GraphKey) -> bool {
        self.graphs.any_after(key)
    }

    /// The first graphs after `key`, or of all: up to `most`, as far as they fit a page.
    pub(super) fn graphs_after(&self, key: Option<&GraphKey>, most: usize) -> Vec<GraphView> {
        self.graphs.after(key, most, |id| self.leases.get(&id))
    }

    /// Notes what a lease is for, once.
    pub(super) fn note_worker(&mut self, id: LeaseId, worker: Arc<GraphWorker>) {
        let lease = self.leases.get_mut(&id).filter(|lease| lease.worker.is_none());
        let Some(lease) = lease else { return };
        lease.worker = Some(worker);
        self.graphs.add(lease);
        self.unsaved.lease_lazily(id);
    }

    /// The number of leases in `state`.
    pub(super) fn count(&self, state: LeaseState) -> usize {
        self.states[state as usize]
    }

    /// Whether this was a lease once and is none any more.
    pub(super) fn has_ended(&self, id: LeaseId) -> bool {
        let granted = (self.first_id..self.next_id).contains(&id);
        (granted && !self.leases.contains_key(&id)) || self.open_bills.get(id).is_some()
    }

    /// Whether this lease, or its bill, is known.
    pub(super) fn knows(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id) || self.open_bills.get(id).is_some()
    }

    /// What the node in `slot` means when it reports `terms`.
    pub(super) fn reported(&self, slot: NodeSlot, terms: &Terms) -> Reported<'_> {
        let id = terms.lease;
        if let Some(lease) = self.leases.get(&id) {
            match lease.slot == slot && lease.terms.allow(terms) {
                true => Reported::Granted,
                false => Reported::Otherwise,
            }
        } else if let Some(billed) = self.open_bills.get(id) {
            Reported::OpenBill(billed)
        } else if id < self.first_id {
            Reported::Earlier
        } else if id < self.next_id {
            Reported::Ended
        } else {
            Reported::Unknown
        }
    }

    pub(super) fn insert(&mut self, lease: GrantedLease) {
        let id = lease.terms.lease;
        self.deadlines.insert(lease.deadline, id, &self.leases);
        self.states[lease.phase.shown() as usize] += 1;
        self.ids.insert(id);
        self.graphs.add(&lease);
        self.leases.insert(id, lease);
        self.unsaved.lease(id);
    }

    pub(super) fn remove(&mut self, id: LeaseId) -> Option<GrantedLease> {
        let lease = self.leases.remove(&id)?;
        self.states[lease.phase.shown() as usize] -= 1;
        self.ids.remove(&id);
        self.graphs.remove(&lease);
        self.unsaved.lease(id);
        Some(lease)
    }

    /// Sends a bill out to be kept, and remembers it as long as a report may still change it.
    pub(super) fn book(&mut self, now: Now, billed: Billed) {
        self.open_bills.book(now, self.first_id, &billed);
        self.unsaved.bills.push(billed);
        self.unsaved.urgent = true;
    }

    /// Remembers a bill that the store has, likewise.
    pub(super) fn restore_bill(&mut self, now: Now, billed: &Billed) {
        self.open_bills.book(now, self.first_id, billed);
    }

    /// Notes that all is as the store has it.
    pub(super) fn all_saved(&mut self) {
        self.unsaved = UnsavedLeases::default();
    }

    /// Notes that the record of a lease is to be saved.
    pub(super) fn save(&mut self, id: LeaseId) {
        self.unsaved.lease(id);
    }

    /// Gives a lease a new state and, with it, a new deadline.
    fn set_phase(&mut self, id: LeaseId, phase: LeasePhase, deadline: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        self.states[lease.phase.shown() as usize] -= 1;
        self.states[phase.shown() as usize] += 1;
        lease.phase = phase;
        if std::mem::replace(&mut lease.deadline, deadline) != deadline {
            self.deadlines.insert(deadline, id, &self.leases);
        }
    }

    /// The first deadline of a lease; perhaps of one that does not hold any more.
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.deadlines.first()
    }

    /// A lease whose deadline has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<LeaseId> {
        self.deadlines.due(now, &self.leases)
    }

    /// Has all leases of an earlier run be claimed by then, unless they end sooner with the connection of
    /// their client.
    pub(super) fn set_claim_by(&mut self, now: Now, claim_by: Instant) {
        let ids: Vec<_> = self.leases.keys().copied().collect();
        for id in ids {
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            lease.claim_by = claim_by;
            if let LeasePhase::Granted { then: EndReason::Expired } = lease.phase {
                let (phase, deadline) = LeasePhase::unclaimed(now, &lease.terms, claim_by);
                self.set_phase(id, phase, deadline);
            }
        }
    }

    /// Has an unclaimed lease wait until `claim_by`, if that is later than before.
    pub(super) fn wait_for_claim(&mut self, now: Now, id: LeaseId, claim_by: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        if let LeasePhase::Granted { then: EndReason::Unclaimed } = lease.phase {
            lease.claim_by = lease.claim_by.max(claim_by);
            let (phase, deadline) = LeasePhase::unclaimed(now, &lease.terms, lease.claim_by);
            self.set_phase(id, phase, deadline);
        }
    }

    /// The client of these leases is gone: those that it did not claim end soon.
    pub(super) fn client_gone(&mut self, now: Now, leases: impl IntoIterator<Item = LeaseId>) {
        for id in leases {
            let Some(lease) = self.leases.get(&id) else { continue };
            let end = now.monotonic + CLAIM_IN_FLIGHT;
            if lease.is_unclaimed() && end < lease.deadline {
                self.set_phase(id, LeasePhase::Granted { then: EndReason::ClientGone }, end);
            }
        }
    }

    /// From now on an unclaimed lease waits anew, as far as that counts for its client.
    pub(super) fn excuse(&mut self, now: Now, id: LeaseId) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.waits_since = lease.waits_since.map(|_| now.monotonic);
        }
    }

    /// The connection of the lease's node has ended: from now on nobody sees that it is in use.
    pub(super) fn lose_sight(&mut self, now: Now, id: LeaseId) {
        if let Some(lease) = self.leases.get_mut(&id).filter(|lease| !lease.is_unclaimed()) {
            lease.unseen_since.get_or_insert(now.monotonic);
        }
    }

    /// Notes that a lease is in use. If it is to end, returns why and within which time.
    pub(super) fn in_use(&mut self, now: Now, id: LeaseId) -> Option<(EndReason, Duration)> {
        let lease = self.leases.get_mut(&id)?;
        lease.unseen_since = None;
        lease.seen_from.get_or_insert(now.monotonic);
        if lease.claimed_at.is_none() {
            lease.claimed_at = Some(now.wall);
            self.unsaved.lease_lazily(id);
        }
        match lease.phase {
            LeasePhase::Granted { .. } => {
                tracing::info!(lease = %id, node = ?lease.node, client = ?lease.terms.client, "lease claimed");
                let deadline = now.until(lease.terms.expires_at) + EXPIRY_MARGIN;
                self.set_phase(id, LeasePhase::Active, deadline);
                None
            }
            LeasePhase::Active => None,
            LeasePhase::Ending { reason, grace_ends } => {
                Some((reason, grace_ends.monotonic.saturating_duration_since(now.monotonic)))
            }
        }
    }

    /// The node in `slot` says what a lease has used so far. What is older than what is known, or of a
    /// lease that is not in use there, is no news.
    pub(super) fn used(&mut self, slot: NodeSlot, id: LeaseId, bill: Bill) {
        let lease = self.leases.get_mut(&id).filter(|lease| lease.slot == slot);
        if let Some(lease) = lease.filter(|lease| lease.claimed_at.is_some())
            && bill.allocated_ns.get() > lease.used.allocated_ns.get()
        {
            lease.used = bill;
            self.unsaved.lease_lazily(id);
        }
    }

    /// Moves the end of a lease, which may be renewed, to `timeout` from now, never nearer.
    pub(super) fn renew(&mut self, now: Now, id: LeaseId, timeout: Duration) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.terms.expires_at = lease.terms.expires_at.max(whole_ms(now.wall + timeout));
        let (phase, deadline) = match lease.phase {
            // More time, but not to claim it.
            LeasePhase::Granted { .. } => LeasePhase::unclaimed(now, &lease.terms, lease.claim_by),
            phase => (phase, now.until(lease.terms.expires_at) + EXPIRY_MARGIN),
        };
        self.set_phase(id, phase, deadline);
        self.unsaved.lease(id);
    }

    /// Has a claimed lease end within `grace`. Returns why it ends, if its node is to be asked; it is not
    /// if the lease ends as soon already.
    pub(super) fn begin_ending(
        &mut self,
        now: Now,
        id: LeaseId,
        reason: EndReason,
        grace: Duration,
    ) -> Option<EndReason> {
        let lease = self.leases.get(&id)?;
        let ends = now.monotonic + grace;
        // Not later than if it had been left alone: grace does not outlive the lease.
        let (reason, deadline) = match lease.phase {
            LeasePhase::Ending { grace_ends, .. } if grace_ends.monotonic <= ends => return None,
            LeasePhase::Ending { reason, .. } => (reason, lease.deadline.min(ends + END_MARGIN)),
            LeasePhase::Active => (reason, lease.deadline.min(ends) + END_MARGIN),
            LeasePhase::Granted { .. } => return None,
        };
        tracing::info!(
            lease = %id, node = ?lease.node, reason = reason.name(), ?grace, "lease is to end"
        );
        let grace_ends = Now { monotonic: ends, wall: now.wall + grace };
        self.set_phase(id, LeasePhase::Ending { reason, grace_ends }, deadline);
        self.unsaved.lease(id);
        Some(reason)
    }

    /// What changed since this was last called.
    pub(super) fn take_unsaved(&mut self) -> LeaseChanges {
        let UnsavedLeases { leases, bills, urgent } = std::mem::take(&mut self.unsaved);
        let record = |id: LeaseId| (id, self.leases.get(&id).map(GrantedLease::record));
        LeaseChanges { leases: leases.into_iter().map(record).collect(), bills, urgent }
    }

    /// Bills that were booked since changes were last taken.
    #[cfg(test)]
    pub(super) fn unsaved_bills(&self) -> &[Billed] {
        &self.unsaved.bills
    }
}

impl UnsavedLeases {
    fn lease(&mut self, id: LeaseId) {
        self.leases.insert(id);
        self.urgent = true;
    }

    /// Likewise, for a change that no action or answer depends on.
    fn lease_lazily(&mut self, id: LeaseId) {
        self.leases.insert(id);
    }
}
