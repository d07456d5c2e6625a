//! Clients, executors and the manager itself that are stopped, or hang: whoever is silent is as good as
//! dead, and nobody is taken for dead who could not be heard.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

mod common;

use std::time::{Duration, Instant};

use common::*;
use nix::sys::signal::Signal;
use rfaas_protocol::accounting::{EXECUTOR_BEATS, MANAGER_BEATS};
use rfaas_protocol::allocation::ToClient;
use rfaas_protocol::channel::Incoming;

const MS: Duration = Duration::from_millis(1);
/// After which somebody is given up who is silent, and nobody whom a busy machine keeps from a sign of life.
const SILENCE_MS: u32 = 3000;
const SILENCE: Duration = Duration::from_millis(SILENCE_MS as u64);
/// More than that.
const LONG: Duration = Duration::from_millis(SILENCE_MS as u64 + 1000);

/// A node with signs of life each 50 ms, which gives up who is silent for so long.
fn node(executor: &str, silence_ms: u32) -> Node {
    let mut setup = Setup::new(executor);
    (setup.heartbeat_ms, setup.silence_ms) = (50, silence_ms);
    setup.start()
}

/// Likewise, and a client with a lease on it, whose executor runs.
fn claimed_on(executor: &str, silence_ms: u32) -> (Node, Client, i32) {
    let node = node(executor, silence_ms);
    let mut client = node.client();
    client.claim(unsigned(1));
    let executor = node.executors(1)[0];
    (node, client, executor)
}

/// Stops the manager for longer than it waits for a sign of life, which the client gives it.
fn stop_while_it_beats(node: &Node, client: &mut Client) {
    node.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    while stopped.elapsed() < LONG {
        std::thread::sleep(150 * MS); // not more than there is room for while nobody takes them
        client.beat();
    }
    node.signal(Signal::SIGCONT);
}

#[test]
fn a_client_that_is_silent_loses_its_lease_as_if_it_were_gone() {
    let mut node = node(OBEDIENT, SILENCE_MS);
    let mut client = node.client();
    let claims = Instant::now();
    match client.ask(allocate(unsigned(4))) {
        ToClient::Allocated(told) => {
            assert_eq!((told.heartbeat_ms.get(), told.silence_ms.get()), (50, SILENCE_MS));
        }
        other => panic!("{other:?}"),
    }
    let pid = node.executors(1)[0];
    client.ended();
    assert!(claims.elapsed() >= SILENCE, "{:?}", claims.elapsed());
    wait_for("the end of its executor", || (!runs(pid)).then_some(()));
    node.wait_for_log("client is silent");
    node.wait_for_log("client_gone");
    node.client().claim(unsigned(4));
}

#[test]
fn a_client_that_beats_keeps_its_lease_and_hears_that_its_node_is_there() {
    let node = node(OBEDIENT, 60_000);
    let mut client = node.client();
    client.claim(unsigned(1));
    for _ in 0..10 {
        client.heartbeat();
        client.beat();
    }
    client.release();
    std::thread::sleep(200 * MS);
    let next = client.channel.try_receive::<ToClient>();
    assert!(matches!(next, Ok(None)), "who holds no lease is left in peace: {next:?}");
}

#[test]
fn a_manager_that_was_stopped_reads_what_waits_before_it_judges() {
    let (node, mut client, executor) = claimed_on(OBEDIENT, SILENCE_MS);
    stop_while_it_beats(&node, &mut client);
    client.heartbeat();
    client.release();
    assert!(!runs(executor));
}

#[test]
fn a_manager_that_was_stopped_judges_nobody_by_that_time() {
    let (node, mut client, _) = claimed_on(OBEDIENT, SILENCE_MS);
    node.signal(Signal::SIGSTOP);
    std::thread::sleep(LONG);
    node.signal(Signal::SIGCONT);
    let next = client.channel.receive(PATIENCE).unwrap();
    assert!(matches!(next, Incoming::Message(ToClient::Heartbeat(_))), "{next:?}");
    client.release();
}

/// Signal, status and silence with which the manager tells that an executor has exited.
fn exit_told(client: &mut Client) -> (i32, i32, u16) {
    let told = client.exited();
    (told.signal.get(), told.status.get(), told.silent.get())
}

