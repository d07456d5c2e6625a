//! `compare` end to end, with few repetitions: everybody answers, and what is told has its shape. The programs of a
//! cluster are needed beside it: `cargo build --workspace`.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::path::Path;
use std::process::{Command, Output};

use compare::QUICK_PAYLOADS;
use serde_json::Value;

const RUNS: usize = 2;
/// Those that need nothing installed, and whether they are measured with all payloads.
const BUILT_IN: [(&str, bool); 12] = [
    ("bounce", false),
    ("copies", true),
    ("eventfd", false),
    ("transport", true),
    ("service", true),
    ("in_place", true),
    ("transport_warm", false),
    ("service_warm", false),
    ("unix", true),
    ("grpc_unix", true),
    ("grpc_tcp", true),
    ("http", true),
];
/// Those that need other people's programs, which may not be here.
const INSTALLED: [&str; 3] = ["ucx_message", "ucx_put", "libfabric"];

fn compare(arguments: &[&str]) -> Output {
    let devices = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/devices.json");
    Command::new(env!("CARGO_BIN_EXE_compare"))
        .arg("--device-database")
        .arg(devices)
        .args(arguments)
        .output()
        .unwrap()
}

/// Fails unless it is the figure of so many runs: median, smallest and largest of them.
fn is_spread(spread: &Value, runs: usize) {
    let number = |key: &str| spread[key].as_f64().unwrap_or_else(|| panic!("no {key}: {spread}"));
    assert!(number("min") > 0.0, "{spread}");
    assert!(number("min") <= number("median") && number("median") <= number("max"), "{spread}");
    assert_eq!(spread["runs"].as_array().map(Vec::len), Some(runs), "{spread}");
}

fn contender<'a>(told: &'a Value, id: &str) -> &'a Value {
    let all = told["contenders"].as_array().unwrap();
    all.iter().find(|row| row["id"] == id).unwrap_or_else(|| panic!("no {id}: {told}"))
}

fn is_whole(row: &Value, payloads: &[u32]) {
    let cells = row["cells"].as_array().unwrap();
    let told: Vec<_> = cells.iter().map(|cell| cell["payload_bytes"].as_u64().unwrap()).collect();
    assert_eq!(told, payloads.iter().map(|&bytes| u64::from(bytes)).collect::<Vec<_>>(), "{row}");
    for cell in cells {
        is_spread(&cell["p50_ns"], RUNS);
        assert!(cell["repetitions"].as_u64().unwrap() >= 2 * 3, "{cell}");
    }
}

#[test]
fn everybody_is_measured_in_each_run_and_reported() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let runs = RUNS.to_string();
    let path = directory.join("made").display().to_string();
    let output = compare(&["--quick", "--json", "--runs", &runs, "--output-dir", &path]);
    assert!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("no single JSON object ({error}): {output:?}"));

    assert_eq!(told["benchmark"], "compare");
    assert_eq!(told["runs"], RUNS);
    assert_eq!(told["devices"][0]["provider"], "shm");
    assert!(told["machine"]["cores"].as_u64().unwrap() > 0);
    for (id, all_payloads) in BUILT_IN {
        let row = contender(&told, id);
        assert_eq!(row["not_run"], Value::Null, "{row}");
        assert!(!row["settings"].as_str().unwrap().is_empty());
        match all_payloads {
            true => is_whole(row, &QUICK_PAYLOADS),
            false if id.ends_with("warm") => is_whole(row, &[8, 64]),
            false => is_whole(row, &[8]),
        }
    }
    for id in INSTALLED {
        let row = contender(&told, id);
        match row["not_run"].as_str() {
            // Told, not hidden: what it says is the test's output.
            Some(reason) => println!("{id} not run: {reason}"),
            None => is_whole(row, &QUICK_PAYLOADS),
        }
    }
    rates_and_ratios_are_there(&told);
    files_are_there(&directory.join("made"), &told);
}

fn rates_and_ratios_are_there(told: &Value) {
    for (key, numbers) in [
        ("in_flight", vec![1, 2, 4, 8, 16, 32, 64]),
        ("scaling", (1..=told["machine"]["cores"].as_u64().unwrap()).collect()),
    ] {
        let by = told[key][0]["by"].as_array().unwrap();
        let found: Vec<_> = by.iter().map(|rate| rate["number"].as_u64().unwrap()).collect();
        assert_eq!(found, numbers, "{key}");
        by.iter().for_each(|rate| is_spread(&rate["per_second"], RUNS));
    }
    let names: Vec<_> = told["ratios"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ratio| ratio["name"].as_str().unwrap())
        .collect();
    for name in [
        "transport_64_over_bounce",
        "transport_32_over_bounce",
        "invocation_64_over_transport",
        "warm_64_over_eventfd",
        "in_flight_per_second",
        "goodput_1_mib",
        "in_place_16_mib_over_64",
        "grpc_unix_64_over_invocation",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    let of = told["distribution"]["of"].as_array().unwrap();
    let hot = of.iter().find(|one| one["id"] == "service").unwrap();
    let points = hot["share_ns"].as_array().unwrap();
    assert_eq!(points.last().unwrap()[0], 1.0);
    assert!(points.is_sorted_by_key(|point| point[1].as_u64().unwrap()));
}

fn files_are_there(directory: &Path, told: &Value) {
    let read = |name: &str| {
        std::fs::read_to_string(directory.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    assert_eq!(serde_json::from_str::<Value>(&read("compare.json")).unwrap(), *told);
    for name in ["round_trips", "distribution", "in_flight", "scaling", "ratios"] {
        let csv = read(&format!("{name}.csv"));
        assert!(csv.lines().count() > RUNS, "{name}: {csv}");
    }
    let kernel = told["machine"]["kernel"].as_str().unwrap();
    for name in ["round_trips", "distribution", "in_flight", "scaling"] {
        let svg = read(&format!("{name}.svg"));
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{name}");
        assert!(
            svg.contains("<rect x=\"0\" y=\"0\" width=\"960\" height=\"540\""),
            "{name}: background"
        );
        assert!(svg.contains(kernel), "{name}: the machine's facts");
    }
}

#[test]
fn a_device_that_is_not_in_the_database_is_bad_input() {
    let output = compare(&["--quick", "--device", "nosuch0"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.starts_with("error: ") && told.contains("nosuch0"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn a_device_that_is_given_twice_is_bad_input() {
    let output = compare(&["--quick", "--device", "shm0", "--device", "shm0"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("\"shm0\" is given twice"), "{told}");
}

#[test]
fn a_directory_that_cannot_be_made_is_bad_input() {
    let output = compare(&["--quick", "--output-dir", "/proc/nowhere"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("/proc/nowhere"), "{told}");
}
