//! Facts about the pool: leases here, nodes, renewals and restarts in files of their own. The model in the
//! crate's `tests/pool_model.rs` checks its invariants on random events.

mod distrust;
mod fair_use;
mod nodes;
mod renewing;
mod restarting;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::SystemTime;

use super::*;

/// A pool whose clock the test owns.
struct World {
    pool: Pool,
    now: Now,
    out: Vec<Action>,
    links: u64,
}

impl World {
    fn new() -> Self {
        let now = Now {
            monotonic: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        World { pool: Pool::new(now, NODE_RETURN), now, out: Vec::new(), links: 0 }
    }

    fn pass(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall += time;
        self.pool.tick(self.now, &mut self.out);
        assert!(self.pool.next_deadline().is_none_or(|at| at > self.now.monotonic));
    }

    fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.out)
    }

    fn add(&mut self, name: &str, cores: u32, memory: u32) -> Result<NodeView, Conflict> {
        let spec = NodeSpec::new(name, "10.0.0.1", 10_005, Capacity { cores, memory }).unwrap();
        self.pool.add_node(self.now, spec, &mut self.out)
    }

    fn connect(&mut self, name: &str) -> LinkId {
        self.links += 1;
        let link = LinkId(self.links);
        self.pool.node_connected(self.now, name, run(1), link, &mut self.out).unwrap();
        link
    }

    /// A node that takes leases.
    fn node(&mut self, name: &str, cores: u32, memory: u32) -> LinkId {
        self.add(name, cores, memory).unwrap();
        let link = self.connect(name);
        self.actions();
        link
    }

    fn disconnect(&mut self, link: LinkId) {
        self.pool.node_disconnected(self.now, link, &mut self.out);
    }

    fn request(&mut self, cores: u32, memory: u32, timeout: Duration) -> Result<Grant, Denied> {
        let ask = Ask::new(cores, memory, timeout, "somebody").unwrap();
        self.pool.request(self.now, &ask).map(|mut grants| grants.remove(0))
    }

    fn claim(&mut self, grant: &Grant, link: LinkId) {
        self.pool.claimed(self.now, link, &grant.terms, &mut self.out);
    }

    /// A lease in use.
    fn active(&mut self, cores: u32, link: LinkId) -> Grant {
        let grant = self.request(cores, 1, Duration::from_secs(3600)).unwrap();
        self.claim(&grant, link);
        grant
    }

    fn report(&mut self, grant: &Grant, link: LinkId, reason: EndReason, allocated_ns: u64) {
        let bill = Bill { allocated_ns: allocated_ns.into(), ..Bill::default() };
        let report = EndReport { terms: grant.terms.clone(), reason, bill };
        self.pool.ended(self.now, link, &report, &mut self.out);
    }

    fn free(&self, name: &str) -> Capacity {
        self.pool.node(name).unwrap().free
    }

    fn state(&self, grant: &Grant) -> Option<LeaseState> {
        self.pool.lease(grant.terms.lease).map(|lease| lease.state)
    }

    /// What is to be kept of a lease, of the changes that were not taken yet: a provisional bill may be
    /// followed by the node's.
    fn bill(&self, grant: &Grant) -> Option<Billed> {
        let of_lease = |bill: &&Billed| bill.lease == grant.terms.lease;
        let bills: Vec<_> = self.pool.held.leases.unsaved_bills().iter().filter(of_lease).collect();
        let final_before = bills.iter().rev().skip(1).any(|bill| bill.reported);
        assert!(!final_before, "billed twice");
        bills.last().map(|bill| (*bill).clone())
    }

    fn billed(&self, grant: &Grant) -> Option<(EndReason, u64)> {
        self.bill(grant).map(|bill| (bill.reason, bill.bill.allocated_ns.get()))
    }
}

/// A run of the executor manager of a node here.
fn run(instance: u64) -> Run {
    Run {
        instance: NonZeroU64::new(instance).unwrap(),
        address: ([10, 0, 0, 1], 10_005).into(),
        clock_ahead_ms: 0,
    }
}

