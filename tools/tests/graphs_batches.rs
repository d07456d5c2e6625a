//! Functions that take batches, with real processes: several runs of a graph in one call, each with its own output.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rfaas::{Client, CompiledGraph, Deployment, Error, Graph, Spin};
use testkit::functions::{compose, graph as graph_library};
use testkit::service::{all_is_free, cluster};
use testkit::wait::one_at_a_time;
use testkit::{LocalCluster, Options};

/// Runs that can be under way.
const SLOTS: u16 = 8;
/// How long a batch waits that is sure to be full before.
const LONG: Duration = Duration::from_secs(20);

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
        let cluster = cluster(Options { cores: 4, memory: 4096, ..Options::default() });
        let directory = tempfile::tempdir().unwrap();
        let (simple, compose) = (graph_library(directory.path()), compose(directory.path()));
        let client = cluster.client().unwrap();
        Scene { cluster, client, _directory: directory, simple, compose }
    }

    /// A graph of a function that says with how many runs it was called.
    fn together(&self, most: usize, wait: Duration) -> CompiledGraph {
        let mut graph = Graph::new();
        let together = graph.function(&self.compose, "together");
        graph.input(together, 64).output(together, 64).batch(together, most, wait).traced(true);
        self.compile(&graph, Duration::from_secs(60))
    }

    fn compile(&self, graph: &Graph, limit: Duration) -> CompiledGraph {
        all_is_free(&self.cluster);
        let deployment = Deployment::new().spin(Spin::Never).slots(SLOTS).invocation_timeout(limit);
        self.client.compile_with(graph, &deployment).unwrap()
    }

    fn done(self) {
        all_is_free(&self.cluster);
        self.cluster.stop().unwrap();
    }
}

/// Submits a run with each input, and returns what becomes of each.
fn run(graph: &mut CompiledGraph, inputs: &[impl AsRef<[u8]>]) -> Vec<Result<Vec<u8>, Error>> {
    let runs: Vec<_> = inputs.iter().map(|input| graph.submit(input.as_ref()).unwrap()).collect();
    runs.into_iter().map(|run| graph.wait(run).map(|mut outputs| outputs.remove(0))).collect()
}

fn source(result: Result<Vec<u8>, Error>) -> Error {
    match result.unwrap_err() {
        Error::GraphFailed { function, source, .. } => {
            assert_eq!(function, "together");
            *source
        }
        other => other,
    }
}

#[test]
fn runs_are_called_together_and_each_has_its_own_output_and_its_own_trace() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = scene.together(SLOTS.into(), LONG);
    const TIMES: u64 = 20;
    for _ in 0..TIMES {
        let begun = Instant::now();
        let runs: Vec<_> = (0..SLOTS as u8).map(|run| graph.submit(&[run; 9]).unwrap()).collect();
        for (number, run) in runs.into_iter().enumerate() {
            let (outputs, trace) = graph.wait_traced(run);
            let expected = [&[SLOTS as u8][..], &[number as u8; 9]].concat();
            assert_eq!(outputs.unwrap(), [expected]);
            let [span] = &trace.spans[..] else { panic!("{trace:?}") };
            assert_eq!((span.calls, span.together, span.failed), (1, SLOTS, false));
            assert_eq!((span.bytes_in, span.bytes_out), (9, 10));
            assert_eq!(span.notes, [("runs".to_owned(), SLOTS.into())]);
        }
        assert!(begun.elapsed() < LONG, "it is full, and waits for nobody");
    }
    let bills = graph.release().unwrap();
    assert_eq!(bills[0].invocations.get(), TIMES, "a batch is one call");
    scene.done();
}

#[test]
fn a_batch_is_no_larger_than_it_may_be_and_waits_no_longer() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    const WAIT: Duration = Duration::from_millis(30);
    let mut graph = scene.together(3, WAIT);
    let begun = Instant::now();
    assert_eq!(run(&mut graph, &[b"x"]).remove(0).unwrap(), b"\x01x", "there is no other");
    assert!(begun.elapsed() >= WAIT);
    let sizes: Vec<_> = run(&mut graph, &[b"x"; SLOTS as usize])
        .into_iter()
        .map(|output| output.unwrap()[0])
        .collect();
    assert!(sizes.iter().all(|size| (1..=3).contains(size)), "{sizes:?}");
    graph.release().unwrap();
    // Without a wait, a run that is alone is called at once; and never more than there are slots.
    let mut graph = scene.together(1000, Duration::ZERO);
    for _ in 0..50 {
        assert_eq!(run(&mut graph, &[b"x"]).remove(0).unwrap(), b"\x01x");
        let outputs = run(&mut graph, &[b"x"; SLOTS as usize]);
        assert!(outputs.iter().all(|output| output.as_ref().unwrap()[0] <= SLOTS as u8));
    }
    drop(graph);
    scene.done();
}

