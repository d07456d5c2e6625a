//! Executors, as a node without a resource manager starts and ends them: one that cannot be run, one
//! that dies, their secrets, and what they leave behind.

mod common;

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas_protocol::allocation::{RefusedBecause, ToClient};

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
fn an_executor_that_cannot_be_run_is_a_refusal() {
    let setup = Setup::apart();
    setup.script(OBEDIENT);
    let node = setup.start();
    std::fs::write(node.setup.path("executor"), "no program, and without the right to run")
        .unwrap();
    std::fs::set_permissions(node.setup.path("executor"), Permissions::from_mode(0o644)).unwrap();
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
