//! A tree over places, which leaves out those that cannot be what is looked for.
//!
//! ```text
//!              most (8, 4096)                each entry joins those of the places below it: of what is free,
//!            ╱                ╲              the most cores and the most memory, which need not be of one
//!      (8, 4096)            (4, 1024)        place; of labels, all
//!      ╱       ╲            ╱       ╲
//!  (1, 4096) (8, 256)   (4, 1024)  (0, 0)    places: nodes, in the order in which they were added
//! ```
//! The tree is of eights, not of twos as in the picture. A search looks at a path or two of it. Where many
//! places have cores without memory next to others with memory without cores, it looks at more, at
//! worst at all.
//!
//! Elsewhere: the trees that there are (`places`), the search for the places with the most room (`order`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::pool::Capacity;

/// Entries of a tree node, so that eight capacities are a cache line.
pub(super) const FAN: usize = 8;

/// What an entry of a tree is made of.
pub(super) trait Entry: Copy + PartialEq {
    /// That of a place that was never set.
    const NONE: Self;

    /// That of both together.
    fn join(self, other: Self) -> Self;
}

/// Most cores and most memory.
impl Entry for Capacity {
    const NONE: Self = Capacity::NOTHING;

    fn join(self, other: Self) -> Self {
        Capacity { cores: self.cores.max(other.cores), memory: self.memory.max(other.memory) }
    }
}

/// A bit each for labels.
impl Entry for u64 {
    const NONE: Self = 0;

