//! Traces of graphs, with real processes: every worker tells what it did, and when.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::time::{Duration, SystemTime};

use rfaas::{Deployment, Error, Graph, Spin};
use serde_json::json;
use testkit::Options;
use testkit::functions::{compose, graph as graph_library};
use testkit::service::cluster;
use testkit::wait::{eventually, one_at_a_time};

#[test]
fn a_trace_has_what_each_worker_did() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { cores: 8, memory: 8192, ..Options::default() });
    let directory = tempfile::tempdir().unwrap();
    let compose = compose(directory.path());
    let client = cluster.client().unwrap();
    let deployment = Deployment::new().spin(Spin::Never);
    let mut graph = Graph::new();
    let split = graph.function(&compose, "split");
    let work = graph.function(&compose, "who_adds_one");
    let flatten = graph.function(&compose, "flatten");
    let last = graph.function(&compose, "fail_with");
    graph.workers(work, 2).input(split, 64).each(split, work, 1024).edge(work, flatten, 1024);
    graph.share(last, flatten).edge(flatten, last, 256).output(last, 256).traced(true);
    let mut graph = client.compile_with(&graph, &deployment).unwrap();
    for _ in 0..300 {
        // The number of a run has one byte: what it was 256 runs ago is not taken for this one.
        let before = SystemTime::now();
        let run = graph.submit(b"\0bc").unwrap();
        let (outputs, trace) = graph.wait_traced(run);
        let after = SystemTime::now();
        assert_eq!(outputs.unwrap(), [b"\0\0\x01c\0db\x01c"]);
        assert!(trace.is_complete(), "{trace:?}");
        let names: Vec<_> =
            trace.spans.iter().map(|span| (span.function.as_str(), span.worker)).collect();
        let expected = [
            ("split", 0),
            ("who_adds_one", 0),
            ("who_adds_one", 1),
            ("flatten", 0),
            ("fail_with", 0),
        ];
        assert_eq!(names, expected);
        assert_eq!(trace.edges, [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]);
        assert_eq!(trace.spans.iter().map(|span| span.calls).collect::<Vec<_>>(), [1, 2, 1, 1, 1]);
        let bytes: Vec<_> =
            trace.spans.iter().map(|span| (span.bytes_in, span.bytes_out)).collect();
        // An item of one byte takes 16 bytes with its header, but the last one of a function, whose end is not filled
        // up.
        assert_eq!(bytes, [(3, 48), (32, 26), (16, 10), (36, 9), (9, 9)]);
        for span in &trace.spans {
            assert!(
                span.begin >= before && span.begin + span.took <= after + Duration::from_millis(50)
            );
            assert_eq!((span.node.as_str(), span.failed), (trace.spans[0].node.as_str(), false));
        }
    }
    cluster.stop().unwrap();
}

#[test]
fn what_functions_note_is_in_the_trace_of_their_run_and_nowhere_without_one() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { cores: 4, memory: 4096, ..Options::default() });
    let directory = tempfile::tempdir().unwrap();
    let compose = compose(directory.path());
    let client = cluster.client().unwrap();
    let deployment = Deployment::new().spin(Spin::Never);
    let mut graph = Graph::new();
    let notes = graph.function(&compose, "notes");
    let silent = graph.function(&compose, "fail_with");
    graph.input(notes, 300).output(notes, 64).input(silent, 300).output(silent, 300);
    for traced in [true, false] {
        let mut graph = client.compile_with(graph.traced(traced), &deployment).unwrap();
        for bytes in 1..300 {
            let run = graph.submit(&vec![0; bytes]).unwrap();
            let (outputs, trace) = graph.wait_traced(run);
            assert_eq!(outputs.unwrap()[0], u64::MAX.to_le_bytes(), "the node stays");
            if traced {
                let bytes = bytes as i64;
                let expected = [("bytes".to_owned(), bytes), ("sixteen letters.".to_owned(), -1)];
                assert_eq!(trace.spans[0].notes, expected);
                assert_eq!(trace.spans[1].notes, []);
            } else {
                assert!(trace.spans.is_empty());
            }
        }
        graph.release().unwrap();
    }
    cluster.stop().unwrap();
}

#[test]
fn a_function_is_told_when_its_node_is_left_and_when_it_stays_after_all() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { cores: 4, memory: 4096, ..Options::default() });
    let directory = tempfile::tempdir().unwrap();
    let compose = compose(directory.path());
    let client = cluster.client().unwrap();
    let mut graph = Graph::new();
    let notes = graph.function(&compose, "notes");
    graph.input(notes, 64).output(notes, 64).lease_time(Duration::from_secs(60));
    let mut graph = client.compile_with(&graph, &Deployment::new().spin(Spin::Never)).unwrap();
    let mut left = || {
        let output = graph.run(b"x").unwrap().remove(0);
        Duration::from_nanos(u64::from_le_bytes(output[..].try_into().unwrap()))
    };
    const STAYS: Duration = Duration::from_nanos(u64::MAX);
    const HOUR: Duration = Duration::from_secs(3600);
    assert_eq!(left(), STAYS);
    let http = cluster.http().unwrap();
    let said = http.post("/nodes/local-node/leaving", &json!({"in_ms": HOUR.as_millis() as u64}));
    assert_eq!(said.unwrap().status, 200);
    eventually("it is told", || (HOUR / 2..=HOUR).contains(&left()));
    // One that starts later is told, too.
    let mut other = Graph::new();
    let notes = other.function(&compose, "notes");
    other.input(notes, 64).output(notes, 64).lease_time(Duration::from_secs(60));
    let mut other = client.compile_with(&other, &Deployment::new().spin(Spin::Never)).unwrap();
    eventually("it is told from the start", || {
        other.run(b"x").unwrap().remove(0) != u64::MAX.to_le_bytes()
    });
    let nodes = http.get("/nodes").unwrap().body;
    let node = &nodes.as_array().unwrap()[0];
    let again = json!({
        "ip_address": node["ip_address"], "port": node["port"], "cores": node["cores"], "memory": node["memory"],
    });
    assert_eq!(http.post("/add?node=local-node", &again).unwrap().status, 200);
    eventually("it stays", || left() == STAYS);
    drop((graph, other));
    cluster.stop().unwrap();
}

#[test]
fn a_failure_is_told_where_it_was_and_behind_that() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { cores: 4, memory: 4096, ..Options::default() });
    let directory = tempfile::tempdir().unwrap();
    let (simple, compose) = (graph_library(directory.path()), compose(directory.path()));
    let mut graph = Graph::new();
    let fails = graph.function(&compose, "fail_with");
    let obeys = graph.function(&simple, "obey");
    graph.input(fails, 64).edge(fails, obeys, 64).output(obeys, 64).traced(true);
    let client = cluster.client().unwrap();
    let mut graph = client.compile_with(&graph, &Deployment::new().spin(Spin::Never)).unwrap();
    let run = graph.submit(b"\x07").unwrap();
    let (outputs, trace) = graph.wait_traced(run);
    let Err(Error::GraphFailed { function, .. }) = outputs else { panic!("{outputs:?}") };
    assert_eq!(function, "fail_with");
    assert_eq!(
        trace.spans.iter().map(|span| (span.calls, span.failed)).collect::<Vec<_>>(),
        [(1, true), (0, true)]
    );
    let run = graph.submit(b"\0e").unwrap();
    let (outputs, _) = graph.wait_traced(run);
    assert!(outputs.is_ok(), "{outputs:?}");
    cluster.stop().unwrap();
}
