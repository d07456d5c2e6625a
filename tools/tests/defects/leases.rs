//! Leases: what they take, what comes back, who may have them.

use std::time::Duration;

use nix::sys::signal::Signal;
use rfaas::{Client, Error, Lease, LeaseRequest};
use rfaas_config::ExecutorsDatabase;
use rfaas_protocol::allocation::RefusedBecause;
use rfaas_protocol::channel::{Channel, Incoming};
use rfaas_protocol::lease::{self, ClientName, FromClient, ToClient, Token};
use rfaas_protocol::{Empty, Role};
use serde_json::{Value, json};
use testkit::{Http, Options, procfs};

use super::Scene;
use testkit::functions::{faulty, tracer};
use testkit::run::{ended_by, kill_9, library};
use testkit::service::{call, deploy, warm};
use testkit::wait::{deadline, eventually, rounds};

/// The node, as the resource manager shows it.
fn node(http: &Http) -> Value {
    http.get("/nodes").unwrap().body[0].clone()
}

fn free(http: &Http) -> (u64, u64) {
    let node = node(http);
    (node["free_cores"].as_u64().unwrap(), node["free_memory"].as_u64().unwrap())
}

/// Asks for a lease over HTTP; its id, and all of the answer.
fn granted(http: &Http, ask: &Value) -> (u64, Value) {
    let answer = http.post("/leases", ask).unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    (answer.body["id"].as_u64().unwrap(), answer.body)
}

#[test]
fn a_lease_gives_back_what_it_took_and_not_what_another_did() {
    let scene = Scene::new(Options { cores: 3, ..Options::default() });
    let library = faulty(scene.directory.path());
    for round in 0..3 {
        let one = deploy(&scene.client, 1, &library, &warm());
        let two = deploy(&scene.client, 2, &library, &warm());
        let (first, second) = if round % 2 == 0 { (one, two) } else { (two, one) };
        first.release().unwrap();
        second.release().unwrap();
        let all = deploy(&scene.client, 3, &library, &warm());
        all.release().unwrap();
    }
    scene.is_free();
    scene.ends();
}

#[test]
fn a_lease_that_is_given_back_twice_is_credited_and_billed_once() {
    let scene = Scene::new(Options { cores: 4, ..Options::default() });
    let http = scene.cluster.http().unwrap().clone();
    let other = deploy(&scene.client, 1, &library("functions"), &warm());
    let lease = scene.client.lease(LeaseRequest::new(2, 128)).unwrap();
    let id = lease.id().unwrap().get();
    lease.deploy_with(library("functions"), &warm()).unwrap().release().unwrap();
    drop(lease);
    for _ in 0..3 {
        let answer = http.delete(&format!("/leases/{id}")).unwrap();
        assert_eq!((answer.status, &answer.body["state"]), (200, &json!("ended")), "{answer:?}");
        assert_eq!(free(&http), (3, 1024 - 64), "the other lease goes on");
    }
    let bills = http.get("/billing").unwrap().body;
    assert_eq!(bills.as_array().unwrap().len(), 1, "{bills}");
    other.release().unwrap();
    scene.is_free();
    scene.ends();
}

/// A client that asks for a lease and is gone: the library's would give it back.
fn vanishes_with_a_lease(scene: &Scene, cores: u32) {
    let device = scene.cluster.open_device().unwrap();
    let mut channel = Channel::new(&device.device, 4).unwrap();
    let manager = scene.cluster.resource_manager_address().unwrap();
    channel.connect(manager, Role::Lease, &Empty {}, deadline()).unwrap();
    let request = lease::LeaseRequest {
        request: 1.into(),
        cores: cores.into(),
        memory: 64.into(),
        timeout_ms: 60_000.into(),
        max_nodes: 1.into(),
        client: ClientName::new("vanishing").unwrap(),
    };
    channel.send(&FromClient::Request(request)).unwrap();
    let answer = channel.receive::<ToClient>(deadline()).unwrap();
    assert!(matches!(answer, Incoming::Message(ToClient::Granted(_))), "{answer:?}");
}

