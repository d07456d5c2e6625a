//! How a lease begins: its claim is checked, its executor started, and started again once it has exited.

use std::time::{Duration, Instant};

use rfaas_protocol::allocation::{Allocated, RefusedBecause, ToClient};
use rfaas_protocol::lease::{EndReason, LeaseId, LeaseTerms};

use super::ends::ending;
use super::{Action, Allocations, ClientId, FAR, Held, Process, Usage};
use crate::request::{Deployment, Refusal};

impl Allocations {
    /// CHECKED: finds out whether the claim can be met, then takes what it needs.
    pub(super) fn claim(
        &mut self,
        now: Instant,
        client: ClientId,
        mut terms: LeaseTerms,
        time_left: Duration,
        deployment: &Deployment,
    ) -> Result<LeaseId, Refusal> {
        if let Some(&lease) = self.by_client.get(&client) {
            return self.claim_again(lease, &terms, deployment);
        }
        if self.draining.is_some() {
            return Err(Refusal::draining());
        }
        let lease = match LeaseId::new(terms.lease.get()) {
            Some(lease) => lease,
            None => LeaseId::new(self.next_number).expect("counts up from 1"),
        };
        if self.ended.contains(lease) {
            let reason = format!("lease {lease} has ended");
            return Err(Refusal::new(RefusedBecause::LeaseEnded, reason));
        }
        if self.leases.contains_key(&lease) {
            let reason = format!("lease {lease} is in use by another connection");
            return Err(Refusal::new(RefusedBecause::BadRequest, reason));
        }
        let (cores, memory) = (terms.cores.get(), terms.memory.get());
        deployment.check(cores, memory)?;
        self.check_free(cores, memory)?;

        let ends_at = now + time_left.min(FAR);
        let mut expires = Some(ends_at);
        if terms.lease.get() == 0 {
            terms.lease = lease.get().into();
            self.next_number += 1;
            expires = None;
        }
        self.used_cores += cores;
        self.used_memory += memory;
        let held = Held {
            terms,
            client: Some(client),
            claimed_at: now,
            expires,
            ends: (ends_at, EndReason::Expired),
            process: Process::Absent,
            confirmed: false,
            pins: self.cpus.as_mut().map(|cpus| cpus.take(cores)),
            usage: Usage::default(),
            counted: Usage::default(),
            polling_told: 0,
            ending: None,
        };
        self.leases.insert(lease, held);
        self.by_client.insert(client, lease);
        Ok(lease)
    }

    /// Another executor for a lease whose first one is gone.
    fn claim_again(
        &self,
        lease: LeaseId,
        terms: &LeaseTerms,
        deployment: &Deployment,
    ) -> Result<LeaseId, Refusal> {
        let bad = |reason: String| Err(Refusal::new(RefusedBecause::BadRequest, reason));
        let Some(held) = self.leases.get(&lease) else {
            let reason = format!("lease {lease} has ended");
            return Err(Refusal::new(RefusedBecause::LeaseEnded, reason));
        };
        if !held.named(terms).same_lease(&held.terms) {
            return bad(format!("this connection holds lease {lease}: open another for another"));
        }
        if held.ending.is_some() {
            let reason = format!("lease {lease} has ended");
            return Err(Refusal::new(RefusedBecause::LeaseEnded, reason));
        }
        if held.process != Process::Absent {
            return bad(format!("an executor of lease {lease} is running"));
        }
        deployment.check(held.terms.cores.get(), held.terms.memory.get())?;
        Ok(lease)
    }

    /// CAPACITY.
    fn check_free(&self, cores: u32, memory: u32) -> Result<(), Refusal> {
        let none = |reason: String| Err(Refusal::new(RefusedBecause::NoCapacity, reason));
        let Some(all) = self.capacity else {
            return none("this node has not registered with its resource manager yet".into());
        };
        let free = self.free();
        if cores > free.cores {
            return none(format!("{cores} cores asked for, {} of {} free", free.cores, all.cores));
        }
        if memory > free.memory {
            return none(format!(
                "{memory} MB of memory asked for, {} of {} free",
                free.memory, all.memory
            ));
        }
        Ok(())
    }

    pub(super) fn start(
        &mut self,
        lease: LeaseId,
        client: ClientId,
        deployment: Deployment,
    ) -> Action {
        let held = self.leases.get_mut(&lease).expect("`claim` returned it");
        held.process = Process::Starting;
        let workers =
            u16::try_from(held.terms.cores.get()).expect("checked by `Deployment::check`");
        Action::Start { lease, client, deployment, workers, pins: held.pins.clone() }
    }

    pub(super) fn started(&mut self, now: Instant, lease: LeaseId, out: &mut Vec<Action>) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        if held.process != Process::Starting {
            return;
        }
        held.process = Process::Running;
        if !held.confirmed {
            held.confirmed = true;
            out.push(Action::Claimed(held.terms));
        }
        if held.ending.is_some() {
            out.push(Action::Stop(lease));
            return;
        }
        let Some(client) = held.client else { return };
        let allocated = Allocated {
            lease: lease.get().into(),
            heartbeat_ms: self.heartbeat.period_ms().into(),
            silence_ms: self.heartbeat.silence_ms().into(),
        };
        out.push(Action::Tell(client, ToClient::Allocated(allocated)));
        let (at, reason) = held.ends;
        if reason != EndReason::Expired {
            // It is to end since it was claimed.
            out.push(Action::Tell(client, ending(reason, at.saturating_duration_since(now))));
        }
    }

    pub(super) fn start_failed(
        &mut self,
        now: Instant,
        lease: LeaseId,
        reason: String,
        out: &mut Vec<Action>,
    ) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        if held.process != Process::Starting {
            return;
        }
        held.process = Process::Absent;
        if let Some(client) = held.client {
            let refusal = Refusal::new(RefusedBecause::SpawnFailed, reason);
            out.push(Action::Tell(client, refusal.message()));
        }
        if held.ending.is_some() || !held.confirmed {
            self.finish(now, lease, out);
        }
    }
}
