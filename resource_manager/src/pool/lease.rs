//! Leases: asked for, granted, claimed, ended.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rfaas::protocol::lease::{
    ClientName, EndReason, LeaseId, LeaseTerms, MAX_CLIENT_NAME_BYTES, NodeName,
};
use rfaas::protocol::node::Bill;

use super::node::NodeState;
use super::{
    Action, Billed, CLAIM_IN_FLIGHT, END_MARGIN, EXPIRY_MARGIN, LinkId, MAX_CORES, MAX_NODES,
    MAX_TIMEOUT, NodeSpec, Now, Pool, check_name,
};
use crate::placement::{Candidate, first_fit};

/// A request for a lease that can be met in principle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    cores: u32,
    memory: u32,
    timeout: Duration,
    max_nodes: u32,
    while_connected: bool,
    client: Arc<str>,
}

impl Ask {
    /// Checks a request: memory in MB, `client` is whom to bill. `Err` says which field is wrong and
    /// what it may be.
    pub fn new(cores: u32, memory: u32, timeout: Duration, client: &str) -> Result<Self, String> {
        if !(1..=MAX_CORES).contains(&cores) {
            return Err(format!("cores is {cores}, not between 1 and {MAX_CORES}"));
        }
        if memory == 0 {
            return Err("memory is 0; it is in MB and at least 1".into());
        }
        if timeout < Duration::from_millis(1) || timeout > MAX_TIMEOUT {
            let (ms, max) = (timeout.as_millis(), MAX_TIMEOUT.as_millis());
            return Err(format!("timeout_ms is {ms}, not between 1 and {max}"));
        }
        check_name("client", client, MAX_CLIENT_NAME_BYTES)?;
        let client = client.into();
        Ok(Ask { cores, memory, timeout, max_nodes: 1, while_connected: false, client })
    }

    /// Lets it be met from up to `max_nodes` nodes if none has room for all of it.
    pub fn on_nodes(self, max_nodes: u32) -> Result<Self, String> {
        if !(1..=MAX_NODES).contains(&max_nodes) {
            return Err(format!("max_nodes is {max_nodes}, not between 1 and {MAX_NODES}"));
        }
        Ok(Ask { max_nodes, ..self })
    }

    /// For a client on a connection, with whose end its unclaimed leases end ([`Pool::client_gone`]);
    /// the end of this program is one too.
    pub fn while_connected(self) -> Self {
        Ask { while_connected: true, ..self }
    }
}

/// No node can take the lease now; why, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Denied(String);

/// Why a lease was not renewed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotRenewed {
    /// There never was one.
    #[error("lease {0} is not known")]
    Unknown(LeaseId),
    /// It is over.
    #[error("lease {0} has ended")]
    Ended(LeaseId),
    /// It was told to end.
    #[error("lease {lease} is ending ({})", .reason.name())]
    Ending {
        /// The lease.
        lease: LeaseId,
        /// Why.
        reason: EndReason,
    },
    /// It is not known where to renew it now.
    #[error("the node of lease {0} has no address at present; try again")]
    NoAddress(LeaseId),
    /// Not a time to renew for.
    #[error("{0}")]
    Timeout(String),
}

/// What a lease gives to whom. As its node reports it: [`LeaseTerms`] that were read and make sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The lease.
    pub lease: LeaseId,
    /// Cores.
    pub cores: u32,
    /// Memory in MB.
    pub memory: u32,
    /// End.
    pub expires_at: SystemTime,
    /// For which run of the node's executor manager it holds.
    pub instance: u64,
    /// Whom it is billed to.
    pub client: Arc<str>,
}

/// A lease that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What is granted.
    pub terms: Terms,
    /// On which node.
    pub node: Arc<str>,
    /// Where the node's executor manager takes the token.
    pub manager: SocketAddr,
}