    fn join(self, other: Self) -> Self {
        self | other
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct TreeNode<E>([E; FAN]);

impl<E: Entry> TreeNode<E> {
    const EMPTY: TreeNode<E> = TreeNode([E::NONE; FAN]);

    fn joined(&self) -> E {
        self.0.iter().fold(E::NONE, |joined, entry| joined.join(*entry))
    }
}

/// An entry for each place. Places are numbered from 0.
#[derive(Clone, Debug)]
pub(super) struct Tree<E> {
    /// The tree, from the places up. Entry `i` of a level is about tree node `i` of the level below; the
    /// top has one tree node.
    levels: Vec<Vec<TreeNode<E>>>,
}

impl<E: Entry> Default for Tree<E> {
    fn default() -> Self {
        Tree { levels: vec![vec![TreeNode::EMPTY]] }
    }
}

impl<E: Entry> Tree<E> {
    /// Sets the entry of a place.
    pub(super) fn set(&mut self, place: usize, entry: E) {
        self.make_room(place);
        let (mut at, mut joined) = (place, entry);
        for level in &mut self.levels {
            let node = &mut level[at / FAN];
            if node.0[at % FAN] == joined {
                return; // nor does anything above change
            }
            node.0[at % FAN] = joined;
            (at, joined) = (at / FAN, node.joined());
        }
    }

    /// The entry of a place.
    pub(super) fn get(&self, place: usize) -> E {
        self.levels[0].get(place / FAN).map_or(E::NONE, |node| node.0[place % FAN])
    }

    /// Entry `at` of a level; level 0 is that of the places.
    pub(super) fn entry(&self, level: usize, at: usize) -> E {
        self.levels[level][at / FAN].0[at % FAN]
    }

    /// The level of the top.
    pub(super) fn top_level(&self) -> usize {
        self.levels.len() - 1
    }

    /// All together.
    pub(super) fn joined(&self) -> E {
        self.levels[self.top_level()][0].joined()
    }

    /// All entries in the order of their places.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, E)> {
        self.levels[0].iter().flat_map(|node| node.0).enumerate()
    }

    /// The first place from `from` on that is `found`, which is asked about levels, what is there and
    /// entries: also those above a place, which it must not refuse if it would take the place.
    pub(super) fn first_from(
        &self,
        from: usize,
        found: &impl Fn(usize, usize, E) -> bool,
    ) -> Option<usize> {
        self.first_below(self.top_level(), 0, from, found)
    }

    fn first_below(
        &self,
        level: usize,
        node: usize,
        from: usize,
        found: &impl Fn(usize, usize, E) -> bool,
    ) -> Option<usize> {
        let first = (from >> (3 * level)).saturating_sub(node * FAN).min(FAN);
        let entries = self.levels[level].get(node)?.0.iter().enumerate().skip(first);
        let mut fitting = entries
            .map(|(at, entry)| (node * FAN + at, *entry))
            .filter(|(at, entry)| found(level, *at, *entry))
            .map(|(at, _)| at);
        match level.checked_sub(1) {
            None => fitting.next(),
            Some(below) => fitting.find_map(|at| self.first_below(below, at, from, found)),
        }
    }

    /// Makes room for a place and those before it.
    pub(super) fn make_room(&mut self, place: usize) {
        let mut nodes = place / FAN + 1; // needed in this level
        if nodes <= self.levels[0].len() {
            return;
        }
        for level in 0.. {
            if level == self.levels.len() {
                let below = &self.levels[level - 1];
                let mut node = TreeNode::EMPTY;
                node.0[0] = below[0].joined(); // that was the top; the others are new and empty
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

impl Tree<Capacity> {
    /// The first place where `wanted` fits.
    pub(super) fn first(&self, wanted: Capacity) -> Option<usize> {
        self.first_from(0, &|_, _, most: Capacity| most.holds(wanted))
    }

    /// Where `wanted` goes in up to `parts` parts, at least one core each; memory in proportion to cores,
    /// rounded up. None if it does not go.
    pub(super) fn split(&self, wanted: Capacity, parts: usize) -> Option<Vec<(usize, Capacity)>> {
        let mut chosen = Vec::new();
        let mut left = wanted.cores;
        // Entries by what they could take at most: when a place is the first of them, none takes more.
        let mut entries = BinaryHeap::new();
        let entries_of = |level: usize, node: usize| {
            let takes = self.levels[level][node].0.map(|most| takes(most, wanted));
            let takes = takes.into_iter().enumerate();
            takes.map(move |(at, takes)| (takes, Reverse(node * FAN + at), level))
        };
        entries.extend(entries_of(self.top_level(), 0));
        while left > 0 && chosen.len() < parts {
            let (takes, Reverse(at), level) = entries.pop().filter(|(takes, ..)| *takes > 0)?;
            if let Some(below) = level.checked_sub(1) {
                entries.extend(entries_of(below, at));
                continue;
            }
            let cores = takes.min(left);
            left -= cores;
            chosen.push((at, Capacity { cores, memory: share(wanted, cores) }));
        }
        (left == 0).then_some(chosen)
    }
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

    fn tree(free: &[(u32, u32)]) -> Tree<Capacity> {
        let mut tree = Tree::default();
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
        assert_eq!(tree.joined(), Capacity { cores: 8, memory: 4096 });
        assert_eq!(Tree::default().first(Capacity { cores: 1, memory: 1 }), None);
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
            from in 0..80_usize,
        ) {
            let wanted = capacity(wanted);
            let (mut tree, mut naive) = (Tree::default(), vec![(0, 0); 70]);
            for (place, free) in changes {
                tree.set(place, capacity(free));
                naive[place] = free;
                let fits = |at: usize| naive.get(at).is_some_and(|free| capacity(*free).holds(wanted));
                prop_assert_eq!(tree.first(wanted), (0..70).find(|at| fits(*at)));
                let found = tree.first_from(from, &|_, _, most: Capacity| most.holds(wanted));
                prop_assert_eq!(found, (from..70).find(|at| fits(*at)));
                let split = tree.split(wanted, parts);
                let cores = split.as_ref().map(|s| s.iter().map(|(_, part)| part.cores).collect());
                prop_assert_eq!(cores, naive_split(&naive, wanted, parts));
                let split = split.unwrap_or_default();
                prop_assert!(split.iter().all(|(at, part)| capacity(naive[*at]).holds(*part)));
                prop_assert!(split.is_empty() || split.iter().map(|(_, p)| p.memory).sum::<u32>() >= wanted.memory);
                let most = naive.iter().fold(Capacity::NOTHING, |most, free| most.join(capacity(*free)));
                prop_assert_eq!(tree.joined(), most);
            }
        }
    }
}
