//! Graphs with real processes: outputs are right in whatever form the graph has, a function that fails is named, and
//! the next run is served; nothing is left behind.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::path::Path;
use std::time::{Duration, Instant};

use rfaas::{CompiledGraph, Deployment, Error, Graph, Spin};
use testkit::leftovers::Leftovers;
use testkit::service::{all_is_free, cluster_for_graphs};
use testkit::test_devices::patience;
use testkit::wait::{one_at_a_time, rounds};

fn warm() -> Deployment {
    Deployment::new().spin(Spin::Never)
}

/// `names` one after the other, each with payloads of at most `bytes` bytes.
fn chain(library: &Path, names: &[&str], bytes: usize) -> Graph {
    let mut graph = Graph::new();
    let functions: Vec<_> = names.iter().map(|name| graph.function(library, *name)).collect();
    graph.input(functions[0], bytes);
    for two in functions.windows(2) {
        graph.edge(two[0], two[1], bytes);
    }
    graph.output(functions[functions.len() - 1], bytes);
    graph
}

#[test]
fn a_chain_returns_what_its_functions_make_of_the_input_one_after_the_other() {
    let _guard = one_at_a_time();
    let nothing = tempfile::tempdir().unwrap();
    let before = Leftovers::list(nothing.path());
    let (cluster, client, directory, library) = cluster_for_graphs();
    let graph = chain(&library, &["add_one", "twice", "add_one"], 1 << 20);
    let mut graph = client.compile_with(&graph, &warm()).unwrap();
    for bytes in [0, 1, 64, 100, 4096, 1 << 20] {
        let input: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
        let expected: Vec<u8> =
            input.iter().map(|n| n.wrapping_add(1).wrapping_mul(2).wrapping_add(1)).collect();
        for _ in 0..3 {
            assert_eq!(graph.run(&input).unwrap(), [expected.as_slice()], "{bytes} bytes");
        }
    }
    let bills = graph.release().unwrap();
    assert_eq!(bills.len(), 3);
    assert!(bills.iter().all(|bill| bill.invocations.get() == 18), "{bills:?}");
    all_is_free(&cluster);
    cluster.stop().unwrap();
    drop((client, directory));
    Leftovers::nothing_new_since(&before, nothing.path());
}

#[test]
fn what_a_function_returns_goes_to_all_that_take_it() {
    let _guard = one_at_a_time();
    let (cluster, client, _directory, library) = cluster_for_graphs();
    let mut graph = Graph::new();
    let [first, twice, count] =
        ["add_one", "twice", "count"].map(|name| graph.function(&library, name));
    graph.input(first, 64).edge(first, twice, 64).edge(first, count, 64);
    graph.output(count, 4).output(twice, 64).output(first, 64);
    let mut graph = client.compile_with(&graph, &warm()).unwrap();
    let outputs = graph.run(&[1, 2, 3]).unwrap();
    assert_eq!(outputs, [vec![3, 0, 0, 0], vec![4, 6, 8], vec![2, 3, 4]]);
    assert_eq!(graph.nodes().count(), 3);
    drop(graph);
    all_is_free(&cluster);
    cluster.stop().unwrap();
}

#[test]
fn a_function_may_write_as_much_as_its_largest_edge_holds_or_its_input_has() {
    let _guard = one_at_a_time();
    let (cluster, client, _directory, library) = cluster_for_graphs();
    let mut graph = Graph::new();
    let [first, second] = ["obey", "add_one"].map(|name| graph.function(&library, name));
    graph.input(first, 4096).edge(first, second, 64).output(second, 64).output(first, 1000);
    let mut graph = client.compile_with(&graph, &warm()).unwrap();
    for input in [vec![b'w'], vec![1; 4096]] {
        let (function, error) = failed(&mut graph, &input);
        assert_eq!(function, "obey");
        assert!(matches!(error, Error::OutputTooLarge { capacity: 64, .. }), "{error}");
        assert_eq!(graph.run(&[1; 64]).unwrap(), [[2; 64], [1; 64]], "it lives");
    }
    cluster.stop().unwrap();
}

#[test]
fn as_many_runs_are_under_way_as_there_are_slots_and_are_fetched_in_any_order() {
    let _guard = one_at_a_time();
    let (cluster, client, _directory, library) = cluster_for_graphs();
    let graph = chain(&library, &["add_one", "add_one"], 64);
    let mut other = client.compile_with(&graph, &warm()).unwrap();
    let mut graph = client.compile_with(&graph, &warm().slots(3)).unwrap();
    for round in 0..rounds(200) as u8 {
        let runs = [0, 1, 2].map(|n| graph.submit(&[round.wrapping_add(n)]).unwrap());
        assert!(matches!(graph.submit(&[0]), Err(Error::AllSlotsBusy)));
        for n in [1, 2, 0] {
            let expected = round.wrapping_add(n as u8).wrapping_add(2);
            assert_eq!(graph.wait(runs[n]).unwrap(), [[expected]]);
        }
        assert!(matches!(graph.wait(runs[0]), Err(Error::Foreign("run"))));
        assert!(matches!(other.wait(runs[0]), Err(Error::Foreign("run"))));
    }
    cluster.stop().unwrap();
}