/// How long a node may stay away.
const NODE_RETURN: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn end_lease(link: LinkId, grant: &Grant, reason: EndReason, grace: Duration) -> Action {
    Action::EndLease { link, lease: grant.terms.lease, reason, grace }
}

fn acknowledge(link: LinkId, grant: &Grant) -> Action {
    Action::AcknowledgeEnd { link, lease: grant.terms.lease }
}

#[test]
fn a_lease_returns_exactly_what_it_took() {
    let mut world = World::new();
    let link = world.node("a", 3, 1024);
    let one = world.active(1, link);
    let two = world.active(2, link);
    assert_eq!(world.free("a"), Capacity { cores: 0, memory: 1022 });
    world.report(&one, link, EndReason::Released, 5);
    world.report(&two, link, EndReason::Released, 5);
    assert!(world.request(3, 1024, HOUR).is_ok(), "refused");
}

#[test]
fn an_end_that_is_reported_again_is_acknowledged_and_credits_nothing() {
    let mut world = World::new();
    let link = world.node("a", 4, 1024);
    let grant = world.active(2, link);
    for _ in 0..3 {
        world.report(&grant, link, EndReason::Released, 7);
        assert_eq!(world.actions(), [acknowledge(link, &grant)]);
        assert_eq!(world.free("a").cores, 4, "grew");
    }
    assert_eq!(world.billed(&grant), Some((EndReason::Released, 7)));
    assert_eq!(world.pool.totals().ended.iter().sum::<u64>(), 1);
}

#[test]
fn an_unclaimed_lease_ends_at_its_expiry() {
    let mut world = World::new();
    world.node("a", 1, 64);
    let grant = world.request(1, 64, 10 * SECOND).unwrap();
    world.pass(10 * SECOND - Duration::from_millis(1));
    assert_eq!(world.state(&grant), Some(LeaseState::Granted));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.billed(&grant), Some((EndReason::Expired, 0)));
    assert_eq!(world.free("a").cores, 1, "never returned");
}

#[test]
fn an_unclaimed_lease_ends_soon_after_its_client_and_a_claimed_one_does_not() {
    let mut world = World::new();
    let link = world.node("a", 3, 64);
    let claimed = world.active(1, link);
    let under_way = world.request(1, 1, HOUR).unwrap();
    let unclaimed = world.request(1, 1, HOUR).unwrap();
    let all = [&claimed, &under_way, &unclaimed].map(|grant| grant.terms.lease);
    world.pool.client_gone(world.now, all);
    world.pass(CLAIM_IN_FLIGHT / 2);
    world.claim(&under_way, link);
    world.pass(CLAIM_IN_FLIGHT);
    assert_eq!(world.state(&claimed), Some(LeaseState::Active));
    assert_eq!(world.state(&under_way), Some(LeaseState::Active));
    assert_eq!(world.billed(&unclaimed), Some((EndReason::ClientGone, 0)));
}

#[test]
fn an_active_lease_that_its_node_does_not_end_is_ended_within_bounds() {
    let mut world = World::new();
    let link = world.node("a", 1, 64);
    let grant = world.request(1, 64, 10 * SECOND).unwrap();
    world.claim(&grant, link);
    world.pass(10 * SECOND);
    assert_eq!(world.actions(), [], "the node ends it by its own clock");
    world.pass(EXPIRY_MARGIN);
    let told = end_lease(link, &grant, EndReason::Expired, Duration::ZERO);
    assert_eq!(world.actions(), [told]);
    assert_eq!(world.state(&grant), Some(LeaseState::Ending));
    world.pass(END_MARGIN);
    assert!(matches!(world.billed(&grant), Some((EndReason::Expired, ns)) if ns > 0));
    assert_eq!(world.free("a").cores, 1);
}

