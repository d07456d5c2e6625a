//! Facts about nodes that clients could not use.

use rdmalib::Peer;
use rfaas_protocol::lease::Unusable;

use super::*;

const REFUSED: Unusable = Unusable::Refused;

impl World {
    fn replace(&mut self, grant: &Grant, user: u32) -> Result<Grant, NotReplaced> {
        let (lease, user) = (grant.terms.lease, Peer::User(user));
        self.pool.replace(self.now, lease, REFUSED, user, &mut self.out)
    }

    /// Nodes with one core each.
    fn nodes(&mut self, count: usize) {
        for number in 0..count {
            self.node(&format!("{number:02}"), 1, 64);
        }
    }

    /// Where leases go that are asked for one after the other.
    fn order(&mut self, count: usize) -> Vec<String> {
        let grants: Vec<_> = (0..count).map(|_| self.request(1, 1, HOUR).unwrap()).collect();
        let order = grants.iter().map(|grant| grant.node.to_string()).collect();
        for grant in grants {
            let lease = grant.terms.lease;
            self.pool.end_lease(self.now, lease, EndReason::Released, &mut self.out);
        }
        order
    }
}

#[test]
fn a_node_that_a_client_could_not_use_is_tried_last_for_a_while() {
    let mut world = World::new();
    world.nodes(3);
    let grant = world.request(1, 1, HOUR).unwrap();
    let other = world.replace(&grant, 1).unwrap();
    assert_eq!((&*grant.node, &*other.node), ("00", "01"));
    assert_eq!((other.terms.expires_at, other.terms.cores), (grant.terms.expires_at, 1));
    assert_eq!((world.state(&grant), world.state(&other)), (None, Some(LeaseState::Granted)));
    assert_eq!(world.billed(&grant), Some((EndReason::Released, 0)));
    world.pool.end_lease(world.now, other.terms.lease, EndReason::Released, &mut world.out);
    assert_eq!(world.order(3), ["01", "02", "00"], "last, not never");
    world.pass(TRIED_LAST - SECOND);
    assert_eq!(world.order(3), ["01", "02", "00"]);
    world.pass(SECOND);
    assert_eq!(world.order(3), ["00", "01", "02"], "forgiven");
}

#[test]
fn what_fits_nowhere_else_goes_to_nodes_that_are_tried_last_also_in_parts() {
    let mut world = World::new();
    world.nodes(3);
    let grant = world.request(1, 1, HOUR).unwrap();
    let other = world.replace(&grant, 1).unwrap();
    world.pool.end_lease(world.now, other.terms.lease, EndReason::Released, &mut world.out);
    let parts = |world: &mut World, cores| {
        let ask = Ask::new(cores, cores, HOUR, "c").unwrap().on_nodes(3).unwrap();
        let grants = world.pool.request(world.now, &ask).unwrap();
        let nodes: Vec<_> = grants.iter().map(|grant| grant.node.to_string()).collect();
        for grant in grants {
            let lease = grant.terms.lease;
            world.pool.end_lease(world.now, lease, EndReason::Released, &mut world.out);
        }
        nodes
    };
    assert_eq!(parts(&mut world, 2), ["01", "02"]);
    assert_eq!(parts(&mut world, 3), ["00", "01", "02"]);
    assert_eq!(world.pool.held.nodes.most_free(), Capacity { cores: 1, memory: 64 });
}

#[test]
fn one_user_s_word_holds_for_a_few_nodes_at_a_time() {
    let mut world = World::new();
    let count = MOST_OF_ONE + 3;
    world.nodes(count);
    // A liar goes from node to node.
    let mut grant = world.request(1, 1, HOUR).unwrap();
    for _ in 1..count {
        grant = world.replace(&grant, 1).unwrap();
    }
    world.pool.end_lease(world.now, grant.terms.lease, EndReason::Released, &mut world.out);
    let last = world.pool.held.nodes.iter().filter(|(_, node)| node.tried_last).count();
    assert_eq!(last, MOST_OF_ONE);
    // Another's word does not cost him his.
    let honest = world.request(1, 1, HOUR).unwrap();
    world.replace(&honest, 2).unwrap();
    let last = world.pool.held.nodes.iter().filter(|(_, node)| node.tried_last).count();
    assert_eq!(last, MOST_OF_ONE + 1);
    let removed = (0..count).map(|number| format!("{number:02}"));
    for name in removed {
        world.pool.remove_node(world.now, &name, Duration::ZERO, &mut world.out);
    }
    assert_eq!(
        world.pool.held.distrust.first_deadline(),
        None,
        "nothing is kept of nodes that are gone"
    );
}
