//! What functions, and the programs that they start, find of the process that they run in: what the
//! operator's shell would give them, and nothing of ours.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

mod common;

use std::process::{Command, Stdio};

use common::{Session, Setup, compile};
use nix::sys::signal::Signal;
use zerocopy::IntoBytes;

fn code() -> Vec<u8> {
    compile("tests/functions/inherited.c", &[])
}

fn serving(setup: &Setup) -> Session {
    Session::start(setup, &code())
}

fn call(session: &mut Session, function: &str, input: &str) -> String {
    let function = session.function(function);
    String::from_utf8(session.workers[0].call(function, input.as_bytes())).unwrap()
}

/// The hex digits of `key` in a status of proc_pid_status(5), as signals; without 32 and 33, which glibc keeps for
/// itself and has ignored in what posix_spawn(3) starts.
fn signals(status: &str, key: &str) -> Vec<i32> {
    let digits = status.lines().find_map(|line| line.strip_prefix(key)).expect(key);
    let mask = u64::from_str_radix(digits.trim_start_matches(':').trim(), 16).unwrap();
    (1..=64).filter(|signal| !matches!(signal, 32 | 33) && mask & 1 << (signal - 1) != 0).collect()
}

#[test]
fn no_signal_is_blocked_or_ignored() {
    let mut session = serving(&Setup::default());
    for status in [
        call(&mut session, "contents", "/proc/thread-self/status"),
        call(&mut session, "shell", "cat /proc/self/status"),
    ] {
        assert!(signals(&status, "SigBlk").is_empty(), "{status}");
        assert!(signals(&status, "SigIgn").is_empty(), "{status}");
    }
}

#[test]
fn what_a_function_starts_ends_by_a_signal() {
    let mut session = serving(&Setup::default());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        let script = format!("sh -c 'kill -{} $$'; echo $?", signal as i32);
        let status = call(&mut session, "shell", &script);
        assert_eq!(status.trim(), (128 + signal as i32).to_string(), "{signal}");
        let function = session.function("end_child");
        let ended = session.workers[0].call(function, &[signal as u8]);
        assert_eq!(ended, [signal as u8], "a fork, {signal}");
    }
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0), "and not the executor with it");
}

#[test]
fn only_its_managers_word_ends_it() {
    let mut session = serving(&Setup::default());
    for signal in ["TERM", "INT", "HUP"] {
        // Of another process than the manager, as systemd sends to everybody in a control group.
        let pid = session.child.id().to_string();
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status();
        assert!(sent.unwrap().success());
        assert_eq!(call(&mut session, "shell", "echo still here"), "still here\n");
    }
    session.signal("HUP");
    assert_eq!(session.exit_status().code(), Some(0));
}

/// Soft and hard limit in a line of proc_pid_limits(5).
fn limit(limits: &str, name: &str) -> (String, String) {
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    let mut words = line.split_whitespace().map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

#[test]
fn the_limit_of_descriptors_is_the_operators_and_core_files_are_off() {
    let ours = std::fs::read_to_string("/proc/self/limits").unwrap();
    let (_, hard) = limit(&ours, "Max open files");
    let setup = Setup { open_files: 300, ..Setup::default() };
    let mut session = serving(&setup);
    for limits in [
        call(&mut session, "contents", "/proc/self/limits"),
        call(&mut session, "shell", "cat /proc/self/limits"),
    ] {
        assert_eq!(limit(&limits, "Max open files"), ("300".into(), hard.clone()));
        assert_eq!(limit(&limits, "Max core file size"), ("0".into(), "0".into()));
    }
}

#[test]
fn nothing_of_the_executors_is_open_in_what_a_function_starts() {
    let mut session = serving(&Setup::default());
    // What it was started with itself is its manager's to close; here the manager is this test.
    let ours = Command::new("sh").args(["-c", "ls /proc/self/fd"]).output().unwrap();
    let ours = String::from_utf8(ours.stdout).unwrap();
    assert_eq!(call(&mut session, "shell", "ls /proc/self/fd"), ours);
    let input = call(&mut session, "shell", "readlink /proc/self/fd/0; cat");
    assert_eq!(input, "/dev/null\n", "not the assignment");
}

#[test]
fn more_workers_than_the_operators_limit_allows_have_their_descriptors() {
    let setup = Setup { open_files: 20, workers: 12, ..Setup::default() };
    let mut session = serving(&setup);
    assert_eq!(call(&mut session, "shell", "echo here"), "here\n");
}

#[test]
fn a_worker_has_as_much_stack_as_the_limit_says() {
    let code = compile("tests/functions/deep.c", &[]);
    let setup = Setup::default();
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("instructions.json");
    let mut session = Session::spawn_by(&setup, &code, |instructions| {
        std::fs::write(&input, instructions).unwrap();
        Command::new("sh")
            .args(["-c", r#"ulimit -S -s 40000; exec "$0" < "$1""#])
            .arg(env!("CARGO_BIN_EXE_executor"))
            .arg(&input)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    session.connect(&setup, &code);
    let megabytes = 37u32;
    assert_eq!(session.workers[0].call(0, megabytes.as_bytes()), megabytes.as_bytes());
}

#[test]
#[ignore = "needs to make namespaces: root, or user namespaces that this user may have"]
fn a_node_without_proc_is_told() {
    let (setup, code) = (Setup::default(), code());
    let hidden = r#"mount -t tmpfs none /proc && exec "$0""#;
    let mut session = Session::spawn_by(&setup, &code, |instructions| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--map-root-user", "sh", "-c", hidden]);
        common::spawn_as(unshare.arg(env!("CARGO_BIN_EXE_executor")), instructions)
    });
    session.connect(&setup, &code);
    let told = session.listed().unwrap_err();
    assert!(told.contains("/proc is not mounted"), "{told}");
}
