//! What is logged of leases: so many lines for each peer that can bring them about, a client's user or machine, and so
//! many for all of them. Pure, but for the lines.
//!
//! * A peer that starts and ends executors without pause uses up its own lines: others' leases are logged as ever.
//! * BOUNDED - the lines of all have a budget too, and a part of it is for peers that use little. The leases that
//!   there are and at most [`REMEMBERED`] peers are remembered; further ones share a budget.
//!
//! Elsewhere: what functions write (`output::limit`), what a place of the program says (`rfaas_program::log`).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use rdmalib::Peer;
use rfaas_program::log::Budget;
use rfaas_protocol::lease::LeaseId;

/// Lines that a peer may have at once: the lives of a hundred leases, of four lines each.
const BURST: u32 = 400;
/// Lines that it may have a second, on and on.
const PER_SECOND: u32 = 20;
/// The same for all peers together, as for five such peers: at 200 bytes a line, some 1.7 GB a day.
const BURST_OF_ALL: u32 = 5 * BURST;
const PER_SECOND_OF_ALL: u32 = 5 * PER_SECOND;
/// The part of [`BURST_OF_ALL`] for peers that have used at most a tenth of their own.
const FOR_QUIET: u32 = BURST_OF_ALL / 4;
/// Time between two lines that tell how many lines of a peer were dropped.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// Peers that are remembered while they have not got back all of their budget: the machines of a large cluster.
const REMEMBERED: usize = 4096;
/// Time between two looks for those that need not be.
const SWEEP_AGAIN: Duration = Duration::from_secs(1);

/// Decides which lines are logged.
#[derive(Debug)]
pub struct LeaseLog {
    leases: BTreeMap<LeaseId, Peer>,
    peers: HashMap<Peer, Said>,
    of_all: Budget,
    /// When to look again for peers that need not be remembered.
    sweep_at: Instant,
}

/// What a peer has brought about.
#[derive(Debug)]
struct Said {
    budget: Budget,
    dropped: u64,
    tell: Instant,
}

impl Said {
    fn nothing(now: Instant) -> Self {
        Said { budget: Budget::new(now, BURST, PER_SECOND), dropped: 0, tell: now }
    }

    fn is_as_new(&mut self, now: Instant) -> bool {
        self.budget.is_full(now) && self.dropped == 0
    }
}

impl LeaseLog {
    /// No line was logged yet.
    pub fn new(now: Instant) -> Self {
        let of_all = Budget::new(now, BURST_OF_ALL, PER_SECOND_OF_ALL);
        LeaseLog { leases: BTreeMap::new(), peers: HashMap::new(), of_all, sweep_at: now }
    }

    /// From now on `lease` is that of a client of `peer`.
    pub fn belongs(&mut self, lease: LeaseId, peer: Peer) {
        self.leases.insert(lease, peer);
    }

    /// `lease` has ended.
    pub fn ended(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
    }

    /// Whether a line about `lease` may be logged; counts it otherwise.
    pub fn admit(&mut self, now: Instant, lease: LeaseId) -> bool {
        let peer = self.leases.get(&lease).copied().unwrap_or(Peer::Unknown);
        self.admit_of(now, peer)
    }

    fn admit_of(&mut self, now: Instant, peer: Peer) -> bool {
        if self.peers.len() >= REMEMBERED && now >= self.sweep_at {
            self.sweep_at = now + SWEEP_AGAIN;
            self.peers.retain(|_, said| !said.is_as_new(now));
        }
        let full = self.peers.len() >= REMEMBERED && !self.peers.contains_key(&peer);
        let peer = if full { Peer::Unknown } else { peer };
        let said = self.peers.entry(peer).or_insert_with(|| Said::nothing(now));
        let kept = if said.budget.is_quiet(now) { 0 } else { FOR_QUIET };
        // Its own is used also if there is nothing of all: a peer that goes on is not quiet.
        let admitted = said.budget.take(now, 1, 0) && self.of_all.take(now, 1, kept);
        if !admitted {
            if said.dropped == 0 {
                said.tell = now + TELL_AGAIN;
            }
            said.dropped += 1;
        }
        admitted
    }

