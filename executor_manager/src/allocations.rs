//! Who holds which cores and how much memory, until when, and what it costs. Pure: events and the
//! time come in, actions go out, and the loop around it (`manager`) does what they say.
//!
//! ```text
//!   claim ─▶ starting ─▶ running ◀──claim again──▶ exited          one lease a client connection
//!               │           │ end: release, client gone, expiry (renewable), withdrawal, shutdown
//!               │           ▼
//!      (start failed)   stopping ─▶ process gone ─▶ billed, free
//! ```
//! * A claim changes nothing before everything about it was found possible.
//! * CAPACITY - cores and memory of all leases together never exceed what the node may lease out
//!   when a claim is accepted, and are free again only when the lease's process is gone.
//! * ONE END - a lease that was claimed ends once, with one bill, whatever events come twice or late.
//! * CLAMPED - executors run foreign code and write their own counters, so a bill never exceeds the
//!   cores times the time they were held, and never falls behind what it was before.
//!
//! One lease is in `held`, what the node has and what of it is taken in `room`, the events and actions in
//! `events`. Elsewhere: tokens and sizes (`request`), processes (`spawn`), counters (`accounting`), telling
//! the resource manager until it has understood (`upstream`).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use rfaas_protocol::Capacity;
use rfaas_protocol::allocation::{Allocated, RefusedBecause, Released, Renewed, ToClient};
use rfaas_protocol::heartbeat::Heartbeat;
use rfaas_protocol::lease::{EndReason, LeaseId, LeaseTerms};
use rfaas_protocol::node::{LeaseEnded, LeaseUsed};

use crate::cpus::CpuPool;
use crate::ended::EndedLeases;
use crate::request::{Deployment, RequestRefusal};

mod events;
mod held;
#[cfg(test)]
mod model;
mod room;
#[cfg(test)]
mod tests;

pub use events::{Action, ClientId, Event, Exit, Usage};
use held::{ExecutorProcess, NodeLease, PendingEnd, ending_message};
use room::Room;

/// Longest time that a deadline is computed for. A token may name any date; ten years from now is
/// as good as never and cannot overflow a clock.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long a lease that the resource manager ended before it was claimed stays refused: its expiry
/// is not known here. A day is longer than leases last.
const UNCLAIMED_END: Duration = Duration::from_secs(24 * 3600);

/// How long an ended lease stays refused at least, besides until its token expires: its client may have
/// renewed that at the resource manager, and the end was faster than the news.
const RENEWED_UNSEEN: Duration = Duration::from_secs(3600);

/// All leases of this node.
#[derive(Debug)]
pub struct Allocations {
    room: Room,
    leases: BTreeMap<LeaseId, NodeLease>,
    by_client: HashMap<ClientId, LeaseId>,
    ended: EndedLeases,
    /// The number of the next lease that no token names.
    next_number: u64,
    /// The signs of life that the node expects of clients.
    heartbeat: Heartbeat,
    /// When the last lease ends, once the manager is to stop.
    draining: Option<Instant>,
}

impl Allocations {
    /// No leases and, until [`Event::Capacity`], nothing to lease. With `cpus`, workers are pinned.
    pub fn new(cpus: Option<CpuPool>, heartbeat: Heartbeat) -> Self {
        Allocations {
            room: Room::new(cpus),
            leases: BTreeMap::new(),
            by_client: HashMap::new(),
            ended: EndedLeases::new(),
            next_number: 1,
            heartbeat,
            draining: None,
        }
    }

