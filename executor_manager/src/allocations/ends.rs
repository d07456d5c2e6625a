//! When a lease ends, and how, whatever ends it: its process is stopped, then it is billed and free.

use std::time::{Duration, Instant};

use rfaas_protocol::allocation::{LeaseEnding, RefusedBecause, Released, Renewed, ToClient};
use rfaas_protocol::lease::{EndReason, LeaseId, LeaseTerms};
use rfaas_protocol::node::LeaseEnded;

use super::{Action, Allocations, ClientId, Ending, FAR, Process, RENEWED_UNSEEN, UNCLAIMED_END};
use crate::request::Refusal;

const NO_LEASE: &str = "this connection holds no lease";

/// What a client is told whose lease ends in `left` (rounded up), or has ended if nothing is left.
pub(super) fn ending(reason: EndReason, left: Duration) -> ToClient {
    let grace_ms = u32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
    ToClient::LeaseEnding(LeaseEnding { reason: reason.to_wire(), grace_ms: grace_ms.into() })
}

impl Allocations {
    /// Moves the end of the lease that `client` holds, never to an earlier time.
    pub(super) fn renew(
        &mut self,
        now: Instant,
        client: ClientId,
        terms: &LeaseTerms,
        time_left: Duration,
    ) -> Result<Renewed, Refusal> {
        let refused = |because, reason: String| Err(Refusal::new(because, reason));
        let held = self.by_client.get(&client).and_then(|lease| self.leases.get_mut(lease));
        let Some(held) = held else {
            return refused(RefusedBecause::LeaseEnded, NO_LEASE.into());
        };
        let lease = held.terms.lease;
        if !held.named(terms).same_lease(&held.terms) {
            let reason = format!("this connection holds lease {lease}, not the one of this token");
            return refused(RefusedBecause::BadRequest, reason);
        }
        if self.draining.is_some() {
            return Err(Refusal::draining());
        }
        if held.ending.is_some() || held.ends.1 != EndReason::Expired {
            let reason = format!("lease {lease} is being ended");
            return refused(RefusedBecause::LeaseEnded, reason);
        }
        let ends_at = now + time_left.min(FAR);
        held.ends.0 = held.ends.0.max(ends_at);
        held.expires = held.expires.map(|expires| expires.max(ends_at));
        let expires_at_ms = held.terms.expires_at_ms.get().max(terms.expires_at_ms.get());
        held.terms.expires_at_ms = expires_at_ms.into();
        Ok(Renewed { expires_at_ms: expires_at_ms.into() })
    }

    /// The manager is to stop: every lease ends after `grace` at the latest, and no other begins.
    pub(super) fn drain(&mut self, now: Instant, grace: Duration, out: &mut Vec<Action>) {
        let deadline = now + grace.min(FAR);
        self.draining = Some(self.draining.map_or(deadline, |earlier| earlier.min(deadline)));
        for lease in self.leases.keys().copied().collect::<Vec<_>>() {
            self.end_after(now, lease, EndReason::Shutdown, grace, out);
        }
    }

    pub(super) fn release(&mut self, now: Instant, client: ClientId, out: &mut Vec<Action>) {
        let Some(&lease) = self.by_client.get(&client) else {
            let refusal = Refusal::new(RefusedBecause::LeaseEnded, NO_LEASE);
            out.push(Action::Tell(client, refusal.message()));
            return;
        };
        self.end(now, lease, now, EndReason::Released, out);
    }

    pub(super) fn end_after(
        &mut self,
        now: Instant,
        lease: LeaseId,
        reason: EndReason,
        grace: Duration,
        out: &mut Vec<Action>,
    ) {
        let Some(held) = self.leases.get_mut(&lease) else {
            // Its claim may still be on the way.
            self.ended.remember(lease, now, now + UNCLAIMED_END);
            return;
        };
        if grace.is_zero() {
            self.end(now, lease, now, reason, out);
            return;
        }
        let deadline = now + grace.min(FAR);
        if held.ending.is_some() || deadline >= held.ends.0 {
            return; // it ends before that anyway
        }
        held.ends = (deadline, reason);
        let waits = held.process == Process::Starting; // it is told with the answer to its claim
        if let Some(client) = held.client.filter(|_| !waits) {
            out.push(Action::Tell(client, ending(reason, grace)));
        }
    }

    pub(super) fn end_what_is_due(&mut self, now: Instant, out: &mut Vec<Action>) {
        let due: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, held)| held.ending.is_none() && held.ends.0 <= now)
            .map(|(lease, held)| (*lease, held.ends))
            .collect();
        for (lease, (at, reason)) in due {
            self.end(now, lease, at, reason, out);
        }
    }

    /// Ends `lease` as of `at`: its process is stopped, and when that is gone it is billed. ONCE: only
    /// the first end counts; a release that comes second is still answered with the bill.
    pub(super) fn end(
        &mut self,
        now: Instant,
        lease: LeaseId,
        at: Instant,
        reason: EndReason,
        out: &mut Vec<Action>,
    ) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        let released = reason == EndReason::Released;
        if let Some(ending) = &mut held.ending {
            ending.bill_client |= released;
            return;
        }
        held.ending = Some(Ending { at, reason, bill_client: released });
        if let Some(client) = held.client.filter(|_| !released) {
            out.push(Action::Tell(client, ending(reason, Duration::ZERO)));
        }
        match held.process {
            Process::Absent => self.finish(now, lease, out),
            Process::Starting => {}
            Process::Running => out.push(Action::Stop(lease)),
        }
    }

    /// Frees what the lease held, now that no process of it is left, and bills it if it was in use.
    pub(super) fn finish(&mut self, now: Instant, lease: LeaseId, out: &mut Vec<Action>) {
        let Some(mut held) = self.leases.remove(&lease) else { return };
        let (cores, memory) = (held.terms.cores.get(), held.terms.memory.get());
        self.used_cores -= cores;
        self.used_memory -= memory;
        if let (Some(cpus), Some(pins)) = (&mut self.cpus, &held.pins) {
            cpus.give_back(pins);
        }
        if let Some(client) = held.client {
            self.by_client.remove(&client);
        }
        // Without an end, or without a client, a claim that came to nothing may be tried again.
        let Some(ending) = held.ending else { return };
        if !held.confirmed && ending.reason == EndReason::ClientGone {
            return;
        }
        if let Some(expires) = held.expires {
            self.ended.remember(lease, now, expires.max(now + RENEWED_UNSEEN));
        }
        if !held.confirmed {
            return;
        }
        let bill = held.bill(ending.at);
        let reason = ending.reason.to_wire();
        out.push(Action::Ended(LeaseEnded { terms: held.terms, reason, bill }));
        // Afterwards: who has its bill may ask for the next lease at once.
        if let Some(client) = held.client.filter(|_| ending.bill_client) {
            out.push(Action::Tell(client, ToClient::Released(Released { bill })));
        }
    }
}
