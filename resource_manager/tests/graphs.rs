//! The list of graphs: what clients say of their leases, before and after the program was started again.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod support;

use nix::sys::signal::Signal;
use rfaas_protocol::lease::{EndReason, LeaseGranted, ToClient};
use serde_json::{Value, json};
use support::*;

fn id(lease: &LeaseGranted) -> u64 {
    lease.token.terms.lease.get()
}

fn worker(worker: u16, functions: &[&str], lease: &LeaseGranted, state: &str) -> Value {
    json!({
        "lane": 0, "worker": worker, "functions": functions, "node": "a", "lease": id(lease),
        "state": state,
    })
}

/// The list that has one graph, with these workers.
fn words(workers: &[Value]) -> Value {
    let leases = workers.len();
    json!([{"id": 7, "name": "words", "client": "tester", "leases": leases, "workers": workers}])
}

#[test]
fn what_a_client_says_of_its_leases_is_listed_and_of_those_of_others_is_not() {
    let manager = Manager::start(&Files::new(&[]), &[]);
    manager.add("a", 5, 64);
    let mut node = Node::ready(manager.rdma, "a");
    let (mut client, mut other) = (Client::new(manager.rdma), Client::new(manager.rdma));
    let (first, second, foreign) = (client.lease(1, 1), client.lease(1, 1), other.lease(1, 1));
    assert_eq!(manager.get("/graphs"), json!([]));
    client.note_worker(&second, 1, "merge");
    client.note_worker(&first, 0, "split\ncount");
    client.note_worker(&first, 5, "said later");
    client.note_worker(&foreign, 2, "not its own");
    client.lease(1, 1); // which is answered behind them
    let merge = worker(1, &["merge"], &second, "granted");
    let listed = [worker(0, &["split", "count"], &first, "granted"), merge.clone()];
    assert_eq!(manager.get("/graphs"), words(&listed));
    assert_eq!(manager.call("GET", "/graphs?of=me", "").0, 400);
    assert_eq!(manager.call("POST", "/graphs", "{}").0, 405);

    // What cannot be said ends its connection, and no other.
    let mut hostile = Client::new(manager.rdma);
    let its = hostile.lease(1, 1);
    hostile.note_worker(&its, 0, "a\tb");
    assert!(hostile.channel.receive::<ToClient>(PATIENCE).is_err());
    assert_eq!(manager.get("/graphs"), words(&listed));

    node.claim(&first.token);
    manager.wait_lease(id(&first), "active");
    let listed = [worker(0, &["split", "count"], &first, "active"), merge];
    assert_eq!(manager.get("/graphs"), words(&listed));
    for lease in [&first, &second] {
        assert_eq!(manager.call("DELETE", &format!("/leases/{}", id(lease)), "").0, 200);
    }
    node.told_to_end(&first.token);
    node.report(&first.token, EndReason::Withdrawn);
    manager.wait_bill(id(&first));
    assert_eq!(manager.get("/graphs"), json!([]));
}

#[test]
fn graphs_are_listed_after_a_kill_as_before() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let files = Files::new(&[("state_file", json!("state"))]);
        let manager = Manager::start(&files, &[]);
        manager.add("a", 4, 64);
        let mut node = Node::ready(manager.rdma, "a");
        let mut client = Client::new(manager.rdma);
        let (lease, gone) = (client.lease(1, 1), client.lease(1, 1));
        client.note_worker(&lease, 0, "split");
        client.note_worker(&gone, 1, "merge");
        node.claim(&lease.token);
        manager.wait_lease(id(&lease), "active");
        assert_eq!(manager.call("DELETE", &format!("/leases/{}", id(&gone)), "").0, 200);
        let listed = words(&[worker(0, &["split"], &lease, "active")]);
        assert_eq!(manager.get("/graphs"), listed);
        manager.end(signal);
        node.ended();

        let manager = Manager::start(&files, &[]);
        assert_eq!(manager.get("/graphs"), listed);
        let mut node = Node::ready(manager.rdma, "a");
        node.claim(&lease.token);
        node.report(&lease.token, EndReason::Released);
        node.acknowledged(&lease.token);
        assert_eq!(manager.get("/graphs"), json!([]));
    }
}
