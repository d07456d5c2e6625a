//! Finds nodes without looking at all of them: by connection, by deadline, and by what is free.
//!
//! Every index says of a node what the node itself says. Only the table (`node_table`) changes
//! nodes, and it calls [`NodeIndex::update`] after each change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use rfaas_api::NodeState;
use rfaas_protocol::Capacity;
use rfaas_protocol::isolation::{Layer, Layers};

use super::LinkId;
use super::node::Node;
use crate::placement::{FreeTree, larger};

/// Where a node is kept as long as it is known. Placement tries nodes in this order. A new node takes
/// the place of one that was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeSlot(pub(super) usize);

const NOTHING: Capacity = Capacity::NOTHING;

/// What the indexes know of a node.
#[derive(PartialEq, Eq)]
pub(super) struct Indexed {
    link: Option<LinkId>,
    deadline: Option<Instant>,
    state: Option<NodeState>,
    free: Capacity,
    whole: Capacity,
    tried_last: bool,
    layers: Layers,
}

impl Indexed {
    /// What they know where there is no node.
    pub(super) const NO_NODE: Indexed = Indexed {
        link: None,
        deadline: None,
        state: None,
        free: NOTHING,
        whole: NOTHING,
        tried_last: false,
        layers: Layers::NONE,
    };

    pub(super) fn of(node: &Node) -> Self {
        let (link, deadline, state) = (node.link(), node.deadline(), node.state());
        let (free, whole, layers) = match state {
            NodeState::Ready => (node.free(), node.spec.capacity(), node.isolation),
            _ => (NOTHING, NOTHING, Layers::NONE),
        };
        let tried_last = node.tried_last;
        Indexed { link, deadline, state: Some(state), free, whole, tried_last, layers }
    }

    /// What is free, if the node is tried first.
    fn free_first(&self) -> Capacity {
        if self.tried_last { NOTHING } else { self.free }
    }

    /// What is free, if the node is tried last.
    fn free_last(&self) -> Option<Capacity> {
        self.tried_last.then_some(self.free)
    }
}

/// What nodes that are ready have together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeSums {
    /// Cores.
    pub cores: u64,
    /// Cores that no lease holds.
    pub free_cores: u64,
    /// Memory in MB.
    pub memory: u64,
    /// Memory that no lease holds, in MB.
    pub free_memory: u64,
    /// Nodes with each layer of isolation, in the order of [`Layer::ALL`].
    pub isolated: [u64; Layer::ALL.len()],
}

impl NodeSums {
    /// Whether so much is free, although perhaps not where it could be leased.
    fn hold(&self, wanted: Capacity) -> bool {
        self.free_cores >= wanted.cores.into() && self.free_memory >= wanted.memory.into()
    }
}

#[derive(Debug, Default)]
pub(super) struct NodeIndex {
    by_link: HashMap<LinkId, NodeSlot>,
    deadlines: BTreeSet<(Instant, NodeSlot)>,
    /// What is free on nodes that take leases: those that are tried first, and those that are tried last.
    free_first: FreeTree,
    free_last: FreeTree,
    /// What is free on each of the latter.
    tried_last: BTreeMap<NodeSlot, Capacity>,
    /// What there is on nodes that take leases.
    whole: FreeTree,
    /// The number of nodes in each state, in the order of [`NodeState::ALL`].
    states: [usize; NodeState::ALL.len()],
    sums: NodeSums,
}