impl Grant {
    /// The terms to sign.
    pub fn to_wire(&self) -> LeaseTerms {
        let expires_at = self.terms.expires_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        LeaseTerms {
            lease: self.terms.lease.get().into(),
            cores: self.terms.cores.into(),
            memory: self.terms.memory.into(),
            expires_at_ms: u64::try_from(expires_at.as_millis()).unwrap_or(u64::MAX).into(),
            instance: self.terms.instance.into(),
            node: NodeName::new(&self.node).expect("checked when the node was added"),
            client: ClientName::new(&self.terms.client).expect("checked by Ask::new"),
        }
    }
}

/// What a node reports about the end of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndReport {
    /// The lease.
    pub terms: Terms,
    /// Why it ended.
    pub reason: EndReason,
    /// What it used.
    pub bill: Bill,
}

/// A lease's state as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Its token was given out and not shown to the node yet.
    Granted,
    /// Claimed.
    Active,
    /// Told to end; its node has not reported yet that it did.
    Ending,
    /// Ended: there is a bill.
    Ended,
}

impl LeaseState {
    /// As JSON names it.
    pub fn name(self) -> &'static str {
        match self {
            LeaseState::Granted => "granted",
            LeaseState::Active => "active",
            LeaseState::Ending => "ending",
            LeaseState::Ended => "ended",
        }
    }
}

/// A lease as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Its id.
    pub lease: LeaseId,
    /// Whom it is billed to.
    pub client: Arc<str>,
    /// Its node.
    pub node: Arc<str>,
    /// Cores.
    pub cores: u32,
    /// Memory in MB.
    pub memory: u32,
    /// Its state.
    pub state: LeaseState,
    /// Start.
    pub granted_at: SystemTime,
    /// End.
    pub expires_at: SystemTime,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// At its deadline it ends as `then`.
    Granted { then: EndReason },
    /// At its deadline its node is told to end it.
    Active,
    /// Its node was told, or will be when it is back. At its deadline it ends without a report.
    Ending { reason: EndReason, grace_ends: Instant },
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) id: LeaseId,
    pub(super) client: Arc<str>,
    pub(super) node: Arc<str>,
    pub(super) cores: u32,
    pub(super) memory: u32,
    granted_at: SystemTime,
    expires_at: SystemTime,
    claimed_at: Option<Instant>,
    /// Its node's connection ended then, and it was not reported again since.
    pub(super) unseen_since: Option<Instant>,
    pub(super) state: State,
    /// Also in [`Pool::deadlines`]; changed by [`Pool::set_state`] only.
    pub(super) deadline: Instant,
}

impl Lease {
    pub(super) fn view(&self) -> LeaseView {
        LeaseView {
            lease: self.id,
            client: self.client.clone(),
            node: self.node.clone(),
            cores: self.cores,
            memory: self.memory,
            state: match self.state {
                State::Granted { .. } => LeaseState::Granted,
                State::Active => LeaseState::Active,
                State::Ending { .. } => LeaseState::Ending,
            },
            granted_at: self.granted_at,
            expires_at: self.expires_at,
        }
    }

    /// What is known of its use without a report of the node: the time for which it was claimed, as
    /// far as the node was there to see it.
    pub(super) fn known_bill(&self, now: Now) -> Bill {
        let end = self.unseen_since.unwrap_or(now.monotonic);
        let allocated = self.claimed_at.map(|start| end.saturating_duration_since(start));
        let allocated_ns = allocated.unwrap_or_default().as_nanos();
        Bill {
            allocated_ns: u64::try_from(allocated_ns).unwrap_or(u64::MAX).into(),
            ..Bill::default()
        }
    }
}

impl Pool {
    /// Whether a request for `ask` would be granted now.
    pub fn has_room(&self, ask: &Ask) -> bool {
        self.choose(ask).is_some()
    }