    /// Takes in what happened at `now`, and appends what is to be done.
    pub fn apply(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Capacity(capacity) => self.room.set(capacity),
            Event::Claim { client, terms, time_left, deployment } => {
                match self.claim(now, client, terms, time_left, &deployment) {
                    Ok(lease) => out.push(self.start(lease, client, deployment)),
                    Err(refusal) => out.push(Action::Tell(client, refusal.message())),
                }
            }
            Event::Started(lease) => self.started(now, lease, out),
            Event::StartFailed { lease, reason } => self.start_failed(now, lease, reason, out),
            Event::GivenUp { lease, reason } => self.given_up(lease, reason, out),
            Event::Exited { lease, exit, usage } => self.exited(now, lease, exit, usage, out),
            Event::Release(client) => self.release(now, client, out),
            Event::ClientGone(client) => self.client_gone(now, client, out),
            Event::End { lease, reason, grace } => self.end_after(now, lease, reason, grace, out),
            Event::Renew { client, terms, time_left } => {
                let answer = match self.renew(now, client, &terms, time_left) {
                    Ok(renewed) => ToClient::Renewed(renewed),
                    Err(refusal) => refusal.message(),
                };
                out.push(Action::Tell(client, answer));
            }
            Event::Drain { grace } => self.drain(now, grace, out),
            Event::Time => {}
        }
        self.end_what_is_due(now, out);
    }

    /// When [`Event::Time`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.leases
            .values()
            .filter(|held| held.pending_end.is_none())
            .map(|held| held.planned_end.0)
            .min()
    }

    /// The leases in use, for a resource manager that lost sight of them.
    pub fn in_use(&self) -> impl Iterator<Item = &LeaseTerms> {
        self.leases.values().filter(|held| held.confirmed).map(|held| &held.terms)
    }

    /// What each lease in use has used so far; `counted` are the counters of its executor.
    pub fn used(&mut self, now: Instant, counted: impl Fn(LeaseId) -> Usage) -> Vec<LeaseUsed> {
        let in_use = self.leases.iter_mut().filter(|(_, held)| held.confirmed);
        let used = in_use.map(|(&lease, held)| {
            if held.process == ExecutorProcess::Running {
                held.count(counted(lease));
            }
            LeaseUsed { lease: lease.get().into(), bill: held.bill(now) }
        });
        used.collect()
    }

    /// The lease that `client` holds.
    pub fn lease_of(&self, client: ClientId) -> Option<LeaseId> {
        self.by_client.get(&client).copied()
    }

    /// Whether no lease is held and no process of one is left.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// What is free; nothing before the first [`Event::Capacity`].
    #[cfg(test)]
    pub fn free(&self) -> Capacity {
        self.room.free()
    }

    // How a lease begins: its claim is checked, its executor started, and started again once it has exited.

    /// Finds out whether the claim can be met, then takes what it needs.
    fn claim(
        &mut self,
        now: Instant,
        client: ClientId,
        terms: LeaseTerms,
        time_left: Duration,
        deployment: &Deployment,
    ) -> Result<LeaseId, RequestRefusal> {
        if let Some(&lease) = self.by_client.get(&client) {
            return self.claim_again(lease, &terms, deployment);
        }
        if self.draining.is_some() {
            return Err(RequestRefusal::draining());
        }
        let signed = LeaseId::new(terms.lease.get());
        let numbered_here = LeaseId::new(self.next_number).expect("counts up from 1");
        let lease = signed.unwrap_or(numbered_here);
        if self.ended.contains(lease) {
            return Err(has_ended(lease));
        }
        if self.leases.contains_key(&lease) {
            let reason = format!("lease {lease} is in use by another connection");
            return Err(RequestRefusal::new(RefusedBecause::BadRequest, reason));
        }
        let wanted = Capacity { cores: terms.cores.get(), memory: terms.memory.get() };
        deployment.check(wanted.cores, wanted.memory)?;
        self.room.check(wanted)?;

        self.next_number += u64::from(signed.is_none());
        let taken = self.room.take(wanted);
        let ends_at = now + time_left.min(FAR);
        let held = NodeLease::new((lease, terms), client, now, ends_at, signed.is_some(), taken);
        self.leases.insert(lease, held);
        self.by_client.insert(client, lease);
        Ok(lease)
    }

    /// Checks a claim of another executor for a lease whose first one is gone.
    fn claim_again(
        &self,
        lease: LeaseId,
        terms: &LeaseTerms,
        deployment: &Deployment,
    ) -> Result<LeaseId, RequestRefusal> {
        let bad = |reason: String| Err(RequestRefusal::new(RefusedBecause::BadRequest, reason));
        let held = self.leases.get(&lease).ok_or_else(|| has_ended(lease))?;
        if !held.is_of(terms) {
            return bad(format!("this connection holds lease {lease}: open another for another"));
        }
        if held.pending_end.is_some() {
            return Err(has_ended(lease));
        }
        if held.process == ExecutorProcess::GivenUp {
            let reason =
                format!("what the last executor of lease {lease} left still ends; try again");
            return Err(RequestRefusal::new(RefusedBecause::SpawnFailed, reason));
        }
        if held.process != ExecutorProcess::Absent {
            return bad(format!("an executor of lease {lease} is running"));
        }
        deployment.check(held.terms.cores.get(), held.terms.memory.get())?;
        Ok(lease)
    }

    fn start(&mut self, lease: LeaseId, client: ClientId, deployment: Deployment) -> Action {
        let held = self.leases.get_mut(&lease).expect("`claim` returned it");
        held.process = ExecutorProcess::Starting;
        let workers =
            u16::try_from(held.terms.cores.get()).expect("checked by `Deployment::check`");
        let (memory, pins) = (held.terms.memory.get(), held.taken.pins.clone());
        Action::Start { lease, client, deployment, workers, memory, pins }
    }

    fn started(&mut self, now: Instant, lease: LeaseId, out: &mut Vec<Action>) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        if held.process != ExecutorProcess::Starting {
            return;
        }
        held.process = ExecutorProcess::Running;
        let claimed = !std::mem::replace(&mut held.confirmed, true);
        let claimed = claimed.then_some(Action::Claimed(held.terms));
        if held.pending_end.is_some() {
            out.extend(claimed);
            out.push(Action::Stop(lease));
            return;
        }
        let Some(client) = held.client else {
            out.extend(claimed);
            return;
        };
        let allocated = Allocated {
            lease: lease.get().into(),
            heartbeat_ms: self.heartbeat.period_ms().into(),
            silence_ms: self.heartbeat.silence_ms().into(),
        };
        out.push(Action::Tell(client, ToClient::Allocated(allocated)));
        let (at, reason) = held.planned_end;
        if reason != EndReason::Expired {
            // Its end was brought forward after it was claimed.
            let left = at.saturating_duration_since(now);
            out.push(Action::Tell(client, ending_message(reason, left)));
        }
        out.extend(claimed); // behind what the client waits for
    }

    fn start_failed(
        &mut self,
        now: Instant,
        lease: LeaseId,
        reason: String,
        out: &mut Vec<Action>,
    ) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        let before = std::mem::replace(&mut held.process, ExecutorProcess::Absent);
        match before {
            ExecutorProcess::Absent => return,
            ExecutorProcess::Starting | ExecutorProcess::Running => {
                out.extend(held.client.map(|client| not_started(client, reason)));
            }
            ExecutorProcess::GivenUp => {}
        }
        if held.pending_end.is_some() || !held.confirmed {
            self.finish(now, lease, out);
        }
    }

    /// Tells the client at once: the cores of the lease are free when the process is gone.
    fn given_up(&mut self, lease: LeaseId, reason: String, out: &mut Vec<Action>) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        if held.process == ExecutorProcess::Running {
            held.process = ExecutorProcess::GivenUp;
            out.extend(held.client.map(|client| not_started(client, reason)));
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
        let is_told = match held.process {
            ExecutorProcess::Absent | ExecutorProcess::Starting => return,
            ExecutorProcess::Running => false,
            ExecutorProcess::GivenUp => true,
        };
        held.exited(usage);
        if held.pending_end.is_some() {
            self.finish(now, lease, out);
        } else if let Some(client) = held.client.filter(|_| !is_told) {
            out.push(Action::Tell(client, exit.message()));
        }
    }

    // How a lease is renewed and how it ends: its process is stopped, then it is billed and free.

    /// Moves the end of the lease that `client` holds, never to an earlier time.
    fn renew(
        &mut self,
        now: Instant,
        client: ClientId,
        terms: &LeaseTerms,
        time_left: Duration,
    ) -> Result<Renewed, RequestRefusal> {
        let refused = |because, reason: String| Err(RequestRefusal::new(because, reason));
        let held = self.by_client.get(&client).and_then(|lease| self.leases.get_mut(lease));
        let Some(held) = held else {
            return Err(RequestRefusal::no_lease());
        };
        let lease = held.id;
        if !held.is_of(terms) {
            let reason = format!("this connection holds lease {lease}, not the one of this token");
            return refused(RefusedBecause::BadRequest, reason);
        }
        if self.draining.is_some() {
            return Err(RequestRefusal::draining());
        }
        if held.pending_end.is_some() || held.planned_end.1 != EndReason::Expired {
            let reason = format!("lease {lease} is being ended");
            return refused(RefusedBecause::LeaseEnded, reason);
        }
        let expires_at_ms = held.renew(terms, now + time_left.min(FAR));
        Ok(Renewed { expires_at_ms: expires_at_ms.into() })
    }

    /// The manager is to stop: every lease ends after `grace` at the latest, and no other begins.
    fn drain(&mut self, now: Instant, grace: Duration, out: &mut Vec<Action>) {
        let deadline = now + grace.min(FAR);
        self.draining = Some(self.draining.map_or(deadline, |earlier| earlier.min(deadline)));
        for lease in self.leases.keys().copied().collect::<Vec<_>>() {
            self.end_after(now, lease, EndReason::Shutdown, grace, out);
        }
    }

    fn release(&mut self, now: Instant, client: ClientId, out: &mut Vec<Action>) {
        let Some(&lease) = self.by_client.get(&client) else {
            out.push(Action::Tell(client, RequestRefusal::no_lease().message()));
            return;
        };
        self.end(now, lease, now, EndReason::Released, out);
    }

    fn client_gone(&mut self, now: Instant, client: ClientId, out: &mut Vec<Action>) {
        let Some(lease) = self.by_client.remove(&client) else { return };
        if let Some(held) = self.leases.get_mut(&lease) {
            held.client = None;
        }
        self.end(now, lease, now, EndReason::ClientGone, out);
    }

    /// Ends a lease after `grace` at the latest.
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
        if held.pending_end.is_some() || deadline >= held.planned_end.0 {
            return; // it ends before that anyway
        }
        held.planned_end = (deadline, reason);
        // A client whose executor is starting gets this with the answer to its claim.
        let waits = held.process == ExecutorProcess::Starting;
        if let Some(client) = held.client.filter(|_| !waits) {
            out.push(Action::Tell(client, ending_message(reason, grace)));
        }
    }

    fn end_what_is_due(&mut self, now: Instant, out: &mut Vec<Action>) {
        let due = |held: &&NodeLease| held.pending_end.is_none() && held.planned_end.0 <= now;
        let due = self.leases.values().filter(due).map(|held| (held.id, held.planned_end));
        for (lease, (at, reason)) in due.collect::<Vec<_>>() {
            self.end(now, lease, at, reason, out);
        }
    }

    /// Ends `lease` as of `at`: its process is stopped, and when that is gone it is billed. Only the first
    /// end counts (ONE END); a release that comes second is still answered with the bill.
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
        if let Some(ending) = &mut held.pending_end {
            ending.bill_client |= released;
            return;
        }
        held.pending_end = Some(PendingEnd { at, reason, bill_client: released });
        if let Some(client) = held.client.filter(|_| !released) {
            out.push(Action::Tell(client, ending_message(reason, Duration::ZERO)));
        }
        match held.process {
            ExecutorProcess::Absent => self.finish(now, lease, out),
            ExecutorProcess::Starting | ExecutorProcess::GivenUp => {}
            ExecutorProcess::Running => out.push(Action::Stop(lease)),
        }
    }

    /// Frees what the lease held, now that no process of it is left, and bills it if it was in use.
    fn finish(&mut self, now: Instant, lease: LeaseId, out: &mut Vec<Action>) {
        let Some(mut held) = self.leases.remove(&lease) else { return };
        self.room.give_back(&held.taken);
        if let Some(client) = held.client {
            self.by_client.remove(&client);
        }
        // Without an end, or without a client, a claim that came to nothing may be tried again.
        let Some(ending) = held.pending_end else { return };
        if !held.confirmed && ending.reason == EndReason::ClientGone {
            return;
        }
        if let Some(expires) = held.token_expires {
            self.ended.remember(lease, now, expires.max(now + RENEWED_UNSEEN));
        }
        if !held.confirmed {
            return;
        }
        let bill = held.bill(ending.at);
        let reason = ending.reason.to_wire();
        out.push(Action::Ended(LeaseEnded { terms: held.terms, reason, bill }));
        // Afterwards: a client that has its bill may ask for the next lease at once.
        if let Some(client) = held.client.filter(|_| ending.bill_client) {
            out.push(Action::Tell(client, ToClient::Released(Released { bill })));
        }
    }
}

fn not_started(client: ClientId, reason: String) -> Action {
    Action::Tell(client, RequestRefusal::new(RefusedBecause::SpawnFailed, reason).message())
}

fn has_ended(lease: LeaseId) -> RequestRefusal {
    RequestRefusal::new(RefusedBecause::LeaseEnded, format!("lease {lease} has ended"))
}
