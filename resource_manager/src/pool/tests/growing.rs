//! Requests that grow leases: beside which they are met, and how they are refused.

use rfaas_protocol::constraints::{Constraint, Constraints, MAX_GROWN};

use super::*;

fn none() -> Constraints {
    Constraints::default()
}

/// `workers` workers of `cores` cores beside `leases`.
fn ask(leases: &[LeaseId], workers: u32, cores: u32, constraints: Constraints) -> Ask {
    let ask = Ask::new(cores, 2 * cores, HOUR, "somebody").unwrap();
    ask.gang(workers, constraints).unwrap().growing(leases.into()).unwrap()
}

impl World {
    /// A lease of `cores` cores on that node.
    fn lease_on(&mut self, node: &str, cores: u32) -> LeaseId {
        let nodes = Constraints { nodes: vec![node.into()], ..none() };
        let ask = Ask::new(cores, 1, HOUR, "somebody").unwrap().gang(1, nodes).unwrap();
        self.pool.request(self.now, &ask).unwrap()[0].terms.lease
    }

    fn grow(&mut self, ask: &Ask) -> Result<Vec<(String, u32, u32)>, Denied> {
        let grants = self.pool.request(self.now, ask)?;
        let of = |grant: &Grant| (grant.node.to_string(), grant.terms.cores, grant.terms.memory);
        Ok(grants.iter().map(of).collect())
    }
}

fn on(node: &str, cores: u32) -> (String, u32, u32) {
    (node.into(), cores, 2 * cores)
}

#[test]
fn leases_grow_on_the_nodes_that_hold_most_of_them_with_a_lease_on_each() {
    for policy in [Policy::FirstFit, Policy::BinPack, Policy::Compact] {
        let mut world = World::new();
        world.pool.set_policy(policy);
        for (node, cores) in [("a", 16), ("b", 4), ("c", 6)] {
            world.node(node, cores, 1024);
        }
        let leases = [world.lease_on("b", 1), world.lease_on("c", 1), world.lease_on("c", 2)];
        let before = world.pool.leases();
        let grown = world.grow(&ask(&leases, 8, 1, none())).unwrap();
        assert_eq!(grown, [on("c", 3), on("b", 3), on("a", 2)], "{policy}");
        assert_eq!(world.pool.leases()[..3], before, "they are as they were");
        // In place, as one lease.
        assert_eq!(world.grow(&ask(&[before[0].lease], 1, 1, none())).unwrap(), [on("a", 1)]);
        let more = world.lease_on("a", 1);
        assert_eq!(world.grow(&ask(&[more], 4, 2, none())).unwrap(), [on("a", 8)], "{policy}");
    }
}

#[test]
fn a_request_that_grows_gets_all_or_nothing_and_is_told_what_is_missing() {
    let mut world = World::new();
    world.node("a", 4, 1024);
    world.node("b", 2, 1024);
    let lease = world.lease_on("a", 1);
    let Err(Denied::NoRoom(why)) = world.grow(&ask(&[lease], 6, 1, none())) else { panic!() };
    assert!(why.starts_with("no ready nodes have 6 times 1 core and 2 MB free now"), "{why}");
    assert_eq!((world.free("a").cores, world.free("b").cores), (3, 2), "nothing is held");
    assert_eq!(world.grow(&ask(&[lease], 5, 1, none())).unwrap(), [on("a", 3), on("b", 2)]);
}

#[test]
fn what_is_grown_meets_constraints_with_what_there_is() {
    let grown = |constraints: Constraints, workers| {
        let mut world = World::new();
        world.node("a", 4, 1024);
        world.node("b", 8, 1024);
        let lease = world.lease_on("a", 2);
        world.grow(&ask(&[lease], workers, 1, constraints))
    };
    let together = Constraints { together: true, ..none() };
    assert_eq!(grown(together.clone(), 2).unwrap(), [on("a", 2)]);
    let Err(Denied::Unmet { constraints, .. }) = grown(together, 3) else { panic!() };
    assert_eq!(constraints, [Constraint::Together], "there is room on another node only");
    let apart = Constraints { apart: true, ..none() };
    assert_eq!(grown(apart.clone(), 1).unwrap(), [on("b", 1)]);
    let Err(Denied::Unmet { constraints, .. }) = grown(apart, 2) else { panic!() };
    assert_eq!(constraints, [Constraint::Apart]);
    let at_least = Constraints { at_least: 3, ..none() };
    assert_eq!(grown(at_least.clone(), 1).unwrap(), [on("a", 1)], "two are there");
    assert_eq!(grown(at_least, 4).unwrap(), [on("a", 1), on("b", 3)]);
    let free = Constraints { leave_free: 1, ..none() };
    assert_eq!(grown(free, 2).unwrap(), [on("a", 1), on("b", 1)]);
}

