//! Where the workers of graphs are, with real processes on several nodes: a lane is leased at once, all of it or none;
//! constraints hold, also when a lane is started again; one that cannot hold is named, and nothing is held then.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use rfaas::{
    Client, CompiledGraph, Constraint, Deployment, Error, Graph, Lanes, LeaseRequest, Spin,
};
use serde_json::Value;
use tempfile::TempDir;
use testkit::functions::graph as graph_library;
use testkit::service::{cluster, label};
use testkit::wait::{eventually, one_at_a_time, rounds};
use testkit::{LocalCluster, Options};

const NODES: [&str; 3] = ["local-node", "local-node-2", "local-node-3"];

/// Three nodes of four cores, or as `options` say, and the functions, which are in the directory.
fn nodes_of_four(options: Options) -> (LocalCluster, Client, TempDir, PathBuf) {
    let cluster = cluster(Options { nodes: 3, cores: 4, memory: 4096, ..options });
    let directory = tempfile::tempdir().unwrap();
    let library = graph_library(directory.path());
    let client = cluster.client().unwrap();
    (cluster, client, directory, library)
}

/// So many functions, each of which adds one.
fn chain(library: &Path, functions: usize) -> Graph {
    let mut graph = Graph::new();
    let chain: Vec<_> = (0..functions).map(|_| graph.function(library, "add_one")).collect();
    graph.input(chain[0], 64).output(chain[functions - 1], 64);
    for edge in chain.windows(2) {
        graph.edge(edge[0], edge[1], 64);
    }
    graph
}

fn compile(client: &Client, graph: &Graph) -> rfaas::Result<CompiledGraph> {
    client.compile_with(graph, &Deployment::new().spin(Spin::Never).slots(2))
}

/// Compiles it, sees that it runs, and returns the nodes of its workers.
fn nodes(client: &Client, graph: &Graph) -> Vec<String> {
    let mut compiled = compile(client, graph).unwrap();
    let workers = compiled.nodes().count() / compiled.lanes();
    assert_eq!(compiled.run(&[1]).unwrap(), [[1 + workers as u8]]);
    let nodes = compiled.nodes().map(str::to_owned).collect();
    compiled.release().unwrap();
    nodes
}

fn different(nodes: &[String]) -> usize {
    nodes.iter().collect::<BTreeSet<_>>().len()
}

/// What the resource manager lists at `path`.
fn list(cluster: &LocalCluster, path: &str) -> Vec<Value> {
    let Value::Array(listed) = cluster.http().unwrap().get(path).unwrap().body else { panic!() };
    listed
}

fn nothing_is_held(cluster: &LocalCluster) {
    eventually("nothing is held", || list(cluster, "/leases").is_empty());
}

#[test]
fn the_workers_of_a_lane_are_where_its_constraints_say() {
    let _guard = one_at_a_time();
    let (cluster, client, _directory, library) = nodes_of_four(Options::default());
    label(&cluster, NODES[1], "gpu");
    let graph = |functions| chain(&library, functions);
    // There is room for two on the first node.
    let before = client.lease(LeaseRequest::new(2, 64)).unwrap();
    assert_eq!(before.node(), NODES[0]);
    assert_eq!(nodes(&client, &graph(3)), [NODES[0], NODES[0], NODES[1]]);

    let together = nodes(&client, graph(3).together());
    assert_eq!(together, [NODES[1]; 3]);
    assert_eq!(different(&nodes(&client, graph(3).apart())), 3);
    assert_eq!(nodes(&client, graph(2).near(NODES[2])), [NODES[2]; 2]);
    let near = nodes(&client, graph(5).near(NODES[2]));
    assert_eq!(near.iter().filter(|node| *node == NODES[2]).count(), 4, "{near:?}");
    assert_eq!(nodes(&client, graph(2).leave_free(1)), [NODES[0], NODES[1]]);
    assert_eq!(nodes(&client, graph(3).at_least(3)), [NODES[1]; 3]);
    assert_eq!(nodes(&client, graph(2).has("gpu")), [NODES[1]; 2]);
    let named = [NODES[2], NODES[0], NODES[2]];
    assert_eq!(nodes(&client, graph(3).nodes(named)), named);

    // Each lane for itself: the third one finds no node with room for three.
    let lanes = nodes(&client, graph(3).together().lanes(Lanes::up_to(9)));
    assert_eq!(lanes.len(), 6);
    assert!(lanes.chunks(3).all(|lane| different(lane) == 1), "{lanes:?}");
    drop(before);
    nothing_is_held(&cluster);
    cluster.stop().unwrap();
}

