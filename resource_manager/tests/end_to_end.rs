//! The program itself, with executor managers and clients on the embedded device.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod support;

use nix::sys::signal::Signal;
use rfaas_protocol::channel::{Channel, ChannelError};
use rfaas_protocol::lease::{
    EndReason, FromClient, LeaseRelease, LeaseReplace, ToClient, Token, Unusable,
};
use rfaas_protocol::node::{Draining, FromNode, Register, ToNode};
use rfaas_protocol::{Clock, Role};
use serde_json::{Value, json};
use support::*;

fn reason_of(reason: zerocopy::little_endian::U16) -> EndReason {
    EndReason::from_wire(reason).unwrap()
}

/// Waits until the resource manager has ended a connection, whatever it says before.
fn ended(channel: &mut Channel) {
    while channel.receive::<ToNode>(PATIENCE).is_ok() {}
    assert!(!channel.is_connected());
}

/// A resource manager with node `a`, which has 64 MB.
fn cluster(cores: u32) -> (Manager, Node) {
    let manager = Manager::start(&Files::new(&[]), &[]);
    manager.add("a", cores, 64);
    let node = Node::ready(manager.rdma, "a");
    (manager, node)
}

/// A lease that `node` has claimed, and its id.
fn active(manager: &Manager, node: &mut Node, client: &mut Client, cores: u32) -> (Token, u64) {
    let token = client.lease(cores, 1).token;
    let id = token.terms.lease.get();
    node.claim(&token);
    manager.wait_lease(id, "active");
    (token, id)
}

/// One lease from request to bill, over RDMA.
fn life_of_a_lease(manager: &Manager) {
    let mut node = Node::ready(manager.rdma, "a");
    let mut client = Client::new(manager.rdma);
    let granted = client.lease(2, 128);
    let token = granted.token;
    let id = token.terms.lease.get();
    assert_eq!(granted.request, 5);
    assert_eq!(std::net::SocketAddr::from(granted.manager), ([127, 0, 0, 1], 10_005).into());
    assert!(token.verify(b"42"));
    assert_eq!(manager.lease_state(id).as_deref(), Some("granted"));
    node.claim(&token);
    manager.wait_lease(id, "active");
    assert_eq!(manager.get("/nodes/a")["free_cores"], 2);
    node.report(&token, EndReason::Released);
    node.acknowledged(&token);
    node.report(&token, EndReason::Released); // as if the acknowledgement had been lost
    node.acknowledged(&token);
    let bill = manager.wait_bill(id);
    for (key, value) in [
        ("client", json!("tester")),
        ("node", json!("a")),
        ("cores", json!(2)),
        ("memory", json!(128)),
        ("allocated_ms", json!(7)),
        ("hot_polling_ns", json!(2)),
        ("execution_ns", json!(3)),
        ("invocations", json!(4)),
        ("reason", json!("released")),
    ] {
        assert_eq!(bill[key], value, "{key}");
    }
    assert_eq!(manager.get("/nodes/a")["free_cores"], 4);
}

#[test]
fn a_gang_waits_for_room_and_is_forgotten_with_its_client() {
    let manager = Manager::start(&Files::new(&[]), &[]);
    manager.add("a", 2, 64);
    let _node = Node::ready(manager.rdma, "a");
    let mut holder = Client::new(manager.rdma);
    let held = holder.lease(1, 1);
    let (mut gone, mut waits) = (Client::new(manager.rdma), Client::new(manager.rdma));
    waits.ask_gang(2, 1, 1);
    let ToClient::Granted(short) = waits.answer() else { panic!("there is a core") };
    gone.ask_gang(1, 2, 3_600_000); // nobody gets a core of that node from now on
    waits.ask_gang(3, 2, 3_600_000);
    waits.ask_gang(4, 2, 50);
    let ToClient::Refused(refused) = waits.answer() else { panic!("there is no room") };
    assert_eq!(refused.request.get(), 4);
    assert!(refused.reason.get().unwrap().starts_with("after 50ms of waiting"));
    drop(gone);
    for lease in [&short, &held] {
        let id = lease.token.terms.lease.get();
        assert_eq!(manager.call("DELETE", &format!("/leases/{id}"), "").0, 200);
    }
    let ToClient::Granted(first) = waits.answer() else { panic!("there is room") };
    let ToClient::Granted(second) = waits.answer() else { panic!("there is room") };
    assert_eq!((first.request.get(), first.part.get(), second.part.get()), (3, 0, 1));
    assert_eq!(manager.get("/leases").as_array().map(Vec::len), Some(2));
}

