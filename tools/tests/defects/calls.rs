//! Invocations: many of them, several in flight, such that fail.

use std::time::{Duration, Instant};

use rfaas::{Client, Error, Exit, LeaseRequest, Spin};
use testkit::Options;

use super::{Scene, result, submit};
use testkit::functions::faulty;
use testkit::service::{call, call_with_room, deploy, warm};
use testkit::wait::eventually;

fn number(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes.try_into().unwrap())
}

#[test]
fn invocation_65_537_on_one_connection_is_like_the_first_one() {
    let scene = Scene::small();
    let mut executor = scene.deploy(1, &warm());
    let function = executor.function("count").unwrap();
    let input = executor.input(4).unwrap();
    let mut output = executor.output(4).unwrap();
    // The shipped "repetitions" of the executor are 100: they must not end it.
    for calls in 1..=65_540_u32 {
        assert_eq!(executor.invoke(&function, &input, &mut output).unwrap(), 4);
        assert_eq!(number(&output.to_vec(..).unwrap()), calls);
    }
    let bill = executor.release().unwrap();
    assert_eq!(bill.invocations.get(), 65_540);
    scene.ends();
}

#[test]
fn several_invocations_in_flight_run_once_each_and_keep_their_inputs() {
    let scene = Scene::small();
    for spin in [Spin::Always, Spin::Never] {
        let mut executor = scene.deploy(1, &warm().spin(spin).slots(8));
        for round in 0..20u8 {
            let pending: Vec<_> = (0..8)
                .map(|i| submit(&mut executor, "echo", &[8 * round + i; 64]).unwrap())
                .collect();
            for (i, pending) in (0..8).zip(pending) {
                assert_eq!(result(pending), [8 * round + i; 64]);
            }
        }
        let pending: Vec<_> =
            (0..3).map(|_| submit(&mut executor, "count", &[0; 4]).unwrap()).collect();
        let counts: Vec<_> = pending.into_iter().map(|p| number(&result(p))).collect();
        assert_eq!(counts, [1, 2, 3]);
        let bill = executor.release().unwrap();
        assert_eq!(bill.invocations.get(), 8 * 20 + 3);
        scene.is_free();
    }
    scene.ends();
}

fn how_it_ended(error: &Error) -> Option<Exit> {
    match *error {
        Error::FunctionCrashed { signal } => Some(Exit::Signal(signal)),
        Error::FunctionExited { status } => Some(Exit::Status(status)),
        _ => None,
    }
}

#[test]
fn a_function_that_ends_its_process_is_an_error_that_says_how() {
    let scene = Scene::small();
    let library = faulty(scene.directory.path());
    let lease = scene.client.lease(LeaseRequest::new(1, 64)).unwrap();
    // One lease, deployed again after each crash.
    let cases = [
        ("crash", 0, Exit::Signal(11)),
        ("abort_now", 0, Exit::Signal(6)),
        ("raise_signal", 8, Exit::Signal(8)),
        ("raise_signal", 37, Exit::Signal(37)), // one without a name
        ("exit_with", 3, Exit::Status(3)),
        ("exit_with", 0, Exit::Status(0)),
        ("exit_with", 75, Exit::Status(75)), // which an executor also has of its own
        ("exit_elsewhere", 4, Exit::Status(4)),
        ("end_thread", 0, Exit::Signal(6)),
    ];
    for (function, input, expected) in cases {
        let mut executor = lease.deploy_with(&library, &warm()).unwrap();
        assert_eq!(call(&mut executor, "echo", &[1; 8]).unwrap(), [1; 8]);
        let error = call(&mut executor, function, &u32::to_ne_bytes(input)).unwrap_err();
        assert_eq!(how_it_ended(&error), Some(expected), "{function}: {error:?}");
        // What comes later fails too, and does not hang.
        let error = call(&mut executor, "echo", &[1; 8]).unwrap_err();
        assert_eq!(how_it_ended(&error), Some(expected), "{function}, later: {error:?}");
    }
    drop(lease);
    scene.ends();
}

