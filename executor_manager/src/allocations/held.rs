//! One lease that is held: its process, its use, when and why it ends.

use std::time::{Duration, Instant};

use rfaas_protocol::allocation::{LeaseEnding, ToClient};
use rfaas_protocol::lease::{EndReason, LeaseId, LeaseTerms};
use rfaas_protocol::node::Bill;

use super::room::Taken;
use super::{ClientId, Usage};

/// The executor process of a lease, as far as is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExecutorProcess {
    Absent,
    Starting,
    Running,
    /// Killed, since its container has not started in time, which the client was told.
    GivenUp,
}

/// The end of a lease whose process may not be gone yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingEnd {
    pub(super) at: Instant,
    pub(super) reason: EndReason,
    /// The client asked for the bill.
    pub(super) bill_client: bool,
}

#[derive(Debug)]
pub(super) struct NodeLease {
    pub(super) id: LeaseId,
    pub(super) terms: LeaseTerms,
    /// `None` once its connection has ended.
    pub(super) client: Option<ClientId>,
    pub(super) claimed_at: Instant,
    /// When the token expires. `None` if the lease was numbered here: no token names it.
    pub(super) token_expires: Option<Instant>,
    /// When and why it ends if nothing comes before.
    pub(super) planned_end: (Instant, EndReason),
    pub(super) process: ExecutorProcess,
    /// An executor was started once: the lease is in use and will be billed.
    pub(super) confirmed: bool,
    pub(super) taken: Taken,
    /// What executors that are gone have counted.
    usage: Usage,
    /// The most that was seen of each counter of the executor that runs.
    counted: Usage,
    /// Hot polling that was reported to the resource manager, in ns.
    polling_reported: u64,
    /// Its end, once it has come, while its process may not be gone yet.
    pub(super) pending_end: Option<PendingEnd>,
}

impl NodeLease {
    /// The lease `id` with these terms, claimed by `client` at `now` until `ends_at`. `is_signed`: a token
    /// names it.
    pub(super) fn new(
        (id, terms): (LeaseId, LeaseTerms),
        client: ClientId,
        now: Instant,
        ends_at: Instant,
        is_signed: bool,
        taken: Taken,
    ) -> Self {
        NodeLease {
            id,
            terms: LeaseTerms { lease: id.get().into(), ..terms },
            client: Some(client),
            claimed_at: now,
            token_expires: is_signed.then_some(ends_at),
            planned_end: (ends_at, EndReason::Expired),
            process: ExecutorProcess::Absent,
            confirmed: false,
            taken,
            usage: Usage::default(),
            counted: Usage::default(),
            polling_reported: 0,
            pending_end: None,
        }
    }

    /// Whether `terms`, shown on the connection that holds this lease, are its own. Terms that name no
    /// lease are of the one that the connection holds.
    pub(super) fn is_of(&self, terms: &LeaseTerms) -> bool {
        let lease = LeaseId::new(terms.lease.get()).unwrap_or(self.id);
        LeaseTerms { lease: lease.get().into(), ..*terms }.same_lease(&self.terms)
    }

    /// Moves the end to `ends_at`, never to an earlier time; returns the end that its terms then have.
    pub(super) fn renew(&mut self, terms: &LeaseTerms, ends_at: Instant) -> u64 {
        self.planned_end.0 = self.planned_end.0.max(ends_at);
        self.token_expires = self.token_expires.map(|expires| expires.max(ends_at));
        let expires_at_ms = self.terms.expires_at_ms.get().max(terms.expires_at_ms.get());
        self.terms.expires_at_ms = expires_at_ms.into();
        expires_at_ms
    }

    /// Takes in what the executor that runs has counted so far.
    pub(super) fn count(&mut self, counted: Usage) {
        self.counted = self.counted.max(counted);
    }

    /// The executor that ran is gone, and has counted so much.
    pub(super) fn exited(&mut self, usage: Usage) {
        self.process = ExecutorProcess::Absent;
        let counted = std::mem::take(&mut self.counted).max(usage);
        self.usage = self.usage.plus(counted);
    }

    /// What it used until `now`, by what was counted (CLAMPED).
    pub(super) fn bill(&mut self, now: Instant) -> Bill {
        let until = self.pending_end.map_or(now.min(self.planned_end.0), |ending| ending.at);
        let allocated = until.saturating_duration_since(self.claimed_at);
        let usage = self.usage.plus(self.counted);
        let bill = usage.bill(self.terms.cores.get(), allocated, self.polling_reported);
        self.polling_reported = bill.hot_polling_ns.get();
        bill
    }
}

/// The message to a client whose lease ends in `left` (rounded up), or has ended if nothing is left.
pub(super) fn ending_message(reason: EndReason, left: Duration) -> ToClient {
    let grace_ms = u32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
    ToClient::LeaseEnding(LeaseEnding { reason: reason.to_wire(), grace_ms: grace_ms.into() })
}
