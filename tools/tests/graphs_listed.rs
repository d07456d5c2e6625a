//! Who runs what where: `GET /graphs` lists the workers of graphs that real clients have compiled, as long as these
//! have leases, also of a lane that was started again and after a restart of the resource manager.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::path::Path;

use rfaas::{Client, CompiledGraph, Deployment, Graph, Lanes, LeaseRequest, Spin};
use serde_json::{Value, json};
use testkit::run::{command, run};
use testkit::service::cluster_for_graphs;
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options};

fn compile(client: &Client, graph: &Graph) -> CompiledGraph {
    client.compile_with(graph, &Deployment::new().spin(Spin::Never).slots(2)).unwrap()
}

/// Two workers, of which the first has two functions.
fn shared(library: &Path) -> Graph {
    let mut graph = Graph::new();
    let [a, b, c] = ["add_one", "twice", "add_one"].map(|name| graph.function(library, name));
    graph.input(a, 64).edge(a, b, 64).edge(b, c, 64).output(c, 64).share(b, a);
    graph
}

fn graphs(cluster: &LocalCluster) -> Vec<Value> {
    let Value::Array(graphs) = cluster.http().unwrap().get("/graphs").unwrap().body else {
        panic!()
    };
    graphs
}

fn nothing_is_listed(cluster: &LocalCluster) {
    eventually("nothing is listed", || graphs(cluster).is_empty());
}

/// Lane, worker, functions, node and state of each worker.
fn workers(graph: &Value) -> Vec<(u64, u64, Value, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let number = |value: &Value| value.as_u64().unwrap();
    let worker = |worker: &Value| {
        let [lane, index, functions, node, state] =
            ["lane", "worker", "functions", "node", "state"].map(|key| &worker[key]);
        (number(lane), number(index), functions.clone(), text(node), text(state))
    };
    graph["workers"].as_array().unwrap().iter().map(worker).collect()
}

/// What is listed of two lanes of [`shared`], all of it claimed.
fn two_lanes() -> Vec<(u64, u64, Value, String, String)> {
    let worker = |lane, worker, functions: &[&str]| {
        (lane, worker, json!(functions), "local-node".to_owned(), "active".to_owned())
    };
    let lane = |lane| [worker(lane, 0, &["add_one", "twice"]), worker(lane, 1, &["add_one"])];
    [lane(0), lane(1)].concat()
}

#[test]
fn graphs_are_listed_with_their_workers_as_long_as_they_have_leases() {
    let _guard = one_at_a_time();
    let (cluster, client, directory, library) = cluster_for_graphs();
    assert!(graphs(&cluster).is_empty());
    let mut graph = shared(&library);
    let mut first = compile(&client, graph.lanes(Lanes::exactly(2)).name("pipeline"));
    let second = compile(&client, &shared(&library));
    assert_ne!(first.id(), second.id());
    eventually("all workers are claimed", || {
        graphs(&cluster)
            .iter()
            .all(|graph| workers(graph).iter().all(|worker| worker.4 == "active"))
    });
    let listed = graphs(&cluster);
    assert_eq!(listed.len(), 2);
    let of = |id: u64| listed.iter().find(|graph| graph["id"] == id).unwrap();
    let pipeline = of(first.id());
    assert_eq!(
        [&pipeline["name"], &pipeline["client"], &pipeline["leases"]],
        [&json!("pipeline"), &json!("anonymous"), &json!(4)]
    );
    assert_eq!(workers(pipeline), two_lanes());
    // Unless it has a name, it is called as its library is.
    assert_eq!(of(second.id())["name"], "libgraph.so");
    assert_eq!(of(second.id())["leases"], 2);
    drop(second);

    // The leases are those of the list of leases. One that ends is replaced, and the new one listed in its place.
    let http = cluster.http().unwrap();
    let ended = &pipeline["workers"][1]["lease"];
    http.delete(&format!("/leases/{ended}")).unwrap();
    eventually("another lease has its place", || {
        let runs = (0..4).all(|_| first.run(&[1]).is_ok());
        let listed = graphs(&cluster);
        let is_there = |worker: &Value| worker["lease"] == *ended;
        let workers = listed[0]["workers"].as_array().unwrap();
        runs && listed.len() == 1 && workers.len() == 4 && !workers.iter().any(is_there)
    });
    eventually("it is claimed", || workers(&graphs(&cluster)[0]) == two_lanes());
    first.release().unwrap();
    nothing_is_listed(&cluster);

    // A graph in a file is called as the file is.
    let path = directory.path().join("halves.json");
    let text = r#"{
        "functions": [{"name": "a", "library": "libgraph.so", "function": "add_one"}],
        "inputs": [{"to": "a", "bytes": 64}],
        "outputs": [{"from": "a", "bytes": 64}]
    }"#;
    std::fs::write(&path, text).unwrap();
    let third = compile(&client, &Graph::read(&path).unwrap());
    eventually("it is listed", || graphs(&cluster).len() == 1);
    assert_eq!(graphs(&cluster)[0]["name"], "halves");
    drop(third);
    nothing_is_listed(&cluster);
    cluster.stop().unwrap();
}

