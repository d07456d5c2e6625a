//! A list of peers that wait, with a bound: it keeps one peer from locking out the others. A
//! connection that soon says what it wants is served, also next to a peer that fills all places
//! again and again, and also if it is of the same user.
//!
//! No call walks through all that wait, however many there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use crate::types::Peer;

/// Waiting keys, in the order in which they came, each with the peer that it counts for. There is a
/// bound for each peer and one for all, and it keeps one peer from locking out the others.
///
/// A newcomer always finds room. If its own peer has its share, or has most of all, the oldest key
/// of its own peer leaves; otherwise the oldest of the peer that has most.
///
/// The listener of the embedded device uses it for connectors that have sent no request yet. It is
/// public for the two managers of rFaaS, which bound their connections with it. What a key stands
/// for, and what becomes of it, is the user's.
#[derive(Debug)]
pub struct WaitingList<K> {
    of_peer: usize,
    in_all: usize,
    next: u64,
    /// Whose each is, and its number: the order in which they came.
    places: HashMap<K, (Peer, u64)>,
    waiting: BTreeMap<u64, K>,
    /// The same, by peer.
    peers: HashMap<Peer, BTreeMap<u64, K>>,
    /// How many are of each peer.
    counts: BTreeSet<(usize, Peer)>,
}

impl<K: Copy + Eq + Hash> WaitingList<K> {
    /// Makes an empty list with room for `in_all` keys (at least one), and for `of_peer` of one
    /// peer.
    pub fn new(of_peer: usize, in_all: usize) -> Self {
        let in_all = in_all.max(1);
        WaitingList {
            of_peer: of_peer.clamp(1, in_all),
            in_all,
            next: 0,
            places: HashMap::new(),
            waiting: BTreeMap::new(),
            peers: HashMap::new(),
            counts: BTreeSet::new(),
        }
    }

    /// Returns how many wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Returns the key that has waited longest.
    pub fn oldest(&self) -> Option<K> {
        self.waiting.values().next().copied()
    }

