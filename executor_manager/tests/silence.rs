//! Clients, executors and the manager itself that are stopped, or hang: whoever is silent is as good as
//! dead, and nobody is taken for dead who could not be heard.

mod common;

use std::time::{Duration, Instant};

use common::*;
use nix::sys::signal::Signal;
use rfaas::channel::Incoming;
use rfaas::protocol::allocation::ToClient;

const MS: Duration = Duration::from_millis(1);

/// A node with signs of life each 50 ms, which gives up who is silent for so long.
fn node(executor: &str, silence_ms: u32) -> Node {
    let mut setup = Setup::new(executor);
    (setup.heartbeat_ms, setup.silence_ms) = (50, silence_ms);
    setup.start()
}

#[test]
fn a_client_that_is_silent_loses_its_lease_as_if_it_were_gone() {
    let mut node = node(OBEDIENT, 500);
    let mut client = node.client();
    match client.ask(allocate(unsigned(4))) {
        ToClient::Allocated(told) => {
            assert_eq!((told.heartbeat_ms.get(), told.silence_ms.get()), (50, 500));
        }
        other => panic!("{other:?}"),
    }
    let claimed = Instant::now();
    let pid = node.executors(1)[0];
    client.ended();
    assert!(claimed.elapsed() >= 450 * MS, "{:?}", claimed.elapsed());
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
    let node = node(OBEDIENT, 1000);
    let mut client = node.client();
    client.claim(unsigned(1));
    let executor = node.executors(1)[0];
    node.signal(Signal::SIGSTOP);
    for _ in 0..30 {
        std::thread::sleep(50 * MS);
        client.beat();
    }
    node.signal(Signal::SIGCONT);
    client.heartbeat();
    client.release();
    assert!(!runs(executor));
}

#[test]
fn a_manager_that_was_stopped_judges_nobody_by_that_time() {
    let node = node(OBEDIENT, 1000);
    let mut client = node.client();
    client.claim(unsigned(1));
    node.executors(1);
    node.signal(Signal::SIGSTOP);
    std::thread::sleep(2000 * MS);
    node.signal(Signal::SIGCONT);
    let next = client.channel.receive(PATIENCE).unwrap();
    assert!(matches!(next, Incoming::Message(ToClient::Heartbeat(_))), "{next:?}");
    client.release();
}
