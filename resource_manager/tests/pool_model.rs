//! The pool under random events, with executor managers that lose, repeat, ignore and forget: its
//! invariants hold after each event, and in the end everything is free and billed once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use resource_manager::pool::{
    Action, Ask, Capacity, END_MARGIN, EXPIRY_MARGIN, EndReport, Grant, LinkId, NodeSpec, Now, Pool,
};
use rfaas::protocol::lease::{EndReason, LeaseId};
use rfaas::protocol::node::Bill;

const NODES: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Add {
        node: usize,
        cores: u32,
        memory: u32,
    },
    Remove {
        node: usize,
        grace_ms: u64,
    },
    Connect {
        node: usize,
        obeys: bool,
    },
    /// The connection ends; the executor manager remembers, unless it died.
    Disconnect {
        node: usize,
        dies: bool,
    },
    Request {
        cores: u32,
        memory: u32,
        timeout_ms: u64,
    },
    Claim {
        lease: usize,
    },
    Report {
        lease: usize,
    },
    Delete {
        lease: usize,
    },
    ClientGone {
        lease: usize,
    },
    Forge {
        lease: u64,
        node: usize,
    },
    Pass {
        ms: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0..NODES;
    let lease = 0..40_usize;
    prop_oneof![
        2 => (node.clone(), 1..8_u32, 1..8_u32)
            .prop_map(|(node, cores, memory)| Op::Add { node, cores, memory }),
        1 => (node.clone(), 0..30_000_u64).prop_map(|(node, grace_ms)| Op::Remove { node, grace_ms }),
        4 => (node.clone(), any::<bool>()).prop_map(|(node, obeys)| Op::Connect { node, obeys }),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, dies)| Op::Disconnect { node, dies }),
        8 => (1..5_u32, 1..5_u32, 1..60_000_u64)
            .prop_map(|(cores, memory, timeout_ms)| Op::Request { cores, memory, timeout_ms }),
        8 => lease.clone().prop_map(|lease| Op::Claim { lease }),
        4 => lease.clone().prop_map(|lease| Op::Report { lease }),
        1 => lease.clone().prop_map(|lease| Op::Delete { lease }),
        1 => lease.prop_map(|lease| Op::ClientGone { lease }),
        1 => (1..1_000_u64, node).prop_map(|(lease, node)| Op::Forge { lease, node }),
        4 => (0..8_000_u64).prop_map(|ms| Op::Pass { ms }),
    ]
}

/// An executor manager.
#[derive(Default)]
struct Manager {
    link: Option<LinkId>,
    obeys: bool,
    holds: BTreeSet<LeaseId>,
    /// Ended, not acknowledged.
    unacknowledged: BTreeSet<LeaseId>,
}

struct World {
    pool: Pool,
    now: Now,
    managers: Vec<Manager>,
    links: u64,
    granted: Vec<Grant>,
}

fn name(node: usize) -> String {
    format!("node-{node}")
}

impl World {
    fn new() -> Self {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let now = Now { monotonic: Instant::now(), wall };
        let managers = (0..NODES).map(|_| Manager::default()).collect();
        World {
            pool: Pool::new(now, Duration::from_secs(10)),
            now,
            managers,
            links: 0,
            granted: Vec::new(),
        }
    }

    fn lease(&self, index: usize) -> Option<Grant> {
        let at = index.checked_rem(self.granted.len())?;
        Some(self.granted[at].clone())
    }

    fn node_of(grant: &Grant) -> usize {
        grant.node[5..].parse().expect("see `name`")
    }

