//! Facts about the pool that the model (`tests/pool_model` of this crate) does not know: what it does
//! in which order, what it says, and what it makes of other states. Leases are here, nodes, limits and
//! restarts in files of their own.

mod distrust;
mod fair_use;
mod gangs;
mod graphs;
mod growing;
mod nodes;
mod restarting;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::SystemTime;

use rfaas_protocol::isolation::Layers;

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
        isolation: Layers::NONE,
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
fn a_refusal_says_what_is_missing() {
    let mut world = World::new();
    let why = |world: &mut World, cores| world.request(cores, 32, HOUR).unwrap_err().to_string();
    assert!(why(&mut world, 1).contains("POST /add"));
    world.add("a", 4, 64).unwrap();
    assert!(why(&mut world, 1).contains("1 registered"));
    let link = world.connect("a");
    assert!(why(&mut world, 5).contains("4 cores is the most on one, 64 MB on one"));
    world.active(3, link);
    assert!(why(&mut world, 2).contains("free now: 1 core is the most on one, 63 MB"));
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

#[test]
fn what_was_granted_is_renewed_for_a_time_that_is_possible() {
    let mut world = World::new();
    world.node("a", 1, 64);
    let lease = world.request(1, 1, HOUR).unwrap().terms.lease;
    let mut renew = |lease, timeout| world.pool.renew(world.now, lease, timeout, None);
    for timeout in [Duration::ZERO, MAX_TIMEOUT * 2] {
        assert!(matches!(renew(lease, timeout), Err(NotRenewed::Timeout(_))));
    }
    let never = LeaseId::new(1).unwrap();
    assert_eq!(renew(never, HOUR), Err(NotRenewed::Unknown(never)));
}

#[test]
fn tokens_and_the_pool_know_the_end_of_a_lease_to_the_same_millisecond() {
    let mut world = World::new();
    world.now.wall += Duration::from_nanos(1_999_999);
    world.node("a", 2, 64);
    let grant = world.request(1, 1, SECOND).unwrap();
    let expires_at_ms = grant.to_wire().expires_at_ms.get();
    let since = grant.terms.expires_at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(since, Duration::from_millis(expires_at_ms));
}

fn ask(cores: u32, memory: u32, max_nodes: u32) -> Ask {
    Ask::new(cores, memory, HOUR, "somebody").unwrap().on_nodes(max_nodes).unwrap()
}

#[test]
fn a_request_is_met_from_one_node_if_one_has_room_else_from_few_or_not_at_all() {
    let mut world = World::new();
    for (name, cores) in [("a", 1), ("b", 4), ("c", 2)] {
        world.node(name, cores, 64);
    }
    let request = |world: &mut World, ask: &Ask| -> Option<Vec<(String, u32, u32)>> {
        let grants = world.pool.request(world.now, ask).ok()?;
        let part = |g: &Grant| (g.node.to_string(), g.terms.cores, g.terms.memory);
        Some(grants.iter().map(part).collect())
    };
    assert_eq!(request(&mut world, &ask(5, 10, 1)), None);
    assert_eq!(request(&mut world, &ask(7, 10, 2)), None, "all or nothing");
    assert_eq!(world.pool.leases(), []);
    let one = request(&mut world, &ask(2, 10, 3));
    assert_eq!(one, Some(vec![("b".into(), 2, 10)]), "where it fits whole");
    let parts = request(&mut world, &ask(3, 10, 3));
    assert_eq!(parts, Some(vec![("b".into(), 2, 7), ("c".into(), 1, 4)]));
    assert_eq!(world.pool.leases().len(), 3, "each is a lease");
    let changes = world.pool.take_changes();
    assert_eq!(changes.leases.len(), 3);
    let why = world.pool.request(world.now, &ask(3, 10, 2)).unwrap_err().to_string();
    assert!(why.starts_with("no 2 ready nodes together have 3 cores and 10 MB free"), "{why}");
    assert!(ask(1, 1, 1).on_nodes(0).is_err() && ask(1, 1, 1).on_nodes(MAX_NODES + 1).is_err());
}
