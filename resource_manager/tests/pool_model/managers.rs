//! Executor managers that lose, repeat, reorder, ignore and forget.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use resource_manager::pool::{EndReport, LinkId, Now, Terms};
use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;

#[derive(Clone, Debug)]
pub enum Report {
    Claimed(Terms),
    Used(LeaseId, Bill),
    Ended(EndReport),
}

/// An executor manager.
pub struct Manager {
    pub instance: NonZeroU64,
    pub link: Option<LinkId>,
    /// Whether it does what it is told, and minds the time.
    pub obeys: bool,
    pub stopping: bool,
    /// Leases in use, and what they have used.
    holds: BTreeMap<LeaseId, (Terms, Bill)>,
    /// Ended, not acknowledged.
    pub unacknowledged: BTreeMap<LeaseId, EndReport>,
    /// What has ended is not claimed again.
    ended: BTreeSet<LeaseId>,
    /// Said, not arrived.
    pub under_way: Vec<Report>,
}

impl Manager {
    pub fn new() -> Self {
        Manager {
            instance: NonZeroU64::MIN,
            link: None,
            obeys: true,
            stopping: false,
            holds: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
            ended: BTreeSet::new(),
            under_way: Vec::new(),
        }
    }

    /// The connection ended.
    pub fn disconnected(&mut self) {
        self.link = None;
        self.under_way.clear();
    }

    /// It was killed and started again: it remembers nothing.
    pub fn restarted(&mut self) {
        let instance = self.instance.saturating_add(1);
        *self = Manager { instance, ..Manager::new() };
    }

    /// A new connection: all that it holds is reported on it, and all ends that were not acknowledged.
    pub fn connected(&mut self, link: LinkId) {
        self.link = Some(link);
        self.stopping = false;
        let claims = self.holds.values().map(|(terms, _)| Report::Claimed(terms.clone()));
        let ends = self.unacknowledged.values().cloned().map(Report::Ended);
        self.under_way = claims.chain(ends).collect();
    }

    fn say(&mut self, report: Report) {
        if self.link.is_some() {
            self.under_way.push(report);
        }
    }

    /// A client shows its token.
    pub fn claim(&mut self, now: Now, terms: &Terms) {
        let ended = self.ended.contains(&terms.lease);
        let refused = self.stopping || ended || terms.instance != Some(self.instance);
        if !refused && terms.expires_at > now.wall {
            self.holds.entry(terms.lease).or_insert((terms.clone(), Bill::default()));
            self.say(Report::Claimed(terms.clone()));
        }
    }

    /// A client shows the token of a renewal.
    pub fn renew(&mut self, renewed: &Terms) {
        if let Some((terms, _)) = self.holds.get_mut(&renewed.lease) {
            terms.expires_at = terms.expires_at.max(renewed.expires_at);
        }
    }

    /// Time has passed for a lease.
    pub fn work(&mut self, lease: LeaseId) {
        if let Some((_, bill)) = self.holds.get_mut(&lease) {
            bill.allocated_ns += 10;
            bill.invocations += 1;
            let bill = *bill;
            self.say(Report::Used(lease, bill));
        }
    }

    pub fn end(&mut self, lease: LeaseId, reason: EndReason) {
        if let Some((terms, mut bill)) = self.holds.remove(&lease) {
            bill.allocated_ns += 1;
            let report = EndReport { terms, reason, bill };
            self.unacknowledged.insert(lease, report.clone());
            self.ended.insert(lease);
            self.say(Report::Ended(report));
        }
    }

    /// Leases end by its own clock.
    pub fn mind_the_time(&mut self, now: Now) {
        let expired = |(terms, _): &&(Terms, Bill)| terms.expires_at <= now.wall;
        let due: Vec<_> =
            self.holds.values().filter(expired).map(|(terms, _)| terms.lease).collect();
        due.into_iter().for_each(|lease| self.end(lease, EndReason::Expired));
    }
}
