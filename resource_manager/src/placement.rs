//! Which places a request goes to: pure, from what is free.
//!
//! ```text
//!              most (8, 4096)                each entry has the most cores and the most memory of the
//!            ╱                ╲              places below it, which need not be of one place
//!      (8, 4096)            (4, 1024)
//!      ╱       ╲            ╱       ╲
//!  (1, 4096) (8, 256)   (4, 1024)  (0, 0)    places: nodes, in the order in which they were added
//! ```
//! * A request goes to the first place on which all of it fits.
//! * What fits on none is split over the places that can take most of it, so that no other choice would need
//!   fewer.
//!
//! The tree (of eights, not of twos as in the picture) leaves out what cannot fit, so both look at a path
//! or two of it. Where many places have cores without memory next to others with memory without cores,
//! they look at more, at worst at all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::pool::Capacity;

const NOTHING: Capacity = Capacity::NOTHING;
/// Entries of a tree node, so that it is a cache line.
const FAN: usize = 8;

/// What is free below a tree node: at places, or most of it below other tree nodes.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct TreeNode([Capacity; FAN]);

impl TreeNode {
    const EMPTY: TreeNode = TreeNode([NOTHING; FAN]);

    fn most(&self) -> Capacity {
        self.0.iter().fold(NOTHING, |most, entry| larger(most, *entry))
    }
}

/// What is free at each place. Places are numbered from 0; one that was never set has nothing.
#[derive(Clone, Debug)]
pub struct FreeTree {
    /// The tree, from the places up. Entry `i` of a level is about tree node `i` of the level below; the
    /// top has one tree node.
    levels: Vec<Vec<TreeNode>>,
}

impl Default for FreeTree {
    fn default() -> Self {
        FreeTree { levels: vec![vec![TreeNode::EMPTY]] }
    }
}

impl FreeTree {
    /// Sets what is free at a place.
    pub fn set(&mut self, place: usize, free: Capacity) {
        self.make_room(place);
        let (mut at, mut most) = (place, free);
        for level in &mut self.levels {
            let node = &mut level[at / FAN];
            if node.0[at % FAN] == most {
                return; // nor does anything above change
            }
            node.0[at % FAN] = most;
            (at, most) = (at / FAN, node.most());
        }
    }

    /// Most cores and most memory that are free at one place, perhaps at two different ones.
    pub fn most(&self) -> Capacity {
        self.top().most()
    }

    /// The first place where `wanted` fits.
    pub fn first(&self, wanted: Capacity) -> Option<usize> {
        self.first_below(self.levels.len() - 1, 0, wanted)
    }

    fn first_below(&self, level: usize, node: usize, wanted: Capacity) -> Option<usize> {
        let entries = self.levels[level][node].0.iter().enumerate();
        let fitting = entries.filter(|(_, most)| most.holds(wanted)).map(|(at, _)| node * FAN + at);
        match level.checked_sub(1) {
            None => fitting.min(),
            Some(below) => fitting.into_iter().find_map(|at| self.first_below(below, at, wanted)),
        }
    }

    /// Where `wanted` goes in up to `parts` parts, at least one core each; memory in proportion to cores,
    /// rounded up. None if it does not go.
    pub fn split(&self, wanted: Capacity, parts: usize) -> Option<Vec<(usize, Capacity)>> {
        let mut chosen = Vec::new();
        let mut left = wanted.cores;
        // Entries by what they could take at most: when a place is the first of them, none takes more.
        let mut entries = BinaryHeap::new();
        let entries_of = |node: &TreeNode, level: usize, first: usize| {
            let takes = node.0.map(|most| takes(most, wanted)).into_iter().enumerate();
            takes.map(move |(at, takes)| (takes, Reverse(first + at), level))
        };
        entries.extend(entries_of(self.top(), self.levels.len() - 1, 0));
        while left > 0 && chosen.len() < parts {
            let (takes, Reverse(at), level) = entries.pop().filter(|(takes, ..)| *takes > 0)?;
            if let Some(below) = level.checked_sub(1) {
                entries.extend(entries_of(&self.levels[below][at], below, at * FAN));
                continue;
            }
            let cores = takes.min(left);
            left -= cores;
            chosen.push((at, Capacity { cores, memory: share(wanted, cores) }));
        }
        (left == 0).then_some(chosen)
    }

    fn top(&self) -> &TreeNode {
        &self.levels[self.levels.len() - 1][0]
    }

    fn make_room(&mut self, place: usize) {
        let mut nodes = place / FAN + 1; // needed in this level
        if nodes <= self.levels[0].len() {
            return;
        }
        for level in 0.. {
            if level == self.levels.len() {
                let below = &self.levels[level - 1];
                let mut node = TreeNode::EMPTY;
                node.0[0] = below[0].most(); // that was the top; the others are new and empty
                self.levels.push(vec![node]);
            }
            if self.levels[level].len() < nodes {
                self.levels[level].resize(nodes, TreeNode::EMPTY);
            }
            if self.levels[level].len() == 1 {
                return;
            }
            nodes = self.levels[level].len().div_ceil(FAN);
        }
    }
}

