//! Lanes of graphs with real processes: as many as there is room for or none, runs go where there is room, and are
//! fetched in whatever way the caller likes.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::path::Path;
use std::time::{Duration, Instant};

use rfaas::{Deployment, Error, Graph, Lanes, Spin};
use testkit::service::{all_is_free, cluster_for_graphs};
use testkit::wait::{one_at_a_time, rounds};

fn warm(slots: u16) -> Deployment {
    Deployment::new().spin(Spin::Never).slots(slots)
}

/// Adds one, does what it is told, adds one.
fn chain(library: &Path, lanes: Lanes) -> Graph {
    let mut graph = Graph::new();
    let [a, b, c] = ["add_one", "obey", "add_one"].map(|name| graph.function(library, name));
    graph.input(a, 64).edge(a, b, 64).edge(b, c, 64).output(c, 64).lanes(lanes);
    graph
}

#[test]
fn lanes_are_as_many_as_there_is_room_for_or_all_of_them_or_none() {
    let _guard = one_at_a_time();
    let (cluster, client, _directory, library) = cluster_for_graphs();
    let error = client.compile(&chain(&library, Lanes::exactly(3))).unwrap_err();
    assert!(matches!(error, Error::LeaseRefused { .. }), "{error}");
    all_is_free(&cluster);
    for wrong in [Lanes::exactly(0), Lanes::up_to(0), Lanes::up_to(1000)] {
        let error = client.compile(&chain(&library, wrong)).unwrap_err();
        assert!(matches!(error, Error::InvalidGraph(_)), "{error}");
    }
    let mut graph = client.compile_with(&chain(&library, Lanes::up_to(5)), &warm(2)).unwrap();
    assert_eq!((graph.lanes(), graph.width(), graph.nodes().count()), (2, 4, 6));
    for round in 0..rounds(100) as u8 {
        let inputs = [0, 1, 2, 3].map(|n: u8| [round % 64 + n]);
        let runs = inputs.map(|input| graph.submit(&input).unwrap());
        assert!(matches!(graph.submit(&[0]), Err(Error::AllSlotsBusy)));
        for n in [2, 0, 3, 1] {
            assert_eq!(graph.wait(runs[n]).unwrap(), [[inputs[n][0] + 2]]);
        }
        assert!(matches!(graph.wait(runs[0]), Err(Error::Foreign("run"))));
    }
    // All lanes have served, each its share.
    let bills = graph.release().unwrap();
    assert_eq!(bills.len(), 6);
    let runs = 2 * u64::from(rounds(100));
    assert!(bills.iter().all(|bill| bill.invocations.get() == runs), "{bills:?}");
    all_is_free(&cluster);
    cluster.stop().unwrap();
}

#[test]
fn runs_are_fetched_one_by_one_without_waiting_or_whichever_is_over() {
    let _guard = one_at_a_time();
    let (cluster, client, _directory, library) = cluster_for_graphs();
    for spin in [Spin::Never, Spin::Always] {
        let deployment = warm(2).spin(spin);
        let graph = chain(&library, Lanes::exactly(2));
        let mut graph = client.compile_with(&graph, &deployment).unwrap();
        assert!(graph.wait_any().is_none());
        // The first takes its time; the others are over before it, on the other lane.
        let slow = graph.submit(&[b's' - 1]).unwrap();
        let quick = graph.submit(&[1]).unwrap();
        assert!(graph.poll(slow).is_none());
        assert!(graph.wait_timeout(slow, Duration::ZERO).is_none());
        let (begun, time) = (Instant::now(), Duration::from_millis(20));
        assert!(graph.wait_timeout(slow, time).is_none() && begun.elapsed() >= time);
        let (run, outputs) = graph.wait_any().unwrap();
        assert_eq!((run, outputs.unwrap()), (quick, vec![vec![3]]));
        let (run, outputs) = graph.wait_any().unwrap();
        assert_eq!((run, outputs.unwrap()), (slow, vec![vec![b's' + 1]]));
        assert!(graph.wait_any().is_none());
        let run = graph.submit(&[7]).unwrap();
        let outputs = loop {
            if let Some(outputs) = graph.poll(run) {
                break outputs.unwrap();
            }
            std::thread::yield_now();
        };
        assert_eq!(outputs, [[9]]);
        assert!(matches!(graph.poll(run), Some(Err(Error::Foreign("run")))));
        drop(graph);
        all_is_free(&cluster);
    }
    cluster.stop().unwrap();
}

#[test]
fn a_map_keeps_the_order_and_takes_inputs_as_there_is_room() {
    let _guard = one_at_a_time();
    let (cluster, client, _directory, library) = cluster_for_graphs();
    let graph = chain(&library, Lanes::exactly(2));
    let mut graph = client.compile_with(&graph, &warm(2)).unwrap();
    let (width, most) = (graph.width() as u64, u64::from(rounds(2_000)));
    let taken = std::cell::Cell::new(0);
    let inputs = (0..most).map(|n| {
        taken.set(taken.get() + 1);
        [[0; 8], n.to_le_bytes()].concat()
    });
    for (n, outputs) in (0..).zip(graph.map(inputs)) {
        let expected = n_plus_two(n);
        assert_eq!(outputs.unwrap(), [expected]);
        assert!(taken.get() <= n + 1 + width, "{} inputs at output {n}", taken.get());
    }
    assert_eq!(taken.get(), most);
    assert_eq!(graph.map([[0_u8; 8]; 0]).count(), 0);

    // One that fails is an error of its own.
    let inputs: [&[u8]; 5] = [&[1], &[0; 65], &[b'l' - 1], &[2], &[]];
    let outputs: Vec<_> = graph.map(inputs).collect();
    assert_eq!(outputs.len(), 5);
    assert_eq!(outputs[0].as_ref().unwrap(), &[[3]]);
    assert!(matches!(outputs[1], Err(Error::InputTooLarge { bytes: 65, max: 64 })));
    assert!(matches!(outputs[2], Err(Error::GraphFailed { .. })));
    assert_eq!(outputs[3].as_ref().unwrap(), &[[4]]);
    assert_eq!(outputs[4].as_ref().unwrap(), &[[0_u8; 0]]);

    // One that is dropped half way leaves the room to others.
    let first = graph.map([[b's' - 1]; 100]).next().unwrap().unwrap();
    assert_eq!(first, [[b's' + 1]]);
    for _ in 0..2 * width {
        assert_eq!(graph.run(&[1]).unwrap(), [[3]]);
    }
    // Runs of the caller's own take the room of a map.
    let runs: Vec<_> = (0..width).map(|_| graph.submit(&[1]).unwrap()).collect();
    let busy = graph.map([[1]; 2]).next().unwrap();
    assert!(matches!(busy, Err(Error::AllSlotsBusy)), "{busy:?}");
    for run in runs {
        graph.wait(run).unwrap();
    }
    drop(graph);
    all_is_free(&cluster);
    cluster.stop().unwrap();
}

/// What the chain makes of eight zeros and `n`.
fn n_plus_two(n: u64) -> Vec<u8> {
    let bytes = [[0; 8], n.to_le_bytes()].concat();
    bytes.into_iter().map(|byte: u8| byte.wrapping_add(2)).collect()
}
