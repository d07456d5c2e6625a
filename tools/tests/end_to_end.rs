//! The main job with real processes: payloads of every size, several workers, several clients, bills.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use rfaas::{Client, Error, LeaseRequest};
use serde_json::Value;
use testkit::functions::adder;
use testkit::run::{library, run, start, transport_benchmarker};
use testkit::service::{call, cluster, deploy, warm};
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options};

/// Keys of every `round_trip_ns` and of every phase.
const STATISTICS: [&str; 7] = ["min", "mean", "p50", "p90", "p99", "p999", "max"];

fn is_a_distribution(told: &Value) {
    let values = STATISTICS
        .map(|key| told[key].as_f64().unwrap_or_else(|| panic!("{key} is a number in {told}")));
    assert!(values[0] > 0.0 && values[0] <= values[1] && values[1] <= values[6], "{told}");
    let percentiles = [values[0], values[2], values[3], values[4], values[5], values[6]];
    assert!(percentiles.is_sorted(), "{told}");
}

/// Runs a benchmark on `cluster`; returns its JSON.
fn benchmark(cluster: &LocalCluster, name: &str, flags: &[&str]) -> Value {
    let mut command = cluster.benchmark_command(name).unwrap();
    command.arg("--json").args(flags);
    command.arg("--functions").arg(library("functions"));
    run(command).success().json()
}

/// Has payloads of the sizes in `runs` come back, as often as is said there, from hot and from warm workers.
fn payloads_come_back(cluster: &LocalCluster, runs: &[(&str, &str)]) {
    let device = cluster.client_device().unwrap();
    for (size, repetitions) in runs {
        for hot_timeout in ["-1", "0"] {
            let flags = ["-s", size, "--repetitions", repetitions, "--hot-timeout", hot_timeout];
            let told = benchmark(cluster, "warm_benchmarker", &flags);
            assert_eq!(told["benchmark"], "warm_benchmarker");
            assert_eq!(told["provider"], device.provider.to_string());
            assert_eq!(told["device"], device.name);
            assert_eq!(told["function"], "empty");
            assert_eq!(told["hot_timeout_ms"].to_string(), hot_timeout);
            assert_eq!(told["payload_bytes"].to_string(), *size);
            assert_eq!(told["repetitions"].to_string(), *repetitions);
            is_a_distribution(&told["round_trip_ns"]);
        }
    }
}

#[test]
fn payloads_of_every_size_come_back_as_they_were_sent() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options::default());
    payloads_come_back(
        &cluster,
        &[("1", "200"), ("64", "200"), ("4096", "200"), ("1048576", "20"), ("16777216", "5")],
    );
    cluster.stop().unwrap();
}

#[test]
fn payloads_that_are_sent_inline_come_back_as_they_were_sent() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { max_inline_data: 256, ..Options::default() });
    // A call is sent with a header of 32 bytes, its result without one: at 224 and 256 each is at the limit.
    payloads_come_back(
        &cluster,
        &[("1", "200"), ("64", "200"), ("224", "50"), ("256", "50"), ("4096", "50")],
    );
    cluster.stop().unwrap();
}

#[test]
fn payloads_come_back_as_they_were_sent_without_a_resource_manager() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { resource_manager: false, ..Options::default() });
    for size in ["1", "1048576"] {
        let flags = ["-s", size, "--repetitions", "20", "--hot-timeout", "0"];
        benchmark(&cluster, "warm_benchmarker", &flags);
    }
    benchmark(&cluster, "cold_benchmarker", &["--repetitions", "2"]);
    benchmark(&cluster, "parallel_invocations", &["--repetitions", "2", "--cores", "2"]);
    cluster.stop().unwrap();
}

#[test]
fn the_transport_benchmark_prints_the_same_keys() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    for hot_timeout in ["-1", "0", "1"] {
        let mut transport = transport_benchmarker(directory.path());
        transport.args(["--json", "-s", "64"]);
        transport.args(["--repetitions", "300", "--hot-timeout", hot_timeout]);
        let told = run(transport).success().json();
        assert_eq!(told["benchmark"], "transport_benchmarker");
        assert_eq!(told["payload_bytes"], 64);
        assert_eq!(told["hot_timeout_ms"].to_string(), hot_timeout);
        is_a_distribution(&told["round_trip_ns"]);
    }
}