    /// When [`due`](LeaseLog::due) has something at the earliest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let held_back = self.peers.values().filter(|said| said.dropped > 0);
        held_back.map(|said| said.tell).min()
    }

    /// The numbers of lines that were dropped, by peer, as far as it is time to log them.
    pub fn due(&mut self, now: Instant) -> Vec<(Peer, u64)> {
        let dropped = |said: &mut Said| {
            (said.dropped > 0 && said.tell <= now).then(|| std::mem::take(&mut said.dropped))
        };
        self.peers.iter_mut().filter_map(|(peer, said)| Some((*peer, dropped(said)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(number: u64) -> LeaseId {
        LeaseId::new(number).unwrap()
    }

    fn told(lease_log: &mut LeaseLog, now: Instant, number: u64) -> u32 {
        (0..1000).filter(|_| lease_log.admit(now, lease(number))).count() as u32
    }

    #[test]
    fn who_starts_leases_without_pause_silences_its_own_lines_only() {
        let start = Instant::now();
        let mut lease_log = LeaseLog::new(start);
        for number in 1..=100 {
            lease_log.belongs(lease(number), Peer::User(7));
        }
        lease_log.belongs(lease(200), Peer::User(8));
        let all: u32 = (1..=100).map(|number| told(&mut lease_log, start, number)).sum();
        assert_eq!(all, BURST, "however many leases it has");
        assert_eq!(told(&mut lease_log, start, 200), BURST);
        assert_eq!(told(&mut lease_log, start + Duration::from_secs(1), 1), PER_SECOND);
        lease_log.ended(lease(200));
        assert!(lease_log.admit(start, lease(200)), "of nobody that is known");
    }

    #[test]
    fn what_is_dropped_is_told_with_a_count_after_a_while() {
        let start = Instant::now();
        let mut lease_log = LeaseLog::new(start);
        assert_eq!(lease_log.next_deadline(), None);
        lease_log.belongs(lease(1), Peer::User(7));
        told(&mut lease_log, start, 1);
        let deadline = lease_log.next_deadline().unwrap();
        assert_eq!(deadline, start + TELL_AGAIN);
        assert_eq!(lease_log.due(start), []);
        assert_eq!(lease_log.due(deadline), [(Peer::User(7), 1000 - u64::from(BURST))]);
        assert_eq!(lease_log.due(deadline + TELL_AGAIN), []);
        assert_eq!(lease_log.next_deadline(), None);
    }

    #[test]
    fn all_together_are_bounded_and_a_quiet_one_is_heard() {
        let start = Instant::now();
        let mut lease_log = LeaseLog::new(start);
        let peers = 2 * REMEMBERED as u32;
        let mut all = 0;
        for user in 0..peers {
            lease_log.belongs(lease(1), Peer::User(user));
            all += (0..BURST).filter(|_| lease_log.admit(start, lease(1))).count() as u32;
        }
        assert!(all <= BURST_OF_ALL, "{all}");
        assert!(lease_log.peers.len() <= REMEMBERED + 1, "{}", lease_log.peers.len());

        let mut lease_log = LeaseLog::new(start);
        for user in 0..100 {
            lease_log.belongs(lease(1), Peer::User(user));
            told(&mut lease_log, start, 1);
        }
        for second in 1..60 {
            let now = start + Duration::from_secs(second);
            for user in 0..100 {
                lease_log.belongs(lease(1), Peer::User(user));
                told(&mut lease_log, now, 1);
            }
            lease_log.belongs(lease(2), Peer::User(1000));
            assert!(lease_log.admit(now, lease(2)), "after {second} s");
        }
    }
}
