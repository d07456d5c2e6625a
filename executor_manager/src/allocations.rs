//! Who holds which cores and how much memory, until when, and what it costs. Pure: events and the
//! time come in, actions go out, and the loop around it (`manager`) does what they say.
//!
//! ```text
//!   claim ─▶ starting ─▶ running ◀──claim again──▶ exited          one lease a client connection
//!               │           │ end: release, client gone, expiry (renewable), withdrawal, shutdown
//!               │           ▼
//!      (start failed)   stopping ─▶ process gone ─▶ billed, free
//! ```
//! * CHECKED - a claim changes nothing before everything about it was found possible.
//! * CAPACITY - cores and memory of all leases together never exceed what the node may lease out
//!   when a claim is accepted, and are free again only when the lease's process is gone.
//! * ONCE - a lease that was claimed ends once, with one bill, whatever events come twice or late.
//! * CLAMPED - executors run foreign code and write their own counters, so a bill never exceeds the
//!   cores times the time they were held, and never falls behind what it was before.
//!
//! How leases begin is in `claims`, how they end in `ends`.
//!
//! Elsewhere: tokens and sizes (`request`), processes (`spawn`), counters (`accounting`), telling the
//! resource manager until it has understood (`upstream`).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use rfaas_protocol::allocation::ToClient;
use rfaas_protocol::heartbeat::Heartbeat;
use rfaas_protocol::lease::{EndReason, LeaseId, LeaseTerms};
use rfaas_protocol::node::{Bill, LeaseUsed};

use crate::cpus::CpuPool;
use crate::ended::EndedLeases;

mod claims;
mod ends;
mod events;
pub use events::{Action, Capacity, ClientId, Event, Exit, Usage};

/// Longest time that a deadline is computed for. A token may name any date; ten years from now is
/// as good as never and cannot overflow a clock.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long a lease that the resource manager ended before it was claimed stays refused: its expiry
/// is not known here. A day is longer than leases last.
const UNCLAIMED_END: Duration = Duration::from_secs(24 * 3600);

/// How long an ended lease stays refused at least, besides until its token expires: its client may have
/// renewed that at the resource manager, and the end was faster than the news.
const RENEWED_UNSEEN: Duration = Duration::from_secs(3600);

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
    /// Of the one that runs: the most that was seen of each counter.
    counted: Usage,
    /// Hot polling that the resource manager was told of, in ns.
    polling_told: u64,
    ending: Option<Ending>,
}

impl Held {
    /// What it used until `now`, by what was counted. CLAMPED.
    fn bill(&mut self, now: Instant) -> Bill {
        let until = self.ending.map_or(now.min(self.ends.0), |ending| ending.at);
        let allocated = until.saturating_duration_since(self.claimed_at);
        let usage = self.usage.plus(self.counted);
        let bill = usage.bill(self.terms.cores.get(), allocated, self.polling_told);
        self.polling_told = bill.hot_polling_ns.get();
        bill
    }

    /// `terms`, in which 0 stands for the lease that the connection holds.
    fn named(&self, terms: &LeaseTerms) -> LeaseTerms {
        let lease = if terms.lease.get() == 0 { self.terms.lease } else { terms.lease };
        LeaseTerms { lease, ..*terms }
    }
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
    /// Since the manager is to stop: when the last lease ends.
    draining: Option<Instant>,
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
            draining: None,
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
            Event::Started(lease) => self.started(now, lease, out),
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
        self.leases.values().filter(|held| held.ending.is_none()).map(|held| held.ends.0).min()
    }

    /// The leases in use, for a resource manager that lost sight of them.
    pub fn in_use(&self) -> impl Iterator<Item = &LeaseTerms> {
        self.leases.values().filter(|held| held.confirmed).map(|held| &held.terms)
    }

    /// What each lease in use has used so far; `counted` are the counters of its executor.
    pub fn used(&mut self, now: Instant, counted: impl Fn(LeaseId) -> Usage) -> Vec<LeaseUsed> {
        let in_use = self.leases.iter_mut().filter(|(_, held)| held.confirmed);
        let used = in_use.map(|(&lease, held)| {
            if held.process == Process::Running {
                held.counted = held.counted.max(counted(lease));
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
    pub fn free(&self) -> Capacity {
        let all = self.capacity.unwrap_or(Capacity { cores: 0, memory: 0 });
        Capacity {
            // Less than what is used, if the operator has taken some back since.
            cores: all.cores.saturating_sub(self.used_cores),
            memory: all.memory.saturating_sub(self.used_memory),
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
        let counted = std::mem::take(&mut held.counted).max(usage);
        held.usage = held.usage.plus(counted);
        if held.ending.is_some() {
            self.finish(now, lease, out);
        } else if let Some(client) = held.client {
            out.push(Action::Tell(client, exit.message()));
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