    /// Returns the keys of `peer`; the one that has waited longest comes first.
    pub fn oldest_of(&self, peer: Peer) -> impl Iterator<Item = K> + '_ {
        self.peers.get(&peer).into_iter().flat_map(BTreeMap::values).copied()
    }

    /// Returns the peer of which one key has to leave before one of `newcomer` is added; `None` if
    /// there is room. `full`: there is no room for another reason.
    pub fn crowded(&self, newcomer: Peer, full: bool) -> Option<Peer> {
        let its = self.count(newcomer);
        if its >= self.of_peer {
            return Some(newcomer);
        }
        if !full && self.len() < self.in_all {
            return None;
        }
        let &(most, peer) = self.counts.last()?;
        Some(if its == most { newcomer } else { peer })
    }

    /// Adds `who`, of `peer`, as the one that came last. Returns the key that had to leave to make
    /// room, if one had to: whatever it stands for is the caller's to end. Adding a key that waits
    /// already moves it to the end, and none leaves.
    #[must_use]
    pub fn add(&mut self, who: K, peer: Peer) -> Option<K> {
        self.remove(who); // first, so that it leaves only its own place
        let gone = self.crowded(peer, false).and_then(|from| self.oldest_of(from).next());
        gone.inspect(|gone| self.remove(*gone));
        self.places.insert(who, (peer, self.next));
        self.waiting.insert(self.next, who);
        self.peers.entry(peer).or_default().insert(self.next, who);
        self.next += 1;
        let count = self.count(peer);
        self.counts.remove(&(count - 1, peer));
        self.counts.insert((count, peer));
        gone
    }

    /// Makes `who`, if it waits, the one that came last.
    pub fn refresh(&mut self, who: K) {
        let Some((peer, number)) = self.places.get_mut(&who) else { return };
        let (of_peer, before) = (self.peers.entry(*peer).or_default(), *number);
        *number = self.next;
        for waiting in [&mut self.waiting, of_peer] {
            waiting.remove(&before);
            waiting.insert(self.next, who);
        }
        self.next += 1;
    }

    /// Removes `who`; without effect if it does not wait.
    pub fn remove(&mut self, who: K) {
        let Some((peer, number)) = self.places.remove(&who) else { return };
        self.waiting.remove(&number);
        let count = self.count(peer);
        self.counts.remove(&(count, peer));
        if count > 1 {
            self.counts.insert((count - 1, peer));
            self.peers.entry(peer).or_default().remove(&number);
        } else {
            self.peers.remove(&peer);
        }
    }

    fn count(&self, peer: Peer) -> usize {
        self.peers.get(&peer).map_or(0, BTreeMap::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Peer = Peer::User(1);
    const B: Peer = Peer::User(2);
    const C: Peer = Peer::User(3);

    #[test]
    fn a_peer_that_has_its_share_makes_room_for_itself() {
        let mut list = WaitingList::new(2, 10);
        assert_eq!([list.add(1, A), list.add(2, B), list.add(3, A)], [None; 3]);
        assert_eq!(list.add(4, A), Some(1));
        assert_eq!(list.add(5, A), Some(3));
        assert_eq!((list.len(), list.oldest()), (3, Some(2)));
    }

    #[test]
    fn when_it_is_full_the_oldest_of_the_peer_that_has_most_goes() {
        let mut list = WaitingList::new(3, 4);
        assert_eq!([list.add(1, B), list.add(2, A), list.add(3, A), list.add(4, A)], [None; 4]);
        assert_eq!(list.add(5, C), Some(2));
        assert_eq!(list.len(), 4);
    }

    #[test]
    fn who_does_not_wait_any_more_counts_no_more() {
        let mut list = WaitingList::new(1, 4);
        assert_eq!(list.add(1, A), None);
        list.remove(1);
        list.remove(1);
        assert!(list.is_empty() && list.peers.is_empty() && list.counts.is_empty());
        assert!(list.waiting.is_empty() && list.oldest_of(A).next().is_none());
        assert_eq!(list.add(2, A), None);
    }

    #[test]
    fn who_is_refreshed_goes_last() {
        let mut list = WaitingList::new(2, 10);
        assert_eq!([list.add(1, A), list.add(2, A)], [None; 2]);
        list.refresh(1);
        list.refresh(7);
        assert_eq!(list.oldest_of(A).collect::<Vec<_>>(), [2, 1]);
        assert_eq!((list.oldest(), list.add(3, A)), (Some(2), Some(2)));
    }

    #[test]
    fn who_is_added_again_takes_nobodys_place() {
        let mut list = WaitingList::new(2, 10);
        assert_eq!([list.add(1, A), list.add(2, A)], [None; 2]);
        assert_eq!([list.add(1, A), list.add(1, A), list.add(2, A)], [None; 3]);
        assert_eq!(list.oldest_of(A).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn of_those_that_have_as_many_the_newcomer_makes_room_for_itself() {
        for newcomer in [A, B] {
            let mut list = WaitingList::new(4, 4);
            assert_eq!([list.add(1, B), list.add(2, A), list.add(3, A), list.add(4, B)], [None; 4]);
            assert_eq!(list.crowded(newcomer, false), Some(newcomer));
        }
        let mut list = WaitingList::new(4, 4);
        assert_eq!(
            (list.crowded(A, false), list.crowded(A, true)),
            (None, None),
            "nobody is there"
        );
        assert_eq!([list.add(1, B), list.add(2, B)], [None; 2]);
        assert_eq!((list.crowded(A, false), list.crowded(A, true)), (None, Some(B)));
    }

    #[test]
    fn every_index_says_what_looking_at_all_says() {
        let mut list = WaitingList::new(5, 12);
        let mut all: Vec<(u32, Peer)> = Vec::new();
        let peer = |who: u32| [A, B, C][(who % 7 % 3) as usize];
        for step in 0..2000_u32 {
            // Numbers without a pattern, the same in every run.
            let who = step.wrapping_mul(2_654_435_761) >> 27;
            all.retain(|(other, _)| *other != who);
            match step % 5 {
                0 => list.remove(who),
                1 if list.places.contains_key(&who) => {
                    list.refresh(who);
                    all.push((who, peer(who)));
                }
                _ => {
                    let gone = list.add(who, peer(who));
                    all.retain(|(other, _)| Some(*other) != gone);
                    all.push((who, peer(who)));
                }
            }
            assert_eq!((list.len(), list.oldest()), (all.len(), all.first().map(|(who, _)| *who)));
            for peer in [A, B, C] {
                let its = all.iter().filter(|(_, of)| *of == peer).map(|(who, _)| *who);
                let its: Vec<_> = its.collect();
                assert_eq!(list.oldest_of(peer).collect::<Vec<_>>(), its);
                assert_eq!(list.counts.contains(&(its.len(), peer)), !its.is_empty());
            }
            assert!(list.counts.len() <= 3 && list.len() <= 12);
        }
    }
}
