//! A node: what it may lease out, what of it is leased, whether its executor manager is connected.
//!
//! Elsewhere: all nodes, how they come, change and leave (`node_table`).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rfaas_api::NodeState;
use rfaas_protocol::isolation::Layers;
use rfaas_protocol::lease::{LeaseId, MAX_NODE_NAME_BYTES};
use rfaas_protocol::placement::check_labels;
use rfaas_protocol::{Capacity, ClockWatch};

use super::ask::check_name;
use super::lease::GrantedLease;
use super::{Action, LinkId, MAX_CORES, NodeRecord, Now};
use crate::placement::{LabelSet, MAX_DIFFERENT_LABELS};

/// How long a look-up of a host name may take before it is started again: longer than a resolver
/// tries by default (`resolv.conf(5)`: 5 s, twice, up to three servers).
const RESOLVE_TIME: Duration = Duration::from_secs(45);

/// A node as the operator describes it.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    name: Arc<str>,
    address: Arc<str>,
    port: u16,
    capacity: Capacity,
    labels: Arc<[String]>,
    /// The labels were not given: a node that is known keeps those that it has.
    keeps_labels: bool,
}

/// Whether they describe the same, however that was said.
impl PartialEq for NodeSpec {
    fn eq(&self, other: &Self) -> bool {
        let NodeSpec { name, address, port, capacity, labels, keeps_labels: _ } = self;
        (name, address, port) == (&other.name, &other.address, &other.port)
            && (capacity, labels) == (&other.capacity, &other.labels)
    }
}
impl Eq for NodeSpec {}

impl NodeSpec {
    /// Checks a description; `Err` says which field is wrong and what it may be.
    pub fn new(name: &str, address: &str, port: u16, capacity: Capacity) -> Result<Self, String> {
        check_name("node", name, MAX_NODE_NAME_BYTES)?;
        // An IPv4 address may be written as one of IPv6: it is the same, and compared as text later.
        let address = match address.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(ip) if ip.is_unspecified() => {
                return Err(format!("address {ip} means every address; name the one to reach"));
            }
            Ok(ip) if ip.is_multicast() => {
                return Err(format!("address {ip} means many machines; name the one to reach"));
            }
            Ok(ip) => ip.to_string(),
            // RFC 1035, 2.3.4.
            Err(_) => {
                check_name("address", address, 253)?;
                address.to_owned()
            }
        };
        if port == 0 {
            return Err("port is 0; name the one that the executor manager listens at".into());
        }
        if !(1..=MAX_CORES).contains(&capacity.cores) {
            return Err(format!("cores is {}, not between 1 and {MAX_CORES}", capacity.cores));
        }
        if capacity.memory == 0 {
            return Err("memory is 0; it is in MB and at least 1".into());
        }
        let labels = Arc::default();
        let (name, address) = (name.into(), (*address).into());
        Ok(NodeSpec { name, address, port, capacity, labels, keeps_labels: true })
    }

    /// The same with labels; `Err` says which is wrong.
    pub fn with_labels(self, labels: &[String]) -> Result<Self, String> {
        check_labels(labels)?;
        Ok(NodeSpec { labels: labels.into(), keeps_labels: false, ..self })
    }

    /// The same without any label.
    pub(super) fn without_labels(self) -> Self {
        NodeSpec { labels: Arc::default(), ..self }
    }

    /// The same with the labels that the node has, if none were given.
    pub(super) fn or_labels_of(self, known: &NodeSpec) -> Self {
        match self.keeps_labels {
            true => {
                NodeSpec { labels: known.labels.clone(), keeps_labels: known.keeps_labels, ..self }
            }
            false => self,
        }
    }

    /// What it has that requests may ask for.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Address of its executor manager: IP address or host name.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// That address, if it is a number. An IPv4 address that is written as IPv6 is itself.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.address.parse().ok().map(|ip: IpAddr| ip.to_canonical())
    }

    /// Why an executor manager that listens at `address` is not the one that this describes, if it is not.
    pub(super) fn differs_from(&self, address: SocketAddr) -> Option<String> {
        let same_ip = self.ip().is_none_or(|ip| ip == address.ip());
        (!same_ip || self.port != address.port()).then(|| {
            let NodeSpec { name, address: wanted, port, .. } = self;
            let (ip, listens) = (address.ip(), address.port());
            format!(
                "node {name} was added with address {wanted}, port {port}, but its executor manager listens at \
                 address {ip}, port {listens}: correct the one or the other"
            )
        })
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

/// A node as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// What the operator said.
    pub spec: NodeSpec,
    /// What no lease holds.
    pub free: Capacity,
    /// Its state.
    pub state: NodeState,
    /// When it leaves.
    pub leaves_at: Option<SystemTime>,
    /// How far its clock is ahead of ours, in whole seconds, as long as it is connected.
    pub clock_ahead_s: Option<i64>,
    /// What its executors are isolated by, as long as it is connected.
    pub isolation: Option<Layers>,
}