/// The function that failed, and how.
fn failed(graph: &mut CompiledGraph, input: &[u8]) -> (String, Error) {
    match graph.run(input) {
        Err(Error::GraphFailed { function, source, .. }) => (function, *source),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_function_that_fails_is_named_and_the_next_run_is_served() {
    let _guard = one_at_a_time();
    let nothing = tempfile::tempdir().unwrap();
    let before = Leftovers::list(nothing.path());
    let (cluster, client, directory, library) = cluster_for_graphs();
    let graph = chain(&library, &["add_one", "obey", "add_one"], 64);
    let limit = patience(Duration::from_secs(2));
    let mut graph = client.compile_with(&graph, &warm().invocation_timeout(limit)).unwrap();
    let told = |what: u8| [what - 1];
    for _ in 0..2 {
        assert_eq!(graph.run(&[7]).unwrap(), [[9]]);
        let (function, error) = failed(&mut graph, &told(b'l'));
        assert_eq!(function, "obey");
        let Error::OutputTooLarge { needed, capacity } = error else { panic!("{error}") };
        assert_eq!((needed, capacity), (1 << 30, 64));

        assert_eq!(graph.run(&[7]).unwrap(), [[9]]);
        let (function, error) = failed(&mut graph, &told(b'c'));
        assert_eq!(function, "obey");
        assert!(matches!(error, Error::FunctionCrashed { signal: 6 }), "{error}");

        assert_eq!(graph.run(&[7]).unwrap(), [[9]]);
        let (function, error) = failed(&mut graph, &told(b'e'));
        assert_eq!(function, "obey");
        assert!(matches!(error, Error::FunctionExited { status: 7 }), "{error}");

        assert_eq!(graph.run(&[7]).unwrap(), [[9]]);
        let start = Instant::now();
        let error = graph.run(&told(b'h')).unwrap_err();
        assert!(matches!(error, Error::TimeLimit { after } if after == limit), "{error}");
        assert!(start.elapsed() < 5 * limit);
    }
    assert_eq!(graph.run(&[7]).unwrap(), [[9]]);
    graph.release().unwrap();
    all_is_free(&cluster);
    cluster.stop().unwrap();
    drop((client, directory));
    Leftovers::nothing_new_since(&before, nothing.path());
}

#[test]
fn runs_that_had_ended_before_another_one_cut_the_graph_keep_their_outputs() {
    let _guard = one_at_a_time();
    let (cluster, client, _directory, library) = cluster_for_graphs();
    let graph = chain(&library, &["obey", "add_one"], 64);
    let mut graph = client.compile_with(&graph, &warm().slots(3)).unwrap();
    let first = graph.submit(&[1]).unwrap();
    graph.run(&[5]).unwrap(); // went the same way behind it
    let second = graph.submit(b"c").unwrap();
    assert!(matches!(graph.wait(second), Err(Error::GraphFailed { .. })));
    assert_eq!(graph.wait(first).unwrap(), [[2]]);
    let error = graph.submit(&[0; 65]).unwrap_err();
    assert!(matches!(error, Error::InputTooLarge { bytes: 65, max: 64 }), "{error}");
    cluster.stop().unwrap();
}

#[test]
fn a_graph_that_cannot_be_costs_nothing() {
    let _guard = one_at_a_time();
    let (cluster, client, _directory, library) = cluster_for_graphs();
    let error = client.compile(&Graph::new()).unwrap_err();
    assert!(matches!(error, Error::InvalidGraph(_)), "{error}");
    let error = client.compile(&chain(&library, &["add_one", "missing"], 64)).unwrap_err();
    let Error::UnknownFunction { name, available } = error else { panic!("{error}") };
    assert_eq!(name, "missing");
    assert!(available.contains(&"obey".to_owned()));
    // More functions than the node has cores: all leases or none.
    let error = client.compile(&chain(&library, &["add_one"; 9], 64)).unwrap_err();
    assert!(matches!(error, Error::LeaseRefused { .. }), "{error}");
    all_is_free(&cluster);
    let mut graph = client.compile(&chain(&library, &["add_one"; 8], 64)).unwrap();
    assert_eq!(graph.run(&[1]).unwrap(), [[9]]);
    cluster.stop().unwrap();
}
