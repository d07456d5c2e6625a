//! Who is who: both sides of a registration prove themselves, a node is where it was added, and what a node's clock
//! says is known. Leases that a client cannot use are exchanged.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod support;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rfaas_protocol::channel::{Channel, Incoming};
use rfaas_protocol::lease::{
    FromClient, LeaseGranted, LeaseRelease, LeaseReplace, NodeName, ToClient, Token, Unusable,
};
use rfaas_protocol::node::{FromNode, Register, ToNode};
use rfaas_protocol::{Clock, Nonces, Role};
use serde_json::Value;
use support::*;

fn registration(address: SocketAddr, nonces: &Nonces) -> Register {
    Register::new(NodeName::new("a").unwrap(), INSTANCE, address, nonces, b"42")
}

fn answer(channel: &mut Channel, register: Register) -> ToNode {
    channel.send(&FromNode::Register(register)).unwrap();
    match channel.receive(PATIENCE).unwrap() {
        Incoming::Message(answer) => answer,
        other => panic!("{other:?}"),
    }
}

fn why(answer: &ToNode) -> String {
    let ToNode::Refused(refused) = answer else { panic!("{answer:?}") };
    refused.reason.get().unwrap().to_owned()
}

fn manager() -> Manager {
    let manager = Manager::start(&Files::new(&[]), &[]);
    manager.add("a", 1, 64);
    manager
}

#[test]
fn a_resource_manager_proves_that_it_has_the_secret_of_the_cluster() {
    let manager = manager();
    let (_, _, proved) = meet(manager.rdma, b"42").unwrap();
    assert!(proved);
    let (mut stranger, _, proved) = meet(manager.rdma, b"43").unwrap();
    assert!(!proved);
    stranger.disconnect(); // as an executor manager does then
    manager.logs("is its cluster secret ours?");
}

#[test]
fn a_node_that_listens_elsewhere_than_it_was_added_is_refused_naming_both() {
    let manager = manager();
    let there = listens();
    for elsewhere in
        [SocketAddr::new(there.ip(), 10_006), SocketAddr::new([10, 0, 0, 7].into(), there.port())]
    {
        let (mut channel, nonces) = dial_node(manager.rdma, b"42").unwrap();
        let why = why(&answer(&mut channel, registration(elsewhere, &nonces)));
        for named in [&there, &elsewhere] {
            let named = format!("address {}, port {}", named.ip(), named.port());
            assert!(why.contains(&named), "{named}: {why}");
        }
        assert_eq!(manager.node_state("a").as_deref(), Some("registered"));
    }
    let mapped = "[::ffff:127.0.0.1]:10005".parse().unwrap();
    let (mut channel, nonces) = dial_node(manager.rdma, b"42").unwrap();
    let taken = answer(&mut channel, registration(mapped, &nonces));
    assert!(matches!(taken, ToNode::Registered(_)), "the same address: {taken:?}");
    manager.wait_node("a", "ready");
    // Sent elsewhere while it is connected, it takes no leases before it is there.
    let body = r#"{"ip_address":"127.0.0.1","port":10006,"cores":1,"memory":64}"#;
    assert_eq!(manager.call("POST", "/add?node=a", body).0, 200);
    assert_eq!(manager.node_state("a").as_deref(), Some("registered"));
    assert!(matches!(Client::new(manager.rdma).ask(1, 1, 1000), ToClient::Refused(_)));
}

#[test]
fn a_registration_that_was_seen_is_of_no_use_on_another_connection() {
    let manager = manager();
    let (mut first, nonces) = dial_node(manager.rdma, b"42").unwrap();
    let seen = registration(listens(), &nonces);
    let (mut second, _) = dial_node(manager.rdma, b"42").unwrap();
    let why = why(&answer(&mut second, seen));
    assert!(why.contains("cluster secret"), "{why}");
    assert!(matches!(answer(&mut first, seen), ToNode::Registered(_)));
}

#[test]
fn how_far_the_clock_of_a_node_is_off_is_shown_and_told() {
    const AHEAD: Duration = Duration::from_secs(7200);
    const MIDDLE: i64 = 3600; // of that and 0: no machine is so slow
    let manager = manager();
    let ahead = || Clock::from(SystemTime::now() + AHEAD);
    let shown = |manager: &Manager| manager.get("/nodes/a")["clock_ahead_s"].as_i64();
    assert_eq!(shown(&manager), None, "nobody is connected");
    let (mut channel, nonces) = dial_node(manager.rdma, b"42").unwrap();
    let register = registration(listens(), &nonces).at(ahead(), &nonces, b"42");
    let ToNode::Registered(registered) = answer(&mut channel, register) else { panic!("refused") };
    // It is less than that by the time that the message was under way.
    let off = shown(&manager).unwrap();
    assert!((MIDDLE..=7200).contains(&off), "{off}");
    let ours = registered.clock.ahead_of(SystemTime::now());
    assert!((-1000 * MIDDLE..=0).contains(&ours), "ours, to correct it by: {ours}");
    // When it has said so for a while.
    for _ in 0..2 {
        channel.send(&FromNode::Heartbeat(ahead())).unwrap();
        std::thread::sleep(Clock::AGREE);
    }
    manager.logs("the node's clock differs from this machine's");
    channel.send(&FromNode::Heartbeat(Clock::now())).unwrap();
    wait_for("the clock to be set", || shown(&manager).filter(|&off| off < MIDDLE));
    drop(channel);
    manager.wait_node("a", "lost");
    assert_eq!(shown(&manager), None);
}