    /// Where `ask` goes: the node, its address, its instance.
    fn choose(&self, ask: &Ask) -> Option<(NodeSpec, IpAddr, u64)> {
        let ready = self.nodes.values().filter(|node| node.state() == NodeState::Ready);
        let candidates = ready.map(|node| {
            let free = node.free();
            Candidate { node: node.spec.name(), cores: free.cores, memory: free.memory }
        });
        first_fit(candidates, ask.cores, ask.memory)
            .and_then(|name| self.nodes.get(name))
            .and_then(|node| Some((node.spec.clone(), node.ip?, node.instance)))
    }

    /// Moves the end of a lease that has not ended to `timeout` from now, never nearer; returns it as it
    /// is then.
    pub fn renew(&mut self, now: Now, id: LeaseId, timeout: Duration) -> Result<Grant, NotRenewed> {
        let _ = (now, timeout);
        Err(NotRenewed::Unknown(id))
    }

    /// Grants leases that meet `ask`, all of it or nothing: one on a node that has room for it, else one on
    /// each of as many nodes as it may be met from.
    pub fn request(&mut self, now: Now, ask: &Ask) -> Result<Vec<Grant>, Denied> {
        let Some((spec, ip, instance)) = self.choose(ask) else {
            self.totals.denied += 1;
            let denied = self.why_denied(ask);
            tracing::info!(client = %ask.client, reason = %denied, "lease denied");
            return Err(denied);
        };
        let id = self.next_id;
        self.next_id = LeaseId(id.0.checked_add(1).expect("2^64 leases were not granted"));
        let terms = Terms {
            lease: id,
            cores: ask.cores,
            memory: ask.memory,
            expires_at: now.wall + ask.timeout,
            instance,
            client: ask.client.clone(),
        };
        let node = spec.name();
        let state = State::Granted { then: EndReason::Expired };
        self.insert(now, &terms, node, state, now.monotonic + ask.timeout);
        tracing::info!(
            lease = %id, %node, client = %ask.client, cores = ask.cores, memory = ask.memory,
            timeout = ?ask.timeout, "lease granted"
        );
        Ok(vec![Grant { terms, node: node.clone(), manager: SocketAddr::new(ip, spec.port()) }])
    }

    /// Books a new lease on `node`, which has room for it.
    fn insert(
        &mut self,
        now: Now,
        terms: &Terms,
        node: &Arc<str>,
        state: State,
        deadline: Instant,
    ) {
        let id = terms.lease;
        if let Some(node) = self.nodes.get_mut(node) {
            node.take(id, terms.cores, terms.memory);
        }
        self.totals.granted += 1;
        self.deadlines.insert((deadline, id));
        let lease = Lease {
            id,
            client: terms.client.clone(),
            node: node.clone(),
            cores: terms.cores,
            memory: terms.memory,
            granted_at: now.wall,
            expires_at: terms.expires_at,
            claimed_at: matches!(state, State::Active).then_some(now.monotonic),
            unseen_since: None,
            state,
            deadline,
        };
        self.leases.insert(id, lease);
    }

    fn why_denied(&self, ask: &Ask) -> Denied {
        let Ask { cores, memory, .. } = ask;
        let count = |state| self.nodes.values().filter(|node| node.state() == state).count();
        let ready = || self.nodes.values().filter(|node| node.state() == NodeState::Ready);
        let fits_when_empty = ready().any(|node| {
            let all = node.spec.capacity();
            all.cores >= *cores && all.memory >= *memory
        });
        let most = |of: fn(super::Capacity) -> u32, when: fn(&super::Node) -> super::Capacity| {
            ready().map(|node| of(when(node))).max().unwrap_or(0)
        };
        Denied(if self.nodes.is_empty() {
            "no node is known: add one with POST /add".into()
        } else if count(NodeState::Ready) == 0 {
            format!(
                "no node is ready: {} registered, {} draining, {} lost",
                count(NodeState::Registered),
                count(NodeState::Draining),
                count(NodeState::Lost)
            )
        } else if fits_when_empty {
            format!(
                "no ready node has {cores} cores and {memory} MB free now: at most {} cores and {} MB \
                 are free on one",
                most(|c| c.cores, super::Node::free),
                most(|c| c.memory, super::Node::free)
            )
        } else {
            format!(
                "no ready node has {cores} cores and {memory} MB in all: the largest have {} cores and \
                 {} MB",
                most(|c| c.cores, |n| n.spec.capacity()),
                most(|c| c.memory, |n| n.spec.capacity())
            )
        })
    }

