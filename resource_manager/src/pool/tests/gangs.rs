//! Gangs and constraints: what is granted together, and how it is refused.

use rfaas_protocol::constraints::{Constraint, Constraints};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn none() -> Constraints {
    Constraints::default()
}

fn ask(leases: u32, cores: u32, constraints: Constraints) -> Ask {
    Ask::new(cores, 1, HOUR, "somebody").unwrap().gang(leases, constraints).unwrap()
}

impl World {
    fn gang(&mut self, ask: &Ask) -> Result<Vec<String>, Denied> {
        let grants = self.pool.request(self.now, ask)?;
        Ok(grants.iter().map(|grant| grant.node.to_string()).collect())
    }

    fn labelled(&mut self, name: &str, cores: u32, labels: &[&str]) {
        let labels: Vec<String> = labels.iter().map(|label| (*label).into()).collect();
        let capacity = Capacity { cores, memory: 1024 };
        let spec = NodeSpec::new(name, "10.0.0.1", 10_005, capacity).unwrap();
        let spec = spec.with_labels(&labels).unwrap();
        self.pool.add_node(self.now, spec, &mut self.out).unwrap();
        self.connect(name);
    }
}

fn unmet(denied: Result<Vec<String>, Denied>) -> (Vec<Constraint>, String) {
    match denied {
        Err(Denied::Unmet { constraints, why }) => (constraints, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_gang_gets_all_its_leases_or_none() {
    let mut world = World::new();
    world.node("a", 4, 1024);
    world.node("b", 2, 1024);
    assert_eq!(world.gang(&ask(3, 2, none())).unwrap(), ["a", "a", "b"]);
    assert!(matches!(world.gang(&ask(1, 1, none())), Err(Denied::NoRoom(_))));
    let mut world = World::new();
    world.node("a", 4, 1024);
    let Err(Denied::NoRoom(why)) = world.gang(&ask(3, 2, none())) else { panic!() };
    assert!(why.starts_with("no ready nodes have 3 times 2 cores and 1 MB"), "{why}");
    assert_eq!((world.free("a").cores, world.pool.leases().len()), (4, 0), "nothing is held");
}

#[test]
fn a_constraint_holds_or_is_refused_by_its_name() {
    let mut world = World::new();
    world.labelled("a", 4, &["gpu"]);
    world.labelled("b", 8, &[]);
    let with = |world: &mut World, leases, cores, constraints: Constraints| {
        let granted = world.gang(&ask(leases, cores, constraints));
        for lease in world.pool.leases() {
            world.pool.end_lease(world.now, lease.lease, EndReason::Released, &mut world.out);
        }
        granted
    };
    let has = |label: &str| Constraints { has: vec![label.into()], ..none() };
    let near = |node: &str| Constraints { near: Some(node.into()), ..none() };
    let nodes = |nodes: &[&str]| Constraints {
        nodes: nodes.iter().map(|node| (*node).into()).collect(),
        ..none()
    };
    let (together, apart) =
        (Constraints { together: true, ..none() }, Constraints { apart: true, ..none() });
    for (leases, cores, constraints, expected) in [
        (2, 2, has("gpu"), vec!["a", "a"]),
        (1, 2, near("b"), vec!["b"]),
        (3, 2, together.clone(), vec!["b"; 3]),
        (2, 1, apart.clone(), vec!["a", "b"]),
        (2, 2, nodes(&["b", "a"]), vec!["b", "a"]),
        (1, 1, Constraints { leave_free: 4, ..none() }, vec!["b"]),
        (3, 2, Constraints { at_least: 5, ..none() }, vec!["b"; 3]),
    ] {
        assert_eq!(
            with(&mut world, leases, cores, constraints.clone()).unwrap(),
            expected,
            "{constraints:?}"
        );
    }
    for (leases, cores, constraints, blamed, words) in [
        (3, 2, has("gpu"), Constraint::Has, "constraint has cannot hold: without it there is room"),
        (1, 1, has("fpga"), Constraint::Has, "no node has label \"fpga\""),
        (1, 5, near("a"), Constraint::Near, "constraint near cannot hold"),
        (1, 1, near("c"), Constraint::Near, "no node is named \"c\""),
        (5, 2, together, Constraint::Together, "constraint together cannot hold"),
        (3, 1, apart, Constraint::Apart, "constraint apart cannot hold"),
        (1, 8, nodes(&["a"]), Constraint::Nodes, "constraint nodes cannot hold"),
        (1, 8, Constraints { leave_free: 1, ..none() }, Constraint::LeaveFree, "leave_free"),
        (5, 2, Constraints { at_least: 8, ..none() }, Constraint::AtLeast, "at_least"),
    ] {
        let (constraints, why) = unmet(with(&mut world, leases, cores, constraints));
        assert_eq!(constraints, [blamed], "{why}");
        assert!(why.contains(words), "{why}");
        assert!(world.pool.leases().is_empty(), "nothing is held");
    }
}

/// A request of a peer that waits for a while.
fn waits(world: &mut World, peer: u32, ask: &Ask, wait: Duration) -> Result<WaitId, Denied> {
    match world.pool.wait(world.now, &ask.clone().by(Peer::User(peer)), wait) {
        Ok(Asked::Waits(id)) => Ok(id),
        Ok(Asked::Granted(grants)) => panic!("{grants:?}"),
        Err(denied) => Err(denied),
    }
}

#[test]
fn nodes_that_are_held_back_stay_so_when_nodes_change() {
    let mut world = World::new();
    world.node("a", 2, 1024);
    world.node("b", 2, 1024);
    let core = |world: &mut World| world.request(1, 1, HOUR);
    let leases = [(); 4].map(|()| core(&mut world).unwrap().terms.lease);
    let id = waits(&mut world, 1, &ask(1, 2, none()), HOUR).unwrap();
    world.pool.end_lease(world.now, leases[0], EndReason::Released, &mut world.out);
    world.pass(SECOND);
    // Others are tried before it now, but what has become free there is not given away.
    world.pool.set_leaving(world.now, "a", 100 * HOUR, &mut world.out).unwrap();
    world.pass(SECOND);
    assert!(matches!(core(&mut world), Err(Denied::NoRoom(_))));
    world.pool.end_lease(world.now, leases[1], EndReason::Released, &mut world.out);
    world.pass(SECOND);
    let grants = world.pool.take_answer(id).unwrap().unwrap();
    assert_eq!(&*grants[0].node, "a");
}

#[test]
fn who_waits_is_not_starved_by_smaller_ones_that_come_later() {
    let mut world = World::new();
    world.node("a", 4, 1024);
    world.node("b", 2, 1024);
    let small = ask(1, 1, none());
    let held = world.pool.request(world.now, &small).unwrap().remove(0);
    assert_eq!(&*held.node, "a");
    let large = waits(&mut world, 1, &ask(1, 4, none()), HOUR).unwrap();
    world.pass(Duration::ZERO);
    assert_eq!(world.gang(&ask(2, 1, none())).unwrap(), ["b", "b"], "a is held back");
    assert!(matches!(world.gang(&small), Err(Denied::NoRoom(_))));
    let later = waits(&mut world, 2, &small, HOUR).unwrap();
    world.pass(Duration::from_secs(1));
    assert_eq!(world.pool.answered(), []);
    world.pool.end_lease(world.now, held.terms.lease, EndReason::Released, &mut world.out);
    world.pass(Duration::ZERO);
    assert_eq!(world.pool.answered(), [large]);
    let grants = world.pool.take_answer(large).unwrap().unwrap();
    assert_eq!((&*grants[0].node, grants[0].terms.cores), ("a", 4));
    assert_eq!(world.pool.count_waiting(), 1);
    let mut out = Vec::new();
    world.pool.cancel_wait(world.now, later, &mut out);
    assert_eq!(world.pool.count_waiting(), 0);
    world.pass(Duration::ZERO);
    assert_eq!(world.pool.answered(), []);
}

#[test]
fn a_wait_ends_with_its_time_and_with_its_client() {
    let mut world = World::new();
    world.node("a", 1, 1024);
    let one = ask(1, 1, none());
    let held = world.pool.request(world.now, &one).unwrap().remove(0);
    let short = waits(&mut world, 1, &one, Duration::from_secs(2)).unwrap();
    world.pass(Duration::from_secs(1));
    assert_eq!(world.pool.answered(), []);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.pool.answered(), [short]);
    let Some(Err(Denied::NoRoom(why))) = world.pool.take_answer(short) else { panic!() };
    assert!(why.starts_with("after 2s of waiting: no ready node has 1 core"), "{why}");
    // What was granted to who has gone meanwhile ends.
    let gone = waits(&mut world, 1, &one, HOUR).unwrap();
    world.pool.end_lease(world.now, held.terms.lease, EndReason::Released, &mut world.out);
    world.pass(Duration::ZERO);
    assert_eq!(world.pool.leases().len(), 1);
    world.pool.cancel_wait(world.now, gone, &mut world.out);
    assert_eq!((world.pool.leases().len(), world.free("a").cores), (0, 1));
}

#[test]
fn a_node_that_leaves_late_enough_is_held_back_and_no_other() {
    for (leaves_after, held_back) in [(2 * HOUR, true), (2 * HOUR - SECOND, false)] {
        let mut world = World::new();
        world.node("a", 4, 1024);
        world.pool.set_leaving(world.now, "a", leaves_after, &mut world.out).unwrap();
        let small = ask(1, 1, none());
        world.pool.request(world.now, &small).unwrap();
        waits(&mut world, 1, &ask(1, 4, none()), HOUR).unwrap(); // for an hour, at the end of an hour
        world.pass(Duration::ZERO);
        assert_eq!(world.gang(&small).is_err(), held_back, "it leaves after {leaves_after:?}");
    }
}

#[test]
fn who_finds_room_in_the_last_moment_gets_it() {
    let mut world = World::new();
    world.node("a", 1, 1024);
    let one = ask(1, 1, none());
    let held = world.pool.request(world.now, &one).unwrap().remove(0);
    let last = waits(&mut world, 1, &one, 2 * SECOND).unwrap();
    world.pass(SECOND);
    world.pool.end_lease(world.now, held.terms.lease, EndReason::Released, &mut world.out);
    world.pass(SECOND);
    assert_eq!(world.pool.answered(), [last]);
    assert!(world.pool.take_answer(last).unwrap().is_ok());
}

#[test]
fn nothing_is_held_back_for_who_has_gone() {
    let mut world = World::new();
    world.node("a", 4, 1024);
    let small = ask(1, 1, none());
    world.pool.request(world.now, &small).unwrap();
    let large = waits(&mut world, 1, &ask(1, 4, none()), HOUR).unwrap();
    world.pass(Duration::ZERO);
    assert!(world.gang(&small).is_err());
    world.pool.cancel_wait(world.now, large, &mut Vec::new());
    assert!(world.gang(&small).is_ok());
    let large = waits(&mut world, 1, &ask(1, 4, none()), SECOND).unwrap();
    world.pass(Duration::ZERO);
    let other = waits(&mut world, 1, &ask(1, 2, none()), HOUR).unwrap();
    world.pass(Duration::ZERO);
    world.pass(SECOND);
    assert_eq!(world.pool.answered(), [large, other], "what was held back goes to the next");
}

#[test]
fn whom_a_limit_keeps_from_its_leases_waits_and_keeps_nobody_else() {
    let mut world = World::new();
    let rules = FairUse { unclaimed: Some(2), ..FairUse::default() };
    world.pool = Pool::new(world.now, NODE_RETURN).with_rules(world.now, rules);
    let link = world.node("a", 6, 1024);
    let two = |peer| ask(2, 1, none()).by(Peer::User(peer));
    let large = Ask::new(6, 1, HOUR, "large").unwrap().by(Peer::User(9));
    let all = world.pool.request(world.now, &large).unwrap().remove(0);
    let mine = [(); 3].map(|()| waits(&mut world, 1, &two(1), HOUR).unwrap());
    let last = waits(&mut world, 1, &two(1), 10 * SECOND).unwrap();
    world.pass(SECOND);
    assert_eq!(world.pool.answered(), []);
    world.pool.end_lease(world.now, all.terms.lease, EndReason::Released, &mut world.out);
    world.pass(Duration::ZERO);
    assert_eq!(world.pool.answered(), [mine[0]]);
    let first = world.pool.take_answer(mine[0]).unwrap().unwrap();
    assert_eq!(world.pool.request(world.now, &two(2)).unwrap().len(), 2, "nothing is held back");
    first.iter().for_each(|grant| world.claim(grant, link));
    world.pass(Duration::ZERO);
    assert_eq!(world.pool.answered(), [mine[1]], "a claim has the next one tried");
    world.pass(10 * SECOND);
    assert_eq!(world.pool.answered(), [last]);
    let refused = world.pool.take_answer(last).unwrap();
    assert!(matches!(refused, Err(Denied::Limit(Limit::Unclaimed { .. }))), "{refused:?}");
    let second = world.pool.take_answer(mine[1]).unwrap().unwrap();
    second.iter().for_each(|grant| world.claim(grant, link));
    world.pool.end_lease(world.now, first[0].terms.lease, EndReason::Released, &mut world.out);
    world.report(&first[0], link, EndReason::Released, 1);
    world.pool.end_lease(world.now, first[1].terms.lease, EndReason::Released, &mut world.out);
    world.report(&first[1], link, EndReason::Released, 1);
    world.pass(Duration::ZERO);
    assert_eq!(world.pool.answered(), [mine[2]], "and so has an end");
}

#[test]
fn so_many_wait_in_all_and_of_one_peer() {
    let mut world = World::new();
    world.node("a", 1, 1024);
    let one = ask(1, 1, none());
    world.pool.request(world.now, &one).unwrap();
    for of_one in 0..MOST_WAITING_OF_ONE {
        waits(&mut world, 1, &one, HOUR).unwrap_or_else(|denied| panic!("{of_one}: {denied}"));
    }
    let denied = waits(&mut world, 1, &one, HOUR).unwrap_err();
    assert_eq!(denied.to_string(), "user 1 has 16 requests that wait for room: ask again later");
    for more in MOST_WAITING_OF_ONE..MOST_WAITING {
        waits(&mut world, u32::try_from(more).unwrap(), &one, HOUR).unwrap();
    }
    let denied = waits(&mut world, 2, &one, HOUR).unwrap_err();
    assert_eq!(denied.to_string(), "there are 256 requests that wait for room: ask again later");
    world.pass(HOUR);
    assert_eq!((world.pool.answered().len(), world.pool.count_waiting()), (MOST_WAITING, 0));
}

#[test]
fn limits_count_all_leases_of_a_gang() {
    let mut world = World::new();
    let rules = FairUse { cores: Some(4), ..FairUse::default() };
    world.pool = Pool::new(world.now, NODE_RETURN).with_rules(world.now, rules);
    world.node("a", 64, 1024);
    assert!(matches!(world.gang(&ask(3, 2, none())), Err(Denied::Limit(_))));
    assert_eq!(world.gang(&ask(2, 2, none())).unwrap().len(), 2);
}

#[test]
fn what_cannot_be_a_gang_is_refused() {
    let ask = |max_nodes| Ask::new(2, 1, HOUR, "x").unwrap().on_nodes(max_nodes).unwrap();
    assert!(ask(1).gang(0, none()).unwrap_err().starts_with("gang is 0"));
    assert!(ask(1).gang(33, none()).unwrap_err().starts_with("gang is 33"));
    assert!(ask(2).gang(2, none()).unwrap_err().starts_with("max_nodes divides"));
    let ask = Ask::new(2, u32::MAX, HOUR, "x").unwrap();
    assert!(ask.gang(2, none()).unwrap_err().contains("more cores or memory"));
}

#[test]
fn a_lease_with_constraints_is_not_exchanged_for_one_that_may_not_meet_them() {
    let mut world = World::new();
    world.labelled("a", 4, &["gpu"]);
    world.labelled("b", 4, &[]);
    let ask = ask(1, 1, Constraints { has: vec!["gpu".into()], ..none() });
    let grant = world.pool.request(world.now, &ask).unwrap().remove(0);
    let id = grant.terms.lease;
    let origin = Peer::User(1);
    let replaced = world.pool.replace(world.now, id, Unusable::Refused, origin, &mut world.out);
    assert_eq!(replaced, Err(NotReplaced::Constrained(id)));
    assert_eq!(world.state(&grant), Some(LeaseState::Granted));
}
