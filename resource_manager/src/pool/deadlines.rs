//! When something is due for a lease.
//!
//! Most leases end before their deadline, and each has several in its life. So one that does not hold any
//! more stays where it is, to be thrown away when it comes up or when they are too many: ending a lease
//! then looks for nothing.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Instant;

use rfaas_protocol::lease::LeaseId;

use super::lease::GrantedLease;

/// Deadlines of so many leases are kept whether they hold or not.
const FEW: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Deadlines(BinaryHeap<Reverse<(Instant, LeaseId)>>);

impl Deadlines {
    /// Notes the deadline of a lease, which holds as long as it is the lease's.
    pub(super) fn insert(
        &mut self,
        at: Instant,
        id: LeaseId,
        leases: &HashMap<LeaseId, GrantedLease>,
    ) {
        if self.0.len() > FEW + 4 * leases.len() {
            self.0.retain(|Reverse(deadline)| holds(deadline, leases));
        }
        self.0.push(Reverse((at, id)));
    }

    /// The first; perhaps one that does not hold any more, unless [`due`](Self::due) was asked just now.
    pub(super) fn first(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// A lease whose deadline has come.
    pub(super) fn due(
        &mut self,
        now: Instant,
        leases: &HashMap<LeaseId, GrantedLease>,
    ) -> Option<LeaseId> {
        while let Some(Reverse(first)) = self.0.peek() {
            let (at, id) = *first;
            let holds = holds(first, leases);
            if holds && at > now {
                return None;
            }
            self.0.pop();
            if holds {
                return Some(id);
            }
        }
        None
    }
}

fn holds((at, id): &(Instant, LeaseId), leases: &HashMap<LeaseId, GrantedLease>) -> bool {
    leases.get(id).is_some_and(|lease| lease.deadline == *at)
}
