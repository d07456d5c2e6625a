//! Bad input: each is one clear line and exit status 2, or the right 4xx, and nothing is left behind. A peer that is
//! not there is no bad input: exit status 1.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

use serde_json::json;
use testkit::functions::{adder, c_library};
use testkit::leftovers::Leftovers;
use testkit::run::{Finished, command, library, program, run, source};
use testkit::service::cluster;
use testkit::wait::one_at_a_time;
use testkit::{LocalCluster, Options};

/// The programs that read a configuration and a device database, and how they are told.
const PROGRAMS: [(&str, &str); 6] = [
    ("resource_manager", "resource_manager.json"),
    ("executor_manager", "executor_manager.json"),
    ("transport_benchmarker", "benchmark.json"),
    ("warm_benchmarker", "benchmark.json"),
    ("cold_benchmarker", "benchmark.json"),
    ("parallel_invocations", "benchmark.json"),
];

fn shipped(file: &str) -> PathBuf {
    source("config").join(file)
}

/// Runs `name` with these two files.
fn with_files(name: &str, config: &Path, devices: &Path) -> Finished {
    let mut command = command(name, ["--config"]);
    command.arg(config).arg("--device-database").arg(devices);
    if !name.ends_with("manager") && name != "transport_benchmarker" {
        command.arg("--functions").arg(library("functions"));
    }
    run(command)
}

/// The shipped file with `from` replaced by `to`, in `directory`.
fn changed(directory: &Path, file: &str, from: &str, to: &str) -> PathBuf {
    let text = fs::read_to_string(shipped(file)).unwrap();
    assert!(text.contains(from), "{file} has {from}");
    let path = directory.join(file);
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
    path
}

