//! Where the workers of a request go: all of them, or none.
//!
//! ```text
//!   wish.nodes ───────────────────────────────▶ as named
//!   near, nodes that it runs on, then others ─▶ bin_pack, compact, first_fit: fill   A A A A B B
//!   in the order of the policy                  spread: deal                         A B C A B C
//! ```
//! What cannot be met in the order of the policy is tried with the largest nodes first: with as many
//! workers on each, fewer nodes are needed, which is what `at_least` asks for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use rfaas_protocol::placement::Policy;

use super::order::{Search, takes};
use super::places::Places;
use super::wish::{Refused, Wish};
use crate::pool::Capacity;

/// Workers that are to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Gang<'a> {
    /// How many.
    pub workers: u32,
    /// What each needs.
    pub each: Capacity,
    /// When they end at the latest; `None`: never.
    pub until: Option<Instant>,
    /// What they wish.
    pub wish: &'a Wish,
    /// What those that they join hold, by node: in the order of nodes, each once.
    pub beside: &'a [(usize, Capacity)],
}

impl Gang<'_> {
    /// Fewest workers on a node where there are none yet.
    fn fewest(&self) -> u32 {
        self.wish.at_least.div_ceil(self.each.cores.max(1)).max(1)
    }

    /// Cores of those that they join on a node.
    fn own(&self, node: usize) -> u32 {
        let at = self.beside.binary_search_by_key(&node, |(node, _)| *node);
        at.map_or(0, |at| self.beside[at].1.cores)
    }
}

/// A node that may be taken.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    node: usize,
    /// Workers that it can take.
    room: u32,
    /// Fewest that it must take if it is taken.
    needs: u32,
}

/// Places a gang by a policy. Returns the node of each worker.
pub fn place(places: &Places, policy: Policy, gang: Gang<'_>) -> Result<Vec<usize>, Refused> {
    try_place(places, policy, gang).ok_or_else(|| refusal(places, policy, gang))
}

fn try_place(places: &Places, policy: Policy, gang: Gang<'_>) -> Option<Vec<usize>> {
    if gang.workers == 0 {
        return Some(Vec::new());
    }
    if policy == Policy::FirstFit
        && gang.workers == 1
        && gang.beside.is_empty()
        && *gang.wish == Wish::default()
    {
        return places.first(gang.each, gang.until).map(|node| vec![node]); // what is asked for most
    }
    let placer = Placer { places, gang };
    if !gang.wish.nodes.is_empty() {
        return placer.named();
    }
    match policy {
        Policy::FirstFit => placer.fill(true, |search| search.by_number()),
        Policy::BinPack | Policy::Compact => placer.fill(true, |search| search.largest(false)),
        Policy::Spread => placer.deal(),
    }
    .or_else(|| {
        let may_help = gang.fewest() > 1;
        may_help.then(|| placer.fill(false, |search| search.largest(true))).flatten()
    })
    .or_else(|| {
        // It has a place among the largest that it does not deserve.
        let kept = gang.wish.leave_free.and_then(|free| free.on)?;
        if gang.fewest() <= 1 || gang.wish.near == Some(kept) {
            return None;
        }
        let mut wish = gang.wish.clone();
        wish.not_on.push(kept);
        let placer = Placer { places, gang: Gang { wish: &wish, ..gang } };
        placer.fill(false, |search| search.largest(true))
    })
}

/// Says which constraint there would be room without.
fn refusal(places: &Places, policy: Policy, gang: Gang<'_>) -> Refused {
    if *gang.wish == Wish::default() {
        return Refused::NoRoom;
    }
    let fits = |wish: &Wish| try_place(places, policy, Gang { wish, ..gang }).is_some();
    let constraints: Vec<_> = gang.wish.constraints().collect();
    if let Some(&one) = constraints.iter().find(|one| fits(&gang.wish.without(**one))) {
        return Refused::Constraint { constraints: vec![one] };
    }
    match !fits(&Wish::default()) {
        true => Refused::NoRoom,
        false => Refused::Constraint { constraints },
    }
}

/// The number of workers on each node, by node.
pub(super) fn counts(nodes: &[usize]) -> Vec<(usize, u32)> {
    let mut sorted = nodes.to_vec();
    sorted.sort_unstable();
    let runs = sorted.chunk_by(|a, b| a == b);
    runs.map(|run| (run[0], u32::try_from(run.len()).unwrap_or(u32::MAX))).collect()
}

struct Placer<'a> {
    places: &'a Places,
    gang: Gang<'a>,
}

