//! Facts about nodes: how they come, change and leave.

use std::collections::BTreeMap;

use super::*;

#[test]
fn a_node_may_register_before_it_is_added_after_it_was_and_again() {
    let mut world = World::new();
    let refused = world.pool.node_connected(world.now, "a", run(1), LinkId(9), &mut world.out);
    assert!(refused.unwrap_err().contains("POST /add?node=a"), "stuck");
    let first = world.node("a", 1, 64);
    assert!(world.pool.node_connected(world.now, "a", run(1), LinkId(9), &mut world.out).is_err());
    world.disconnect(first);
    world.connect("a");
    assert!(world.request(1, 64, HOUR).is_ok());
    world.disconnect(first); // news of a connection that is long gone
    assert_eq!(world.pool.node("a").unwrap().state, NodeState::Ready);
}

#[test]
fn a_removed_node_drains_and_is_forgotten_with_its_last_lease() {
    let mut world = World::new();
    let link = world.node("a", 3, 64);
    let active = world.active(1, link);
    let unclaimed = world.request(1, 1, HOUR).unwrap();
    let grace = 30 * SECOND;
    let removal = world.pool.remove_node(world.now, "a", grace, &mut world.out);
    assert_eq!(removal, RemovedState::Draining, "not implemented");
    let told = end_lease(link, &active, EndReason::Withdrawn, grace);
    assert_eq!(world.actions(), [Action::NodesChanged, told]);
    assert_eq!(world.billed(&unclaimed), Some((EndReason::Withdrawn, 0)));
    assert!(world.request(1, 1, HOUR).is_err(), "no new leases");
    let again = world.pool.remove_node(world.now, "a", grace, &mut world.out);
    assert_eq!(again, RemovedState::Draining);
    assert_eq!(world.actions(), [Action::NodesChanged], "the same again tells the node nothing");
    world.pool.remove_node(world.now, "a", SECOND, &mut world.out);
    let sooner = end_lease(link, &active, EndReason::Withdrawn, SECOND);
    assert_eq!(world.actions(), [Action::NodesChanged, sooner]);
    world.report(&active, link, EndReason::Withdrawn, 5);
    assert!(world.pool.node("a").is_none());
    let closed = Action::Close { link, reason: "node a was removed".into() };
    assert_eq!(world.actions(), [acknowledge(link, &active), closed]);
    let gone = world.pool.remove_node(world.now, "a", grace, &mut world.out);
    assert_eq!(gone, RemovedState::Unknown);
    assert_eq!(world.actions(), [], "unknown: nothing changes");
}

#[test]
fn a_node_that_ignores_its_withdrawal_is_forgotten_after_grace_and_margin() {
    let mut world = World::new();
    let link = world.node("a", 1, 64);
    let grant = world.active(1, link);
    world.pool.remove_node(world.now, "a", 10 * SECOND, &mut world.out);
    world.pass(10 * SECOND + END_MARGIN);
    assert!(world.pool.node("a").is_none());
    assert!(matches!(world.billed(&grant), Some((EndReason::Withdrawn, _))));
}

#[test]
fn a_node_that_is_not_connected_is_removed_at_once() {
    let mut world = World::new();
    let link = world.node("a", 1, 64);
    let grant = world.active(1, link);
    world.disconnect(link);
    let removal = world.pool.remove_node(world.now, "a", HOUR, &mut world.out);
    assert_eq!(removal, RemovedState::Removed);
    assert!(matches!(world.billed(&grant), Some((EndReason::NodeLost, _))));
    assert!(world.pool.nodes().is_empty());
}

#[test]
fn a_draining_node_that_is_added_again_takes_leases_again() {
    let mut world = World::new();
    let link = world.node("a", 2, 64);
    world.active(1, link);
    world.pool.remove_node(world.now, "a", HOUR, &mut world.out);
    world.add("a", 2, 64).unwrap();
    assert_eq!(world.pool.node("a").unwrap().state, NodeState::Ready);
    assert!(world.request(1, 1, HOUR).is_ok());
}

