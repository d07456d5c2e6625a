//! Facts about what outlives the program, and what follows when node and program do not agree.

use std::collections::BTreeMap;

use super::*;

/// What a store keeps.
#[derive(Default)]
pub(super) struct Kept {
    nodes: BTreeMap<Arc<str>, NodeRecord>,
    leases: BTreeMap<LeaseId, LeaseRecord>,
    bills: BTreeMap<LeaseId, Billed>,
    policy: Option<ChosenPolicy>,
}

impl Kept {
    fn keep(&mut self, changes: Changes) {
        for (name, node) in changes.nodes {
            match node {
                Some(node) => drop(self.nodes.insert(name, node)),
                None => drop(self.nodes.remove(&name)),
            }
        }
        for (id, lease) in changes.leases {
            match lease {
                Some(lease) => drop(self.leases.insert(id, lease)),
                None => drop(self.leases.remove(&id)),
            }
        }
        self.bills.extend(changes.bills.into_iter().map(|bill| (bill.lease, bill)));
        self.policy = changes.policy.or(self.policy);
    }
}

/// The same cluster, with a resource manager that was started again. Everything is lost with the
/// connections but what was kept.
pub(super) fn restart(world: &mut World, kept: &mut Kept) {
    kept.keep(world.pool.take_changes());
    let ids = kept.leases.keys().chain(kept.bills.keys());
    let snapshot = Snapshot {
        nodes: kept.nodes.values().cloned().collect(),
        leases: kept.leases.values().cloned().collect(),
        bills: kept.bills.values().filter(|bill| !bill.reported).cloned().collect(),
        policy: kept.policy,
        first_id: world.pool.first_id(),
        last_id: ids.max().copied(),
    };
    world.pool = Pool::restore(world.now, NODE_RETURN, snapshot);
    world.out.clear();
    assert!(world.pool.take_changes().is_empty(), "the store knows all of it");
}

#[test]
fn a_policy_that_was_chosen_counts_until_the_settings_name_another() {
    let mut world = World::new();
    world.pool.use_settings(Policy::Compact);
    world.pool.set_policy(Policy::Spread);
    let changes = world.pool.take_changes();
    let chosen = ChosenPolicy { chosen: Policy::Spread, settings: Policy::Compact };
    assert_eq!((changes.policy, changes.urgent), (Some(chosen), true));
    assert!(world.pool.take_changes().is_empty());
    for (settings, expected) in
        [(Policy::Compact, Policy::Spread), (Policy::BinPack, Policy::BinPack)]
    {
        let snapshot = Snapshot {
            nodes: Vec::new(),
            leases: Vec::new(),
            bills: Vec::new(),
            policy: Some(chosen),
            first_id: world.pool.first_id(),
            last_id: None,
        };
        let mut pool = Pool::restore(world.now, NODE_RETURN, snapshot);
        pool.use_settings(settings);
        assert_eq!(pool.policy(), expected);
    }
}

#[test]
fn a_node_that_is_replaced_before_it_was_to_leave_stays_from_then_on() {
    let mut world = World::new();
    let link = world.node("a", 1, 64);
    world.pool.set_leaving(world.now, "a", 20 * SECOND, &mut world.out).unwrap();
    world.disconnect(link);
    let again = LinkId(77);
    world.pool.node_connected(world.now, "a", run(2), again, &mut world.out).unwrap();
    assert!(world.request(1, 1, 30 * SECOND).is_err(), "it may be the same that was started again");
    world.pass(20 * SECOND);
    assert_eq!(world.pool.node("a").unwrap().leaves_at, None);
    assert!(world.request(1, 1, 30 * SECOND).is_ok());
}

#[test]
fn a_policy_that_other_settings_have_replaced_does_not_come_back_with_its_own() {
    let (mut world, mut kept) = (World::new(), Kept::default());
    world.pool.use_settings(Policy::Compact);
    world.pool.set_policy(Policy::Spread);
    for (settings, expected) in [
        (Policy::Compact, Policy::Spread),
        (Policy::BinPack, Policy::BinPack),
        (Policy::Compact, Policy::Compact),
    ] {
        restart(&mut world, &mut kept);
        world.pool.use_settings(settings);
        assert_eq!(world.pool.policy(), expected);
    }
}