#[test]
fn cores_come_back_from_clients_that_do_not_use_them() {
    let scene = Scene::small();
    let http = scene.cluster.http().unwrap().clone();
    // Never claimed, and its time is over.
    let (_, _) = granted(&http, &json!({"cores": 2, "memory": 64, "timeout_ms": 3000}));
    assert_eq!(free(&http).0, 0);
    scene.is_free();

    // Never claimed, and its client is gone.
    vanishes_with_a_lease(&scene, 2);
    scene.is_free();

    // Claimed and deployed, and its time is over: that is told.
    let limit = Duration::from_secs(15); // in which a busy machine deploys
    let lease = scene.client.lease(LeaseRequest::new(2, 64).timeout(limit)).unwrap();
    let mut executor = lease.deploy_with(library("functions"), &warm()).unwrap();
    scene.is_free();
    let error = call(&mut executor, "empty", &[1; 8]).unwrap_err();
    let told = matches!(&error, Error::LeaseEnded { reason } if reason.name() == "expired");
    assert!(told, "{error:?}");
    drop((executor, lease));
    let bills = http.get("/billing").unwrap().body;
    let reasons: Vec<_> = bills.as_array().unwrap().iter().map(|bill| &bill["reason"]).collect();
    assert_eq!(reasons, ["expired", "client_gone", "expired"], "{bills}");
    scene.ends();
}

#[test]
fn a_node_is_leased_as_a_whole_and_its_clients_vanish_again_and_again() {
    let scene = Scene::small();
    for _ in 0..rounds(30) {
        let client = scene.cluster.client().unwrap();
        let whole = client.lease(LeaseRequest::new(2, 1024)).unwrap();
        let error = scene.client.lease(LeaseRequest::new(1, 1)).unwrap_err();
        assert!(matches!(error, Error::LeaseRefused { .. }), "{error:?}");
        drop(whole);
        drop(client);
    }
    scene.is_free();
    let mut executor = scene.deploy(2, &warm());
    assert_eq!(call(&mut executor, "echo", &[1; 8]).unwrap(), [1; 8]);
    executor.release().unwrap();
    scene.ends();
}

#[test]
fn a_node_takes_leases_whether_it_came_before_it_was_added_or_came_back() {
    let mut scene = Scene::small();
    let http = scene.cluster.http().unwrap().clone();
    let name = node(&http)["node"].as_str().unwrap().to_owned();
    let port = scene.cluster.executor_manager_address().port();
    let address = node(&http)["ip_address"].clone();
    let leases = |scene: &Scene| {
        eventually("the node is ready", || node(&http)["state"] == "ready");
        let mut executor = scene.deploy(2, &warm());
        assert_eq!(call(&mut executor, "echo", &[1; 8]).unwrap(), [1; 8]);
        executor.release().unwrap();
    };

    // Removed, its executor manager goes on; then added while that is there.
    assert_eq!(http.post_text(&format!("/remove?node={name}"), "").unwrap().status, 200);
    eventually("the node is forgotten", || {
        http.get("/nodes").unwrap().body == Value::Array(Vec::new())
    });
    let add = json!({"ip_address": address, "port": port, "cores": 2, "memory": 1024});
    assert!(http.post(&format!("/add?node={name}"), &add).unwrap().status < 300);
    leases(&scene);

    // Started again, the resource manager is the same.
    for _ in 0..2 {
        scene.cluster.executor_manager().unwrap().kill();
        scene.cluster.start_executor_manager().unwrap();
        leases(&scene);
    }
    scene.ends();
}

#[test]
fn a_removed_node_takes_no_leases_and_ends_those_it_has() {
    let scene = Scene::small();
    let http = scene.cluster.http().unwrap();
    let name = node(http)["node"].as_str().unwrap().to_owned();
    let lease = scene.client.lease(LeaseRequest::new(1, 64)).unwrap();
    let mut executor = lease.deploy_with(library("functions"), &warm()).unwrap();
    let remove = format!("/remove?node={name}&grace_ms=5000");
    for _ in 0..2 {
        assert_eq!(http.post_text(&remove, "").unwrap().status, 200, "however often");
    }
    let error = scene.client.lease(LeaseRequest::new(1, 64)).unwrap_err();
    assert!(matches!(error, Error::LeaseRefused { .. }), "{error:?}");
    eventually("the client is told", || lease.ending().is_some());
    assert_eq!(call(&mut executor, "empty", &[1; 8]).unwrap(), [1; 8], "its calls may finish");
    eventually("the node is forgotten", || {
        http.get("/nodes").unwrap().body == Value::Array(Vec::new())
    });
    let error = call(&mut executor, "empty", &[1; 8]).unwrap_err();
    assert!(matches!(error, Error::LeaseEnded { .. }), "{error:?}");
    drop((executor, lease));
    scene.ends();
}

