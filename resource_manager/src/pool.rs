//! Who holds what: nodes, their leases and deadlines. Pure: events and the time come in, [`Action`]s
//! and [`Changes`] go out.
//!
//! ```text
//!   node    registered ──connected──▶ ready ──connection ends──▶ lost ──connected──▶ ready
//!                      draining ──its executor manager stops──▶ registered
//!           any ──remove──▶ draining ──last lease ended──▶ forgotten
//!   lease   granted ──claimed──▶ active ──asked to end──▶ ending ──▶ ended (a bill, no lease)
//!              └────────────────────┴── expired, not claimed in time, given back, node lost ──▶ ended
//!
//!   Pool: what is asked, who comes and goes ─▶ Holdings: what is reported and due, what follows
//!                                               ─▶ NodeTable, LeaseTable, Shares, Distrust
//! ```
//! * CAPACITY - the leases of a node together never exceed its cores and memory. Only `Node::take`
//!   and `Node::give` change what is leased.
//! * ONE END - a lease ends once: `Holdings::finish` alone removes it, books its one bill and gives
//!   its capacity back. A bill that the node did not report (it was lost, or the lease was never
//!   claimed) is booked with what is known, and replaced if the node reports later.
//! * A lease in any state has a deadline. At it, the lease ends, or gets a later one because its
//!   state changed or because it was renewed. So every lease ends without any message.
//! * All that a later run needs is in the changes that were taken, and nothing that was ever
//!   granted is granted again.
//!
//! Each table changes what it owns. Here is decided what clients and operators ask for, and what
//! becomes of a node that comes or leaves; `holdings` does what concerns more than one table, also
//! when a node reports and when time passes. Elsewhere: which node a lease goes to (`placement`),
//! connections (`node_links`, `client_links`), tokens, bills that are final. The only side effect here
//! is log lines: a lease's life passes through these files.

mod action;
mod advice;
mod ask;
mod bills;
mod deadlines;
mod distrust;
mod fair_use;
mod graphs;
mod holdings;
mod labels;
mod lease;
mod lease_table;
mod limits;
mod node;
mod node_index;
mod node_table;
mod placing;
mod record;
#[cfg(test)]
mod tests;
mod waiting;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdmalib::Peer;
pub use rfaas_api::{NodeState, RemovedState};
pub use rfaas_protocol::Capacity;
use rfaas_protocol::lease::{EndReason, LeaseId, Unusable};
use rfaas_protocol::node::Bill;
use rfaas_protocol::placement::Policy;

pub use action::{Action, LinkId, Now, Totals};
pub use advice::Better;
use ask::check_timeout;
pub use ask::{Ask, Denied, NotRenewed, NotReplaced};
pub use distrust::{MOST_OF_ONE, TRIED_LAST};
use fair_use::Shares;
pub use fair_use::{FairUse, Limit, Who};
pub use graphs::{GraphKey, GraphView, GraphWorker, MOST_SHOWN};
use holdings::Holdings;
use lease::GrantedLease;
pub use lease::{EndReport, Grant, LeaseState, LeaseView, Terms};
use lease_table::LeaseTable;
pub use limits::*;
pub use node::{Conflict, NodeSpec, NodeView, Run};
pub use node_index::NodeSums;
use node_table::canonical;
use placing::NotPlaced;
pub use record::{Billed, Changes, ChosenPolicy, LeaseRecord, NodeRecord, Snapshot};
use waiting::Waiting;
pub use waiting::{Asked, MAX_WAIT, MOST_WAITING, MOST_WAITING_OF_ONE, WaitId};

/// All nodes and leases of a cluster.
#[derive(Debug)]
pub struct Pool {
    held: Holdings,
    waiting: Waiting,
    /// How leases are placed by the settings, and by the operator's choice.
    policy: ChosenPolicy,
    policy_unsaved: bool,
    /// How long a node whose connection ended may stay away before its leases end.
    node_return: Duration,
}