#[test]
fn one_run_of_a_batch_fails_or_all_and_the_next_batch_does_not() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = scene.together(4, LONG);
    let mut ended = run(&mut graph, &[b"f", b"1", b"n", b"2"]);
    assert_eq!(ended.remove(3).unwrap(), b"\x042");
    assert!(matches!(source(ended.remove(2)), Error::NoValue));
    assert_eq!(ended.remove(1).unwrap(), b"\x041");
    assert!(matches!(source(ended.remove(0)), Error::FunctionFailed { code: 7 }));
    for failed in run(&mut graph, &[b"1", b"2", b"a", b"3"]) {
        assert!(matches!(source(failed), Error::FunctionFailed { code: 8 }));
    }
    let large = [b'x'; 64]; // and the size of the batch, which is more than the edge holds
    for failed in run(&mut graph, &[&large[..], b"1", b"2", b"3"]) {
        assert!(matches!(source(failed), Error::FunctionFailed { code: -4 }));
    }
    let well = run(&mut graph, &[b"1"; 4]);
    assert!(well.iter().all(|output| output.as_ref().unwrap() == b"\x041"));
    drop(graph);
    scene.done();
}

#[test]
fn a_batch_that_hangs_ends_all_its_runs_at_their_limit() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = Graph::new();
    let together = graph.function(&scene.compose, "together");
    graph.input(together, 64).output(together, 64).batch(together, 4, LONG);
    let mut graph = scene.compile(&graph, Duration::from_secs(1));
    for failed in run(&mut graph, &[b"1", b"h", b"2", b"3"]) {
        let error = source(failed);
        assert!(matches!(error, Error::TimeLimit { .. } | Error::WorkerLost { .. }), "{error}");
    }
    let well = run(&mut graph, &[b"1"; 4]);
    assert!(well.iter().all(|output| output.as_ref().unwrap() == b"\x041"));
    drop(graph);
    scene.done();
}

#[test]
fn workers_batch_each_for_itself_and_large_outputs_are_in_place() {
    let _guard = one_at_a_time();
    let scene = Scene::new();
    let mut graph = Graph::new();
    let first = graph.function(&scene.simple, "add_one");
    let together = graph.function(&scene.compose, "together");
    let count = graph.function(&scene.compose, "gather");
    const BYTES: usize = 20 << 10;
    graph.input(first, BYTES).edge(first, together, BYTES).edge(together, count, 32 << 10);
    graph.workers(together, 2).batch(together, SLOTS.into(), LONG).output(count, 64 << 10);
    let mut graph = scene.compile(&graph, Duration::from_secs(60));
    for turn in 0..5 {
        let inputs: Vec<_> = (0..SLOTS as u8).map(|run| vec![16 * turn + run; BYTES]).collect();
        let inputs: Vec<_> = inputs.iter().map(|input| &input[..]).collect();
        for (input, output) in inputs.iter().zip(run(&mut graph, &inputs)) {
            let of = |worker: u8| [&[worker, SLOTS as u8][..], &vec![input[0] + 1; BYTES]].concat();
            assert!(output.unwrap() == [of(0), of(1)].concat(), "turn {turn}, {}", input[0]);
        }
    }
    drop(graph);
    scene.done();
}

#[test]
fn only_a_function_that_is_written_for_it_gets_batches_and_it_gets_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let library = compose(directory.path());
    let graph = |name: &str, batch: bool| {
        let mut graph = Graph::new();
        let function = graph.function(&library, name);
        graph.input(function, 64).output(function, 64);
        if batch {
            graph.batch(function, 4, Duration::ZERO);
        }
        graph.check().map_err(|error| error.to_string())
    };
    graph("together", true).unwrap();
    let error = graph("gather", true).unwrap_err();
    assert!(error.contains("no function \"rfaas_batch_gather\""), "{error}");
    assert!(error.contains("gather takes one run at a time"), "{error}");
    for name in ["together", "rfaas_batch_together"] {
        assert!(graph(name, false).unwrap_err().contains(&format!("no function {name:?}")));
    }
    let error = graph("together", false).unwrap_err();
    assert!(error.contains("rfaas_batch_together takes batches: `Graph::batch`"), "{error}");
}
