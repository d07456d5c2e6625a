//! How functions end their process: each way is an error that says which it was, and with `Deployment::restart` the
//! next call has another process. Prints a table of what the caller got, and after how long.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::time::{Duration, Instant};

use rfaas::Error;
use testkit::Options;
use testkit::functions::ends;
use testkit::service::{all_is_free, call, cluster, deploy, warm};
use testkit::wait::one_at_a_time;

/// A function of `ends.cpp`, whether an error is what its caller is to get, and what is printed then.
type Row = (&'static str, fn(&Error) -> bool, &'static str);

const fn signal<const SIGNAL: i32>() -> fn(&Error) -> bool {
    |error| matches!(error, Error::FunctionCrashed { signal } if *signal == SIGNAL)
}

const fn status<const STATUS: i32>() -> fn(&Error) -> bool {
    |error| matches!(error, Error::FunctionExited { status } if *status == STATUS)
}

const ROWS: [Row; 9] = [
    ("last_words", signal::<11>(), "this is why"),
    ("divide_by_zero", signal::<8>(), ""),
    ("call_abort", signal::<6>(), ""),
    ("call_exit", status::<7>(), ""),
    ("call_exit_at_once", status::<8>(), ""),
    ("call_terminate", signal::<6>(), "terminate called"),
    ("throw_exception", signal::<6>(), "no such particle"),
    ("overflow_stack", |error| matches!(error, Error::StackOverflow), ""),
    ("overflow_stack_of_its_thread", signal::<11>(), ""),
];

#[test]
fn each_end_is_an_error_of_its_own_and_the_next_call_has_another_process() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let library = ends(directory.path());
    let mut executor = deploy(&client, 1, &library, &warm().restart(true));
    let mut processes = Vec::new();
    for (function, expected, words) in ROWS {
        assert_eq!(call(&mut executor, "echo", &[1; 8]).unwrap(), [1; 8], "before {function}");
        let process = cluster.executors_running();
        assert!(process.len() == 1 && !processes.contains(&process), "{function}: {process:?}");
        processes.push(process);
        let printed_before = executor.printed().unwrap().to_string().len();
        let start = Instant::now();
        let error = call(&mut executor, function, &[]).unwrap_err();
        eprintln!("{function:>30}  {:>8.1?}  {error}", start.elapsed());
        assert!(expected(&error), "{function}: {error:?}");
        let printed = executor.printed().unwrap().to_string();
        assert!(printed[printed_before..].contains(words), "{function}: {printed}");
    }
    assert_eq!(call(&mut executor, "echo", &[2; 8]).unwrap(), [2; 8]);
    let limit = Duration::from_millis(300);
    drop(executor);
    let mut executor =
        deploy(&client, 1, &library, &warm().restart(true).invocation_timeout(limit));
    let start = Instant::now();
    let error = call(&mut executor, "run_for_ever", &[]).unwrap_err();
    eprintln!("{:>30}  {:>8.1?}  {error}", "run_for_ever", start.elapsed());
    assert!(matches!(error, Error::TimeLimit { .. }), "{error:?}");
    assert_eq!(call(&mut executor, "echo", &[3; 8]).unwrap(), [3; 8]);
    executor.release().unwrap();
    all_is_free(&cluster);
    cluster.stop().unwrap();
}

#[test]
fn without_restart_calls_say_how_the_process_ended_until_it_is_replaced() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &ends(directory.path()), &warm());
    for function in ["overflow_stack", "echo", "echo"] {
        let error = call(&mut executor, function, &[1; 8]).unwrap_err();
        assert!(matches!(error, Error::StackOverflow), "{function}: {error:?}");
    }
    executor.restart().unwrap();
    assert_eq!(call(&mut executor, "echo", &[1; 8]).unwrap(), [1; 8]);
    executor.release().unwrap();
    cluster.stop().unwrap();
}