/// A directory for the test's own files, and a check that nothing else is left when it ends.
struct Scene {
    directory: tempfile::TempDir,
    before: Leftovers,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn new() -> Self {
        let alone = one_at_a_time();
        let directory = tempfile::tempdir().unwrap();
        Scene { directory, before: Leftovers::list(Path::new("/nowhere")), _alone: alone }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn leaves_nothing(self) {
        Leftovers::nothing_new_since(&self.before, Path::new("/nowhere"));
    }
}

#[test]
fn a_missing_file_is_named() {
    let scene = Scene::new();
    let missing = scene.path().join("missing.json");
    for (name, config) in PROGRAMS {
        with_files(name, &missing, &shipped("devices.json")).is_bad_input(&["missing.json"]);
        with_files(name, &shipped(config), &missing).is_bad_input(&["missing.json"]);
    }
    let mut manager = command("resource_manager", ["--config"]);
    manager.arg(shipped("resource_manager.json")).arg("--device-database");
    manager.arg(shipped("devices.json")).arg("--input-database").arg(&missing);
    run(manager).is_bad_input(&["missing.json"]);
    scene.leaves_nothing();
}

#[test]
fn malformed_json_is_reported_with_line_and_column() {
    let scene = Scene::new();
    let malformed = scene.path().join("malformed.json");
    fs::write(&malformed, "{\n  \"config\": {,\n}\n").unwrap();
    for (name, config) in PROGRAMS {
        with_files(name, &malformed, &shipped("devices.json")).is_bad_input(&[
            "malformed.json",
            "line 2",
            "column 14",
        ]);
        with_files(name, &shipped(config), &malformed).is_bad_input(&["malformed.json", "line 2"]);
    }
    scene.leaves_nothing();
}

#[test]
fn an_unknown_key_is_named() {
    let scene = Scene::new();
    for (name, config) in PROGRAMS {
        let file =
            changed(scene.path(), config, "\"rdma_device\"", "\"rmda_device\": 1, \"rdma_device\"");
        with_files(name, &file, &shipped("devices.json")).is_bad_input(&[config, "rmda_device"]);
        let devices = changed(scene.path(), "devices.json", "\"name\"", "\"color\": 1, \"name\"");
        with_files(name, &shipped(config), &devices).is_bad_input(&["devices.json", "color"]);
    }
    scene.leaves_nothing();
}

#[test]
fn an_unknown_device_is_named_with_those_there_are() {
    let scene = Scene::new();
    for (name, config) in PROGRAMS {
        let file = changed(scene.path(), config, "\"shm0\"", "\"mlx5_9\"");
        with_files(name, &file, &shipped("devices.json")).is_bad_input(&["mlx5_9", "shm0"]);
    }
    scene.leaves_nothing();
}

#[test]
fn a_device_that_this_machine_cannot_open_is_named() {
    let scene = Scene::new();
    let devices = changed(scene.path(), "devices.json", "\"shm\"", "\"verbs\"");
    for (name, config) in PROGRAMS {
        with_files(name, &shipped(config), &devices).is_bad_input(&["shm0", "verbs"]);
    }
    let devices = changed(scene.path(), "devices.json", "\"shm\"", "\"quic\"");
    with_files("warm_benchmarker", &shipped("benchmark.json"), &devices).is_bad_input(&["quic"]);
    scene.leaves_nothing();
}

#[test]
fn a_port_in_use_is_named() {
    let scene = Scene::new();
    let cluster = cluster(Options::default());
    let with = |name: &str, config: &Path| with_files(name, config, &cluster.devices());
    let rdma = cluster.resource_manager_address().unwrap();
    with("resource_manager", &cluster.directory().join("resource_manager.json"))
        .is_bad_input(&[&rdma.to_string(), "in use"]);
    with("executor_manager", &cluster.directory().join("executor_manager.json"))
        .is_bad_input(&[&cluster.executor_manager_address().to_string(), "in use"]);

    // The RDMA port is free, HTTP's is not.
    let http = cluster.http().unwrap().base().replace("http://", "");
    let text = fs::read_to_string(cluster.directory().join("resource_manager.json")).unwrap();
    let text = text.replace(&format!(": {}", rdma.port()), ": 0");
    let config = scene.path().join("resource_manager.json");
    fs::write(&config, text).unwrap();
    with("resource_manager", &config).is_bad_input(&[&http, "in use"]);
    cluster.stop().unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_manager_that_is_not_there_is_named_and_is_no_bad_input() {
    let scene = Scene::new();
    // Nobody listens at this address of the embedded device.
    let devices = changed(scene.path(), "devices.json", "127.0.0.1", "127.66.1.2");
    for name in ["executor_manager", "warm_benchmarker", "cold_benchmarker", "parallel_invocations"]
    {
        let (_, config) = PROGRAMS.iter().find(|(program, _)| *program == name).unwrap();
        let file = changed(scene.path(), config, "127.0.0.1", "127.66.1.2");
        with_files(name, &file, &devices).is_unreachable(&["127.66.1.2:10000"]);
    }
    let executors = changed(scene.path(), "executors_database.json", "127.0.0.1", "127.66.1.2");
    let mut benchmark = command("warm_benchmarker", ["--config"]);
    benchmark.arg(shipped("benchmark.json")).arg("--device-database").arg(&devices);
    benchmark.arg("--executors-database").arg(&executors);
    benchmark.arg("--functions").arg(library("functions"));
    run(benchmark).is_unreachable(&["127.66.1.2:10005"]);
    scene.leaves_nothing();
}

#[test]
fn wrong_flags_are_named() {
    let scene = Scene::new();
    for (name, _) in PROGRAMS {
        run(command(name, ["--no-such-flag"])).is_bad_input(&["--no-such-flag"]);
    }
    for flags in [
        ["--size", "0"],
        ["--size", "4294967296"],
        ["--size", "many"],
        ["--hot-timeout", "-2"],
        ["--repetitions", "0"],
    ] {
        for name in ["transport_benchmarker", "warm_benchmarker"] {
            run(command(name, flags)).is_bad_input(&flags);
        }
    }
    let others = [
        "cluster",
        "quickstart",
        "device_generator",
        "cold_starts",
        "idle_cost",
        "pool_scale",
        "placement_scale",
        "manager_load",
        "graph_benchmarker",
    ];
    for name in others {
        run(command(name, ["--no-such-flag"])).is_bad_input(&["--no-such-flag"]);
    }
    for (name, typo, meant) in [
        ("resource_manager", "--confg", "'--config'"),
        ("executor_manager", "--confg", "'--config'"),
        ("executor", "--verbos", "'--verbose'"),
        ("warm_benchmarker", "--repetition", "'--repetitions'"),
    ] {
        run(command(name, [typo])).is_bad_input(&[
            typo,
            "a similar argument exists",
            meant,
            "--help",
        ]);
    }
    run(command("device_generator", ["-p", "seven"])).is_bad_input(&["seven"]);
    run(command("device_generator", ["-d", "mlx5_9"])).is_bad_input(&["mlx5_9"]);
    run(command("device_generator", ["-o", "/nowhere/devices.json"])).is_bad_input(&["/nowhere"]);
    scene.leaves_nothing();
}

/// `warm_benchmarker` on `cluster` with a library and more flags.
fn benchmark(cluster: &LocalCluster, library: &Path, flags: &[&str]) -> Finished {
    let mut command = cluster.benchmark_command("warm_benchmarker").unwrap();
    command.args(["--repetitions", "2", "--hot-timeout", "0"]).args(flags);
    run({
        command.arg("--functions").arg(library);
        command
    })
}

#[test]
fn an_unknown_function_is_named_with_those_there_are() {
    let scene = Scene::new();
    let cluster = cluster(Options::default());
    benchmark(&cluster, &library("functions"), &["--name", "emtpy"])
        .is_bad_input(&["emtpy", "empty"]);
    cluster.stop().unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_file_that_is_no_function_library_is_named_with_what_is_wrong() {
    let scene = Scene::new();
    let cluster = cluster(Options::default());
    let bad = |file: &Path, words: &[&str]| {
        let name = file.file_name().unwrap().to_str().unwrap();
        benchmark(&cluster, file, &[]).is_bad_input(&[&[name], words].concat());
    };
    bad(&scene.path().join("missing.so"), &["No such file"]);
    let text = scene.path().join("text.so");
    fs::write(&text, "int main() { return 0; }\n").unwrap();
    bad(&text, &["ELF"]);
    let nothing = scene.path().join("nothing.so");
    fs::write(&nothing, "").unwrap();
    bad(&nothing, &["ELF"]);
    let truncated = scene.path().join("truncated.so");
    fs::write(&truncated, &fs::read(library("functions")).unwrap()[..200]).unwrap();
    bad(&truncated, &[]);

    let source = scene.path().join("data.c");
    fs::write(&source, "int data = 1;\n").unwrap();
    let no_functions = c_library(scene.path(), "data", &source, &[]);
    bad(&no_functions, &["no functions"]);
    bad(&program("executor"), &["not a shared object"]);
    bad(scene.path(), &["a directory, not a file"]);
    let large = scene.path().join("large.so");
    fs::File::create(&large).unwrap().set_len(1 << 32).unwrap(); // none of it on the disk
    bad(&large, &["4294967296 bytes", "at most 4294967295"]);
    cluster.stop().unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_library_that_lacks_a_dependency_is_reported_with_its_name() {
    let scene = Scene::new();
    let cluster = cluster(Options::default());
    let dependency = adder(scene.path(), "below", 1);
    let source = scene.path().join("above.c");
    fs::write(
        &source,
        "#include <stdint.h>\n\
         uint32_t below(unsigned char *, uint32_t, unsigned char *);\n\
         uint32_t empty(unsigned char *in, uint32_t n, unsigned char *out) { return below(in, n, out); }\n",
    )
    .unwrap();
    let above = c_library(scene.path(), "above", &source, &[dependency.to_str().unwrap()]);
    fs::remove_file(&dependency).unwrap();
    benchmark(&cluster, &above, &[]).is_bad_input(&["libbelow.so"]);
    cluster.stop().unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_payload_larger_than_the_slot_is_reported_with_both_sizes() {
    let scene = Scene::new();
    let cluster = cluster(Options::default());
    benchmark(&cluster, &library("functions"), &["-s", "128", "--slot-bytes", "64"])
        .is_bad_input(&["128", "64"]);
    cluster.stop().unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_node_with_missing_mistyped_or_negative_fields_is_refused_and_changes_nothing() {
    let scene = Scene::new();
    let cluster = cluster(Options::default());
    let http = cluster.http().unwrap();
    let nodes = http.get("/nodes").unwrap();
    let good = json!({"ip_address": "127.0.0.1", "port": 10005, "cores": 1, "memory": 512});
    let refused = |path: &str, body: &str| {
        let answer = http.post_text(path, body).unwrap();
        assert!((400..500).contains(&answer.status), "{path} {body}: {answer:?}");
        assert!(answer.body["error"].as_str().is_some_and(|text| !text.is_empty()), "{answer:?}");
    };

    refused("/add", &good.to_string());
    refused("/add?node=", &good.to_string());
    refused("/add?node=n", "");
    refused("/add?node=n", "[]");
    refused("/add?node=n", "{\"ip_address\": ");
    for key in ["ip_address", "port", "cores", "memory"] {
        let mut missing = good.clone();
        missing.as_object_mut().unwrap().remove(key);
        refused("/add?node=n", &missing.to_string());
        for value in [json!(null), json!([]), json!(-5), json!(1.5), json!(true), json!("x y")] {
            let mut wrong = good.clone();
            wrong[key] = value;
            refused("/add?node=n", &wrong.to_string());
        }
    }
    for (key, value) in
        [("port", 70_000_i64), ("port", 0), ("cores", 0), ("memory", 0), ("cores", 1 << 40)]
    {
        let mut wrong = good.clone();
        wrong[key] = json!(value);
        refused("/add?node=n", &wrong.to_string());
    }
    refused(&format!("/add?node={}", "n".repeat(129)), &good.to_string());
    assert_eq!(http.get("/nodes").unwrap(), nodes);
    assert_eq!(http.get("/no/such/path").unwrap().status, 404);
    assert_eq!(http.post_text("/remove", "").unwrap().status, 400);

    assert!(http.post("/add?node=n", &good).unwrap().status < 300);
    assert!(http.post("/add?node=n", &good).unwrap().status < 300, "adding is idempotent");
    assert!(http.post_text("/remove?node=n", "").unwrap().status < 300);
    cluster.stop().unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_client_with_too_few_descriptors_says_so_wherever_it_runs_out() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options::default());
    let benchmark = cluster.benchmark_command("warm_benchmarker").unwrap();
    let succeeded = (10..=42).step_by(2).filter(|limit| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")]);
        shell.arg(benchmark.get_program()).args(benchmark.get_args());
        shell.args(["--repetitions", "3", "--functions"]).arg(library("functions"));
        let ended = run(shell);
        let told = ["descriptor", "open files"].iter().any(|words| ended.stderr.contains(words));
        assert!(told || ended.status.success(), "{limit}: {ended:?}");
        ended.status.success()
    });
    assert_ne!(succeeded.count(), 0, "some limit is enough");
}
