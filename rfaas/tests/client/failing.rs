//! What happens when a function, a worker, an executor or a manager fails: always a typed error,
//! never a hang, never a wrong result.

use std::thread;
use std::time::{Duration, Instant};

use rfaas::{Deployment, EndReason, Error, Executor, Function};

use crate::buffers;
use crate::common::{LONG, Node, eventually};

fn functions<const N: usize>(executor: &Executor, names: [&str; N]) -> [Function; N] {
    names.map(|name| executor.function(name).unwrap())
}

/// A blocking call that is to fail.
fn fail(executor: &mut Executor, function: &Function) -> Error {
    let (input, mut output) = buffers(executor, &[1]);
    executor.invoke(function, &input, &mut output).unwrap_err()
}

#[test]
fn a_crash_fails_every_invocation_in_flight_with_its_signal() {
    let (node, mut executor) = Node::deployed(2, &Deployment::default());
    let [segfault, never, empty] = functions(&executor, ["segfault", "never", "empty"]);
    let in_flight: Vec<_> = (0..4)
        .map(|_| {
            let (input, output) = buffers(&executor, &[1]);
            executor.submit(&never, input, output).unwrap()
        })
        .collect();
    // The worker that gets it is stuck in `never`, so the crash comes from outside.
    node.kill_executor(11);
    for pending in in_flight {
        let failed = pending.wait().unwrap_err();
        assert!(matches!(failed.error, Error::FunctionCrashed { signal: 11 }), "{failed}");
    }
    for function in [&empty, &segfault] {
        let error = fail(&mut executor, function);
        assert!(matches!(error, Error::FunctionCrashed { signal: 11 }), "{error}");
    }
}

#[test]
fn a_blocking_caller_learns_which_signal_or_status_ended_the_executor() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let [segfault] = functions(&executor, ["segfault"]);
    let error = fail(&mut executor, &segfault);
    assert!(matches!(error, Error::FunctionCrashed { signal: 11 }), "{error}");

    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let [exit] = functions(&executor, ["exit"]);
    let error = fail(&mut executor, &exit);
    assert!(matches!(error, Error::FunctionExited { status: 3 }), "{error}");
}

#[test]
fn a_task_learns_which_signal_ended_the_executor() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let [segfault] = functions(&executor, ["segfault"]);
    let (input, output) = buffers(&executor, &[1]);
    let pending = executor.submit(&segfault, input, output).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let failed = runtime
        .block_on(async { tokio::time::timeout(LONG, pending).await })
        .expect("the task is woken")
        .unwrap_err();
    assert!(matches!(failed.error, Error::FunctionCrashed { signal: 11 }), "{failed}");
}

#[test]
fn after_a_crash_the_same_lease_is_deployed_again() {
    let (node, lease) = Node::leased(1);
    for round in 1..=3 {
        let mut executor = lease.deploy(crate::common::library()).unwrap();
        assert!(matches!(lease.deploy(crate::common::library()), Err(Error::AlreadyDeployed)));
        let [segfault, empty] = functions(&executor, ["segfault", "empty"]);
        let (input, mut output) = buffers(&executor, &[1]);
        assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);
        if round < 3 {
            let error = fail(&mut executor, &segfault);
            assert!(matches!(error, Error::FunctionCrashed { signal: 11 }), "{error}");
        }
        drop(executor); // the last one is alive: the next deployment waits for its end
    }
    let executor = lease.deploy(crate::common::library()).unwrap();
    assert_eq!(node.allocations(), 4);
    assert_eq!(executor.release().unwrap().invocations.get(), 5);
    assert!(matches!(
        lease.deploy(crate::common::library()),
        Err(Error::LeaseEnded { reason: EndReason::Released })
    ));
}

#[test]
fn past_its_time_limit_an_invocation_fails() {
    let limit = Duration::from_millis(50);
    let (_node, mut executor) = Node::deployed(2, &Deployment::default().invocation_timeout(limit));
    let [never] = functions(&executor, ["never"]);
    let start = Instant::now();
    let error = fail(&mut executor, &never);
    assert!(matches!(error, Error::TimeLimit { after } if after == limit), "{error}");
    assert!(start.elapsed() >= limit);
}

#[test]
fn who_waits_behind_an_invocation_past_its_time_limit_is_told_so() {
    let deployment = Deployment::default().slots(2).invocation_timeout(Duration::from_secs(3));
    let (_node, mut executor) = Node::deployed(1, &deployment);
    let [never, empty] = functions(&executor, ["never", "empty"]);
    let (input, output) = buffers(&executor, &[1]);
    let late = executor.submit(&never, input, output).unwrap();
    thread::sleep(Duration::from_millis(500)); // its time is over so much before that of the next
    let (input, mut output) = buffers(&executor, &[1]);
    let error = executor.invoke(&empty, &input, &mut output).unwrap_err();
    assert!(matches!(error, Error::WorkerLost { .. }), "{error}");
    let failed = late.wait().unwrap_err();
    assert!(matches!(failed.error, Error::TimeLimit { .. }), "{failed}");
}

#[test]
fn a_task_is_woken_when_its_invocation_is_out_of_time() {
    let deployment = Deployment::default().invocation_timeout(Duration::from_millis(50));
    let (_node, mut executor) = Node::deployed(1, &deployment);
    let [never] = functions(&executor, ["never"]);
    let (input, output) = buffers(&executor, &[1]);
    let pending = executor.submit(&never, input, output).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let failed = runtime
        .block_on(async { tokio::time::timeout(LONG, pending).await })
        .expect("the task is woken")
        .unwrap_err();
    assert!(matches!(failed.error, Error::TimeLimit { .. }), "{failed}");
}

