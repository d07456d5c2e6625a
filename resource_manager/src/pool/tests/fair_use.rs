//! Facts about leases that nobody claims, and about what one client may hold.

use rdmalib::Peer;
use rfaas_protocol::lease::Unusable;

use super::super::fair_use::MOST_KNOWN;
use super::*;

fn world(rules: FairUse) -> World {
    let mut world = World::new();
    let pool = std::mem::replace(&mut world.pool, Pool::new(world.now, NODE_RETURN));
    world.pool = pool.with_rules(world.now, rules);
    world
}

#[test]
fn a_lease_whose_claim_nobody_could_tell_of_waits_for_its_node() {
    let mut world = world(FairUse { claim_timeout: SECOND, ..FairUse::default() });
    let link = world.node("a", 2, 64);
    let claimed = world.request(1, 1, HOUR).unwrap();
    let unclaimed = world.request(1, 1, HOUR).unwrap();
    world.disconnect(link);
    world.pass(NODE_RETURN - SECOND);
    assert_eq!(world.state(&claimed), Some(LeaseState::Granted));
    let link = world.connect("a");
    world.pass(RECLAIM / 2);
    world.claim(&claimed, link);
    world.pass(RECLAIM);
    assert_eq!(world.state(&claimed), Some(LeaseState::Active));
    assert_eq!(world.billed(&unclaimed), Some((EndReason::Unclaimed, 0)));
}

fn ask(client: &str, user: u32, cores: u32) -> Ask {
    Ask::new(cores, cores, HOUR, client).unwrap().by(Peer::User(user))
}

fn refusal(world: &mut World, ask: &Ask) -> Limit {
    let before = world.pool.leases();
    let denied = world.pool.request(world.now, ask).unwrap_err();
    assert_eq!(world.pool.leases(), before);
    match denied {
        Denied::Limit(limit) => limit,
        denied => panic!("{denied}"),
    }
}

#[test]
fn what_one_holds_is_limited_under_whatever_name_until_it_is_given_back() {
    let limits = [
        FairUse { cores: Some(4), ..FairUse::default() },
        FairUse { memory: Some(4), ..FairUse::default() },
        FairUse { leases: Some(2), ..FairUse::default() },
    ];
    for (rules, key) in limits.into_iter().zip(["cores", "memory", "leases"]) {
        let mut world = world(rules);
        let link = world.node("a", 64, 64);
        let first = world.pool.request(world.now, &ask("me", 1, 2)).unwrap().remove(0);
        let second = world.pool.request(world.now, &ask("me", 1, 2)).unwrap().remove(0);
        for wanted in [ask("me", 1, 1), ask("another name", 1, 1)] {
            let limit = refusal(&mut world, &wanted);
            let Limit::Held { who: whose, key: named, .. } = &limit else { panic!("{limit}") };
            assert_eq!((whose, *named), (&Who::Peer(Peer::User(1)), key));
            assert!(limit.to_string().contains(&format!("limits.{key}")), "{limit}");
        }
        // Somebody else may take the same name, or the name be taken: neither is in the other's way.
        world.pool.request(world.now, &ask("me", 2, 2)).unwrap();
        world.claim(&first, link);
        world.report(&first, link, EndReason::Released, 5);
        world.pool.end_lease(world.now, second.terms.lease, EndReason::Withdrawn, &mut world.out);
        world.pool.request(world.now, &ask("me", 1, 2)).unwrap();
    }
}

#[test]
fn a_request_in_parts_counts_all_of_them() {
    let mut world = world(FairUse { leases: Some(2), ..FairUse::default() });
    for node in ["a", "b", "c"] {
        world.node(node, 1, 64);
    }
    let parts = |cores| ask("me", 1, cores).on_nodes(3).unwrap();
    refusal(&mut world, &parts(3));
    assert_eq!(world.pool.request(world.now, &parts(2)).unwrap().len(), 2);
}

