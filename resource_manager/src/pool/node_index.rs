//! Finds nodes without looking at all of them: by connection, by deadline, and by what is free.
//!
//! Every index says of a node what the node itself says. Only the table (`node_table`) changes
//! nodes, and it calls [`NodeIndex::update`] after each change.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use rfaas_api::NodeState;
use rfaas_protocol::Capacity;
use rfaas_protocol::isolation::{Layer, Layers};

use super::LinkId;
use super::node::Node;
use crate::placement::{self, Advice, Gang, LabelSet, Place, Places, Policy, Refused, Wish};

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
    /// What it has, also while it is away; nothing: it is withdrawn.
    known: Capacity,
    tried_last: bool,
    held_back: bool,
    labels: LabelSet,
    leaves_at: Option<Instant>,
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
        known: NOTHING,
        tried_last: false,
        held_back: false,
        labels: LabelSet(0),
        leaves_at: None,
        layers: Layers::NONE,
    };

    pub(super) fn of(node: &Node) -> Self {
        let (link, deadline, state) = (node.link(), node.deadline(), node.state());
        let (free, whole, layers) = match state {
            NodeState::Ready => (node.free(), node.spec.capacity(), node.isolation),
            _ => (NOTHING, NOTHING, Layers::NONE),
        };
        let (tried_last, held_back, labels) = (node.tried_last, node.held_back, node.label_set);
        let leaves_at = node.leaves_at.map(|(at, _)| at);
        let known = if node.draining { NOTHING } else { node.spec.capacity() };
        Indexed {
            link,
            deadline,
            state: Some(state),
            free,
            whole,
            known,
            tried_last,
            held_back,
            labels,
            leaves_at,
            layers,
        }
    }

    /// What placement knows of it.
    fn place(&self) -> Option<Place> {
        let Indexed { free, whole, tried_last, held_back, labels, leaves_at, .. } = *self;
        let free = if held_back { NOTHING } else { free };
        let place = Place { free, whole, labels, tried_last, leaves_at };
        (whole != NOTHING).then_some(place)
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

    /// Whether there is so much, although perhaps leased, or not where it could be leased.
    pub(super) fn ever_hold(&self, wanted: Capacity) -> bool {
        self.cores >= wanted.cores.into() && self.memory >= wanted.memory.into()
    }
}