#[test]
fn a_late_report_replaces_a_bill_that_was_a_guess() {
    let mut world = World::new();
    let link = world.node("a", 1, 64);
    let grant = world.active(1, link);
    world.disconnect(link);
    world.pass(NODE_RETURN);
    assert!(matches!(world.billed(&grant), Some((EndReason::NodeLost, _))));
    let link = world.connect("a");
    world.actions();
    world.claim(&grant, link); // it still runs there
    let told = end_lease(link, &grant, EndReason::NodeLost, Duration::ZERO);
    assert_eq!(world.actions(), [told]);
    world.report(&grant, link, EndReason::ClientGone, 99);
    assert_eq!(world.billed(&grant), Some((EndReason::ClientGone, 99)));
    world.report(&grant, link, EndReason::Released, 1);
    assert_eq!(world.billed(&grant), Some((EndReason::ClientGone, 99)), "a reported bill is final");
}

#[test]
fn a_bill_has_no_more_calls_than_can_be_counted() {
    let mut world = World::new();
    let link = world.node("a", 1, 64);
    let grant = world.active(1, link);
    let forged = Bill { allocated_ns: 5.into(), invocations: u64::MAX.into(), ..Bill::default() };
    world.pool.used(link, grant.terms.lease, forged);
    world.disconnect(link);
    world.pass(NODE_RETURN);
    assert_eq!(world.bill(&grant).unwrap().bill.invocations.get(), 1 << 53);
    let link = world.connect("a");
    let report =
        EndReport { terms: grant.terms.clone(), reason: EndReason::Released, bill: forged };
    world.pool.ended(world.now, link, &report, &mut world.out);
    assert_eq!(world.bill(&grant).unwrap().bill.invocations.get(), 1 << 53);
}

#[test]
fn a_deleted_lease_ends_once_however_often_it_is_deleted() {
    let mut world = World::new();
    let link = world.node("a", 2, 64);
    let active = world.active(1, link);
    let unclaimed = world.request(1, 1, HOUR).unwrap();
    let delete = |world: &mut World, grant: &Grant| {
        let (now, id) = (world.now, grant.terms.lease);
        world.pool.end_lease(now, id, EndReason::Withdrawn, &mut world.out)
    };
    assert_eq!(delete(&mut world, &active), Some(LeaseState::Ending));
    let told = end_lease(link, &active, EndReason::Withdrawn, Duration::ZERO);
    assert_eq!(world.actions(), [told]);
    assert_eq!(delete(&mut world, &active), Some(LeaseState::Ending));
    assert_eq!(world.actions(), []);
    for _ in 0..2 {
        assert_eq!(delete(&mut world, &unclaimed), Some(LeaseState::Ended));
        assert_eq!(world.free("a").cores, 1);
    }
    world.report(&active, link, EndReason::Withdrawn, 1);
    assert_eq!(delete(&mut world, &active), Some(LeaseState::Ended));
    let never = LeaseId::new(1).unwrap();
    let ended = world.pool.end_lease(world.now, never, EndReason::Withdrawn, &mut world.out);
    assert_eq!(ended, None);
}

#[test]
fn a_node_that_claims_a_lease_that_has_ended_is_told_to_end_it() {
    let mut world = World::new();
    let link = world.node("a", 1, 64);
    let grant = world.request(1, 1, HOUR).unwrap();
    world.pool.end_lease(world.now, grant.terms.lease, EndReason::Withdrawn, &mut world.out);
    world.claim(&grant, link);
    let told = end_lease(link, &grant, EndReason::Withdrawn, Duration::ZERO);
    assert_eq!(world.actions(), [told]);
    assert_eq!(world.free("a").cores, 1);
}

#[test]
fn a_lease_that_is_ending_is_told_again_when_its_node_is_back() {
    let mut world = World::new();
    let link = world.node("a", 1, 64);
    let grant = world.active(1, link);
    world.disconnect(link);
    world.pool.end_lease(world.now, grant.terms.lease, EndReason::Withdrawn, &mut world.out);
    assert_eq!(world.actions(), []);
    let link = world.connect("a");
    world.claim(&grant, link);
    let told = end_lease(link, &grant, EndReason::Withdrawn, Duration::ZERO);
    assert_eq!(world.actions(), [told]);
}

