//! Clients and a resource manager whose messages are lost, come twice, are cut or are nonsense: what a
//! node makes of them.

mod common;

use common::*;
use rdmalib::faults::{Fault, Script};
use rfaas_protocol::allocation::{FromClient, ToClient};
use rfaas_protocol::channel::refuse;
use rfaas_protocol::lease::EndReason;
use rfaas_protocol::node::{FromNode, ToNode};
use rfaas_protocol::{Clock, Empty, Malformed, MessageKind};

/// Waits until the node has taken what was sent to it: it answers its heartbeats in order.
fn taken(link: &mut NodeLink) {
    for _ in 0..2 {
        assert!(matches!(link.next(), FromNode::Heartbeat(_)));
        link.send(&ToNode::Heartbeat(Clock::now()));
    }
}

#[test]
fn an_end_whose_acknowledgement_was_lost_is_reported_again_with_the_same_bill() {
    let (mut manager, node, mut link, mut client) = in_use(OBEDIENT, 2);
    let bill = client.release();
    assert_eq!(link.ended(), (77, EndReason::Released, bill));
    link.channel.inject(Script::new().at(0, Fault::Drop));
    link.acknowledge(77);
    taken(&mut link);
    drop(link);

    let mut link = manager.register();
    assert_eq!(link.ended(), (77, EndReason::Released, bill));
    link.acknowledge(77);
    taken(&mut link);
    drop(link);

    let mut link = manager.register();
    taken(&mut link); // and not once more
    node.stop();
}

#[test]
fn an_acknowledgement_that_comes_twice_is_one() {
    let (_manager, node, mut link) = registered(OBEDIENT);
    let mut client = node.client();
    link.channel.inject(Script::new().at(0, Fault::Duplicate));
    for lease in [77, 78] {
        client.claim(link.signed(lease, 2));
        assert_eq!(link.claimed(), lease);
        client.release();
        assert_eq!(link.ended().0, lease);
        link.acknowledge(lease);
    }
    taken(&mut link);
    node.stop();
}

#[test]
fn a_lease_that_is_withdrawn_twice_ends_once() {
    let (_manager, node, mut link, mut client) = in_use(OBEDIENT, 2);
    link.channel.inject(Script::new().at(0, Fault::Duplicate));
    link.end(77, EndReason::Withdrawn, 0);
    assert_eq!(client.ending(), (EndReason::Withdrawn, 0));
    let (lease, reason, _) = link.ended();
    assert_eq!((lease, reason), (77, EndReason::Withdrawn));
    link.acknowledge(77);
    taken(&mut link); // and no second report
    client.claim(link.signed(78, 4)); // all is free
    node.stop();
}

#[test]
fn a_word_of_the_resource_manager_that_is_cut_costs_the_connection_and_no_lease() {
    let (mut manager, mut node, mut link, mut client) = in_use(OBEDIENT, 2);
    link.channel.inject(Script::new().at(0, Fault::Truncate(4)));
    link.end(77, EndReason::Withdrawn, 0);
    node.wait_for_log("no connection to the resource manager");
    let mut link = manager.register();
    assert_eq!(link.claimed(), 77);
    let bill = client.release();
    assert_eq!(link.ended(), (77, EndReason::Released, bill));
}

#[test]
fn a_release_that_comes_twice_is_billed_once() {
    let (_manager, node, mut link, mut client) = in_use(OBEDIENT, 2);
    client.channel.inject(Script::new().at(0, Fault::Duplicate));
    let bill = client.release();
    assert_eq!(link.ended(), (77, EndReason::Released, bill));
    link.acknowledge(77);
    taken(&mut link);
    node.client().claim(link.signed(78, 4)); // all is free
    assert_eq!(link.claimed(), 78);
}

#[test]
fn a_claim_that_comes_twice_holds_its_cores_once() {
    let (_manager, node, mut link) = registered(OBEDIENT);
    let mut client = node.client_for(&link.signed(77, 2));
    client.channel.inject(Script::new().at(0, Fault::Duplicate));
    client.claim(link.signed(77, 2));
    assert_eq!(link.claimed(), 77);
    let again = client.next();
    assert!(matches!(again, ToClient::Allocated(_) | ToClient::Refused(_)), "{again:?}");
    let mut other = node.client();
    other.claim(link.signed(78, 2)); // the other half of the node
    assert_eq!(link.claimed(), 78);
    client.send(&FromClient::Release(Empty {}));
    assert!(matches!(client.next(), ToClient::Released(_)));
    assert_eq!(link.ended().0, 77);
}

#[test]
fn a_truncated_claim_ends_its_connection_and_no_other() {
    let node = Node::alone(OBEDIENT);
    let mut stays = node.client();
    stays.claim(unsigned(1));
    let whole = size_of::<u16>() + size_of_val(&allocate(unsigned(1)));
    for bytes in [0, 1, 2, 50, whole - 1] {
        let mut cut = node.client();
        cut.channel.inject(Script::new().at(0, Fault::Truncate(bytes)));
        cut.send(&FromClient::Allocate(allocate(unsigned(1))));
        cut.ended();
    }
    stays.release();
    stays.claim(unsigned(4)); // nothing was taken by what was cut
}

#[test]
fn a_resource_manager_that_rejects_or_talks_nonsense_is_dialed_again() {
    let (mut manager, mut node, mut link, mut client) = in_use(OBEDIENT, 1);
    link.channel.send(&Nonsense).unwrap();
    link.channel.flush(PATIENCE).unwrap();
    drop(link);
    let request = manager.listener.next(PATIENCE).unwrap().expect("it dials again");
    refuse(request, "not now");
    node.wait_for_log("not now");
    let mut link = manager.register();
    assert_eq!(link.claimed(), 77, "and the lease goes on");
    client.release();
    assert_eq!(link.ended().1, EndReason::Released);
    link.acknowledge(77);
    node.stop();
}

/// Bytes that are no message.
struct Nonsense;

impl MessageKind for Nonsense {
    fn encode(&self) -> Vec<u8> {
        vec![0xff; 500]
    }

    fn decode(_: &[u8]) -> Result<Self, Malformed> {
        Ok(Nonsense)
    }
}
