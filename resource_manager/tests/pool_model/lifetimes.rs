//! Until when each lease may last, and why it may end without a word of its node.

use std::collections::BTreeMap;
use std::time::SystemTime;

use resource_manager::pool::{
    Billed, CLAIM_IN_FLIGHT, END_MARGIN, EXPIRY_MARGIN, Grant, LeaseState, LeaseView, RECLAIM,
    RESTART_RETURN,
};
use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;

use super::world::CLAIM_TIMEOUT;

/// How a lease began. One that was exchanged for another hands this on.
#[derive(Clone, Copy)]
struct Origin {
    granted_at: SystemTime,
    /// Since when its claim could have been told of: its node was away before.
    claim_from: SystemTime,
    while_connected: bool,
}

pub struct Lifetimes {
    /// When the resource manager was last started.
    started: SystemTime,
    origins: BTreeMap<LeaseId, Origin>,
    /// When the client of a lease was gone that nobody had claimed.
    gone: BTreeMap<LeaseId, SystemTime>,
    /// Leases that have not ended, as they were after the last event.
    leases: BTreeMap<LeaseId, LeaseView>,
}

impl Lifetimes {
    pub fn new(started: SystemTime) -> Self {
        let (origins, gone, leases) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Lifetimes { started, origins, gone, leases }
    }

    pub fn granted(&mut self, granted_at: SystemTime, while_connected: bool, grants: &[Grant]) {
        let origin = Origin { granted_at, claim_from: granted_at, while_connected };
        self.origins.extend(grants.iter().map(|grant| (grant.terms.lease, origin)));
    }

    /// The node of the first one is connected since `connected`, or the time is that.
    pub fn exchanged(&mut self, lease: LeaseId, other: LeaseId, connected: SystemTime) {
        let origin = self.origins[&lease];
        let claim_from = origin.claim_from.max(connected);
        self.origins.insert(other, Origin { claim_from, ..origin });
    }

    pub fn client_gone(&mut self, now: SystemTime, lease: &LeaseView) {
        if lease.state == LeaseState::Granted {
            self.gone.entry(lease.lease).or_insert(now);
        }
    }

    /// It does not end with its client's connection any more.
    pub fn renewed(&mut self, lease: LeaseId) {
        self.gone.remove(&lease);
    }

    pub fn restarted(&mut self, now: SystemTime) {
        self.started = now;
        self.gone.clear();
    }

    /// No lease outlives its bounds; these are all that have not ended. `connected` says since when a node is.
    pub fn check(
        &mut self,
        now: SystemTime,
        leases: Vec<LeaseView>,
        connected: impl Fn(&str) -> Option<SystemTime>,
    ) {
        for lease in &leases {
            let id = lease.lease;
            let latest = lease.expires_at.max(self.started) + EXPIRY_MARGIN + END_MARGIN;
            assert!(now < latest, "lease {id} outlived its bound");
            // What is due at a start of the resource manager is done soon after it.
            if lease.state != LeaseState::Granted || now == self.started {
                continue;
            }
            assert!(now < lease.expires_at, "lease {id} was not claimed, and outlived its time");
            // Its node was there all the time to tell of its claim.
            let Some(connected) = connected(&lease.node) else { continue };
            let claim_time = CLAIM_TIMEOUT.max(RECLAIM);
            let returned = self.started + RESTART_RETURN;
            let since = self.origins[&id].claim_from.max(returned).max(connected);
            assert!(now < since + claim_time, "lease {id} was not claimed in time");
            let end = |gone: &SystemTime| match connected < *gone {
                true => *gone + CLAIM_IN_FLIGHT,
                false => connected + claim_time,
            };
            let end = self.gone.get(&id).map(end);
            assert!(end.is_none_or(|end| now < end), "lease {id} outlived its client");
        }
        self.leases = leases.into_iter().map(|lease| (lease.lease, lease)).collect();
    }

    /// A lease has ended, and its node has not said so: not too early, and not for any reason.
    pub fn check_guess(&self, billed: &Billed) {
        let Billed { lease, ended_at, claimed, .. } = *billed;
        let origin = self.origins[&lease];
        let expires_at = self.leases[&lease].expires_at;
        assert!(claimed || billed.bill == Bill::default(), "nobody has used lease {lease}");
        match billed.reason {
            EndReason::Expired => {
                assert!(ended_at >= expires_at, "lease {lease} expired too early")
            }
            EndReason::Unclaimed => {
                assert!(!claimed, "lease {lease} was claimed");
                assert!(ended_at >= origin.granted_at + CLAIM_TIMEOUT, "lease {lease} had time");
            }
            EndReason::ClientGone => {
                assert!(!claimed, "lease {lease} was claimed");
                let gone = self.gone.get(&lease);
                let is_gone = gone.is_some_and(|gone| ended_at >= *gone + CLAIM_IN_FLIGHT);
                let end = expires_at.min(self.started + RESTART_RETURN);
                let is_lost = origin.while_connected && ended_at >= end;
                assert!(is_gone || is_lost, "the client of lease {lease} is there");
            }
            _ => {}
        }
    }
}