/// Most cores and most memory of both.
pub(crate) fn larger(a: Capacity, b: Capacity) -> Capacity {
    Capacity { cores: a.cores.max(b.cores), memory: a.memory.max(b.memory) }
}

/// The share of `wanted`'s memory that goes with `cores` of its cores.
fn share(wanted: Capacity, cores: u32) -> u32 {
    let share = (u64::from(wanted.memory) * u64::from(cores)).div_ceil(wanted.cores.into());
    u32::try_from(share).unwrap_or(u32::MAX) // not more than all of it
}

/// The number of `wanted`'s cores that fit, with their share of memory, where `free` is free.
fn takes(free: Capacity, wanted: Capacity) -> u32 {
    let by_memory =
        u64::from(free.memory) * u64::from(wanted.cores) / u64::from(wanted.memory.max(1));
    u32::try_from(by_memory).unwrap_or(u32::MAX).min(free.cores)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capacity((cores, memory): (u32, u32)) -> Capacity {
        Capacity { cores, memory }
    }

    fn tree(free: &[(u32, u32)]) -> FreeTree {
        let mut tree = FreeTree::default();
        free.iter().enumerate().for_each(|(at, free)| tree.set(at, capacity(*free)));
        tree
    }

    #[test]
    fn the_first_place_with_enough_of_both_is_taken() {
        let tree = tree(&[(1, 4096), (8, 256), (4, 1024)]);
        let first = |cores, memory| tree.first(Capacity { cores, memory });
        assert_eq!(first(1, 256), Some(0));
        assert_eq!(first(2, 256), Some(1));
        assert_eq!(first(2, 512), Some(2));
        assert_eq!((first(9, 1), first(2, 2048)), (None, None));
        assert_eq!(tree.most(), Capacity { cores: 8, memory: 4096 });
        assert_eq!(FreeTree::default().first(Capacity { cores: 1, memory: 1 }), None);
    }

    #[test]
    fn a_split_takes_most_first_and_memory_with_the_cores() {
        let tree = tree(&[(1, 4096), (8, 256), (4, 1024), (2, 1)]);
        let split = |cores, memory, parts| tree.split(Capacity { cores, memory }, parts);
        let part = |place, cores, memory| (place, Capacity { cores, memory });
        assert_eq!(split(10, 100, 2), Some(vec![part(1, 8, 80), part(2, 2, 20)]));
        assert_eq!(split(12, 100, 2), Some(vec![part(1, 8, 67), part(2, 4, 34)]), "rounded up");
        assert_eq!(split(13, 13, 2), None);
        assert_eq!(split(13, 13, 3).map(|parts| parts.len()), Some(3));
        assert_eq!(split(6, 768, 2), Some(vec![part(2, 4, 512), part(1, 2, 256)]), "memory limits");
        assert_eq!(split(100, 1, 9), None);
    }

    /// By looking at every place: the largest first, equals in order.
    fn naive_split(free: &[(u32, u32)], wanted: Capacity, parts: usize) -> Option<Vec<u32>> {
        let mut takes: Vec<_> = free
            .iter()
            .map(|&(cores, memory)| {
                let fits = |c: &u32| {
                    u64::from(*c) * u64::from(wanted.memory)
                        <= u64::from(memory) * u64::from(wanted.cores)
                };
                (0..=cores).rev().find(fits).unwrap_or(0)
            })
            .collect();
        takes.sort_unstable_by_key(|cores| Reverse(*cores));
        let mut left = wanted.cores;
        let taken = takes.iter().take(parts).map(|most| {
            let cores = left.min(*most);
            left -= cores;
            cores
        });
        let taken: Vec<_> = taken.filter(|cores| *cores > 0).collect();
        (left == 0).then_some(taken)
    }

    /// Cores without memory beside memory without cores, among others: the worst for the tree.
    fn free() -> impl Strategy<Value = (u32, u32)> {
        prop_oneof![(0..20_u32, 0..20_u32), (10..20_u32, Just(0)), (Just(0), 10..20_u32)]
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_looking_at_every_place_finds(
            changes in proptest::collection::vec((0..70_usize, free()), 1..200),
            wanted in (1..24_u32, 1..24_u32),
            parts in 1..5_usize,
        ) {
            let wanted = capacity(wanted);
            let (mut tree, mut naive) = (FreeTree::default(), vec![(0, 0); 70]);
            for (place, free) in changes {
                tree.set(place, capacity(free));
                naive[place] = free;
                let first = naive.iter().position(|free| capacity(*free).holds(wanted));
                prop_assert_eq!(tree.first(wanted), first);
                let split = tree.split(wanted, parts);
                let cores = split.as_ref().map(|s| s.iter().map(|(_, part)| part.cores).collect());
                prop_assert_eq!(cores, naive_split(&naive, wanted, parts));
                let split = split.unwrap_or_default();
                prop_assert!(split.iter().all(|(at, part)| capacity(naive[*at]).holds(*part)));
                prop_assert!(split.is_empty() || split.iter().map(|(_, p)| p.memory).sum::<u32>() >= wanted.memory);
                let most = naive.iter().fold(NOTHING, |most, free| larger(most, capacity(*free)));
                prop_assert_eq!(tree.most(), most);
            }
        }
    }
}
