//! How nodes come, change and leave.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rfaas_protocol::lease::EndReason;

use super::lease::State;
use super::node::{Capacity, Conflict, Connection, Node, NodeSpec, NodeView, Removal, Run};
use super::nodes::Slot;
use super::{Action, LinkId, Now, Pool, RECLAIM, RESOLVE_AGAIN};

impl Pool {
    /// Adds a node, or takes over what changed of a known one. A node that is being withdrawn is
    /// taken back; leases that were told to end still do.
    pub fn add_node(
        &mut self,
        now: Now,
        spec: NodeSpec,
        out: &mut Vec<Action>,
    ) -> Result<NodeView, Conflict> {
        let (name, wanted) = (spec.name().clone(), spec.capacity());
        let Some(slot) = self.nodes.find(&name) else {
            tracing::info!(
                node = ?name, address = ?spec.address(), port = spec.port(),
                cores = wanted.cores, memory = wanted.memory, "node added"
            );
            let node = Node::new(spec);
            let view = node.view();
            self.nodes.insert(node);
            self.unsaved.node(&name);
            out.push(Action::NodesChanged);
            return Ok(view);
        };
        let node = self.nodes.get(slot).expect("every name is of a node");
        if !wanted.holds(node.leased) {
            return Err(Conflict { node: name, leased: node.leased, wanted });
        }
        if node.spec == spec && !node.draining {
            return Ok(node.view()); // again the same
        }
        tracing::info!(
            node = ?name, address = ?spec.address(), port = spec.port(),
            cores = wanted.cores, memory = wanted.memory, "node changed"
        );
        if let Some(link) = node.link().filter(|_| node.spec.capacity() != wanted) {
            out.push(Action::TellCapacity { link, capacity: wanted });
        }
        let changed = self.nodes.change(slot, |node| {
            node.draining = false;
            let moved = node.spec.address() != spec.address();
            node.spec = spec;
            if moved {
                node.ip = node.spec.ip();
                node.resolve(now, out);
            }
            let differs = node.listens.and_then(|address| node.spec.differs_from(address));
            if let Some(why) = differs.filter(|_| node.link().is_some()) {
                tracing::warn!("{why}; until then no lease is granted on it");
            }
            node.view()
        });
        self.unsaved.node(&name);
        out.push(Action::NodesChanged);
        Ok(changed.expect("it was there just now"))
    }

    /// Withdraws a node: it gets no new leases, those in use are told to end within `grace`, the
    /// others end. It is forgotten with its last lease. Repeated, it can only shorten the grace.
    pub fn remove_node(
        &mut self,
        now: Now,
        name: &str,
        grace: Duration,
        out: &mut Vec<Action>,
    ) -> Removal {
        let Some(slot) = self.nodes.find(name) else {
            tracing::info!(node = ?name, "no node of this name is known, so none is removed");
            return Removal::Unknown;
        };
        let connected = self.nodes.change(slot, |node| {
            node.draining = true;
            tracing::info!(
                node = name,
                ?grace,
                leases = node.leases.len(),
                "node is being removed"
            );
            node.link().is_some()
        });
        self.unsaved.node(name);
        out.push(Action::NodesChanged);
        for id in self.leases_on(slot) {
            match self.leases.get(&id).map(|lease| lease.state) {
                Some(State::Active | State::Ending { .. }) if connected != Some(true) => {
                    self.finish(now, id, EndReason::NodeLost, None, out);
                }
                _ => self.begin_ending(now, id, EndReason::Withdrawn, grace, out),
            }
        }
        match self.nodes.named(name) {
            Some(node) if !node.drained() => Removal::Draining,
            Some(_) => {
                self.forget_node(slot, out);
                Removal::Removed
            }
            None => Removal::Removed, // with its last lease
        }
    }

    /// Removes a node, which has no leases any more, and ends its connection.
    pub(super) fn forget_node(&mut self, slot: Slot, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.remove(slot) else { return };
        self.distrust.forget(slot);
        debug_assert!(node.leases.is_empty(), "its leases were ended before");
        let name = node.spec.name();
        self.unsaved.node(name);
        if let Connection::Up { link, .. } = node.connection {
            out.push(Action::Close { link, reason: format!("node {name} was removed") });
        }
        tracing::info!(node = ?name, "node removed");
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
        let unknown = || format!("node {name} is not known: add it with POST /add?node={name}");
        let slot = self.nodes.find(name).ok_or_else(unknown)?;
        let node = self.nodes.get(slot).ok_or_else(unknown)?;
        if node.link().is_some() {
            return Err(format!("node {name} is already connected: is its name used twice?"));
        }
        let Run { instance, clock_ahead_ms, .. } = run;
        if instance == 0 {
            return Err("its instance is 0, which stands for none".into());
        }
        let address = SocketAddr::new(run.address.ip().to_canonical(), run.address.port());
        if let Some(why) = node.spec.differs_from(address) {
            return Err(why);
        }
        if node.instance != instance {
            self.end_instance(now, slot, out);
        }
        let node = self.nodes.get(slot).ok_or_else(unknown)?; // withdrawn, with its last lease
        let held = node.leases.iter().filter_map(|id| self.leases.get(id));
        let unseen = held.filter(|lease| lease.unseen_since.is_some()).count();
        let registered = self.nodes.change(slot, |node| {
            if std::mem::replace(&mut node.instance, instance) != instance {
                self.unsaved.node(name);
            }
            let reclaim_by = (unseen > 0).then_some(now.monotonic + RECLAIM);
            node.connection = Connection::Up { link, reclaim_by };
            node.listens = Some(address);
            node.clock(clock_ahead_ms);
            node.ip = node.spec.ip(); // a host name may mean another machine by now
            node.resolve(now, out);
            node.spec.capacity()
        });
        for id in self.leases_on(slot) {
            // What was claimed meanwhile is to be reported now.
            self.wait_for_claim(now, id, now.monotonic + RECLAIM);
        }
        tracing::info!(node = name, leases = unseen, "executor manager connected");
        registered.ok_or_else(unknown)
    }