#[test]
fn a_node_that_was_replaced_stays_whenever_the_program_is_started_again() {
    let (mut world, mut kept) = (World::new(), Kept::default());
    let link = world.node("a", 1, 64);
    world.pool.set_leaving(world.now, "a", 20 * SECOND, &mut world.out).unwrap();
    world.disconnect(link);
    let replace = |world: &mut World, number: u64| {
        let link = LinkId(100 + number);
        world.pool.node_connected(world.now, "a", run(2), link, &mut world.out).unwrap();
    };
    replace(&mut world, 1);
    restart(&mut world, &mut kept); // before it would have left
    let imported = NodeSpec::new("a", "10.0.0.1", 10_005, Capacity { cores: 1, memory: 64 });
    world.pool.import_node(world.now, imported.unwrap()).unwrap();
    replace(&mut world, 2);
    assert!(world.request(1, 1, 30 * SECOND).is_err());
    world.pass(20 * SECOND);
    assert_eq!(world.pool.node("a").unwrap().leaves_at, None);
    restart(&mut world, &mut kept); // after it
    assert_eq!(world.pool.node("a").unwrap().leaves_at, None);
    replace(&mut world, 3);
    assert!(world.request(1, 1, 30 * SECOND).is_ok());
}

#[test]
fn a_node_keeps_its_labels_unless_others_are_given() {
    let mut world = World::new();
    let capacity = Capacity { cores: 1, memory: 64 };
    let spec =
        |cores| NodeSpec::new("a", "10.0.0.1", 10_005, Capacity { cores, ..capacity }).unwrap();
    let mut add = |spec| {
        let added = world.pool.add_node(world.now, spec, &mut world.out).unwrap();
        added.spec.labels().to_vec()
    };
    assert_eq!(add(spec(1).with_labels(&["gpu".into()]).unwrap()), ["gpu"]);
    assert_eq!(add(spec(2)), ["gpu"]);
    assert_eq!(add(spec(2).with_labels(&[]).unwrap()), [""; 0]);
    assert_eq!(add(spec(3)), [""; 0]);
}

#[test]
fn after_a_restart_nodes_and_leases_are_back_and_go_on_when_their_node_is() {
    let (mut world, mut kept) = (World::new(), Kept::default());
    let link = world.node("a", 4, 64);
    world.add("b", 1, 1).unwrap();
    let active = world.active(2, link);
    let unclaimed = world.request(1, 1, 20 * SECOND).unwrap();
    let before = world.pool.leases();
    world.pass(SECOND);
    restart(&mut world, &mut kept);
    assert_eq!(world.pool.leases(), before);
    assert_eq!(world.free("a").cores, 1);
    assert_eq!(world.pool.node("a").unwrap().state, NodeState::Lost);
    assert_eq!(world.pool.node("b").unwrap().state, NodeState::Registered);
    assert!(world.request(1, 1, HOUR).is_err());
    world.pass(RESTART_RETURN / 2);
    let link = world.connect("a");
    world.claim(&active, link);
    assert_eq!(world.actions(), []);
    world.pass(RESTART_RETURN);
    assert_eq!(world.state(&active), Some(LeaseState::Active));
    let next = world.request(1, 1, HOUR).unwrap();
    assert!(next.terms.lease > unclaimed.terms.lease);
    world.pass(4 * SECOND);
    assert_eq!(world.billed(&unclaimed), Some((EndReason::Expired, 0)), "at its old deadline");
    world.report(&active, link, EndReason::Released, 5);
    assert_eq!(world.billed(&active), Some((EndReason::Released, 5)));
}

#[test]
fn after_a_restart_a_node_that_stays_away_is_lost_with_what_it_last_said() {
    let (mut world, mut kept) = (World::new(), Kept::default());
    let link = world.node("a", 4, 64);
    let active = world.active(2, link);
    let silent = world.active(1, link);
    let used = Bill { allocated_ns: 7.into(), ..Bill::default() };
    world.pool.used(link, active.terms.lease, used);
    restart(&mut world, &mut kept);
    world.pass(RESTART_RETURN - SECOND);
    assert_eq!(world.state(&active), Some(LeaseState::Active));
    world.pass(SECOND);
    assert_eq!(world.billed(&active), Some((EndReason::NodeLost, 7)));
    assert_eq!(world.billed(&silent), Some((EndReason::NodeLost, 0)));
    assert_eq!(world.free("a").cores, 4);
}