#[test]
fn a_lease_lives_from_request_to_bill() {
    let files = Files::new(&[]);
    database(&files.path("in.json"), "a", 4);
    life_of_a_lease(&Manager::start(&files, &["-i", "in.json"]));
}

#[test]
fn a_manager_that_polls_serves_the_same() {
    let files = Files::new(&[("rdma-sleep", json!(false))]);
    database(&files.path("in.json"), "a", 4);
    life_of_a_lease(&Manager::start(&files, &["-i", "in.json", "--rdma-threads", "4"]));
}

#[test]
fn an_executor_manager_that_comes_before_add_is_told_so_and_taken_later() {
    let manager = Manager::start(&Files::new(&[]), &[]);
    let (mut early, answer) = Node::register(manager.rdma, "a", 42);
    let ToNode::Refused(refused) = answer else { panic!("{answer:?}") };
    let reason = refused.reason.get().unwrap();
    assert!(reason.contains("node a is not known") && reason.contains("POST /add?node=a"));
    early.ended();
    manager.add("a", 1, 64);
    let _node = Node::ready(manager.rdma, "a");
    assert_eq!(manager.node_state("a").as_deref(), Some("ready"));
}

#[test]
fn an_executor_manager_with_another_secret_is_refused_and_logged() {
    let manager = Manager::start(&Files::new(&[]), &[]);
    manager.add("a", 1, 64);
    let (mut node, answer) = Node::register(manager.rdma, "a", 43);
    let ToNode::Refused(refused) = answer else { panic!("{answer:?}") };
    assert!(refused.reason.get().unwrap().contains("secret"));
    manager.logs("cluster secret is not");
    node.ended();
    assert_eq!(manager.node_state("a").as_deref(), Some("registered"));
}

#[test]
fn a_node_has_one_executor_manager_and_a_dead_one_makes_room() {
    let (manager, first) = cluster(1);
    let (_second, answer) = Node::register(manager.rdma, "a", 42);
    let ToNode::Refused(refused) = answer else { panic!("{answer:?}") };
    assert!(refused.reason.get().unwrap().contains("already connected"));
    drop(first);
    wait_for("room for the next", || {
        let (node, answer) = Node::register(manager.rdma, "a", 42);
        matches!(answer, ToNode::Registered(_)).then_some(node)
    });
}

#[test]
fn a_lease_survives_a_broken_connection_of_its_node() {
    let (manager, mut node) = cluster(2);
    let (token, id) = active(&manager, &mut node, &mut Client::new(manager.rdma), 1);
    drop(node);
    manager.wait_node("a", "lost");
    assert_eq!(manager.lease_state(id).as_deref(), Some("active"));
    let mut node = Node::ready(manager.rdma, "a");
    node.claim(&token);
    node.report(&token, EndReason::ClientGone);
    node.acknowledged(&token);
    assert_eq!(manager.bill(id).unwrap()["reason"], "client_gone");
}

#[test]
fn the_leases_of_a_node_that_does_not_come_back_end_and_the_node_can_return() {
    let (manager, mut node) = cluster(2);
    let (_, id) = active(&manager, &mut node, &mut Client::new(manager.rdma), 2);
    drop(node);
    let bill = manager.wait_bill(id);
    assert_eq!(bill["reason"], "node_lost");
    let _node = Node::ready(manager.rdma, "a");
    Client::new(manager.rdma).lease(2, 64);
}