#[test]
fn leases_that_wait_for_their_claim_are_limited_and_those_that_are_claimed_are_not() {
    let rules = FairUse { unclaimed: Some(2), claim_timeout: 10 * SECOND, ..FairUse::default() };
    let mut world = world(rules);
    let link = world.node("a", 64, 64);
    let mine = ask("me", 1, 1);
    for _ in 0..20 {
        let grant = world.pool.request(world.now, &mine).unwrap().remove(0);
        world.pass(SECOND);
        world.claim(&grant, link);
    }
    for _ in 0..20 {
        let grant = world.pool.request(world.now, &mine).unwrap().remove(0);
        let (lease, reason) = (grant.terms.lease, EndReason::Released);
        world.pool.end_lease(world.now, lease, reason, &mut world.out);
    }
    world.pool.request(world.now, &mine).unwrap();
    world.pool.request(world.now, &mine).unwrap();
    for name in ["me", "another name"] {
        let limit = refusal(&mut world, &ask(name, 1, 1));
        assert_eq!(limit, Limit::Unclaimed { who: Who::Peer(Peer::User(1)), most: 2 });
        assert!(limit.to_string().contains("limits.unclaimed"), "{limit}");
    }
    world.pool.request(world.now, &ask("me", 2, 2)).unwrap();
}

#[test]
fn who_claims_nothing_holds_little_of_a_cluster_over_the_time() {
    let claim_timeout = 10 * SECOND;
    let rules = FairUse { unclaimed: Some(8), claim_timeout, ..FairUse::default() };
    let mut world = world(rules);
    world.node("a", 64, 64);
    let greedy = |world: &mut World, hours: u32| {
        let mut seconds_held = 0;
        for _ in 0..hours * 3600 {
            while world.pool.request(world.now, &ask("me", 1, 1)).is_ok() {}
            seconds_held += world.pool.leases().len();
            world.pass(SECOND);
        }
        seconds_held
    };
    let seconds_held = greedy(&mut world, 1);
    assert!((80..=100).contains(&seconds_held), "8 leases of 10 s at once: {seconds_held}");
    let seconds_held = greedy(&mut world, 1);
    assert!((1..=30).contains(&seconds_held), "one lease of 10 s in an hour: {seconds_held}");
    let bystander = world.pool.request(world.now, &ask("you", 2, 1));
    bystander.unwrap();
}

#[test]
fn the_time_of_a_lease_is_limited_also_when_it_is_renewed() {
    let mut world = world(FairUse { timeout: Some(60 * SECOND), ..FairUse::default() });
    let link = world.node("a", 64, 64);
    let limit = refusal(&mut world, &ask("me", 1, 1));
    assert!(limit.to_string().contains("limits.timeout_ms"), "{limit}");
    let grant = world.request(1, 1, 60 * SECOND).unwrap();
    world.claim(&grant, link);
    let renewed = world.pool.renew(world.now, grant.terms.lease, 61 * SECOND, None);
    assert!(matches!(renewed, Err(NotRenewed::Limit(Limit::Timeout { .. }))), "{renewed:?}");
    world.pool.renew(world.now, grant.terms.lease, 60 * SECOND, None).unwrap();
}

#[test]
fn who_asks_too_often_is_refused_until_time_has_passed_and_nobody_else_is() {
    let mut world = world(FairUse { requests_per_second: Some(10), ..FairUse::default() });
    world.node("a", 1, 64); // so that most are refused: that counts too
    let mine = ask("me", 1, 1);
    for _ in 0..10 {
        let _ = world.pool.request(world.now, &mine);
    }
    for name in ["me", "another name"] {
        let limit = refusal(&mut world, &ask(name, 1, 1));
        assert_eq!(limit, Limit::Rate { who: Who::Peer(Peer::User(1)), most: 10 });
    }
    for name in ["me", "you"] {
        let other = world.pool.request(world.now, &ask(name, 2, 1));
        assert!(matches!(other, Err(Denied::NoRoom(_))), "{other:?}");
    }
    world.pass(SECOND / 10);
    let again = world.pool.request(world.now, &mine);
    assert!(matches!(again, Err(Denied::NoRoom(_))), "{again:?}");
    refusal(&mut world, &mine);
}

