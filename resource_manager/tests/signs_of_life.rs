//! Who gives no sign of life is given up, and nobody else.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod support;

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use rfaas_protocol::Clock;
use rfaas_protocol::node::{FromNode, ToNode};
use serde_json::json;
use support::*;

/// After which a node is given up that is silent, and none that a busy machine keeps from a sign of life.
const SILENCE_MS: u32 = 4000;

/// A resource manager with these limits and node `a`, whose executor manager gives a sign every 500 ms.
fn cluster(heartbeat_ms: u32, silence_ms: u32) -> (Manager, Node) {
    let keys = [("heartbeat_ms", json!(heartbeat_ms)), ("silence_ms", json!(silence_ms))];
    let manager = Manager::start(&Files::new(&keys), &[]);
    manager.add("a", 1, 64);
    let node = Node::ready(manager.rdma, "a");
    (manager, node)
}

#[test]
fn an_executor_manager_is_told_how_often_to_give_signs_and_gets_as_many() {
    let (manager, mut node) = cluster(50, 60_000);
    for _ in 0..8 {
        let beat = node.next().unwrap();
        assert!(matches!(beat, ToNode::Heartbeat(_)), "{beat:?}");
    }
    manager.add("a", 2, 64);
    let ToNode::Registered(registered) = node.receive() else { panic!("not told") };
    assert_eq!((registered.heartbeat_ms.get(), registered.silence_ms.get()), (50, 60_000));
    assert_eq!(manager.node_state("a").as_deref(), Some("ready"));
    assert_eq!(manager.metric("rfaas_silent_nodes_total"), 0);
}

#[test]
fn an_executor_manager_that_falls_silent_is_lost_though_its_connection_stands() {
    let (manager, mut node) = cluster(100, SILENCE_MS);
    let (mut stranger, _) = dial_node(manager.rdma, b"42").unwrap(); // never registers
    node.fall_silent();
    manager.wait_node("a", "lost");
    node.ended();
    assert_eq!(manager.metric("rfaas_silent_nodes_total"), 1);
    while stranger.receive::<ToNode>(PATIENCE).is_ok() {}
    assert!(!stranger.is_connected());
}

#[test]
fn a_manager_that_was_stopped_itself_gives_up_nobody_whose_signs_wait_to_be_read() {
    let (manager, mut node) = cluster(100, SILENCE_MS);
    kill(manager.pid(), Signal::SIGSTOP).unwrap();
    node.send(&FromNode::Heartbeat(Clock::now()));
    std::thread::sleep(Duration::from_millis(u64::from(SILENCE_MS) + 1000));
    kill(manager.pid(), Signal::SIGCONT).unwrap();
    assert_eq!(manager.node_state("a").as_deref(), Some("ready"));
    for _ in 0..8 {
        assert!(matches!(node.next(), Ok(ToNode::Heartbeat(_))));
    }
    assert_eq!(manager.metric("rfaas_silent_nodes_total"), 0);
    assert!(!manager.has_logged("clock differs"), "what it said was read late");
}
