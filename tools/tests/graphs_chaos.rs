//! Chaos for graphs: runs of an idempotent graph of two lanes while executors and executor managers are killed at
//! random. What comes out is right, or an error that says what was lost; in the end both lanes serve, all capacity is
//! free and nothing is left.
//!
//! ```text
//! cargo test -p tools --test graphs_chaos                                                    40 runs
//! CHAOS_SEED=$RANDOM CHAOS_CYCLES=2000 cargo test -p tools --test graphs_chaos
//! ```

#![allow(clippy::unwrap_used)] // what does not hold panics; that is what a test does

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas::{CompiledGraph, Deployment, Error, Graph, Lanes, Spin};
use testkit::Options;
use testkit::functions::graph as graph_library;
use testkit::leftovers::Leftovers;
use testkit::service::cluster;
use testkit::test_devices::patience;
use testkit::wait::{eventually, one_at_a_time, rounds};

/// What decides when who is killed, and how many runs there are.
const SEED: &str = "CHAOS_SEED";
const CYCLES: &str = "CHAOS_CYCLES";
const USUAL_SEED: u64 = 17;
const SHORT: u64 = 40;

/// Numbers without a pattern, the same for the same seed; splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Adds a run that is over to the counts. Its outputs are right, or its error is one of a loss.
fn count(counts: &mut BTreeMap<String, u64>, expected: u8, ended: rfaas::Result<Vec<Vec<u8>>>) {
    let name = match ended {
        Ok(outputs) => {
            assert_eq!(outputs, [[expected]]);
            "served".to_owned()
        }
        Err(Error::GraphFailed { node, source, .. }) => {
            assert!(node.starts_with("local-node"));
            format!("failed: {source}")
        }
        Err(error @ (Error::GraphNotStarted { .. } | Error::LeaseRefused { .. })) => {
            format!("not started: {error}")
        }
        Err(error @ (Error::WorkerLost { .. } | Error::LeaseEnded { .. })) => error.to_string(),
        Err(error @ Error::TimeLimit { .. }) => error.to_string(),
        Err(error) => panic!("{error:?}"),
    };
    *counts.entry(name).or_default() += 1;
}

/// Submits as many runs as there is room for, until `count` are.
fn submit(
    graph: &mut CompiledGraph,
    input: u8,
    most: u64,
    counts: &mut BTreeMap<String, u64>,
) -> Vec<rfaas::Run> {
    let mut runs = Vec::new();
    for _ in 0..most {
        match graph.submit(&[input]) {
            Ok(run) => runs.push(run),
            Err(Error::AllSlotsBusy) => break, // a lane is starting
            Err(error) => count(counts, input, Err(error)),
        }
    }
    runs
}

#[test]
fn runs_are_served_or_say_what_was_lost_whatever_is_killed() {
    let _guard = one_at_a_time();
    let seed = number(SEED).unwrap_or(USUAL_SEED);
    let cycles = number(CYCLES).unwrap_or(u64::from(rounds(SHORT as u32)));
    println!("chaos of graphs: {SEED}={seed} {CYCLES}={cycles}");
    let nothing = tempfile::tempdir().unwrap();
    let before = Leftovers::list(nothing.path());
    let directory = tempfile::tempdir().unwrap();
    let library = graph_library(directory.path());
    let mut cluster = cluster(Options { nodes: 2, cores: 5, memory: 4096, ..Options::impatient() });
    let client = cluster.client().unwrap();
    let mut graph = Graph::new();
    let [a, b, c] = ["add_one", "obey", "add_one"].map(|name| graph.function(&library, name));
    graph.input(a, 64).edge(a, b, 64).edge(b, c, 64).output(c, 64);
    graph.lanes(Lanes::exactly(2)).idempotent(true);
    let limit = patience(Duration::from_secs(10));
    let deployment = Deployment::new().spin(Spin::Never).slots(2).invocation_timeout(limit);
    let mut graph = client.compile_with(&graph, &deployment).unwrap();
    let (mut random, mut counts) = (Random(seed), BTreeMap::new());
    let mut away: Option<(usize, Instant)> = None;
    let (mut done, mut kills) = (0, 0);
    while done < cycles {
        // Some of them take their time, so that something is under way when somebody is killed.
        let input = [7, b's' - 1][random.below(4) as usize / 3];
        let submitted_at = Instant::now();
        let runs = submit(&mut graph, input, 1 + random.below(4), &mut counts);
        done += runs.len().max(1) as u64;
        match random.below(12) {
            0 if away.is_none() => {
                let node = random.below(2) as usize;
                cluster.executor_manager_of(node).unwrap().signal(Signal::SIGKILL);
                away = Some((node, Instant::now() + patience(Duration::from_millis(500))));
                kills += 1;
            }
            1..=3 => {
                let running = cluster.executors_running();
                if !running.is_empty() {
                    let chosen = running[random.below(running.len() as u64) as usize];
                    // It may have ended since it was listed.
                    kills += u32::from(
                        kill(Pid::from_raw(chosen.cast_signed()), Signal::SIGKILL).is_ok(),
                    );
                }
            }
            _ => {}
        }
        for run in runs {
            count(&mut counts, input + 2, graph.wait(run));
        }
        let took = submitted_at.elapsed();
        let most = 4 * limit + deployment.start_timeout;
        assert!(took < most, "{took:?} for runs of {limit:?}");
        if away.is_some_and(|(_, until)| Instant::now() >= until) {
            cluster.start_executor_manager_of(away.take().unwrap().0).unwrap();
        }
    }
    if let Some((node, _)) = away {
        cluster.start_executor_manager_of(node).unwrap();
    }
    println!("  {kills} killed; {counts:?}");
    let served = counts.get("served").copied().unwrap_or_default();
    assert!(2 * served > cycles, "few were served: {counts:?}");
    eventually("both lanes serve", || {
        let runs: Vec<_> = (0..4).map_while(|_| graph.submit(&[1]).ok()).collect();
        runs.iter().filter(|run| graph.wait(**run).is_ok()).count() == 4
    });
    graph.release().unwrap();
    let http = cluster.http().unwrap();
    eventually("all nodes are ready and free", || {
        let nodes = http.get("/nodes").unwrap().body;
        let nodes = nodes.as_array().unwrap();
        let free = |node: &serde_json::Value| node["free_cores"] == node["cores"];
        nodes.len() == 2 && nodes.iter().all(|node| node["state"] == "ready" && free(node))
    });
    drop((client, directory));
    cluster.stop().unwrap();
    Leftovers::nothing_new_since(&before, nothing.path());
}