#[test]
fn adding_a_node_again_changes_it_unless_more_is_leased_than_would_be_left() {
    let mut world = World::new();
    let link = world.node("a", 4, 64);
    world.active(2, link);
    world.add("a", 4, 64).unwrap();
    assert_eq!(world.actions(), [], "the same again");
    world.add("a", 2, 128).unwrap();
    let capacity = Capacity { cores: 2, memory: 128 };
    let told = Action::TellNode { link, capacity, leaves_at: None };
    assert_eq!(world.actions(), [told, Action::NodesChanged]);
    assert_eq!(world.free("a"), Capacity { cores: 0, memory: 127 });
    let conflict = world.add("a", 1, 128).unwrap_err().to_string();
    assert!(conflict.contains("2 cores") && conflict.contains("/remove"), "{conflict}");
    assert_eq!(world.actions(), [], "refused: nothing changes");
    assert_eq!(world.free("a"), Capacity { cores: 0, memory: 127 });
}

#[test]
fn a_node_is_told_when_it_leaves_also_if_it_connects_later_and_when_it_stays_after_all() {
    let mut world = World::new();
    let link = world.node("a", 4, 64);
    world.actions();
    let capacity = Capacity { cores: 4, memory: 64 };
    let told = |leaves_at| Action::TellNode { link, capacity, leaves_at };
    assert_eq!(world.pool.tell_node(link), Some(told(None)));
    let leaves_at = Some(world.now.monotonic + HOUR);
    world.pool.set_leaving(world.now, "a", HOUR, &mut world.out).unwrap();
    assert_eq!(world.actions(), [told(leaves_at)]);
    assert_eq!(world.pool.tell_node(link), Some(told(leaves_at)));
    // One that takes its place stays.
    world.pool.node_disconnected(world.now, link, &mut world.out);
    assert_eq!(world.pool.tell_node(link), None);
    world.pool.node_connected(world.now, "a", run(7), link, &mut world.out).unwrap();
    assert_eq!(world.pool.tell_node(link), Some(told(None)));
    world.pool.set_leaving(world.now, "a", HOUR, &mut world.out).unwrap();
    world.actions();
    world.add("a", 4, 64).unwrap();
    assert!(world.actions().contains(&told(None)), "it stays");
}

#[test]
fn a_host_name_is_looked_up_before_the_node_takes_leases_and_again_if_not_found() {
    let mut world = World::new();
    let capacity = Capacity { cores: 1, memory: 64 };
    let spec = NodeSpec::new("a", "node.example", 10_005, capacity).unwrap();
    world.pool.add_node(world.now, spec, &mut world.out).unwrap();
    let link = LinkId(1);
    let listens = Run { address: ([10, 0, 0, 9], 10_005).into(), ..run(1) };
    world.pool.node_connected(world.now, "a", listens, link, &mut world.out).unwrap();
    let look_up = Action::Resolve { node: "a".into(), host: "node.example".into() };
    assert_eq!(world.actions(), [Action::NodesChanged, look_up.clone()]);
    assert_eq!(world.pool.node("a").unwrap().state, NodeState::Registered);
    world.pool.resolved(world.now, "a", "node.example", None);
    world.pass(RESOLVE_AGAIN);
    assert_eq!(world.actions(), [look_up]);
    world.pool.resolved(world.now, "a", "old.example", Some([10, 0, 0, 8].into()));
    assert_eq!(world.pool.node("a").unwrap().state, NodeState::Registered, "not its name");
    world.pool.resolved(world.now, "a", "node.example", Some([10, 0, 0, 8].into()));
    let node = world.pool.node("a").unwrap();
    assert_eq!(node.state, NodeState::Registered, "it listens elsewhere");
    let found = [[10, 0, 0, 8], [10, 0, 0, 9]].map(Into::into);
    world.pool.resolved(world.now, "a", "node.example", found);
    let grant = world.request(1, 1, HOUR).unwrap();
    assert_eq!(grant.manager, ([10, 0, 0, 9], 10_005).into());
    world.disconnect(link);
    assert!(world.pool.next_deadline().is_some_and(|at| at <= world.now.monotonic + NODE_RETURN));
}

