//! Programs whose standard output is a full disk or a pipe whose reader has gone: one line and an exit status,
//! as for everything else that goes wrong.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs::File;
use std::process::{Command, Stdio};

use testkit::Options;
use testkit::run::{command, library};
use testkit::service::cluster;
use testkit::wait::one_at_a_time;

const PROGRAMS: [&str; 21] = [
    "resource_manager",
    "executor_manager",
    "executor",
    "cluster",
    "quickstart",
    "device_generator",
    "rfaas",
    "transport_benchmarker",
    "warm_benchmarker",
    "cold_benchmarker",
    "parallel_invocations",
    "manager_load",
    "cold_starts",
    "idle_cost",
    "pool_scale",
    "placement_scale",
    "graph_benchmarker",
    "compare",
    "thumbnailer",
    "sample_image",
    "graph_examples",
];

/// Fails unless `command` ends with status 1 and one line that tells why its result is not printed.
fn cannot_print(command: &mut Command, out: impl Into<Stdio>, why: &str) {
    let output = command.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped()).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {complaint}");
    let line = format!("error: standard output: {why}");
    assert!(
        complaint.starts_with(&line) && complaint.lines().count() == 1,
        "{command:?}: {complaint}"
    );
}

fn on_a_full_disk(command: &mut Command) {
    let full = File::options().write(true).open("/dev/full").unwrap();
    cannot_print(command, full, "No space left on device");
}

fn without_a_reader(command: &mut Command) {
    let (_, writer) = std::io::pipe().unwrap();
    cannot_print(command, writer, "Broken pipe");
}

#[test]
fn help_and_version_on_a_full_disk_are_reported_in_one_line() {
    let _guard = one_at_a_time();
    for name in PROGRAMS {
        for flag in ["--help", "--version"] {
            on_a_full_disk(&mut command(name, [flag]));
            // `--help | head -1`: who asked has read what they wanted.
            let out = std::io::pipe().unwrap().1;
            let mut asked = command(name, [flag]);
            let ended = asked.stdout(out).stderr(Stdio::piped()).output().unwrap();
            assert!(ended.status.success() && ended.stderr.is_empty(), "{asked:?}: {ended:?}");
        }
    }
}

#[test]
fn a_wrong_flag_is_reported_wherever_somebody_still_reads() {
    let _guard = one_at_a_time();
    for name in PROGRAMS {
        let full = File::options().write(true).open("/dev/full").unwrap();
        for err in [full.into(), Stdio::from(std::io::pipe().unwrap().1)] {
            let mut wrong = command(name, ["--no-such-flag"]);
            let status = wrong.stdin(Stdio::null()).stderr(err).status().unwrap();
            assert_eq!(status.code(), Some(2), "{wrong:?}");
        }
    }
}

#[test]
fn a_result_that_cannot_be_printed_is_a_failure_in_one_line() {
    let _guard = one_at_a_time();
    on_a_full_disk(&mut command("device_generator", ["-d", "shm0"]));
    without_a_reader(&mut command("device_generator", ["-d", "shm0"]));
    on_a_full_disk(&mut command("cluster", [""; 0]));
    on_a_full_disk(&mut command("idle_cost", ["--seconds", "1"]));

    let cluster = cluster(Options::default());
    for json in [&["--json"][..], &[]] {
        let benchmark = || {
            let mut command = cluster.benchmark_command("warm_benchmarker").unwrap();
            command.arg("--functions").arg(library("functions"));
            command.args(["--repetitions", "2", "--hot-timeout", "0"]).args(json);
            command
        };
        on_a_full_disk(&mut benchmark());
        without_a_reader(&mut benchmark());
    }
    cluster.stop().unwrap();
}