#[test]
fn as_many_strangers_as_are_remembered_are_forgotten_a_second_later() {
    let rules = FairUse { requests_per_second: Some(1), ..FairUse::default() };
    let mut world = world(rules);
    world.node("a", 1, 64);
    let holder = ask("holder", 0, 1);
    world.pool.request(world.now, &holder).unwrap();
    for user in 1..=u32::try_from(MOST_KNOWN).unwrap() {
        let answer = world.pool.request(world.now, &ask("me", user, 1));
        assert!(matches!(answer, Err(Denied::NoRoom(_))), "{user}: {answer:?}");
    }
    assert!(matches!(refusal(&mut world, &holder), Limit::Rate { .. }), "it is known");
    let newcomer = ask("me", u32::MAX, 1);
    assert!(matches!(refusal(&mut world, &newcomer), Limit::Rate { .. }));
    world.pass(SECOND);
    let answer = world.pool.request(world.now, &newcomer);
    assert!(matches!(answer, Err(Denied::NoRoom(_))), "{answer:?}");
}

#[test]
fn renewing_and_exchanging_a_lease_are_requests_too() {
    let mut world = world(FairUse { requests_per_second: Some(2), ..FairUse::default() });
    world.node("a", 1, 64);
    world.node("b", 1, 64);
    let (me, you) = (Peer::User(1), Peer::User(2));
    let grant = world.pool.request(world.now, &ask("me", 1, 1)).unwrap().remove(0);
    let lease = grant.terms.lease;
    world.pool.renew(world.now, lease, HOUR, Some(me)).unwrap();
    let renewed = world.pool.renew(world.now, lease, HOUR, Some(me));
    assert!(matches!(renewed, Err(NotRenewed::Limit(Limit::Rate { .. }))), "{renewed:?}");
    let refused = Unusable::Refused;
    let replaced = world.pool.replace(world.now, lease, refused, me, &mut world.out);
    assert!(matches!(replaced, Err(NotReplaced::Limit(Limit::Rate { .. }))), "{replaced:?}");
    assert_eq!(world.state(&grant), Some(LeaseState::Granted), "it is as before");
    world.pool.request(world.now, &ask("you", 2, 1)).unwrap();
    world.pass(SECOND);
    let replaced = world.pool.replace(world.now, lease, refused, you, &mut world.out);
    assert_eq!(replaced, Err(NotReplaced::NoRoom { cores: 1, memory: 1 }));
}

#[test]
fn leases_of_an_earlier_run_count_for_their_clients_and_are_to_be_claimed() {
    let mut world = world(FairUse::default());
    let link = world.node("a", 64, 64);
    let changes = world.pool.take_changes();
    let active = world.active(3, link);
    let unclaimed = world.request(1, 1, HOUR).unwrap();
    let leases = world.pool.take_changes().leases;
    let snapshot = Snapshot {
        nodes: changes.nodes.into_values().flatten().collect(),
        leases: leases.into_values().flatten().collect(),
        bills: Vec::new(),
        policy: None,
        first_id: world.pool.first_id(),
        last_id: Some(unclaimed.terms.lease),
    };
    let rules = FairUse { claim_timeout: SECOND, cores: Some(4), ..FairUse::default() };
    world.pool = Pool::restore(world.now, NODE_RETURN, snapshot).with_rules(world.now, rules);
    let link = world.connect("a");
    world.claim(&active, link);
    refusal(&mut world, &Ask::new(1, 1, HOUR, "somebody").unwrap());
    refusal(&mut world, &ask("somebody", 1, 1));
    world.pass(RESTART_RETURN);
    assert_eq!(world.billed(&unclaimed), Some((EndReason::Unclaimed, 0)));
    world.request(1, 1, HOUR).unwrap();
}