#[test]
fn a_node_that_comes_back_in_time_keeps_the_leases_that_it_reports() {
    let mut world = World::new();
    let link = world.node("a", 3, 64);
    let kept = world.active(1, link);
    let forgotten = world.active(1, link);
    let unclaimed = world.request(1, 1, HOUR).unwrap();
    world.disconnect(link);
    world.pass(NODE_RETURN / 2);
    let link = world.connect("a");
    world.claim(&kept, link);
    world.pass(RECLAIM);
    assert_eq!(world.state(&kept), Some(LeaseState::Active));
    assert_eq!(world.state(&unclaimed), Some(LeaseState::Granted));
    assert!(matches!(world.billed(&forgotten), Some((EndReason::NodeLost, _))));
    world.pass(NODE_RETURN);
    assert_eq!(world.state(&kept), Some(LeaseState::Active));
    assert_eq!(world.free("a").cores, 1);
}

#[test]
fn a_lost_nodes_leases_are_billed_until_it_was_last_seen() {
    let mut world = World::new();
    let link = world.node("a", 2, 64);
    let claimed = world.active(1, link);
    let unclaimed = world.request(1, 1, HOUR).unwrap();
    world.pass(3 * SECOND);
    world.disconnect(link);
    assert_eq!(world.pool.node("a").unwrap().state, NodeState::Lost);
    assert!(world.request(1, 1, HOUR).is_err());
    world.pass(NODE_RETURN);
    assert_eq!(world.billed(&claimed), Some((EndReason::NodeLost, 3_000_000_000)));
    assert_eq!(world.billed(&unclaimed), Some((EndReason::NodeLost, 0)));
    assert_eq!(world.free("a").cores, 2);
}

#[test]
fn what_a_lost_node_said_last_is_billed() {
    let mut world = World::new();
    let link = world.node("a", 2, 64);
    let grant = world.active(1, link);
    let unclaimed = world.request(1, 1, HOUR).unwrap();
    let used = |allocated_ns: u64, invocations: u64| Bill {
        allocated_ns: allocated_ns.into(),
        invocations: invocations.into(),
        ..Bill::default()
    };
    world.pool.used(link, grant.terms.lease, used(1_000, 1));
    world.pool.used(link, grant.terms.lease, used(2_000, 5));
    world.pool.used(link, grant.terms.lease, used(1_000, 1)); // late
    world.pool.used(LinkId(99), grant.terms.lease, used(9_000, 9)); // of nobody
    world.pool.used(link, unclaimed.terms.lease, used(9_000, 9)); // of nothing
    world.pass(3 * SECOND);
    world.disconnect(link);
    world.pass(NODE_RETURN);
    let bill = world.bill(&grant).unwrap();
    assert_eq!((bill.bill, bill.reported), (used(2_000, 5), false));
    assert_eq!(world.billed(&unclaimed), Some((EndReason::NodeLost, 0)));
}

#[test]
fn a_node_that_registers_as_another_instance_has_lost_its_leases() {
    let mut world = World::new();
    let link = world.node("a", 3, 64);
    let active = world.active(1, link);
    let unclaimed = world.request(1, 1, HOUR).unwrap();
    world.disconnect(link);
    world.pool.node_connected(world.now, "a", run(2), LinkId(9), &mut world.out).unwrap();
    assert!(matches!(world.billed(&active), Some((EndReason::NodeLost, _))), "at once");
    assert!(matches!(world.billed(&unclaimed), Some((EndReason::NodeLost, 0))));
    assert_eq!(world.free("a").cores, 3);
    let grant = world.request(1, 1, HOUR).unwrap();
    assert_eq!(
        (active.terms.instance, grant.terms.instance),
        (NonZeroU64::new(1), NonZeroU64::new(2))
    );
    assert_eq!(grant.to_wire().instance.get(), 2);
}

#[test]
fn a_withdrawn_node_whose_executor_manager_was_started_anew_is_gone() {
    let mut world = World::new();
    let link = world.node("a", 1, 64);
    world.active(1, link);
    world.disconnect(link);
    // Withdrawn while it is away, leases would end at once: as if by another run of this program.
    let slot = world.pool.held.nodes.find("a").unwrap();
    world.pool.held.nodes.change(slot, |node| node.draining = true);
    let refused = world.pool.node_connected(world.now, "a", run(2), LinkId(9), &mut world.out);
    assert!(refused.unwrap_err().contains("POST /add?node=a"));
    assert!(world.pool.nodes().is_empty());
}

