//! Placement under random changes of nodes, gangs that come, grow and go, and random wishes, beside what
//! looking at every node finds: nothing is over-committed, a gang gets all or nothing, nodes that leave
//! get only what ends before, a wish holds or a refusal names the constraint.
//!
//! `PROPTEST_CASES=100000 cargo test -p resource_manager --test placement_model` is the long run.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use resource_manager::placement::{
    Advice, Constraint, Gang, LabelSet, LeaveFree, Place, Places, Policy, Refused, Wish, better,
    place,
};
use resource_manager::pool::Capacity;

const NODES: usize = 20;

#[derive(Clone, Debug)]
enum Op {
    Node {
        number: usize,
        cores: u32,
        memory: u32,
        labels: u64,
        tried_last: bool,
        leaves_in: Option<u64>,
    },
    Gone {
        number: usize,
    },
    Gang {
        policy: Policy,
        workers: u32,
        each: Capacity,
        ends_in: Option<u64>,
        wish: Wish,
    },
    Grow {
        gang: usize,
        policy: Policy,
        workers: u32,
        wish: Wish,
        /// So many cores less than its workers have does it hold on each node, one at least.
        odd: u32,
    },
    Better {
        gang: usize,
        policy: Policy,
    },
    End {
        gang: usize,
    },
}

fn wish() -> impl Strategy<Value = Wish> {
    let node = || 0..NODES;
    let leave_free = (1..4_u32, proptest::option::of(node()));
    let leave_free = leave_free.prop_map(|(cores, on)| LeaveFree { cores, on });
    let often = |weight| prop::bool::weighted(weight);
    let few = proptest::collection::vec(node(), 0..4);
    let plain = (often(0.1), often(0.1), proptest::option::weighted(0.1, node()), 0..10_u32);
    let rest = (
        proptest::option::weighted(0.1, leave_free),
        0..4_u64,
        few,
        proptest::option::weighted(0.05, proptest::collection::vec(node(), 1..5)),
    );
    let wish = (plain, rest).prop_map(
        |((together, apart, near, at_least), (leave_free, has, not_on, nodes))| Wish {
            together,
            apart,
            near,
            leave_free,
            at_least,
            has: LabelSet(has),
            nodes: nodes.unwrap_or_default(),
            not_on,
        },
    );
    prop_oneof![2 => Just(Wish::default()), 3 => wish]
}

fn op() -> impl Strategy<Value = Op> {
    let policy = || prop::sample::select(Policy::ALL.to_vec());
    let each = || (1..4_u32, 0..4_u32).prop_map(|(cores, memory)| Capacity { cores, memory });
    let seconds = || proptest::option::of(0..10_u64);
    prop_oneof![
        4 => (0..NODES, 1..12_u32, 1..12_u32, 0..4_u64, prop::bool::weighted(0.1), proptest::option::weighted(0.2, 0..10_u64))
            .prop_map(|(number, cores, memory, labels, tried_last, leaves_in)| Op::Node { number, cores, memory, labels, tried_last, leaves_in }),
        1 => (0..NODES).prop_map(|number| Op::Gone { number }),
        6 => (policy(), 1..9_u32, each(), seconds(), wish())
            .prop_map(|(policy, workers, each, ends_in, wish)| Op::Gang { policy, workers, each, ends_in, wish }),
        2 => (0..8_usize, policy(), 1..5_u32, wish(), 0..3_u32).prop_map(|(gang, policy, workers, wish, odd)| Op::Grow { gang, policy, workers, wish, odd }),
        2 => (0..8_usize, policy()).prop_map(|(gang, policy)| Op::Better { gang, policy }),
        3 => (0..8_usize).prop_map(|gang| Op::End { gang }),
    ]
}

struct Running {
    nodes: Vec<usize>,
    each: Capacity,
    until: Option<Instant>,
}

struct World {
    now: Instant,
    places: Places,
    nodes: BTreeMap<usize, Place>,
    gangs: Vec<Running>,
}

/// What running workers hold by node: `odd` cores less than all have, one at least.
fn held(nodes: &[usize], each: Capacity, odd: u32) -> Vec<(usize, Capacity)> {
    let held = |count: u32| Capacity {
        cores: (count * each.cores).saturating_sub(odd).max(1),
        memory: count * each.memory,
    };
    counts(nodes).into_iter().map(|(node, count)| (node, held(count))).collect()
}

fn counts(nodes: &[usize]) -> BTreeMap<usize, u32> {
    let mut counts = BTreeMap::new();
    nodes.iter().for_each(|node| *counts.entry(*node).or_default() += 1);
    counts
}

impl World {
    fn used(&self, number: usize) -> Capacity {
        let mut used = Capacity::NOTHING;
        for gang in &self.gangs {
            let count = counts(&gang.nodes).get(&number).copied().unwrap_or(0);
            used.cores += count * gang.each.cores;
            used.memory += count * gang.each.memory;
        }
        used
    }

