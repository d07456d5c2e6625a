//! The tutorial, command by command, with `jq`-made configurations. Its `<build-dir>/bin`, `/examples` and
//! `/benchmarks` are one directory here.
//!
//! It runs on the device `shm0`, or with its client and its managers on the RDMA devices of `RDMA_TEST_DEVICES`. Only
//! two things differ from what a reader types: the embedded device has an address of its own and HTTP a free port,
//! so that a cluster that already runs on this machine is not in the way.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use testkit::TestDevices;
use testkit::leftovers::Leftovers;
use testkit::run::{Finished, Running, binaries, program, run, source, start, system_tool};
use testkit::service::devices_at;
use testkit::wait::{eventually, one_at_a_time};

/// A shell in which the tutorial's commands are typed.
struct Shell {
    directory: tempfile::TempDir,
    devices: TestDevices,
    variables: Vec<(&'static str, String)>,
}

impl Shell {
    fn new() -> Self {
        for tool in ["jq", "curl", "sh"] {
            system_tool(tool);
        }
        for needed in ["resource_manager", "executor_manager", "executor", "warm_benchmarker"] {
            program(needed);
        }
        let [_, a, b, _] = std::process::id().to_be_bytes();
        let devices = devices_at(Ipv4Addr::new(127, 77, a, b).into());
        Shell {
            directory: tempfile::tempdir().unwrap(),
            variables: vec![
                ("build", binaries().directory().display().to_string()),
                ("src", source("").display().to_string()),
                ("client", devices.client.name.clone()),
                ("server", devices.server.name.clone()),
                ("address", devices.server.ip_address.to_string()),
            ],
            devices,
        }
    }

    fn command(&self, line: &str) -> Command {
        let mut sh = Command::new("sh");
        sh.arg("-ec").arg(line).current_dir(self.directory.path());
        sh.envs(self.variables.iter().map(|(name, value)| (name, value)));
        sh.env("TMPDIR", self.directory.path());
        sh
    }

    /// Types a command and waits for its end.
    fn types(&self, line: &str) -> Finished {
        run(self.command(line)).success()
    }

    /// Types a command that keeps running. `exec`: a signal is for the program, not the shell around it.
    fn leaves_running(&self, line: &str) -> Running {
        start(self.command(&format!("exec env {line}")))
    }

    /// Waits until a resource manager serves HTTP; `$http` is then the port that it has chosen.
    fn learns_http_port(&mut self, manager: &mut Running) {
        let mut port = None;
        eventually("the resource manager serves HTTP", || {
            assert!(!manager.has_said_all(), "it has ended: {}", manager.words());
            let words = manager.words();
            let whole = words.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            let mut addresses =
                whole.filter_map(|line| Some(line.split_once("HTTP interface at")?.1));
            port =
                addresses.find_map(|address| Some(address.rsplit_once(':')?.1.trim().to_owned()));
            port.is_some()
        });
        self.variables.push(("http", port.unwrap()));
    }

    /// Makes the device database, as the tutorial does; the generator finds the addresses of RDMA devices.
    fn makes_devices(&self) {
        let TestDevices { client, server } = &self.devices;
        let asked_for =
            if client.name == server.name { "-d $client" } else { "-d $client -d $server" };
        self.types(&format!("$build/device_generator {asked_for} > generated.json"));
        self.types(
            r#"jq --arg address "$address" '(.devices[] | select(.provider == "shm")).ip_address = $address' generated.json > devices.json
               cp devices.json server_devices.json; cp devices.json benchmark_devices.json"#,
        );
    }

    fn benchmark(&self, more: &str, size: usize) -> Finished {
        self.types(&format!(
            "$build/warm_benchmarker --config benchmark.json --device-database benchmark_devices.json \
             --name empty --functions $build/libfunctions.so {more} -s {size}"
        ))
    }
}

/// Ctrl-C, as the reader ends a manager.
fn ctrl_c(manager: Running) -> Finished {
    manager.signal(Signal::SIGINT);
    manager.finish().success()
}

/// What the tutorial says that is printed for a payload of one byte.
fn is_the_tutorials_output(finished: &Finished) {
    let out = &finished.stdout;
    assert!(out.contains("Executed 100 repetitions, avg "), "{out}");
    assert!(out.contains(" usec/iter, median "), "{out}");
    assert!(out.contains("Data: 1\n"), "{out}");
}

#[test]
fn each_block_of_the_tutorial_sets_the_variables_that_it_uses() {
    let text = std::fs::read_to_string(source("docs/tutorial.md")).unwrap();
    for block in text.split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap();
        for name in ["device", "address"] {
            let uses = block.contains(&format!("\"${name}"));
            let sets = block.contains(&format!("{name}=$("));
            let other = block.contains("$address_of_A"); // that the reader has of another host
            assert!(uses == sets || (name == "address" && other), "{name}: {block}");
        }
    }
}