const MISSES_ITS_MANAGER: &str =
    "echo $$ >> $DIR/pids; until [ -e $DIR/end ]; do sleep 0.01; done; exit 75";

#[test]
fn an_exit_status_is_told_as_it_is_by_a_manager_that_gave_signs_of_life() {
    let (node, mut client, _) = claimed_on(MISSES_ITS_MANAGER, 60_000);
    std::fs::write(node.setup.path("end"), "").unwrap();
    assert_eq!(exit_told(&mut client), (0, 75, 0));
}

#[test]
fn an_executor_that_missed_its_manager_is_believed_by_one_that_was_stopped() {
    let (node, mut client, _) = claimed_on(MISSES_ITS_MANAGER, SILENCE_MS);
    node.signal(Signal::SIGSTOP);
    std::thread::sleep(LONG);
    std::fs::write(node.setup.path("end"), "").unwrap();
    std::thread::sleep(500 * MS);
    node.signal(Signal::SIGCONT);
    let told = exit_told(&mut client);
    assert_eq!(told, (Signal::SIGKILL as i32, 0, 1));
}

#[test]
fn an_executor_that_gives_no_sign_of_life_is_killed_and_another_may_be_started() {
    // Stopped before it says anything, with a child: "during allocation".
    let mut node =
        node("echo $$ >> $DIR/pids; sleep 1000 & echo $! >> $DIR/pids; kill -STOP $$", SILENCE_MS);
    let mut client = node.client();
    let token = unsigned(4);
    let claims = Instant::now();
    assert_eq!(client.claim(token), 1);
    let pids = node.executors(2);
    assert_eq!(exit_told(&mut client), (Signal::SIGKILL as i32, 0, 1));
    assert!(claims.elapsed() >= SILENCE, "{:?}", claims.elapsed());
    wait_for("the end of both", || (!pids.iter().any(|&pid| runs(pid))).then_some(()));
    node.wait_for_log("executor is silent");
    assert_eq!(client.claim(token), 1, "the lease goes on");
    client.next();
    client.release();
}

#[test]
fn an_executor_that_beats_goes_on_and_sees_that_its_manager_does() {
    let (node, mut client, _) = claimed_on(OBEDIENT, SILENCE_MS);
    let standby = node.instructions().standby;
    assert_eq!((standby.heartbeat_ms, standby.silence_ms), (50, SILENCE_MS));
    let mut executor = Worker::connect(node.address, standby.manager_secret.0).unwrap();
    let seen = executor.fetch_add(MANAGER_BEATS, 0);
    let start = Instant::now();
    while start.elapsed() < LONG {
        executor.fetch_add(EXECUTOR_BEATS, 1);
        client.beat();
        std::thread::sleep(50 * MS);
        while let Ok(Some(told)) = client.channel.try_receive::<ToClient>() {
            assert!(matches!(told, Incoming::Message(ToClient::Heartbeat(_))), "{told:?}");
        }
    }
    assert!(executor.fetch_add(MANAGER_BEATS, 0) >= seen + 5);
    client.release();
}

#[test]
fn a_manager_that_was_stopped_looks_afresh_at_its_executors() {
    let (node, mut client, pid) = claimed_on(OBEDIENT, SILENCE_MS);
    let standby = node.instructions().standby;
    let mut executor = Worker::connect(node.address, standby.manager_secret.0).unwrap();
    stop_while_it_beats(&node, &mut client);
    for _ in 0..10 {
        executor.fetch_add(EXECUTOR_BEATS, 1);
        client.beat();
        std::thread::sleep(50 * MS);
    }
    assert!(runs(pid));
    client.release();
}

#[test]
fn without_leases_nobody_ticks() {
    let node = node(OBEDIENT, 60_000);
    let mut client = node.client();
    client.claim(unsigned(1));
    client.release();
    drop(client);
    wait_for("quiet", || {
        let before = wakes(node.pid());
        std::thread::sleep(500 * MS);
        (wakes(node.pid()) == before).then_some(())
    });
}

/// How often a process has slept so far.
fn wakes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}
