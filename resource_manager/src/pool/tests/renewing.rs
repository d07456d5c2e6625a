//! Facts about renewed leases, and about requests that are met from several nodes.

use super::*;

fn renew(world: &mut World, grant: &Grant, timeout: Duration) -> Result<Grant, NotRenewed> {
    world.pool.renew(world.now, grant.terms.lease, timeout, None)
}

#[test]
fn a_renewed_lease_ends_later_and_never_sooner() {
    let mut world = World::new();
    let link = world.node("a", 2, 64);
    let claimed = world.request(1, 1, 10 * SECOND).unwrap();
    world.claim(&claimed, link);
    let unclaimed = world.request(1, 1, 10 * SECOND).unwrap();
    for grant in [&claimed, &unclaimed] {
        world.pass(SECOND);
        let renewed = renew(&mut world, grant, 20 * SECOND).unwrap();
        let expires_at = world.now.wall + 20 * SECOND;
        let later = Terms { expires_at, ..grant.terms.clone() };
        assert_eq!(renewed, Grant { terms: later.clone(), ..grant.clone() });
        assert_eq!(renew(&mut world, grant, SECOND).unwrap().terms, later);
        assert_eq!(world.pool.lease(grant.terms.lease).unwrap().expires_at, expires_at);
    }
    world.pass(18 * SECOND);
    assert_eq!(world.state(&claimed), Some(LeaseState::Active));
    assert_eq!(world.state(&unclaimed), Some(LeaseState::Granted));
    world.actions();
    world.pass(3 * SECOND);
    let told = end_lease(link, &claimed, EndReason::Expired, Duration::ZERO);
    assert_eq!(world.actions(), [told]);
    assert_eq!(world.billed(&unclaimed), Some((EndReason::Expired, 0)));
}

#[test]
fn a_lease_that_has_ended_or_is_to_end_is_not_renewed() {
    let mut world = World::new();
    let link = world.node("a", 3, 64);
    let grant = world.request(1, 1, 10 * SECOND).unwrap();
    world.claim(&grant, link);
    let lease = grant.terms.lease;
    assert!(matches!(renew(&mut world, &grant, MAX_TIMEOUT * 2), Err(NotRenewed::Timeout(_))));
    assert!(matches!(renew(&mut world, &grant, Duration::ZERO), Err(NotRenewed::Timeout(_))));
    world.pass(10 * SECOND);
    assert_eq!(renew(&mut world, &grant, HOUR), Err(NotRenewed::Ended(lease)), "it has expired");
    world.pass(EXPIRY_MARGIN);
    let ending = NotRenewed::Ending { lease, reason: EndReason::Expired };
    assert_eq!(renew(&mut world, &grant, HOUR), Err(ending));
    world.report(&grant, link, EndReason::Expired, 1);
    assert_eq!(renew(&mut world, &grant, HOUR), Err(NotRenewed::Ended(lease)));
    let never = LeaseId::new(1).unwrap();
    let unknown = world.pool.renew(world.now, never, HOUR, None);
    assert_eq!(unknown, Err(NotRenewed::Unknown(never)));
}

#[test]
fn a_renewed_lease_does_not_end_with_the_connection_that_it_was_granted_on() {
    let mut world = World::new();
    world.node("a", 1, 64);
    let grant = world.request(1, 1, HOUR).unwrap();
    world.pool.client_gone(world.now, [grant.terms.lease]);
    renew(&mut world, &grant, HOUR).unwrap();
    world.pass(CLAIM_IN_FLIGHT * 2);
    assert_eq!(world.state(&grant), Some(LeaseState::Granted));
}

#[test]
fn a_node_may_not_have_heard_of_a_renewal_but_not_of_one_that_never_was() {
    let mut world = World::new();
    let link = world.node("a", 2, 64);
    let grant = world.request(1, 1, 10 * SECOND).unwrap();
    let renewed = renew(&mut world, &grant, HOUR).unwrap();
    world.claim(&grant, link);
    assert_eq!(world.actions(), []);
    world.claim(&renewed, link);
    assert_eq!(world.actions(), []);
    let mut beyond = renewed.clone();
    beyond.terms.expires_at += SECOND;
    world.claim(&beyond, link);
    let told = end_lease(link, &grant, EndReason::Withdrawn, Duration::ZERO);
    assert_eq!(world.actions(), [told]);
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