impl NodeIndex {
    /// Brings the indexes up to date with a change of the node in `slot`.
    pub(super) fn update(&mut self, slot: NodeSlot, before: &Indexed, after: &Indexed) {
        if before.state != after.state {
            before.state.into_iter().for_each(|state| self.states[state as usize] -= 1);
            after.state.into_iter().for_each(|state| self.states[state as usize] += 1);
        }
        if before.link != after.link {
            before.link.map(|link| self.by_link.remove(&link));
            after.link.map(|link| self.by_link.insert(link, slot));
        }
        if before.deadline != after.deadline {
            before.deadline.map(|at| self.deadlines.remove(&(at, slot)));
            after.deadline.map(|at| self.deadlines.insert((at, slot)));
        }
        if before.free_first() != after.free_first() {
            self.free_first.set(slot.0, after.free_first());
        }
        if before.free_last() != after.free_last() {
            self.free_last.set(slot.0, after.free_last().unwrap_or(NOTHING));
            match after.free_last() {
                Some(free) => drop(self.tried_last.insert(slot, free)),
                None => drop(self.tried_last.remove(&slot)),
            }
        }
        if before.whole != after.whole {
            self.whole.set(slot.0, after.whole);
        }
        let NodeSums { cores, free_cores, memory, free_memory, isolated } = &mut self.sums;
        if before.layers != after.layers {
            for (&layer, nodes) in Layer::ALL.iter().zip(isolated) {
                let (was, is) = (before.layers.has(layer), after.layers.has(layer));
                *nodes = *nodes + u64::from(is) - u64::from(was);
            }
        }
        for (sum, before, after) in [
            (cores, before.whole.cores, after.whole.cores),
            (free_cores, before.free.cores, after.free.cores),
            (memory, before.whole.memory, after.whole.memory),
            (free_memory, before.free.memory, after.free.memory),
        ] {
            *sum = *sum + u64::from(after) - u64::from(before);
        }
    }

    /// The node whose executor manager is connected by `link`.
    pub(super) fn on(&self, link: LinkId) -> Option<NodeSlot> {
        self.by_link.get(&link).copied()
    }

    /// The first deadline of a node, and which node's it is.
    pub(super) fn first_deadline(&self) -> Option<(Instant, NodeSlot)> {
        self.deadlines.first().copied()
    }

    pub(super) fn count(&self, state: NodeState) -> usize {
        self.states[state as usize]
    }

    pub(super) fn sums(&self) -> NodeSums {
        self.sums
    }

    /// What is free on nodes that take leases: most cores and most memory on one.
    pub(super) fn most_free(&self) -> Capacity {
        larger(self.free_first.most(), self.free_last.most())
    }

    /// What nodes that take leases have when nothing is leased: most cores and most memory on one.
    pub(super) fn largest(&self) -> Capacity {
        self.whole.most()
    }

    /// Whether `wanted` would fit on one node, or in up to `parts` parts, if nothing were leased.
    pub(super) fn fits_when_empty(&self, wanted: Capacity, parts: usize) -> bool {
        self.whole.first(wanted).is_some()
            || (parts > 1 && self.whole.split(wanted, parts).is_some())
    }

    /// Where `wanted` goes: to one node if one has room, else in up to `parts` parts. Nodes that are tried
    /// last get it only if it goes nowhere else.
    pub(super) fn place(
        &self,
        wanted: Capacity,
        parts: usize,
    ) -> Option<Vec<(NodeSlot, Capacity)>> {
        let whole = |place| vec![(place, wanted)];
        let may_split = parts > 1 && self.sums.hold(wanted);
        let split = |free: &FreeTree| free.split(wanted, parts);
        let placed = self.free_first.first(wanted).map(whole);
        let placed = placed.or_else(|| may_split.then(|| split(&self.free_first)).flatten());
        let placed = placed.or_else(|| self.free_last.first(wanted).map(whole));
        let may_help = may_split && self.free_last.most().cores > 0;
        let placed = placed.or_else(|| may_help.then(|| split(&self.all_free())).flatten())?;
        Some(placed.into_iter().map(|(place, part)| (NodeSlot(place), part)).collect())
    }

    /// Where all of `wanted` goes, on another node than `node`, which is in `slot`.
    pub(super) fn place_elsewhere(
        &mut self,
        wanted: Capacity,
        slot: NodeSlot,
        node: &Indexed,
    ) -> Option<NodeSlot> {
        let tree = if node.tried_last { &mut self.free_last } else { &mut self.free_first };
        tree.set(slot.0, NOTHING);
        let place = self.free_first.first(wanted).or_else(|| self.free_last.first(wanted));
        let tree = if node.tried_last { &mut self.free_last } else { &mut self.free_first };
        tree.set(slot.0, node.free);
        place.map(NodeSlot)
    }

    /// What is free on all nodes that take leases. It is rarely needed, so it is put together then, at the
    /// cost of a copy.
    fn all_free(&self) -> FreeTree {
        let mut all = self.free_first.clone();
        self.tried_last.iter().for_each(|(slot, free)| all.set(slot.0, *free));
        all
    }
}
