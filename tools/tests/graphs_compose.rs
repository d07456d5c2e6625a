//! Graphs of every form, with real processes: joins, items, workers that share a function, functions that share a
//! worker, and functions that ask for more than their input.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rfaas::{Client, Deployment, Error, Graph, GraphFunction, Join, Spin};
use testkit::functions::{compose, graph as graph_library};
use testkit::service::{all_is_free, cluster};
use testkit::wait::one_at_a_time;
use testkit::{LocalCluster, Options};

/// A node that is large enough, and the libraries.
struct Scene {
    cluster: LocalCluster,
    client: Client,
    _directory: tempfile::TempDir,
    simple: PathBuf,
    compose: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let cluster = cluster(Options { cores: 8, memory: 8192, ..Options::default() });
        let directory = tempfile::tempdir().unwrap();
        let (simple, compose) = (graph_library(directory.path()), compose(directory.path()));
        let client = cluster.client().unwrap();
        Scene { cluster, client, _directory: directory, simple, compose }
    }

    fn run(&self, graph: &Graph, inputs: &[&[u8]]) -> Vec<Result<Vec<Vec<u8>>, Error>> {
        all_is_free(&self.cluster); // a graph before this one may still be giving its cores back
        let deployment = Deployment::new().spin(Spin::Never);
        let mut graph = self.client.compile_with(graph, &deployment).unwrap();
        inputs.iter().map(|input| graph.run(input)).collect()
    }

    /// The only output of a run with each input.
    fn outputs(&self, graph: &Graph, inputs: &[&[u8]]) -> Vec<Vec<u8>> {
        let outputs = self.run(graph, inputs).into_iter().map(|outputs| {
            let mut outputs = outputs.unwrap();
            assert_eq!(outputs.len(), 1);
            outputs.remove(0)
        });
        outputs.collect()
    }

    fn done(self) {
        all_is_free(&self.cluster);
        self.cluster.stop().unwrap();
    }
}

fn source(result: Result<Vec<Vec<u8>>, Error>) -> (String, Error) {
    match result.unwrap_err() {
        Error::GraphFailed { function, source, .. } => (function, *source),
        other => panic!("{other}"),
    }
}

#[test]
fn a_function_gets_all_inputs_that_it_waits_for() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = Graph::new();
    let first = graph.function(&scene.simple, "add_one");
    let second = graph.function(&scene.simple, "twice");
    let third = graph.function(&scene.compose, "fail_with");
    let gather = graph.function(&scene.compose, "gather");
    graph.input(first, 16).input(second, 16).input(third, 16).output(gather, 64);
    graph.edge(first, gather, 16).edge(second, gather, 16).edge(third, gather, 16);
    let outputs = scene.outputs(&graph, &[&[0, 4], &[0, 9]]);
    assert_eq!(outputs, [[0, 1, 5, 1, 0, 8, 2, 0, 4], [0, 1, 10, 1, 0, 18, 2, 0, 9]]);
    // If one has failed, so has the run.
    let mut results = scene.run(&graph, &[&[7], &[0, 1]]);
    assert_eq!(results.remove(1).unwrap(), [[0, 1, 2, 1, 0, 2, 2, 0, 1]]);
    let (function, source) = source(results.remove(0));
    assert!(matches!(source, Error::FunctionFailed { code: 7 }), "{source}");
    assert_eq!(function, "fail_with");
    scene.done();
}

#[test]
fn a_join_of_some_takes_the_first_and_bears_failures() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = Graph::new();
    let soon = graph.function(&scene.simple, "add_one");
    let late = graph.function(&scene.compose, "later");
    let fails = graph.function(&scene.compose, "fail_with");
    let gather = graph.function(&scene.compose, "gather");
    graph.input(soon, 16).input(late, 16).input(fails, 16).output(gather, 64);
    graph.edge(soon, gather, 16).edge(late, gather, 16).edge(fails, gather, 16);
    graph.join(gather, Join::Of(2));
    // `later` takes 50 ms, and the two others are enough: its input is not there. When one fails, it is waited for.
    let results = scene.run(&graph, &[&[0, 1], &[50, 1], &[0, 1]]);
    let outputs: Vec<_> = results.into_iter().map(|result| result.unwrap().remove(0)).collect();
    assert_eq!(outputs[1], [0, 51, 2, 1, 50, 1], "the failure of 50 is borne");
    graph.join(gather, Join::Of(3));
    let (function, source) = source(scene.run(&graph, &[&[1]]).remove(0));
    // As many as had come when the failure did.
    assert!(matches!(source, Error::TooFewInputs { there: 0..=2, wanted: 3 }), "{source}");
    assert_eq!(function, "gather");
    scene.done();
}

