//! All nodes: how they come, change, connect and leave.
//!
//! Elsewhere: what a node is (`node`), what finds one (`node_index`), where leases go (`placing`), what becomes of a
//! node's leases ([`Pool`](super::Pool)).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rfaas_api::NodeState;
use rfaas_protocol::Capacity;
use rfaas_protocol::lease::LeaseId;
use rfaas_protocol::placement::Policy;

use super::labels::LabelNumbers;
use super::lease::{GrantedLease, whole_ms};
use super::node::{Conflict, Node, NodeConnection, NodeSpec, NodeView, Run};
use super::node_index::{Indexed, NodeIndex, NodeSlot};
use super::{Action, LinkId, NodeRecord, NodeSums, Now, RECLAIM, RESOLVE_AGAIN, RESTART_RETURN};

#[derive(Debug, Default)]
pub(super) struct NodeTable {
    slots: Vec<Option<Node>>,
    vacant: BTreeSet<NodeSlot>,
    pub(super) by_name: BTreeMap<Arc<str>, NodeSlot>,
    pub(super) index: NodeIndex,
    pub(super) labels: LabelNumbers,
    /// How leases are placed.
    pub(super) policy: Policy,
    /// Nodes whose records changed since they were last taken.
    unsaved: BTreeSet<Arc<str>>,
}

/// What is due for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeDue {
    /// It was not back in time: its leases end.
    GiveUp,
    /// It is back and had its time to report leases: those that it did not report have ended.
    EndUnreported,
}

impl NodeTable {
    fn insert(&mut self, mut node: Node) -> Result<(), String> {
        node.label_set = self.labels.take(node.spec.labels())?;
        let slot = self.vacant.pop_first().unwrap_or(NodeSlot(self.slots.len()));
        if slot.0 == self.slots.len() {
            self.slots.push(None);
        }
        self.by_name.insert(node.spec.name().clone(), slot);
        let indexed = Indexed::of(&node);
        self.slots[slot.0] = Some(node);
        self.index.update(slot, &Indexed::NO_NODE, &indexed);
        Ok(())
    }

    /// Changes a node. The indexes follow.
    pub(super) fn change<T>(
        &mut self,
        slot: NodeSlot,
        change: impl FnOnce(&mut Node) -> T,
    ) -> Option<T> {
        let node = self.slots.get_mut(slot.0)?.as_mut()?;
        let before = Indexed::of(node);
        let changed = change(node);
        let after = Indexed::of(node);
        self.index.update(slot, &before, &after);
        Some(changed)
    }

    pub(super) fn get(&self, slot: NodeSlot) -> Option<&Node> {
        self.slots.get(slot.0)?.as_ref()
    }

    pub(super) fn find(&self, name: &str) -> Option<NodeSlot> {
        self.by_name.get(name).copied()
    }

    pub(super) fn named(&self, name: &str) -> Option<&Node> {
        self.get(self.find(name)?)
    }

    /// The node whose executor manager is connected by `link`.
    pub(super) fn on(&self, link: LinkId) -> Option<(NodeSlot, &Node)> {
        let slot = self.index.on(link)?;
        Some((slot, self.get(slot)?))
    }

