//! The program is killed, or stopped, and started again on the same state file.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod support;

use nix::sys::signal::Signal;
use rfaas_protocol::lease::{EndReason, ToClient, Token};
use rfaas_protocol::node::{Bill, FromNode, LeaseUsed};
use serde_json::{Value, json};
use support::*;

/// Files of a resource manager with a state file.
fn files(extra: &[(&str, Value)]) -> Files {
    let keys = [&[("state_file", json!("state"))], extra].concat();
    Files::new(&keys)
}

fn id(token: &Token) -> u64 {
    token.terms.lease.get()
}

/// A lease over HTTP and its token.
fn lease_over_http(manager: &Manager) -> (Value, Token) {
    let request = r#"{"cores":1,"memory":1,"client":"somebody"}"#;
    let (status, grant) = manager.call("POST", "/leases", request);
    assert_eq!(status, 201, "{grant}");
    let token = Token::from_text(grant["token"].as_str().unwrap()).unwrap();
    (grant, token)
}

fn used(token: &Token, allocated_ms: u64, invocations: u64) -> FromNode {
    let bill = Bill {
        allocated_ns: (allocated_ms * 1_000_000).into(),
        invocations: invocations.into(),
        ..Bill::default()
    };
    FromNode::Used(LeaseUsed { lease: token.terms.lease, bill })
}

#[test]
fn nodes_leases_and_bills_are_there_after_a_kill() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let files = files(&[]);
        let manager = Manager::start(&files, &[]);
        manager.add("a", 4, 64);
        manager.add("b", 1, 1);
        manager.call("POST", "/remove?node=b", "");
        let mut node = Node::ready(manager.rdma, "a");
        let (_, running) = lease_over_http(&manager);
        node.claim(&running);
        manager.wait_lease(id(&running), "active");
        let (_, unclaimed) = lease_over_http(&manager);
        let (_, over) = lease_over_http(&manager);
        node.report(&over, EndReason::Released);
        node.acknowledged(&over);
        let mut leases = manager.get("/leases");
        let (bills, sums) = (manager.get("/billing"), manager.get("/billing?by=client"));
        manager.end(signal);
        node.ended();

        let manager = Manager::start(&files, &[]);
        assert_eq!(manager.get("/nodes").as_array().map(Vec::len), Some(1));
        assert_eq!(manager.node_state("a").as_deref(), Some("lost"));
        assert_eq!(manager.get("/leases"), leases);
        assert_eq!(manager.get("/billing"), bills);
        assert_eq!(manager.get("/billing?by=client"), sums);
        let mut node = Node::ready(manager.rdma, "a");
        assert_eq!(manager.get("/nodes/a")["free_cores"], 2);
        node.claim(&running);
        node.claim(&unclaimed);
        manager.wait_lease(id(&unclaimed), "active");
        leases[1]["state"] = json!("active");
        assert_eq!(manager.get("/leases"), leases);
        let (_, next) = lease_over_http(&manager);
        assert!(id(&next) > id(&over), "ids are not used again");
        node.report(&running, EndReason::Released);
        node.acknowledged(&running);
        assert_eq!(manager.bill(id(&running)).unwrap()["reason"], "released");
        assert_eq!(manager.bill(id(&over)).unwrap(), bills[0]);
    }
}

