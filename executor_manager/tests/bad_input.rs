//! What is wrong with what the program was given is told in one line that names it, with exit status
//! 2, and nothing is left behind.

#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

mod common;

use std::fs;
use std::process::Command;

use common::{ResourceManager, Setup, device};

/// Runs `command`, which must fail with exit status 2 and one line; returns that line.
fn complaint(setup: &Setup, command: &mut Command) -> String {
    last_words(setup, command, 2)
}

/// Runs `command`, which must fail with this exit status and one line; returns that line.
fn last_words(setup: &Setup, command: &mut Command, expected: i32) -> String {
    let mut child = command.spawn().unwrap();
    let status = common::wait_for("its end", || child.try_wait().unwrap());
    let log = fs::read_to_string(setup.path("log")).unwrap();
    assert_eq!(status.code(), Some(expected), "{log}");
    let lines: Vec<_> = log.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "one line is asked for:\n{log}");
    assert_eq!(log.lines().last(), Some(lines[0]), "{log}");
    lines[0].to_owned()
}

fn complaint_about_config(change: impl Fn(String) -> String) -> String {
    let setup = Setup::new("exit 0");
    let mut command = setup.command();
    fs::write(setup.path("executor_manager.json"), change(setup.config())).unwrap();
    complaint(&setup, &mut command)
}

#[track_caller]
fn assert_names(line: &str, named: &[&str]) {
    for name in named {
        assert!(line.contains(name), "{name:?} is not in {line:?}");
    }
}

#[test]
fn a_missing_or_malformed_file_is_named() {
    let setup = Setup::new("exit 0");
    let mut command = setup.command();
    fs::remove_file(setup.path("executor_manager.json")).unwrap();
    assert_names(&complaint(&setup, &mut command), &["executor_manager.json"]);

    let line = complaint_about_config(|config| config.replace("\"node_name\":", "\"node_name\""));
    assert_names(&line, &["executor_manager.json", "line 1", "column"]);
    let line = complaint_about_config(|config| config.replace("node_name", "nodename"));
    assert_names(&line, &["executor_manager.json", "nodename"]);
    let line = complaint_about_config(|config| {
        config.replace("\"use_docker\": false", "\"use_docker\": true")
    });
    assert_names(&line, &["use_docker"]);

    for (preload, named) in [("lib.so", "absolute"), ("/nowhere/lib.so", "No such file")] {
        let line = complaint_about_config(|config| {
            let key = format!("\"preload\": [{preload:?}], \"use_docker\"");
            config.replace("\"use_docker\"", &key)
        });
        assert_names(&line, &["executor_manager.json: executor.preload: ", preload, named]);
    }
    let line = complaint_about_config(|config| {
        config.replace("\"use_docker\"", "\"view\": [\"/nowhere/data\"], \"use_docker\"")
    });
    let named = ["executor_manager.json: executor.view: /nowhere/data", "No such file"];
    assert_names(&line, &named);

    let setup = Setup::new("exit 0");
    let mut command = setup.command();
    fs::write(setup.path("devices.json"), "{").unwrap();
    assert_names(&complaint(&setup, &mut command), &["devices.json", "line 1"]);
}

#[test]
fn an_unknown_device_is_named_with_those_that_there_are() {
    let line = complaint_about_config(|config| config.replace("shm0", "mlx5_0"));
    assert_names(&line, &["mlx5_0", "shm0"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = device().listen(0).unwrap();
    let port = taken.local_addr().port();
    let line = complaint_about_config(|config| {
        config.replace("\"rdma_device_port\": 0", &format!("\"rdma_device_port\": {port}"))
    });
    assert_names(&line, &["in use", &format!("127.0.0.1:{port}")]);
}

#[test]
fn without_a_resource_manager_both_ways_out_are_named() {
    let mut setup = Setup::new("exit 0");
    setup.resource_manager = Some("127.0.0.1:1".parse().unwrap()); // no --skip-resource-manager
    let mut command = setup.command();
    setup.resource_manager = None;
    fs::write(setup.path("executor_manager.json"), setup.config()).unwrap();
    let line = complaint(&setup, &mut command);
    assert_names(&line, &["resource_manager_address", "--skip-resource-manager"]);
}

#[test]
fn a_resource_manager_that_is_not_there_is_named_and_is_no_bad_input() {
    let address = ResourceManager::new().address(); // and gone
    let mut setup = Setup::new("exit 0");
    setup.resource_manager = Some(address);
    let line = last_words(&setup, &mut setup.command(), 1);
    assert_names(&line, &["resource manager", &address.to_string()]);
}

#[test]
fn a_resource_manager_whose_name_has_no_address_is_named() {
    let mut setup = Setup::new("exit 0");
    setup.resource_manager = Some("127.0.0.1:1".parse().unwrap());
    let config = setup.config().replace("127.0.0.1", "no-such-host.invalid");
    let mut command = setup.command();
    fs::write(setup.path("executor_manager.json"), config).unwrap();
    assert_names(&complaint(&setup, &mut command), &["no-such-host.invalid"]);
}

#[test]
fn an_engine_of_containers_that_does_not_answer_is_named_and_is_no_bad_input() {
    let setup = Setup::new("exit 0");
    let mut command = setup.command();
    let container = r#""container": {"engine": "podman", "image": "i", "command": ["/bin/false"]}"#;
    let config = setup.config().replace("\"use_docker\": false", container);
    fs::write(setup.path("executor_manager.json"), config).unwrap();
    let line = last_words(&setup, &mut command, 1);
    assert_names(&line, &["executor.container: `/bin/false ps`: ended with status 1"]);
}

#[test]
fn a_missing_executor_is_told_at_the_start() {
    let setup = Setup::apart();
    let line = complaint(&setup, &mut setup.command());
    let path = setup.directory.path().display().to_string();
    assert_names(&line, &["`executor`", "PATH=", &path, "beside executor_manager"]);
}

#[test]
fn a_limit_of_descriptors_that_is_too_small_is_named() {
    let setup = Setup::new("exit 0");
    let line = complaint(&setup, &mut setup.command_after("ulimit -n 32"));
    assert_names(&line, &["at most 32 descriptors", "ulimit -n"]);
}

#[test]
fn a_variable_that_executors_must_not_get_is_named() {
    for name in ["RFAAS_SECRET", "", "A=B"] {
        let line = complaint_about_config(|config| {
            config.replace("\"DIR\"", &format!("\"DIR\", {name:?}"))
        });
        assert_names(&line, &["executor.environment", name]);
    }
}

#[test]
fn an_unknown_flag_is_named() {
    let setup = Setup::new("exit 0");
    let line = complaint(&setup, setup.command().arg("--no-such-flag"));
    assert_names(&line, &["--no-such-flag"]);
}

#[test]
fn help_and_version_are_results() {
    for (flag, expected) in
        [("--help", "--skip-resource-manager"), ("--version", "executor_manager ")]
    {
        let output =
            Command::new(env!("CARGO_BIN_EXE_executor_manager")).arg(flag).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains(expected));
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn a_secret_file_that_is_missing_is_named() {
    let mut setup = Setup::new("exit 0");
    setup.resource_manager = Some("127.0.0.1:1".parse().unwrap());
    let mut command = setup.command();
    let with_file = "\"secret_file\": \"no-such-secret\", \"rdma-sleep\"";
    let missing = setup.config().replace("\"rdma-sleep\"", with_file);
    fs::write(setup.path("executor_manager.json"), missing).unwrap();
    assert_names(&complaint(&setup, &mut command), &["no-such-secret"]);
}
