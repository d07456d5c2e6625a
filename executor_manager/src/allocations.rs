//! Who holds which cores and how much memory, until when, and what it costs. Pure: events and the
//! time come in, actions go out, and the loop around it (`manager`) does what they say.
//!
//! ```text
//!   claim ─▶ starting ─▶ running ◀──claim again──▶ exited          one lease a client connection
//!               │           │ end: release, client gone, expiry, withdrawal, shutdown
//!               │           ▼
//!      (start failed)   stopping ─▶ process gone ─▶ billed, free
//! ```
//! * CHECKED - a claim changes nothing before everything about it was found possible.
//! * CAPACITY - cores and memory of all leases together never exceed what the node may lease out
//!   when a claim is accepted, and are free again only when the lease's process is gone.
//! * ONCE - a lease that was claimed ends once, with one bill, whatever events come twice or late.
//! * CLAMPED - executors run foreign code and write their own counters, so a bill never exceeds the
//!   cores times the time they were held.
//!
//! Elsewhere: tokens and sizes (`request`), processes (`spawn`), counters (`accounting`), telling the
//! resource manager until it has understood (`upstream`).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use rfaas::heartbeat::Heartbeat;
use rfaas::protocol::allocation::{Allocated, LeaseEnding, RefusedBecause, Released, ToClient};
use rfaas::protocol::lease::{EndReason, LeaseId, LeaseTerms};
use rfaas::protocol::node::LeaseEnded;

use crate::cpus::CpuPool;
use crate::ended::EndedLeases;
use crate::request::{Deployment, Refusal};

mod events;
pub use events::{Action, Capacity, ClientId, Event, Exit, Usage};

/// Longest time that a deadline is computed for. A token may name any date; ten years from now is
/// as good as never and cannot overflow a clock.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long a lease that the resource manager ended before it was claimed stays refused: its expiry
/// is not known here. A day is longer than leases last.
const UNCLAIMED_END: Duration = Duration::from_secs(24 * 3600);

/// The executor process of a lease, as far as is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Absent,
    Starting,
    Running,
}

#[derive(Clone, Copy, Debug)]
struct Ending {
    at: Instant,
    reason: EndReason,
    /// The client asked for the bill.
    bill_client: bool,
}

#[derive(Debug)]
struct Held {
    terms: LeaseTerms,
    /// `None` once its connection has ended.
    client: Option<ClientId>,
    claimed_at: Instant,
    /// When the token expires. `None` if the lease was numbered here: no token names it.
    expires: Option<Instant>,
    /// When and why it ends if nothing comes before.
    ends: (Instant, EndReason),
    process: Process,
    /// An executor was started once: the lease is in use and will be billed.
    confirmed: bool,
    pins: Option<Vec<usize>>,
    /// Of executors that are gone.
    usage: Usage,
    ending: Option<Ending>,
}

/// All leases of this node.
#[derive(Debug)]
pub struct Allocations {
    capacity: Option<Capacity>,
    used_cores: u32,
    used_memory: u32,
    leases: BTreeMap<LeaseId, Held>,
    by_client: HashMap<ClientId, LeaseId>,
    ended: EndedLeases,
    cpus: Option<CpuPool>,
    next_number: u64,
    /// What clients are told that the node expects of them.
    heartbeat: Heartbeat,
    stopping: bool,
}

impl Allocations {
    /// No leases and, until [`Event::Capacity`], nothing to lease. With `cpus`, workers are pinned.
    pub fn new(cpus: Option<CpuPool>, heartbeat: Heartbeat) -> Self {
        Allocations {
            capacity: None,
            used_cores: 0,
            used_memory: 0,
            leases: BTreeMap::new(),
            by_client: HashMap::new(),
            ended: EndedLeases::new(),
            cpus,
            next_number: 1,
            heartbeat,
            stopping: false,
        }
    }

