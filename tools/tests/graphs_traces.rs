//! Traces of graphs, with real processes: every worker tells what it did, and when.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::time::{Duration, SystemTime};

use rfaas::{Deployment, Error, Graph, Spin};
use testkit::Options;
use testkit::functions::{compose, graph as graph_library};
use testkit::service::cluster;
use testkit::wait::one_at_a_time;

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
