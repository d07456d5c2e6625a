//! How leases are granted and renewed.

use std::net::SocketAddr;
use std::time::Duration;

use rfaas::protocol::lease::{EndReason, LeaseId};
use rfaas::protocol::node::Bill;

use super::ask::{Ask, Denied, NotRenewed, check_timeout};
use super::lease::{Grant, Lease, State, Terms, whole_ms};
use super::node::{Capacity, NodeState};
use super::nodes::Slot;
use super::{EXPIRY_MARGIN, Now, Pool};

impl Pool {
    /// Whether a request for `ask` would be granted now.
    pub fn has_room(&self, ask: &Ask) -> bool {
        self.choose(ask).is_some()
    }

    fn choose(&self, ask: &Ask) -> Option<Vec<(Slot, Capacity)>> {
        self.nodes.place(ask.wanted, most_parts(ask))
    }

    /// Grants leases that meet `ask`, all of it or nothing: one on a node that has room for it, else one on
    /// each of as many nodes as it may be met from.
    pub fn request(&mut self, now: Now, ask: &Ask) -> Result<Vec<Grant>, Denied> {
        let Some(parts) = self.choose(ask) else {
            self.totals.denied += 1;
            let denied = self.why_denied(ask);
            tracing::info!(client = ?ask.client, reason = %denied, "lease denied");
            return Err(denied);
        };
        Ok(parts.into_iter().filter_map(|(slot, part)| self.grant(now, ask, slot, part)).collect())
    }

    /// Grants a part of `ask` on a node that was seen to be ready and to have room for it.
    pub(super) fn grant(
        &mut self,
        now: Now,
        ask: &Ask,
        slot: Slot,
        part: Capacity,
    ) -> Option<Grant> {
        let node = self.nodes.get(slot)?;
        let manager = SocketAddr::new(node.ip?, node.spec.port());
        let lease = self.next_id;
        self.next_id = LeaseId(lease.0.checked_add(1).expect("2^64 leases were not granted"));
        let terms = Terms {
            lease,
            cores: part.cores,
            memory: part.memory,
            expires_at: whole_ms(now.wall + ask.timeout),
            instance: node.instance,
            client: ask.client.clone(),
        };
        let node = node.spec.name().clone();
        tracing::info!(
            %lease, ?node, client = ?ask.client, cores = part.cores, memory = part.memory,
            timeout = ?ask.timeout, "lease granted"
        );
        self.insert(Lease {
            node: node.clone(),
            slot,
            granted_at: now.wall,
            while_connected: ask.while_connected,
            claimed_at: None,
            seen_from: None,
            unseen_since: None,
            used: Bill::default(),
            state: State::Granted { then: EndReason::Expired },
            deadline: now.until(terms.expires_at),
            terms: terms.clone(),
        });
        Some(Grant { terms, node, manager })
    }

    /// Books a new lease on its node, which has room for it.
    pub(super) fn insert(&mut self, lease: Lease) {
        let id = lease.terms.lease;
        self.nodes.change(lease.slot, |node| node.take(id, lease.terms.holds()));
        self.totals.granted += 1;
        self.deadlines.insert(lease.deadline, id, &self.leases);
        self.leases.insert(id, lease);
        self.unsaved.lease(id);
    }

    /// Moves the end of a lease that has not ended to `timeout` from now, never nearer; returns it as it
    /// is then.
    pub fn renew(&mut self, now: Now, id: LeaseId, timeout: Duration) -> Result<Grant, NotRenewed> {
        check_timeout(timeout).map_err(NotRenewed::Timeout)?;
        let over = match self.has_ended(id) {
            true => NotRenewed::Ended(id),
            false => NotRenewed::Unknown(id),
        };
        let lease = self.leases.get_mut(&id).ok_or(over)?;
        let node = self.nodes.get(lease.slot).ok_or(NotRenewed::NoAddress(id))?;
        let (state, margin) = match lease.state {
            State::Ending { reason, .. } => return Err(NotRenewed::Ending { lease: id, reason }),
            _ if lease.terms.expires_at <= now.wall => return Err(NotRenewed::Ended(id)),
            _ if node.stopping => {
                return Err(NotRenewed::Ending { lease: id, reason: EndReason::Shutdown });
            }
            State::Granted { .. } => (State::Granted { then: EndReason::Expired }, Duration::ZERO),
            State::Active => (State::Active, EXPIRY_MARGIN),
        };
        let ip = node.ip.ok_or(NotRenewed::NoAddress(id))?;
        let manager = SocketAddr::new(ip, node.spec.port());
        lease.terms.expires_at = lease.terms.expires_at.max(whole_ms(now.wall + timeout));
        let (terms, node) = (lease.terms.clone(), lease.node.clone());
        tracing::info!(lease = %id, ?node, client = ?terms.client, ?timeout, "lease renewed");
        self.set_state(id, state, now.until(terms.expires_at) + margin);
        self.unsaved.lease(id);
        Ok(Grant { terms, node, manager })
    }

    fn why_denied(&self, ask: &Ask) -> Denied {
        let Capacity { cores, memory } = ask.wanted;
        let nodes = &self.nodes;
        let on = match most_parts(ask) {
            1 => "no ready node has".to_owned(),
            parts => format!("no {parts} ready nodes together have"),
        };
        Denied(if nodes.is_empty() {
            "no node is known: add one with POST /add".into()
        } else if nodes.count(NodeState::Ready) == 0 {
            format!(
                "no node is ready: {} registered, {} draining, {} lost",
                nodes.count(NodeState::Registered),
                nodes.count(NodeState::Draining),
                nodes.count(NodeState::Lost)
            )
        } else if nodes.fits_when_empty(ask.wanted, most_parts(ask)) {
            let most = nodes.most_free();
            format!(
                "{on} {cores} cores and {memory} MB free now: at most {} cores and {} MB are free on one",
                most.cores, most.memory
            )
        } else {
            let most = nodes.largest();
            format!(
                "{on} {cores} cores and {memory} MB in all: the largest have {} cores and {} MB",
                most.cores, most.memory
            )
        })
    }
}

/// Parts that `ask` may be met in: a part has a core at least.
fn most_parts(ask: &Ask) -> usize {
    usize::try_from(ask.max_nodes.min(ask.wanted.cores)).unwrap_or(1)
}
