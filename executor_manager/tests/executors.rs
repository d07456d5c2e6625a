//! Executors, as a node without a resource manager starts and ends them: those that cannot be run, that
//! die or do not stop, their secrets and CPUs, and what they leave behind.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas_protocol::Empty;
use rfaas_protocol::allocation::{FromClient, RefusedBecause, ToClient};
use rfaas_protocol::channel::Incoming;
use rfaas_protocol::lease::Token;

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
        let told = client.exited();
        assert_eq!((told.signal.get(), told.silent.get()), (Signal::SIGKILL as i32, 0));
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
    fs::write(node.setup.path("executor"), "no program, and without the right to run").unwrap();
    fs::set_permissions(node.setup.path("executor"), Permissions::from_mode(0o644)).unwrap();
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
fn a_program_that_cannot_be_a_zygote_is_executed_for_each_lease() {
    // As one of another release.
    let mut setup = Setup::new(&format!("[ \"$1\" = zygote ] && exit 1\n{OBEDIENT}"));
    setup.launch = "zygote";
    let mut node = setup.start();
    node.wait_for_log("no zygote");
    let mut client = node.client();
    client.claim(unsigned(1));
    node.executors(1);
    client.release();
    node.stop();
}

#[test]
fn executors_get_secrets_that_nobody_guesses() {
    let node = Node::alone(OBEDIENT);
    let mut client = node.client();
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        client.claim(unsigned(1));
        seen.insert(node.instructions().standby.manager_secret.0.0);
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
        let names: BTreeSet<_> = fs::read_dir(node.setup.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let ours = ["devices.json", "executor", "executor_manager.json", "log", "pids"];
        assert_eq!(names, ours.map(String::from).into(), "{signal}");
    }
}

#[test]
fn an_executor_missing_from_path_is_a_refusal_that_names_path() {
    let setup = Setup::apart();
    setup.script(OBEDIENT);
    let node = setup.start();
    fs::remove_file(node.setup.path("executor")).unwrap();
    let mut client = node.client();
    let (because, reason) = client.refused(allocate(unsigned(4)));
    assert_eq!(because, RefusedBecause::SpawnFailed);
    let path = format!("not found in PATH={}", node.setup.directory.path().display());
    assert!(reason.contains(&path), "{reason}");
    node.setup.script(OBEDIENT);
    client.claim(unsigned(4));
}

#[test]
fn a_crash_is_told_with_its_signal_and_the_lease_may_start_another() {
    let node = Node::alone("kill -SEGV $$");
    let mut client = node.client();
    assert_eq!(client.claim(unsigned(4)), 1);
    let told = client.exited();
    assert_eq!((told.signal.get(), told.status.get()), (Signal::SIGSEGV as i32, 0));

    let (because, _) = node.client().refused(allocate(unsigned(1)));
    assert_eq!(because, RefusedBecause::NoCapacity, "the lease is still held");
    node.setup.script("exit 7");
    let token = Token::unsigned(terms(0, 4, 100, hour()));
    let mut again = allocate(token);
    again.signed.terms.expires_at_ms = 0.into();
    assert_eq!(client.refused(again).0, RefusedBecause::LeaseEnded, "an expired token");
    client.release();
}

#[test]
fn an_executor_may_be_started_again_with_the_same_token_as_often_as_it_exits() {
    let node = Node::alone("exit 7");
    let mut client = node.client();
    let token = unsigned(4);
    for _ in 0..3 {
        assert_eq!(client.claim(token), 1);
        assert_eq!(client.exited().status.get(), 7);
    }
    node.setup.script(OBEDIENT);
    assert_eq!(client.claim(token), 1);
    let (because, _) = client.refused(allocate(token));
    assert_eq!(because, RefusedBecause::BadRequest, "one is running");
    client.release();
}

#[test]
fn an_executor_that_ignores_sigterm_is_killed_and_the_release_answered() {
    let node = Node::alone(STUBBORN);
    let mut client = node.client();
    client.claim(unsigned(1));
    let pid = node.executors(1)[0];
    client.release();
    assert!(!runs(pid));
    node.stop();
}

#[test]
fn a_stubborn_executor_does_not_stall_other_clients() {
    let node = Node::alone(STUBBORN);
    let mut first = node.client();
    first.claim(unsigned(1));
    node.executors(1);
    first.send(&FromClient::Release(Empty {}));
    let mut second = node.client();
    let (because, _) = second.refused(allocate(unsigned(0)));
    assert_eq!(because, RefusedBecause::BadRequest);
    // The second was answered while the first one's executor was still being stopped.
    while let Some(told) = first.channel.try_receive::<ToClient>().unwrap() {
        assert!(matches!(told, Incoming::Message(ToClient::Heartbeat(_))), "{told:?}");
    }
    assert!(matches!(first.next(), ToClient::Released(_)));
}

#[test]
fn pinned_executors_get_cpus_of_their_own() {
    let mut setup = Setup::new(OBEDIENT);
    setup.pin_threads = true;
    let node = setup.start();
    let (mut first, mut second) = (node.client(), node.client());
    first.claim(unsigned(1));
    let one = node.assignment().pin_to.expect("pinned");
    second.claim(unsigned(1));
    let other = node.assignment().pin_to.expect("pinned");
    assert_eq!((one.len(), other.len()), (1, 1));
    if std::thread::available_parallelism().unwrap().get() > 1 {
        assert_ne!(one, other);
    }
}