#[test]
fn a_crash_is_reported_whoever_still_holds_the_connections() {
    let scene = Scene::small();
    let library = faulty(scene.directory.path());
    let lease = scene.client.lease(LeaseRequest::new(2, 64)).unwrap();
    for spin in [Spin::Always, Spin::Never] {
        // Less than what the daemon lives: who waits for the connections waits in vain.
        let deployment = warm().spin(spin).invocation_timeout(Duration::from_secs(20));
        let mut executor = lease.deploy_with(&library, &deployment).unwrap();
        assert_eq!(call(&mut executor, "echo", &[1; 8]).unwrap(), [1; 8]);
        let sleeping = submit(&mut executor, "sleep_forever", &[0; 4]).unwrap();
        let crashing = submit(&mut executor, "crash_with_a_daemon", &40u32.to_ne_bytes()).unwrap();
        for pending in [crashing, sleeping] {
            let error = pending.wait().unwrap_err().error;
            assert!(matches!(error, Error::FunctionCrashed { signal: 6 }), "{spin:?}: {error:?}");
        }
        let error = call(&mut executor, "echo", &[1; 8]).unwrap_err();
        assert!(matches!(error, Error::FunctionCrashed { signal: 6 }), "{spin:?}: {error:?}");
        // The same for who calls alone, and after a restart.
        executor.restart().unwrap();
        assert_eq!(call(&mut executor, "echo", &[2; 8]).unwrap(), [2; 8]);
        let error = call(&mut executor, "crash_with_a_daemon", &40u32.to_ne_bytes()).unwrap_err();
        assert!(matches!(error, Error::FunctionCrashed { signal: 6 }), "{spin:?}: {error:?}");
    }
    lease.release().unwrap();
    scene.ends();
}

#[test]
fn a_function_that_becomes_another_program_is_an_error_and_the_lease_ends_as_ever() {
    let scene = Scene::small();
    let mut executor = scene.deploy(1, &warm());
    let error = call(&mut executor, "become_another_program", &[]).unwrap_err();
    assert!(matches!(error, Error::ExecutorGone), "{error:?}");
    drop(executor);
    scene.is_free();
    scene.ends();
}

#[test]
fn calls_of_an_executor_that_was_dropped_are_billed() {
    let scene = Scene::small();
    let http = scene.cluster.http().unwrap();
    for round in 1..=5 {
        let mut executor = scene.deploy(2, &warm().spin(Spin::Always));
        for _ in 0..3 {
            assert_eq!(call(&mut executor, "echo", &[1; 8]).unwrap(), [1; 8]);
        }
        drop(executor);
        scene.is_free();
        let bills = || http.get("/billing").unwrap().body;
        eventually("its bill", || bills().as_array().unwrap().len() == round);
        let bills = bills();
        let calls: Vec<_> = bills.as_array().unwrap().iter().map(|b| &b["invocations"]).collect();
        assert!(calls.iter().all(|&calls| calls == 3), "{bills}");
    }
    scene.ends();
}

#[test]
fn invocations_in_flight_fail_with_the_one_that_crashed() {
    let scene = Scene::small();
    let mut executor = scene.deploy(2, &warm());
    let sleeping = submit(&mut executor, "sleep_forever", &[0; 4]).unwrap();
    let crashing = submit(&mut executor, "crash", &[0; 4]).unwrap();
    for pending in [crashing, sleeping] {
        let error = pending.wait().unwrap_err().error;
        assert!(matches!(error, Error::FunctionCrashed { signal: 11 }), "{error:?}");
    }
    drop(executor);
    scene.ends();
}