#[derive(Debug, Default)]
pub(super) struct NodeIndex {
    by_link: HashMap<LinkId, NodeSlot>,
    deadlines: BTreeSet<(Instant, NodeSlot)>,
    /// Nodes that take leases.
    places: Places,
    /// What all nodes have that are not withdrawn, also those that are away.
    known: Places,
    known_sums: NodeSums,
    /// The number of nodes in each state, in the order of [`NodeState::ALL`].
    states: [usize; NodeState::ALL.len()],
    sums: NodeSums,
    /// Goes up when anything changes of a node but what is free.
    version: u64,
    /// There may be room where there was none.
    gained: bool,
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
        self.gained |= !before.free.holds(after.free); // also where it is held back
        let (was, is) = (before.place(), after.place());
        if let (Some(was), Some(is)) = (was, is)
            && is == (Place { free: is.free, ..was })
        {
            self.places.set_free(slot.0, is.free);
        } else if was != is {
            self.places.set(slot.0, is.as_ref());
            self.version += 1;
            self.gained = true;
        }
        if before.known != after.known {
            let place = Place::new(NOTHING, after.known);
            self.known.set(slot.0, (after.known != NOTHING).then_some(&place));
            let NodeSums { cores, memory, .. } = &mut self.known_sums;
            *cores = *cores + u64::from(after.known.cores) - u64::from(before.known.cores);
            *memory = *memory + u64::from(after.known.memory) - u64::from(before.known.memory);
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

    /// The number of nodes that take leases and leave.
    pub(super) fn leaving(&self) -> usize {
        self.places.leaving()
    }

    /// What is free on nodes that take leases: most cores and most memory on one.
    pub(super) fn most_free(&self) -> Capacity {
        self.places.most_free()
    }

    /// What nodes that take leases have when nothing is leased: most cores and most memory on one.
    pub(super) fn largest(&self) -> Capacity {
        self.places.largest()
    }

    /// Whether `wanted` would fit on one node, or in up to `parts` parts, if nothing were leased.
    pub(super) fn fits_when_empty(&self, wanted: Capacity, parts: usize) -> bool {
        self.places.fits_when_empty(wanted, parts)
    }

    /// Whether `wanted` would fit likewise, and `total` in all, if all nodes were there that are not withdrawn.
    pub(super) fn may_ever_fit(&self, wanted: Capacity, parts: usize, total: Capacity) -> bool {
        self.known_sums.ever_hold(total) && self.known.fits_when_empty(wanted, parts)
    }

    /// Where `wanted` goes until then: to one node if one has room, by the policy, else in up to `parts` parts.
    /// Nodes that are tried last get it only if it goes nowhere else.
    pub(super) fn place(
        &self,
        policy: Policy,
        wanted: Capacity,
        parts: usize,
        until: Instant,
    ) -> Option<Vec<(NodeSlot, Capacity)>> {
        let may_split = parts > 1 && self.sums.hold(wanted);
        let whole = |node: usize| vec![(node, wanted)];
        let split = || self.places.split(wanted, parts, Some(until));
        let on_one = self.place_one(policy, wanted, until, &Wish::default());
        let on_one = match on_one {
            // In parts it may do without.
            Some(node) if may_split && self.places.is_late(node) => {
                return Some(in_slots(
                    self.places.split_first(wanted, parts).unwrap_or_else(|| whole(node)),
                ));
            }
            on_one => on_one.map(whole),
        };
        on_one.or_else(|| may_split.then(split).flatten()).map(in_slots)
    }

    fn place_one(
        &self,
        policy: Policy,
        wanted: Capacity,
        until: Instant,
        wish: &Wish,
    ) -> Option<usize> {
        let gang = Gang { workers: 1, each: wanted, until: Some(until), wish, beside: &[] };
        placement::place(&self.places, policy, gang).ok()?.pop()
    }

    /// Goes up when anything changes of a node but what is free.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether there may be room where there was none when this was last called.
    pub(super) fn take_gained(&mut self) -> bool {
        std::mem::take(&mut self.gained)
    }

    /// The same, to be looked at again.
    pub(super) fn has_gained(&self) -> bool {
        self.gained
    }

    /// Whether workers that run would be better placed elsewhere.
    pub(super) fn better(&self, policy: Policy, gang: Gang<'_>, running: &[usize]) -> Advice {
        placement::better(&self.places, policy, gang, running)
    }

    /// Where the workers of a gang would go if nothing were leased but what they join: on nodes that were chosen
    /// `before`, if they do.
    pub(super) fn place_when_empty(
        &self,
        policy: Policy,
        gang: Gang<'_>,
        before: &[NodeSlot],
    ) -> Option<Vec<NodeSlot>> {
        let before: Vec<_> = before.iter().map(|slot| slot.0).collect();
        let on = |places: &Places| placement::place(places, policy, gang).ok();
        let again = (!before.is_empty()).then(|| on(&self.places.emptied_of(&before, gang.beside)));
        let mut placed = again.flatten().or_else(|| on(&self.places.emptied(gang.beside)))?;
        placed.sort_unstable();
        placed.dedup();
        Some(placed.into_iter().map(NodeSlot).collect())
    }

    /// Where the workers of a gang go.
    pub(super) fn place_gang(
        &self,
        policy: Policy,
        gang: Gang<'_>,
    ) -> Result<Vec<NodeSlot>, Refused> {
        let placed = placement::place(&self.places, policy, gang)?;
        Ok(placed.into_iter().map(NodeSlot).collect())
    }

    /// Where all of `wanted` goes until then, on another node than `node`.
    pub(super) fn place_elsewhere(
        &self,
        policy: Policy,
        wanted: Capacity,
        node: NodeSlot,
        until: Instant,
    ) -> Option<NodeSlot> {
        let wish = Wish { not_on: vec![node.0], ..Wish::default() };
        self.place_one(policy, wanted, until, &wish).map(NodeSlot)
    }
}

fn in_slots(parts: Vec<(usize, Capacity)>) -> Vec<(NodeSlot, Capacity)> {
    parts.into_iter().map(|(node, part)| (NodeSlot(node), part)).collect()
}