/// A lease that an earlier run granted, running on `node`.
fn earlier(world: &World, node: &str, cores: u32) -> Grant {
    let lease = LeaseId::new(world.pool.first_id().get() - 1).unwrap();
    let (expires_at, client) = (world.now.wall + HOUR, "old".into());
    let terms = Terms { lease, cores, memory: 1, expires_at, instance: NonZeroU64::new(1), client };
    Grant { terms, node: node.into(), manager: ([10, 0, 0, 1], 10_005).into() }
}

#[test]
fn a_running_lease_of_an_earlier_run_is_taken_over_and_billed_once() {
    let mut world = World::new();
    let link = world.node("a", 2, 64);
    let unclaimed = world.request(2, 1, HOUR).unwrap(); // before the node could report
    let old = earlier(&world, "a", 1);
    world.claim(&old, link);
    assert_eq!(world.actions(), []);
    assert_eq!(world.state(&old), Some(LeaseState::Active));
    assert_eq!(world.billed(&unclaimed), Some((EndReason::Withdrawn, 0)), "what runs goes first");
    assert_eq!(world.free("a").cores, 1);
    world.report(&old, link, EndReason::Released, 3);
    world.report(&old, link, EndReason::Released, 3);
    assert_eq!(world.billed(&old), Some((EndReason::Released, 3)));
    assert_eq!(world.free("a").cores, 2);
}

#[test]
fn a_lease_of_an_earlier_run_for_which_there_is_no_room_is_ended() {
    let mut world = World::new();
    let link = world.node("a", 2, 64);
    world.active(2, link);
    let unclaimed = earlier(&world, "a", 1);
    world.claim(&unclaimed, link);
    let told = end_lease(link, &unclaimed, EndReason::Withdrawn, Duration::ZERO);
    assert_eq!(world.actions(), [told]);
    assert_eq!(world.free("a").cores, 0);
}

#[test]
fn the_end_of_a_lease_of_an_earlier_run_is_billed() {
    let mut world = World::new();
    let link = world.node("a", 2, 64);
    let old = earlier(&world, "a", 1);
    world.report(&old, link, EndReason::Expired, 8);
    assert_eq!(world.actions(), [acknowledge(link, &old)]);
    assert_eq!(world.billed(&old), Some((EndReason::Expired, 8)));
    assert_eq!(world.free("a").cores, 2);
}

#[test]
fn a_lease_that_was_never_granted_is_neither_taken_over_nor_billed() {
    let mut world = World::new();
    let link = world.node("a", 2, 64);
    let mut forged = world.request(1, 1, HOUR).unwrap();
    forged.terms.lease = LeaseId::new(forged.terms.lease.get() + 1000).unwrap();
    world.claim(&forged, link);
    let told = end_lease(link, &forged, EndReason::Withdrawn, Duration::ZERO);
    assert_eq!(world.actions(), [told]);
    world.report(&forged, link, EndReason::Released, 1);
    assert_eq!(world.actions(), [acknowledge(link, &forged)]);
    assert_eq!(world.billed(&forged), None);
}

#[test]
fn a_refusal_says_what_is_missing() {
    let mut world = World::new();
    let why = |world: &mut World, cores| world.request(cores, 32, HOUR).unwrap_err().to_string();
    assert!(why(&mut world, 1).contains("POST /add"));
    world.add("a", 4, 64).unwrap();
    assert!(why(&mut world, 1).contains("1 registered"));
    let link = world.connect("a");
    assert!(why(&mut world, 5).contains("largest have 4 cores and 64 MB"));
    world.active(3, link);
    assert!(why(&mut world, 2).contains("at most 1 cores and 63 MB are free"));
    assert_eq!(world.pool.totals().denied, 4);
}

#[test]
fn a_later_run_starts_above_the_ids_of_an_earlier_one() {
    let mut world = World::new();
    world.node("a", 1, 64);
    let mut last = None;
    for _ in 0..100 {
        let grant = world.request(1, 64, SECOND).unwrap();
        assert!(Some(grant.terms.lease) > last);
        last = Some(grant.terms.lease);
        world.pass(SECOND);
    }
    let later = Pool::new(world.now, NODE_RETURN);
    assert!(Some(later.first_id()) > last);
    assert!(later.first_id().get() < 1 << 53);
}