#[test]
fn one_connection_gets_as_many_leases_as_it_asks_for() {
    let manager = Manager::start(&Files::new(&[]), &[]);
    manager.add("a", 150, 150);
    let _node = Node::ready(manager.rdma, "a");
    let mut client = Client::new(manager.rdma);
    for _ in 0..150 {
        client.lease(1, 1); // the 33rd hangs
    }
    for _ in 0..100 {
        let ToClient::Refused(refused) = client.ask(1, 1, 1000) else { panic!("over-committed") };
        assert!(refused.reason.get().unwrap().contains("0 cores"));
    }
    assert_eq!(manager.get("/leases").as_array().map(Vec::len), Some(150));
}

#[test]
fn a_request_that_makes_no_sense_is_refused_in_words_on_a_connection_that_stays() {
    let (manager, _node) = cluster(1);
    let mut client = Client::new(manager.rdma);
    for (cores, memory, timeout_ms, named) in [
        (0, 1, 1000, "cores"),
        (u32::MAX, 1, 1000, "cores"),
        (1, 0, 1000, "memory"),
        (1, u32::MAX, 1000, "MB"),
        (1, 1, 0, "timeout_ms"),
        (1, 1, u64::MAX, "timeout_ms"),
    ] {
        let ToClient::Refused(refused) = client.ask(cores, memory, timeout_ms) else { panic!() };
        assert!(refused.reason.get().unwrap().contains(named), "{:?}", refused.reason);
    }
    client.lease(1, 64);
}

