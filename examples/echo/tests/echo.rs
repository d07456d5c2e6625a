//! The example, run as a newcomer runs it.

use std::process::Command;

use tools::{LocalCluster, Options};

#[test]
fn it_prints_what_it_sent() {
    let cluster = LocalCluster::start(Options::default()).unwrap();
    let manager = cluster.resource_manager_address().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_echo_client"))
        .arg("--device-database")
        .arg(cluster.devices())
        .args(["--manager", &manager])
        .arg("--functions")
        .arg(cluster.library("functions").unwrap())
        .arg("to the executor and back")
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.starts_with("to the executor and back\nbilled "), "{printed}");
    assert!(output.stderr.is_empty() && output.status.success());
    cluster.stop().unwrap();
}

#[test]
fn without_a_cluster_it_says_so_in_one_line() {
    let devices = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/devices.json");
    let output = Command::new(env!("CARGO_BIN_EXE_echo_client"))
        .args(["--device-database", devices, "--manager", "127.0.0.1:9", "hello"])
        .output()
        .unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(complaint.starts_with("error: ") && complaint.contains("127.0.0.1:9"), "{complaint}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn it_has_less_than_forty_lines() {
    assert!(include_str!("../src/main.rs").lines().count() < 40);
}
