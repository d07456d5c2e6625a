//! The gate tells the truth: what failed is named, and is no test that was not run.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs;
use std::process::Command;

use testkit::run::{run, source};

/// What the gate makes of this output of tests.
fn results(output: &str) -> Vec<String> {
    let mut lines = awk("test_results.awk", output);
    lines.sort();
    lines
}

/// What a script of the gate prints of this output of tests.
fn awk(script: &str, output: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tests");
    fs::write(&file, output).unwrap();
    let mut awk = Command::new("awk");
    awk.args(["-v", "lines=3", "-f"]).arg(source("tools/gate").join(script)).arg(&file);
    run(awk).success().stdout.lines().map(str::to_owned).collect()
}

#[test]
fn each_failed_test_is_named_once_with_its_program() {
    let told = results(
        "     Running unittests src/lib.rs (target/debug/deps/rfaas-28dabc0011223344)\n\
         test spin::never ... ok\n\
         test spin::always ... FAILED\n\n\
         failures:\n\n---- spin::always stdout ----\ntest of something\n\n\
         test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
         \x20  Doc-tests rfaas\n\
         test rfaas/src/lib.rs - client (line 5) - compile ... FAILED\n\
         test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
         \x20    Running tools/faults in a virtual machine, on rxe0=192.168.77.1\n\
         test an_end ... FAILED\n\
         test an_end ... FAILED\n\
         test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
    );
    let expected = [
        "failed\tdocumentation of rfaas: rfaas/src/lib.rs - client (line 5) - compile",
        "failed\trfaas: spin::always",
        "failed\ttools/faults in the virtual machine: an_end",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_test_is_not_run_only_if_nobody_ran_it() {
    let told = results(
        "     Running tests/conformance/main.rs (/elsewhere/debug/deps/conformance-99aabbccdd001122)\n\
         test shm::a_write_lands ... ok\n\
         test verbs::a_write_lands ... ignored, needs an RDMA device\n\
         test verbs::a_read_lands ... ignored, needs an RDMA device\n\
         test verbs::nobody_asks ... ignored, needs an RDMA device\n\
         test result: ok. 1 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out\n\
         \x20    Running rdmalib/conformance in a virtual machine, on rxe0=192.168.77.1\n\
         test verbs::a_write_lands ... ok\n\
         test verbs::a_read_lands ... FAILED\n\
         test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
    );
    let expected = [
        "failed\trdmalib/conformance in the virtual machine: verbs::a_read_lands",
        "ignored\tverbs::nobody_asks\tneeds an RDMA device",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_test_program_that_ends_early_has_failed() {
    let told = results(
        "     Running tests/leftovers.rs (target/debug/deps/leftovers-99aabbccdd001122)\n\
         test the_first ... ok\n\
         \x20    Running tests/scale.rs (target/debug/deps/scale-99aabbccdd001122)\n\
         test the_second ... ok\n\
         test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
    );
    assert_eq!(told, ["failed\tleftovers: ended before its tests had"]);
}

#[test]
fn what_a_failed_test_program_printed_last_is_repeated() {
    let told = awk(
        "failed_output.awk",
        "     Running tests/scale.rs (target/debug/deps/scale-99aabbccdd001122)\n\
         test the_first ... ok\n\
         test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
         \x20    Running tests/kill.rs (target/debug/deps/kill-99aabbccdd001122)\n\
         test the_second ... FAILED\n\
         failures:\n\
         ---- the_second stdout ----\n\
         it was not so\n\
         test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
         \x20    Running tools/leftovers in a virtual machine, on rxe0=192.168.77.1\n\
         test the_third ... ok\n\
         error: rdma-vm: timed out after 900 s\n",
    );
    let expected = [
        "Running tests/kill.rs (target/debug/deps/kill-99aabbccdd001122)",
        "    failures:",
        "    ---- the_second stdout ----",
        "    it was not so",
        "Running tools/leftovers in a virtual machine, on rxe0=192.168.77.1",
        "    test the_third ... ok",
        "    error: rdma-vm: timed out after 900 s",
    ];
    assert_eq!(told, expected);
}