    /// Brings the index up to date with what runs; `whole` too if a node is new or changed.
    fn refresh(&mut self, number: usize, changed: bool) {
        let used = self.used(number);
        let Some(place) = self.nodes.get_mut(&number) else { return self.places.set(number, None) };
        assert!(place.whole.holds(used), "node {number} is over-committed: {used:?} of {place:?}");
        place.free = Capacity {
            cores: place.whole.cores - used.cores,
            memory: place.whole.memory - used.memory,
        };
        match changed {
            true => self.places.set(number, Some(place)),
            false => self.places.set_free(number, place.free),
        }
    }

    fn until(&self, seconds: Option<u64>) -> Option<Instant> {
        seconds.map(|seconds| self.now + Duration::from_secs(seconds))
    }

    /// Workers that fit on a node, by looking at it.
    fn room(&self, number: usize, gang: &Gang<'_>) -> u32 {
        let Some(place) = self.nodes.get(&number) else { return 0 };
        let stays = place.leaves_at.is_none_or(|at| gang.until.is_some_and(|until| until <= at));
        let kept = match gang.wish.leave_free {
            Some(LeaveFree { cores, on }) if on.is_none_or(|on| on == number) => cores,
            _ => 0,
        };
        if !stays || !place.labels.has(gang.wish.has) || gang.wish.not_on.contains(&number) {
            return 0;
        }
        let by_memory = place.free.memory.checked_div(gang.each.memory).unwrap_or(u32::MAX);
        by_memory.min(place.free.cores.saturating_sub(kept) / gang.each.cores)
    }

    /// Whether there is a placement, for gangs that are new and begin anywhere.
    fn feasible(&self, gang: &Gang<'_>) -> bool {
        let Wish { together, apart, at_least, .. } = *gang.wish;
        let most = if apart { 1 } else { gang.workers };
        let at_least = at_least.div_ceil(gang.each.cores).max(1);
        let fewest = if together { gang.workers.max(at_least) } else { at_least };
        let mut rooms: Vec<_> =
            self.nodes.keys().map(|number| self.room(*number, gang).min(most)).collect();
        rooms.retain(|room| *room >= fewest);
        rooms.sort_unstable_by_key(|room| std::cmp::Reverse(*room));
        let mut sum = 0;
        rooms.iter().zip(1..).any(|(room, nodes)| {
            sum += room;
            sum >= gang.workers && nodes * fewest <= gang.workers
        })
    }

    fn check(&self, gang: &Gang<'_>, policy: Policy, placed: &Result<Vec<usize>, Refused>) {
        let wish = gang.wish;
        match placed {
            Ok(nodes) => {
                assert_eq!(nodes.len(), gang.workers as usize, "all or none");
                let counts = counts(nodes);
                let beside: BTreeMap<_, _> = gang.beside.iter().copied().collect();
                let own = |node| beside.get(node).map_or(0, |held| held.cores);
                for (node, count) in &counts {
                    assert!(self.room(*node, gang) >= *count, "node {node}: {wish:?}");
                    let cores = count * gang.each.cores + own(node);
                    assert!(cores >= wish.at_least, "{wish:?} {nodes:?}");
                    assert!(!wish.apart || (*count == 1 && own(node) == 0), "{nodes:?}");
                }
                let all: Vec<_> = counts.keys().chain(beside.keys()).collect();
                assert!(!wish.together || all.iter().all(|node| *node == all[0]), "{nodes:?}");
                assert!(wish.near.is_none_or(|near| counts.contains_key(&near)), "{nodes:?}");
                assert!(wish.nodes.is_empty() || wish.nodes == *nodes);
            }
            Err(Refused::NoRoom) => {
                let none = Wish::default();
                assert!(
                    gang.wish.nodes.is_empty() || !self.feasible(&Gang { wish: &none, ..*gang })
                );
            }
            Err(Refused::Constraint { constraints }) => {
                assert!(!constraints.is_empty());
                for constraint in constraints {
                    assert!(
                        wish.constraints().any(|had| had == *constraint),
                        "{constraint:?} {wish:?}"
                    );
                }
                if let [one] = constraints[..] {
                    assert!(
                        place(&self.places, policy, Gang { wish: &dropped(wish, one), ..*gang })
                            .is_ok()
                    );
                }
            }
        }
        let simple = wish.near.is_none() && wish.nodes.is_empty() && gang.beside.is_empty();
        if simple {
            assert_eq!(placed.is_ok(), self.feasible(gang), "{policy} {gang:?} {placed:?}");
        }
        if simple
            && *wish == Wish::default()
            && let Ok(nodes) = placed
        {
            assert_eq!(*nodes, self.by_sorting(policy, gang), "{policy}");
        }
    }

