//! Nodes: what they may lease out, whether their executor manager is connected, how they leave.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rfaas::protocol::lease::{EndReason, LeaseId, MAX_NODE_NAME_BYTES};

use super::lease::{Lease, State};
use super::{Action, LinkId, MAX_CORES, Now, Pool, RECLAIM, RESOLVE_AGAIN, check_name};

/// How long a look-up of a host name may take before it is started again: longer than a resolver
/// tries by default (`resolv.conf(5)`: 5 s, twice, up to three servers).
const RESOLVE_PATIENCE: Duration = Duration::from_secs(45);

/// Cores, and memory in MB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Cores.
    pub cores: u32,
    /// Memory in MB.
    pub memory: u32,
}

/// A node as the operator describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    name: Arc<str>,
    address: Arc<str>,
    port: u16,
    capacity: Capacity,
}

impl NodeSpec {
    /// Checks a description; `Err` says which field is wrong and what it may be.
    pub fn new(name: &str, address: &str, port: u16, capacity: Capacity) -> Result<Self, String> {
        check_name("node", name, MAX_NODE_NAME_BYTES)?;
        match address.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => {
                return Err(format!("address {ip} means every address; name the one to reach"));
            }
            // RFC 1035, 2.3.4.
            Err(_) => check_name("address", address, 253)?,
            Ok(_) => {}
        }
        if port == 0 {
            return Err("port is 0; name the one that the executor manager listens at".into());
        }
        if !(1..=MAX_CORES).contains(&capacity.cores) {
            return Err(format!("cores is {}, not between 1 and {MAX_CORES}", capacity.cores));
        }
        if capacity.memory == 0 {
            return Err("memory is 0; it is in MB and at least 1".into());
        }
        Ok(NodeSpec { name: name.into(), address: address.into(), port, capacity })
    }

    /// Name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Address of its executor manager: IP address or host name.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Port of its executor manager.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it may lease out.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }
}

/// A node's state as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeState {
    /// Known; its executor manager has not connected, or its host name was not found yet.
    Registered,
    /// Takes leases.
    Ready,
    /// Being withdrawn: no new leases.
    Draining,
    /// Its executor manager was connected and is not any more.
    Lost,
}

impl NodeState {
    /// All of them.
    pub const ALL: [NodeState; 4] =
        [NodeState::Registered, NodeState::Ready, NodeState::Draining, NodeState::Lost];

    /// As JSON names it.
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Registered => "registered",
            NodeState::Ready => "ready",
            NodeState::Draining => "draining",
            NodeState::Lost => "lost",
        }
    }
}

/// A node as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// What the operator said.
    pub spec: NodeSpec,
    /// What no lease holds.
    pub free: Capacity,
    /// Its state.
    pub state: NodeState,
}

/// What became of a node that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is not known (any more).
    Removed,
    /// It is, until its leases have ended.
    Draining,
}

/// A change that cannot be made while leases hold more than would be left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "node {node} has {} cores and {} MB leased: it cannot shrink to {} cores and {} MB before these \
     leases end; remove it with POST /remove to end them",
    leased.cores, leased.memory, wanted.cores, wanted.memory
)]
pub struct Conflict {
    node: Arc<str>,
    leased: Capacity,
    wanted: Capacity,
}

/// The connection of a node's executor manager.
#[derive(Clone, Copy, Debug)]
pub(super) enum Connection {
    /// There was none yet.
    Never,
    /// Connected; leases from before must be reported again by then.
    Up { link: LinkId, reclaim_by: Option<Instant> },
    /// Gone; its leases end then, unless it comes back.
    Lost { give_up_at: Option<Instant> },
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) spec: NodeSpec,
    /// The address, once it is known as a number.
    pub(super) ip: Option<IpAddr>,
    /// When to look the address up again.
    resolve_at: Option<Instant>,
    pub(super) connection: Connection,
    /// Which run of its executor manager registered last; 0: none did.
    pub(super) instance: u64,
    draining: bool,
    leased: Capacity,
    pub(super) leases: BTreeSet<LeaseId>,
}

impl Node {
    fn new(spec: NodeSpec) -> Self {
        Node {
            ip: spec.address.parse().ok(),
            spec,
            resolve_at: None,
            connection: Connection::Never,
            instance: 0,
            draining: false,
            leased: Capacity { cores: 0, memory: 0 },
            leases: BTreeSet::new(),
        }
    }

