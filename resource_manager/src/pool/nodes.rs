//! All nodes, and what finds one without looking at all of them.
//!
//! * INDEXED - every index says of each node what the node says. Only [`Nodes::change`] gives a node out
//!   to be changed, and it brings them up to date.
//!
//! Elsewhere: what a node is (`node`), how it comes, changes and leaves (`membership`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use super::LinkId;
use super::node::{Capacity, Node, NodeState};
use crate::placement::{Places, larger};

/// Where a node is kept, as long as it is known: the order in which placement looks at nodes. A new
/// node takes the place of one that was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(usize);

/// What the indexes know of a node.
#[derive(PartialEq, Eq)]
struct Indexed {
    link: Option<LinkId>,
    deadline: Option<Instant>,
    state: Option<NodeState>,
    free: Capacity,
    whole: Capacity,
    tried_last: bool,
}

const NOTHING: Capacity = Capacity { cores: 0, memory: 0 };
/// What they know where there is no node.
const NO_NODE: Indexed = Indexed {
    link: None,
    deadline: None,
    state: None,
    free: NOTHING,
    whole: NOTHING,
    tried_last: false,
};

/// What nodes that are ready have together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Cores.
    pub cores: u64,
    /// Cores that no lease holds.
    pub free_cores: u64,
    /// Memory in MB.
    pub memory: u64,
    /// Memory that no lease holds, in MB.
    pub free_memory: u64,
}

impl Sums {
    /// Whether so much is free, if perhaps not where it could be leased.
    fn hold(&self, wanted: Capacity) -> bool {
        self.free_cores >= wanted.cores.into() && self.free_memory >= wanted.memory.into()
    }
}

#[derive(Debug, Default)]
pub(super) struct Nodes {
    slots: Vec<Option<Node>>,
    vacant: BTreeSet<Slot>,
    by_name: BTreeMap<Arc<str>, Slot>,
    by_link: HashMap<LinkId, Slot>,
    deadlines: BTreeSet<(Instant, Slot)>,
    /// What is free on nodes that take leases: those that are tried first, and those that are tried last.
    free: Places,
    last: Places,
    /// The latter.
    tried_last: BTreeSet<Slot>,
    /// What there is on nodes that take leases.
    whole: Places,
    /// How many are in each state, in the order of [`NodeState::ALL`].
    states: [usize; NodeState::ALL.len()],
    sums: Sums,
}

