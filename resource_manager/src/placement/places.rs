//! What placement knows of each node: what is free and what there is, its labels, when it leaves.
//!
//! It is brought up to date with each change of a node, so that nothing is sorted when a lease is asked
//! for.

use std::collections::BTreeMap;
use std::time::Instant;

use super::tree::{Entry, Tree};
use crate::pool::Capacity;

/// Most different labels that nodes of a cluster have: a bit each.
pub const MAX_DIFFERENT_LABELS: usize = 64;

/// A set of labels, by the numbers that they have in a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelSet(pub u64);

impl LabelSet {
    /// Whether it has all of these.
    pub fn has(self, all: LabelSet) -> bool {
        self.0 & all.0 == all.0
    }
}

/// A node that takes leases, as placement sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What no lease holds.
    pub free: Capacity,
    /// What there is.
    pub whole: Capacity,
    /// Its labels.
    pub labels: LabelSet,
    /// Whether others are tried before it.
    pub tried_last: bool,
    /// When it leaves: leases there must have ended by then.
    pub leaves_at: Option<Instant>,
}

impl Place {
    /// One that has room and nothing else that matters.
    pub fn new(free: Capacity, whole: Capacity) -> Self {
        Place { free, whole, labels: LabelSet::default(), tried_last: false, leaves_at: None }
    }

    fn is_late(&self) -> bool {
        self.tried_last || self.leaves_at.is_some()
    }
}

/// How long a place stays; of several, the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stay {
    /// There is no place.
    Gone,
    /// It leaves then.
    Until(Instant),
    /// It does not leave.
    Always,
}

impl Stay {
    /// Whether it stays for what ends at `until`, or never.
    fn lasts(self, until: Option<Instant>) -> bool {
        self >= until.map_or(Stay::Always, Stay::Until)
    }
}

impl Entry for Stay {
    const NONE: Self = Stay::Gone;

    fn join(self, other: Self) -> Self {
        self.max(other)
    }
}

/// All places, numbered from 0 in the order in which nodes were added.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// What is free on places that are tried first, and on those that are tried last: also those that leave.
    pub(super) free: [Tree<Capacity>; 2],
    /// What there is; nothing: there is no place.
    pub(super) whole: Tree<Capacity>,
    pub(super) labels: Tree<u64>,
    /// When places leave.
    stay: Tree<Stay>,
    /// The number of those that do.
    leaving: usize,
    /// Those that are tried last.
    late: BTreeMap<usize, Capacity>,
}

impl Places {
    /// Sets a place; `None`: there is none any more, or none that takes leases.
    pub fn set(&mut self, number: usize, place: Option<&Place>) {
        let free = |late| match place {
            Some(place) if place.is_late() == late => place.free,
            _ => Capacity::NOTHING,
        };
        self.free[0].set(number, free(false));
        self.free[1].set(number, free(true));
        self.whole.set(number, place.map_or(Capacity::NOTHING, |place| place.whole));
        self.labels.set(number, place.map_or(0, |place| place.labels.0));
        match place.filter(|place| place.is_late()) {
            Some(place) => drop(self.late.insert(number, place.free)),
            None => drop(self.late.remove(&number)),
        }
        let stay = place.map_or(Stay::Gone, |place| match place.leaves_at {
            Some(at) => Stay::Until(at),
            None => Stay::Always,
        });
        self.leaving -= usize::from(self.is_leaving(number));
        self.leaving += usize::from(matches!(stay, Stay::Until(_)));
        self.stay.set(number, stay);
    }

    /// Sets what is free at a place, of which nothing else changed.
    pub fn set_free(&mut self, number: usize, free: Capacity) {
        match self.late.get_mut(&number) {
            Some(late) => {
                *late = free;
                self.free[1].set(number, free);
            }
            None => self.free[0].set(number, free),
        }
    }

    /// The same with nothing leased but what is `held`, by place.
    pub fn emptied(&self, held: &[(usize, Capacity)]) -> Places {
        let mut emptied = self.clone();
        let there = self.whole.iter().filter(|(_, whole)| *whole != Capacity::NOTHING);
        there.for_each(|(number, whole)| emptied.set_free(number, whole));
        for &(number, held) in held {
            emptied.set_free(number, less(self.whole.get(number), held));
        }
        emptied
    }

    /// These places alone, likewise.
    pub fn emptied_of(&self, numbers: &[usize], held: &[(usize, Capacity)]) -> Places {
        let mut these = Places::default();
        for &number in numbers {
            let whole = self.whole.get(number);
            let held = held.iter().find(|(place, _)| *place == number);
            let free = held.map_or(whole, |(_, held)| less(whole, *held));
            let leaves_at = match self.stay.get(number) {
                Stay::Gone => continue,
                Stay::Until(at) => Some(at),
                Stay::Always => None,
            };
            let (labels, tried_last) = (LabelSet(self.labels.get(number)), self.is_late(number));
            let place = Place { free, whole, labels, tried_last, leaves_at };
            these.set(number, Some(&place));
        }
        these
    }

    /// What is free at a place.
    pub fn free(&self, number: usize) -> Capacity {
        self.free[0].get(number).join(self.free[1].get(number)) // it is in one of them
    }

    /// Most cores and most memory that are free at one place, perhaps at two different ones.
    pub fn most_free(&self) -> Capacity {
        self.free[0].joined().join(self.free[1].joined())
    }

    /// Likewise, if nothing were leased.
    pub fn largest(&self) -> Capacity {
        self.whole.joined()
    }