    /// What a policy takes, by sorting all nodes.
    fn by_sorting(&self, policy: Policy, gang: &Gang<'_>) -> Vec<usize> {
        let whole = |place: &Place| {
            let by_memory = place.whole.memory.checked_div(gang.each.memory).unwrap_or(u32::MAX);
            by_memory.min(place.whole.cores / gang.each.cores)
        };
        let late = |place: &Place| place.tried_last || place.leaves_at.is_some();
        let mut nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(number, place)| (*number, *place, self.room(*number, gang)))
            .collect();
        nodes.retain(|(.., room)| *room > 0);
        match policy {
            Policy::FirstFit => nodes.sort_by_key(|(number, place, _)| (late(place), *number)),
            _ => nodes.sort_by_key(|(number, place, room)| {
                (late(place), std::cmp::Reverse((*room, whole(place), *number)))
            }),
        }
        let mut placed = Vec::new();
        let wanted = gang.workers as usize;
        if policy == Policy::Spread {
            let mut room = 0;
            let first = nodes.iter().take(wanted).take_while(|(_, place, takes)| {
                let needed = !late(place) || room < gang.workers;
                room += (*takes).min(gang.workers);
                needed
            });
            let taken = first.count();
            for round in 0.. {
                placed.extend(
                    nodes[..taken]
                        .iter()
                        .filter(|(.., room)| *room > round)
                        .map(|(number, ..)| *number),
                );
                if placed.len() >= wanted {
                    break;
                }
            }
        } else {
            placed.extend(
                nodes
                    .iter()
                    .flat_map(|(number, _, room)| std::iter::repeat_n(*number, *room as usize)),
            );
        }
        placed.truncate(wanted);
        placed
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Node { number, cores, memory, labels, tried_last, leaves_in } => {
                let whole = Capacity { cores: *cores, memory: *memory };
                if whole.holds(self.used(*number)) {
                    let leaves_at = self.until(*leaves_in);
                    let place = Place {
                        labels: LabelSet(*labels),
                        tried_last: *tried_last,
                        leaves_at,
                        ..Place::new(whole, whole)
                    };
                    self.nodes.insert(*number, place);
                    self.refresh(*number, true);
                }
            }
            Op::Gone { number } => {
                self.gangs.retain(|gang| !gang.nodes.contains(number));
                self.nodes.remove(number);
                (0..NODES).for_each(|number| self.refresh(number, true));
            }
            Op::Gang { policy, workers, each, ends_in, wish } => {
                let until = self.until(*ends_in);
                let gang = Gang { workers: *workers, each: *each, until, wish, beside: &[] };
                let placed = place(&self.places, *policy, gang);
                self.check(&gang, *policy, &placed);
                if let Ok(nodes) = placed {
                    self.gangs.push(Running { nodes, each: *each, until });
                }
            }
            Op::Grow { gang, policy, workers, wish, odd } => {
                let Some(Running { nodes, each, until }) = self.gangs.get(*gang) else { return };
                let beside = held(nodes, *each, *odd);
                let (workers, each, until) = (*workers, *each, *until);
                let asked = Gang { workers, each, until, wish, beside: &beside };
                let placed = place(&self.places, *policy, asked);
                self.check(&asked, *policy, &placed);
                self.gangs[*gang].nodes.extend(placed.unwrap_or_default());
            }
            Op::Better { gang, policy } => {
                let Some(Running { nodes, each, until }) = self.gangs.get(*gang) else { return };
                let (workers, wish) = (u32::try_from(nodes.len()).unwrap(), Wish::default());
                let asked = Gang { workers, each: *each, until: *until, wish: &wish, beside: &[] };
                if let Advice::Move(to) = better(&self.places, *policy, asked, nodes) {
                    assert_eq!(to.len(), nodes.len());
                    assert!(to.iter().all(|node| self.places.stays(*node, *until)));
                    assert_ne!(counts(&to), counts(nodes), "a move that changes nothing");
                    self.gangs[*gang].nodes = to;
                }
            }
            Op::End { gang } if *gang < self.gangs.len() => drop(self.gangs.remove(*gang)),
            Op::End { .. } => {}
        }
        (0..NODES).for_each(|number| self.refresh(number, false));
    }
}

fn dropped(wish: &Wish, constraint: Constraint) -> Wish {
    let none = Wish::default();
    match constraint {
        Constraint::Nodes => Wish { nodes: none.nodes, ..wish.clone() },
        Constraint::Near => Wish { near: None, ..wish.clone() },
        Constraint::Together => Wish { together: false, ..wish.clone() },
        Constraint::Apart => Wish { apart: false, ..wish.clone() },
        Constraint::AtLeast => Wish { at_least: 0, ..wish.clone() },
        Constraint::LeaveFree => Wish { leave_free: None, ..wish.clone() },
        Constraint::Has => Wish { has: none.has, ..wish.clone() },
        Constraint::NotOn => Wish { not_on: none.not_on, ..wish.clone() },
        _ => wish.clone(),
    }
}

/// Cases of the gate, unless the environment says how many.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: 1_000, ..config },
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn gangs_fit_get_all_or_nothing_and_wishes_hold_or_are_named(
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        let (now, places) = (Instant::now(), Places::default());
        let mut world = World { now, places, nodes: BTreeMap::new(), gangs: Vec::new() };
        for number in 0..NODES / 2 {
            world.apply(&Op::Node { number, cores: 4, memory: 8, labels: 1, tried_last: false, leaves_in: None });
        }
        ops.iter().for_each(|op| world.apply(op));
    }
}