/// Milliseconds in whole seconds, as people read them.
fn in_seconds(ms: i64) -> i64 {
    ms / 1000
}

/// A run of an executor manager, as it registers.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Its number: leases of another one have ended.
    pub instance: NonZeroU64,
    /// Where it listens.
    pub address: SocketAddr,
    /// How far its clock is ahead of ours, in milliseconds.
    pub clock_ahead_ms: i64,
    /// What its executors are isolated by.
    pub isolation: Layers,
}

/// A change of a node that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Leases hold more than would be left.
    #[error(
        "node {node} has {} cores and {} MB leased: it cannot shrink to {} cores and {} MB before these \
         leases end; remove it with POST /remove to end them",
        leased.cores, leased.memory, wanted.cores, wanted.memory
    )]
    Leased {
        /// Name of the node.
        node: Arc<str>,
        /// What leases hold.
        leased: Capacity,
        /// What would be left.
        wanted: Capacity,
    },
    /// Nodes would have too many different labels.
    #[error(
        "label {label:?} of node {node} is one too many: nodes have {MAX_DIFFERENT_LABELS} different labels at most"
    )]
    Labels {
        /// Name of the node.
        node: Arc<str>,
        /// The label that there is no room for.
        label: String,
    },
}

/// The connection of a node's executor manager.
#[derive(Clone, Copy, Debug)]
pub(super) enum NodeConnection {
    /// There was none yet, or the last one has ended in order.
    None,
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
    pub(super) resolve_at: Option<Instant>,
    pub(super) connection: NodeConnection,
    /// Which run of its executor manager registered last.
    pub(super) instance: Option<NonZeroU64>,
    /// Where that listens; `None`: none has registered with this run of ours.
    pub(super) listens: Option<SocketAddr>,
    /// How far its clock is ahead of ours, as long as it is connected.
    pub(super) clock_ahead_ms: Option<i64>,
    pub(super) clock_watch: ClockWatch,
    /// What its executors are isolated by, as it said last.
    pub(super) isolation: Layers,
    /// Its labels, as placement has them.
    pub(super) label_set: LabelSet,
    /// When it leaves, by both clocks.
    pub(super) leaves_at: Option<(Instant, SystemTime)>,
    /// Another run of its executor manager has registered since that was said: then it does not leave any more.
    pub(super) replaced: bool,
    /// Clients could not use it, so others are tried before it.
    pub(super) tried_last: bool,
    /// It is held back for a request that waits: others get nothing there.
    pub(super) held_back: bool,
    /// The operator has withdrawn it.
    pub(super) draining: bool,
    /// Its executor manager, which is connected, is stopping.
    pub(super) stopping: bool,
    pub(super) leased: Capacity,
    pub(super) leases: BTreeSet<LeaseId>,
}

impl Node {
    pub(super) fn new(spec: NodeSpec) -> Self {
        Node {
            ip: spec.ip(),
            spec,
            resolve_at: None,
            connection: NodeConnection::None,
            instance: None,
            listens: None,
            clock_ahead_ms: None,
            clock_watch: ClockWatch::default(),
            isolation: Layers::NONE,
            label_set: LabelSet::default(),
            leaves_at: None,
            replaced: false,
            tried_last: false,
            held_back: false,
            draining: false,
            stopping: false,
            leased: Capacity::NOTHING,
            leases: BTreeSet::new(),
        }
    }

    /// One of an earlier run of this program: lost, if it was ever there.
    pub(super) fn restored(now: Now, record: NodeRecord) -> Self {
        let NodeRecord { spec, instance, draining, leaves_at, replaced } = record;
        let leaves_at = leaves_at.map(|at| (now.until(at), at));
        let connection = match instance {
            None => NodeConnection::None,
            Some(_) => NodeConnection::Lost { give_up_at: None },
        };
        Node { instance, draining, leaves_at, replaced, connection, ..Node::new(spec) }
    }

