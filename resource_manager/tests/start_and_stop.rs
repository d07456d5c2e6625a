//! How the program starts, and how it does not: one line that names what is wrong, exit status 2,
//! nothing left behind.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod support;

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;
use serde_json::json;
use support::*;

#[test]
fn a_signal_stops_it_cleanly_and_the_nodes_are_kept() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let files = Files::new(&[]);
        let manager = Manager::start(&files, &["-o", "out.json"]);
        manager.add("a", 2, 64);
        let _node = Node::ready(manager.rdma, "a");
        let _client = Client::new(manager.rdma);
        let (rdma, http) = (manager.rdma, manager.http);
        assert_eq!(manager.end(signal), Some(0));
        let stored = std::fs::read_to_string(files.path("out.json")).unwrap();
        assert!(stored.contains(r#""node": "a""#), "{stored}");
        // Both addresses are free again.
        TcpListener::bind(http).unwrap();
        device().listen(rdma.port()).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(files.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["devices.json", "out.json", "resource_manager.json"]);
    }
}

#[test]
fn signals_that_were_blocked_stop_it_and_a_second_sigint_does_so_at_once() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let files = Files::new(&[]);
        let mut env = std::process::Command::new("env"); // of GNU coreutils 8.31
        let manager = files.command(&[]);
        env.arg("--block-signal").arg(manager.get_program()).args(manager.get_args());
        env.current_dir(files.directory.path()).env_remove("RUST_LOG");
        assert_eq!(Manager::spawn(env).end(signal), Some(0), "{signal}");
    }
}

#[test]
fn a_hangup_that_nohup_ignores_stays_ignored() {
    let files = Files::new(&[]);
    let manager = Manager::start_limited(&files, "trap '' HUP", &[]);
    nix::sys::signal::kill(manager.pid(), Signal::SIGHUP).unwrap();
    assert_eq!(manager.call("GET", "/healthz", "").0, 200);
    assert_eq!(manager.end(Signal::SIGTERM), Some(0));
}

#[test]
fn children_that_it_did_not_start_are_reaped() {
    let files = Files::new(&[]);
    let manager = Manager::start_limited(&files, "sleep 0.3 & echo $! > stranger", &[]);
    let pid = std::fs::read_to_string(files.path("stranger")).unwrap();
    let zombie = format!("/proc/{}", pid.trim());
    wait_for("the end of a zombie", || (!std::fs::exists(&zombie).unwrap()).then_some(()));
    assert_eq!(manager.end(Signal::SIGTERM), Some(0));
}

/// Runs it, expects it to refuse with one line that contains all of `named`.
fn refused(files: &Files, arguments: &[&str], named: &[&str]) {
    let output = files.output(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {:?} {text}", output.status.signal());
    assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text:?}");
    assert!(output.stdout.is_empty());
    for name in named {
        assert!(text.contains(name), "{name} is not in {text:?}");
    }
}

#[test]
fn a_wrong_command_line_is_refused_in_one_line() {
    let files = Files::new(&[]);
    refused(&files, &["--frobnicate"], &["--frobnicate", "--help"]);
    refused(&files, &["--rdma-threads", "many"], &["--rdma-threads", "many"]);
    refused(&files, &["-i"], &["--input-database"]);
    refused(&files, &["surplus"], &["surplus"]);
}

#[test]
fn help_and_version_are_shown() {
    let files = Files::new(&[]);
    for (flag, text) in [("--help", "--input-database"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let output = files.output(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout).unwrap().contains(text));
    }
}