#[test]
fn a_result_that_does_not_fit_is_an_error_and_the_worker_goes_on() {
    let scene = Scene::small();
    let mut executor = scene.deploy(1, &warm());
    for needed in [65u32, 4097, u32::MAX] {
        let error = call_with_room(&mut executor, "claim", &needed.to_ne_bytes(), 64).unwrap_err();
        let told = matches!(
            error,
            Error::OutputTooLarge { needed: n, capacity: 64 } if n == u64::from(needed)
        );
        assert!(told, "{error:?}");
        assert_eq!(call(&mut executor, "echo", &[9; 64]).unwrap(), [9; 64]);
    }
    // What exactly fits does; and an output may be larger than its input.
    let full = call_with_room(&mut executor, "fill", &4096u32.to_ne_bytes(), 4096).unwrap();
    assert_eq!(full, [0x5a; 4096]);
    executor.release().unwrap();
    scene.ends();
}

#[test]
fn an_input_larger_than_the_slot_is_an_error_and_is_not_sent() {
    let scene = Scene::small();
    let mut executor = scene.deploy(1, &warm().input_bytes(100).output_bytes(200));
    let error = call(&mut executor, "echo", &[1; 101]).unwrap_err();
    assert!(matches!(error, Error::InputTooLarge { bytes: 101, max: 100 }), "{error:?}");
    assert!(matches!(
        submit(&mut executor, "echo", &[1; 101]).unwrap_err(),
        Error::InputTooLarge { bytes: 101, max: 100 }
    ));
    assert_eq!(call(&mut executor, "echo", &[1; 100]).unwrap(), [1; 100]);
    let bill = executor.release().unwrap();
    assert_eq!(bill.invocations.get(), 1);
    scene.ends();
}

#[test]
fn an_invocation_that_never_ends_runs_into_its_time_limit() {
    let scene = Scene::small();
    let limit = Duration::from_secs(1); // many times what `echo` takes, also on a busy machine
    for function in ["sleep_forever", "spin_forever"] {
        let mut executor = scene.deploy(2, &warm().invocation_timeout(limit));
        let start = Instant::now();
        let error = call(&mut executor, function, &[0; 4]).unwrap_err();
        assert!(matches!(error, Error::TimeLimit { after } if after == limit), "{error:?}");
        assert!(start.elapsed() >= limit);
        // The same executor serves on; more in `hung_function`.
        for _ in 0..10 {
            assert_eq!(call(&mut executor, "echo", &[4; 64]).unwrap(), [4; 64]);
        }
        let pending = submit(&mut executor, function, &[0; 4]).unwrap();
        let error = pending.wait().unwrap_err().error;
        assert!(matches!(error, Error::TimeLimit { .. }), "{error:?}");
        // A function that hangs does not keep its process alive.
        executor.release().unwrap();
        scene.is_free();
    }
    scene.ends();
}

#[test]
fn blocking_calls_between_asynchronous_ones_get_their_own_results() {
    let scene = Scene::small();
    let mut executor = scene.deploy(2, &warm().slots(4));
    for round in 0..50u8 {
        let first = submit(&mut executor, "echo", &[round; 64]).unwrap();
        let second = submit(&mut executor, "echo", &[round + 50; 64]).unwrap();
        assert_eq!(call(&mut executor, "echo", &[round + 100; 64]).unwrap(), [round + 100; 64]);
        assert_eq!(result(second), [round + 50; 64]);
        assert_eq!(call(&mut executor, "echo", &[round + 150; 64]).unwrap(), [round + 150; 64]);
        assert_eq!(result(first), [round; 64]);
    }
    executor.release().unwrap();
    scene.ends();
}