    /// Whether others are tried before a place.
    pub fn is_late(&self, number: usize) -> bool {
        self.late.contains_key(&number)
    }

    /// The number of places that leave.
    pub fn leaving(&self) -> usize {
        self.leaving
    }

    /// Whether a place is leaving.
    pub fn is_leaving(&self, number: usize) -> bool {
        matches!(self.stay.get(number), Stay::Until(_))
    }

    /// Whether what ends at `until` has ended at a place before it leaves; `None`: it never ends.
    pub fn stays(&self, number: usize, until: Option<Instant>) -> bool {
        match self.stay.get(number) {
            Stay::Gone => true, // and has room for nothing
            stay => stay.lasts(until),
        }
    }

    /// Likewise whether it may at a place below an entry of a tree.
    pub(super) fn some_stay(&self, level: usize, at: usize, until: Option<Instant>) -> bool {
        self.stay.entry(level, at).lasts(until)
    }

    /// The first place where `wanted` fits until then.
    pub(super) fn first(&self, wanted: Capacity, until: Option<Instant>) -> Option<usize> {
        let late = |level: usize, at: usize, most: Capacity| {
            most.holds(wanted) && self.some_stay(level, at, until)
        };
        self.free[0].first(wanted).or_else(|| self.free[1].first_from(0, &late))
    }

    /// Whether `wanted` would fit at one place, or in up to `parts` parts, if nothing were leased.
    pub fn fits_when_empty(&self, wanted: Capacity, parts: usize) -> bool {
        self.whole.first(wanted).is_some()
            || (parts > 1 && self.whole.split(wanted, parts).is_some())
    }

    /// The parts that `wanted` goes in, up to `parts`, none of which need have room for all of it: the largest
    /// first. Places that are tried last get one only if it goes nowhere else.
    pub fn split(
        &self,
        wanted: Capacity,
        parts: usize,
        until: Option<Instant>,
    ) -> Option<Vec<(usize, Capacity)>> {
        let first = self.split_first(wanted, parts);
        if first.is_some() || self.free[1].joined().cores == 0 {
            return first;
        }
        // It is rarely needed, so it is put together then, at the cost of a copy.
        let mut all = self.free[0].clone();
        let late = self.late.iter().filter(|(number, _)| self.stays(**number, until));
        late.for_each(|(number, free)| all.set(*number, *free));
        all.split(wanted, parts)
    }

    /// Likewise, only on places that are not tried last.
    pub fn split_first(&self, wanted: Capacity, parts: usize) -> Option<Vec<(usize, Capacity)>> {
        self.free[0].split(wanted, parts)
    }
}

/// What is left of `whole` without what is `held`.
fn less(whole: Capacity, held: Capacity) -> Capacity {
    Capacity {
        cores: whole.cores.saturating_sub(held.cores),
        memory: whole.memory.saturating_sub(held.memory),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ONE: Capacity = Capacity { cores: 1, memory: 1 };
    const TWO: Capacity = Capacity { cores: 2, memory: 2 };

    #[test]
    fn a_place_has_what_it_was_set_to_wherever_it_is_kept() {
        let mut places = Places::default();
        let place = Place::new(ONE, TWO);
        for (number, tried_last) in [(3, false), (100, true), (3, true), (100, false)] {
            places.set(number, Some(&Place { tried_last, ..place }));
            assert_eq!((places.free(number), places.most_free()), (ONE, ONE));
            places.set_free(number, TWO);
            assert_eq!((places.free(number), places.most_free()), (TWO, TWO));
            places.set(number, None);
            assert_eq!(places.most_free(), Capacity::NOTHING);
            assert_eq!(places.largest(), Capacity::NOTHING);
        }
        assert!(places.late.is_empty() && places.leaving() == 0);
    }

    #[test]
    fn places_that_leave_too_early_are_not_looked_at_one_by_one() {
        let (now, mut places) = (Instant::now(), Places::default());
        let after = |seconds| now + Duration::from_secs(seconds);
        for number in 0..5_000 {
            let leaves_at = Some(after(if number == 4_999 { 10 } else { 5 }));
            places.set(number, Some(&Place { leaves_at, ..Place::new(TWO, TWO) }));
        }
        assert_eq!(places.leaving(), 5_000);
        let looked_at = std::cell::Cell::new(0);
        let found = places.free[1].first_from(0, &|level, at, most: Capacity| {
            looked_at.set(looked_at.get() + 1);
            most.holds(TWO) && places.some_stay(level, at, Some(after(6)))
        });
        assert_eq!(found, Some(4_999));
        assert!(looked_at.get() < 100, "{} entries", looked_at.get());
        assert_eq!(places.first(TWO, Some(after(6))), Some(4_999));
        assert_eq!((places.first(TWO, Some(after(11))), places.first(TWO, None)), (None, None));
        assert_eq!(places.first(TWO, Some(after(5))), Some(0));
    }

    #[test]
    fn a_split_uses_a_place_that_leaves_only_for_what_ends_before() {
        let (now, mut places) = (Instant::now(), Places::default());
        let leaves_at = Some(now + Duration::from_secs(5));
        places.set(0, Some(&Place { leaves_at, ..Place::new(TWO, TWO) }));
        places.set(1, Some(&Place::new(ONE, TWO)));
        let wanted = Capacity { cores: 3, memory: 3 };
        let split = |until| places.split(wanted, 2, until).map(|parts| parts.len());
        assert_eq!((split(None), split(Some(now + Duration::from_secs(6)))), (None, None));
        assert_eq!(split(leaves_at), Some(2));
    }
}
