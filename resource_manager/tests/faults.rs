//! Peers whose messages are lost, come twice, or are cut: what the program makes of them.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod support;

use std::time::{Duration, Instant};

use rdmalib::faults::{Fault, Script, VARIABLE};
use rfaas_protocol::channel::{Channel, Incoming};
use rfaas_protocol::lease::{EndReason, FromClient, LeaseRelease, NodeName, ToClient, Token};
use rfaas_protocol::node::{
    Bill, FromNode, LeaseClaimed, LeaseEnded, Register, Registered, ToNode,
};
use support::*;

/// An executor manager of node `name`, not yet registered, whose messages meet `script`. The first of
/// them, number 0, is its registration.
fn node(manager: &Manager, name: &str, script: Script) -> Channel {
    let (mut channel, nonces) = dial_node(manager.rdma, b"42").unwrap();
    channel.inject(script);
    let name = NodeName::new(name).unwrap();
    let register = Register::new(name, INSTANCE, listens(), &nonces, b"42");
    channel.send(&FromNode::Register(register)).unwrap();
    channel
}

/// The next message that is not a heartbeat.
fn next(channel: &mut Channel) -> ToNode {
    loop {
        match channel.receive(PATIENCE).unwrap() {
            Incoming::Message(ToNode::Heartbeat(_)) => {}
            Incoming::Message(message) => return message,
            other => panic!("{other:?}"),
        }
    }
}

fn registered(mut channel: Channel) -> Channel {
    let answer = next(&mut channel);
    assert!(matches!(answer, ToNode::Registered(Registered { .. })), "{answer:?}");
    channel
}

fn acknowledged(channel: &mut Channel, token: &Token) {
    match next(channel) {
        ToNode::EndedAck(ack) => assert_eq!(ack.lease, token.terms.lease),
        other => panic!("{other:?}"),
    }
}

/// Waits until the resource manager has ended a connection, whatever it says before.
fn ended(channel: &mut Channel) {
    while channel.receive::<ToNode>(PATIENCE).is_ok() {}
    assert!(!channel.is_connected());
}

fn claimed(token: &Token) -> FromNode {
    FromNode::Claimed(LeaseClaimed { terms: token.terms })
}

fn end(token: &Token) -> FromNode {
    let bill = Bill { allocated_ns: 7_000_000.into(), ..Bill::default() };
    let reason = EndReason::Released.to_wire();
    FromNode::Ended(LeaseEnded { terms: token.terms, reason, bill })
}

/// A resource manager with node `a`, of 2 cores.
fn manager() -> Manager {
    let manager = Manager::start(&Files::new(&[]), &[]);
    manager.add("a", 2, 64);
    manager
}

/// A lease of one core, and its id.
fn lease(manager: &Manager) -> (Token, u64) {
    let token = Client::new(manager.rdma).lease(1, 1).token;
    (token, token.terms.lease.get())
}

/// A resource manager, its node `a` whose messages meet `script`, and a lease on it with its id.
fn leased(script: Script) -> (Manager, Channel, Token, u64) {
    let manager = manager();
    let node = registered(node(&manager, "a", script));
    let (token, id) = lease(&manager);
    (manager, node, token, id)
}

#[test]
fn a_duplicated_end_is_billed_once() {
    let (manager, mut node, token, id) = leased(Script::new().at(2, Fault::Duplicate));
    node.send(&claimed(&token)).unwrap();
    node.send(&end(&token)).unwrap();
    acknowledged(&mut node, &token);
    acknowledged(&mut node, &token);
    assert_eq!(manager.wait_bill(id)["allocated_ms"], 7);
    assert_eq!(manager.get("/nodes/a")["free_cores"], 2);
}

#[test]
fn a_duplicated_claim_is_one_claim() {
    let (manager, mut node, token, id) = leased(Script::new().at(1, Fault::Duplicate));
    node.send(&claimed(&token)).unwrap();
    manager.wait_lease(id, "active");
    assert_eq!(manager.get("/nodes/a")["free_cores"], 1);
    node.send(&end(&token)).unwrap();
    acknowledged(&mut node, &token);
    assert_eq!(manager.get("/nodes/a")["free_cores"], 2);
}