#[test]
fn a_final_report_replaces_a_provisional_bill_also_of_an_earlier_run() {
    let files = files(&[("node_return_ms", json!(1))]);
    let manager = Manager::start(&files, &[]);
    manager.add("a", 4, 64);
    let mut node = Node::ready(manager.rdma, "a");
    let mut lost = Vec::new();
    for _ in 0..2 {
        let (_, token) = lease_over_http(&manager);
        node.claim(&token);
        manager.wait_lease(id(&token), "active");
        lost.push(token);
    }
    drop(node);
    for token in &lost {
        let bill = manager.wait_bill(id(token));
        assert_eq!((&bill["reason"], &bill["provisional"]), (&json!("node_lost"), &json!(true)));
    }
    let final_bill = |manager: &Manager, node: &mut Node, token: &Token| {
        for _ in 0..2 {
            node.report(token, EndReason::ClientGone);
            node.acknowledged(token);
            let bill = manager.bill(id(token)).unwrap();
            assert_eq!(bill["allocated_ms"], 7);
            assert_eq!(bill["provisional"], false);
        }
    };
    let mut node = Node::ready(manager.rdma, "a");
    final_bill(&manager, &mut node, &lost[0]);
    manager.end(Signal::SIGKILL);

    let manager = Manager::start(&files, &[]);
    let mut node = Node::ready(manager.rdma, "a");
    final_bill(&manager, &mut node, &lost[1]);
    final_bill(&manager, &mut node, &lost[0]);
    assert_eq!(manager.get("/billing").as_array().map(Vec::len), Some(2));
}

#[test]
fn a_lease_of_a_lost_node_is_billed_with_what_was_last_reported() {
    let files = files(&[("heartbeat_ms", json!(10)), ("node_return_ms", json!(1))]);
    let manager = Manager::start(&files, &[]);
    manager.add("a", 4, 64);
    let mut node = Node::ready(manager.rdma, "a");
    let (_, token) = lease_over_http(&manager);
    node.claim(&token);
    node.send(&used(&token, 5, 2));
    node.send(&used(&token, 10, 3));
    manager.wait_lease(id(&token), "active");
    drop(node);
    let bill = manager.wait_bill(id(&token));
    assert_eq!((&bill["invocations"], &bill["provisional"]), (&json!(3), &json!(true)));
    assert!(bill["allocated_ms"].as_u64() >= Some(10), "{bill}");
    let sums = manager.get("/billing?by=client");
    assert_eq!((&sums[0]["client"], &sums[0]["invocations"]), (&json!("somebody"), &json!(3)));
}

#[test]
fn what_a_lease_used_is_known_after_a_kill_to_within_a_period() {
    let files = files(&[("heartbeat_ms", json!(10))]);
    let manager = Manager::start(&files, &[]);
    manager.add("a", 4, 64);
    let mut node = Node::ready(manager.rdma, "a");
    let (_, token) = lease_over_http(&manager);
    node.claim(&token);
    let commits = |manager: &Manager| manager.metric("rfaas_state_commits_total");
    node.send(&used(&token, 10, 3));
    manager.wait_lease(id(&token), "active");
    let before = commits(&manager);
    wait_for("a commit that nothing depends on", || {
        node.send(&used(&token, 10, 3));
        (commits(&manager) > before).then_some(())
    });
    manager.end(Signal::SIGKILL);
    let manager = Manager::start(&files, &[]);
    manager.call("POST", "/remove?node=a", ""); // it will not come back
    assert_eq!(manager.wait_bill(id(&token))["invocations"], 3);
}

#[test]
fn leases_end_when_their_node_comes_back_as_another() {
    let files = files(&[]);
    let manager = Manager::start(&files, &[]);
    manager.add("a", 4, 64);
    let mut node = Node::ready_as(manager.rdma, "a", 1);
    let (_, token) = lease_over_http(&manager);
    assert_eq!(token.terms.instance.get(), 1);
    node.claim(&token);
    manager.wait_lease(id(&token), "active");
    manager.end(Signal::SIGKILL);
    let manager = Manager::start(&files, &[]);
    let _node = Node::ready_as(manager.rdma, "a", 2);
    let bill =
        manager.bill(id(&token)).expect("it ended before the node was told that it is registered");
    assert_eq!(bill["reason"], "node_lost");
    assert_eq!(manager.get("/nodes/a")["free_cores"], 4);
    assert_eq!(lease_over_http(&manager).1.terms.instance.get(), 2);
}

