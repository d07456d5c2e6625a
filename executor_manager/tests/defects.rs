//! What can go wrong with executors, clients and the resource manager, provoked from outside: each test provokes one
//! thing, and shows what happens instead. Tests of other files show the rest: `leases`, `upstream`, `silence`, and the
//! executor's own tests.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas_protocol::Empty;
use rfaas_protocol::allocation::{FromClient, RefusedBecause, ToClient};
use rfaas_protocol::channel::{Incoming, refuse};
use rfaas_protocol::lease::EndReason;
use rfaas_protocol::node::{LeaseEndedAck, ToNode};

/// A node that sleeps, and one that polls.
fn nodes(executor: &str) -> [Node; 2] {
    [true, false].map(|sleep| {
        let mut setup = Setup::new(executor);
        setup.sleep = sleep;
        setup.start()
    })
}

fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_dead_executor_is_reaped_and_told_asleep_and_polling() {
    for node in nodes(OBEDIENT) {
        let mut client = node.client();
        client.claim(unsigned(4));
        let pid = node.executors(1)[0];
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        match client.next() {
            ToClient::ExecutorExited(told) => {
                assert_eq!((told.signal.get(), told.silent.get()), (Signal::SIGKILL as i32, 0));
            }
            other => panic!("{other:?}"),
        }
        assert!(!exists(pid), "not even as a zombie");
        client.release();
        node.client().claim(unsigned(4));
    }
}

#[test]
fn a_request_that_comes_with_its_connection_is_answered() {
    for node in nodes("exit 0") {
        for _ in 0..50 {
            let (because, _) = node.client().refused(allocate(unsigned(0)));
            assert_eq!(because, RefusedBecause::BadRequest);
        }
    }
}

#[test]
fn more_requests_than_are_taken_at_once_are_all_answered() {
    for node in nodes("exit 0") {
        let mut clients: Vec<_> = (0..8).map(|_| node.client()).collect();
        for client in &mut clients {
            client.refused(allocate(unsigned(0))); // connected
        }
        node.signal(Signal::SIGSTOP);
        for client in &mut clients {
            for _ in 0..30 {
                client.send(&FromClient::Allocate(allocate(unsigned(0))));
            }
        }
        node.signal(Signal::SIGCONT);
        for client in &mut clients {
            for _ in 0..30 {
                assert!(matches!(client.next(), ToClient::Refused(_)));
            }
        }
        drop(clients);
        node.client().refused(allocate(unsigned(0)));
        let log = node.log();
        assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "an end is no error:\n{log}");
    }
}

#[test]
fn an_executor_that_cannot_be_run_is_a_refusal() {
    let setup = Setup::apart();
    setup.script(OBEDIENT);
    let node = setup.start();
    std::fs::write(node.setup.path("executor"), "no program, and without the right to run")
        .unwrap();
    let unusable = || std::fs::metadata(node.setup.path("executor")).unwrap().permissions();
    let mut mode = unusable();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o644);
    std::fs::set_permissions(node.setup.path("executor"), mode).unwrap();
    let mut client = node.client();
    for _ in 0..3 {
        let (because, reason) = client.refused(allocate(unsigned(4)));
        assert_eq!(because, RefusedBecause::SpawnFailed);
        assert!(reason.contains("executor"), "{reason}");
    }
    node.setup.script(OBEDIENT);
    client.claim(unsigned(4));
}

#[test]
fn clients_that_go_while_their_messages_are_taken_harm_nobody() {
    for node in nodes(OBEDIENT) {
        let mut good = node.client();
        good.claim(unsigned(1));
        for round in 0..30 {
            let mut client = node.client();
            for _ in 0..round % 4 {
                client.send(&FromClient::Allocate(allocate(unsigned(1))));
                client.send(&FromClient::Release(Empty {}));
            }
            if round % 2 == 0 {
                client.channel.disconnect();
            }
        }
        good.release();
        let mut client = node.client();
        wait_for("all cores", || match client.ask(allocate(unsigned(4))) {
            ToClient::Allocated(_) => Some(()),
            _ => None,
        });
        client.release();
        node.stop();
    }
}

#[test]
fn executors_get_secrets_that_nobody_guesses() {
    let node = Node::alone(OBEDIENT);
    let mut client = node.client();
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        client.claim(unsigned(1));
        seen.insert(node.assignment().manager_secret.0.0);
        client.release();
    }
    assert_eq!(seen.len(), 5);
    // Random bytes: five of 16 that agree somewhere by chance are rarer than once in 2⁵⁰.
    let fixed = (0..16).filter(|&i| seen.iter().all(|secret| Some(secret[i]) == first(&seen, i)));
    assert!(fixed.count() < 2);
}

fn first(secrets: &BTreeSet<[u8; 16]>, i: usize) -> Option<u8> {
    secrets.first().map(|secret| secret[i])
}

#[test]
fn a_resource_manager_that_rejects_or_talks_nonsense_is_dialed_again() {
    let mut manager = ResourceManager::new();
    let mut node = manager.node(OBEDIENT).start();
    let mut link = manager.register();
    let mut client = node.client();
    client.claim(link.signed(77, 1));
    assert_eq!(link.claimed(), 77);
    link.channel.send(&Nonsense).unwrap();
    link.channel.flush(PATIENCE).unwrap();
    drop(link);
    let request = manager.listener.next(PATIENCE).unwrap().expect("it dials again");
    refuse(request, "not now");
    node.wait_for_log("not now");
    let mut link = manager.register();
    assert_eq!(link.claimed(), 77, "and the lease goes on");
    client.release();
    assert_eq!(link.ended().1, EndReason::Released);
    link.send(&ToNode::EndedAck(LeaseEndedAck { lease: 77.into() }));
    node.stop();
}

/// Bytes that are no message.
struct Nonsense;

impl rfaas_protocol::MessageKind for Nonsense {
    fn encode(&self) -> Vec<u8> {
        vec![0xff; 500]
    }

    fn decode(_: &[u8]) -> Result<Self, rfaas_protocol::Malformed> {
        Ok(Nonsense)
    }
}

#[test]
fn a_node_leaves_no_files_and_no_processes() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        // The kernel ends executors with their manager if they ask for it, as ours do; a script cannot.
        let mut node = Node::alone(OBEDIENT);
        let mut client = node.client();
        client.claim(unsigned(1));
        node.assignment();
        let pid = node.executors(1)[0];
        node.signal(signal);
        node.wait();
        if signal == Signal::SIGKILL {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        } else {
            assert!(!runs(pid));
        }
        let names: BTreeSet<_> = std::fs::read_dir(node.setup.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let ours = ["devices.json", "executor", "executor_manager.json", "log", "pids"];
        assert_eq!(names, ours.map(String::from).into(), "{signal}");
    }
}

#[test]
fn a_lease_whose_client_host_says_nothing_any_more_ends() {
    let mut setup = Setup::new(OBEDIENT);
    (setup.heartbeat_ms, setup.silence_ms) = (50, 300);
    let node = setup.start();
    // A connection without an end, as of a host that has lost its power.
    let mut silent = node.client();
    silent.claim(unsigned(4));
    let mut other = node.client();
    wait_for("all cores", || match other.ask(allocate(unsigned(4))) {
        ToClient::Allocated(_) => Some(()),
        _ => {
            std::thread::sleep(Duration::from_millis(10));
            None
        }
    });
    let told = silent.channel.receive::<ToClient>(PATIENCE);
    assert!(matches!(told, Ok(Incoming::Message(_))), "{told:?}");
    silent.ended();
}