impl Pool {
    /// An empty pool. Leases of a node whose connection has ended last for `node_return` without it.
    pub fn new(now: Now, node_return: Duration) -> Self {
        Pool {
            held: Holdings::new(LeaseTable::new(now)),
            waiting: Waiting::default(),
            policy: ChosenPolicy::default(),
            policy_unsaved: false,
            node_return,
        }
    }

    /// The pool of a run that goes on where the last one stopped. Nodes whose executor manager has not
    /// registered again count as lost; if it does not within [`RESTART_RETURN`], their leases end.
    pub fn restore(now: Now, node_return: Duration, snapshot: Snapshot) -> Self {
        let policy = snapshot.policy.unwrap_or_default();
        Pool {
            held: Holdings::restore(now, snapshot),
            policy,
            policy_unsaved: false,
            waiting: Waiting::default(),
            node_return,
        }
    }

    /// Has the pool keep to these rules from now on. To be called at the start, before anything is asked of
    /// it: leases of an earlier run have the time of one to be claimed, and that of their nodes to come back.
    pub fn with_rules(mut self, now: Now, rules: FairUse) -> Self {
        self.held.shares = Shares::new(now, rules, self.held.leases.iter());
        let claim_by = now.monotonic + rules.claim_timeout.max(RESTART_RETURN);
        self.held.leases.set_claim_by(now, claim_by);
        self
    }

    /// What changed since this was last called. To be made durable before anything is said or done
    /// about it.
    pub fn take_changes(&mut self) -> Changes {
        let changes = self.held.take_changes();
        match std::mem::take(&mut self.policy_unsaved) {
            true => Changes { policy: Some(self.policy), urgent: true, ..changes },
            false => changes,
        }
    }

    // What there is.

    /// Where ids of this state begin: a store keeps it from the first run on.
    pub fn first_id(&self) -> LeaseId {
        self.held.leases.first_id()
    }

    /// Whether this was a lease once and is none any more.
    pub fn has_ended(&self, id: LeaseId) -> bool {
        self.held.leases.has_ended(id)
    }

    /// Whether this lease was granted, and neither was claimed nor has ended.
    pub fn is_unclaimed(&self, id: LeaseId) -> bool {
        self.held.leases.get(id).is_some_and(GrantedLease::is_unclaimed)
    }