#[test]
fn leases_of_others_and_those_that_ended_or_never_were_count_for_nothing() {
    let mut world = World::new();
    world.node("a", 4, 1024);
    let link = world.node("b", 4, 1024);
    let lease = world.lease_on("b", 1);
    let grown_by = |world: &mut World, client: &str, leases: &[LeaseId]| {
        let ask = Ask::new(1, 2, HOUR, client).unwrap().growing(leases.into()).unwrap();
        let grants = world.pool.request(world.now, &ask).unwrap();
        world.pool.end_lease(world.now, grants[0].terms.lease, EndReason::Released, &mut world.out);
        grants[0].node.to_string()
    };
    let never = LeaseId::new(1).unwrap();
    assert_eq!(grown_by(&mut world, "stranger", &[lease]), "a", "as if it were not there");
    assert_eq!(grown_by(&mut world, "stranger", &[never]), "a");
    assert_eq!(grown_by(&mut world, "somebody", &[never, lease]), "b");
    // One that is ending is not there much longer.
    let nodes = Constraints { nodes: vec!["b".into()], ..none() };
    let asked = Ask::new(1, 1, HOUR, "somebody").unwrap().gang(1, nodes).unwrap();
    let ending = world.pool.request(world.now, &asked).unwrap().remove(0);
    world.claim(&ending, link);
    assert_eq!(grown_by(&mut world, "somebody", &[ending.terms.lease]), "b");
    world.pool.end_lease(world.now, ending.terms.lease, EndReason::Withdrawn, &mut world.out);
    assert_eq!(world.state(&ending), Some(LeaseState::Ending));
    assert_eq!(grown_by(&mut world, "somebody", &[ending.terms.lease]), "a");
    world.pool.end_lease(world.now, lease, EndReason::Released, &mut world.out);
    assert_eq!(grown_by(&mut world, "somebody", &[lease]), "a");
}

#[test]
fn cores_count_where_leases_grow_not_workers_that_would_have_them() {
    let mut world = World::new();
    for node in ["a", "b", "c"] {
        world.node(node, 16, 1024);
    }
    // More cores, of which workers of two cores would be as many.
    let leases = [world.lease_on("b", 2), world.lease_on("c", 3)];
    assert_eq!(world.grow(&ask(&leases, 1, 2, none())).unwrap(), [on("c", 2)]);
    // Three cores are one worker of two cores and a half: of five cores two more are missing.
    let mut world = World::new();
    world.node("a", 8, 1024);
    let lease = world.lease_on("a", 3);
    let at_least = |cores| Constraints { at_least: cores, ..none() };
    assert_eq!(world.grow(&ask(&[lease], 1, 2, at_least(5))).unwrap(), [on("a", 2)]);
}

#[test]
fn nothing_is_held_back_for_who_has_no_room_beside_what_it_grows() {
    let mut world = World::new();
    world.node("a", 4, 1024);
    world.node("b", 4, 1024);
    let (lease, other) = (world.lease_on("a", 2), world.lease_on("b", 3));
    let together = Constraints { together: true, ..none() };
    let Ok(Asked::Waits(id)) = world.pool.wait(world.now, &ask(&[lease], 3, 1, together), HOUR)
    else {
        panic!()
    };
    world.pass(SECOND);
    // It fits beside its lease never, and elsewhere it must not be.
    let small = world.request(2, 1, HOUR).unwrap();
    assert_eq!(&*small.node, "a");
    // Where its lease is there no more, it may be met; then nodes are held back.
    world.pool.end_lease(world.now, lease, EndReason::Released, &mut world.out);
    world.pass(SECOND);
    assert!(world.pool.answer(id).is_none());
    world.pool.end_lease(world.now, other, EndReason::Released, &mut world.out);
    world.pass(SECOND);
    assert!(matches!(world.pool.take_answer(id), Some(Ok(_))));
}