#[test]
fn one_two_and_eight_workers_answer_in_parallel() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { cores: 8, memory: 4096, ..Options::default() });
    for workers in ["1", "2", "8"] {
        let flags = ["-s", "64", "--cores", workers, "--repetitions", "50", "--hot-timeout", "0"];
        let told = benchmark(&cluster, "parallel_invocations", &flags);
        assert_eq!(told["workers"].to_string(), workers);
        assert!(told["invocations_per_second"].as_f64().unwrap() > 0.0);
        is_a_distribution(&told["round_trip_ns"]);
    }
    cluster.stop().unwrap();
}

#[test]
fn a_cold_start_is_reported_by_phases() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options::default());
    let file = cluster.directory().join("cold.csv");
    let flags = ["--repetitions", "3", "--pause", "1", "--cores", "2", "--library-mb", "2"];
    let flags = [&flags[..], &["--output-stats"]].concat();
    let flags = [&flags[..], &[file.to_str().unwrap()]].concat();
    let told = benchmark(&cluster, "cold_benchmarker", &flags);
    for phase in ["lease", "connect", "submit", "spawn_connect", "initialize", "execute", "total"] {
        is_a_distribution(&told["phases_us"][phase]);
    }
    assert_eq!((&told["library_bytes"], &told["library_sent"]), (&(2 << 20).into(), &1.into()));
    let is_verbs = std::env::var_os(testkit::test_devices::VARIABLE).is_some();
    // On RDMA devices the floors need headers, which a machine may be without.
    let floors = match told["floors_us"].as_object() {
        Some(floors) => floors.keys().map(String::as_str).collect(),
        None if is_verbs => Vec::new(),
        None => panic!("the gate has a C compiler"),
    };
    for floor in &floors {
        is_a_distribution(&told["floors_us"][*floor]);
    }
    let least = if is_verbs { "exec_connect" } else { "exec_dlopen" };
    assert!(floors.is_empty() || floors == [least, "fork"], "{floors:?}");
    let csv = std::fs::read_to_string(&file).unwrap();
    assert!(csv.starts_with("id,connect,submit,spawn_connect,initialize,execute,"), "{csv}");
    assert_eq!(csv.lines().count(), 4, "{csv}");
    cluster.stop().unwrap();
}

#[test]
fn samples_are_written_as_csv() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options::default());
    let file = cluster.directory().join("warm.csv");
    let flags = ["--repetitions", "10", "--output-stats", file.to_str().unwrap()];
    benchmark(&cluster, "warm_benchmarker", &flags);
    let csv = std::fs::read_to_string(&file).unwrap();
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("id,time"));
    for (id, line) in lines.enumerate() {
        let (first, time) = line.split_once(',').unwrap();
        assert_eq!(first, id.to_string());
        assert!(time.parse::<u64>().unwrap() > 0);
    }
    assert_eq!(csv.lines().count(), 11);
    cluster.stop().unwrap();
}

#[test]
fn two_clients_with_different_libraries_work_at_the_same_time() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options::default());
    let directory = tempfile::tempdir().unwrap();
    let libraries = [adder(directory.path(), "add1", 1), adder(directory.path(), "add2", 2)];
    let (first, second) = (cluster.client().unwrap(), cluster.client().unwrap());
    let mut one = deploy(&first, 1, &libraries[0], &warm());
    let mut two = deploy(&second, 1, &libraries[1], &warm());
    for round in 0..50u8 {
        assert_eq!(call(&mut one, "add1", &[round; 64]).unwrap(), [round + 1; 64]);
        assert_eq!(call(&mut two, "add2", &[round; 64]).unwrap(), [round + 2; 64]);
    }
    // Neither sees the other's functions.
    assert!(matches!(one.function("add2"), Err(Error::UnknownFunction { .. })));
    assert!(matches!(two.function("add1"), Err(Error::UnknownFunction { .. })));
    one.release().unwrap();
    two.release().unwrap();
    cluster.stop().unwrap();
}

