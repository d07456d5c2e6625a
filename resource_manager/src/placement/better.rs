//! Whether workers that run would be better placed elsewhere. It is advice: nothing is moved here.
//!
//! What they hold counts as free, and they are placed anew. That is better
//! * for `bin_pack` and `first_fit`, if they are on fewer nodes or, on as many, fewer pairs of them are on
//!   different nodes;
//! * for `compact`, if more nodes of the cluster are empty then;
//! * for `spread`, never.
//!
//! As many as possible stay where they are. Under every policy, who is on a node that leaves has to go
//! ([`away`]), and then only these go.

use std::cmp::Reverse;

use rfaas_protocol::placement::Policy;

use super::gang::{Gang, counts};
use super::order::{Search, takes};
use super::places::Places;
use crate::pool::Capacity;

/// Where running workers should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Where they are.
    Stay,
    /// On these nodes, one a worker.
    Move(Vec<usize>),
    /// Not where they are, and there is no room elsewhere.
    NoRoom,
}

/// A node with what its workers hold counted as free.
#[derive(Clone, Copy, Debug)]
struct Freed {
    node: usize,
    room: u32,
    own: u32,
    /// Cores that others use.
    used: u32,
    takes_when_empty: u32,
}

/// Says where workers of a gang that are `running`, the node of each, would be better placed by a policy.
pub fn better(places: &Places, policy: Policy, gang: Gang<'_>, running: &[usize]) -> Advice {
    if running.iter().any(|node| places.is_leaving(*node)) {
        return away(places, gang, running);
    }
    let mover = Mover::new(places, gang, running);
    let placed = match policy {
        Policy::Spread => return Advice::Stay,
        Policy::FirstFit | Policy::BinPack => mover.packed(),
        Policy::Compact => mover.compacted(),
    };
    let Some(placed) = placed else { return Advice::Stay };
    let is_better = match policy {
        Policy::Compact => mover.empties_more(&placed),
        _ => scatter(&placed) < scatter(running),
    };
    if is_better { Advice::Move(fewest_moves(running, &placed)) } else { Advice::Stay }
}

/// Says where workers of a gang that are `running`, likewise, go if one of them is on a node that leaves before it
/// ends.
pub fn away(places: &Places, gang: Gang<'_>, running: &[usize]) -> Advice {
    if running.iter().all(|node| places.stays(*node, gang.until)) {
        return Advice::Stay;
    }
    let mover = Mover::new(places, gang, running);
    // Most of them first, so that most stay.
    let order = |node: &Freed| (node.own, node.room, node.takes_when_empty, node.node);
    match mover.fill(order) {
        Some(placed) => Advice::Move(fewest_moves(running, &placed)),
        None => Advice::NoRoom,
    }
}

/// How scattered workers are: over how many nodes, and how many pairs are on different ones.
fn scatter(nodes: &[usize]) -> (usize, u64) {
    let counts = counts(nodes);
    let all = nodes.len() as u64;
    let apart = counts.iter().map(|(_, count)| u64::from(*count) * (all - u64::from(*count)));
    (counts.len(), apart.sum::<u64>() / 2)
}

/// Places with as many workers on each node as `placed`, in which as many as possible are where they run.
fn fewest_moves(running: &[usize], placed: &[usize]) -> Vec<usize> {
    let mut left = counts(placed);
    let mut take = |node: usize| {
        let at = left.binary_search_by_key(&node, |(node, _)| *node).ok()?;
        left[at].1 = left[at].1.checked_sub(1)?;
        Some(node)
    };
    let stays: Vec<_> = running.iter().map(|node| take(*node)).collect();
    let mut others =
        left.iter().flat_map(|&(node, count)| std::iter::repeat_n(node, count as usize));
    let place = |stays: Option<usize>| stays.or_else(|| others.next());
    stays.into_iter().map(place).map(|node| node.expect("as many as run were placed")).collect()
}

struct Mover<'a> {
    search: Search<'a>,
    workers: u32,
    /// Nodes that it runs on.
    own: Vec<Freed>,
}