#[test]
fn the_cores_of_a_dead_executor_come_back_while_another_process_traces_it() {
    let scene = Scene::new(Options::impatient());
    let mut executor = scene.deploy(2, &warm());
    assert_eq!(call(&mut executor, "echo", &[1; 8]).unwrap(), [1; 8]);
    let [process] = scene.cluster.executors_running()[..] else { panic!("one executor") };
    let tracer = tracer(scene.directory.path(), process);
    kill_9(process);
    call(&mut executor, "echo", &[1; 8]).unwrap_err();
    drop(executor);
    scene.is_free();
    assert!(procfs::Stat::of(process).is_some(), "its tracer keeps it");
    let mut executor = scene.deploy(2, &warm());
    assert_eq!(call(&mut executor, "echo", &[2; 8]).unwrap(), [2; 8]);
    executor.release().unwrap();
    tracer.signal(Signal::SIGKILL);
    assert!(ended_by(&tracer.finish(), Signal::SIGKILL));
    eventually("it is reaped", || procfs::Stat::of(process).is_none());
    scene.ends();
}

#[test]
fn a_lease_of_nothing_or_of_less_is_refused_and_changes_nothing() {
    let scene = Scene::small();
    let http = scene.cluster.http().unwrap();
    let before = http.get("/nodes").unwrap();
    for (key, value) in [
        ("cores", json!(0)),
        ("cores", json!(-1)),
        ("cores", json!(1_u64 << 40)),
        ("memory", json!(0)),
        ("memory", json!(-4096)),
        ("memory", json!("much")),
        ("timeout_ms", json!(0)),
        ("timeout_ms", json!(-1)),
    ] {
        let mut ask = json!({"cores": 1, "memory": 64, "timeout_ms": 1000});
        ask[key] = value;
        let answer = http.post("/leases", &ask).unwrap();
        assert!((400..409).contains(&answer.status), "{ask}: {answer:?}");
        assert!(answer.body["error"].as_str().is_some_and(|text| text.contains(key)), "{answer:?}");
    }
    for (cores, memory) in [(0, 64), (1, 0)] {
        let error = scene.client.lease(LeaseRequest::new(cores, memory)).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    }
    // More than there is: nothing wrong with the question.
    for (cores, memory) in [(3, 64), (1, 1025), (u32::MAX, u32::MAX)] {
        let error = scene.client.lease(LeaseRequest::new(cores, memory)).unwrap_err();
        assert!(matches!(error, Error::LeaseRefused { .. }), "{error:?}");
    }
    assert_eq!(http.get("/nodes").unwrap(), before);
    assert_eq!(http.get("/leases").unwrap().body, Value::Array(Vec::new()));
    scene.ends();
}

#[test]
fn one_connection_has_more_leases_than_a_queue_used_to_hold() {
    let scene = Scene::small();
    // The original stopped at 33.
    for _ in 0..rounds(1000) {
        drop(scene.client.lease(LeaseRequest::new(2, 64)).unwrap());
        // It is given back without waiting, on the connection on which the next one is asked for.
    }
    for round in 0..40u8 {
        let mut executor = deploy(&scene.client, 1, &library("functions"), &warm());
        assert_eq!(call(&mut executor, "empty", &[round; 8]).unwrap(), [round; 8]);
        executor.release().unwrap();
    }
    scene.is_free();
    scene.ends();
}