/// `first` and `second` hold all cores; a third client is refused, until one of them gives its core back.
fn a_third_client_is_refused_until_a_release(
    third: &Client,
    refused: fn(&Error) -> bool,
    cluster: &LocalCluster,
) {
    let (first, second) = (cluster.client().unwrap(), cluster.client().unwrap());
    let one = deploy(&first, 1, &library("functions"), &warm());
    let two = deploy(&second, 1, &library("functions"), &warm());
    let ask = || {
        let lease = third.lease(LeaseRequest::new(1, 64))?;
        lease.deploy_with(library("functions"), &warm())
    };
    let error = ask().unwrap_err();
    assert!(refused(&error), "{error:?}");
    assert!(error.to_string().contains("core"), "the reason is told: {error}");
    one.release().unwrap();
    let mut three = ask().unwrap();
    assert_eq!(call(&mut three, "empty", &[7; 64]).unwrap(), [7; 64]);
    three.release().unwrap();
    two.release().unwrap();
}

#[test]
fn a_client_that_asks_for_more_than_is_free_is_refused_and_succeeds_after_a_release() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options::default());
    let third = cluster.client().unwrap();
    let refused = |error: &Error| matches!(error, Error::LeaseRefused { .. });
    a_third_client_is_refused_until_a_release(&third, refused, &cluster);
    cluster.stop().unwrap();
}

#[test]
fn the_executor_manager_refuses_what_is_not_free_by_itself() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { resource_manager: false, ..Options::default() });
    let third = cluster.client().unwrap();
    let refused = |error: &Error| {
        matches!(error, Error::LeaseRefused { .. } | Error::AllocationRefused { .. })
    };
    a_third_client_is_refused_until_a_release(&third, refused, &cluster);
    cluster.stop().unwrap();
}

#[test]
fn a_benchmark_that_is_refused_a_lease_says_so_in_one_line() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options::default());
    let mut command = cluster.benchmark_command("parallel_invocations").unwrap();
    command.args(["--cores", "3"]).arg("--functions").arg(library("functions"));
    let finished = run(command);
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
    assert!(finished.stderr.starts_with("error: the lease was refused"), "{finished:?}");
    cluster.stop().unwrap();
}

#[test]
fn what_was_used_is_on_the_bill() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 2, &library("functions"), &warm());
    for _ in 0..10 {
        call(&mut executor, "empty", &[1; 64]).unwrap();
    }
    let id = executor.lease_id().get();
    executor.release().unwrap();
    let http = cluster.http().unwrap();
    eventually("the lease is billed", || !http.get("/billing").unwrap().body[0].is_null());
    let bills = http.get("/billing").unwrap().body;
    let [bill] = &bills.as_array().unwrap()[..] else { panic!("one bill: {bills}") };
    assert_eq!(bill["lease"], id);
    assert_eq!(bill["cores"], 2);
    assert_eq!(bill["invocations"], 10);
    assert_eq!(bill["reason"], "released");
    assert!(bill["execution_ns"].as_u64().unwrap() > 0, "{bill}");
    assert_eq!(http.get("/leases").unwrap().body, serde_json::json!([]));
    let node = http.get("/nodes").unwrap().body[0].clone();
    assert_eq!(node["free_cores"], node["cores"], "{node}");
    assert_eq!(node["free_memory"], node["memory"], "{node}");
    cluster.stop().unwrap();
}

#[test]
fn several_clusters_run_side_by_side() {
    let _guard = one_at_a_time();
    let (one, two) = (cluster(Options::default()), cluster(Options::default()));
    let flags = ["--repetitions", "10", "--hot-timeout", "0"];
    let mut command = one.benchmark_command("warm_benchmarker").unwrap();
    command.arg("--json").args(flags).arg("--functions").arg(library("functions"));
    let first = start(command);
    benchmark(&two, "warm_benchmarker", &flags);
    first.finish().success();
    one.stop().unwrap();
    two.stop().unwrap();
}

#[test]
fn pinned_workers_and_polling_managers_work_too() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { pin_threads: true, rdma_sleep: false, ..Options::default() });
    let flags = ["-s", "64", "--cores", "2", "--repetitions", "20", "--hot-timeout", "0"];
    benchmark(&cluster, "parallel_invocations", &flags);
    cluster.stop().unwrap();
}