    /// Ends what was granted for the run of an executor manager that has been followed by another.
    fn end_instance(&mut self, now: Now, slot: Slot, out: &mut Vec<Action>) {
        for id in self.leases_on(slot) {
            tracing::warn!(lease = %id, "its executor manager was started anew: the lease ended with the last one");
            self.finish(now, id, EndReason::NodeLost, None, out);
        }
    }

    /// The executor manager on `link` is to stop within `grace`: there are no new leases on its node while
    /// it is connected. It ends those in use itself; others cannot be claimed any more.
    pub fn draining(&mut self, now: Now, link: LinkId, grace: Duration, out: &mut Vec<Action>) {
        let Some((slot, node)) = self.nodes.on(link) else { return };
        if node.stopping {
            return;
        }
        let (node, leases) = (node.spec.name(), node.leases.len());
        tracing::info!(?node, ?grace, leases, "executor manager is stopping");
        self.nodes.change(slot, |node| node.stopping = true);
        for id in self.leases_on(slot) {
            let state = self.leases.get(&id).map(|lease| lease.state);
            if matches!(state, Some(State::Granted { .. })) {
                self.finish(now, id, EndReason::Shutdown, None, out);
            }
        }
    }

    /// The clock of the executor manager on `link` is `ahead_ms` milliseconds ahead of ours; negative: behind.
    pub fn clock(&mut self, link: LinkId, ahead_ms: i64) {
        let Some((slot, _)) = self.nodes.on(link) else { return };
        self.nodes.change(slot, |node| node.clock(ahead_ms));
    }

    /// The connection of a node's executor manager has ended, for whatever reason. Its leases may
    /// go on without it, so it has some time to come back.
    pub fn node_disconnected(&mut self, now: Now, link: LinkId, out: &mut Vec<Action>) {
        let Some((slot, node)) = self.nodes.on(link) else { return }; // it was removed before
        let (leases, draining) = (node.leases.len(), node.draining);
        tracing::warn!(node = ?node.spec.name(), leases, "connection to the executor manager ended");
        let give_up_at = (leases > 0).then_some(now.monotonic + self.node_return);
        self.nodes.change(slot, |node| {
            node.connection = Connection::Lost { give_up_at };
            node.stopping = false;
            node.resolve(now, out);
        });
        for id in self.leases_on(slot) {
            if draining {
                self.finish(now, id, EndReason::NodeLost, None, out);
            } else if let Some(lease) = self.leases.get_mut(&id)
                && !matches!(lease.state, State::Granted { .. })
            {
                lease.unseen_since.get_or_insert(now.monotonic);
            }
        }
    }

    /// The answer to [`Action::Resolve`]: the addresses of `host`, none if it was not found. Of several the one
    /// counts at which its executor manager listens.
    pub fn resolved(
        &mut self,
        now: Now,
        node: &str,
        host: &str,
        found: impl IntoIterator<Item = IpAddr>,
    ) {
        let Some(slot) = self.nodes.find(node) else { return }; // removed meanwhile
        self.nodes.change(slot, |node| {
            if **node.spec.address() != *host {
                return; // moved meanwhile
            }
            let found: Vec<_> = found.into_iter().map(|ip| ip.to_canonical()).collect();
            let listens = node.listens.map(|address| address.ip());
            let here = listens.filter(|ip| found.contains(ip));
            if let (None, Some(ip), Some(listens)) = (here, found.first(), listens) {
                tracing::warn!(
                    node = %node.spec.name(),
                    "host name {host} is {ip}, but the node's executor manager listens at {listens}: no lease is \
                     granted on it"
                );
            }
            node.ip = here.or(found.first().copied()).or(node.ip);
            node.resolve_at = match (node.ip, node.link()) {
                (None, Some(_)) => Some(now.monotonic + RESOLVE_AGAIN),
                _ => None,
            };
        });
    }

    /// Does what was due for a node.
    pub(super) fn node_due(&mut self, now: Now, slot: Slot, out: &mut Vec<Action>) {
        let due = self.nodes.change(slot, |node| {
            if node.resolve_at.is_some_and(|at| at <= now.monotonic) {
                node.resolve(now, out);
            }
            let (due, all) = match &mut node.connection {
                Connection::Never => return None,
                // It is back, but may not know all of its leases any more.
                Connection::Up { reclaim_by, .. } => (reclaim_by, false),
                Connection::Lost { give_up_at } => (give_up_at, true),
            };
            due.take_if(|at| *at <= now.monotonic).map(|_| all)
        });
        let Some(all) = due.flatten() else { return };
        for id in self.leases_on(slot) {
            let unseen = self.leases.get(&id).is_some_and(|lease| lease.unseen_since.is_some());
            if unseen && !all {
                tracing::warn!(lease = %id, "its node is back and does not report it: it has ended there");
            }
            if all || unseen {
                self.finish(now, id, EndReason::NodeLost, None, out);
            }
        }
    }
}