    pub(super) fn record(&self) -> NodeRecord {
        let leaves_at = self.leaves_at.map(|(_, at)| at);
        let (spec, instance, draining) = (self.spec.clone(), self.instance, self.draining);
        NodeRecord { spec, instance, draining, leaves_at, replaced: self.replaced }
    }

    /// What no lease holds.
    pub(super) fn free(&self) -> Capacity {
        let all = self.spec.capacity;
        Capacity { cores: all.cores - self.leased.cores, memory: all.memory - self.leased.memory }
    }

    /// Counts a lease (CAPACITY); the caller has seen that there is room.
    pub(super) fn take(&mut self, lease: &GrantedLease) {
        let holds = lease.terms.holds();
        debug_assert!(self.free().holds(holds), "seen by the caller");
        if self.leases.insert(lease.terms.lease) {
            self.leased.cores += holds.cores;
            self.leased.memory += holds.memory;
        }
    }

    /// Counts a lease no longer (CAPACITY).
    pub(super) fn give(&mut self, lease: &GrantedLease) {
        if self.leases.remove(&lease.terms.lease) {
            self.leased.cores -= lease.terms.cores;
            self.leased.memory -= lease.terms.memory;
        }
    }

    /// Returns what it is told over its connection. It does not leave itself if it has come in place of one that does.
    pub(super) fn tell(&self, link: LinkId) -> Action {
        let leaves_at = self.leaves_at.filter(|_| !self.replaced).map(|(at, _)| at);
        Action::TellNode { link, capacity: self.spec.capacity(), leaves_at }
    }

    pub(super) fn link(&self) -> Option<LinkId> {
        match self.connection {
            NodeConnection::Up { link, .. } => Some(link),
            NodeConnection::None | NodeConnection::Lost { .. } => None,
        }
    }

    /// Where clients reach its executor manager, if that is known as a number.
    pub(super) fn manager(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.ip?, self.spec.port))
    }

    pub(super) fn state(&self) -> NodeState {
        match self.connection {
            _ if self.draining || self.stopping => NodeState::Draining,
            NodeConnection::Up { .. } if self.is_where_it_says() => NodeState::Ready,
            NodeConnection::Up { .. } | NodeConnection::None => NodeState::Registered,
            NodeConnection::Lost { .. } => NodeState::Lost,
        }
    }

    pub(super) fn view(&self) -> NodeView {
        NodeView {
            spec: self.spec.clone(),
            free: self.free(),
            state: self.state(),
            leaves_at: self.leaves_at.map(|(_, at)| at),
            clock_ahead_s: self.link().and(self.clock_ahead_ms).map(in_seconds),
            isolation: self.link().map(|_| self.isolation),
        }
    }

    /// Whether clients would be sent to where its executor manager listens.
    pub(super) fn is_where_it_says(&self) -> bool {
        self.manager().is_some() && self.manager() == self.listens
    }

    /// Notes what its clock says, and logs once that it is wrong.
    pub(super) fn set_clock(&mut self, now: Now, ahead_ms: i64) {
        self.clock_ahead_ms = Some(ahead_ms);
        if self.clock_watch.is_to_be_told(now.monotonic, ahead_ms) {
            tracing::warn!(
                node = %self.spec.name, ahead_s = in_seconds(ahead_ms),
                "the node's clock differs from this machine's: corrected for, but set it right"
            );
        }
    }

    /// Whether nothing keeps a node that is being withdrawn.
    pub(super) fn is_drained(&self) -> bool {
        self.draining && self.leases.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let connection = match self.connection {
            NodeConnection::None => None,
            NodeConnection::Up { reclaim_by, .. } => reclaim_by,
            NodeConnection::Lost { give_up_at } => give_up_at,
        };
        let back = self.leaves_at.filter(|_| self.replaced).map(|(at, _)| at);
        connection.into_iter().chain(self.resolve_at).chain(back).min()
    }

    /// Has the address looked up if it is a host name that a client needs soon.
    pub(super) fn resolve(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.ip.is_none() && self.link().is_some() {
            self.resolve_at = Some(now.monotonic + RESOLVE_TIME);
            let (node, host) = (self.spec.name.clone(), self.spec.address.clone());
            out.push(Action::Resolve { node, host });
        } else {
            self.resolve_at = None;
        }
    }
}
