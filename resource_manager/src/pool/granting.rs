//! How leases are granted and renewed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rdmalib::Peer;
use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;

use super::ask::{Ask, Denied, NotRenewed, check_timeout};
use super::lease::{Grant, Lease, State, Terms, whole_ms};
use super::node::{Capacity, NodeState};
use super::nodes::Slot;
use super::{EXPIRY_MARGIN, Now, Pool};

impl Pool {
    /// Grants leases that meet `ask`, all of it or nothing: one on a node that has room for it,
    /// else one on each of as many nodes as it may be met from.
    pub fn request(&mut self, now: Now, ask: &Ask) -> Result<Vec<Grant>, Denied> {
        match self.try_request(now, ask)? {
            Some(grants) => Ok(grants),
            None => self.request_again(now, ask),
        }
    }

    /// Likewise, or `None`: there is no room as far as is known, and would be if less were leased.
    /// So it is worth hearing what nodes have said meanwhile, and then to
    /// [`request_again`](Self::request_again).
    pub fn try_request(&mut self, now: Now, ask: &Ask) -> Result<Option<Vec<Grant>>, Denied> {
        let granted = self.admit(now, ask).and_then(|()| self.place(now, ask));
        let granted = granted.and_then(|granted| match granted {
            None if !self.nodes.fits_when_empty(ask.wanted, most_parts(ask)) => {
                Err(self.why_denied(ask))
            }
            _ => Ok(granted),
        });
        granted.inspect_err(|denied| self.note_denied(ask, denied))
    }

    /// Answers what [`try_request`](Self::try_request) has not.
    pub fn request_again(&mut self, now: Now, ask: &Ask) -> Result<Vec<Grant>, Denied> {
        let granted = self.place(now, ask).and_then(|placed| match placed {
            Some(grants) => Ok(grants),
            None => Err(self.why_denied(ask)),
        });
        granted.inspect_err(|denied| self.note_denied(ask, denied))
    }

    /// Counts a request, and says no if its client may not have it.
    fn admit(&mut self, now: Now, ask: &Ask) -> Result<(), Denied> {
        self.shares.count(now, ask)?;
        self.shares.check_timeout(ask.timeout)?;
        self.shares.check(ask, 1)?; // before the room, which is another's business
        Ok(())
    }

    /// Grants it if there is room and its client may have it.
    fn place(&mut self, now: Now, ask: &Ask) -> Result<Option<Vec<Grant>>, Denied> {
        let parts = self.nodes.place(ask.wanted, most_parts(ask));
        self.shares.check(ask, parts.as_ref().map_or(1, Vec::len))?;
        let claim_by = now.monotonic + self.shares.claim_timeout();
        let mut grant = |(slot, part)| self.grant(now, ask, slot, part, claim_by);
        Ok(parts.map(|parts| parts.into_iter().filter_map(&mut grant).collect()))
    }

    fn note_denied(&mut self, ask: &Ask, denied: &Denied) {
        self.totals.denied += 1;
        tracing::info!(client = ?ask.client, reason = %denied, "lease denied");
    }

    /// Grants a part of `ask`, to be claimed by then, on a node that was seen to be ready and to have room for it.
    pub(super) fn grant(
        &mut self,
        now: Now,
        ask: &Ask,
        slot: Slot,
        part: Capacity,
        claim_by: Instant,
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
        let (state, deadline) = unclaimed(now, &terms, claim_by);
        self.insert(
            now,
            Lease {
                node: node.clone(),
                slot,
                peer: ask.peer,
                granted_at: now.wall,
                while_connected: ask.while_connected,
                claim_by,
                claimed_at: None,
                seen_from: None,
                unseen_since: None,
                used: Bill::default(),
                state,
                deadline,
                terms: terms.clone(),
            },
        );
        Some(Grant { terms, node, manager })
    }

    /// Books a new lease on its node, which has room for it.
    pub(super) fn insert(&mut self, now: Now, lease: Lease) {
        let id = lease.terms.lease;
        self.shares.take(now.monotonic, &lease);
        self.nodes.change(lease.slot, |node| node.take(id, lease.terms.holds()));
        self.totals.granted += 1;
        self.deadlines.insert(lease.deadline, id, &self.leases);
        self.states[lease.state.shown() as usize] += 1;
        self.ids.insert(id);
        self.leases.insert(id, lease);
        self.unsaved.lease(id);
    }

    /// Moves the end of a lease that has not ended to `timeout` from now, never nearer; returns it as it
    /// is then. It is a request of the lease's client, and of `peer`, who asks.
    pub fn renew(
        &mut self,
        now: Now,
        id: LeaseId,
        timeout: Duration,
        peer: Option<Peer>,
    ) -> Result<Grant, NotRenewed> {
        check_timeout(timeout).map_err(NotRenewed::Timeout)?;
        self.shares.check_timeout(timeout)?;
        let over = match self.has_ended(id) {
            true => NotRenewed::Ended(id),
            false => NotRenewed::Unknown(id),
        };
        let lease = self.leases.get_mut(&id).ok_or(over)?;
        let Terms { cores, memory, ref client, .. } = lease.terms;
        let wanted = Capacity { cores, memory };
        let (client, while_connected) = (client.clone(), lease.while_connected);
        let ask = Ask { wanted, timeout, max_nodes: 1, while_connected, client, peer };
        self.shares.count(now, &ask)?;
        let node = self.nodes.get(lease.slot).ok_or(NotRenewed::NoAddress(id))?;
        match lease.state {
            State::Ending { reason, .. } => return Err(NotRenewed::Ending { lease: id, reason }),
            _ if lease.terms.expires_at <= now.wall => return Err(NotRenewed::Ended(id)),
            _ if node.stopping => {
                return Err(NotRenewed::Ending { lease: id, reason: EndReason::Shutdown });
            }
            State::Granted { .. } | State::Active => {}
        }
        let ip = node.ip.ok_or(NotRenewed::NoAddress(id))?;
        let manager = SocketAddr::new(ip, node.spec.port());
        lease.terms.expires_at = lease.terms.expires_at.max(whole_ms(now.wall + timeout));
        let (terms, node) = (lease.terms.clone(), lease.node.clone());
        tracing::info!(lease = %id, ?node, client = ?terms.client, ?timeout, "lease renewed");
        let (state, deadline) = match lease.state {
            // More time, but not to claim it.
            State::Granted { .. } => unclaimed(now, &terms, lease.claim_by),
            state => (state, now.until(terms.expires_at) + EXPIRY_MARGIN),
        };
        self.set_state(id, state, deadline);
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
        Denied::NoRoom(if nodes.is_empty() {
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

/// The state of a lease that is to be claimed by then, and its deadline.
pub(super) fn unclaimed(now: Now, terms: &Terms, claim_by: Instant) -> (State, Instant) {
    let expires = now.until(terms.expires_at);
    match claim_by < expires {
        true => (State::Granted { then: EndReason::Unclaimed }, claim_by),
        false => (State::Granted { then: EndReason::Expired }, expires),
    }
}

/// Parts that `ask` may be met in: a part has a core at least.
fn most_parts(ask: &Ask) -> usize {
    usize::try_from(ask.max_nodes.min(ask.wanted.cores)).unwrap_or(1)
}