    fn apply(&mut self, op: &Op) {
        let now = self.now;
        let mut out = Vec::new();
        match *op {
            Op::Add { node, cores, memory } => {
                let capacity = Capacity { cores, memory };
                let spec = NodeSpec::new(&name(node), "127.0.0.1", 1, capacity).expect("valid");
                let _ = self.pool.add_node(now, spec, &mut out);
            }
            Op::Remove { node, grace_ms } => {
                let grace = Duration::from_millis(grace_ms);
                self.pool.remove_node(now, &name(node), grace, &mut out);
            }
            Op::Connect { node, obeys } => self.connect(node, obeys, &mut out),
            Op::Disconnect { node, dies } => {
                let manager = &mut self.managers[node];
                if dies {
                    manager.holds.clear();
                    manager.unacknowledged.clear();
                }
                if let Some(link) = manager.link.take() {
                    self.pool.node_disconnected(now, link, &mut out);
                }
            }
            Op::Request { cores, memory, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms);
                let ask = Ask::new(cores, memory, timeout, "c").expect("valid");
                self.granted.extend(self.pool.request(now, &ask).into_iter().flatten());
            }
            Op::Claim { lease } => {
                if let Some(grant) = self.lease(lease).filter(|g| g.terms.expires_at > now.wall) {
                    let node = Self::node_of(&grant);
                    self.managers[node].holds.insert(grant.terms.lease);
                    self.tell_claim(&grant, &mut out);
                }
            }
            Op::Report { lease } => {
                if let Some(grant) = self.lease(lease) {
                    self.end(&grant, EndReason::Released, &mut out);
                }
            }
            Op::Delete { lease } => {
                if let Some(grant) = self.lease(lease) {
                    let id = grant.terms.lease;
                    self.pool.end_lease(now, id, EndReason::Withdrawn, &mut out);
                }
            }
            Op::ClientGone { lease } => {
                self.pool.client_gone(now, self.lease(lease).map(|grant| grant.terms.lease));
            }
            Op::Forge { lease, node } => self.forge(lease, node, &mut out),
            Op::Pass { ms } => {
                let time = Duration::from_millis(ms);
                self.now = Now { monotonic: now.monotonic + time, wall: now.wall + time };
                self.pool.tick(self.now, &mut out);
                let next = self.pool.next_deadline();
                assert!(next.is_none_or(|at| at > self.now.monotonic), "a loop would spin");
            }
        }
        self.carry_out(out);
    }

    fn connect(&mut self, node: usize, obeys: bool, out: &mut Vec<Action>) {
        let manager = &mut self.managers[node];
        manager.obeys = obeys;
        if manager.link.is_some() {
            return;
        }
        self.links += 1;
        let link = LinkId(self.links);
        if self.pool.node_connected(self.now, &name(node), 1, link, out).is_err() {
            return;
        }
        manager.link = Some(link);
        let (holds, unacknowledged) = (manager.holds.clone(), manager.unacknowledged.clone());
        for grant in self.granted.clone() {
            if holds.contains(&grant.terms.lease) {
                self.tell_claim(&grant, out);
            }
            if unacknowledged.contains(&grant.terms.lease) {
                self.tell_end(&grant, EndReason::Released, out);
            }
        }
    }

    /// What the executor manager does when a lease ends there.
    fn end(&mut self, grant: &Grant, reason: EndReason, out: &mut Vec<Action>) {
        let manager = &mut self.managers[Self::node_of(grant)];
        if manager.holds.remove(&grant.terms.lease) {
            manager.unacknowledged.insert(grant.terms.lease);
        }
        if manager.unacknowledged.contains(&grant.terms.lease) {
            self.tell_end(grant, reason, out); // perhaps once more
        }
    }

    fn tell_claim(&mut self, grant: &Grant, out: &mut Vec<Action>) {
        if let Some(link) = self.managers[Self::node_of(grant)].link {
            self.pool.claimed(self.now, link, &grant.terms, out);
        }
    }

    fn tell_end(&mut self, grant: &Grant, reason: EndReason, out: &mut Vec<Action>) {
        if let Some(link) = self.managers[Self::node_of(grant)].link {
            let bill = Bill { invocations: 1.into(), ..Bill::default() };
            let report = EndReport { terms: grant.terms.clone(), reason, bill };
            self.pool.ended(self.now, link, &report, out);
        }
    }

    /// A node tells of a lease that nobody granted.
    fn forge(&mut self, lease: u64, node: usize, out: &mut Vec<Action>) {
        let Some(link) = self.managers[node].link else { return };
        let Some(mut terms) = self.granted.last().map(|grant| grant.terms.clone()) else { return };
        terms.lease = LeaseId::new(terms.lease.get() + lease).expect("not zero");
        self.pool.claimed(self.now, link, &terms, out);
        let report = EndReport { terms, reason: EndReason::Released, bill: Bill::default() };
        self.pool.ended(self.now, link, &report, out);
    }

    fn carry_out(&mut self, mut actions: Vec<Action>) {
        while !actions.is_empty() {
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::EndLease { link, lease, reason, .. } => {
                        let manager = self.managers.iter().find(|m| m.link == Some(link));
                        if manager.is_some_and(|m| m.obeys) {
                            let told =
                                self.granted.iter().find(|g| g.terms.lease == lease).cloned();
                            told.into_iter().for_each(|g| self.end(&g, reason, &mut actions));
                        }
                    }
                    Action::AcknowledgeEnd { link, lease } => {
                        if let Some(manager) = self.manager(link) {
                            manager.unacknowledged.remove(&lease);
                        }
                    }
                    Action::Close { link, .. } => {
                        if let Some(manager) = self.manager(link) {
                            manager.link = None;
                        }
                        self.pool.node_disconnected(self.now, link, &mut actions);
                    }
                    Action::TellCapacity { .. } | Action::NodesChanged => {}
                    Action::Resolve { .. } => panic!("addresses are numbers here"),
                }
            }
        }
    }

    fn manager(&mut self, link: LinkId) -> Option<&mut Manager> {
        self.managers.iter_mut().find(|manager| manager.link == Some(link))
    }

    /// What always holds.
    fn check(&self) {
        let leases = self.pool.leases();
        let mut held: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
        for lease in &leases {
            let (cores, memory) = held.entry(&lease.node).or_default();
            *cores += lease.cores;
            *memory += lease.memory;
            let latest = lease.expires_at + EXPIRY_MARGIN + END_MARGIN;
            assert!(self.now.wall < latest, "lease {} outlived its bound", lease.lease);
        }
        for node in self.pool.nodes() {
            let (cores, memory) = held.remove(&**node.spec.name()).unwrap_or_default();
            let all = node.spec.capacity();
            assert_eq!(node.free.cores.checked_add(cores), Some(all.cores), "over-committed");
            assert_eq!(node.free.memory.checked_add(memory), Some(all.memory), "over-committed");
        }
        assert!(held.is_empty(), "leases without a node: {held:?}");
        let bills = self.pool.bills(None, None);
        let billed: BTreeSet<_> = bills.iter().map(|bill| bill.lease).collect();
        assert_eq!(billed.len(), bills.len(), "billed twice");
        let live: BTreeSet<_> = leases.iter().map(|lease| lease.lease).collect();
        assert!(live.is_disjoint(&billed), "billed before its end");
        let granted: BTreeSet<_> = self.granted.iter().map(|grant| grant.terms.lease).collect();
        assert_eq!(granted, live.union(&billed).copied().collect(), "lost or invented");
        let totals = self.pool.totals();
        assert_eq!(totals.granted, granted.len() as u64);
        assert_eq!(totals.ended.iter().sum::<u64>(), billed.len() as u64, "ended twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_over_committed_and_every_lease_ends_and_is_billed_once(
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let mut world = World::new();
        // So that most runs have something to grant.
        for node in 0..NODES {
            world.apply(&Op::Add { node, cores: 4, memory: 4 });
            world.apply(&Op::Connect { node, obeys: node != 0 });
        }
        for op in &ops {
            world.apply(op);
            world.check();
        }
        for _ in 0..200 {
            world.apply(&Op::Pass { ms: 1_000 });
            world.check();
        }
        prop_assert!(world.pool.leases().is_empty(), "leases that never end");
        for node in world.pool.nodes() {
            prop_assert_eq!(node.free, node.spec.capacity());
        }
    }
}