#[test]
fn wrong_files_are_refused_by_name() {
    let files = Files::new(&[]);
    refused(&files, &["-i", "none.json"], &["none.json"]);
    files.write("bad.json", "{\n  \"executors\": [,]\n}");
    refused(&files, &["-i", "bad.json"], &["bad.json", "line 2"]);
    files.write("key.json", r#"{"executors":[],"servers":[]}"#);
    refused(&files, &["-i", "key.json"], &["key.json", "servers"]);
    refused(&files, &["-o", "none/out.json"], &["none/out.json"]);

    let files = Files::new(&[("rdma-speed", json!(1))]);
    refused(&files, &[], &["resource_manager.json", "rdma-speed"]);
    let files = Files::new(&[("http_network_port", json!(65_536))]);
    refused(&files, &[], &["resource_manager.json", "http_network_port"]);
    let files = Files::new(&[("rdma_device", json!("mlx5_0"))]);
    refused(&files, &[], &["mlx5_0", "shm0"]);
    let files = Files::new(&[]);
    std::fs::remove_file(files.path("devices.json")).unwrap();
    refused(&files, &[], &["devices.json"]);
    std::fs::remove_file(files.path("resource_manager.json")).unwrap();
    refused(&files, &[], &["resource_manager.json"]);
}

#[test]
fn a_state_file_that_cannot_be_used_is_refused_by_name() {
    let files = Files::new(&[("state_file", json!("none/state"))]);
    refused(&files, &[], &["none/state", "No such file"]);
    files.write("text", "not a state");
    refused(&files, &["--state-file", "text"], &["text", "cannot be opened as a state file"]);
    refused(&files, &["--state-file", "."], &[".: is not a file"]);
    let _first = Manager::start(&files, &["--state-file", "state"]);
    refused(&files, &["--state-file", "state"], &["state: another resource manager has it open"]);
}

#[test]
fn without_a_state_file_the_operator_is_told_and_nothing_is_left() {
    let files = Files::new(&[]);
    let manager = Manager::start(&files, &[]);
    assert!(manager.greeting.contains("state_file"), "{}", manager.greeting);
    assert_eq!(manager.end(Signal::SIGTERM), Some(0));
    let files = Files::new(&[("state_file", json!("state"))]);
    let manager = Manager::start(&files, &[]);
    assert!(!manager.greeting.contains("state_file"), "{}", manager.greeting);
    assert_eq!(manager.end(Signal::SIGTERM), Some(0));
}

#[test]
fn a_limit_of_descriptors_that_is_too_small_is_named() {
    let files = Files::new(&[]);
    let manager = files.command(&[]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -n 20; exec \"$0\" \"$@\""]);
    shell.arg(manager.get_program()).args(manager.get_args()).current_dir(files.directory.path());
    let output = shell.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("at most 20 descriptors") && text.lines().count() == 1, "{text}");
}

#[test]
fn an_address_in_use_is_refused_by_name() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let files = Files::new(&[("http_network_port", json!(port))]);
    refused(&files, &[], &[&format!("127.0.0.1:{port}"), "in use"]);

    let taken = device().listen(0).unwrap();
    let port = taken.local_addr().port();
    let files = Files::new(&[("rdma_device_port", json!(port))]);
    refused(&files, &[], &[&format!("127.0.0.1:{port}"), "in use"]);

    let files = Files::new(&[("http_network_address", json!("192.0.2.1"))]);
    refused(&files, &[], &["192.0.2.1"]);
}

#[test]
fn a_lease_that_nobody_claims_ends_as_configured_and_costs_nothing() {
    let files = Files::new(&[("claim_timeout_ms", json!(200))]);
    let manager = Manager::start(&files, &[]);
    manager.add("a", 1, 64);
    let _node = Node::ready(manager.rdma, "a");
    let month = r#"{"cores":1,"memory":1,"timeout_ms":2592000000}"#;
    let (status, grant) = manager.call("POST", "/leases", month);
    assert_eq!(status, 201, "{grant}");
    let bill = manager.wait_bill(grant["id"].as_u64().unwrap());
    assert_eq!((&bill["reason"], &bill["allocated_ms"]), (&json!("unclaimed"), &json!(0)));
    assert_eq!(bill["provisional"], false);
    assert_eq!(manager.get("/nodes/a")["free_cores"], 1);
}

#[test]
fn who_serves_http_to_other_machines_is_told_what_they_can_do() {
    let files = Files::new(&[("http_network_address", json!("0.0.0.0"))]);
    let manager = Manager::start(&files, &[]);
    assert!(manager.greeting.contains("without authentication"), "{}", manager.greeting);
    manager.add("a", 1, 64); // this machine may
}

#[test]
fn an_empty_state_file_is_told() {
    let files = Files::new(&[("state_file", json!("state"))]);
    let first = Manager::start(&files, &[]);
    assert!(!first.greeting.contains("is empty"), "{}", first.greeting);
    assert_eq!(first.end(Signal::SIGTERM), Some(0));
    files.write("state", "");
    let second = Manager::start(&files, &[]);
    assert!(second.greeting.contains("the state file is empty"), "{}", second.greeting);
}