#[test]
fn the_tutorial_works_without_a_resource_manager() {
    let _guard = one_at_a_time();
    let shell = Shell::new();
    shell.makes_devices();
    shell.types(r#"jq --arg device "$server" '.config.rdma_device = $device' $src/config/executor_manager.json > executor_manager.json"#);
    let before = Leftovers::list(Path::new("/nowhere"));
    let mut manager = shell.leaves_running(
        "PATH=$build:$PATH $build/executor_manager -c executor_manager.json \
         --device-database server_devices.json --skip-resource-manager",
    );
    manager.says("Listening on device");

    shell.types(r#"jq --arg address "$address" '.executors[0].address = $address' $src/config/executors_database.json > executors_database.json"#);
    shell.types(r#"jq --arg device "$client" '.config.rdma_device = $device' $src/config/benchmark.json > benchmark.json"#);
    let printed = shell.benchmark("--executors-database executors_database.json", 1);
    is_the_tutorials_output(&printed);

    let ended = ctrl_c(manager);
    let told = format!("Listening on device {}", shell.devices.server.name);
    assert!(ended.stderr.contains(&told), "{}", ended.stderr);
    Leftovers::nothing_new_since(&before, Path::new("/nowhere"));
}

#[test]
fn the_tutorial_works_with_all_three_components() {
    let _guard = one_at_a_time();
    let mut shell = Shell::new();
    shell.makes_devices();
    let before = Leftovers::list(Path::new("/nowhere"));
    shell.types(
        r#"jq --arg device "$server" '.config.rdma_device = $device' $src/config/resource_manager.json |
           jq '.config.http_network_port = 0' > resource_manager.json"#,
    );
    let mut resources = shell.leaves_running(
        "$build/resource_manager -c resource_manager.json --device-database server_devices.json",
    );
    shell.learns_http_port(&mut resources);
    shell.types(
        r#"curl -sSf http://127.0.0.1:$http/add\?node\=exec-mgr-node -X POST -d '{"ip_address": "'$address'", "port": 10005, "cores": 1, "memory": 512}'"#,
    );

    shell.types(r#"jq --arg device "$client" --arg addr "$address" '.config.rdma_device = $device | .config.resource_manager_address = $addr' $src/config/benchmark.json > benchmark.json"#);
    shell.types(r#"jq --arg device "$server" --arg addr "$address" '.config.rdma_device = $device | .config.resource_manager_address = $addr' $src/config/executor_manager.json > executor_manager.json"#);
    let manager = shell.leaves_running(
        "PATH=$build:$PATH $build/executor_manager -c executor_manager.json --device-database server_devices.json",
    );
    eventually("the node is ready", || {
        let node = shell.types("curl -sS http://127.0.0.1:$http/nodes/exec-mgr-node");
        node.json()["state"] == "ready"
    });

    is_the_tutorials_output(&shell.benchmark("", 1));
    shell.benchmark("", 4096);
    eventually("both leases are billed", || {
        let bills = shell.types("curl -sS http://127.0.0.1:$http/billing | jq length");
        bills.stdout.trim() == "2"
    });

    ctrl_c(manager);
    ctrl_c(resources);
    Leftovers::nothing_new_since(&before, Path::new("/nowhere"));
}

#[test]
fn the_resource_manager_starts_with_the_tutorials_database() {
    let _guard = one_at_a_time();
    let mut shell = Shell::new();
    shell.makes_devices();
    shell.types(
        r#"jq --arg device "$server" '.config.rdma_device = $device' $src/config/resource_manager.json |
           jq '.config.http_network_port = 0' > resource_manager.json"#,
    );
    shell.types(r#"jq --arg address "$address" '.executors[0].address = $address' $src/config/executors_database.json > executors_database.json"#);
    let mut manager = shell.leaves_running(
        "$build/resource_manager -c resource_manager.json --device-database server_devices.json \
         -i executors_database.json",
    );
    shell.learns_http_port(&mut manager);
    let nodes = shell.types("curl -sSf http://127.0.0.1:$http/nodes | jq -r '.[0].node'");
    assert_eq!(nodes.stdout.trim(), "exec-mgr-node");
    ctrl_c(manager);
}
