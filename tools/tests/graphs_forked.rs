//! A child that is forked from a client with a graph neither uses nor ends what is its parent's, also while a lane
//! starts.
#![allow(unsafe_code)] // fork(2): nothing safe leaves parent and child running
#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rfaas::{Deployment, Error, Graph, Lanes, Spin};
use testkit::Options;
use testkit::functions::graph as graph_library;
use testkit::service::{all_is_free, cluster};
use testkit::wait::eventually;

#[test]
fn a_child_can_neither_use_nor_end_a_graph_also_while_a_lane_starts() {
    let cluster = cluster(Options { cores: 4, memory: 4096, ..Options::default() });
    let directory = tempfile::tempdir().unwrap();
    let library = graph_library(directory.path());
    let client = cluster.client().unwrap();
    let mut graph = Graph::new();
    let [a, b] = ["obey", "add_one"].map(|name| graph.function(&library, name));
    graph.input(a, 64).edge(a, b, 64).output(b, 64).lanes(Lanes::exactly(2));
    let deployment = Deployment::new().spin(Spin::Never).slots(2);
    let mut graph = client.compile_with(&graph, &deployment).unwrap();
    for a_lane_starts in [false, true] {
        if a_lane_starts {
            assert!(matches!(graph.run(b"c"), Err(Error::GraphFailed { .. })));
        }
        let run = graph.submit(&[1]).unwrap();
        // SAFETY: the child uses memory, which glibc makes usable after a fork, and what the client promises for
        // children, and ends without running what the test's process would at its end.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let told = [
                    matches!(graph.submit(&[1]), Err(Error::Forked)),
                    matches!(graph.wait(run), Err(Error::Forked)),
                    matches!(graph.poll(run), Some(Err(Error::Forked))),
                    matches!({ graph.map([[1]]).next() }, Some(Err(Error::Forked))),
                    matches!(graph.wait_any(), Some((_, Err(Error::Forked)))),
                    graph.wait_any().is_none(), // so that a loop ends
                ];
                drop(graph);
                let wrong = told.iter().position(|told| !told);
                // SAFETY: ends the child, whatever it holds.
                unsafe { nix::libc::_exit(wrong.map_or(0, |at| at as i32 + 1)) };
            }
            ForkResult::Parent { child } => eventually("the child ends", || {
                match waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap() {
                    WaitStatus::StillAlive => false,
                    ended => {
                        assert_eq!(ended, WaitStatus::Exited(child, 0));
                        true
                    }
                }
            }),
        }
        assert_eq!(graph.wait(run).unwrap(), [[2]]);
    }
    assert_eq!(graph.release().unwrap().len(), 4);
    all_is_free(&cluster);
    cluster.stop().unwrap();
}
