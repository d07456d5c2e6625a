//! Spinning, sleeping, and what is billed for it.

use std::time::Duration;

use rfaas::Spin;
use testkit::test_devices::patience;

use super::Scene;
use testkit::run::{kill_9, library, start};
use testkit::service::{call, warm};
use testkit::wait::eventually;

#[test]
fn a_positive_hot_timeout_spins_that_long_and_then_sleeps() {
    let scene = Scene::small();
    let hot = Duration::from_millis(300);
    let held = Duration::from_millis(1500);
    let mut executor = scene.deploy(1, &warm().spin(Spin::For(hot)));
    call(&mut executor, "echo", &[0; 8]).unwrap();
    std::thread::sleep(held);
    let bill = executor.release().unwrap();
    let (spun, allocated) = (bill.hot_polling_ns.get(), bill.allocated_ns.get());
    assert!(spun >= 250_000_000, "it spun for {spun} ns only");
    assert!(spun < allocated - 500_000_000, "it spun for {spun} of {allocated} ns");

    // The original kept 16 bits of it: 40,000 became negative.
    scene.is_free();
    let mut executor = scene.deploy(1, &warm().spin(Spin::For(Duration::from_secs(40))));
    call(&mut executor, "echo", &[0; 8]).unwrap();
    std::thread::sleep(held);
    let bill = executor.release().unwrap();
    let spun = bill.hot_polling_ns.get();
    assert!(spun >= 1_000_000_000, "it spun for {spun} ns only");
    scene.ends();
}

#[test]
fn the_bill_of_a_short_lease_is_whole() {
    let scene = Scene::small();
    let ms = 1_000_000;
    // Far below the second that the original's executors waited before they reported anything.
    let mut executor = scene.deploy(1, &warm().spin(Spin::Always));
    call(&mut executor, "sleep_ms", &50u32.to_ne_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let lease = executor.lease_id().get();
    let bill = executor.release().unwrap();
    assert_eq!(bill.invocations.get(), 1);
    assert!(bill.execution_ns.get() >= 50 * ms, "{bill:?}");
    assert!(bill.hot_polling_ns.get() >= 50 * ms, "{bill:?}");
    assert!(bill.allocated_ns.get() >= 150 * ms, "{bill:?}");
    let sum = bill.hot_polling_ns.get() + bill.execution_ns.get();
    assert!(sum <= bill.allocated_ns.get(), "one core cannot do more: {bill:?}");

    // The resource manager has the same numbers.
    let booked = booked(&scene, lease);
    assert_eq!(booked["execution_ns"], bill.execution_ns.get());
    assert_eq!(booked["hot_polling_ns"], bill.hot_polling_ns.get());
    assert_eq!(booked["invocations"], 1);
    assert_eq!(booked["allocated_ms"], bill.allocated_ns.get() / ms);
    scene.ends();
}

/// The bill of `lease`, once the resource manager has it.
fn booked(scene: &Scene, lease: u64) -> serde_json::Value {
    let http = scene.cluster.http().unwrap();
    let mut found = None;
    eventually("the lease is billed", || {
        let bills = http.get("/billing").unwrap().body;
        let bills = bills.as_array().unwrap();
        assert!(bills.iter().filter(|bill| bill["lease"] == lease).count() <= 1, "billed once");
        found = bills.iter().find(|bill| bill["lease"] == lease).cloned();
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn what_was_used_is_billed_however_the_client_ends() {
    let scene = Scene::small();
    // Dropped without a release.
    let mut executor = scene.deploy(1, &warm());
    call(&mut executor, "sleep_ms", &30u32.to_ne_bytes()).unwrap();
    let lease = executor.lease_id().get();
    drop(executor);
    let bill = booked(&scene, lease);
    assert!(bill["execution_ns"].as_u64().unwrap() >= 30_000_000, "{bill}");

    // Killed.
    let mut benchmark = scene.cluster.benchmark_command("warm_benchmarker").unwrap();
    benchmark.args(["--repetitions", "100000000", "--hot-timeout", "0"]);
    benchmark.arg("--functions").arg(library("functions"));
    let running = start(benchmark);
    let http = scene.cluster.http().unwrap();
    let mut lease = 0;
    eventually("it has a lease", || {
        let leases = http.get("/leases").unwrap().body;
        lease = leases[0]["id"].as_u64().unwrap_or(0);
        leases[0]["state"] == "active" && !scene.cluster.executors_running().is_empty()
    });
    std::thread::sleep(patience(Duration::from_secs(2))); // in which it calls
    kill_9(running.id());
    running.finish();
    let bill = booked(&scene, lease);
    assert_eq!(bill["reason"], "client_gone");
    assert!(bill["invocations"].as_u64().unwrap() > 0, "{bill}");
    assert!(bill["execution_ns"].as_u64().unwrap() > 0, "{bill}");
    scene.ends();
}

#[test]
fn a_lease_without_a_call_is_billed_too() {
    let scene = Scene::small();
    let executor = scene.deploy(1, &warm());
    let lease = executor.lease_id().get();
    let bill = executor.release().unwrap();
    assert_eq!((bill.invocations.get(), bill.execution_ns.get()), (0, 0));
    assert!(bill.allocated_ns.get() > 0);
    assert_eq!(booked(&scene, lease)["invocations"], 0);
    scene.ends();
}