    /// What no lease holds.
    pub(super) fn free(&self) -> Capacity {
        let all = self.spec.capacity;
        Capacity { cores: all.cores - self.leased.cores, memory: all.memory - self.leased.memory }
    }

    pub(super) fn fits(&self, cores: u32, memory: u32) -> bool {
        let free = self.free();
        free.cores >= cores && free.memory >= memory
    }

    /// Counts a lease (CAPACITY); the caller has seen that it [fits](Self::fits).
    pub(super) fn take(&mut self, id: LeaseId, cores: u32, memory: u32) {
        debug_assert!(self.fits(cores, memory), "seen by the caller");
        if self.leases.insert(id) {
            self.leased.cores += cores;
            self.leased.memory += memory;
        }
    }

    /// Counts a lease no longer (CAPACITY).
    pub(super) fn give(&mut self, lease: &Lease) {
        if self.leases.remove(&lease.id) {
            self.leased.cores -= lease.cores;
            self.leased.memory -= lease.memory;
        }
    }

    pub(super) fn link(&self) -> Option<LinkId> {
        match self.connection {
            Connection::Up { link, .. } => Some(link),
            Connection::Never | Connection::Lost { .. } => None,
        }
    }

    pub(super) fn state(&self) -> NodeState {
        match self.connection {
            _ if self.draining => NodeState::Draining,
            Connection::Up { .. } if self.ip.is_some() => NodeState::Ready,
            Connection::Up { .. } | Connection::Never => NodeState::Registered,
            Connection::Lost { .. } => NodeState::Lost,
        }
    }

    pub(super) fn view(&self) -> NodeView {
        NodeView { spec: self.spec.clone(), free: self.free(), state: self.state() }
    }

    /// Whether nothing keeps a node that is being withdrawn.
    pub(super) fn drained(&self) -> bool {
        self.draining && self.leases.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let connection = match self.connection {
            Connection::Never => None,
            Connection::Up { reclaim_by, .. } => reclaim_by,
            Connection::Lost { give_up_at } => give_up_at,
        };
        connection.into_iter().chain(self.resolve_at).min()
    }

    /// Has the address looked up if it is a host name that a client needs soon.
    fn resolve(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.ip.is_none() && self.link().is_some() {
            self.resolve_at = Some(now.monotonic + RESOLVE_PATIENCE);
            let (node, host) = (self.spec.name.clone(), self.spec.address.clone());
            out.push(Action::Resolve { node, host });
        } else {
            self.resolve_at = None;
        }
    }
}

impl Pool {
    /// Adds a node, or takes over what changed of a known one. A node that is being withdrawn is
    /// taken back; leases that were told to end still do.
    pub fn add_node(
        &mut self,
        now: Now,
        spec: NodeSpec,
        out: &mut Vec<Action>,
    ) -> Result<NodeView, Conflict> {
        let wanted = spec.capacity;
        let Some(node) = self.nodes.get_mut(&spec.name) else {
            tracing::info!(
                node = %spec.name, address = %spec.address, port = spec.port,
                cores = wanted.cores, memory = wanted.memory, "node added"
            );
            let node = Node::new(spec);
            let view = node.view();
            self.nodes.insert(view.spec.name.clone(), node);
            out.push(Action::NodesChanged);
            return Ok(view);
        };
        if wanted.cores < node.leased.cores || wanted.memory < node.leased.memory {
            return Err(Conflict { node: spec.name, leased: node.leased, wanted });
        }
        if node.spec == spec && !node.draining {
            return Ok(node.view()); // again the same
        }
        tracing::info!(
            node = %spec.name, address = %spec.address, port = spec.port,
            cores = wanted.cores, memory = wanted.memory, "node changed"
        );
        if let Some(link) = node.link().filter(|_| node.spec.capacity != wanted) {
            out.push(Action::TellCapacity { link, capacity: wanted });
        }
        node.draining = false;
        let moved = node.spec.address != spec.address;
        node.spec = spec;
        if moved {
            node.ip = node.spec.address.parse().ok();
            node.resolve(now, out);
        }
        out.push(Action::NodesChanged);
        Ok(node.view())
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
        let Some(node) = self.nodes.get_mut(name) else { return Removal::Removed };
        node.draining = true;
        let connected = node.link().is_some();
        tracing::info!(node = name, ?grace, leases = node.leases.len(), "node is being removed");
        out.push(Action::NodesChanged);
        for id in self.leases_of(name) {
            match self.leases.get(&id).map(|lease| lease.state) {
                Some(State::Active | State::Ending { .. }) if !connected => {
                    self.finish(now, id, EndReason::NodeLost, None, out);
                }
                _ => self.begin_ending(now, id, EndReason::Withdrawn, grace, out),
            }
        }
        match self.nodes.get(name) {
            Some(node) if !node.drained() => Removal::Draining,
            Some(_) => {
                self.forget_node(name, out);
                Removal::Removed
            }
            None => Removal::Removed, // with its last lease
        }
    }