    /// One lease that has not ended.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseView> {
        self.held.leases.get(id).map(GrantedLease::view)
    }

    /// Leases that have not ended, oldest first.
    pub fn leases(&self) -> Vec<LeaseView> {
        self.held.leases.after(None, usize::MAX)
    }

    /// The first `most` leases after `id`, or of all.
    pub fn leases_after(&self, id: Option<LeaseId>, most: usize) -> Vec<LeaseView> {
        self.held.leases.after(id, most)
    }

    /// The first graphs after `key`, or of all, in the order of their numbers: up to `most`, with [`MOST_SHOWN`] leases
    /// together.
    pub fn graphs_after(&self, key: Option<&GraphKey>, most: usize) -> Vec<GraphView> {
        self.held.leases.graphs_after(key, most)
    }

    /// Whether there are graphs after `key`.
    pub fn any_graphs_after(&self, key: &GraphKey) -> bool {
        self.held.leases.any_graphs_after(key)
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<NodeView> {
        self.held.nodes.named(name).map(|node| node.view())
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.nodes_after(None, usize::MAX)
    }

    /// The first `most` nodes whose names come after `name`, or of all.
    pub fn nodes_after(&self, name: Option<&str>, most: usize) -> Vec<NodeView> {
        self.held.nodes.after(name).take(most).map(|node| node.view()).collect()
    }

    /// The number of leases in `state`.
    pub fn count_leases(&self, state: LeaseState) -> usize {
        self.held.leases.count(state)
    }

    /// The number of nodes in `state`.
    pub fn count_nodes(&self, state: NodeState) -> usize {
        self.held.nodes.count(state)
    }

    /// What the nodes that are ready have together.
    pub fn sums(&self) -> NodeSums {
        self.held.nodes.sums()
    }

    /// Events since the start.
    pub fn totals(&self) -> Totals {
        self.held.totals
    }

    /// How leases are placed.
    pub fn policy(&self) -> Policy {
        self.held.nodes.policy
    }

    /// Has leases placed as the settings say or, if they said the same then, as the operator has chosen. To be called
    /// at the start.
    pub fn use_settings(&mut self, settings: Policy) {
        if self.policy.settings != settings {
            self.policy = ChosenPolicy { chosen: settings, settings };
            self.policy_unsaved = true; // what was chosen before does not come back with its settings
        }
        self.held.nodes.policy = self.policy.chosen;
    }

    /// Has leases placed so from now on: the operator's choice, which outlives the program.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy.chosen = policy;
        self.policy_unsaved = true;
        let before = std::mem::replace(&mut self.held.nodes.policy, policy);
        if before != policy {
            tracing::info!(%before, %policy, "leases are placed by another policy");
        }
    }

    // What is due.

    /// When [`tick`](Self::tick) has something to do next, if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.first_deadline(self.has_gained());
        self.held.next_deadline().into_iter().chain(waiting).min()
    }

    /// Does what was due by `now`.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        self.held.tick(now, out);
        self.serve_waiting(now);
    }

    // What clients ask for.

    /// Grants leases that meet `ask`, all of it or nothing: one on a node that has room for it,
    /// else one on each of as many nodes as it may be met from; of a gang, one for each worker; of one that grows, one
    /// for each node.
    pub fn request(&mut self, now: Now, ask: &Ask) -> Result<Vec<Grant>, Denied> {
        match self.try_request(now, ask)? {
            Some(grants) => Ok(grants),
            None => self.request_again(now, ask),
        }
    }

    /// Grants leases likewise. Returns `None` if there is no room as far as is known, but would be if less
    /// were leased and all nodes were there: then it is worth hearing what nodes have said meanwhile, and to call
    /// [`request_again`](Self::request_again).
    pub fn try_request(&mut self, now: Now, ask: &Ask) -> Result<Option<Vec<Grant>>, Denied> {
        let granted = self.admit(now, ask).and_then(|()| self.place(now, ask));
        let granted = granted.and_then(|placed| match placed {
            Ok(grants) => Ok(Some(grants)),
            Err(why @ NotPlaced::Unknown(..)) => Err(self.held.nodes.denied(ask, why)),
            Err(why) if !self.held.nodes.may_ever_fit(ask) => Err(self.held.nodes.denied(ask, why)),
            Err(_) => Ok(None),
        });
        granted.inspect_err(|denied| self.note_denied(ask, denied))
    }

    /// Answers what [`try_request`](Self::try_request) has not.
    pub fn request_again(&mut self, now: Now, ask: &Ask) -> Result<Vec<Grant>, Denied> {
        let granted = self.place(now, ask);
        let granted =
            granted.and_then(|placed| placed.map_err(|why| self.held.nodes.denied(ask, why)));
        granted.inspect_err(|denied| self.note_denied(ask, denied))
    }

    /// Counts a request, and refuses it if its client may not have it.
    fn admit(&mut self, now: Now, ask: &Ask) -> Result<(), Denied> {
        self.held.shares.count(now, ask)?;
        self.held.shares.check_timeout(ask.timeout)?;
        self.held.shares.check(now.monotonic, ask, ask.fewest_leases())?; // before the room, others' business
        Ok(())
    }

    /// Grants it if there is room and its client may have it.
    fn place(&mut self, now: Now, ask: &Ask) -> Result<Result<Vec<Grant>, NotPlaced>, Denied> {
        let parts = self.held.nodes.place(now, ask, &self.held.grown(ask));
        let leases = parts.as_ref().map_or(ask.fewest_leases(), Vec::len);
        self.held.shares.check(now.monotonic, ask, leases)?;
        let claim_by = now.monotonic + self.held.shares.claim_timeout();
        let mut first = None;
        let mut grant = |(slot, part)| {
            // Those of a gang are alike; of one that grows they are not, and each is on its own.
            let of = first.filter(|_| ask.leases > 1 && ask.grows.is_empty());
            let grant = self.held.grant(now, ask, slot, part, claim_by, of)?;
            first.get_or_insert(grant.terms.lease);
            Some(grant)
        };
        Ok(parts.map(|parts| parts.into_iter().filter_map(&mut grant).collect()))
    }

    fn note_denied(&mut self, ask: &Ask, denied: &Denied) {
        self.held.totals.denied += 1;
        tracing::info!(client = ?ask.client, reason = denied.to_string(), "lease denied");
    }

    /// Moves the end of a lease that has not ended to `timeout` from now, never nearer; returns it as it
    /// is then. It is a request of the lease's client, made by `peer`.
    pub fn renew(
        &mut self,
        now: Now,
        id: LeaseId,
        timeout: Duration,
        peer: Option<Peer>,
    ) -> Result<Grant, NotRenewed> {
        check_timeout(timeout).map_err(NotRenewed::Timeout)?;
        self.held.shares.check_timeout(timeout)?;
        let over = match self.has_ended(id) {
            true => NotRenewed::Ended(id),
            false => NotRenewed::Unknown(id),
        };
        let lease = self.held.leases.get(id).ok_or(over)?;
        self.held.shares.count(now, &lease.renewal(timeout, peer))?;
        let node = self.held.nodes.get(lease.slot).ok_or(NotRenewed::NoAddress(id))?;
        lease.may_renew(now, node.stopping)?;
        if node.leaves_at.is_some_and(|(leaves_at, _)| now.monotonic + timeout > leaves_at) {
            return Err(NotRenewed::Leaving(id));
        }
        let manager = node.manager().ok_or(NotRenewed::NoAddress(id))?;
        self.held.leases.renew(now, id, timeout);
        let lease = self.held.leases.get(id).ok_or(NotRenewed::Ended(id))?;
        let (terms, node) = (lease.terms.clone(), lease.node.clone());
        tracing::info!(lease = %id, ?node, client = ?terms.client, ?timeout, "lease renewed");
        Ok(Grant { terms, node, manager })
    }

    /// Exchanges a lease that nobody has claimed for one like it, until the same time, on another node; the client of
    /// `origin` says that it could not use it. It is a request of that client, and the new lease is to be claimed when
    /// the old one was: a client that exchanges leases again and again holds them no longer than others.
    pub fn replace(
        &mut self,
        now: Now,
        id: LeaseId,
        because: Unusable,
        origin: Peer,
        out: &mut Vec<Action>,
    ) -> Result<Grant, NotReplaced> {
        let lease = self.held.leases.get(id).filter(|lease| lease.is_unclaimed());
        let lease = lease.ok_or(NotReplaced::NotUnclaimed(id))?;
        if lease.constraints.is_some() {
            return Err(NotReplaced::Constrained(id));
        }
        let (slot, wanted, node) = (lease.slot, lease.terms.holds(), lease.node.clone());
        let left = lease.terms.expires_at.duration_since(now.wall).unwrap_or_default();
        let ask = Ask::new(wanted.cores, wanted.memory, left, &lease.terms.client);
        let ask = ask.map_err(|_| NotReplaced::NotUnclaimed(id))?; // its time is over
        let ask = Ask { while_connected: lease.while_connected, peer: lease.peer, ..ask };
        let (claim_by, worker) = (lease.claim_by, lease.worker.clone());
        self.held.shares.count(now, &ask.clone().by(origin))?;
        self.held.try_last(now, slot, origin);
        let elsewhere = self.held.nodes.place_elsewhere(now, &ask, slot);
        let grant =
            elsewhere.and_then(|other| self.held.grant(now, &ask, other, wanted, claim_by, None));
        let Capacity { cores, memory } = wanted;
        let grant = grant.ok_or(NotReplaced::NoRoom { cores, memory })?;
        tracing::info!(lease = %id, by = %grant.terms.lease, from = %node, to = %grant.node, why = because.in_words(), "lease replaced");
        if let Some(worker) = worker {
            self.held.leases.note_worker(grant.terms.lease, worker);
        }
        self.held.leases.excuse(now, id); // it was its node that could not be used
        self.held.finish(now, id, EndReason::Released, None, out);
        Ok(grant)
    }

    /// Ends a lease on demand: at once if it was not claimed, else its node is asked to. Returns its
    /// state afterwards, `None` if it never existed. Repeating it changes nothing.
    pub fn end_lease(
        &mut self,
        now: Now,
        id: LeaseId,
        reason: EndReason,
        out: &mut Vec<Action>,
    ) -> Option<LeaseState> {
        self.held.begin_ending(now, id, reason, Duration::ZERO, out);
        let ended = self.has_ended(id).then_some(LeaseState::Ended);
        self.lease(id).map(|lease| lease.state).or(ended)
    }

    /// Notes what a lease is for, as its client says. What was said before stays.
    pub fn note_worker(&mut self, id: LeaseId, worker: GraphWorker) {
        self.held.leases.note_worker(id, Arc::new(worker));
    }

    /// The client that was granted these leases is gone: those that it did not claim end soon.
    pub fn client_gone(&mut self, now: Now, leases: impl IntoIterator<Item = LeaseId>) {
        self.held.leases.client_gone(now, leases);
    }

    // How nodes come, change and leave.

    /// Adds a node, or takes over what changed of a known one. A node that is being withdrawn is
    /// taken back; leases that were asked to end still do.
    pub fn add_node(
        &mut self,
        now: Now,
        spec: NodeSpec,
        out: &mut Vec<Action>,
    ) -> Result<NodeView, Conflict> {
        self.held.nodes.add(now, spec, out)
    }

    /// Adds a node likewise, at the start: one that leaves still does.
    pub fn import_node(&mut self, now: Now, spec: NodeSpec) -> Result<(), Conflict> {
        self.held.nodes.import(now, spec)
    }

    /// Withdraws a node: it gets no new leases, those in use are asked to end within `grace`, the
    /// others end. It is forgotten with its last lease. Repeated, it can only shorten the grace.
    pub fn remove_node(
        &mut self,
        now: Now,
        name: &str,
        grace: Duration,
        out: &mut Vec<Action>,
    ) -> RemovedState {
        let Some((slot, connected)) = self.held.nodes.withdraw(name, out) else {
            tracing::info!(node = ?name, "no node of this name is known, so none is removed");
            return RemovedState::Unknown;
        };
        let leases = self.held.nodes.leases_on(slot);
        tracing::info!(node = name, ?grace, leases = leases.len(), "node is being removed");
        for id in leases {
            match self.is_unclaimed(id) || connected {
                true => self.held.begin_ending(now, id, EndReason::Withdrawn, grace, out),
                false => self.held.finish(now, id, EndReason::NodeLost, None, out),
            }
        }
        match self.held.nodes.named(name) {
            Some(node) if !node.is_drained() => RemovedState::Draining,
            Some(_) => {
                self.held.forget_node(slot, out);
                RemovedState::Removed
            }
            None => RemovedState::Removed, // with its last lease
        }
    }

    /// Notes that a node leaves in a while: from now on it gets only leases that end before. Repeated, the last
    /// one counts. `None`: there is no such node.
    pub fn set_leaving(
        &mut self,
        now: Now,
        name: &str,
        after: Duration,
        out: &mut Vec<Action>,
    ) -> Option<NodeView> {
        let view = self.held.nodes.set_leaving(now, name, after, out)?;
        tracing::info!(node = name, ?after, "node is leaving");
        Some(view)
    }

    /// An executor manager that knows the cluster secret registers `name`; the leases of another run of it have
    /// ended with that. `Err` tells it why not: also if clients would not be sent to where it listens.
    pub fn node_connected(
        &mut self,
        now: Now,
        name: &str,
        run: Run,
        link: LinkId,
        out: &mut Vec<Action>,
    ) -> Result<Capacity, String> {
        let run = Run { address: canonical(run.address), ..run };
        let (slot, started_anew) = self.held.nodes.may_register(name, run)?;
        if started_anew {
            for id in self.held.nodes.leases_on(slot) {
                tracing::warn!(lease = %id, "its executor manager was started anew: the lease ended with the last one");
                self.held.finish(now, id, EndReason::NodeLost, None, out);
            }
        }
        let leases = self.held.nodes.leases_on(slot);
        let held = leases.iter().filter_map(|id| self.held.leases.get(*id));
        let unseen = held.filter(|lease| lease.unseen_since.is_some()).count();
        // A node that was being withdrawn is gone with its last lease.
        let capacity = self.held.nodes.register(now, (name, slot), run, link, unseen, out)?;
        for id in leases {
            // What was claimed meanwhile is to be reported now.
            self.held.leases.wait_for_claim(now, id, now.monotonic + RECLAIM);
        }
        tracing::info!(node = name, leases = unseen, "executor manager connected");
        Ok(capacity)
    }

    /// Returns what the executor manager on `link` is told of its node.
    pub fn tell_node(&self, link: LinkId) -> Option<Action> {
        self.held.nodes.on(link).map(|(_, node)| node.tell(link))
    }

    /// The executor manager on `link` is to stop within `grace`: there are no new leases on its node while
    /// it is connected. It ends those in use itself; others cannot be claimed any more.
    pub fn draining(&mut self, now: Now, link: LinkId, grace: Duration, out: &mut Vec<Action>) {
        let Some((slot, node)) = self.held.nodes.on(link) else { return };
        if node.stopping {
            return;
        }
        let (node, leases) = (node.spec.name(), node.leases.len());
        tracing::info!(?node, ?grace, leases, "executor manager is stopping");
        self.held.nodes.change(slot, |node| node.stopping = true);
        for id in self.held.nodes.leases_on(slot) {
            if self.is_unclaimed(id) {
                self.held.finish(now, id, EndReason::Shutdown, None, out);
            }
        }
    }

    /// The clock of the executor manager on `link` is `ahead_ms` milliseconds ahead of ours; negative: behind.
    pub fn clock(&mut self, now: Now, link: LinkId, ahead_ms: i64) {
        self.held.nodes.set_clock(now, link, ahead_ms);
    }

    /// The connection of a node's executor manager has ended, for whatever reason. Its leases may
    /// go on without it, so it has some time to come back.
    pub fn node_disconnected(&mut self, now: Now, link: LinkId, out: &mut Vec<Action>) {
        let Some((slot, node)) = self.held.nodes.on(link) else { return }; // it was removed before
        let (leases, draining, stopping) = (node.leases.len(), node.draining, node.stopping);
        let node = node.spec.name();
        match leases {
            0 if stopping => tracing::info!(?node, "executor manager has stopped"),
            _ => tracing::warn!(?node, leases, "connection to the executor manager ended"),
        }
        let give_up_at = (leases > 0).then_some(now.monotonic + self.node_return);
        self.held.nodes.disconnect(now, slot, give_up_at, out);
        for id in self.held.nodes.leases_on(slot) {
            match draining {
                true => self.held.finish(now, id, EndReason::NodeLost, None, out),
                false => self.held.leases.lose_sight(now, id),
            }
        }
    }

    /// The answer to [`Action::Resolve`]: the addresses of `host`, none if it was not found. If there are
    /// several, the one counts at which its executor manager listens.
    pub fn resolved(
        &mut self,
        now: Now,
        node: &str,
        host: &str,
        found: impl IntoIterator<Item = IpAddr>,
    ) {
        self.held.nodes.resolved(now, node, host, found);
    }

    // What nodes report of leases.

    /// The node on `link` reports that a lease is in use: for the first time, or again after a
    /// reconnection.
    pub fn claimed(&mut self, now: Now, link: LinkId, terms: &Terms, out: &mut Vec<Action>) {
        self.held.claimed(now, link, terms, out);
    }

    /// The node on `link` reports what a lease has used so far.
    pub fn used(&mut self, link: LinkId, id: LeaseId, bill: Bill) {
        self.held.used(link, id, bill);
    }

    /// The node on `link` reports that a lease has ended, and what it used. Acknowledged also if it
    /// is no news, since the node repeats it until it is.
    pub fn ended(&mut self, now: Now, link: LinkId, report: &EndReport, out: &mut Vec<Action>) {
        self.held.ended(now, link, report, out);
    }
}