#[test]
fn an_end_whose_claim_was_lost_is_billed() {
    let (manager, mut node, token, id) = leased(Script::new().at(1, Fault::Drop));
    node.send(&claimed(&token)).unwrap();
    node.send(&end(&token)).unwrap();
    acknowledged(&mut node, &token);
    assert_eq!(manager.wait_bill(id)["allocated_ms"], 7);
    assert_eq!(manager.get("/nodes/a")["free_cores"], 2);
}

#[test]
fn an_end_that_was_lost_with_its_connection_is_billed_when_it_is_reported_again() {
    let (manager, mut first, token, id) = leased(Script::new().at(2, Fault::Disconnect));
    first.send(&claimed(&token)).unwrap();
    first.flush(PATIENCE).unwrap();
    first.send(&end(&token)).unwrap();
    manager.wait_node("a", "lost");
    assert_eq!(manager.lease_state(id).as_deref(), Some("active"));
    let mut again = registered(node(&manager, "a", Script::new()));
    again.send(&end(&token)).unwrap();
    acknowledged(&mut again, &token);
    assert_eq!(manager.wait_bill(id)["reason"], "released");
}

#[test]
fn a_late_end_frees_nothing_before_it_comes() {
    const LATE: Duration = Duration::from_millis(300);
    let (manager, mut node, token, id) = leased(Script::new().at(2, Fault::Delay(LATE)));
    node.send(&claimed(&token)).unwrap();
    let start = Instant::now();
    node.send(&end(&token)).unwrap();
    acknowledged(&mut node, &token); // nothing more is done here: it is sent all the same
    assert!(start.elapsed() >= LATE);
    manager.wait_bill(id);
}

#[test]
fn a_truncated_registration_ends_its_connection_only() {
    let manager = manager();
    manager.add("b", 1, 64);
    let mut good = registered(node(&manager, "b", Script::new()));
    let whole = size_of::<u16>() + size_of::<Register>(); // its kind is before it
    for bytes in [0, 1, 2, 100, whole - 1] {
        let mut cut = node(&manager, "a", Script::new().at(0, Fault::Truncate(bytes)));
        ended(&mut cut);
        assert_eq!(manager.node_state("a").as_deref(), Some("registered"), "{bytes} bytes");
    }
    let (token, id) = lease(&manager);
    good.send(&claimed(&token)).unwrap();
    manager.wait_lease(id, "active");
    registered(node(&manager, "a", Script::new())); // and it may come back
}

#[test]
fn a_truncated_end_costs_the_connection_and_not_the_bill() {
    let (manager, mut first, token, id) = leased(Script::new().at(2, Fault::Truncate(50)));
    first.send(&claimed(&token)).unwrap();
    first.send(&end(&token)).unwrap();
    ended(&mut first);
    manager.wait_node("a", "lost");
    let mut again = registered(node(&manager, "a", Script::new()));
    again.send(&end(&token)).unwrap();
    acknowledged(&mut again, &token);
    assert_eq!(manager.wait_bill(id)["allocated_ms"], 7);
}

#[test]
fn a_client_whose_release_is_duplicated_gives_back_once() {
    let manager = manager();
    let _node = registered(node(&manager, "a", Script::new()));
    let mut client = Client::new(manager.rdma);
    let (first, second) = (client.lease(1, 1).token, client.lease(1, 1).token);
    client.channel.inject(Script::new().at(0, Fault::Duplicate));
    client.channel.send(&FromClient::Release(LeaseRelease { token: first })).unwrap();
    wait_for("room", || (manager.get("/nodes/a")["free_cores"] == 1).then_some(()));
    assert!(matches!(client.ask(1, 1, 1000), ToClient::Granted(_)), "the connection stays");
    assert!(matches!(client.ask(1, 1, 1000), ToClient::Refused(_)), "and freed one core only");
    assert_eq!(manager.lease_state(second.terms.lease.get()).as_deref(), Some("granted"));
}

// The program is built for its tests with what they need, and so with the feature.
#[test]
fn a_wrong_variable_ends_the_program_in_one_line() {
    let files = Files::new(&[]);
    let output = files.command(&[]).env(VARIABLE, "seed=1,lose=0.5").output().unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    let last = error.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("RDMALIB_FAULTS: lose=0.5"), "{error}");
}