impl Nodes {
    pub(super) fn insert(&mut self, node: Node) -> Slot {
        let slot = self.vacant.pop_first().unwrap_or(Slot(self.slots.len()));
        if slot.0 == self.slots.len() {
            self.slots.push(None);
        }
        self.by_name.insert(node.spec.name().clone(), slot);
        let indexed = Indexed::of(&node);
        self.slots[slot.0] = Some(node);
        self.reindex(slot, &NO_NODE, &indexed);
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Node> {
        let node = self.slots.get_mut(slot.0)?.take()?;
        let indexed = Indexed::of(&node);
        self.reindex(slot, &indexed, &NO_NODE);
        self.by_name.remove(node.spec.name());
        self.vacant.insert(slot);
        Some(node)
    }

    /// Changes a node (INDEXED).
    pub(super) fn change<T>(
        &mut self,
        slot: Slot,
        change: impl FnOnce(&mut Node) -> T,
    ) -> Option<T> {
        let node = self.slots.get_mut(slot.0)?.as_mut()?;
        let before = Indexed::of(node);
        let changed = change(node);
        let after = Indexed::of(node);
        self.reindex(slot, &before, &after);
        Some(changed)
    }

    fn reindex(&mut self, slot: Slot, before: &Indexed, after: &Indexed) {
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
            self.free.set(slot.0, after.free_first());
        }
        if before.free_last() != after.free_last() {
            self.last.set(slot.0, after.free_last());
        }
        match (before.tried_last, after.tried_last) {
            (false, true) => drop(self.tried_last.insert(slot)),
            (true, false) => drop(self.tried_last.remove(&slot)),
            _ => {}
        }
        if before.whole != after.whole {
            self.whole.set(slot.0, after.whole);
        }
        let Sums { cores, free_cores, memory, free_memory } = &mut self.sums;
        for (sum, before, after) in [
            (cores, before.whole.cores, after.whole.cores),
            (free_cores, before.free.cores, after.free.cores),
            (memory, before.whole.memory, after.whole.memory),
            (free_memory, before.free.memory, after.free.memory),
        ] {
            *sum = *sum + u64::from(after) - u64::from(before);
        }
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Node> {
        self.slots.get(slot.0)?.as_ref()
    }

    pub(super) fn find(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied()
    }

    pub(super) fn named(&self, name: &str) -> Option<&Node> {
        self.get(self.find(name)?)
    }

    /// The node whose executor manager is connected by `link`.
    pub(super) fn on(&self, link: LinkId) -> Option<(Slot, &Node)> {
        let slot = *self.by_link.get(&link)?;
        Some((slot, self.get(slot)?))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Node)> {
        let kept = self.slots.iter().enumerate();
        kept.filter_map(|(at, node)| Some((Slot(at), node.as_ref()?)))
    }

    /// Those whose names come after `name`, or all, by name.
    pub(super) fn after(&self, name: Option<&str>) -> impl Iterator<Item = &Node> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.by_name.range::<str, _>((start, Bound::Unbounded));
        names.filter_map(|(_, slot)| self.get(*slot))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub(super) fn count(&self, state: NodeState) -> usize {
        self.states[state as usize]
    }

    pub(super) fn sums(&self) -> Sums {
        self.sums
    }

    /// What is due first, and when.
    pub(super) fn first_deadline(&self) -> Option<(Instant, Slot)> {
        self.deadlines.first().copied()
    }

    /// What is free on nodes that take leases: most cores and most memory on one.
    pub(super) fn most_free(&self) -> Capacity {
        larger(self.free.most(), self.last.most())
    }

    /// What nodes that take leases have when nothing is leased, likewise.
    pub(super) fn largest(&self) -> Capacity {
        self.whole.most()
    }

    /// Whether `wanted` would fit on one, or in up to `parts` parts, if nothing were leased.
    pub(super) fn fits_when_empty(&self, wanted: Capacity, parts: usize) -> bool {
        self.whole.first(wanted).is_some()
            || (parts > 1 && self.whole.split(wanted, parts).is_some())
    }

    /// Where `wanted` goes: on one node if it can, else in up to `parts` parts; to those that are tried last only if
    /// it goes nowhere else.
    pub(super) fn place(&self, wanted: Capacity, parts: usize) -> Option<Vec<(Slot, Capacity)>> {
        let whole = |place| vec![(place, wanted)];
        let may_split = parts > 1 && self.sums.hold(wanted);
        let split = |free: &Places| free.split(wanted, parts);
        let placed = self.free.first(wanted).map(whole);
        let placed = placed.or_else(|| may_split.then(|| split(&self.free)).flatten());
        let placed = placed.or_else(|| self.last.first(wanted).map(whole));
        let may_help = may_split && self.last.most().cores > 0;
        let placed = placed.or_else(|| may_help.then(|| split(&self.all_free())).flatten())?;
        Some(placed.into_iter().map(|(place, part)| (Slot(place), part)).collect())
    }

    /// Where all of `wanted` goes, except for the node in `slot`.
    pub(super) fn place_elsewhere(&mut self, wanted: Capacity, slot: Slot) -> Option<Slot> {
        let Indexed { free, tried_last, .. } = self.get(slot).map_or(NO_NODE, Indexed::of);
        let places = if tried_last { &mut self.last } else { &mut self.free };
        places.set(slot.0, NOTHING);
        let place = self.free.first(wanted).or_else(|| self.last.first(wanted));
        let places = if tried_last { &mut self.last } else { &mut self.free };
        places.set(slot.0, free);
        place.map(Slot)
    }

    /// What is free on all nodes that take leases. Rarely needed, so it is put together then, which
    /// costs as much as there are nodes.
    fn all_free(&self) -> Places {
        let mut all = self.free.clone();
        for (slot, node) in self.tried_last.iter().filter_map(|slot| Some((slot, self.get(*slot)?)))
        {
            all.set(slot.0, Indexed::of(node).free);
        }
        all
    }
}

impl Indexed {
    fn of(node: &Node) -> Self {
        let (link, deadline, state) = (node.link(), node.deadline(), node.state());
        let (free, whole) = match state {
            NodeState::Ready => (node.free(), node.spec.capacity()),
            _ => (NOTHING, NOTHING),
        };
        let tried_last = node.tried_last;
        Indexed { link, deadline, state: Some(state), free, whole, tried_last }
    }

    /// What is free, if it is tried first.
    fn free_first(&self) -> Capacity {
        if self.tried_last { NOTHING } else { self.free }
    }

    /// What is free, if it is tried last.
    fn free_last(&self) -> Capacity {
        if self.tried_last { self.free } else { NOTHING }
    }
}