#[test]
fn a_worker_that_ends_after_the_outputs_came_keeps_no_slot() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = Graph::new();
    let soon = [0, 1].map(|_| graph.function(&scene.simple, "add_one"));
    let ends = graph.function(&scene.simple, "obey");
    let gather = graph.function(&scene.compose, "gather");
    graph.input(soon[0], 16).input(soon[1], 16).input(ends, 16).output(gather, 64);
    graph.edge(soon[0], gather, 16).edge(soon[1], gather, 16).edge(ends, gather, 16);
    graph.join(gather, Join::Of(2));
    const LIMIT: Duration = Duration::from_secs(2);
    let deployment = Deployment::new().spin(Spin::Never).slots(2).invocation_timeout(LIMIT);
    let mut graph = scene.client.compile_with(&graph, &deployment).unwrap();
    for _ in 0..4 {
        // Whether its end or the outputs are seen first is open; its slot is free in both cases.
        drop(graph.run(b"e"));
    }
    let (begun, mut failed) = (Instant::now(), 0);
    while begun.elapsed() < LIMIT + Duration::from_secs(1) {
        let runs = [0, 1].map(|_| graph.submit(b"x").unwrap());
        failed += runs.map(|run| graph.wait(run)).iter().filter(|ended| ended.is_err()).count();
    }
    assert!(
        failed <= 2,
        "{failed} runs have failed: the last end costs those beside it, and no more"
    );
    drop(graph);
    scene.done();
}

#[test]
fn with_a_time_a_function_takes_what_is_there() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = Graph::new();
    let soon = graph.function(&scene.simple, "add_one");
    let late = graph.function(&scene.compose, "later");
    let gather = graph.function(&scene.compose, "gather");
    graph.input(soon, 16).input(late, 16).output(gather, 64);
    graph.edge(soon, gather, 16).edge(late, gather, 16).within(gather, Duration::from_millis(20));
    let outputs = scene.outputs(&graph, &[&[250], &[0]]);
    assert_eq!(outputs[0], [0, 251], "a quarter of a second is too late");
    scene.done();
}

#[test]
fn each_input_is_tried_until_one_has_a_value() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = Graph::new();
    let same = graph.function(&scene.compose, "later");
    let double = graph.function(&scene.simple, "twice");
    let square = graph.function(&scene.compose, "square_but_4");
    graph.input(same, 16).input(double, 16).output(square, 64);
    graph.edge(same, square, 16).edge(double, square, 16).join(square, Join::Any);
    // Of 2 and 4, only the second has a value; of 0 and 0, both; with 254, the second is 252.
    let outputs = scene.outputs(&graph, &[&[2], &[0], &[2]]);
    assert_eq!(outputs, [[16], [0], [16]]);
    // A function without a value, where one is waited for.
    let mut graph = Graph::new();
    let square = graph.function(&scene.compose, "square_but_4");
    graph.input(square, 16).output(square, 64);
    let mut results = scene.run(&graph, &[&[2], &[3]]);
    assert_eq!(results.remove(1).unwrap(), [[9]]);
    let (_, source) = source(results.remove(0));
    assert!(matches!(source, Error::NoValue), "{source}");
    scene.done();
}