#[test]
fn after_the_time_limit_nothing_is_written_to_the_output_any_more() {
    let deployment = Deployment::default().invocation_timeout(Duration::from_millis(20));
    for _ in 0..10 {
        let (_node, mut executor) = Node::deployed(1, &deployment);
        let [late] = functions(&executor, ["late"]);
        let (input, mut output) = buffers(&executor, &[1]);
        let error = executor.invoke(&late, &input, &mut output).unwrap_err();
        assert!(matches!(error, Error::TimeLimit { .. }), "{error}");
        output.fill(0);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(output.to_vec(..4).unwrap(), [0; 4], "a late write landed");
    }
}

#[test]
fn a_worker_that_breaks_the_protocol_is_cut_and_the_others_go_on() {
    for breach in ["oversize", "strangers"] {
        let (_node, mut executor) = Node::deployed(2, &Deployment::default());
        let [breach, empty] = functions(&executor, [breach, "empty"]);
        let error = fail(&mut executor, &breach);
        assert!(matches!(error, Error::WorkerLost { .. }), "{error}");
        let (input, mut output) = buffers(&executor, &[1]);
        for _ in 0..10 {
            assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);
        }
    }
}

#[test]
fn a_worker_that_answers_twice_is_cut_and_no_other_invocation_gets_the_second_answer() {
    let (node, mut executor) = Node::deployed(2, &Deployment::default().slots(1));
    let [twice, place] = functions(&executor, ["twice", "where"]);
    let (input, mut output) = buffers(&executor, &[1, 2, 3]);
    assert_eq!(executor.invoke(&twice, &input, &mut output).unwrap(), 3);
    // The second answer comes now: never as the result of another invocation.
    for _ in 0..100 {
        match executor.invoke(&place, &input, &mut output) {
            Ok(bytes) => assert_eq!(bytes, 2),
            Err(error) => assert!(matches!(error, Error::WorkerLost { .. }), "{error}"),
        }
    }
    assert_eq!(node.allocations(), 2, "the worker that was cut is replaced");
}

#[test]
fn a_single_lost_connection_fails_its_invocations_and_the_others_go_on() {
    let (_node, mut executor) = Node::deployed(2, &Deployment::default());
    let [unplug, empty] = functions(&executor, ["unplug", "empty"]);
    let error = fail(&mut executor, &unplug);
    assert!(matches!(error, Error::ExecutorGone), "{error}");
    let (input, mut output) = buffers(&executor, &[1]);
    for _ in 0..10 {
        assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);
    }
}

#[test]
fn an_idle_crash_is_told_to_the_next_caller() {
    let (node, mut executor) = Node::deployed(2, &Deployment::default());
    let [empty] = functions(&executor, ["empty"]);
    node.kill_executor(9);
    eventually("the executor's threads end", || node.running() == 0);
    let error = fail(&mut executor, &empty);
    assert!(matches!(error, Error::FunctionCrashed { signal: 9 }), "{error}");
    let (input, output) = buffers(&executor, &[1]);
    let failed = executor.submit(&empty, input, output).unwrap_err();
    assert!(matches!(failed.error, Error::FunctionCrashed { signal: 9 }), "{failed}");
}

#[test]
fn the_end_of_a_lease_is_told_with_its_reason() {
    let (node, lease) = Node::leased(1);
    let mut executor = lease.deploy(crate::common::library()).unwrap();
    let [empty, never] = functions(&executor, ["empty", "never"]);
    assert_eq!(lease.ending(), None);
    node.announce(EndReason::Withdrawn, 5_000);
    eventually("the end is announced", || lease.ending().is_some());
    assert_eq!(lease.ending().unwrap().reason, EndReason::Withdrawn);
    let (input, mut output) = buffers(&executor, &[1]);
    assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);

    let (input, output) = buffers(&executor, &[1]);
    let pending = executor.submit(&never, input, output).unwrap();
    node.announce(EndReason::Expired, 0);
    eventually("the end is told", || lease.ending().unwrap().reason == EndReason::Expired);
    node.kill_executor(15);
    let failed = pending.wait().unwrap_err();
    let expired = |error: &Error| matches!(error, Error::LeaseEnded { reason: EndReason::Expired });
    assert!(expired(&failed.error), "{failed}");
    assert!(expired(&fail(&mut executor, &empty)));
    assert!(expired(&executor.release().unwrap_err()));
}

#[test]
fn without_its_manager_a_dead_executor_is_gone() {
    let (node, mut executor) = Node::deployed(1, &Deployment::default());
    let [never] = functions(&executor, ["never"]);
    let (input, output) = buffers(&executor, &[1]);
    let pending = executor.submit(&never, input, output).unwrap();
    node.hang_up();
    let failed = pending.wait().unwrap_err();
    assert!(matches!(failed.error, Error::ExecutorGone), "{failed}");
    assert!(matches!(executor.release(), Err(Error::ExecutorGone)));
}

#[test]
fn releasing_with_invocations_in_flight_fails_them_and_returns_the_bill() {
    let (node, mut executor) = Node::deployed(1, &Deployment::default());
    let [never] = functions(&executor, ["never"]);
    let (input, output) = buffers(&executor, &[1]);
    let pending = executor.submit(&never, input, output).unwrap();
    let waiter = thread::spawn(move || pending.wait().unwrap_err());
    assert_eq!(executor.release().unwrap().invocations.get(), 5);
    let failed = waiter.join().unwrap();
    let released = EndReason::Released;
    assert!(matches!(failed.error, Error::LeaseEnded { reason } if reason == released), "{failed}");
    assert_eq!(node.releases(), 1);
    eventually("the connection to the manager ends", || node.clients_gone() == 1);
}