impl<'a> Placer<'a> {
    fn search(&self) -> Search<'a> {
        let Gang { workers, each, until, wish, .. } = self.gang;
        let fewest = if wish.together { workers } else { self.gang.fewest() };
        Search { places: self.places, each, fewest, wish, until }
    }

    /// What a node can take, if anything.
    fn candidate(&self, node: usize) -> Option<Candidate> {
        let Gang { workers, each, wish, .. } = self.gang;
        if !self.search().may_take(node) {
            return None;
        }
        let free = self.places.free(node);
        let cores = free.cores.saturating_sub(wish.leaves_free(node));
        let own = self.gang.own(node);
        let room = match takes(Capacity { cores, ..free }, each).min(workers) {
            _ if wish.apart && own > 0 => 0,
            room if wish.apart => room.min(1),
            room => room,
        };
        let at_least = wish.at_least.saturating_sub(own).div_ceil(each.cores.max(1)).max(1);
        let needs = if wish.together { at_least.max(workers) } else { at_least };
        let joins = !wish.together || self.gang.beside.iter().all(|(other, _)| *other == node);
        (joins && room >= needs).then_some(Candidate { node, room, needs })
    }

    /// Each worker on the node that it names.
    fn named(&self) -> Option<Vec<usize>> {
        let Gang { workers, wish, .. } = self.gang;
        if wish.nodes.len() != workers as usize {
            return None;
        }
        let near = wish.near.is_none_or(|near| wish.nodes.contains(&near));
        let fit = counts(&wish.nodes).into_iter().all(|(node, count)| {
            let candidate = self.candidate(node);
            candidate.is_some_and(|taken| (taken.needs..=taken.room).contains(&count))
        });
        (near && fit).then(|| wish.nodes.clone())
    }

    /// The node to begin at, and nodes of those that they join: where these have most cores first, of these
    /// the largest. `None`: it cannot begin there.
    fn fronts(&self, own_first: bool) -> Option<Vec<Candidate>> {
        let near = self.gang.wish.near;
        let mut fronts = Vec::new();
        if let Some(near) = near {
            fronts.push(self.candidate(near)?);
        }
        if own_first {
            let others = self.gang.beside.iter().filter(|(node, _)| Some(*node) != near);
            let mut own: Vec<_> = others
                .filter_map(|&(node, held)| {
                    let whole = takes(self.places.whole.get(node), self.gang.each);
                    let taken = self.candidate(node)?;
                    Some((Reverse((held.cores, taken.room, whole, node)), taken))
                })
                .collect();
            own.sort_unstable_by_key(|(order, _)| *order);
            fronts.extend(own.into_iter().map(|(_, taken)| taken));
        }
        Some(fronts)
    }

    /// As many on each node as fit, node by node.
    fn fill<'s, I: Iterator<Item = usize>>(
        &'s self,
        own_first: bool,
        order: impl FnOnce(Search<'s>) -> I,
    ) -> Option<Vec<usize>> {
        let workers = self.gang.workers;
        let mut taken = self.fronts(own_first)?;
        let mut except: Vec<_> = taken.iter().map(|taken| taken.node).collect();
        except.sort_unstable();
        let (mut room, mut needs, mut enough) = (0, 0, 0);
        for front in &taken {
            if room < workers {
                room = workers.min(room + front.room); // each is at most that
                needs += front.needs;
                enough += 1;
            }
        }
        taken.truncate(enough);
        if room < workers {
            let others = order(self.search()).filter(|node| except.binary_search(node).is_err());
            for candidate in others.filter_map(|node| self.candidate(node)) {
                room = workers.min(room + candidate.room);
                needs += candidate.needs;
                taken.push(candidate);
                if room == workers {
                    break;
                }
            }
        }
        if room < workers || needs > workers {
            return None;
        }
        let mut placed = Vec::with_capacity(workers as usize);
        let mut left = workers;
        for Candidate { node, room, needs: own } in taken {
            needs -= own; // those after it
            let count = room.min(left - needs);
            left -= count;
            placed.extend(std::iter::repeat_n(node, count as usize));
        }
        Some(placed)
    }

    /// One after the other on each node, on as many nodes as possible.
    fn deal(&self) -> Option<Vec<usize>> {
        let Gang { workers, each, wish, beside, .. } = self.gang;
        if wish.together {
            return self.fill(true, |search| search.largest(false));
        }
        let most = (workers / self.gang.fewest()).max(1) as usize;
        let mut taken = self.fronts(false)?;
        let is_own = |node| beside.binary_search_by_key(&node, |(node, _)| *node).is_ok();
        let new = |node: &usize| !is_own(*node) && wish.near != Some(*node);
        let others = self.search().largest(false).filter(new);
        let mut room: u32 = taken.iter().map(|taken| taken.room).sum();
        for candidate in others.filter_map(|node| self.candidate(node)) {
            let needless = room >= workers && self.places.is_late(candidate.node);
            if taken.len() >= most || needless {
                break;
            }
            room = room.saturating_add(candidate.room);
            taken.push(candidate);
        }
        if self.gang.fewest() <= 1 {
            let own = beside.iter().filter(|(node, _)| wish.near != Some(*node));
            taken.extend(own.filter_map(|(node, _)| self.candidate(*node)));
        }
        // The node with the fewest cores of them is next; of these the one that was found first. The one to begin
        // at has one in any case.
        let count = |at: usize| match self.gang.fewest() > 1 || (at == 0 && wish.near.is_some()) {
            true => 0,
            false => self.gang.own(taken[at].node),
        };
        let mut next: BinaryHeap<_> = (0..taken.len()).map(|at| Reverse((count(at), at))).collect();
        let mut placed = Vec::with_capacity(workers as usize);
        while placed.len() < workers as usize {
            let Reverse((count, at)) = next.pop()?;
            placed.push(taken[at].node);
            taken[at].room -= 1;
            if taken[at].room > 0 {
                next.push(Reverse((count + each.cores, at)));
            }
        }
        Some(placed)
    }
}