#[test]
fn items_are_dealt_out_one_by_one_and_by_key() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let build = |deal: fn(&mut Graph, GraphFunction, GraphFunction), name: &str| {
        let mut graph = Graph::new();
        let split = graph.function(&scene.compose, "split");
        let work = graph.function(&scene.compose, name);
        let flatten = graph.function(&scene.compose, "flatten");
        graph.workers(work, 3).input(split, 64).edge(work, flatten, 1024).output(flatten, 256);
        deal(&mut graph, split, work);
        graph
    };
    let each = build(
        |graph, split, work| {
            graph.each(split, work, 2048);
        },
        "who_adds_one",
    );
    // Worker 0 has the first and the fourth, and so on; then what each has made, key by key.
    let outputs = scene.outputs(&each, &[b"abcde", b"", b"z"]);
    assert_eq!(outputs[0], *b"a\0bd\0eb\x01ce\x01fc\x02d");
    assert_eq!((&outputs[1][..], &outputs[2][..]), (&b""[..], &b"z\0{"[..]));
    let keyed = build(
        |graph, split, work| {
            graph.keyed(split, work, 2048);
        },
        "count_items",
    );
    // 'a' is 97, which is 1 modulo 3; 'b' goes to worker 2, and 'c' to worker 0.
    let outputs = scene.outputs(&keyed, &[b"abacabb"]);
    assert_eq!(outputs[0], *b"c\0\x01a\x01\x03b\x02\x03");
    // What is no list is refused by name.
    let mut graph = Graph::new();
    let first = graph.function(&scene.simple, "add_one");
    let second = graph.function(&scene.compose, "who_adds_one");
    graph.input(first, 64).each(first, second, 64).output(second, 64);
    let (_, wrong) = source(scene.run(&graph, &[&[1, 2, 3]]).remove(0));
    assert!(matches!(wrong, Error::NotItems), "{wrong}");
    // What is more than the next one holds is refused, and nothing of it is written.
    let mut graph = Graph::new();
    let split = graph.function(&scene.compose, "split");
    let work = graph.function(&scene.compose, "who_adds_one");
    let flatten = graph.function(&scene.compose, "flatten");
    graph.input(split, 64).each(split, work, 1024).edge(work, flatten, 64).output(flatten, 256);
    let mut results = scene.run(&graph, &[b"abcdefgh", b"abcd"]);
    assert_eq!(results.remove(1).unwrap(), [b"a\0bb\0cc\0dd\0e"]);
    let (function, wrong) = source(results.remove(0));
    assert!(matches!(wrong, Error::OutputTooLarge { capacity: 64, .. }), "{wrong}");
    assert_eq!(function, "who_adds_one");
    // Of several workers, the one that failed is named.
    let mut graph = Graph::new();
    let split = graph.function(&scene.compose, "split");
    let work = graph.function(&scene.compose, "fail_with");
    let flatten = graph.function(&scene.compose, "flatten");
    graph.workers(work, 3).input(split, 64).each(split, work, 1024).edge(work, flatten, 1024);
    graph.output(flatten, 256);
    let error = scene.run(&graph, &[&[0, 0, 5, 0]]).remove(0).unwrap_err();
    let Error::GraphFailed { function, worker: 2, source, .. } = error else { panic!("{error}") };
    assert!(
        function == "fail_with" && matches!(*source, Error::FunctionFailed { code: 5 }),
        "{source}"
    );
    scene.done();
}

#[test]
fn functions_that_share_a_worker_pass_on_what_they_make() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    // Forth and back between two workers, twenty times: each has ten of the functions.
    let mut graph = Graph::new();
    let hosts = [0, 1].map(|_| graph.function(&scene.simple, "add_one"));
    graph.input(hosts[0], 16).edge(hosts[0], hosts[1], 16);
    let mut last = hosts[1];
    for number in 2..20 {
        let next = graph.function(&scene.simple, "add_one");
        graph.share(next, hosts[number % 2]).edge(last, next, 16);
        last = next;
    }
    // And one that does not leave the worker, with two inputs.
    let sum = graph.function(&scene.simple, "add_one");
    graph.share(sum, hosts[1]).edge(last, sum, 16).output(sum, 16).output(last, 16);
    let results = scene.run(&graph, &[&[1, 2, 3], &[9]]);
    let results: Vec<_> = results.into_iter().map(Result::unwrap).collect();
    assert_eq!(results, [vec![vec![22, 23, 24], vec![21, 22, 23]], vec![vec![30], vec![29]]]);
    scene.done();
}

#[test]
fn a_function_that_asks_for_it_is_called_again() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = Graph::new();
    let count = graph.function(&scene.compose, "count_down");
    graph.input(count, 16).again(count).output(count, 16);
    assert_eq!(
        scene.outputs(&graph, &[&[5], &[0], &[200], &[1]]),
        [[0, 6], [0, 1], [0, 201], [0, 2]]
    );
    // Not where the graph does not say so.
    let mut graph = Graph::new();
    let count = graph.function(&scene.compose, "count_down");
    graph.input(count, 16).output(count, 16);
    let mut results = scene.run(&graph, &[&[5], &[0]]);
    assert_eq!(results.remove(1).unwrap(), [[0, 1]]);
    let (_, source) = source(results.remove(0));
    assert!(matches!(source, Error::FunctionFailed { code: -3 }), "{source}");
    scene.done();
}