#[test]
fn after_a_restart_a_request_may_wait_for_nodes_that_are_not_back_yet() {
    let (mut world, mut kept) = (World::new(), Kept::default());
    world.node("a", 4, 64);
    restart(&mut world, &mut kept);
    let ask = |cores| Ask::new(cores, 1, HOUR, "somebody").unwrap();
    assert_eq!(world.pool.try_request(world.now, &ask(4)), Ok(None));
    let never = world.pool.try_request(world.now, &ask(5));
    assert!(matches!(never, Err(Denied::NoNodes(_))), "{never:?}");
    let Ok(Asked::Waits(id)) = world.pool.wait(world.now, &ask(4), HOUR) else { panic!() };
    world.pass(SECOND);
    assert_eq!(world.pool.answered(), []);
    let link = world.connect("a");
    world.pass(Duration::ZERO);
    assert_eq!(world.pool.answered(), [id]);
    let grants = world.pool.take_answer(id).unwrap().unwrap();
    world.claim(&grants[0], link);
    world.pool.remove_node(world.now, "a", HOUR, &mut world.out);
    let withdrawn = world.pool.try_request(world.now, &ask(4));
    assert!(matches!(withdrawn, Err(Denied::NoNodes(_))), "{withdrawn:?}");
}

#[test]
fn a_lease_that_is_ending_still_is_after_a_restart() {
    let (mut world, mut kept) = (World::new(), Kept::default());
    let link = world.node("a", 4, 64);
    let active = world.active(2, link);
    world.pool.remove_node(world.now, "a", 30 * SECOND, &mut world.out);
    world.pass(10 * SECOND);
    restart(&mut world, &mut kept);
    assert_eq!(world.state(&active), Some(LeaseState::Ending));
    assert_eq!(world.pool.node("a").unwrap().state, NodeState::Draining);
    let link = world.connect("a");
    world.claim(&active, link);
    assert_eq!(world.actions(), [end_lease(link, &active, EndReason::Withdrawn, 20 * SECOND)]);
    world.pass(20 * SECOND + END_MARGIN);
    assert!(matches!(world.billed(&active), Some((EndReason::Withdrawn, _))));
    assert!(world.pool.node("a").is_none());
    kept.keep(world.pool.take_changes());
    assert_eq!((kept.nodes.len(), kept.leases.len()), (0, 0));
}

#[test]
fn a_restart_ends_the_connections_that_unclaimed_leases_depend_on() {
    let (mut world, mut kept) = (World::new(), Kept::default());
    let link = world.node("a", 4, 64);
    let ask = Ask::new(1, 1, HOUR, "somebody").unwrap().while_connected();
    let mut request = || world.pool.request(world.now, &ask).unwrap().remove(0);
    let (unclaimed, claimed, lost) = (request(), request(), request());
    world.claim(&claimed, link);
    restart(&mut world, &mut kept);
    let link = world.connect("a");
    world.claim(&claimed, link);
    world.claim(&lost, link); // its claim was under way
    world.pass(RESTART_RETURN);
    assert_eq!(world.billed(&unclaimed), Some((EndReason::ClientGone, 0)));
    assert_eq!(world.state(&claimed), Some(LeaseState::Active));
    assert_eq!(world.state(&lost), Some(LeaseState::Active));
}

#[test]
fn ids_go_on_above_all_earlier_ones_even_if_the_clock_was_set_back() {
    let (mut world, mut kept) = (World::new(), Kept::default());
    world.node("a", 4, 64);
    let before = world.request(1, 1, HOUR).unwrap();
    world.now.wall -= 24 * HOUR;
    restart(&mut world, &mut kept);
    world.connect("a");
    let after = world.request(1, 1, HOUR).unwrap();
    assert!(after.terms.lease > before.terms.lease);
    world.now.wall += 48 * HOUR;
    let first_id = world.pool.first_id();
    restart(&mut world, &mut kept);
    assert!(
        world.pool.held.leases.take_id().get() > after.terms.lease.get() + 1_000,
        "above the clock"
    );
    assert_eq!(world.pool.first_id(), first_id, "of the state, not of the run");
}

