//! What becomes of graphs of two lanes when something of one is lost: its runs fail with function, node and cause, or
//! are run again; the other lane goes on; the lost one comes back; nothing is left behind, and there is a bill for
//! every lease. For each form of graph.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::path::Path;
use std::time::{Duration, Instant};

use rfaas::{Client, CompiledGraph, Deployment, Error, Graph, Lanes, Spin};
use testkit::functions::graph as graph_library;
use testkit::leftovers::Leftovers;
use testkit::run::kill_9;
use testkit::service::cluster;
use testkit::test_devices::{are_rdma, patience};
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options};

/// What the function in the middle takes its time for.
const SLOW: u8 = b's';
/// Hangs.
const HANG: u8 = b'h';

/// A form of graph, of three functions, in which one does what it is told.
#[derive(Clone, Copy, Debug)]
enum Form {
    Chain,
    FanOut,
    /// A chain, of which `CompiledGraph::map` makes the runs.
    Map,
}

const FORMS: [Form; 3] = [Form::Chain, Form::FanOut, Form::Map];

/// The forms that a test is about: all of them. On RDMA devices, in a machine that may be emulated, number `one` alone,
/// unless `RFAAS_TEST_ALL_FORMS` is set.
fn forms(one: usize) -> &'static [Form] {
    match are_rdma() && std::env::var_os("RFAAS_TEST_ALL_FORMS").is_none() {
        true => &FORMS[one % FORMS.len()..][..1],
        false => &FORMS,
    }
}

impl Form {
    /// With two lanes.
    fn graph(self, library: &Path) -> Graph {
        let mut graph = Graph::new();
        let mut function = |name| graph.function(library, name);
        match self {
            Form::Chain | Form::Map => {
                let [a, b, c] = ["add_one", "obey", "add_one"].map(&mut function);
                graph.input(a, 64).edge(a, b, 64).edge(b, c, 64).output(c, 64);
            }
            Form::FanOut => {
                let [a, b, c] = ["obey", "add_one", "twice"].map(&mut function);
                graph.input(a, 64).edge(a, b, 64).edge(a, c, 64).output(b, 64).output(c, 64);
            }
        }
        graph.lanes(Lanes::exactly(2));
        graph
    }

    /// An input that tells the function `what`.
    fn input(self, what: u8) -> [u8; 1] {
        match self {
            Form::Chain | Form::Map => [what - 1],
            Form::FanOut => [what],
        }
    }

    /// What comes out then.
    fn outputs(self, what: u8) -> Vec<Vec<u8>> {
        match self {
            Form::Chain | Form::Map => vec![vec![what + 1]],
            Form::FanOut => vec![vec![what + 1], vec![what.wrapping_mul(2)]],
        }
    }
}

/// Two nodes, each with room for one lane.
fn two_nodes() -> LocalCluster {
    cluster(Options { nodes: 2, cores: 3, memory: 2048, ..Options::impatient() })
}

fn warm() -> Deployment {
    Deployment::new().spin(Spin::Never).slots(2)
}

/// Makes `fail` happen while each lane has a run under way. Returns how these have ended.
fn while_both_run(
    form: Form,
    graph: &mut CompiledGraph,
    mut fail: impl FnMut(),
) -> Vec<rfaas::Result<Vec<Vec<u8>>>> {
    let input = form.input(SLOW);
    match form {
        Form::Map => {
            // It begins four runs, two on each lane.
            let mut failed = false;
            let inputs = (0..4).map(|n| {
                if n == 3 && !std::mem::replace(&mut failed, true) {
                    std::thread::sleep(Duration::from_millis(50));
                    fail();
                }
                input
            });
            graph.map(inputs).collect()
        }
        Form::Chain | Form::FanOut => {
            let runs = [0, 1].map(|_| graph.submit(&input).unwrap());
            std::thread::sleep(Duration::from_millis(50)); // they are at the slow function
            fail();
            runs.map(|run| graph.wait(run)).into()
        }
    }
}

/// The error of a lane that was lost: it names a function of the graph, its node, and the cause is as `expected`.
fn is_told(error: &Error, expected: fn(&Error) -> bool) {
    let Error::GraphFailed { function, node, source, .. } = error else { panic!("{error:?}") };
    assert!(["add_one", "obey", "twice"].contains(&function.as_str()), "{error:?}");
    assert!(node.starts_with("local-node"), "{error:?}");
    assert!(expected(source), "{error:?}");
}

/// Both lanes serve: as many runs as there are slots are under way.
fn both_serve(form: Form, graph: &mut CompiledGraph) {
    eventually("both lanes serve", || {
        let runs: Vec<_> = (0..4).map_while(|_| graph.submit(&form.input(5)).ok()).collect();
        let served = runs.len();
        for run in runs {
            assert_eq!(graph.wait(run).unwrap(), form.outputs(5));
        }
        served == 4
    });
}

