//! The nodes of a vector as places of ours: a slot is a core, and memory is ample.

use std::collections::BTreeMap;
use std::time::Instant;

use resource_manager::placement::{Gang, LabelSet, Place, Places, Wish};
use resource_manager::pool::Capacity;
use serde::Deserialize;

/// A core; its memory does not matter.
pub const SLOT: Capacity = Capacity { cores: 1, memory: 1 };
/// The label of nodes that run no other tenant.
pub const OWN: LabelSet = LabelSet(1);
const AMPLE: u32 = 1 << 30;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub id: i64,
    pub slots: u32,
    #[serde(default)]
    pub used: u32,
    #[serde(default)]
    pub leaving: bool,
}

impl Node {
    pub fn free(&self) -> u32 {
        self.slots.saturating_sub(self.used)
    }
}

/// Places whose numbers are in the order of `ids`.
pub struct Cluster {
    pub places: Places,
    ids: Vec<i64>,
}

impl Cluster {
    /// Ties are broken by the larger id in the source, and by the larger number in ours.
    pub fn by_id(nodes: &[Node], others: &[i64]) -> Self {
        let mut nodes = nodes.to_vec();
        nodes.sort_by_key(|node| node.id);
        Cluster::in_order(&nodes, others)
    }

    pub fn in_order(nodes: &[Node], others: &[i64]) -> Self {
        let mut places = Places::default();
        for (number, node) in nodes.iter().enumerate() {
            let capacity = |cores| Capacity { cores, memory: AMPLE };
            let labels = if others.contains(&node.id) { LabelSet::default() } else { OWN };
            let leaves_at = node.leaving.then(Instant::now);
            let place = Place::new(capacity(node.free()), capacity(node.slots));
            places.set(number, Some(&Place { labels, leaves_at, ..place }));
        }
        Cluster { places, ids: nodes.iter().map(|node| node.id).collect() }
    }

    pub fn number(&self, id: i64) -> usize {
        self.ids.iter().position(|known| *known == id).expect("a node of the vector")
    }

    pub fn numbers(&self, ids: &[i64]) -> Vec<usize> {
        ids.iter().map(|id| self.number(*id)).collect()
    }

    pub fn ids(&self, numbers: Vec<usize>) -> Vec<i64> {
        numbers.into_iter().map(|number| self.ids[number]).collect()
    }
}

pub fn gang<'a>(workers: u32, wish: &'a Wish, beside: &'a [(usize, Capacity)]) -> Gang<'a> {
    Gang { workers, each: SLOT, until: None, wish, beside }
}

/// What running workers hold, by node.
pub fn held(running: &[usize]) -> Vec<(usize, Capacity)> {
    let mut nodes = BTreeMap::new();
    for node in running {
        let held = nodes.entry(*node).or_insert(Capacity::NOTHING);
        held.cores += SLOT.cores;
        held.memory += SLOT.memory;
    }
    nodes.into_iter().collect()
}
