//! Who takes up room before it has shown what for, and who goes when there is no more: what keeps one peer
//! from locking out the others.
//!
//! * OLDEST - whoever comes finds room: the oldest of its own peer goes if that has its share, else the oldest
//!   of the peer that has most. So who says soon what it wants is served, also next to a peer that
//!   fills all places again and again, and also if it is of the same user.
//!
//! Pure: what it is that waits, and what becomes of it, is the caller's.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Who is at the other end, as far as the device knows and the peer cannot choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Peer {
    /// Processes of this user of this machine (embedded device): the kernel says so.
    User(u32),
    /// Whoever has this address of the RDMA network.
    Address(IpAddr),
    /// The device does not know.
    Unknown,
}

/// Those that wait, in the order in which they came.
#[derive(Debug)]
pub struct WaitingList<K> {
    of_peer: usize,
    in_all: usize,
    next: u64,
    waiting: BTreeMap<u64, (K, Peer)>,
    peers: HashMap<Peer, usize>,
}

impl<K: Copy + PartialEq> WaitingList<K> {
    /// Nobody yet. There is room for `in_all` (at least one), and for `of_peer` of one peer.
    pub fn new(of_peer: usize, in_all: usize) -> Self {
        let in_all = in_all.max(1);
        WaitingList {
            of_peer: of_peer.clamp(1, in_all),
            in_all,
            next: 0,
            waiting: BTreeMap::new(),
            peers: HashMap::new(),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Who has waited longest.
    pub fn oldest(&self) -> Option<K> {
        self.waiting.values().next().map(|(who, _)| *who)
    }

    /// OLDEST. Adds `who`, of `peer`; returns who has to go for it, and does not wait any more.
    #[must_use]
    pub fn add(&mut self, who: K, peer: Peer) -> Option<K> {
        let gone = self.who_goes_for(peer).and_then(|number| self.take(number));
        self.waiting.insert(self.next, (who, peer));
        self.next += 1;
        *self.peers.entry(peer).or_default() += 1;
        gone
    }

    /// `who` does not wait any more. Looks at all of them.
    pub fn remove(&mut self, who: K) {
        let found = self.waiting.iter().find(|(_, (waits, _))| *waits == who);
        if let Some(number) = found.map(|(number, _)| *number) {
            self.take(number);
        }
    }

    fn who_goes_for(&self, newcomer: Peer) -> Option<u64> {
        let held = |peer: &Peer| self.peers.get(peer).copied().unwrap_or(0);
        let from = if held(&newcomer) >= self.of_peer {
            newcomer
        } else if self.waiting.len() >= self.in_all {
            *self.peers.iter().max_by_key(|(_, held)| **held)?.0
        } else {
            return None;
        };
        let mut waiting = self.waiting.iter();
        waiting.find(|(_, (_, peer))| *peer == from).map(|(number, _)| *number)
    }

    fn take(&mut self, number: u64) -> Option<K> {
        let (who, peer) = self.waiting.remove(&number)?;
        if let Some(held) = self.peers.get_mut(&peer) {
            *held -= 1;
            if *held == 0 {
                self.peers.remove(&peer);
            }
        }
        Some(who)
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
        assert!(list.is_empty() && list.peers.is_empty());
        assert_eq!(list.add(2, A), None);
    }
}