#[test]
fn a_constraint_that_cannot_hold_is_named_and_nothing_is_held() {
    let _guard = one_at_a_time();
    let (cluster, client, directory, library) = nodes_of_four(Options::default());
    let unmet = |graph: &Graph, expected: &[Constraint]| {
        match compile(&client, graph) {
            Err(Error::ConstraintUnmet { constraints, reason }) => {
                assert_eq!(constraints, expected, "{reason}");
                assert!(expected.iter().all(|name| reason.contains(name.name())), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        nothing_is_held(&cluster);
    };
    let graph = |functions| chain(&library, functions);
    unmet(graph(5).together(), &[Constraint::Together]);
    unmet(graph(4).apart(), &[Constraint::Apart]);
    unmet(graph(2).leave_free(4), &[Constraint::LeaveFree]);
    unmet(graph(2).has("gpu"), &[Constraint::Has]);
    unmet(graph(5).together().apart(), &[Constraint::Together, Constraint::Apart]);
    // All lanes, or none: the first two would fit.
    unmet(graph(4).together().has("gpu").lanes(Lanes::exactly(2)), &[Constraint::Has]);
    // Before anything is asked.
    let error = compile(&client, graph(2).nodes(["local-node"])).unwrap_err();
    assert!(matches!(error, Error::InvalidConstraint(_)), "{error:?}");

    // A graph in a file says the same, and is refused in the same words.
    let path = directory.path().join("graph.json");
    let text = r#"{
        "functions": [
            {"name": "a", "library": "libgraph.so", "function": "add_one"},
            {"name": "b", "library": "libgraph.so", "function": "add_one"}
        ],
        "inputs": [{"to": "a", "bytes": 64}],
        "edges": [{"from": "a", "to": "b", "bytes": 64}],
        "outputs": [{"from": "b", "bytes": 64}],
        "constraints": {"together": true, "near": "local-node-3", "leave_free": 2}
    }"#;
    std::fs::write(&path, text).unwrap();
    assert_eq!(nodes(&client, &Graph::read(&path).unwrap()), [NODES[2]; 2]);
    std::fs::write(&path, text.replace("\"leave_free\": 2", "\"leave_free\": 4")).unwrap();
    unmet(&Graph::read(&path).unwrap(), &[Constraint::LeaveFree]);
    cluster.stop().unwrap();
}

#[test]
fn of_two_lanes_that_want_the_same_room_one_gets_it() {
    let _guard = one_at_a_time();
    let (cluster, client, _directory, library) = nodes_of_four(Options::default());
    let other = cluster.client().unwrap();
    let graph = chain(&library, 7); // of twelve cores
    for _ in 0..rounds(20) {
        let barrier = Barrier::new(2);
        let compile = |client: &Client| {
            barrier.wait();
            compile(client, &graph)
        };
        let (first, second) = std::thread::scope(|scope| {
            let second = scope.spawn(|| compile(&other));
            (compile(&client), second.join().unwrap())
        });
        let (served, refused): (Vec<_>, Vec<_>) =
            [first, second].into_iter().partition(Result::is_ok);
        assert_eq!(served.len(), 1, "{refused:?}");
        assert!(matches!(refused[..], [Err(Error::LeaseRefused { .. })]), "{refused:?}");
        for graph in served {
            graph.unwrap().release().unwrap();
        }
        nothing_is_held(&cluster);
    }
    cluster.stop().unwrap();
}

#[test]
fn a_lane_of_more_workers_than_a_request_has_leases_is_all_there_or_not_at_all() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { nodes: 2, cores: 17, memory: 8192, ..Options::default() });
    let directory = tempfile::tempdir().unwrap();
    let library = graph_library(directory.path());
    let client = cluster.client().unwrap();
    let mut graph = Graph::new();
    let function = graph.function(&library, "add_one");
    graph.input(function, 64).output(function, 64).workers(function, 35).memory_mb(64);
    let error = compile(&client, &graph).unwrap_err();
    assert!(matches!(error, Error::LeaseRefused { .. }), "{error:?}");
    nothing_is_held(&cluster);
    let mut graph = compile(&client, graph.workers(function, 34)).unwrap();
    assert_eq!(graph.run(&[1]).unwrap(), vec![[2]; 34]);
    assert_eq!(graph.release().unwrap().len(), 34);
    nothing_is_held(&cluster);
    cluster.stop().unwrap();
}