#[test]
fn http_and_rdma_at_once_never_lease_more_than_there_is() {
    let scene = Scene::new(Options { cores: 4, memory: 400, ..Options::default() });
    let http = scene.cluster.http().unwrap();
    let most = 4;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let client = scene.cluster.client().unwrap();
                for cores in (1..=3).cycle().take(rounds(300) as usize) {
                    match client.lease(LeaseRequest::new(cores, 64)) {
                        Ok(lease) => drop(lease),
                        Err(error) => {
                            assert!(matches!(error, Error::LeaseRefused { .. }), "{error:?}")
                        }
                    }
                }
            });
            scope.spawn(|| {
                for cores in (1..=3).cycle().take(rounds(300) as usize) {
                    let ask = json!({"cores": cores, "memory": 64, "timeout_ms": 60_000});
                    let answer = http.post("/leases", &ask).unwrap();
                    assert!([201, 409].contains(&answer.status), "{answer:?}");
                    let leases = http.get("/leases").unwrap().body;
                    let leased = leases.as_array().unwrap().iter().map(|lease| &lease["cores"]);
                    let leased: u64 = leased.map(|cores| cores.as_u64().unwrap()).sum();
                    assert!(leased <= most, "{leases}");
                    if answer.status == 201 {
                        let id = answer.body["id"].as_u64().unwrap();
                        assert_eq!(http.delete(&format!("/leases/{id}")).unwrap().status, 200);
                    }
                }
            });
        }
    });
    scene.is_free();
    assert_eq!(free(http), (most, 400));
    let bills = http.get("/billing").unwrap().body;
    let mut ids: Vec<_> =
        bills.as_array().unwrap().iter().map(|bill| bill["lease"].as_u64()).collect();
    let billed = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), billed, "each is billed once");
    scene.ends();
}

#[test]
fn a_lease_that_no_node_has_room_for_is_met_from_several_or_not_at_all() {
    let scene = Scene::new(Options { nodes: 3, cores: 2, memory: 400, ..Options::default() });
    let whole = || {
        let nodes = scene.cluster.http().unwrap().get("/nodes").unwrap().body;
        let free = |node: &Value| node["free_cores"] == 2 && node["free_memory"] == 400;
        nodes.as_array().unwrap().iter().all(free)
    };
    // More than a node has; more than all of them have; more than the nodes that are allowed have.
    for (cores, nodes) in [(5, 1), (7, 3), (5, 2)] {
        let error = scene.client.lease_many(LeaseRequest::new(cores, 500).max_nodes(nodes));
        assert!(matches!(error, Err(Error::LeaseRefused { .. })), "{error:?}");
        assert!(whole(), "nothing is taken for a request that is refused");
    }
    let leases = scene.client.lease_many(LeaseRequest::new(5, 500).max_nodes(3)).unwrap();
    assert_eq!(leases.iter().map(Lease::cores).sum::<u32>(), 5);
    let mut names: Vec<_> = leases.iter().map(|lease| lease.node().to_owned()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3, "one lease a node");
    for (round, lease) in (0u8..).zip(&leases) {
        let mut executor = lease.deploy_with(library("functions"), &warm()).unwrap();
        assert_eq!(call(&mut executor, "empty", &[round; 8]).unwrap(), [round; 8]);
        executor.release().unwrap();
    }
    drop(leases);
    eventually("all nodes are free", whole);
    scene.ends();
}

#[test]
fn a_client_without_a_token_of_this_cluster_gets_nothing() {
    let scene = Scene::small();
    let http = scene.cluster.http().unwrap();
    // None at all: the client makes its claim up, as it may where there is no resource manager.
    let device = scene.cluster.open_device().unwrap();
    let database = ExecutorsDatabase::load(scene.cluster.executors()).unwrap();
    let stranger = Client::with_executors(device, database).unwrap();
    let lease = stranger.lease(LeaseRequest::new(1, 64)).unwrap();
    let error = lease.deploy_with(library("functions"), &warm()).unwrap_err();
    let Error::AllocationRefused { because, .. } = error else { panic!("{error:?}") };
    assert_eq!(because, RefusedBecause::BadToken);

    // One of another lease, altered, or of nothing: it gives no lease back.
    let (id, answer) = granted(http, &json!({"cores": 1, "memory": 64, "timeout_ms": 60_000}));
    let text = answer["token"].as_str().unwrap();
    let token = Token::from_text(text).unwrap();
    assert_eq!(token.terms.lease.get(), id);
    for (weak, is_ours) in [(b"42".as_slice(), true), (b"43", false)] {
        // Who knows the secret can sign; a secret of two bytes is warned of.
        assert_eq!(Token::sign(token.terms, weak).verify(b"42"), is_ours);
    }
    assert!(scene.cluster.logs().contains("weak"), "{}", scene.cluster.logs());
    assert_eq!(http.get("/leases").unwrap().body.to_string().matches(text).count(), 0);
    assert_eq!(http.delete(&format!("/leases/{id}")).unwrap().status, 200);
    scene.is_free();
    scene.ends();
}
