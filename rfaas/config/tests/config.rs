//! Settings: what is shipped works and is explained; what is wrong is told in one line.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rdmalib::Provider;
use rfaas_config::{
    BenchmarkConfig, ClusterSecret, ConfigError, Devices, Engine, ExecutorManagerConfig,
    ExecutorsDatabase, Isolation, ResourceManagerConfig, SecretValue, resolve,
};
use rfaas_protocol::isolation::{Layer, Layers, NetworkPolicy, UserRange};
use serde_json::{Value, json};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config").join(name)
}

/// Loads `text` as a file named `test.json`; the message of the error without the directory.
fn message<T>(text: &str, load: impl Fn(&Path) -> Result<T, ConfigError>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.json");
    fs::write(&path, text).unwrap();
    match load(&path) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "more than one line: {text}");
            text.replace(&format!("{}/", dir.path().display()), "")
        }
    }
}

fn devices(text: &str) -> Devices {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("devices.json");
    fs::write(&path, text).unwrap();
    Devices::load(path).unwrap()
}

const TWO_DEVICES: &str = r#"{"devices": [
    {"name": "mlx5_0", "ip_address": "192.168.0.21"},
    {"name": "shm0", "ip_address": "::1", "port": 7, "provider": "shm"}]}"#;

#[test]
fn a_trusted_user_is_a_name_or_a_number_of_this_machine_and_for_shm_only() {
    let entry = |more: &str| {
        let text =
            format!(r#"{{"devices": [{{"name": "a", "ip_address": "127.0.0.1", {more}}}]}}"#);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Devices::load(file.path())
    };
    for (user, id) in [("7", 7), (r#""7""#, 7), (r#""root""#, 0)] {
        let devices = entry(&format!(r#""provider": "shm", "trusted_user": {user}"#)).unwrap();
        assert_eq!(devices.open("a").unwrap().trusted_user, Some(id), "{user}");
    }
    let none = entry(r#""provider": "shm""#).unwrap();
    assert_eq!(none.open("a").unwrap().trusted_user, None);
    let unknown = entry(r#""provider": "shm", "trusted_user": "no such user""#).unwrap();
    let error = unknown.open("a").unwrap_err().to_string();
    assert!(error.contains("no user") && error.contains("trusted_user"), "{error}");
    let error = entry(r#""provider": "verbs", "trusted_user": 7"#).unwrap_err().to_string();
    assert!(error.contains("devices[0].trusted_user"), "{error}");
}

#[test]
fn the_shipped_files_are_a_cluster_on_this_machine() {
    let devices = Devices::load(shipped("devices.json")).unwrap();
    let shm = devices.get("shm0").unwrap();
    assert_eq!((shm.provider, shm.port, shm.max_inline_data), (Provider::Shm, 0, 0));
    assert_eq!(shm.default_receive_buffer_size, 32);

    let manager = ResourceManagerConfig::load(shipped("resource_manager.json")).unwrap().config;
    assert_eq!(manager.rdma_device, "shm0");
    assert_eq!(manager.http_addresses().unwrap(), ["127.0.0.1:5000".parse().unwrap()]);
    assert!(manager.rdma_sleep);
    let rdma: SocketAddr = ([127, 0, 0, 1], manager.rdma_device_port).into();

    let node = ExecutorManagerConfig::load(shipped("executor_manager.json")).unwrap().config;
    assert_eq!(node.rdma_device, "shm0");
    assert_eq!(node.node_name, "exec-mgr-node");
    assert_eq!(node.resource_manager_secret, manager.rdma_secret);
    assert_eq!(node.resource_manager().unwrap(), Some(vec![rdma]));

    let database = ExecutorsDatabase::load(shipped("executors_database.json")).unwrap();
    assert_eq!(database.executors[0].node, node.node_name);
    let address: SocketAddr = ([127, 0, 0, 1], node.rdma_device_port).into();
    assert_eq!(database.executors[0].socket_addrs().unwrap(), [address]);

    let benchmark = BenchmarkConfig::load(shipped("benchmark.json")).unwrap();
    assert_eq!(benchmark.config.rdma_device, "shm0");
    assert_eq!(benchmark.config.resource_manager().unwrap(), Some(vec![rdma]));
    assert!(benchmark.benchmark.numcores <= database.executors[0].cores);
    assert!(benchmark.benchmark.memory <= database.executors[0].memory);
}

#[test]
fn the_listings_of_the_tutorial_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, value: Value| {
        let path = dir.path().join(name);
        fs::write(&path, value.to_string()).unwrap();
        path
    };
    let devices = Devices::load(file(
        "devices.json",
        json!({"devices": [{"name": "rocep61s0", "ip_address": "192.168.0.21", "port": 10008,
            "max_inline_data": 0, "default_receive_buffer_size": 32}]}),
    ))
    .unwrap();
    assert_eq!(devices.get("rocep61s0").unwrap().provider, Provider::Verbs);

    let node = ExecutorManagerConfig::load(file(
        "executor_manager.json",
        json!({"config": {"rdma_device": "rocep61s0", "rdma_device_port": 10005,
            "node_name": "exec-mgr-node", "resource_manager_address": "",
            "resource_manager_port": 0, "resource_manager_secret": 42, "rdma-sleep": true},
            "executor": {"use_docker": false, "repetitions": 100, "warmup_iters": 0,
            "pin_threads": false}}),
    ))
    .unwrap();
    assert_eq!(node.config.resource_manager().unwrap(), None);

    // Afterwards the tutorial sets the address with jq, and leaves the port as it is.
    let benchmark = BenchmarkConfig::load(file(
        "benchmark.json",
        json!({"config": {"rdma_device": "", "rdma_device_port": 10006,
            "resource_manager_address": "10.0.0.1", "resource_manager_port": 0},
            "benchmark": {"pin_threads": false, "repetitions": 100, "warmup_repetitions": 0,
            "numcores": 1, "memory": 256, "hot_timeout": -1}}),
    ))
    .unwrap();
    let manager = benchmark.config.resource_manager().unwrap();
    assert_eq!(manager, Some(vec!["10.0.0.1:10000".parse().unwrap()]));

    ResourceManagerConfig::load(file(
        "resource_manager.json",
        json!({"config": {"rdma_device": "", "rdma_device_port": 10000,
            "http_network_address": "0.0.0.0", "http_network_port": 5000, "rdma-threads": 1,
            "rdma-secret": 42, "rdma-sleep": true}}),
    ))
    .unwrap();
}

/// Paths of all keys in `value`: `config.rdma_device`, `devices[].name`.
fn keys(value: &Value, path: &str, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                keys(value, &path, out);
                out.insert(path);
            }
        }
        Value::Array(items) => {
            items.iter().for_each(|item| keys(item, &format!("{path}[]"), out));
        }
        _ => {}
    }
}

/// First cell of every row in the README's section of `file`.
fn documented(file: &str) -> BTreeSet<String> {
    let readme = fs::read_to_string(shipped("README.md")).unwrap();
    let start = readme.find(&format!("\n## {file}\n")).expect("each file has a section");
    let section = readme[start + 1..].split("\n## ").next().unwrap();
    let cell = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    section.lines().filter_map(cell).collect()
}

fn assert_documented(file: &str, value: Value, optional: &[&str]) {
    let mut known = BTreeSet::new();
    keys(&value, "", &mut known);
    known.extend(optional.iter().map(|key| key.to_string()));
    assert_eq!(documented(file), known, "config/README.md and the keys of {file} differ");
}

#[test]
fn every_key_is_in_the_readme_and_no_other() {
    fn loaded<T: serde::Serialize>(value: Result<T, ConfigError>) -> Value {
        serde_json::to_value(value.unwrap()).unwrap()
    }
    let file = "devices.json";
    let optional = ["devices[].trusted_user"];
    assert_documented(file, loaded(Devices::load(shipped(file))), &optional);
    let file = "resource_manager.json";
    assert_documented(file, loaded(ResourceManagerConfig::load(shipped(file))), &[]);
    let file = "executor_manager.json";
    let optional = [
        "config.cores",
        "config.memory",
        "executor.prewarm",
        "executor.container",
        "executor.container.engine",
        "executor.container.image",
        "executor.container.command",
        "executor.container.options",
        "executor.container.start_ms",
        "executor.network",
    ];
    assert_documented(file, loaded(ExecutorManagerConfig::load(shipped(file))), &optional);
    let file = "executors_database.json";
    assert_documented(
        file,
        loaded(ExecutorsDatabase::load(shipped(file))),
        &["executors[].labels"],
    );
    let file = "benchmark.json";
    assert_documented(file, loaded(BenchmarkConfig::load(shipped(file))), &[]);
}

#[test]
fn every_shipped_file_is_one_of_these() {
    let mut names: Vec<_> = fs::read_dir(shipped(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "README.md",
        "benchmark.json",
        "devices.json",
        "executor_manager.json",
        "executors_database.json",
        "resource_manager.json",
    ];
    assert_eq!(names, expected);
}

#[test]
fn what_is_written_is_read_back() {
    let loaded = ExecutorManagerConfig::load(shipped("executor_manager.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("again.json");
    fs::write(&path, serde_json::to_string_pretty(&loaded).unwrap()).unwrap();
    assert_eq!(ExecutorManagerConfig::load(&path).unwrap(), loaded);
}

#[test]
fn keys_that_are_left_out_have_their_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.json");
    fs::write(&path, r#"{"config": {"node_name": "n"}}"#).unwrap();
    let node = ExecutorManagerConfig::load(&path).unwrap();
    assert_eq!(node.config.rdma_device_port, 10005);
    assert_eq!(node.config.resource_manager_secret, 42.into());
    assert_eq!((node.config.cores, node.config.memory), (None, None));
    assert!(node.config.rdma_sleep && !node.executor.pin_threads);

    fs::write(&path, "{}").unwrap();
    let benchmark = BenchmarkConfig::load(&path).unwrap();
    assert_eq!(benchmark.benchmark.hot_timeout, -1);
    fs::write(&path, r#"{"config": {}}"#).unwrap();
    let manager = ResourceManagerConfig::load(&path).unwrap().config;
    assert_eq!((manager.rdma_device_port, manager.http_network_port), (10000, 5000));
}

#[test]
fn executors_run_in_containers_if_an_image_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.json");
    let load = |executor: &str| {
        let text = format!(r#"{{"config": {{"node_name": "n"}}, "executor": {{{executor}}}}}"#);
        fs::write(&path, text).unwrap();
        ExecutorManagerConfig::load(&path).map(|config| config.executor)
    };
    let none = load("").unwrap();
    assert_eq!((none.contained(), none.prewarmed()), (None, 2));
    for (text, engine, words) in [
        (r#""container": {"engine": "podman", "image": "i"}"#, Engine::Podman, "podman"),
        (r#""use_docker": true, "container": {"image": "i"}"#, Engine::Docker, "docker"),
        (
            r#""use_docker": true, "container": {"engine": "docker", "image": "i"}"#,
            Engine::Docker,
            "docker",
        ),
        (
            r#""container": {"engine": "apptainer", "image": "/i.sif", "command": ["/a", "-q"],
                "options": ["--nv"], "start_ms": 1000}, "prewarm": 0"#,
            Engine::Apptainer,
            "/a -q",
        ),
    ] {
        let settings = load(text).unwrap();
        let (found, container) = settings.contained().unwrap();
        assert_eq!((found, container.words(found).join(" ")), (engine, words.to_owned()));
        assert_eq!(settings.prewarmed(), 0);
    }
    for (wrong, words) in [
        (r#""use_docker": true"#, "executor.use_docker: needs `executor.container`"),
        (
            r#""use_docker": true, "container": {"engine": "podman", "image": "i"}"#,
            "executor.use_docker: is for docker",
        ),
        (r#""container": {"image": "i"}"#, "executor.container.engine: must be \"podman\""),
        (r#""container": {"engine": "lxc", "image": "i"}"#, "unknown variant"),
        (r#""container": {"engine": "podman"}"#, "missing field"),
        (r#""container": {"engine": "podman", "image": ""}"#, "executor.container.image"),
        (r#""container": {"engine": "podman", "image": "--privileged"}"#, "container.image"),
        (r#""container": {"engine": "docker", "image": "/srv/root"}"#, "is a path"),
        (
            r#""container": {"engine": "podman", "image": "i", "command": ["bin/podman"]}"#,
            "executor.container.command",
        ),
        (
            r#""container": {"engine": "podman", "image": "i", "command": [""]}"#,
            "container.command",
        ),
        (r#""container": {"engine": "podman", "image": "i", "options": ["\u0000"]}"#, "NUL"),
        (r#""container": {"engine": "podman", "image": "i", "start_ms": 999}"#, "start_ms"),
        (
            r#""container": {"engine": "podman", "image": "i"}, "prewarm": 2"#,
            "executor.prewarm: must be 0 with `executor.container`",
        ),
        (
            r#""container": {"engine": "podman", "image": "i"}, "preload": ["/lib/x.so"]"#,
            "executor.preload: must be empty with `executor.container`",
        ),
    ] {
        let error = load(wrong).unwrap_err().to_string();
        assert!(error.contains(words), "{wrong}: {error}");
    }
}

#[test]
fn isolation_is_none_what_there_is_or_what_is_required() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.json");
    let load = |executor: &str| {
        let text = format!(r#"{{"config": {{"node_name": "n"}}, "executor": {{{executor}}}}}"#);
        fs::write(&path, text).unwrap();
        ExecutorManagerConfig::load(&path).map(|config| config.executor)
    };
    let isolation = |value: &str| load(&format!(r#""isolation": {value}"#)).map(|e| e.isolation);
    assert_eq!(load("").unwrap().isolation, Isolation::Sandbox);
    assert_eq!(isolation(r#""none""#).unwrap().wanted(), Layers::NONE);
    assert_eq!(isolation(r#""sandbox""#).unwrap().wanted(), Layers::all());
    let required = isolation(r#"{"require": ["seccomp", "view"]}"#).unwrap();
    assert_eq!(required.required(), [Layer::Seccomp, Layer::View]);
    assert_eq!(required.wanted(), Layers::all());
    assert_eq!(load(r#""network": "host""#).unwrap().network, Some(NetworkPolicy::Host));
    let UserRange { first, count } = UserRange::default();
    let users = |value: &str| load(&format!(r#""users": {value}"#)).unwrap().users;
    assert_eq!(users(r#"{"first": 7}"#), UserRange { first: 7, count });
    assert_eq!(users(r#"{"count": 7}"#), UserRange { first, count: 7 });
    for (wrong, words) in [
        (r#""isolation": "some""#, "isolation"),
        (r#""isolation": {"require": ["chroot"]}"#, "pid_namespace"),
        (r#""view": ["opt"]"#, "executor.view"),
        (r#""view": ["/"]"#, "executor.view"),
        (r#""users": {"first": 0, "count": 1}"#, "executor.users"),
        (r#""users": {"first": 1, "count": 0}"#, "executor.users"),
        (r#""users": {"first": 4294967295, "count": 1}"#, "executor.users"),
        (r#""network": "tcp""#, "network"),
        (r#""container": {"imag": "i"}"#, r#"executor.container.imag: unknown field "imag""#),
    ] {
        let error = load(wrong).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{wrong}: {error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Devices::load("no/such/devices.json").unwrap_err();
    let here = std::env::current_dir().unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "no/such/devices.json: cannot be read: No such file or directory (os error 2), \
             in the directory {}",
            here.display()
        )
    );
}

#[test]
fn malformed_json_has_line_and_column() {
    // The tutorial's own listing lacks this comma.
    let text = "{\"executors\": [{\n  \"node\": \"n\",\n  \"address\": \"a\"\n  \"port\": 1}]}";
    assert_eq!(
        message(text, |path| ExecutorsDatabase::load(path)),
        "test.json: line 4, column 3: expected \",\" or \"}\""
    );
    assert_eq!(
        message("", |path| ExecutorsDatabase::load(path)),
        "test.json: line 1, column 1: the file is empty, which a failed command leaves with `>`"
    );
    assert_eq!(
        message("{\"executors\": []} x", |path| ExecutorsDatabase::load(path)),
        "test.json: line 1, column 19: trailing characters"
    );
}

#[test]
fn an_unknown_key_is_named_with_the_known_ones() {
    assert_eq!(
        message("{\"config\": {\n  \"rdma_devise\": \"shm0\"}}", |p| BenchmarkConfig::load(p)),
        "test.json: line 2, column 15: config.rdma_devise: unknown field \"rdma_devise\", expected one of \
         \"rdma_device\", \"rdma_device_port\", \"resource_manager_address\", \
         \"resource_manager_port\""
    );
    let nested = message(r#"{"config": {"node_name": "n"}, "executor": {"pin": 1}}"#, |path| {
        ExecutorManagerConfig::load(path)
    });
    assert!(nested.contains("unknown field \"pin\""), "{nested}");
}

#[test]
fn a_key_of_the_wrong_type_or_missing_is_named() {
    assert_eq!(
        message(r#"{"config": {"rdma_device_port": 70000}}"#, |p| ResourceManagerConfig::load(p)),
        "test.json: line 1, column 37: config.rdma_device_port: invalid value: \
         integer \"70000\", expected u16"
    );
    let text = message(r#"{"config": {"rdma-secret": -1}}"#, |p| ResourceManagerConfig::load(p));
    assert!(text.contains("config.rdma-secret: invalid value"), "{text}");
    let text = message(r#"{"config": {"rdma-sleep": "yes"}}"#, |p| ResourceManagerConfig::load(p));
    assert!(text.contains("config.rdma-sleep: invalid type"), "{text}");
    let text = message(r#"{"config": {}}"#, |path| ExecutorManagerConfig::load(path));
    assert!(text.contains("config: missing field \"node_name\""), "{text}");
    let text = message("{}", |path| Devices::load(path));
    assert!(text.contains("missing field \"devices\""), "{text}");
    let text = message(r#"{"devices": [{"name": "a", "ip_address": "300.1.1.1"}]}"#, |path| {
        Devices::load(path)
    });
    assert!(text.contains("devices[0].ip_address: invalid IP address"), "{text}");
    let text = message(
        r#"{"devices": [{"name": "a", "ip_address": "1.1.1.1", "provider": "quic"}]}"#,
        |path| Devices::load(path),
    );
    assert!(
        text.contains("unknown variant \"quic\", expected one of \"verbs\", \"tcp\", \"shm\""),
        "{text}"
    );
}

#[test]
fn an_error_is_one_line_whatever_the_file_has() {
    let text = message("{\"a\\nb\\u001b[31m\": 1}", |path| Devices::load(path));
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

#[test]
fn values_that_cannot_be_used_are_refused() {
    let manager = |text: &str| message(text, |path| ExecutorManagerConfig::load(path));
    assert_eq!(
        manager(r#"{"config": {"node_name": ""}}"#),
        "test.json: config.node_name: must not be empty"
    );
    let long = manager(&format!(r#"{{"config": {{"node_name": "{}"}}}}"#, "n".repeat(129)));
    assert!(long.contains("config.node_name: has 129 bytes, at most 128"), "{long}");
    let zero = manager(r#"{"config": {"node_name": "n", "cores": 0}}"#);
    assert!(zero.contains("config.cores: must be at least 1"), "{zero}");
    let zero = manager(r#"{"config": {"node_name": "n", "memory": 0}}"#);
    assert!(zero.contains("config.memory: must be at least 1"), "{zero}");

    for (key, value) in [("hot_timeout", -2), ("numcores", 0), ("memory", 0), ("repetitions", 0)] {
        let text = json!({"benchmark": {key: value}}).to_string();
        let text = message(&text, |path| BenchmarkConfig::load(path));
        assert!(text.contains(&format!("benchmark.{key}: must be")), "{text}");
    }

    let http = message(r#"{"config": {"http_network_address": ""}}"#, |path| {
        ResourceManagerConfig::load(path)
    });
    assert!(http.contains("config.http_network_address: must not be empty"), "{http}");
    for (value, key) in [
        (json!({"claim_timeout_ms": 0}), "config.claim_timeout_ms"),
        (json!({"limits": {"cores": 0}}), "config.limits.cores"),
        (json!({"limits": {"requests_per_second": 0}}), "config.limits.requests_per_second"),
        (json!({"http_changes_from": ["10.0.0.0/33"]}), "config.http_changes_from[0]"),
    ] {
        let text = json!({ "config": value }).to_string();
        let text = message(&text, |path| ResourceManagerConfig::load(path));
        assert!(text.contains(&format!("{key}: ")), "{text}");
    }
}

#[test]
fn nodes_that_cannot_be_used_are_refused() {
    let good = json!({"node": "a", "address": "1.1.1.1", "port": 1, "cores": 1, "memory": 1});
    let wrong = [
        ("node", json!("")),
        ("address", json!("")),
        ("port", json!(0)),
        ("cores", json!(0)),
        ("memory", json!(0)),
        ("cores", json!(-1)),
        ("memory", json!(4294967296u64)),
        ("port", json!("10005")),
    ];
    for (key, value) in wrong {
        let mut entry = good.clone();
        entry["node"] = "b".into();
        entry[key] = value;
        let text = json!({"executors": [good, entry]}).to_string();
        let text = message(&text, |path| ExecutorsDatabase::load(path));
        assert!(text.contains(&format!("executors[1].{key}: ")), "{text}");
    }
    let twice = json!({"executors": [good, good]}).to_string();
    let twice = message(&twice, |path| ExecutorsDatabase::load(path));
    assert_eq!(twice, "test.json: executors[1].node: node \"a\" is listed twice");
}

#[test]
fn devices_that_cannot_be_used_are_refused() {
    let load = |text: &str| message(text, |path| Devices::load(path));
    let twice = load(
        r#"{"devices": [{"name": "a", "ip_address": "1.1.1.1"}, {"name": "a", "ip_address": "1.1.1.2"}]}"#,
    );
    assert_eq!(twice, "test.json: devices[1].name: device \"a\" is listed twice");
    let empty = load(r#"{"devices": [{"name": "", "ip_address": "1.1.1.1"}]}"#);
    assert_eq!(empty, "test.json: devices[0].name: must not be empty");
    for receives in [0, 16385] {
        let text = load(&format!(
            r#"{{"devices": [{{"name": "a", "ip_address": "1.1.1.1", "default_receive_buffer_size": {receives}}}]}}"#,
        ));
        assert!(text.contains("default_receive_buffer_size: must be from 1 to 16384"), "{text}");
    }
}

#[test]
fn a_file_without_an_end_is_refused() {
    let error = Devices::load("/dev/zero").unwrap_err();
    assert_eq!(error.to_string(), "/dev/zero: cannot be read: is larger than 4 MiB");
}

#[test]
fn a_pipe_is_read_to_its_end_and_waited_for_no_longer_than_that_may_take() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let text = r#"{"devices": [{"name": "a", "ip_address": "1.1.1.1"}]}"#;
    let devices = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
            for part in text.as_bytes().chunks(20) {
                std::thread::sleep(Duration::from_millis(10));
                file.write_all(part).unwrap();
            }
        });
        Devices::load(&pipe).unwrap()
    });
    assert_eq!(devices.devices.len(), 1);

    // And nobody writes to it.
    let secret = ClusterSecret::load(&SecretValue::default(), pipe.to_str().unwrap());
    let error = secret.unwrap_err().to_string();
    assert!(error.ends_with("pipe: cannot be read: its end has not come within 5 s"), "{error}");
}

#[test]
fn an_unknown_device_is_answered_with_the_known_ones() {
    let error = devices(TWO_DEVICES).open("mlx5_1").unwrap_err().to_string();
    assert!(
        error.ends_with("devices.json: no device \"mlx5_1\"; there is mlx5_0, shm0"),
        "{error}"
    );
    let error = devices(r#"{"devices": []}"#).open("shm0").unwrap_err().to_string();
    assert!(error.ends_with("no device \"shm0\"; there is none"), "{error}");
}

#[test]
fn the_empty_name_is_the_only_device_or_an_error() {
    let error = devices(TWO_DEVICES).get("").unwrap_err().to_string();
    assert!(error.starts_with("no device chosen: set \"rdma_device\""), "{error}");
    assert!(error.ends_with("mlx5_0, shm0"), "{error}");
    let one = devices(r#"{"devices": [{"name": "a", "ip_address": "1.1.1.1"}]}"#);
    assert_eq!(one.get("").unwrap().name, "a");
    let none = devices(r#"{"devices": []}"#).get("").unwrap_err().to_string();
    assert!(none.ends_with("lists: none"), "{none}");
}

#[test]
fn an_entry_has_its_own_port_and_address() {
    let devices = devices(TWO_DEVICES);
    let entry = devices.get("shm0").unwrap();
    assert_eq!((entry.port, entry.ip_address), (7, "::1".parse().unwrap()));
    assert_eq!(devices.get("mlx5_0").unwrap().default_receive_buffer_size, 32);
}

#[test]
fn addresses_are_ip_addresses_or_names() {
    assert_eq!(resolve("10.0.0.1", 5).unwrap(), ["10.0.0.1:5".parse().unwrap()]);
    assert_eq!(resolve("::1", 5).unwrap(), ["[::1]:5".parse().unwrap()]);
    assert!(resolve("localhost", 5).unwrap().iter().all(|at| at.ip().is_loopback()));
    let error = resolve("", 5).unwrap_err().to_string();
    assert!(error.contains("is empty"), "{error}");
    let error = resolve("no such host", 5).unwrap_err().to_string();
    assert!(error.starts_with("address \"no such host\": "), "{error}");
}
