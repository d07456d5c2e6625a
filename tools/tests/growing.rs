//! Leases that grow, with real processes: what runs goes on, and what is added is where that is.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, SystemTime};

use rfaas::{Client, Constraint, Error, Lease, LeaseRequest};
use serde_json::json;
use testkit::functions::faulty;
use testkit::run::library;
use testkit::service::{call, cluster, warm};
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options};

/// Two nodes of three cores.
fn two_nodes() -> LocalCluster {
    cluster(Options { nodes: 2, cores: 3, memory: 1024, ..Options::default() })
}

fn lease_on(client: &Client, node: &str) -> Lease {
    client.lease(LeaseRequest::new(1, 64).near(node)).unwrap()
}

/// What each lease has, by the resource manager.
fn leases(cluster: &LocalCluster) -> BTreeMap<u64, (String, u64, u64)> {
    let leases = cluster.http().unwrap().get("/leases").unwrap().body;
    let of = |lease: &serde_json::Value| {
        let number = |key: &str| lease[key].as_u64().unwrap();
        let node = lease["node"].as_str().unwrap().to_owned();
        (number("id"), (node, number("cores"), number("memory")))
    };
    leases.as_array().unwrap().iter().map(of).collect()
}

#[test]
fn a_lease_grows_in_place_while_its_workers_serve() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = two_nodes();
    let client = cluster.client().unwrap();
    let lease = lease_on(&client, "local-node-2");
    let mut first = lease.deploy_with(faulty(directory.path()), &warm()).unwrap();
    assert_eq!(call(&mut first, "sleep_ms", &1_u32.to_ne_bytes()).unwrap(), 1_u32.to_ne_bytes());
    let (id, process) = (lease.id().unwrap(), cluster.executors_running());
    let before = leases(&cluster);

    // A call is under way all the time.
    let mut more = thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let millis = 2_000_u32.to_ne_bytes();
            assert_eq!(call(&mut first, "sleep_ms", &millis).unwrap(), millis);
        });
        let grown = lease.grow(4).unwrap();
        let mut executors: Vec<_> = grown
            .iter()
            .map(|lease| lease.deploy_with(library("functions"), &warm()).unwrap())
            .collect();
        for executor in &mut executors {
            assert_eq!(call(executor, "empty", &[7; 64]).unwrap(), [7; 64]);
        }
        busy.join().unwrap();
        executors
    });
    let of: Vec<_> = more.iter().map(|more| (more.node().to_owned(), more.workers())).collect();
    assert_eq!(of, [("local-node-2".into(), 2), ("local-node".into(), 2)]);
    let now = leases(&cluster);
    assert_eq!(now.len(), 3, "one for each node, and the one that there was");
    assert_eq!(now[&id.get()], before[&id.get()], "it is as it was");
    assert_eq!(now[&more[0].lease_id().get()], ("local-node-2".into(), 2, 128));
    for process in &process {
        assert!(cluster.executors_running().contains(process), "its process has gone");
    }
    // About as long as that lease: both clocks are of this machine.
    let ends = more[0].lease().expires_at();
    let between = |a: SystemTime, b: SystemTime| a.max(b).duration_since(a.min(b)).unwrap();
    assert!(between(ends, lease.expires_at()) < Duration::from_secs(60));

    // All or none: a core is left.
    let error = lease.grow(2).unwrap_err();
    assert!(matches!(error, Error::LeaseRefused { .. }), "{error:?}");
    let told = error.to_string();
    assert!(told.contains("2 times 1 core and 64 MB"), "it says what is missing: {told}");
    assert_eq!(leases(&cluster), now, "nothing is held");

    // It grows too when the resource manager was started again.
    cluster.resource_manager().unwrap().kill();
    cluster.start_resource_manager().unwrap();
    eventually("both nodes are back", || {
        let nodes = cluster.http().unwrap().get("/nodes").unwrap().body;
        nodes.as_array().unwrap().iter().all(|node| node["state"] == "ready")
    });
    more.remove(0).release().unwrap();
    eventually("two cores are free there", || {
        let node = cluster.http().unwrap().get("/nodes/local-node-2").unwrap().body;
        node["free_cores"] == 2
    });
    let grown = lease.grow(2).unwrap();
    let [again] = &grown[..] else { panic!("one node has room") };
    assert_eq!((again.node(), again.cores()), ("local-node-2", 2));

    // Each has a bill of its own.
    assert_eq!(call(&mut first, "sleep_ms", &1_u32.to_ne_bytes()).unwrap(), 1_u32.to_ne_bytes());
    first.release().unwrap();
    more.remove(0).release().unwrap();
    eventually("all that was used is billed", || {
        let bills = cluster.http().unwrap().get("/billing").unwrap().body;
        let claimed = |bill: &&serde_json::Value| bill["invocations"].as_u64() > Some(0);
        let mut cores: Vec<_> = bills
            .as_array()
            .unwrap()
            .iter()
            .filter(claimed)
            .map(|bill| bill["cores"].as_u64().unwrap())
            .collect();
        cores.sort_unstable();
        cores == [1, 2, 2]
    });
    drop(client);
    cluster.stop().unwrap();
}

#[test]
fn several_leases_grow_where_most_of_them_are_and_as_their_constraints_let_them() {
    let _guard = one_at_a_time();
    let cluster = two_nodes();
    let client = cluster.client().unwrap();
    let gang = ["local-node", "local-node-2", "local-node-2"];
    let gang = client.lease_gang(3, LeaseRequest::new(1, 64).nodes(gang)).unwrap();
    let more = client.grow(&gang.iter().collect::<Vec<_>>(), 2, LeaseRequest::new(1, 32)).unwrap();
    let of: Vec<_> = more.iter().map(|more| (more.node(), more.cores())).collect();
    assert_eq!(of, [("local-node-2", 1), ("local-node", 1)]);

    // One that is to be on one node does not grow beyond it.
    let lease = client.lease(LeaseRequest::new(1, 64).together()).unwrap();
    assert_eq!(lease.node(), "local-node");
    drop(more);
    eventually("a core is free on each node", || leases(&cluster).len() == 4);
    let error = lease.grow(2).unwrap_err();
    let Error::ConstraintUnmet { constraints, .. } = error else { panic!("{error:?}") };
    assert_eq!(constraints, [Constraint::Together]);
    assert_eq!(lease.grow(1).unwrap()[0].node(), "local-node");
    drop(gang);
    eventually("all but this are given back", || leases(&cluster).len() == 1);

    // Over HTTP; and nobody else's.
    let id = lease.id().unwrap().get();
    let ask = |client: &str| {
        let body = json!({"cores": 1, "memory": 1, "gang": 3, "grows": [id], "client": client});
        cluster.http().unwrap().post("/leases", &body).unwrap()
    };
    let granted = ask("anonymous");
    assert_eq!(granted.status, 201, "{}", granted.body);
    let parts = granted.body["parts"].as_array().unwrap();
    let of: Vec<_> = parts.iter().map(|part| (&part["node"], &part["cores"])).collect();
    assert_eq!(of, [(&json!("local-node"), &json!(2)), (&json!("local-node-2"), &json!(1))]);
    let refused = ask("somebody-else");
    assert_eq!(refused.status, 409, "{}", refused.body);
    // As anybody is told: nothing of the lease.
    assert!(refused.body["error"].as_str().unwrap().contains("no ready nodes have 3 times"));
    drop((lease, client));
    cluster.stop().unwrap();
}