fn all_is_free(cluster: &LocalCluster) {
    let http = cluster.http().unwrap();
    eventually("all nodes are ready and free", || {
        let nodes = http.get("/nodes").unwrap().body;
        let nodes = nodes.as_array().unwrap();
        nodes.len() == cluster.nodes()
            && nodes
                .iter()
                .all(|node| node["state"] == "ready" && node["free_cores"] == node["cores"])
    });
}

/// What is there before a test is there after it, and nothing else.
fn nothing_is_left(test: impl FnOnce(&Path)) {
    let _guard = one_at_a_time();
    let nothing = tempfile::tempdir().unwrap();
    let before = Leftovers::list(nothing.path());
    let directory = tempfile::tempdir().unwrap();
    test(&graph_library(directory.path()));
    drop(directory);
    Leftovers::nothing_new_since(&before, nothing.path());
}

/// Ends a cluster of which `graph` is given back: six leases have a bill.
fn ends(cluster: LocalCluster, client: Client, graph: CompiledGraph) {
    assert_eq!(graph.release().unwrap().len(), 6);
    all_is_free(&cluster);
    drop(client);
    cluster.stop().unwrap();
}

#[test]
fn an_executor_that_is_killed_costs_the_runs_of_its_lane() {
    nothing_is_left(|library| {
        for &form in forms(0) {
            let cluster = two_nodes();
            let client = cluster.client().unwrap();
            let mut graph = client.compile_with(&form.graph(library), &warm()).unwrap();
            both_serve(form, &mut graph);
            let ended = while_both_run(form, &mut graph, || kill_9(cluster.executors_running()[0]));
            let (served, lost): (Vec<_>, Vec<_>) = ended.into_iter().partition(Result::is_ok);
            assert!(!served.is_empty() && !lost.is_empty(), "{form:?} {served:?} {lost:?}");
            for outputs in served {
                assert_eq!(outputs.unwrap(), form.outputs(SLOW));
            }
            for lost in lost {
                let killed = |e: &Error| matches!(e, Error::FunctionCrashed { signal: 9 });
                is_told(&lost.unwrap_err(), killed);
            }
            both_serve(form, &mut graph);
            ends(cluster, client, graph);
        }
    });
}

#[test]
fn runs_of_an_idempotent_graph_are_run_again_elsewhere() {
    nothing_is_left(|library| {
        for &form in forms(1) {
            let cluster = two_nodes();
            let client = cluster.client().unwrap();
            let mut graph = form.graph(library);
            let mut graph = client.compile_with(graph.idempotent(true), &warm()).unwrap();
            let ended = while_both_run(form, &mut graph, || kill_9(cluster.executors_running()[0]));
            assert!(ended.len() >= 2);
            for outputs in ended {
                assert_eq!(outputs.unwrap(), form.outputs(SLOW), "{form:?}");
            }
            // What ends its executor each time is not tried for ever.
            let crash = graph.run(&form.input(b'c')).unwrap_err();
            is_told(&crash, |error| matches!(error, Error::FunctionCrashed { signal: 6 }));
            both_serve(form, &mut graph);
            ends(cluster, client, graph);
        }
    });
}

#[test]
fn a_node_that_is_lost_costs_its_lane_until_it_is_back() {
    nothing_is_left(|library| {
        for &form in forms(2) {
            let mut cluster = two_nodes();
            let client = cluster.client().unwrap();
            let mut graph = client.compile_with(&form.graph(library), &warm()).unwrap();
            let ended = while_both_run(form, &mut graph, || {
                let manager = cluster.executor_manager_of(0).unwrap();
                manager.signal(nix::sys::signal::Signal::SIGKILL);
            });
            let (served, lost): (Vec<_>, Vec<_>) = ended.into_iter().partition(Result::is_ok);
            assert!(!served.is_empty() && !lost.is_empty(), "{form:?} {served:?} {lost:?}");
            for lost in lost {
                is_told(&lost.unwrap_err(), |error| {
                    let gone = matches!(error, Error::ExecutorGone | Error::LeaseEnded { .. });
                    gone || matches!(error, Error::WorkerLost { .. })
                });
            }
            // There is no room for the lane elsewhere. The other one serves.
            for _ in 0..20 {
                assert_eq!(graph.run(&form.input(5)).unwrap(), form.outputs(5), "{form:?}");
            }
            cluster.start_executor_manager_of(0).unwrap();
            both_serve(form, &mut graph);
            ends(cluster, client, graph);
        }
    });
}