#[test]
fn only_what_somebody_is_told_of_is_urgent() {
    let mut world = World::new();
    let link = world.node("a", 4, 64);
    let urgent = |world: &mut World| {
        let changes = world.pool.take_changes();
        assert!(world.pool.take_changes().is_empty());
        (!changes.is_empty()).then_some(changes.urgent)
    };
    assert_eq!(urgent(&mut world), Some(true), "a node");
    let grant = world.request(1, 1, HOUR).unwrap();
    assert_eq!(urgent(&mut world), Some(true), "a grant");
    world.claim(&grant, link);
    assert_eq!(urgent(&mut world), Some(false), "a claim, which is reported again");
    world.claim(&grant, link);
    assert_eq!(urgent(&mut world), None, "no news");
    world.pool.used(link, grant.terms.lease, Bill { allocated_ns: 7.into(), ..Bill::default() });
    assert_eq!(urgent(&mut world), Some(false), "what was used so far");
    world.pool.renew(world.now, grant.terms.lease, HOUR * 2, None).unwrap();
    assert_eq!(urgent(&mut world), Some(true), "a renewal");
    world.pool.end_lease(world.now, grant.terms.lease, EndReason::Withdrawn, &mut world.out);
    assert_eq!(urgent(&mut world), Some(true), "a lease that is to end");
    world.report(&grant, link, EndReason::Withdrawn, 8);
    assert_eq!(urgent(&mut world), Some(true), "a bill");
    world.disconnect(link);
    world.pool.draining(world.now, link, SECOND, &mut world.out);
    assert_eq!(urgent(&mut world), None);
}

#[test]
fn a_state_that_other_hands_changed_loses_what_does_not_fit_and_nothing_else() {
    let (mut world, mut kept) = (World::new(), Kept::default());
    let link = world.node("a", 4, 64);
    let (kept_lease, stray) = (world.active(2, link), world.active(2, link));
    kept.keep(world.pool.take_changes());
    for lease in kept.leases.values().cloned().collect::<Vec<_>>() {
        if lease.terms.lease == stray.terms.lease {
            let terms = Terms { cores: 3, ..lease.terms.clone() };
            kept.leases.insert(terms.lease, LeaseRecord { terms, ..lease });
        }
    }
    let snapshot = Snapshot {
        nodes: kept.nodes.values().cloned().collect(),
        leases: kept.leases.values().chain(kept.leases.values()).cloned().collect(),
        bills: Vec::new(),
        policy: None,
        first_id: world.pool.first_id(),
        last_id: None,
    };
    world.pool = Pool::restore(world.now, NODE_RETURN, snapshot);
    assert_eq!(world.free("a").cores, 2);
    assert_eq!(world.state(&kept_lease), Some(LeaseState::Active));
    let changes = world.pool.take_changes();
    assert_eq!(changes.leases, BTreeMap::from([(stray.terms.lease, None)]));
    assert_eq!(changes.bills.len(), 1);
}

#[test]
fn a_node_that_leaves_does_so_after_a_restart_and_is_back_with_another_run_once_it_has_left() {
    let (mut world, mut kept) = (World::new(), Kept::default());
    world.node("a", 4, 64);
    world.pool.set_leaving(world.now, "a", 20 * SECOND, &mut world.out).unwrap();
    restart(&mut world, &mut kept);
    for cores in [4, 8] {
        // As it is in the executors database, or changed there.
        let capacity = Capacity { cores, memory: 64 };
        let imported = NodeSpec::new("a", "10.0.0.1", 10_005, capacity).unwrap();
        world.pool.import_node(world.now, imported).unwrap();
    }
    let link = world.connect("a");
    world.request(1, 1, 21 * SECOND).unwrap_err();
    let lease = world.request(1, 1, 10 * SECOND).unwrap().terms.lease;
    world.pool.renew(world.now, lease, 20 * SECOND, None).unwrap();
    world.pass(SECOND);
    world.request(1, 1, 20 * SECOND).unwrap_err();
    let renewed = world.pool.renew(world.now, lease, 20 * SECOND, None);
    assert_eq!(renewed, Err(NotRenewed::Leaving(lease)));
    world.disconnect(link);
    let again = |world: &mut World, number| {
        let link = LinkId(100 + number);
        world.pool.node_connected(world.now, "a", run(number), link, &mut world.out).unwrap();
        world.disconnect(link);
        world.pool.node("a").unwrap().leaves_at.is_some()
    };
    assert!(again(&mut world, 2), "it has not left yet");
    world.pass(20 * SECOND);
    assert!(!again(&mut world, 3));
}
