//! How a lease ends, whatever ends it: its process is stopped, then it is billed and free.

use std::time::{Duration, Instant};

use rfaas::protocol::allocation::{LeaseEnding, RefusedBecause, Released, ToClient};
use rfaas::protocol::lease::{EndReason, LeaseId};
use rfaas::protocol::node::LeaseEnded;

use super::{Action, Allocations, ClientId, Ending, FAR, Process, UNCLAIMED_END};
use crate::request::Refusal;

impl Allocations {
    pub(super) fn release(&mut self, now: Instant, client: ClientId, out: &mut Vec<Action>) {
        let Some(&lease) = self.by_client.get(&client) else {
            let refusal =
                Refusal::new(RefusedBecause::LeaseEnded, "this connection holds no lease");
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
        if let Some(client) = held.client {
            let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX).max(1);
            let ending = LeaseEnding { reason: reason.to_wire(), grace_ms: grace_ms.into() };
            out.push(Action::Tell(client, ToClient::LeaseEnding(ending)));
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
            let ending = LeaseEnding { reason: reason.to_wire(), grace_ms: 0.into() };
            out.push(Action::Tell(client, ToClient::LeaseEnding(ending)));
        }
        match held.process {
            Process::Absent => self.finish(now, lease, out),
            Process::Starting => {}
            Process::Running => out.push(Action::Stop(lease)),
        }
    }

    /// Frees what the lease held, now that no process of it is left, and bills it if it was in use.
    pub(super) fn finish(&mut self, now: Instant, lease: LeaseId, out: &mut Vec<Action>) {
        let Some(held) = self.leases.remove(&lease) else { return };
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
            self.ended.remember(lease, now, expires);
        }
        if !held.confirmed {
            return;
        }
        let bill = held.usage.bill(cores, ending.at.saturating_duration_since(held.claimed_at));
        let reason = ending.reason.to_wire();
        out.push(Action::Ended(LeaseEnded { terms: held.terms, reason, bill }));
        // Afterwards: who has its bill may ask for the next lease at once.
        if let Some(client) = held.client.filter(|_| ending.bill_client) {
            out.push(Action::Tell(client, ToClient::Released(Released { bill })));
        }
    }
}