    /// An executor manager that knows the cluster secret registers `name`; `instance` is its run. `Err` tells it why not.
    pub fn node_connected(
        &mut self,
        now: Now,
        name: &str,
        instance: u64,
        link: LinkId,
        out: &mut Vec<Action>,
    ) -> Result<Capacity, String> {
        let Some(node) = self.nodes.get_mut(name) else {
            return Err(format!("node {name} is not known: add it with POST /add?node={name}"));
        };
        if node.link().is_some() {
            return Err(format!("node {name} is already connected: is its name used twice?"));
        }
        node.instance = instance;
        let held = node.leases.iter().filter_map(|id| self.leases.get(id));
        let unseen = held.filter(|lease| lease.unseen_since.is_some()).count();
        node.connection =
            Connection::Up { link, reclaim_by: (unseen > 0).then_some(now.monotonic + RECLAIM) };
        if node.spec.address.parse::<IpAddr>().is_err() {
            node.ip = None; // a host name may mean another machine by now
        }
        node.resolve(now, out);
        tracing::info!(node = name, leases = unseen, "executor manager connected");
        Ok(node.spec.capacity)
    }

    /// The connection of a node's executor manager has ended, for whatever reason. Its leases may
    /// go on without it, so it has some time to come back.
    pub fn node_disconnected(&mut self, now: Now, link: LinkId, out: &mut Vec<Action>) {
        let Some((name, node)) = self.nodes.iter_mut().find(|(_, n)| n.link() == Some(link)) else {
            return; // it was removed before
        };
        let name = name.clone();
        let leases = node.leases.len();
        node.connection = Connection::Lost {
            give_up_at: (leases > 0).then_some(now.monotonic + self.node_return),
        };
        node.resolve(now, out);
        tracing::warn!(node = %name, leases, "connection to the executor manager ended");
        let draining = node.draining;
        for id in self.leases_of(&name) {
            if draining {
                self.finish(now, id, EndReason::NodeLost, None, out);
            } else if let Some(lease) = self.leases.get_mut(&id)
                && !matches!(lease.state, State::Granted { .. })
            {
                lease.unseen_since.get_or_insert(now.monotonic);
            }
        }
    }

    /// The executor manager on `link` is to stop within `grace`: no new leases there.
    pub fn draining(&mut self, now: Now, link: LinkId, grace: Duration, out: &mut Vec<Action>) {
        let _ = (now, link, grace, out);
    }

    /// The answer to [`Action::Resolve`]: the address of `host`, or `None` if it was not found.
    pub fn resolved(&mut self, now: Now, node: &str, host: &str, ip: Option<IpAddr>) {
        let Some(node) = self.nodes.get_mut(node).filter(|n| *n.spec.address == *host) else {
            return; // removed or moved meanwhile
        };
        node.ip = ip.or(node.ip);
        node.resolve_at = match (node.ip, node.link()) {
            (None, Some(_)) => Some(now.monotonic + RESOLVE_AGAIN),
            _ => None,
        };
    }

    /// Does what was due for a node.
    pub(super) fn node_due(&mut self, now: Now, name: &str, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        if node.resolve_at.is_some_and(|at| at <= now.monotonic) {
            node.resolve(now, out);
        }
        let (due, all) = match &mut node.connection {
            Connection::Never => return,
            // It is back, but may not know all of its leases any more.
            Connection::Up { reclaim_by, .. } => (reclaim_by, false),
            Connection::Lost { give_up_at } => (give_up_at, true),
        };
        if due.take_if(|at| *at <= now.monotonic).is_none() {
            return;
        }
        for id in self.leases_of(name) {
            let unseen = self.leases.get(&id).is_some_and(|lease| lease.unseen_since.is_some());
            if all || unseen {
                self.finish(now, id, EndReason::NodeLost, None, out);
            }
        }
    }
}