#[test]
fn leases_over_http_are_listed_as_what_they_are_said_to_be_for_and_the_command_shows_it() {
    let _guard = one_at_a_time();
    let (cluster, _client, _directory, _library) = cluster_for_graphs();
    let http = cluster.http().unwrap();
    let list = |url: &str| run(command("rfaas", ["graph", "list", "--http", url]));
    assert_eq!(list(http.base()).success().stdout, "");
    let asked = json!({
        "cores": 1, "memory": 64, "client": "alice", "gang": 2,
        "graph": {"id": 7, "name": "words", "lane": 3, "workers": [["split", "count"], ["merge"]]},
    });
    let answer = http.post("/leases", &asked).unwrap();
    assert_eq!(answer.status, 201, "{:?}", answer.body);
    let leases = [0, 1].map(|part: usize| answer.body["parts"][part]["id"].as_u64().unwrap());
    let listed = graphs(&cluster);
    assert_eq!(
        [&listed[0]["id"], &listed[0]["name"], &listed[0]["client"], &listed[0]["leases"]],
        [&json!(7), &json!("words"), &json!("alice"), &json!(2)]
    );
    let shown = list(&format!("{}/", http.base())).success().stdout;
    let [first, second] = leases;
    assert_eq!(
        shown,
        format!(
            "7  words  alice  2 leases\n  3.0  local-node  {first}  granted  split, count\n  \
             3.1  local-node  {second}  granted  merge\n"
        )
    );
    for lease in leases {
        http.delete(&format!("/leases/{lease}")).unwrap();
    }
    nothing_is_listed(&cluster);
    let base = http.base().to_owned();
    cluster.stop().unwrap();
    list(&base).is_unreachable(&["/graphs got no answer"]);
}

#[test]
fn a_graph_that_runs_is_listed_after_a_restart_of_the_resource_manager() {
    let _guard = one_at_a_time();
    for keeps_state in [true, false] {
        let options = Options { cores: 5, memory: 4096, keeps_state, ..Options::default() };
        let mut cluster = testkit::service::cluster(options);
        let directory = tempfile::tempdir().unwrap();
        let library = testkit::functions::graph(directory.path());
        let client = cluster.client().unwrap();
        let mut graph = shared(&library);
        let mut graph = compile(&client, graph.lanes(Lanes::exactly(2)));
        let is_listed = |cluster: &LocalCluster| {
            graphs(cluster).first().is_some_and(|graph| workers(graph) == two_lanes())
        };
        eventually("it is listed", || is_listed(&cluster));
        // What leases are for is committed with the next one that is granted, or some time later.
        drop(client.lease(LeaseRequest::new(1, 64)).unwrap());
        cluster.resource_manager().unwrap().kill();
        assert_eq!(graph.run(&[1]).unwrap(), [[5]]);
        cluster.start_resource_manager().unwrap();
        eventually("its leases are there again", || {
            let leases = cluster.http().unwrap().get("/leases").unwrap().body;
            let leases = leases.as_array().unwrap();
            let active = leases.iter().filter(|lease| lease["state"] == "active");
            active.count() == 4
        });
        // Without a state file, nodes tell of leases and not of what these are for.
        assert_eq!(is_listed(&cluster), keeps_state);
        assert_eq!(graphs(&cluster).is_empty(), !keeps_state);
        assert_eq!(graph.run(&[1]).unwrap(), [[5]]);
        graph.release().unwrap();
        nothing_is_listed(&cluster);
        drop(client);
        cluster.stop().unwrap();
    }
}