impl<'a> Mover<'a> {
    fn new(places: &'a Places, gang: Gang<'a>, running: &[usize]) -> Self {
        let Gang { each, until, wish, .. } = gang;
        let search = Search { places, each, fewest: 1, wish, until };
        let freed = |(node, count)| freed(places, each, node, count);
        let own = counts(running).into_iter().map(freed).collect();
        Mover { search, workers: u32::try_from(running.len()).unwrap_or(u32::MAX), own }
    }

    fn is_own(&self, node: usize) -> bool {
        self.own.binary_search_by_key(&node, |own| own.node).is_ok()
    }

    fn packed(&self) -> Option<Vec<usize>> {
        self.fill(|node| (node.room, node.own, node.takes_when_empty, node.node))
    }

    /// The largest nodes, and those that it runs on, in an order in which nodes that it does not run on are as
    /// [`Search::largest`] has them.
    fn fill<K: Ord>(&self, order: impl Fn(&Freed) -> K) -> Option<Vec<usize>> {
        let Search { places, each, .. } = self.search;
        let others = self.search.largest(false).filter(|node| !self.is_own(*node));
        let others = others.map(|node| freed(places, each, node, 0)).take(self.workers as usize);
        let own = self.own.iter().filter(|own| self.search.may_take(own.node)).copied();
        let mut nodes: Vec<_> = own.chain(others).collect();
        nodes.sort_by_key(|node| Reverse(order(node)));
        self.take(&nodes)
    }

    /// The fullest nodes first. It looks at all, since no tree is of what is used.
    fn compacted(&self) -> Option<Vec<usize>> {
        let Search { places, each, .. } = self.search;
        let others =
            places.whole.iter().filter(|(node, whole)| whole.cores > 0 && !self.is_own(*node));
        let others = others.map(|(node, _)| freed(places, each, node, 0));
        let all = self.own.iter().copied().chain(others);
        let mut nodes: Vec<_> =
            all.filter(|node| node.room > 0 && self.search.may_take(node.node)).collect();
        let order =
            |node: &Freed| Reverse((node.used, node.room, node.takes_when_empty, node.node));
        let needed = self.workers as usize;
        if needed < nodes.len() {
            nodes.select_nth_unstable_by_key(needed, order);
            nodes.truncate(needed);
        }
        nodes.sort_unstable_by_key(order);
        self.take(&nodes)
    }

    fn take(&self, nodes: &[Freed]) -> Option<Vec<usize>> {
        let mut left = self.workers;
        let mut placed = Vec::with_capacity(left as usize);
        for Freed { node, room, .. } in nodes {
            let count = left.min(*room);
            left -= count;
            placed.extend(std::iter::repeat_n(*node, count as usize));
        }
        (left == 0).then_some(placed)
    }

    /// Whether more nodes are empty with them placed so than as they are.
    fn empties_more(&self, placed: &[usize]) -> bool {
        let placed = counts(placed);
        let stays = |node: usize| placed.binary_search_by_key(&node, |(node, _)| *node).is_ok();
        let emptied = self.own.iter().filter(|own| own.used == 0 && !stays(own.node)).count();
        let Search { places, each, .. } = self.search;
        let others = placed.iter().filter(|(node, _)| !self.is_own(*node));
        emptied > others.filter(|(node, _)| freed(places, each, *node, 0).used == 0).count()
    }
}

/// A node without `own` workers that it has now.
fn freed(places: &Places, each: Capacity, node: usize, own: u32) -> Freed {
    let (free, whole) = (places.free(node), places.whole.get(node));
    let free = Capacity {
        cores: free.cores.saturating_add(each.cores.saturating_mul(own)).min(whole.cores),
        memory: free.memory.saturating_add(each.memory.saturating_mul(own)).min(whole.memory),
    };
    Freed {
        node,
        room: takes(free, each),
        own,
        used: whole.cores - free.cores,
        takes_when_empty: takes(whole, each),
    }
}
