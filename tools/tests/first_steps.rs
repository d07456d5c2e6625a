//! What somebody does first with a fresh tree: each works on any machine, from any directory, beside others.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::Options;
use testkit::run::{command, library, program, run, source, start};
use testkit::service::cluster;
use testkit::wait::{eventually, one_at_a_time};

/// A directory whose name no shell takes for one word.
struct Blank {
    _above: tempfile::TempDir,
    path: PathBuf,
}

impl Blank {
    fn new() -> Self {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("it's a directory");
        fs::create_dir(&path).unwrap();
        Blank { _above: above, path }
    }
}

#[test]
fn two_quickstarts_run_beside_each_other() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let quickstarts = [1, 2].map(|number| {
        let mut quickstart = command("quickstart", ["--output"]);
        quickstart.arg(directory.path().join(format!("{number}.jpg")));
        start(quickstart)
    });
    for quickstart in quickstarts {
        let told = quickstart.finish().success().stdout;
        for words in ["10000 calls of empty", "thumbnail", "3 leases granted", "next: "] {
            assert!(told.contains(words), "{words:?} is not in: {told}");
        }
    }
}

#[test]
fn the_command_that_cluster_prints_can_be_pasted() {
    let _alone = one_at_a_time();
    let directory = Blank::new();
    let printed = directory.path.join("printed");
    let mut started = command("cluster", [""; 0]);
    started.env("TMPDIR", &directory.path).stdin(std::process::Stdio::null());
    started.stdout(fs::File::create(&printed).unwrap());
    let mut started = started.spawn().unwrap();
    let line = || {
        let printed = fs::read_to_string(&printed).unwrap();
        printed.lines().find_map(|line| line.strip_prefix("try: ")).map(str::to_owned)
    };
    eventually("the cluster tells what to try", || line().is_some());

    let text = fs::read_to_string(&printed).unwrap();
    let caller = text.lines().find(|line| line.starts_with("a caller of yours")).unwrap();
    for words in ["/devices.json\"), open(\"shm0\")", "Client::connect(…, \"127."] {
        assert!(caller.contains(words), "{words} is not in: {caller}");
    }
    let pasted = format!("{} --repetitions 3 --hot-timeout 0", line().unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", &pasted]).current_dir("/");
    let finished = run(shell);
    let pid = nix::unistd::Pid::from_raw(started.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
    let status = started.wait().unwrap();
    assert!(finished.stdout.contains("Data: "), "{pasted}: {finished:?}");
    assert!(status.success(), "{status}");
}

#[test]
fn a_talkative_cluster_shows_what_its_managers_log_and_ends_with_its_terminal() {
    let _alone = one_at_a_time();
    let directory = Blank::new();
    let shown = directory.path.join("shown");
    let mut started = command("cluster", ["-v"]);
    started.env("TMPDIR", &directory.path).stdin(std::process::Stdio::null());
    started.stdout(std::process::Stdio::null()).stderr(fs::File::create(&shown).unwrap());
    let mut started = started.spawn().unwrap();
    let shows = |text: &str| fs::read_to_string(&shown).unwrap().contains(text);
    eventually("the managers' logs are shown", || {
        shows("executor_manager: ") && shows("resource_manager: ")
    });
    let pid = nix::unistd::Pid::from_raw(started.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    assert!(started.wait().unwrap().success());
    let left = fs::read_dir(&directory.path).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["shown"]);
}

#[test]
fn an_example_that_misses_a_default_file_says_where_it_looked_and_which_option_names_another() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().canonicalize().unwrap();
    let mut echo = command("echo_client", ["hello"]);
    echo.current_dir(&here);
    run(echo).is_bad_input(&["--device-database", "config/devices.json", here.to_str().unwrap()]);

    let mut echo =
        command("echo_client", ["hello", "--manager", "127.66.1.2:9", "--device-database"]);
    echo.arg(source("config").canonicalize().unwrap().join("devices.json")).current_dir(&here);
    run(echo).is_bad_input(&["--manager", "127.66.1.2:9"]);

    let cluster = cluster(Options::default());
    let mut echo = command("echo_client", ["hello", "--manager"]);
    echo.arg(cluster.resource_manager_address().unwrap().to_string());
    echo.arg("--device-database").arg(cluster.devices()).current_dir(&here);
    run(echo).is_bad_input(&["--functions", "target/release/libfunctions.so"]);
    cluster.stop().unwrap();
}

/// An executable script at `path`.
fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn device_generators_work_in_directories_with_blanks() {
    let _alone = one_at_a_time();
    let directory = Blank::new();
    let [tree, target, path] = ["tree", "target", "path"].map(|name| directory.path.join(name));
    fs::create_dir_all(tree.join("tools")).unwrap();
    fs::create_dir_all(target.join("release")).unwrap();
    fs::create_dir_all(&path).unwrap();
    for name in ["device_generator.sh", "remote_device_generator.sh"] {
        fs::copy(source("tools").join(name), tree.join("tools").join(name)).unwrap();
    }
    symlink(program("device_generator"), target.join("release/device_generator")).unwrap();
    // As ssh does it: the words behind the node, joined, are for the node's shell.
    script(
        &path.join("ssh"),
        "#!/bin/sh\nwhile [ \"$1\" != node ]; do shift; done\nshift\nexec sh -c \"$*\"\n",
    );
    let run_script = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(tree.join("tools").join(name));
        command.args(arguments).current_dir(&directory.path).env("CARGO_TARGET_DIR", &target);
        let ours = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{ours}", path.display()));
        run(command)
    };
    let told = run_script("device_generator.sh", &["-d", "shm0"]).success().json();
    assert_eq!(told["devices"][0]["name"], "shm0");

    run_script("remote_device_generator.sh", &["-o", "the nodes", "-t", "-d shm0", "node"])
        .success();
    let written = fs::read_to_string(directory.path.join("the nodes/node.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), told);
}

#[test]
fn device_generators_refuse_bad_input_in_one_line() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let mut generator = command("device_generator", ["--output"]);
    generator.arg(directory.path());
    run(generator).is_bad_input(&[directory.path().to_str().unwrap()]);
    run(command("device_generator", ["--port", "65536"])).is_bad_input(&["65536"]);
    run(command("device_generator", ["--device", ""])).is_bad_input(&["device"]);
    for (arguments, words) in [
        (&["-e", "telnet", "node"][..], "telnet"),
        (&["-e", "srun"], "no node given"),
        (&["a b"], "\"a b\""),
        (&["-x"], "-x"),
        (&["-o"], "-o"),
    ] {
        let path = directory.path().join("path");
        fs::create_dir_all(&path).unwrap();
        for name in ["ssh", "srun"] {
            script(&path.join(name), "#!/bin/sh\nexit 1\n");
        }
        let mut command = Command::new(source("tools").join("remote_device_generator.sh"));
        let ours = std::env::var("PATH").unwrap();
        command.args(arguments).env("PATH", format!("{}:{ours}", path.display()));
        run(command).is_bad_input(&[words]);
    }
}

#[test]
#[ignore = "needs to make namespaces: root, or user namespaces that this user may have"]
fn a_name_with_several_addresses_is_reached_at_any_of_them() {
    let _alone = one_at_a_time();
    let cluster = cluster(Options::default());
    let manager = cluster.resource_manager_address().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    let addresses = ["::1", "127.0.1.1", &manager.ip().to_string()];
    let lines = addresses.map(|address| format!("{address} manager.test\n"));
    fs::write(&hosts, lines.concat()).unwrap();

    let mut namespace = Command::new("unshare");
    let script = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
    namespace.args(["--mount", "--map-root-user", "sh", "-ec", script, "sh"]).arg(&hosts);
    namespace.arg(program("echo_client")).args(["hello", "--manager"]);
    namespace.arg(format!("manager.test:{}", manager.port()));
    namespace.arg("--device-database").arg(cluster.devices());
    namespace.arg("--functions").arg(library("functions"));
    assert!(run(namespace).success().stdout.starts_with("hello\n"));
    cluster.stop().unwrap();
}