    /// Takes in what happened at `now`, and appends what is to be done.
    pub fn apply(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Capacity(capacity) => self.capacity = Some(capacity),
            Event::Claim { client, terms, time_left, deployment } => {
                match self.claim(now, client, terms, time_left, &deployment) {
                    Ok(lease) => out.push(self.start(lease, client, deployment)),
                    Err(refusal) => out.push(Action::Tell(client, refusal.message())),
                }
            }
            Event::Started(lease) => self.started(lease, out),
            Event::StartFailed { lease, reason } => self.start_failed(now, lease, reason, out),
            Event::Exited { lease, exit, usage } => self.exited(now, lease, exit, usage, out),
            Event::Release(client) => self.release(now, client, out),
            Event::ClientGone(client) => {
                if let Some(lease) = self.by_client.remove(&client) {
                    if let Some(held) = self.leases.get_mut(&lease) {
                        held.client = None;
                    }
                    self.end(now, lease, now, EndReason::ClientGone, out);
                }
            }
            Event::End { lease, reason, grace } => self.end_after(now, lease, reason, grace, out),
            Event::Time => {}
            Event::Shutdown => {
                self.stopping = true;
                for lease in self.leases.keys().copied().collect::<Vec<_>>() {
                    self.end(now, lease, now, EndReason::Shutdown, out);
                }
            }
        }
        self.end_what_is_due(now, out);
    }

    /// When [`Event::Time`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.leases.values().filter(|held| held.ending.is_none()).map(|held| held.ends.0).min()
    }

    /// The leases in use, for a resource manager that lost sight of them.
    pub fn in_use(&self) -> impl Iterator<Item = &LeaseTerms> {
        self.leases.values().filter(|held| held.confirmed).map(|held| &held.terms)
    }

    /// Whether `client` holds a lease.
    pub fn holds(&self, client: ClientId) -> bool {
        self.by_client.contains_key(&client)
    }

    /// Whether no lease is held and no process of one is left.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// What is free; nothing before the first [`Event::Capacity`].
    pub fn free(&self) -> Capacity {
        let all = self.capacity.unwrap_or(Capacity { cores: 0, memory: 0 });
        Capacity {
            // Less than what is used, if the operator has taken some back since.
            cores: all.cores.saturating_sub(self.used_cores),
            memory: all.memory.saturating_sub(self.used_memory),
        }
    }

    /// CHECKED: finds out whether the claim can be met, then takes what it needs.
    fn claim(
        &mut self,
        now: Instant,
        client: ClientId,
        mut terms: LeaseTerms,
        time_left: Duration,
        deployment: &Deployment,
    ) -> Result<LeaseId, Refusal> {
        if self.stopping {
            return Err(Refusal::new(RefusedBecause::Draining, "this node is being shut down"));
        }
        if let Some(&lease) = self.by_client.get(&client) {
            return self.claim_again(lease, &terms, deployment);
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
        // A token without a number names the lease that its connection holds.
        let named = LeaseTerms {
            lease: if terms.lease.get() == 0 { lease.get().into() } else { terms.lease },
            ..*terms
        };
        if named != held.terms {
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

    fn start(&mut self, lease: LeaseId, client: ClientId, deployment: Deployment) -> Action {
        let held = self.leases.get_mut(&lease).expect("`claim` returned it");
        held.process = Process::Starting;
        let workers =
            u16::try_from(held.terms.cores.get()).expect("checked by `Deployment::check`");
        Action::Start { lease, client, deployment, workers, pins: held.pins.clone() }
    }

    fn started(&mut self, lease: LeaseId, out: &mut Vec<Action>) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        if held.process != Process::Starting {
            return;
        }
        held.process = Process::Running;
        if !held.confirmed {
            held.confirmed = true;
            out.push(Action::Claimed(held.terms));
        }
        if let Some(client) = held.client {
            let allocated = Allocated {
                lease: lease.get().into(),
                heartbeat_ms: self.heartbeat.period_ms().into(),
                silence_ms: self.heartbeat.silence_ms().into(),
            };
            out.push(Action::Tell(client, ToClient::Allocated(allocated)));
        }
        if held.ending.is_some() {
            out.push(Action::Stop(lease));
        }
    }

    fn start_failed(
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

    fn exited(
        &mut self,
        now: Instant,
        lease: LeaseId,
        exit: Exit,
        usage: Usage,
        out: &mut Vec<Action>,
    ) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        if held.process != Process::Running {
            return;
        }
        held.process = Process::Absent;
        held.usage = held.usage.plus(usage);
        if held.ending.is_some() {
            self.finish(now, lease, out);
        } else if let Some(client) = held.client {
            out.push(Action::Tell(client, exit.message()));
        }
    }

    fn release(&mut self, now: Instant, client: ClientId, out: &mut Vec<Action>) {
        let Some(&lease) = self.by_client.get(&client) else {
            let refusal =
                Refusal::new(RefusedBecause::LeaseEnded, "this connection holds no lease");
            out.push(Action::Tell(client, refusal.message()));
            return;
        };
        self.end(now, lease, now, EndReason::Released, out);
    }

    fn end_after(
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

    fn end_what_is_due(&mut self, now: Instant, out: &mut Vec<Action>) {
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
    fn end(
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
    fn finish(&mut self, now: Instant, lease: LeaseId, out: &mut Vec<Action>) {
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

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