    /// Ends a lease on demand: at once if it was not claimed, else its node is told. Returns its
    /// state afterwards, `None` if it never existed. Repeating it changes nothing.
    pub fn end_lease(
        &mut self,
        now: Now,
        id: LeaseId,
        reason: EndReason,
        out: &mut Vec<Action>,
    ) -> Option<LeaseState> {
        self.begin_ending(now, id, reason, Duration::ZERO, out);
        let ended = self.bills.get(id).map(|_| LeaseState::Ended);
        self.lease(id).map(|lease| lease.state).or(ended)
    }

    /// The client that was granted these leases is gone: those that it did not claim end soon.
    pub fn client_gone(&mut self, now: Now, leases: impl IntoIterator<Item = LeaseId>) {
        for id in leases {
            let Some(lease) = self.leases.get(&id) else { continue };
            let end = now.monotonic + CLAIM_IN_FLIGHT;
            if matches!(lease.state, State::Granted { .. }) && end < lease.deadline {
                self.set_state(id, State::Granted { then: EndReason::ClientGone }, end);
            }
        }
    }

    /// The node on `link` reports that a lease is in use: for the first time, or again after a
    /// reconnection.
    pub fn claimed(&mut self, now: Now, link: LinkId, terms: &Terms, out: &mut Vec<Action>) {
        let Some(node) = self.node_on(link) else { return };
        let node = &*node;
        let id = terms.lease;
        let end = |reason| Action::EndLease { link, lease: id, reason, grace: Duration::ZERO };
        if let Some(lease) = self.leases.get_mut(&id).filter(|lease| *lease.node == *node) {
            lease.unseen_since = None;
            lease.claimed_at.get_or_insert(now.monotonic);
            match lease.state {
                State::Granted { .. } => {
                    let left = lease.expires_at.duration_since(now.wall).unwrap_or_default();
                    tracing::info!(lease = %id, node, client = %lease.client, "lease claimed");
                    self.set_state(id, State::Active, now.monotonic + left + EXPIRY_MARGIN);
                }
                State::Active => {}
                State::Ending { reason, grace_ends } => {
                    let grace = grace_ends.saturating_duration_since(now.monotonic);
                    out.push(Action::EndLease { link, lease: id, reason, grace });
                }
            }
        } else if let Some(bill) = self.bills.get(id) {
            // It was claimed just as it ended here, or its node was thought lost.
            tracing::info!(lease = %id, node, "claim of a lease that has ended: the node is told");
            out.push(end(bill.reason));
        } else if id < self.first_id && self.adopt(now, node, terms, out) {
            tracing::info!(lease = %id, node, client = %terms.client, "lease of an earlier run taken over");
        } else {
            tracing::warn!(lease = %id, node, "the node holds a lease that cannot be taken over");
            out.push(end(EndReason::Withdrawn));
        }
    }

    /// Takes over a running lease that an earlier run of this manager granted. Leases that nobody
    /// claimed yet make room for it.
    fn adopt(&mut self, now: Now, node: &str, terms: &Terms, out: &mut Vec<Action>) -> bool {
        let left = terms.expires_at.duration_since(now.wall).unwrap_or_default();
        if left.is_zero() {
            return false;
        }
        let Some(holder) = self.nodes.get(node).filter(|n| n.state() != NodeState::Draining) else {
            return false;
        };
        let name = holder.spec.name().clone();
        let mut free = holder.free();
        let mut spare = Vec::new();
        // Newest first, and only if they are enough.
        let mut unclaimed = holder.leases.iter().rev().filter_map(|id| self.leases.get(id));
        while free.cores < terms.cores || free.memory < terms.memory {
            let Some(lease) = unclaimed.find(|l| matches!(l.state, State::Granted { .. })) else {
                return false;
            };
            free.cores += lease.cores;
            free.memory += lease.memory;
            spare.push(lease.id);
        }
        for id in spare {
            self.finish(now, id, EndReason::Withdrawn, None, out);
        }
        self.insert(now, terms, &name, State::Active, now.monotonic + left + EXPIRY_MARGIN);
        true
    }