#[test]
fn without_any_lane_left_an_error_says_what_is_missing_until_there_is_room() {
    nothing_is_left(|library| {
        let mut cluster = cluster(Options { cores: 3, memory: 2048, ..Options::impatient() });
        let client = cluster.client().unwrap();
        let mut graph = Form::Chain.graph(library);
        graph.lanes(Lanes::up_to(2));
        let mut graph = client.compile_with(&graph, &warm()).unwrap();
        assert_eq!(graph.lanes(), 1);
        assert_eq!(graph.run(&[1]).unwrap(), [[3]]);
        let manager = cluster.executor_manager().unwrap();
        manager.signal(nix::sys::signal::Signal::SIGKILL);
        let mut refused = false;
        eventually("a lease is refused", || {
            match graph.run(&[1]) {
                Err(Error::LeaseRefused { .. }) => refused = true,
                // As long as the executors, or then the resource manager, do not know.
                Ok(outputs) => assert_eq!(outputs, [[3]]),
                Err(Error::GraphFailed { .. } | Error::GraphNotStarted { .. }) => {}
                Err(Error::LeaseEnded { .. } | Error::ExecutorGone) => {}
                other => panic!("{other:?}"),
            }
            refused
        });
        cluster.start_executor_manager().unwrap();
        eventually("it runs again", || graph.run(&[1]).is_ok());
        assert_eq!(graph.release().unwrap().len(), 3);
        all_is_free(&cluster);
        drop(client);
        cluster.stop().unwrap();
    });
}

#[test]
fn a_function_that_hangs_costs_its_lane_and_its_limit() {
    nothing_is_left(|library| {
        let limit = patience(Duration::from_secs(2));
        for &form in forms(3) {
            let cluster = two_nodes();
            let client = cluster.client().unwrap();
            let deployment = warm().invocation_timeout(limit);
            let mut graph = client.compile_with(&form.graph(library), &deployment).unwrap();
            let begun = Instant::now();
            let hung = graph.submit(&form.input(HANG)).unwrap();
            let other = graph.submit(&form.input(5)).unwrap();
            std::thread::sleep(limit / 4); // their limits come later
            let behind = [0, 1].map(|_| graph.submit(&form.input(5)).unwrap());
            assert_eq!(graph.wait(other).unwrap(), form.outputs(5));
            let error = graph.wait(hung).unwrap_err();
            assert!(matches!(error, Error::TimeLimit { after } if after == limit), "{error:?}");
            assert!(begun.elapsed() < 2 * limit, "{form:?} {:?}", begun.elapsed());
            // One of them was behind it, the other on the other lane.
            let (served, lost): (Vec<_>, Vec<_>) =
                behind.map(|run| graph.wait(run)).into_iter().partition(Result::is_ok);
            assert_eq!((served.len(), lost.len()), (1, 1), "{form:?} {lost:?}");
            assert!(matches!(lost[0], Err(Error::WorkerLost { .. })), "{lost:?}");
            // The lane is started again while the other one serves: nobody waits for it.
            let begun = Instant::now();
            assert_eq!(graph.run(&form.input(5)).unwrap(), form.outputs(5));
            eprintln!("{form:?}: a run after the loss took {:?}", begun.elapsed());
            let begun = Instant::now();
            both_serve(form, &mut graph);
            eprintln!("{form:?}: both lanes served after {:?}", begun.elapsed());
            ends(cluster, client, graph);
        }
    });
}

#[test]
fn leases_that_end_are_replaced_and_runs_fail_with_the_reason_at_most() {
    nothing_is_left(|library| {
        for &form in forms(4) {
            let cluster = two_nodes();
            let client = cluster.client().unwrap();
            // One is ended by an operator while both run.
            let mut graph = client.compile_with(&form.graph(library), &warm()).unwrap();
            let ended = while_both_run(form, &mut graph, || {
                let http = cluster.http().unwrap();
                let leases = http.get("/leases").unwrap().body;
                let id = &leases[0]["id"];
                let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
                http.delete(&format!("/leases/{id}")).unwrap();
            });
            let (served, lost): (Vec<_>, Vec<_>) = ended.into_iter().partition(Result::is_ok);
            assert!(!served.is_empty(), "{form:?} {lost:?}");
            for lost in lost {
                is_told(&lost.unwrap_err(), |error| matches!(error, Error::LeaseEnded { .. }));
            }
            both_serve(form, &mut graph);
            ends(cluster, client, graph);
        }
        // All of them end by themselves, again and again.
        let cluster = two_nodes();
        let client = cluster.client().unwrap();
        let mut graph = Form::Chain.graph(library);
        let time = patience(Duration::from_secs(2));
        graph.idempotent(true).lease_time(time);
        let mut graph = client.compile_with(&graph, &warm()).unwrap();
        let begun = Instant::now();
        let mut runs = 0;
        while begun.elapsed() < 3 * time {
            match graph.run(&[1]) {
                Ok(outputs) => assert_eq!(outputs, [[3]]),
                // What was there before is not given back yet.
                Err(Error::LeaseRefused { .. } | Error::GraphNotStarted { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
            runs += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(runs > 10);
        drop(graph);
        all_is_free(&cluster);
        drop(client);
        cluster.stop().unwrap();
    });
}
