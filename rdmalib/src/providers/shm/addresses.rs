//! Bounds on the addresses of this process that mappings of peers' memory take. A file with nothing
//! in it costs its owner nothing, whatever its size. Mapping it costs addresses here, of which a
//! process has 128 TiB.
//!
//! BOUNDED: what a peer makes this process map beyond its first [`FREE_SEGMENTS`] segments is
//! counted for the peer, for its user, and in all, until it is unmapped. Beyond a bound nothing is
//! mapped, and the access fails. A segment that is mapped again because its file has grown counts
//! twice until the smaller mapping has gone.
//!
//! The kernel charges memory to the control group of the process that touches it first, also in a
//! peer's file: where the peer has written nothing, what we write to its receives, or read for a
//! copy, becomes our memory until all processes let go of the file. The peer chooses where. So for
//! each peer it is at most as much as can be mapped: the first segments, with the key table before
//! them, and what the bounds allow beyond. A process that only exchanges messages makes that small
//! ([`limit_peers`]) and bounds how many peers it has. The amounts of one user's connections add
//! up. What became memory stays, after the connection too, for as long as the peer keeps its file.
//!
//! The first segments are not counted, so no user can keep the control connections of other
//! processes from working. The number of connections has a bound of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sync::{AtomicU64, Ordering};
use crate::types::Peer;

/// Segments of a domain that are not counted: 15 MiB together, in which a control connection lies
/// as a whole.
pub(super) const FREE_SEGMENTS: usize = 4;
/// Most bytes of one peer by default: more than any node has memory, so that every real domain
/// fits.
pub(super) const MOST_OF_PEER: u64 = 1 << 40;
/// Most bytes of all peers of one user: several such domains.
const MOST_OF_USER: u64 = 8 << 40;
/// Most bytes of all peers: half of what a process has.
const MOST: u64 = 64 << 40;

/// Most bytes of a peer that connects from now on.
static OF_PEER: AtomicU64 = AtomicU64::new(MOST_OF_PEER);

/// Bounds the memory of peers that this process maps: per connection, at most the first 15 MiB of
/// the peer's domain and `bytes` bytes more, where 1 TiB is the default and the most. Affects new
/// connections. No effect on verbs, where no peer's memory is mapped.
///
/// A process is charged for pages of a peer's memory that it is the first to touch, and the peer
/// chooses where that is. So a process whose peers only exchange small messages with it, as the
/// managers of rFaaS do, calls this once before it connects to anybody. A request beyond the bound
/// fails with [`RemoteAccessError`](crate::Status::RemoteAccessError), and
/// [`map_remote`](crate::SendQueue::map_remote) with
/// [`OutOfAddresses`](crate::Error::OutOfAddresses).
pub fn limit_peers(bytes: u64) {
    OF_PEER.store(bytes.min(MOST_OF_PEER), Ordering::Relaxed);
}

static TAKEN: Mutex<BTreeMap<Peer, u64>> = Mutex::new(BTreeMap::new());

fn taken() -> MutexGuard<'static, BTreeMap<Peer, u64>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one peer has taken.
#[derive(Debug)]
pub(super) struct Account {
    user: Peer,
    most: u64,
    taken: AtomicU64,
}

/// Addresses that are counted until this is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    account: Arc<Account>,
    bytes: u64,
}

impl Account {
    pub(super) fn new(user: Peer) -> Arc<Account> {
        Self::of_at_most(user, OF_PEER.load(Ordering::Relaxed))
    }

    fn of_at_most(user: Peer, most: u64) -> Arc<Account> {
        Arc::new(Account { user, most, taken: AtomicU64::new(0) })
    }

    /// BOUNDED. Counts `bytes` more; `None` if a bound does not allow them.
    pub(super) fn charge(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        let mut users = taken();
        let of_user = users.get(&self.user).copied().unwrap_or(0);
        let of_peer = self.taken.load(Ordering::Relaxed); // changed only with the lock held
        let fits = |taken: u64, most: u64| taken.checked_add(bytes).is_some_and(|sum| sum <= most);
        let all = users.values().sum();
        if !(fits(of_peer, self.most) && fits(of_user, MOST_OF_USER) && fits(all, MOST)) {
            tracing::debug!(user = ?self.user, bytes, "memory of a peer not mapped: it has too much");
            return None;
        }
        users.insert(self.user, of_user + bytes);
        self.taken.store(of_peer + bytes, Ordering::Relaxed);
        Some(Charge { account: self.clone(), bytes })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut users = taken();
        let Charge { account, bytes } = self;
        let left = users.get(&account.user).map_or(0, |taken| taken.saturating_sub(*bytes));
        match left {
            0 => drop(users.remove(&account.user)),
            left => drop(users.insert(account.user, left)),
        }
        account.taken.fetch_sub(*bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_its_user_and_all_together_have_bounds_and_get_back_what_is_unmapped() {
        let user = |n| Peer::User(u32::MAX - n); // nobody's
        let account = Account::new(user(1));
        let charge = account.charge(MOST_OF_PEER).unwrap();
        assert!(account.charge(1).is_none());
        assert!(account.charge(u64::MAX).is_none());
        let others: Vec<_> =
            (0..7).map(|_| Account::new(user(1)).charge(MOST_OF_PEER).unwrap()).collect();
        assert!(Account::new(user(1)).charge(1).is_none());
        let next = Account::new(user(2)).charge(MOST_OF_PEER).unwrap();
        drop((charge, others, next));
        assert!(taken().keys().all(|peer| *peer != user(1) && *peer != user(2)));
        assert!(account.charge(MOST_OF_PEER).is_some());
    }

    #[test]
    fn a_process_may_want_less_of_each_peer() {
        let account = Account::of_at_most(Peer::User(u32::MAX - 3), 16);
        let charge = account.charge(16).unwrap();
        assert!(account.charge(1).is_none());
        drop(charge);
        assert!(account.charge(17).is_none());
        assert!(account.charge(1).is_some());
    }
}