#[test]
fn a_renewed_lease_stays_renewed() {
    let files = files(&[]);
    let manager = Manager::start(&files, &[]);
    manager.add("a", 4, 64);
    let _node = Node::ready(manager.rdma, "a");
    let (grant, token) = lease_over_http(&manager);
    let mut client = Client::new(manager.rdma);
    let ToClient::Granted(renewed) = client.renew(token, 24 * 3_600_000) else { panic!() };
    assert_eq!((renewed.request.get(), renewed.part.get(), renewed.parts.get()), (6, 0, 1));
    assert!(renewed.token.terms.same_lease(&token.terms));
    assert!(renewed.token.terms.expires_at_ms.get() > token.terms.expires_at_ms.get());
    let lease = manager.get(&format!("/leases/{}", grant["id"]));
    assert!(lease["expires_at"].as_str() > grant["expires_at"].as_str());
    let mut forged = token.terms;
    forged.cores = 4.into();
    for (token, why) in [(Token::unsigned(forged), "not signed"), (token, "timeout_ms")] {
        let ToClient::Refused(refused) = client.renew(token, 0) else { panic!() };
        assert!(refused.reason.get().unwrap().contains(why), "{:?}", refused.reason);
    }
    manager.end(Signal::SIGKILL);
    let manager = Manager::start(&files, &[]);
    assert_eq!(manager.get(&format!("/leases/{}", grant["id"])), lease);
}

#[test]
fn nodes_of_an_input_are_added_to_those_of_the_state_whose_leases_win() {
    let files = files(&[]);
    database(&files.path("in.json"), "a", 4);
    let manager = Manager::start(&files, &["-i", "in.json"]);
    manager.add("b", 2, 64);
    let mut node = Node::ready(manager.rdma, "a");
    let token = Client::new(manager.rdma).lease(3, 1).token;
    node.claim(&token);
    manager.wait_lease(id(&token), "active");
    manager.end(Signal::SIGTERM);
    database(&files.path("in.json"), "a", 2); // less than is leased there
    let manager = Manager::start(&files, &["-i", "in.json", "-o", "out.json"]);
    assert!(manager.greeting.contains("stays as the state has it"), "{}", manager.greeting);
    let out: Value =
        serde_json::from_slice(&std::fs::read(files.path("out.json")).unwrap()).unwrap();
    let nodes: Vec<_> = out["executors"].as_array().unwrap().iter().collect();
    assert_eq!((&nodes[0]["node"], &nodes[0]["cores"]), (&json!("a"), &json!(4)));
    assert_eq!((&nodes[1]["node"], &nodes[1]["cores"]), (&json!("b"), &json!(2)));
    assert_eq!(manager.lease_state(id(&token)).as_deref(), Some("active"));
}

#[test]
fn a_manager_that_cannot_write_its_state_ends_and_has_promised_nothing_that_is_not_there() {
    let files = files(&[]);
    Manager::start(&files, &[]).end(Signal::SIGTERM);
    // Blocks of 512 bytes; beyond them writing fails as on a full disk.
    let mut manager = Manager::start_limited(&files, "ulimit -f 1024", &[]);
    let name = |number: usize| format!("node-{number}-{}", "n".repeat(100));
    let body = r#"{"ip_address":"127.0.0.1","port":10005,"cores":1,"memory":1}"#;
    let added = (0..100_000)
        .take_while(|number| {
            match http(manager.http, "POST", &format!("/add?node={}", name(*number)), body) {
                Ok((200, _)) => true,
                // It says so, unless it has ended before.
                Ok((503, _)) | Err(_) => false,
                Ok((status, answer)) => panic!("{status} {answer}"),
            }
        })
        .count();
    assert!(added > 100, "{added}");
    manager.logs("the state could not be written");
    assert_eq!(manager.ended(), Some(1));
    let manager = Manager::start(&files, &[]);
    let nodes = manager.get("/nodes");
    let there: Vec<_> =
        nodes.as_array().unwrap().iter().map(|node| node["node"].as_str().unwrap()).collect();
    for number in 0..added {
        assert!(there.contains(&&*name(number)), "node {number} of {added}");
    }
}
