//! Nodes that clients could not use: they are tried last for a while, and the client gets another one.
//!
//! * It only changes the order in which nodes are tried. A lie about a node takes nothing from anybody: the node is
//!   used like every other one when the others are full.
//! * BOUNDED - each user's word holds for a few nodes at a time. The oldest of them is forgiven for a new one, so
//!   that nobody orders a cluster as it likes.
//!
//! Elsewhere: where a lease goes then (`node_index`, `placement`).

use std::time::{Duration, Instant};

use rdmalib::Peer;

use super::node_index::NodeSlot;

/// How long a node that a client could not use is tried last. A node that is full of clients which claim nothing drops
/// them after 30 s at the latest, and can be used again then. A node that was restarted can be used within seconds, and
/// is not put last for much longer than that.
pub const TRIED_LAST: Duration = Duration::from_secs(30);
/// Nodes that one user's word holds for at a time: a few more than a client tries for one lease.
pub const MOST_OF_ONE: usize = 8;
/// Nodes that all words together hold for. Few, since they are searched one by one.
const MOST: usize = 256;

#[derive(Debug)]
struct Word {
    slot: NodeSlot,
    /// The peer whose word it is.
    origin: Peer,
    until: Instant,
}

/// Nodes that are tried last, oldest first.
#[derive(Debug, Default)]
pub(super) struct Distrust(Vec<Word>);

impl Distrust {
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.0.first().map(|word| word.until) // all last equally long
    }

    /// Takes `origin`'s word against the node in `slot`; returns the nodes that are forgiven for it.
    pub(super) fn take(&mut self, now: Instant, slot: NodeSlot, origin: Peer) -> Vec<NodeSlot> {
        self.0.retain(|word| word.slot != slot);
        let of_origin = |word: &Word| word.origin == origin;
        let too_many = self.0.len() >= MOST;
        let mut forgiven = Vec::new();
        if self.0.iter().filter(|word| of_origin(word)).count() >= MOST_OF_ONE || too_many {
            let oldest = self.0.iter().position(of_origin).unwrap_or(0);
            forgiven.push(self.0.remove(oldest).slot);
        }
        self.0.push(Word { slot, origin, until: now + TRIED_LAST });
        forgiven
    }

    /// Nodes whose time is over.
    pub(super) fn due(&mut self, now: Instant) -> Vec<NodeSlot> {
        let due = self.0.iter().take_while(|word| word.until <= now).count();
        self.0.drain(..due).map(|word| word.slot).collect()
    }

    /// The node in `slot` is gone.
    pub(super) fn forget(&mut self, slot: NodeSlot) {
        self.0.retain(|word| word.slot != slot);
    }
}