fn exchange(client: &mut Client, token: Token, because: u16) -> ToClient {
    let (request, because) = (9.into(), because.into());
    let question = LeaseReplace { request, token: token.without_key(), because };
    client.channel.send(&FromClient::Replace(question)).unwrap();
    match client.channel.receive(PATIENCE).unwrap() {
        Incoming::Message(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_has_seen_a_lease_without_its_key_cannot_give_it_back() {
    let manager = manager();
    let _node = Node::ready(manager.rdma, "a");
    let (mut client, mut stranger) = (Client::new(manager.rdma), Client::new(manager.rdma));
    let token = client.lease(1, 1).token;
    let state = |token: &Token| manager.lease_state(token.terms.lease.get());
    let release = |by: &mut Client, token| {
        by.channel.send(&FromClient::Release(LeaseRelease { token })).unwrap();
        // Taken after that, and refused: no node is so large.
        assert!(matches!(by.ask(1000, 1, 1000), ToClient::Refused(_)));
    };
    release(&mut stranger, token.without_key());
    assert_eq!(state(&token).as_deref(), Some("granted"));
    release(&mut client, token.without_key());
    assert_ne!(state(&token).as_deref(), Some("granted"), "its own");
    let token = client.lease(1, 1).token;
    release(&mut stranger, token);
    assert_ne!(state(&token).as_deref(), Some("granted"), "its key is a proof");
}

#[test]
fn a_claimed_lease_is_given_back_where_it_was_granted_however_many_were_granted_since() {
    const MORE: u32 = 200; // than are remembered without looking which have ended
    let manager = Manager::start(&Files::new(&[]), &[]);
    manager.add("a", 1 + MORE, 1 + MORE);
    let mut node = Node::ready(manager.rdma, "a");
    let mut client = Client::new(manager.rdma);
    // Its answer is lost: the client takes it for unclaimed.
    let token = client.lease(1, 1).token;
    node.claim(&token);
    manager.wait_lease(token.terms.lease.get(), "active");
    for _ in 0..MORE {
        client.lease(1, 1);
    }
    let token = token.without_key();
    client.channel.send(&FromClient::Release(LeaseRelease { token })).unwrap();
    manager.wait_lease(token.terms.lease.get(), "ending");
}

fn node_of(granted: &LeaseGranted) -> String {
    granted.token.terms.node.get().unwrap().to_owned()
}

fn free(manager: &Manager) -> Vec<Value> {
    manager.get("/nodes").as_array().unwrap().iter().map(|n| n["free_cores"].clone()).collect()
}

#[test]
fn a_lease_that_its_client_cannot_use_is_exchanged_and_its_node_is_tried_last() {
    let manager = manager();
    manager.add("b", 1, 64);
    manager.add("c", 1, 64);
    let _nodes = ["a", "b", "c"].map(|name| Node::ready(manager.rdma, name));
    let (mut client, mut other) = (Client::new(manager.rdma), Client::new(manager.rdma));
    let first = client.lease(1, 32);
    assert_eq!(node_of(&first), "a");
    let ToClient::Granted(second) = exchange(&mut client, first.token, 1) else { panic!("no") };
    assert_eq!((node_of(&second), second.request.get()), ("b".into(), 9));
    assert!(second.token.verify(b"42"), "with a key of its own");
    let (old, new) = (&first.token.terms, &second.token.terms);
    assert_eq!(
        (old.cores, old.memory, old.expires_at_ms),
        (new.cores, new.memory, new.expires_at_ms)
    );
    assert_eq!(free(&manager), [1, 0, 1], "it has one lease");
    manager.logs("a client could not use a lease on this node");

    // It is over; what is not a granted lease is not exchanged, nor on another's word.
    for (token, because) in [(first.token, 1), (Token::unsigned(*new), 1)] {
        assert!(matches!(exchange(&mut client, token, because), ToClient::Refused(_)));
    }
    assert_eq!(node_of(&other.lease(1, 32)), "c", "the node is tried last");
    assert_eq!(node_of(&other.lease(1, 32)), "a", "and used when the others are full");
    let ToClient::Refused(refused) = exchange(&mut client, second.token, 2) else {
        panic!("where?")
    };
    assert!(refused.reason.get().unwrap().contains("no other node"), "{refused:?}");
    assert_eq!(manager.lease_state(new.lease.get()).as_deref(), Some("granted"), "as before");
    // Nonsense ends the connection, and with it what was granted on it.
    let question = LeaseReplace { request: 1.into(), token: second.token, because: 7.into() };
    client.channel.send(&FromClient::Replace(question)).unwrap();
    assert!(client.channel.receive::<ToClient>(PATIENCE).is_err());
    assert!(Unusable::from_wire(7.into()).is_err());
}

#[test]
fn a_manager_that_takes_nodes_and_clients_refuses_others() {
    let manager = manager();
    assert!(dial(manager.rdma, Role::Node).is_err(), "without what proves it: of an older release");
    dial(manager.rdma, Role::Lease).unwrap();
}
