//! What functions do to their own process and thread, and what becomes of the executor then; what is left in order at
//! its end.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rfaas_protocol::assignment::MEMORY_LIMIT;

use common::{Session, Setup, compile, eventually, faulty};

fn start_call(session: &mut Session, function: &str) {
    let function = session.function(function);
    session.workers[0].submit(0, function, &[]);
}

/// Whether a process runs, as it does not when nobody has taken note of its end yet.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_child_that_returns_from_its_function_ends_and_its_parent_serves() {
    for hot_timeout_ms in [-1, 0] {
        let setup = Setup { hot_timeout_ms, ..Setup::default() };
        let mut session = Session::start(&setup, &faulty());
        let echo = session.function("echo");
        for function in ["fork_and_return", "clone_and_return"] {
            let function = session.function(function);
            for round in 0..10u8 {
                let output = session.workers[0].call(function, &[]);
                let child = i32::from_ne_bytes(output.try_into().unwrap());
                assert!(child > 0, "{child}: the child has answered");
                assert_eq!(session.workers[0].call(echo, &[round; 64]), [round; 64]);
                eventually("the end of the child", || !runs(child));
            }
        }
        session.terminate();
        assert_eq!(session.exit_status().code(), Some(0));
        assert_eq!(session.manager.invocations(), 40, "each counts once");
    }
}

#[test]
fn a_function_that_ends_its_thread_is_a_crash_and_the_call_costs_nothing() {
    for workers in [1, 2] {
        let mut session = Session::start(&Setup { workers, ..Setup::default() }, &faulty());
        let echo = session.function("echo");
        session.workers[0].call(echo, b"abc");
        // Settled when the worker goes to sleep.
        eventually("the call is counted", || session.manager.invocations() == 1);
        let counted = session.manager.execution_ns();
        start_call(&mut session, "end_thread");
        assert_eq!(session.exit_status().signal(), Some(6));
        assert_eq!(session.manager.invocations(), 1);
        let mut log = String::new();
        session.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(log.contains("has ended its worker's thread"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        let more = session.manager.execution_ns() - counted;
        assert!(more < 1_000_000, "{more} ns for a call of which nobody knows how long it took");
        assert!(session.workers[0].ends());
    }
}

#[test]
fn a_function_that_leaves_its_thread_as_posix_has_it_is_a_crash() {
    let mut session = Session::start(&Setup::default(), &faulty());
    start_call(&mut session, "leave_thread");
    assert_eq!(session.exit_status().signal(), Some(6));
}

#[test]
fn a_worker_whose_client_has_cut_it_is_not_taken_for_one_that_a_function_ended() {
    let mut session = Session::start(&Setup { workers: 2, ..Setup::default() }, &faulty());
    drop(session.workers.remove(0));
    let (echo, sleep_ms) = (session.function("echo"), session.function("sleep_ms"));
    // Longer than the time between two looks at the workers.
    session.workers[0].call(sleep_ms, &u32::to_ne_bytes(2500));
    assert_eq!(session.workers[0].call(echo, b"abc"), b"abc");
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0));
}

/// The end of a worker is heard behind what others had to say before, however much that is.
#[test]
fn a_worker_that_ends_while_the_main_thread_is_busy_is_not_taken_for_one_that_a_function_ended() {
    // One message for each name, and more than may be under way to a client that reads none of them.
    let alias = |n| format!("-Wl,--defsym=f{n:0505}=echo");
    let aliases: Vec<String> = (0..120).map(alias).collect();
    let aliases: Vec<&str> = aliases.iter().map(String::as_str).collect();
    let code = compile("../tools/testkit/functions/faulty.c", &aliases);
    let setup = Setup { workers: 2, ..Setup::default() };
    let mut session = Session::spawn(&setup, &code);
    // Workers dial the client after the manager, which answers when the main thread lists the functions.
    eventually("the executor's connection", || {
        if let Some(request) = session.listener.try_next().unwrap() {
            session.accept(&setup, &code, request);
        }
        session.control.is_some()
    });
    let mut names = vec![];
    assert_eq!(session.listed_next(&mut names), Ok(false));
    session.connect(&setup, &code);
    session.workers[0].write(0, &[], Some(u32::MAX)); // no slot has this number
    assert!(session.workers[0].ends());
    let tasks = format!("/proc/{}/task", session.child.id());
    eventually("the end of the worker's thread", || {
        let tasks = fs::read_dir(&tasks).unwrap().flatten();
        let names = tasks.map(|task| fs::read_to_string(task.path().join("comm")));
        names.flatten().all(|name| name.trim() != "worker-0")
    });
    while !session.listed_next(&mut names).unwrap() {}
    session.functions = names;
    let echo = session.function("echo");
    assert_eq!(session.workers[1].call(echo, b"abc"), b"abc");
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0));
}