/// Compiles `graph`, has the executor manager of its first worker killed, and returns where its workers are then.
fn nodes_after_a_loss(
    cluster: &mut LocalCluster,
    client: &Client,
    graph: &Graph,
) -> (Vec<String>, String) {
    let mut compiled = compile(client, graph).unwrap();
    let lost = compiled.nodes().next().unwrap().to_owned();
    let number = NODES.iter().position(|node| *node == lost).unwrap();
    cluster.executor_manager_of(number).unwrap().signal(nix::sys::signal::Signal::SIGKILL);
    eventually("it runs elsewhere", || {
        let moved = compiled.run(&[1]).is_ok() && compiled.nodes().all(|node| node != lost);
        std::thread::sleep(std::time::Duration::from_millis(50));
        moved
    });
    let nodes = compiled.nodes().map(str::to_owned).collect();
    compiled.release().unwrap();
    cluster.start_executor_manager_of(number).unwrap();
    eventually("all nodes are ready", || {
        list(cluster, "/nodes").iter().all(|node| node["state"] == "ready")
    });
    (nodes, lost)
}

#[test]
fn constraints_hold_when_a_lane_is_started_again() {
    let _guard = one_at_a_time();
    let (mut cluster, client, _directory, library) = nodes_of_four(Options::impatient());
    let (nodes, lost) = nodes_after_a_loss(&mut cluster, &client, chain(&library, 4).together());
    assert_eq!((different(&nodes), nodes.contains(&lost)), (1, false), "{nodes:?}");
    let (nodes, lost) = nodes_after_a_loss(&mut cluster, &client, chain(&library, 2).apart());
    assert_eq!((different(&nodes), nodes.contains(&lost)), (2, false), "{nodes:?}");
    nothing_is_held(&cluster);

    // A lease that ends is replaced. The others stay, unless the constraints are of all of them.
    for (graph, stay) in [(chain(&library, 3).has("gpu"), 2), (chain(&library, 3).together(), 0)] {
        label(&cluster, NODES[2], "gpu");
        let mut compiled = compile(&client, graph).unwrap();
        let ids = |cluster: &LocalCluster| -> BTreeSet<String> {
            list(cluster, "/leases").iter().map(|lease| lease["id"].to_string()).collect()
        };
        let before = ids(&cluster);
        let ended = before.iter().next_back().unwrap();
        cluster.http().unwrap().delete(&format!("/leases/{ended}")).unwrap();
        eventually("it runs on other leases", || {
            // One that was under way may end on the old ones.
            let (ran, now) = (compiled.run(&[1]).is_ok(), ids(&cluster));
            ran && !now.contains(ended) && now.len() == before.len()
        });
        let now = ids(&cluster);
        assert_eq!((before.intersection(&now).count(), now.len()), (stay, 3), "{before:?} {now:?}");
        let nodes: Vec<_> = compiled.nodes().map(str::to_owned).collect();
        assert_eq!(different(&nodes), 1, "{nodes:?}");
        compiled.release().unwrap();
        nothing_is_held(&cluster);
    }
    drop(client);
    cluster.stop().unwrap();
}
