//! How leases end.

use std::time::{Duration, Instant};

use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;

use super::granting::unclaimed;
use super::lease::{LeaseState, State};
use super::nodes::Slot;
use super::{Action, Billed, CLAIM_IN_FLIGHT, END_MARGIN, Now, Pool};

impl Pool {
    /// Ends a lease on demand: at once if it was not claimed, else its node is told. Returns its
    /// state afterwards, `None` if it never existed. Repeating it changes nothing.
    pub fn end_lease(
        &mut self,
        now: Now,
        id: LeaseId,
        reason: EndReason,
        out: &mut Vec<Action>,
    ) -> Option<LeaseState> {
        self.begin_ending(now, id, reason, Duration::ZERO, out);
        let ended = self.has_ended(id).then_some(LeaseState::Ended);
        self.lease(id).map(|lease| lease.state).or(ended)
    }

    /// The client that was granted these leases is gone: those that it did not claim end soon.
    pub fn client_gone(&mut self, now: Now, leases: impl IntoIterator<Item = LeaseId>) {
        for id in leases {
            let Some(lease) = self.leases.get(&id) else { continue };
            let end = now.monotonic + CLAIM_IN_FLIGHT;
            if matches!(lease.state, State::Granted { .. }) && end < lease.deadline {
                self.set_state(id, State::Granted { then: EndReason::ClientGone }, end);
            }
        }
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
        let Some(lease) = self.leases.get(&id) else { return };
        let ends = now.monotonic + grace;
        // Not later than if it had been left alone: grace does not outlive the lease.
        let (reason, deadline) = match lease.state {
            State::Ending { grace_ends, .. } if grace_ends.monotonic <= ends => return,
            State::Ending { reason, .. } => (reason, lease.deadline.min(ends + END_MARGIN)),
            State::Active => (reason, lease.deadline.min(ends) + END_MARGIN),
            State::Granted { .. } => return self.finish(now, id, reason, None, out),
        };
        tracing::info!(
            lease = %id, node = ?lease.node, reason = reason.name(), ?grace, "lease is to end"
        );
        if let Some(link) = self.nodes.get(lease.slot).and_then(|node| node.link()) {
            out.push(Action::EndLease { link, lease: id, reason, grace });
        }
        let grace_ends = Now { monotonic: ends, wall: now.wall + grace };
        self.set_state(id, State::Ending { reason, grace_ends }, deadline);
        self.unsaved.lease(id);
    }

    /// Does what was due for a lease (BOUNDED).
    pub(super) fn lease_due(&mut self, now: Now, id: LeaseId, out: &mut Vec<Action>) {
        let Some(lease) = self.leases.get(&id) else { return };
        match lease.state {
            State::Granted { then: EndReason::Unclaimed } if self.is_away(lease.slot) => {
                // Nobody could tell of its claim; its node's loss ends it, if that is not back before.
                let claim_by = now.monotonic + self.shares.claim_timeout();
                self.wait_for_claim(now, id, claim_by);
            }
            State::Granted { then } => self.finish(now, id, then, None, out),
            State::Active => {
                self.begin_ending(now, id, EndReason::Expired, Duration::ZERO, out);
            }
            State::Ending { reason, .. } => {
                tracing::warn!(lease = %id, node = ?lease.node, "the node did not report the end of a lease in time");
                self.finish(now, id, reason, None, out);
            }
        }
    }

    fn is_away(&self, slot: Slot) -> bool {
        self.nodes.get(slot).is_none_or(|node| node.link().is_none())
    }

    /// Has an unclaimed lease wait until `claim_by`, if that is later than before.
    pub(super) fn wait_for_claim(&mut self, now: Now, id: LeaseId, claim_by: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        if let State::Granted { then: EndReason::Unclaimed } = lease.state {
            lease.claim_by = lease.claim_by.max(claim_by);
            let (state, deadline) = unclaimed(now, &lease.terms, lease.claim_by);
            self.set_state(id, state, deadline);
        }
    }

    /// Ends a lease (ONCE): it is removed, billed, its capacity is free, and its node is forgotten if
    /// it was only waiting for this. Without `report` the bill is what is known here (PROVISIONAL).
    pub(super) fn finish(
        &mut self,
        now: Now,
        id: LeaseId,
        reason: EndReason,
        report: Option<Bill>,
        out: &mut Vec<Action>,
    ) {
        let Some(lease) = self.leases.remove(&id) else { return };
        self.states[lease.state.shown() as usize] -= 1;
        self.ids.remove(&id);
        self.unsaved.lease(id);
        self.totals.ended[usize::from(reason as u16)] += 1;
        let bill = report.unwrap_or_else(|| lease.known_bill(now));
        tracing::info!(
            lease = %id, node = ?lease.node, client = ?lease.terms.client, reason = reason.name(),
            allocated_ms = bill.allocated_ns.get() / 1_000_000, "lease ended"
        );
        self.shares.give(&lease);
        let drained = self.nodes.change(lease.slot, |node| {
            node.give(&lease);
            node.drained()
        });
        self.book(
            now,
            Billed {
                lease: id,
                client: lease.terms.client,
                node: lease.node,
                cores: lease.terms.cores,
                memory: lease.terms.memory,
                bill,
                ended_at: now.wall,
                reason,
                claimed: lease.claimed_at.is_some() || report.is_some(),
                reported: report.is_some(),
            },
        );
        if drained == Some(true) {
            self.forget_node(lease.slot, out);
        }
    }

    /// Sends a bill out to be kept, and remembers it as long as a report may still concern it.
    pub(super) fn book(&mut self, now: Now, billed: Billed) {
        self.open_bills.book(now, self.first_id, &billed);
        self.unsaved.bill(billed);
    }

    /// Gives a lease a new state and, with it, a new deadline.
    pub(super) fn set_state(&mut self, id: LeaseId, state: State, deadline: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        self.states[lease.state.shown() as usize] -= 1;
        self.states[state.shown() as usize] += 1;
        lease.state = state;
        if std::mem::replace(&mut lease.deadline, deadline) != deadline {
            self.deadlines.insert(deadline, id, &self.leases);
        }
    }
}