#[test]
fn the_other_program_that_a_function_becomes_has_none_of_the_connections() {
    let mut session = Session::start(&Setup::default(), &faulty());
    start_call(&mut session, "become_another_program");
    assert!(session.workers[0].ends());
    session.child.kill().unwrap();
}

fn thread_locals(more: &[(&str, &str)]) -> (Session, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut env = vec![("FUNCTION_LOG".into(), log.to_str().unwrap().into())];
    env.extend(more.iter().map(|(key, value)| ((*key).into(), (*value).into())));
    let setup = Setup { workers: 2, env, ..Setup::default() };
    let code = compile("tests/functions/thread_local.cpp", &[]);
    let mut session = Session::start(&setup, &code);
    let function = session.function("use");
    for worker in &mut session.workers {
        worker.call(function, &[]);
    }
    (session, dir)
}

#[test]
fn destructors_of_threads_run_before_those_of_the_process_whoever_ends_it() {
    for (told, gone) in [(true, false), (false, true), (true, true)] {
        let (mut session, dir) = thread_locals(&[]);
        if gone {
            session.control = None;
            session.workers.clear();
        }
        if told {
            session.terminate();
        }
        assert_eq!(session.exit_status().code(), Some(0));
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(log, "thread\nthread\nprocess\n", "told {told}, client gone {gone}");
    }
}

#[test]
fn a_destructor_of_a_thread_that_hangs_does_not_keep_it() {
    let (mut session, dir) = thread_locals(&[("FUNCTION_HANG", "1")]);
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0));
    assert!(!dir.path().join("log").exists(), "it ended at once, with no other destructor");
}

#[test]
fn the_last_counts_are_sent_whoever_ends_it_and_however_often_it_is_told() {
    for round in 0..10 {
        // Hot, so that nothing is settled before the end but each 100 ms.
        let setup = Setup { hot_timeout_ms: -1, workers: 2, ..Setup::default() };
        let mut session = Session::start(&setup, &faulty());
        let echo = session.function("echo");
        for worker in &mut session.workers {
            worker.call(echo, b"abc");
        }
        // As when a client drops its executor and its manager hears of that: all at once.
        session.control = None;
        session.workers.clear();
        session.terminate();
        session.terminate();
        assert_eq!(session.exit_status().code(), Some(0));
        assert_eq!(session.manager.invocations(), 2, "round {round}");
    }
}

#[test]
fn the_manager_has_the_last_counts_before_the_client_sees_the_end_of_a_worker() {
    // Hot, so that nothing is settled before the end but each 100 ms.
    let setup = Setup { hot_timeout_ms: -1, slots: 64, ..Setup::default() };
    for round in 0..20 {
        let mut session = Session::start(&setup, &faulty());
        let echo = session.function("echo");
        session.workers[0].call(echo, b"abc");
        session.terminate();
        assert!(session.workers[0].ends());
        assert_eq!(session.manager.invocations(), 1, "round {round}");
        assert_eq!(session.exit_status().code(), Some(0));
    }
}

#[test]
fn an_exception_that_nobody_catches_says_what_it_is() {
    let code = compile("tests/functions/throws.cpp", &[]);
    let mut session = Session::start(&Setup::default(), &code);
    start_call(&mut session, "throws");
    assert_eq!(session.exit_status().signal(), Some(6));
    let mut said = String::new();
    session.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("nobody catches this"), "{said}");
}

/// With `megabytes` of memory of its own at most, beside what the program and its threads take.
fn limited(megabytes: u32) -> Session {
    let (setup, code) = (Setup::default(), compile("tests/functions/memory.cpp", &[]));
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("instructions.json");
    let mut session = Session::spawn_by(&setup, &code, |instructions| {
        fs::write(&input, instructions).unwrap();
        Command::new("sh")
            .args(["-c", &format!(r#"ulimit -d {}; exec "$0" < "$1""#, megabytes << 10)])
            .arg(env!("CARGO_BIN_EXE_executor"))
            .arg(&input)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    session.connect(&setup, &code);
    session.functions = session.listed().unwrap();
    session
}

#[test]
fn a_function_that_does_not_expect_that_memory_is_refused_dies_of_a_signal_that_says_so() {
    for function in ["take_all", "ask_for_too_much"] {
        let mut session = limited(256);
        let expects_it = session.function("expects_it");
        assert_eq!(session.workers[0].call(expects_it, &[]), [1], "one that does goes on");
        start_call(&mut session, function);
        assert_eq!(session.exit_status().signal(), Some(MEMORY_LIMIT), "{function}");
    }
}