#[test]
fn a_malformed_message_ends_its_own_connection_only() {
    let (manager, mut good_node) = cluster(2);
    let mut good_client = Client::new(manager.rdma);
    let kept = good_client.lease(1, 1);
    // Messages of another conversation, and of this one at the wrong time.
    let mut client = Client::new(manager.rdma);
    client.channel.send(&FromNode::Heartbeat(Clock::now())).unwrap();
    ended(&mut client.channel);
    let mut client = Client::new(manager.rdma);
    let forged = Token::unsigned(kept.token.terms);
    client.channel.send(&FromClient::Release(LeaseRelease { token: forged })).unwrap();
    ended(&mut client.channel);
    let (mut node, _) = dial_node(manager.rdma, b"42").unwrap();
    node.send(&FromNode::Heartbeat(Clock::now())).unwrap();
    ended(&mut node);
    for role in [Role::Allocation, Role::Accounting, Role::Executor, Role::Worker] {
        match dial(manager.rdma, role) {
            Err(ChannelError::Refused(why)) => assert!(why.contains("resource manager"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    good_client.lease(1, 1);
    good_node.claim(&kept.token);
    manager.wait_lease(kept.token.terms.lease.get(), "active");
}

#[test]
fn a_node_that_reports_nonsense_is_dropped_and_may_come_back() {
    let manager = Manager::start(&Files::new(&[]), &[]);
    manager.add("a", 2, 64);
    manager.add("b", 1, 64);
    let mut node = Node::ready(manager.rdma, "a");
    let mut token = Client::new(manager.rdma).lease(1, 1).token;
    token.terms.node = rfaas_protocol::lease::NodeName::new("b").unwrap();
    node.claim(&token);
    node.ended();
    manager.wait_node("a", "lost");
    let _node = Node::ready(manager.rdma, "a");
}

#[test]
fn a_client_that_goes_loses_what_it_did_not_claim() {
    let (manager, mut node) = cluster(2);
    let mut client = Client::new(manager.rdma);
    let (_, claimed) = active(&manager, &mut node, &mut client, 1);
    let unclaimed = client.lease(1, 1).token;
    drop(client);
    let bill = manager.wait_bill(unclaimed.terms.lease.get());
    assert_eq!((&bill["reason"], &bill["allocated_ms"]), (&json!("client_gone"), &json!(0)));
    assert_eq!(manager.lease_state(claimed).as_deref(), Some("active"));
}

#[test]
fn a_client_gives_leases_back_through_the_manager() {
    let (manager, mut node) = cluster(2);
    let mut client = Client::new(manager.rdma);
    let (claimed, _) = active(&manager, &mut node, &mut client, 1);
    let unclaimed = client.lease(1, 1).token;
    for token in [unclaimed, claimed, claimed] {
        client.channel.send(&FromClient::Release(LeaseRelease { token })).unwrap();
    }
    assert_eq!(manager.wait_bill(unclaimed.terms.lease.get())["reason"], "released");
    let end = node.told_to_end(&claimed);
    assert_eq!((reason_of(end.reason), end.grace_ms.get()), (EndReason::Released, 0));
    node.report(&claimed, EndReason::Released);
    node.acknowledged(&claimed);
}

#[test]
fn a_removed_node_is_told_ends_its_leases_and_is_forgotten() {
    let files = Files::new(&[]);
    let manager = Manager::start(&files, &["-o", "out.json"]);
    let stored = || -> Value {
        serde_json::from_slice(&std::fs::read(files.path("out.json")).unwrap()).unwrap()
    };
    manager.add("a", 2, 64);
    assert_eq!(stored()["executors"][0]["node"], "a", "written when the answer comes");
    let mut node = Node::ready(manager.rdma, "a");
    let mut client = Client::new(manager.rdma);
    let (token, id) = active(&manager, &mut node, &mut client, 1);
    let answer = manager.call("POST", "/remove?node=a&grace_ms=12345", "");
    assert_eq!(answer, (200, json!({"node": "a", "state": "draining"})));
    assert_eq!(stored()["executors"], json!([]));
    assert!(matches!(client.ask(1, 1, 1000), ToClient::Refused(_)));
    let end = node.told_to_end(&token);
    assert_eq!((reason_of(end.reason), end.grace_ms.get()), (EndReason::Withdrawn, 12_345));
    assert_eq!(manager.lease_state(id).as_deref(), Some("ending"));
    node.report(&token, EndReason::Withdrawn);
    node.acknowledged(&token);
    assert!(matches!(node.receive(), ToNode::Refused(_)));
    node.ended();
    assert_eq!(manager.call("GET", "/nodes/a", "").0, 404);
    assert_eq!(manager.bill(id).unwrap()["reason"], "withdrawn");
}

#[test]
fn a_deleted_lease_is_ended_at_its_node() {
    let (manager, mut node) = cluster(2);
    let (_, grant) = manager.call("POST", "/leases", r#"{"cores":1,"memory":1}"#);
    let token = Token::from_text(grant["token"].as_str().unwrap()).unwrap();
    node.claim(&token);
    let id = grant["id"].as_u64().unwrap();
    manager.wait_lease(id, "active");
    for _ in 0..2 {
        let ending = manager.call("DELETE", &format!("/leases/{id}"), "");
        assert_eq!(ending, (200, json!({"id": id, "state": "ending"})));
    }
    assert_eq!(reason_of(node.told_to_end(&token).reason), EndReason::Withdrawn);
    node.report(&token, EndReason::Withdrawn);
    node.acknowledged(&token);
    let ended = manager.call("DELETE", &format!("/leases/{id}"), "");
    assert_eq!(ended, (200, json!({"id": id, "state": "ended"})));
}

#[test]
fn a_changed_capacity_is_told_to_the_node_or_refused() {
    let (manager, mut node) = cluster(1);
    manager.add("a", 3, 64);
    let ToNode::Registered(now) = node.receive() else { panic!("not told") };
    assert_eq!((now.cores.get(), now.memory.get()), (3, 64));
    Client::new(manager.rdma).lease(2, 1);
    let less = r#"{"ip_address":"127.0.0.1","port":10005,"cores":1,"memory":64}"#;
    let (status, answer) = manager.call("POST", "/add?node=a", less);
    assert!(status == 409 && answer["error"].as_str().unwrap().contains("2 cores"), "{answer}");
}

#[test]
fn a_request_is_met_from_several_nodes_if_it_may_be_all_of_it_or_nothing() {
    let manager = Manager::start(&Files::new(&[]), &[]);
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        manager.add(name, 2, 100);
        nodes.push(Node::ready(manager.rdma, name));
    }
    let mut client = Client::new(manager.rdma);
    for (max_nodes, named) in [(1, "cores"), (2, "cores"), (0, "max_nodes"), (33, "max_nodes")] {
        client.ask_nodes(5, 10, 60_000, max_nodes);
        let ToClient::Refused(refused) = client.answer() else { panic!("{max_nodes} nodes") };
        assert!(refused.reason.get().unwrap().contains(named), "{:?}", refused.reason);
    }
    client.ask_nodes(5, 10, 60_000, 32);
    let mut places = Vec::new();
    for part in 0..3 {
        let ToClient::Granted(granted) = client.answer() else { panic!("part {part}") };
        assert_eq!((granted.request.get(), granted.part.get(), granted.parts.get()), (5, part, 3));
        assert!(granted.token.verify(b"42"));
        let terms = granted.token.terms;
        places.push((terms.node.get().unwrap().to_owned(), terms.cores.get()));
    }
    places.sort();
    assert_eq!(places.iter().map(|(_, cores)| cores).sum::<u32>(), 5);
    assert_eq!(places.iter().map(|(node, _)| &**node).collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn a_node_whose_executor_manager_is_to_stop_gets_no_leases_until_it_is_back() {
    let (manager, mut node) = cluster(2);
    let (token, id) = active(&manager, &mut node, &mut Client::new(manager.rdma), 1);
    node.send(&FromNode::Draining(Draining { grace_ms: 60_000.into() }));
    manager.wait_node("a", "draining");
    assert!(matches!(Client::new(manager.rdma).ask(1, 1, 1000), ToClient::Refused(_)));
    assert_eq!(manager.lease_state(id).as_deref(), Some("active"));
    node.report(&token, EndReason::Shutdown);
    node.acknowledged(&token);
    drop(node);
    manager.wait_node("a", "registered"); // it has said that it stops
    let _node = Node::ready_as(manager.rdma, "a", INSTANCE + 1);
    Client::new(manager.rdma).lease(2, 64);
}

#[test]
fn a_node_without_an_instance_is_dropped() {
    let (manager, node) = cluster(1);
    drop(node);
    manager.wait_node("a", "lost");
    let (mut channel, nonces) = dial_node(manager.rdma, b"42").unwrap();
    let name = rfaas_protocol::lease::NodeName::new("a").unwrap();
    let register = Register::new(name, 0, listens(), &nonces, b"42");
    channel.send(&FromNode::Register(register)).unwrap();
    ended(&mut channel);
    assert_eq!(manager.node_state("a").as_deref(), Some("lost"));
}

#[test]
fn a_node_that_is_slow_to_listen_is_told_everything() {
    const REPORTS: u64 = 1000; // far more than are under way to a peer
    let (manager, mut node) = cluster(1);
    let mut token = Client::new(manager.rdma).lease(1, 1).token;
    let mut reported = 0;
    for lease in 1..=REPORTS {
        token.terms.lease = lease.into(); // of an earlier state
        wait_for("room for a report", || node.try_report(&token, EndReason::Released).ok());
        reported += 1;
    }
    // The last one was taken, so all were answered, as far as the manager could.
    manager.wait_bill(REPORTS);
    for lease in 1..=reported {
        token.terms.lease = lease.into();
        node.acknowledged(&token);
    }
    assert_eq!(manager.node_state("a").as_deref(), Some("ready"));
}

#[test]
fn a_manager_that_was_killed_takes_running_leases_over_and_bills_them_once() {
    let files = Files::new(&[]);
    database(&files.path("db.json"), "a", 4);
    let arguments = ["-i", "db.json", "-o", "db.json"];
    let manager = Manager::start(&files, &arguments);
    let mut node = Node::ready(manager.rdma, "a");
    let mut client = Client::new(manager.rdma);
    let running = client.lease(2, 128).token;
    let over = client.lease(1, 128).token;
    node.claim(&running);
    node.claim(&over);
    manager.wait_lease(over.terms.lease.get(), "active");
    manager.end(Signal::SIGKILL);
    node.ended();

    let manager = Manager::start(&files, &arguments);
    let mut node = Node::ready(manager.rdma, "a");
    node.claim(&running);
    node.report(&over, EndReason::Released); // it ended while nobody was there
    node.acknowledged(&over);
    let id = running.terms.lease.get();
    manager.wait_lease(id, "active");
    assert_eq!(manager.get("/nodes/a")["free_cores"], 2);
    let next = Client::new(manager.rdma).lease(2, 1).token;
    assert!(next.terms.lease.get() > over.terms.lease.get(), "ids are not used again");
    assert_eq!(manager.bill(over.terms.lease.get()).unwrap()["allocated_ms"], 7);
    node.report(&running, EndReason::Released);
    node.acknowledged(&running);
    assert_eq!(manager.bill(id).unwrap()["reason"], "released");
}

#[test]
fn many_clients_come_and_go_without_taking_anything_along() {
    let (manager, _node) = cluster(4);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let rdma = manager.rdma;
            std::thread::spawn(move || {
                for _ in 0..50 {
                    let mut client = Client::new(rdma);
                    let token = client.lease(1, 1).token;
                    client.channel.send(&FromClient::Release(LeaseRelease { token })).unwrap();
                    client.channel.flush(PATIENCE).unwrap();
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|thread| thread.join().unwrap());
    wait_for("all of them back", || (manager.get("/nodes/a")["free_cores"] == 4).then_some(()));
    assert_eq!(manager.get("/billing").as_array().map(Vec::len), Some(200));
}

#[test]
fn more_connections_than_it_can_hold_make_room_for_each_other_and_it_goes_on() {
    // Room for 16.
    let manager = Manager::start_limited(&Files::new(&[]), "ulimit -n 640", &[]);
    manager.add("a", 1, 64);
    let _node = Node::ready(manager.rdma, "a");
    let client = || Client { channel: dial(manager.rdma, Role::Lease).unwrap() };
    let mut taken: Vec<_> = (0..40).map(|_| client()).collect();
    client().lease(1, 64);
    ended(&mut taken[0].channel);
}

#[test]
fn the_key_of_a_lease_is_told_once_and_only_where_it_was_granted() {
    let manager = Manager::start(&Files::new(&[]), &[]);
    for node in ["a", "b"] {
        manager.add(node, 1, 64);
    }
    let _nodes = ["a", "b"].map(|node| Node::ready(manager.rdma, node));
    let (mut client, mut other) = (Client::new(manager.rdma), Client::new(manager.rdma));
    let token = client.lease(1, 1).token;
    let shown = token.without_key();
    for client in [&mut client, &mut other] {
        let ToClient::Granted(renewed) = client.renew(shown, 3_600_000) else { panic!() };
        assert_eq!(renewed.token, renewed.token.without_key());
        assert!(renewed.token.with_key_of(&token).verify(b"42"));
    }
    let because = Unusable::Refused.to_wire();
    let replace = LeaseReplace { request: 8.into(), token: shown, because };
    other.channel.send(&FromClient::Replace(replace)).unwrap();
    let ToClient::Refused(refused) = other.answer() else { panic!() };
    assert!(refused.reason.get().unwrap().contains("not granted on this connection"));
    client.channel.send(&FromClient::Replace(replace)).unwrap();
    let ToClient::Granted(replaced) = client.answer() else { panic!() };
    assert!(replaced.token.verify(b"42"));
}