#[test]
fn nodes_are_held_back_that_have_room_beside_what_grows() {
    let mut world = World::new();
    world.node("a", 4, 1024);
    world.node("b", 4, 1024);
    let lease = world.lease_on("a", 2);
    let others = [world.lease_on("a", 1), world.lease_on("b", 3)];
    let Ok(Asked::Waits(id)) = world.pool.wait(world.now, &ask(&[lease], 5, 1, none()), HOUR)
    else {
        panic!()
    };
    world.pass(SECOND);
    // Two go beside the lease and three to b, so both are held back: a alone would not do.
    assert!(world.request(1, 1, HOUR).is_err());
    for other in others {
        world.pool.end_lease(world.now, other, EndReason::Released, &mut world.out);
    }
    world.pass(SECOND);
    let grants = world.pool.take_answer(id).unwrap().unwrap();
    let nodes: Vec<_> = grants.iter().map(|grant| (&*grant.node, grant.terms.cores)).collect();
    assert_eq!(nodes, [("a", 2), ("b", 3)]);
}

#[test]
fn a_node_that_leaves_is_not_grown_on() {
    let mut world = World::new();
    world.node("a", 4, 1024);
    world.node("b", 4, 1024);
    let lease = world.lease_on("a", 1);
    world.pool.set_leaving(world.now, "a", HOUR / 2, &mut world.out).unwrap();
    assert_eq!(world.grow(&ask(&[lease], 2, 1, none())).unwrap(), [on("b", 2)]);
}

#[test]
fn who_grows_may_wait_and_is_met_where_its_leases_are_then() {
    let mut world = World::new();
    world.node("a", 2, 1024);
    world.node("b", 2, 1024);
    let others = [world.lease_on("a", 2), world.lease_on("b", 1)];
    let lease = world.lease_on("b", 1);
    let ask = ask(&[lease], 2, 1, none());
    let Ok(Asked::Waits(id)) = world.pool.wait(world.now, &ask, HOUR) else { panic!() };
    world.pool.end_lease(world.now, others[1], EndReason::Released, &mut world.out);
    world.pass(SECOND);
    assert!(world.pool.take_answer(id).is_none(), "a core is free, and two are asked for");
    world.pool.end_lease(world.now, others[0], EndReason::Released, &mut world.out);
    world.pass(SECOND);
    let grants = world.pool.take_answer(id).unwrap().unwrap();
    let nodes: Vec<_> = grants.iter().map(|grant| &*grant.node).collect();
    assert_eq!(nodes, ["b", "a"]);
}

#[test]
fn leases_that_are_grown_count_as_those_that_they_are() {
    let mut world = World::new();
    let rules = FairUse { leases: Some(2), ..FairUse::default() };
    world.pool = Pool::new(world.now, NODE_RETURN).with_rules(world.now, rules);
    world.node("a", 4, 1024);
    world.node("b", 4, 1024);
    let lease = world.lease_on("a", 1);
    let denied = world.grow(&ask(&[lease], 4, 1, none())).unwrap_err();
    assert!(matches!(denied, Denied::Limit(Limit::Held { key: "leases", .. })), "on two nodes");
    assert_eq!(world.grow(&ask(&[lease], 3, 1, none())).unwrap(), [on("a", 3)]);
}

#[test]
fn what_cannot_grow_is_refused_by_its_name() {
    let plain = || Ask::new(1, 1, HOUR, "somebody").unwrap();
    let lease = LeaseId::new(7).unwrap();
    let near = Constraints { near: Some("a".into()), ..none() };
    let nodes = Constraints { nodes: vec!["a".into()], ..none() };
    for (ask, leases, why) in [
        (plain(), vec![], "grows names no lease"),
        (plain(), vec![lease; MAX_GROWN + 1], "grows names 33 leases; at most 32"),
        (plain().on_nodes(2).unwrap(), vec![lease], "max_nodes divides one lease"),
        (plain().gang(1, near).unwrap(), vec![lease], "it goes with neither near nor nodes"),
        (plain().gang(1, nodes).unwrap(), vec![lease], "it goes with neither near nor nodes"),
    ] {
        let refused = ask.growing(leases).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn leases_of_an_earlier_run_grow_too() {
    let mut world = World::new();
    world.node("a", 4, 1024);
    world.node("b", 4, 1024);
    let lease = world.lease_on("b", 1);
    let changes = world.pool.take_changes();
    let snapshot = Snapshot {
        nodes: changes.nodes.into_values().flatten().collect(),
        leases: changes.leases.into_values().flatten().collect(),
        bills: Vec::new(),
        policy: None,
        first_id: world.pool.first_id(),
        last_id: Some(lease),
    };
    world.pool = Pool::restore(world.now, NODE_RETURN, snapshot);
    world.connect("a");
    world.connect("b");
    assert_eq!(world.grow(&ask(&[lease], 2, 1, none())).unwrap(), [on("b", 2)]);
}