    /// All nodes with their places.
    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeSlot, &Node)> {
        let kept = self.slots.iter().enumerate();
        kept.filter_map(|(at, node)| Some((NodeSlot(at), node.as_ref()?)))
    }

    /// Nodes whose names come after `name`, or all, by name.
    pub(super) fn after(&self, name: Option<&str>) -> impl Iterator<Item = &Node> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.by_name.range::<str, _>((start, Bound::Unbounded));
        names.filter_map(|(_, slot)| self.get(*slot))
    }

    pub(super) fn leases_on(&self, slot: NodeSlot) -> Vec<LeaseId> {
        self.get(slot).map(|node| node.leases.iter().copied().collect()).unwrap_or_default()
    }

    pub(super) fn count(&self, state: NodeState) -> usize {
        self.index.count(state)
    }

    pub(super) fn sums(&self) -> NodeSums {
        self.index.sums()
    }

    /// The first deadline of a node, and which node's it is.
    pub(super) fn first_deadline(&self) -> Option<(Instant, NodeSlot)> {
        self.index.first_deadline()
    }

    /// What is free on nodes that take leases: most cores and most memory on one.
    #[cfg(test)]
    pub(super) fn most_free(&self) -> Capacity {
        self.index.most_free()
    }

    /// Counts a new lease on its node.
    pub(super) fn take(&mut self, lease: &GrantedLease) {
        self.change(lease.slot, |node| node.take(lease));
    }

    /// Counts a lease no longer. Returns whether its node was waiting for that alone to be forgotten.
    pub(super) fn give(&mut self, lease: &GrantedLease) -> bool {
        let drained = self.change(lease.slot, |node| {
            node.give(lease);
            node.is_drained()
        });
        drained == Some(true)
    }

    /// Has others tried before the node in `slot`, or no longer. Returns its name if that is news.
    pub(super) fn set_tried_last(&mut self, slot: NodeSlot, last: bool) -> Option<Arc<str>> {
        let news = self.change(slot, |node| {
            let news = std::mem::replace(&mut node.tried_last, last) != last;
            news.then(|| node.spec.name().clone())
        });
        news.flatten()
    }

    /// Adds a node, or takes over what changed of a known one.
    pub(super) fn add(
        &mut self,
        now: Now,
        spec: NodeSpec,
        out: &mut Vec<Action>,
    ) -> Result<NodeView, Conflict> {
        let (name, wanted) = (spec.name().clone(), spec.capacity());
        let Some(slot) = self.find(&name) else {
            let node = Node::new(spec.clone());
            let view = node.view();
            self.insert(node).map_err(|label| Conflict::Labels { node: name.clone(), label })?;
            tracing::info!(
                node = ?name, address = ?spec.address(), port = spec.port(),
                cores = wanted.cores, memory = wanted.memory, "node added"
            );
            self.unsaved.insert(name);
            out.push(Action::NodesChanged);
            return Ok(view);
        };
        let node = self.get(slot).expect("every name is of a node");
        if !wanted.holds(node.leased) {
            return Err(Conflict::Leased { node: name, leased: node.leased, wanted });
        }
        let spec = spec.or_labels_of(&node.spec);
        if node.spec == spec && !node.draining && node.leaves_at.is_none() {
            return Ok(node.view()); // again the same
        }
        let before = node.spec.clone();
        let label_set = self.labels.exchange(before.labels(), spec.labels());
        let label_set =
            label_set.map_err(|label| Conflict::Labels { node: name.clone(), label })?;
        let node = self.get(slot).expect("every name is of a node");
        tracing::info!(
            node = ?name, address = ?spec.address(), port = spec.port(),
            cores = wanted.cores, memory = wanted.memory, "node changed"
        );
        let is_news = node.spec.capacity() != wanted || node.leaves_at.is_some();
        if let Some(link) = node.link().filter(|_| is_news) {
            out.push(Action::TellNode { link, capacity: wanted, leaves_at: None });
        }
        let changed = self.change(slot, |node| {
            node.draining = false;
            (node.leaves_at, node.replaced) = (None, false);
            node.label_set = label_set;
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
        self.unsaved.insert(name);
        out.push(Action::NodesChanged);
        Ok(changed.expect("it was there just now"))
    }

    /// Notes when a node leaves.
    pub(super) fn set_leaving(
        &mut self,
        now: Now,
        name: &str,
        after: Duration,
        out: &mut Vec<Action>,
    ) -> Option<NodeView> {
        let slot = self.find(name)?;
        self.unsaved.insert(name.into());
        self.change(slot, |node| {
            node.leaves_at = Some((now.monotonic + after, whole_ms(now.wall + after)));
            node.replaced = false;
            out.extend(node.link().map(|link| node.tell(link)));
            node.view()
        })
    }

    /// Adds a node likewise, before anybody is connected. What is known of when it leaves stays.
    pub(super) fn import(&mut self, now: Now, spec: NodeSpec) -> Result<(), Conflict> {
        let name = spec.name().clone();
        let known = self.named(&name).filter(|node| node.leaves_at.is_some());
        let leaves = known.map(|node| (node.leaves_at, node.replaced));
        self.add(now, spec, &mut Vec::new())?;
        if let (Some(slot), Some(leaves)) = (self.find(&name), leaves) {
            self.change(slot, |node| (node.leaves_at, node.replaced) = leaves);
        }
        Ok(())
    }

    /// Marks a node as being withdrawn. Returns where it is and whether it is connected.
    pub(super) fn withdraw(
        &mut self,
        name: &str,
        out: &mut Vec<Action>,
    ) -> Option<(NodeSlot, bool)> {
        let slot = self.find(name)?;
        let connected = self.change(slot, |node| {
            node.draining = true;
            node.link().is_some()
        });
        self.unsaved.insert(name.into());
        out.push(Action::NodesChanged);
        Some((slot, connected == Some(true)))
    }

    /// Removes a node, which has no leases any more, and ends its connection.
    pub(super) fn forget(&mut self, slot: NodeSlot, out: &mut Vec<Action>) {
        let Some(node) = self.slots.get_mut(slot.0).and_then(Option::take) else { return };
        debug_assert!(node.leases.is_empty(), "its leases were ended before");
        let indexed = Indexed::of(&node);
        self.index.update(slot, &indexed, &Indexed::NO_NODE);
        let name = node.spec.name();
        self.by_name.remove(name);
        self.labels.give(node.spec.labels());
        self.vacant.insert(slot);
        self.unsaved.insert(name.clone());
        if let NodeConnection::Up { link, .. } = node.connection {
            out.push(Action::Close { link, reason: format!("node {name} was removed") });
        }
        tracing::info!(node = ?name, "node removed");
    }

    /// The node that `run` of an executor manager may register as, and whether that is another run than
    /// the last. `Err` says why it may not.
    pub(super) fn may_register(&self, name: &str, run: Run) -> Result<(NodeSlot, bool), String> {
        let slot = self.find(name).ok_or_else(|| not_known(name))?;
        let node = self.get(slot).ok_or_else(|| not_known(name))?;
        if node.link().is_some() {
            return Err(format!("node {name} is already connected: is its name used twice?"));
        }
        match node.spec.differs_from(run.address) {
            Some(why) => Err(why),
            None => Ok((slot, node.instance != Some(run.instance))),
        }
    }

    /// Registers a run of an executor manager that has been found to be allowed to; `unseen` of its leases
    /// must be reported again. Returns what its node may lease out.
    pub(super) fn register(
        &mut self,
        now: Now,
        (name, slot): (&str, NodeSlot),
        run: Run,
        link: LinkId,
        unseen: usize,
        out: &mut Vec<Action>,
    ) -> Result<Capacity, String> {
        let unsaved = &mut self.unsaved;
        let node = self.slots.get_mut(slot.0).and_then(Option::as_mut);
        let node = node.ok_or_else(|| not_known(name))?;
        let before = Indexed::of(node);
        if node.instance.replace(run.instance) != Some(run.instance) {
            // It has left, and is back; or it will have left, and this one has come in its place.
            node.leaves_at = node.leaves_at.filter(|(at, _)| *at > now.monotonic);
            node.replaced = node.leaves_at.is_some();
            unsaved.insert(name.into());
        }
        let reclaim_by = (unseen > 0).then_some(now.monotonic + RECLAIM);
        node.connection = NodeConnection::Up { link, reclaim_by };
        node.listens = Some(run.address);
        node.isolation = run.isolation;
        node.set_clock(now, run.clock_ahead_ms);
        node.ip = node.spec.ip(); // a host name may mean another machine by now
        node.resolve(now, out);
        let capacity = node.spec.capacity();
        let after = Indexed::of(node);
        self.index.update(slot, &before, &after);
        Ok(capacity)
    }

    /// The connection of a node's executor manager has ended; its leases end at `give_up_at`.
    pub(super) fn disconnect(
        &mut self,
        now: Now,
        slot: NodeSlot,
        give_up_at: Option<Instant>,
        out: &mut Vec<Action>,
    ) {
        self.change(slot, |node| {
            let in_order = node.stopping && node.leases.is_empty();
            node.connection = match in_order {
                true => NodeConnection::None,
                false => NodeConnection::Lost { give_up_at },
            };
            node.stopping = false;
            node.resolve(now, out);
        });
    }

    /// Notes what the clock of the executor manager on `link` says.
    pub(super) fn set_clock(&mut self, now: Now, link: LinkId, ahead_ms: i64) {
        let Some(slot) = self.index.on(link) else { return };
        self.change(slot, |node| node.set_clock(now, ahead_ms));
    }

    /// Takes the addresses that were found for the host name of a node.
    pub(super) fn resolved(
        &mut self,
        now: Now,
        node: &str,
        host: &str,
        found: impl IntoIterator<Item = IpAddr>,
    ) {
        let Some(slot) = self.find(node) else { return }; // removed meanwhile
        self.change(slot, |node| {
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

    /// Does what is due for a node, and says what is due for its leases.
    pub(super) fn due(
        &mut self,
        now: Now,
        slot: NodeSlot,
        out: &mut Vec<Action>,
    ) -> Option<NodeDue> {
        let mut back = None;
        let due = self.change(slot, |node| {
            if node.replaced && node.leaves_at.is_some_and(|(at, _)| at <= now.monotonic) {
                (node.leaves_at, node.replaced) = (None, false);
                back = Some(node.spec.name().clone());
            }
            if node.resolve_at.is_some_and(|at| at <= now.monotonic) {
                node.resolve(now, out);
            }
            let (due, what) = match &mut node.connection {
                NodeConnection::None => return None,
                NodeConnection::Up { reclaim_by, .. } => (reclaim_by, NodeDue::EndUnreported),
                NodeConnection::Lost { give_up_at } => (give_up_at, NodeDue::GiveUp),
            };
            due.take_if(|at| *at <= now.monotonic).map(|_| what)
        });
        if let Some(name) = back {
            tracing::info!(node = ?name, "node was replaced before it left: it stays");
            self.unsaved.insert(name);
        }
        due.flatten()
    }

    /// Takes a node of an earlier run back, unless one of its name is there.
    pub(super) fn restore(&mut self, now: Now, record: NodeRecord) {
        if self.find(record.spec.name()).is_none() {
            let (name, mut restored) = (record.spec.name().clone(), Node::restored(now, record));
            match self.labels.take(restored.spec.labels()) {
                Ok(_) => self.labels.give(restored.spec.labels()),
                // Its leases go on, whatever it is labelled with.
                Err(label) => {
                    tracing::error!(node = ?name, label, "a node of the last run has a label too many: it has none any more");
                    restored.spec = restored.spec.without_labels();
                    self.unsaved.insert(name);
                }
            }
            let inserted = self.insert(restored);
            debug_assert!(inserted.is_ok(), "there is room for its labels");
        }
    }

    /// Gives each node that has leases its time to come back, once all leases were restored. Returns the
    /// nodes that were waiting for their last lease and have none.
    pub(super) fn expect_back(&mut self, now: Now) -> Vec<NodeSlot> {
        let slots: Vec<_> = self.iter().map(|(slot, _)| slot).collect();
        let drained = slots.into_iter().filter(|slot| {
            let drained = self.change(*slot, |node| {
                if let NodeConnection::Lost { give_up_at } = &mut node.connection
                    && !node.leases.is_empty()
                {
                    *give_up_at = Some(now.monotonic + RESTART_RETURN);
                }
                node.is_drained()
            });
            drained == Some(true)
        });
        drained.collect()
    }

    /// The records that changed since this was last called; `None` for a node that was forgotten.
    pub(super) fn take_unsaved(&mut self) -> BTreeMap<Arc<str>, Option<NodeRecord>> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let record = |name: Arc<str>| {
            let record = self.named(&name).map(Node::record);
            (name, record)
        };
        unsaved.into_iter().map(record).collect()
    }
}

fn not_known(name: &str) -> String {
    format!("node {name} is not known: add it with POST /add?node={name}")
}

/// Where a run listens; an IPv4 address that is written as IPv6 is itself.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