#[test]
fn a_node_whose_executor_manager_stops_takes_no_leases_until_it_is_back() {
    let mut world = World::new();
    let link = world.node("a", 3, 64);
    let active = world.active(1, link);
    let unclaimed = world.request(1, 1, HOUR).unwrap();
    world.pool.take_changes();
    for _ in 0..2 {
        world.pool.draining(world.now, link, SECOND, &mut world.out);
        assert_eq!(world.actions(), [], "it tells its clients by itself");
    }
    assert_eq!(world.pool.node("a").unwrap().state, NodeState::Draining);
    assert!(world.request(1, 1, HOUR).is_err());
    assert_eq!(world.billed(&unclaimed), Some((EndReason::Shutdown, 0)), "it refuses claims");
    assert_eq!(world.state(&active), Some(LeaseState::Active));
    let ending = NotRenewed::Ending { lease: active.terms.lease, reason: EndReason::Shutdown };
    assert_eq!(world.pool.renew(world.now, active.terms.lease, HOUR, None), Err(ending));
    assert_eq!(
        world.pool.take_changes().nodes,
        BTreeMap::new(),
        "the operator did not withdraw it"
    );
    world.report(&active, link, EndReason::Shutdown, 1);
    world.disconnect(link);
    assert_eq!(world.pool.node("a").unwrap().state, NodeState::Registered, "it has ended in order");
    world.pool.node_connected(world.now, "a", run(2), LinkId(9), &mut world.out).unwrap();
    assert!(world.request(3, 1, HOUR).is_ok());
}

#[test]
fn nodes_are_filled_in_the_order_in_which_they_were_added() {
    let mut world = World::new();
    for name in ["b", "a", "c"] {
        world.node(name, 1, 64);
    }
    let mut order = || world.request(1, 1, HOUR).map(|grant| grant.node.to_string());
    assert_eq!([order(), order(), order()], ["b", "a", "c"].map(|name| Ok(name.to_owned())));
    let names: Vec<_> = world.pool.nodes().iter().map(|n| n.spec.name().to_string()).collect();
    assert_eq!(names, ["a", "b", "c"], "people see them by name");
}

#[test]
fn nonsense_is_refused_by_field() {
    let spec = |name: &str, address, port, cores, memory| {
        NodeSpec::new(name, address, port, Capacity { cores, memory }).unwrap_err()
    };
    assert!(spec("", "10.0.0.1", 1, 1, 1).starts_with("node"));
    assert!(spec(&"x".repeat(129), "10.0.0.1", 1, 1, 1).contains("at most 128"));
    assert!(spec("a\nb", "10.0.0.1", 1, 1, 1).starts_with("node"));
    assert!(spec("a", "", 1, 1, 1).starts_with("address"));
    assert!(spec("a", "0.0.0.0", 1, 1, 1).starts_with("address"));
    assert!(spec("a", "::", 1, 1, 1).starts_with("address"));
    assert!(spec("a", "10.0.0.1", 0, 1, 1).starts_with("port"));
    assert!(spec("a", "10.0.0.1", 1, 0, 1).starts_with("cores"));
    assert!(spec("a", "10.0.0.1", 1, 70_000, 1).starts_with("cores"));
    assert!(spec("a", "10.0.0.1", 1, 1, 0).starts_with("memory"));
    let ask =
        |cores, memory, timeout, client| Ask::new(cores, memory, timeout, client).unwrap_err();
    assert!(ask(0, 1, HOUR, "c").starts_with("cores"));
    assert!(ask(1, 0, HOUR, "c").starts_with("memory"));
    assert!(ask(1, 1, Duration::ZERO, "c").starts_with("timeout_ms"));
    assert!(ask(1, 1, MAX_TIMEOUT + SECOND, "c").starts_with("timeout_ms"));
    assert!(ask(1, 1, HOUR, "").starts_with("client"));
    assert!(ask(1, 1, HOUR, &"x".repeat(65)).contains("at most 64"));
}
