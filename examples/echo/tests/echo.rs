//! The example, run as a newcomer runs it.

#![allow(clippy::unwrap_used)] // also in what tests share: a failed test is what it is for

use std::process::Command;

use testkit::{LocalCluster, Options};

#[test]
fn it_prints_what_it_sent_or_why_that_cannot_be_printed() {
    let cluster = LocalCluster::start(Options::default()).unwrap();
    let output = echo(&cluster).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.starts_with("to the executor and back\nbilled "), "{printed}");
    assert!(output.stderr.is_empty() && output.status.success());

    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = echo(&cluster).stdout(full).output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(complaint, "error: No space left on device (os error 28)\n");
    assert_eq!(output.status.code(), Some(2));
    cluster.stop().unwrap();
}

/// Sends a text to the executor and back.
fn echo(cluster: &LocalCluster) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echo_client"));
    let manager = cluster.resource_manager_address().unwrap().to_string();
    command.arg("--device-database").arg(cluster.devices()).args(["--manager", &manager]);
    command.arg("--functions").arg(cluster.library("functions").unwrap());
    command.arg("to the executor and back");
    command
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
fn it_fits_on_a_screen() {
    assert!(include_str!("../src/main.rs").lines().count() < 50);
}