    /// The node on `link` reports that a lease has ended, and what it used. Acknowledged also if it
    /// is no news, since the node repeats it until it is.
    pub fn ended(&mut self, now: Now, link: LinkId, report: &EndReport, out: &mut Vec<Action>) {
        let Some(node) = self.node_on(link) else { return };
        let node = &*node;
        let &EndReport { ref terms, reason, bill } = report;
        let id = terms.lease;
        // Before a connection is closed because this was a removed node's last lease.
        out.push(Action::AcknowledgeEnd { link, lease: id });
        if self.leases.get(&id).is_some_and(|lease| *lease.node == *node) {
            self.finish(now, id, reason, Some(bill), out);
        } else if id < self.first_id || self.bills.get(id).is_some_and(|b| *b.node == *node) {
            // Of an earlier run, or one that was billed without this report (PROVISIONAL).
            self.bills.book(Billed {
                lease: id,
                client: terms.client.clone(),
                node: node.into(),
                cores: terms.cores,
                memory: terms.memory,
                bill,
                ended_at: now.wall,
                reason,
                reported: true,
            });
        } else {
            tracing::warn!(lease = %id, node, "the node reports the end of a lease that it never had");
        }
    }

    /// The node on `link` reports what a lease has used so far.
    pub fn used(&mut self, link: LinkId, lease: LeaseId, bill: Bill) {
        let _ = (link, lease, bill);
    }

    fn node_on(&self, link: LinkId) -> Option<Arc<str>> {
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, node)| node.link() == Some(link)).map(|(name, _)| name.clone())
    }

    /// Has the node of a claimed lease end it within `grace`; an unclaimed one ends at once. Repeated,
    /// it can only shorten the grace.
    pub(super) fn begin_ending(
        &mut self,
        now: Now,
        id: LeaseId,
        reason: EndReason,
        grace: Duration,
        out: &mut Vec<Action>,
    ) {
        let Some(lease) = self.leases.get(&id) else { return };
        let grace_ends = now.monotonic + grace;
        // Not later than if it had been left alone: grace does not outlive the lease.
        let (reason, deadline) = match lease.state {
            State::Ending { grace_ends: before, .. } if before <= grace_ends => return,
            State::Ending { reason, .. } => (reason, lease.deadline.min(grace_ends + END_MARGIN)),
            State::Active => (reason, lease.deadline.min(grace_ends) + END_MARGIN),
            State::Granted { .. } => return self.finish(now, id, reason, None, out),
        };
        tracing::info!(
            lease = %id, node = %lease.node, reason = reason.name(), ?grace, "lease is to end"
        );
        if let Some(link) = self.nodes.get(&lease.node).and_then(|node| node.link()) {
            out.push(Action::EndLease { link, lease: id, reason, grace });
        }
        self.set_state(id, State::Ending { reason, grace_ends }, deadline);
    }

    /// Does what was due for a lease (BOUNDED).
    pub(super) fn lease_due(&mut self, now: Now, id: LeaseId, out: &mut Vec<Action>) {
        let Some(lease) = self.leases.get(&id) else { return };
        match lease.state {
            State::Granted { then } => self.finish(now, id, then, None, out),
            State::Active => {
                self.begin_ending(now, id, EndReason::Expired, Duration::ZERO, out);
            }
            State::Ending { reason, .. } => {
                tracing::warn!(lease = %id, node = %lease.node, "the node did not report the end of a lease in time");
                self.finish(now, id, reason, None, out);
            }
        }
    }
}
