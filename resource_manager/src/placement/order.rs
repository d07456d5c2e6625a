//! The places of a request in the order of a policy, found one after the other as they are needed.
//!
//! * By number: the first place that can be taken, then the next one.
//! * The largest first: those that can take most workers, of these the ones that are largest when empty, of
//!   these the last in number. The search goes down the trees from the entry that could have the best
//!   place below it; a place is next when no entry could have a better one.
//!
//! Places that are tried last come after all others.

use std::collections::BinaryHeap;
use std::time::Instant;

use super::places::Places;
use super::tree::FAN;
use super::wish::Wish;
use crate::pool::Capacity;

/// What places must have to be looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search<'a> {
    pub(super) places: &'a Places,
    /// A worker.
    pub(super) each: Capacity,
    /// Fewest workers that a place must be able to take.
    pub(super) fewest: u32,
    pub(super) wish: &'a Wish,
    pub(super) until: Option<Instant>,
}

/// The number of workers of a size that fit.
pub(super) fn takes(free: Capacity, each: Capacity) -> u32 {
    let by_memory = free.memory.checked_div(each.memory).unwrap_or(u32::MAX);
    by_memory.min(free.cores.checked_div(each.cores).unwrap_or(u32::MAX))
}

impl<'a> Search<'a> {
    /// What must be free for fewest workers.
    fn floor(&self) -> Capacity {
        let Capacity { cores, memory } = self.each;
        let cores = cores.saturating_mul(self.fewest);
        Capacity {
            cores: cores.saturating_add(self.wish.leaves_free_everywhere()),
            memory: memory.saturating_mul(self.fewest),
        }
    }

    /// Whether a place, or one below an entry of a tree, has the labels.
    fn has_labels(&self, level: usize, at: usize) -> bool {
        let wanted = self.wish.has.0;
        wanted == 0 || self.places.labels.entry(level, at) & wanted == wanted
    }

    /// Whether a place that has the labels, or one below an entry of a tree, may stay long enough.
    fn may_do(&self, level: usize, at: usize) -> bool {
        self.has_labels(level, at) && self.places.some_stay(level, at, self.until)
    }

    /// Whether a place may be taken, whatever is free there.
    pub(super) fn may_take(&self, number: usize) -> bool {
        self.has_labels(0, number)
            && self.places.stays(number, self.until)
            && !self.wish.not_on.contains(&number)
    }

    pub(super) fn by_number(self) -> impl Iterator<Item = usize> + 'a {
        let floor = self.floor();
        let in_tree = move |class: usize| {
            let mut from = 0;
            std::iter::from_fn(move || {
                let found = |level: usize, at: usize, most: Capacity| {
                    most.holds(floor) && self.may_do(level, at) && (level > 0 || self.may_take(at))
                };
                let number = self.places.free[class].first_from(from, &found)?;
                from = number + 1;
                Some(number)
            })
        };
        in_tree(0).chain(in_tree(1))
    }

    /// The largest first; those that are tried last come after all others, or `among` them.
    pub(super) fn largest(self, among: bool) -> Largest<'a> {
        let (floor, bounds) = (self.floor(), BinaryHeap::with_capacity(64));
        let mut largest = Largest { search: self, floor, among, bounds };
        largest.look_below(0, self.places.free[0].top_level(), 0);
        if self.places.free[1].joined().cores > 0 {
            largest.look_below(1, self.places.free[1].top_level(), 0);
        }
        largest
    }
}

/// The best that a place below an entry of a tree can be, and that place itself at level 0: in one number, so that
/// comparing two is one instruction. From the top: whether it is tried first (1 bit), workers that it can take
/// and could if it were empty (16 each, as many as a node has cores), its last place (27), level (3), tree (1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bound(u64);

impl Bound {
    fn new(tried_first: bool, takes: [u32; 2], last: usize, level: usize, class: usize) -> Self {
        let [now, empty] = takes.map(|takes| u64::from(takes.min(u16::MAX.into())));
        let place = (last as u64) << 4 | (level as u64) << 1 | class as u64;
        Bound(u64::from(tried_first) << 63 | now << 47 | empty << 31 | place)
    }

    fn last(self) -> usize {
        (self.0 >> 4 & ((1 << 27) - 1)) as usize
    }

    fn level(self) -> usize {
        (self.0 >> 1 & 7) as usize
    }

    fn class(self) -> usize {
        (self.0 & 1) as usize
    }
}

/// Places, the largest first.
#[derive(Debug)]
pub(super) struct Largest<'a> {
    search: Search<'a>,
    floor: Capacity,
    among: bool,
    bounds: BinaryHeap<Bound>,
}

impl Largest<'_> {
    fn look_below(&mut self, class: usize, level: usize, node: usize) {
        let Search { places, each, wish, .. } = self.search;
        for at in node * FAN..(node + 1) * FAN {
            let free = places.free[class].entry(level, at);
            if !free.holds(self.floor) || !self.search.may_do(level, at) {
                continue;
            }
            // The floor has them, so there are as many.
            let cores = free.cores - wish.leaves_free_everywhere();
            let takes = [Capacity { cores, ..free }, places.whole.entry(level, at)];
            let takes = takes.map(|there| self::takes(there, each));
            let last = ((at + 1) << (3 * level)) - 1;
            self.bounds.push(Bound::new(class == 0 || self.among, takes, last, level, class));
        }
    }
}

impl Iterator for Largest<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while let Some(bound) = self.bounds.pop() {
            let last = bound.last();
            match bound.level().checked_sub(1) {
                None if self.search.may_take(last) => return Some(last),
                None => {}
                Some(below) => self.look_below(bound.class(), below, last >> (3 * bound.level())),
            }
        }
        None
    }
}