#[test]
fn calls_over_all_workers_go_on_past_the_receives_of_one() {
    let scene = Scene::new(Options { cores: 3, ..Options::default() });
    let mut executor = scene.deploy(3, &warm());
    let function = executor.function("echo").unwrap();
    let mut inputs: Vec<_> = (0..3).map(|_| executor.input(64).unwrap()).collect();
    let mut outputs: Vec<_> = (0..3).map(|_| executor.output(64).unwrap()).collect();
    // The original stopped at 33: one more than a queue had receives.
    for round in 0..200u8 {
        for (i, input) in (0..).zip(&mut inputs) {
            input.fill(round.wrapping_mul(3).wrapping_add(i));
        }
        let sizes = executor.invoke_all(&function, &inputs, &mut outputs).unwrap();
        assert_eq!(sizes, [64; 3]);
        for (i, output) in (0..).zip(&outputs) {
            let expected = round.wrapping_mul(3).wrapping_add(i);
            assert_eq!(output.to_vec(..).unwrap(), [expected; 64]);
        }
    }
    executor.release().unwrap();
    scene.ends();
}

#[test]
fn finished_asynchronous_calls_leave_nothing_in_memory() {
    let scene = Scene::small();
    let mut executor = scene.deploy(1, &warm());
    let function = executor.function("echo").unwrap();
    let mut buffers = Some((executor.input(64).unwrap(), executor.output(64).unwrap()));
    let mut calls = |count: u32| {
        for _ in 0..count {
            let (input, output) = buffers.take().unwrap();
            let done = executor.submit(&function, input, output).unwrap().wait().unwrap();
            buffers = Some((done.input, done.output));
        }
    };
    calls(2_000);
    // A huge page, which the kernel may make of some small ones at any time, is no memory of ours.
    nix::sys::prctl::set_thp_disable(true).unwrap();
    let before = resident_bytes();
    calls(20_000);
    let grown = resident_bytes().saturating_sub(before);
    nix::sys::prctl::set_thp_disable(false).unwrap();
    // An entry that is kept takes some hundred bytes with what it refers to: 20,000 would show.
    assert!(grown < 1 << 20, "{grown} bytes more");
    drop(executor);
    scene.ends();
}

/// Memory of this process, `/proc/self/statm`.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn single_calls_use_a_worker_that_is_free() {
    let scene = Scene::small();
    let mut executor = scene.deploy(2, &warm());
    let occupied = submit(&mut executor, "sleep_forever", &[0; 4]).unwrap();
    // All on the other worker, whichever that is: on the first one they would never be called.
    for round in 0..20 {
        assert_eq!(call(&mut executor, "echo", &[round; 16]).unwrap(), [round; 16]);
    }
    drop(occupied);
    drop(executor);
    scene.ends();
}

#[test]
fn payloads_around_the_inline_limit_arrive_whole() {
    let scene = Scene::small();
    let mut device = scene.cluster.open_device().unwrap();
    device.entry.max_inline_data = 128;
    let device = device.entry.open().unwrap();
    let client =
        Client::connect(device, scene.cluster.resource_manager_address().unwrap()).unwrap();
    let mut executor = deploy(&client, 1, &faulty(scene.directory.path()), &warm());
    for bytes in (1..=300usize).chain([4096]) {
        let input: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        assert_eq!(call(&mut executor, "echo", &input).unwrap(), input);
    }
    drop(executor);
    drop(client);
    scene.ends();
}

#[test]
fn more_calls_in_flight_than_a_queue_used_to_hold_all_end() {
    let scene = Scene::small();
    let mut executor = scene.deploy(1, &warm().slots(200));
    for round in 0..3u8 {
        let pending: Vec<_> =
            (0..200u8).map(|i| submit(&mut executor, "echo", &[i ^ round; 64]).unwrap()).collect();
        let one_more = submit(&mut executor, "sleep_ms", &[0; 4]);
        for (i, pending) in (0..200u8).zip(pending) {
            assert_eq!(result(pending), [i ^ round; 64]);
        }
        // It may have found a slot free already; if not, it is told so at once.
        match one_more {
            Ok(pending) => drop(result(pending)), // else it has a slot of the next round
            Err(error) => assert!(matches!(error, Error::AllSlotsBusy), "{error:?}"),
        }
    }
    executor.release().unwrap();
    scene.ends();
}
