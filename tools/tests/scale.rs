//! The benchmarks of what managers cost, as short as they can be: they run to their end, and what they tell
//! adds up. How good the figures are is for people.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use serde_json::Value;
use testkit::run::{command, run};
use testkit::wait::one_at_a_time;

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} is a number in {row}"))
}

#[test]
fn the_pool_is_measured_with_each_number_of_nodes() {
    let flags = ["--json", "--nodes", "10,1000", "--leases", "20000"];
    let told = run(command("pool_scale", flags)).success().json();
    assert_eq!((&told["benchmark"], &told["leases"]), (&"pool_scale".into(), &20_000.into()));
    let rows = told["sizes"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for (row, nodes) in rows.iter().zip([10.0, 1000.0]) {
        assert_eq!(number(row, "nodes"), nodes);
        assert!(number(row, "open_leases") >= 2.0 * nodes, "half of 16 cores, at most 4 a lease");
        assert!(number(row, "leases_per_second") > 0.0 && number(row, "operation_ns") > 0.0);
    }
    assert_eq!((number(&rows[0], "growth"), number(&rows[0], "log2_growth")), (1.0, 1.0));
    assert!(rows[0]["bytes_per_node"].is_null(), "too few to be seen");
    assert!(number(&rows[1], "bytes_per_node") > 0.0 && number(&rows[1], "bytes_per_lease") > 0.0);
}

#[test]
fn placement_is_measured_with_each_policy() {
    let flags = ["--json", "--nodes", "100,1000", "--gangs", "1000"];
    let told = run(command("placement_scale", flags)).success().json();
    let rows = told["sizes"].as_array().unwrap();
    assert_eq!(rows.len(), 2 * 4 * 2, "sizes, policies, as they come and apart");
    for row in rows {
        assert!(number(row, "gang_ns") > 0.0 && number(row, "first_fit_ns") > 0.0, "{row}");
    }
}

#[test]
fn a_manager_with_many_nodes_is_measured_with_its_state_in_memory_and_on_a_disk() {
    let _guard = one_at_a_time();
    let flags = ["--json", "--nodes", "20", "--clients", "4", "--seconds", "1"];
    let told = run(command("manager_load", flags)).success().json();
    let rows = told["states"].as_array().unwrap();
    let states: Vec<_> = rows.iter().map(|row| row["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["memory", "disk"]);
    for row in rows {
        for key in ["leases_per_second", "leases_per_commit", "commit_us", "manager_cores"] {
            assert!(number(row, key) > 0.0, "{key}: {row}");
        }
        let grant = &row["grant_us"];
        assert!(
            0.0 < number(grant, "p50") && number(grant, "p50") <= number(grant, "p99"),
            "{row}"
        );
    }
}

/// It fails by itself unless each executor answers before and after it was idle, and nothing is left of them.
#[test]
fn executors_that_are_idle_are_measured_and_all_are_gone_when_their_leases_are_given_back() {
    let _guard = one_at_a_time();
    const EXECUTORS: f64 = 20.0;
    let flags = ["--json", "--seconds", "1", "--executors", &EXECUTORS.to_string()];
    let told = run(command("idle_cost", flags)).success().json();
    assert_eq!(number(&told, "executors"), EXECUTORS);
    let more = |key: &str| number(&told["held_idle"], key) - number(&told["held_before"], key);
    assert!(more("processes") >= EXECUTORS, "{told}");
    assert!(more("manager_descriptors") >= EXECUTORS, "{told}");
    for key in ["first_starts_ms", "last_starts_ms", "memory_bytes", "release_ms"] {
        assert!(number(&told, key) > 0.0, "{key}: {told}");
    }
}

/// It fails by itself unless what goes through its graphs comes out of them.
#[test]
fn graphs_are_measured_beside_what_their_targets_name() {
    let _guard = one_at_a_time();
    let flags = ["--json", "--repetitions", "2", "--calls", "100", "--compiles", "1"];
    let told = run(command("graph_benchmarker", flags)).success().json();
    let rows = told["rows"].as_array().unwrap();
    let targets: Vec<_> = rows.iter().map(|row| row["target"].as_str().unwrap()).collect();
    assert_eq!(targets, ["T1", "T1", "T2", "T2", "T3", "T6", "T4", "T5", "T14", "T18", "T18"]);
    for row in &rows[..8] {
        assert!(number(row, "value") > 0.0 && number(row, "beside") > 0.0, "{row}");
    }
}