#[test]
fn a_function_sends_before_it_returns_and_asks_others() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = Graph::new();
    let halves = graph.function(&scene.compose, "halves");
    let gather = graph.function(&scene.compose, "gather");
    let second = graph.function(&scene.simple, "add_one");
    graph.input(halves, 64).emits(halves).edge(halves, gather, 64).edge(halves, second, 64);
    graph.edge(second, gather, 64).output(gather, 64);
    assert_eq!(
        scene.outputs(&graph, &[b"abcd", b"", b"xyz"]),
        [&b"\0ab\x01de"[..], b"\0\x01", b"\0x\x01z{"]
    );

    let mut graph = Graph::new();
    let asks = graph.function(&scene.compose, "ask_twice");
    let answers = graph.function(&scene.simple, "twice");
    graph.input(asks, 64).call(asks, answers, 64, 64).output(asks, 64);
    assert_eq!(scene.outputs(&graph, &[&[1, 2], &[3]]), [vec![4, 8], vec![12]]);

    // The same within one worker: what was sent stays as it was when something else is returned.
    let mut graph = Graph::new();
    let halves = graph.function(&scene.compose, "halves");
    let gather = graph.function(&scene.compose, "gather");
    graph.share(gather, halves).input(halves, 64).emits(halves).output(gather, 64);
    graph.edge(halves, gather, 64).edge(halves, gather, 64);
    assert_eq!(scene.outputs(&graph, &[b"abcd", b"wxyz"]), [b"\0ab\x01cd", b"\0wx\x01yz"]);

    // An answer that comes late keeps the slot, and nobody gets it.
    let mut graph = Graph::new();
    let asks = graph.function(&scene.compose, "ask_in_vain");
    let answers = graph.function(&scene.compose, "later");
    graph.input(asks, 64).call(asks, answers, 64, 64).output(asks, 64);
    assert_eq!(scene.outputs(&graph, &[&[50], &[50], &[50], &[50], &[50], &[50]]), [[6, 5]; 6]);

    // A failure of who is asked is one of who asks, if that says so.
    let mut graph = Graph::new();
    let asks = graph.function(&scene.compose, "ask_twice");
    let answers = graph.function(&scene.compose, "fail_with");
    graph.input(asks, 64).call(asks, answers, 64, 64).output(asks, 64);
    let (function, source) = source(scene.run(&graph, &[&[9]]).remove(0));
    assert!(matches!(source, Error::FunctionFailed { code: 7 }), "lost: {source}");
    assert_eq!(function, "ask_twice");

    let mut graph = Graph::new();
    let overreach = graph.function(&scene.compose, "overreach");
    graph.input(overreach, 64).output(overreach, 64);
    assert_eq!(scene.outputs(&graph, &[&[0]]), [[3, 3, 1, 1]]);
    scene.done();
}

#[test]
fn large_payloads_are_in_place_where_memory_can_be_mapped() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    const LARGE: usize = 1 << 20;
    let mut graph = Graph::new();
    let functions: Vec<_> = (0..4).map(|_| graph.function(&scene.simple, "add_one")).collect();
    graph.input(functions[0], LARGE).output(functions[3], LARGE);
    for two in functions.windows(2) {
        graph.edge(two[0], two[1], LARGE);
    }
    let input: Vec<u8> = (0..LARGE).map(|at| (at % 251) as u8).collect();
    let expected: Vec<u8> = input.iter().map(|byte| byte.wrapping_add(4)).collect();
    let outputs = scene.outputs(&graph, &[&input, &[7], &[], &input]);
    assert!(outputs[0] == expected && outputs[3] == expected);
    assert_eq!((&outputs[1][..], &outputs[2][..]), (&[11][..], &[][..]));
    // Too much is refused as it is elsewhere.
    let mut graph = Graph::new();
    let promise = graph.function(&scene.compose, "promise");
    let last = graph.function(&scene.simple, "count");
    graph.input(promise, 64).edge(promise, last, 16 << 10).output(last, 64);
    let mut results = scene.run(&graph, &[&16384u32.to_le_bytes(), &16385u32.to_le_bytes()]);
    let (_, source) = source(results.remove(1));
    assert!(matches!(source, Error::OutputTooLarge { needed: 16385, capacity: 16384 }), "{source}");
    assert_eq!(results.remove(0).unwrap(), [16384u32.to_le_bytes()]);
    scene.done();
}
