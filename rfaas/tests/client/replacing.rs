//! Executors that are replaced: on their lease after a time limit, on another after a loss.

use std::thread;
use std::time::{Duration, Instant};

use rfaas::{Client, Deployment, EndReason, Error, Executor, Function, LeaseRequest};
use rfaas_config::ExecutorsDatabase;
use rfaas_protocol::allocation::RefusedBecause;
use rfaas_protocol::assignment::MEMORY_LIMIT;

use crate::buffers;
use crate::common::{Node, Start, eventually, library};

fn functions<const N: usize>(executor: &Executor, names: [&str; N]) -> [Function; N] {
    names.map(|name| executor.function(name).unwrap())
}

/// A call of `function` that returns one byte, which it was given.
fn echoes(executor: &mut Executor, function: &Function) {
    let (input, mut output) = buffers(executor, &[7]);
    assert_eq!(executor.invoke(function, &input, &mut output).unwrap(), 1);
    assert_eq!(output.to_vec(..1).unwrap(), [7]);
}

/// A blocking call that is to fail.
fn fail(executor: &mut Executor, function: &Function) -> Error {
    let (input, mut output) = buffers(executor, &[1]);
    executor.invoke(function, &input, &mut output).unwrap_err()
}

/// Numbers of the workers that take part when there is work for all.
fn at_work(executor: &mut Executor) -> Vec<u8> {
    let place = executor.function("where").unwrap();
    let count = executor.workers();
    let inputs: Vec<_> = (0..count).map(|_| buffers(executor, &[0]).0).collect();
    let mut outputs: Vec<_> = inputs.iter().map(|_| executor.output(8).unwrap()).collect();
    executor.invoke_all(&place, &inputs, &mut outputs).unwrap();
    let mut workers: Vec<u8> =
        outputs.iter().map(|output| output.to_vec(..1).unwrap()[0]).collect();
    workers.sort_unstable();
    workers
}

/// Of invocations: far more than one takes that returns, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(2);

fn limited(limit: Duration) -> Deployment {
    Deployment::default().invocation_timeout(limit)
}

#[test]
fn a_restart_keeps_buffers_functions_and_lease_and_fails_what_is_in_flight() {
    let (node, mut executor) = Node::deployed(2, &Deployment::default());
    let [empty, never] = functions(&executor, ["empty", "never"]);
    let (input, mut output) = buffers(&executor, &[1, 2, 3]);
    assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 3);
    let (other_input, other_output) = buffers(&executor, &[9]);
    let pending = executor.submit(&never, other_input, other_output).unwrap();
    let lease = executor.lease_id();

    executor.restart().unwrap();
    let failed = pending.wait().unwrap_err();
    assert!(matches!(failed.error, Error::WorkerLost { .. }), "{failed}");
    assert_eq!((node.allocations(), executor.lease_id()), (2, lease));
    output.fill(0);
    assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 3);
    assert_eq!(output.to_vec(..3).unwrap(), [1, 2, 3]);
    // The buffers of the failed one too.
    let pending = executor.submit(&empty, failed.input, failed.output).unwrap();
    assert_eq!(pending.wait().unwrap().output.to_vec(..1).unwrap(), [9]);
    assert_eq!(at_work(&mut executor), [0, 1]);
    assert!(matches!(executor.lease().deploy(library()), Err(Error::AlreadyDeployed)));
    assert_eq!(executor.release().unwrap().invocations.get(), 5);
}

#[test]
fn after_a_time_limit_the_same_executor_serves_with_all_its_workers() {
    for cores in [1, 2] {
        let (node, mut executor) = Node::deployed(cores, &limited(LIMIT));
        let [empty, never] = functions(&executor, ["empty", "never"]);
        let all: Vec<u8> = (0..u8::try_from(cores).unwrap()).collect();
        // Found by a blocking call, by one of many, by an asynchronous one.
        let error = fail(&mut executor, &never);
        assert!(matches!(error, Error::TimeLimit { .. }), "{error}");
        echoes(&mut executor, &empty);
        let error = fail(&mut executor, &never);
        assert!(matches!(error, Error::TimeLimit { .. }), "{error}");
        assert_eq!(at_work(&mut executor), all);
        let (input, output) = buffers(&executor, &[1]);
        let failed = executor.submit(&never, input, output).unwrap().wait().unwrap_err();
        assert!(matches!(failed.error, Error::TimeLimit { .. }), "{failed}");
        let pending = executor.submit(&empty, failed.input, failed.output).unwrap();
        assert_eq!(pending.wait().unwrap().bytes, 1);
        assert_eq!(at_work(&mut executor), all);
        assert_eq!(node.allocations(), 4);
    }
}

#[test]
fn a_process_that_is_to_be_replaced_ends_before_the_next_call() {
    let (node, mut executor) = Node::deployed(2, &limited(LIMIT));
    let [never] = functions(&executor, ["never"]);
    let error = fail(&mut executor, &never);
    assert!(matches!(error, Error::TimeLimit { .. }), "{error}");
    eventually("the hung process has ended", || node.running() == 0);
    assert_eq!(node.allocations(), 1);
}

#[test]
fn with_a_call_in_flight_the_workers_that_are_left_go_on() {
    let limit = 2 * LIMIT;
    let (node, mut executor) = Node::deployed(2, &limited(limit));
    let [never, hold, flush] = functions(&executor, ["never", "hold", "flush"]);
    let (input, output) = buffers(&executor, &[1]);
    let late = executor.submit(&never, input, output).unwrap();
    thread::sleep(limit / 2);
    let (input, output) = buffers(&executor, &[2]);
    let held = executor.submit(&hold, input, output).unwrap(); // has half of the limit left then:
    let failed = late.wait().unwrap_err();
    assert!(matches!(failed.error, Error::TimeLimit { .. }), "{failed}");

    let (input, mut output) = buffers(&executor, &[3]);
    assert_eq!(executor.invoke(&flush, &input, &mut output).unwrap(), 0);
    let held = held.wait().unwrap();
    assert_eq!(held.output.to_vec(..held.bytes).unwrap(), [2]);
    assert_eq!(node.allocations(), 1);
    assert_eq!(at_work(&mut executor), [0, 1], "now that nothing is in flight");
    assert_eq!(node.allocations(), 2);
}

#[test]
fn a_restart_that_fails_is_told_and_the_next_call_tries_again() {
    let (node, mut executor) = Node::deployed(1, &limited(LIMIT));
    let [empty, never] = functions(&executor, ["empty", "never"]);
    let error = fail(&mut executor, &never);
    assert!(matches!(error, Error::TimeLimit { .. }), "{error}");
    node.refuse(2, RefusedBecause::SpawnFailed);
    for _ in 0..2 {
        let error = fail(&mut executor, &empty);
        assert!(matches!(error, Error::AllocationRefused { .. }), "{error}");
    }
    echoes(&mut executor, &empty);

    node.announce(EndReason::Withdrawn, 0);
    let error = executor.restart().unwrap_err();
    let withdrawn = EndReason::Withdrawn;
    assert!(matches!(error, Error::LeaseEnded { reason } if reason == withdrawn), "{error}");
    let error = fail(&mut executor, &empty);
    assert!(matches!(error, Error::LeaseEnded { reason } if reason == withdrawn), "{error}");
}

#[test]
fn a_crashed_executor_is_replaced_only_if_that_is_asked_for() {
    let (node, mut executor) = Node::deployed(2, &Deployment::default());
    let [segfault, empty] = functions(&executor, ["segfault", "empty"]);
    for function in [&segfault, &empty] {
        let error = fail(&mut executor, function);
        assert!(matches!(error, Error::FunctionCrashed { signal: 11 }), "{error}");
    }
    assert_eq!(node.allocations(), 1);
    executor.restart().unwrap();
    echoes(&mut executor, &empty);
}

/// Two nodes and an executor of `cores` cores on the first.
fn two_nodes(cores: u32, deployment: &Deployment) -> (Node, Node, Executor) {
    let (first, second) = (Node::start(Start::Well), Node::start(Start::Well));
    let executors = vec![first.entry("first", 9), second.entry("second", 9)];
    let database = ExecutorsDatabase { executors };
    let client = Client::with_executors(first.device.clone(), database).unwrap();
    let lease = client.lease(LeaseRequest::new(cores, 64)).unwrap();
    let executor = lease.deploy_with(library(), deployment).unwrap();
    assert_eq!(executor.node(), "first");
    (first, second, executor)
}

#[test]
fn an_idempotent_call_goes_on_elsewhere_when_the_lease_or_the_node_is_lost() {
    let losses: [fn(&Node); 3] = [
        |node| node.announce(EndReason::Withdrawn, 0),
        |node| node.announce(EndReason::NodeLost, 0),
        Node::hang_up,
    ];
    for lose in losses {
        let (first, second, mut executor) = two_nodes(2, &Deployment::default());
        let [empty] = functions(&executor, ["empty"]);
        let (input, mut output) = buffers(&executor, &[1, 2, 3]);
        assert_eq!(executor.invoke_idempotent(&empty, &input, &mut output).unwrap(), 3);
        assert_eq!(executor.node(), "first");
        lose(&first);
        first.kill_executor(15);
        eventually("its executor ends", || first.running() == 0);
        output.fill(0);
        assert_eq!(executor.invoke_idempotent(&empty, &input, &mut output).unwrap(), 3);
        assert_eq!(output.to_vec(..3).unwrap(), [1, 2, 3]);
        assert_eq!((executor.node(), executor.lease().node()), ("second", "second"));
        assert_eq!(at_work(&mut executor), [0, 1]);
        drop(executor);
        assert_eq!((first.allocations(), second.allocations()), (1, 1));
        eventually("the second lease is given back", || second.releases() == 1);
    }
}

#[test]
fn an_idempotent_call_that_is_in_flight_when_its_node_is_lost_runs_again() {
    let (first, second, mut executor) = two_nodes(1, &Deployment::default());
    let [sleep] = functions(&executor, ["sleep"]);
    let (input, mut output) = buffers(&executor, &[255]);
    thread::scope(|scope| {
        scope.spawn(|| {
            eventually("it is in flight", || first.taken() == 1);
            first.hang_up();
        });
        assert_eq!(executor.invoke_idempotent(&sleep, &input, &mut output).unwrap(), 1);
    });
    assert_eq!(output.to_vec(..1).unwrap(), [255]);
    assert_eq!((executor.node(), second.allocations()), ("second", 1));
}

#[test]
fn an_idempotent_call_moves_before_an_announced_end_unless_others_are_in_flight() {
    let (first, second, mut executor) = two_nodes(1, &Deployment::default());
    let [empty, hold, flush] = functions(&executor, ["empty", "hold", "flush"]);
    let (input, mut output) = buffers(&executor, &[5]);
    let (other_input, other_output) = buffers(&executor, &[6]);
    let held = executor.submit(&hold, other_input, other_output).unwrap();
    first.announce(EndReason::Withdrawn, 30_000);
    eventually("the end is announced", || executor.lease().ending().is_some());
    assert_eq!(executor.invoke_idempotent(&empty, &input, &mut output).unwrap(), 1);
    assert_eq!(executor.node(), "first");
    assert_eq!(executor.invoke(&flush, &input, &mut output).unwrap(), 0);
    assert_eq!(held.wait().unwrap().bytes, 1);

    // If nobody takes over, it goes on where it is.
    second.refuse(1, RefusedBecause::BadRequest); // for this reason no other node is asked
    assert_eq!(executor.invoke_idempotent(&empty, &input, &mut output).unwrap(), 1);
    assert_eq!(executor.node(), "first");
    eventually("it moves", || {
        assert_eq!(executor.invoke_idempotent(&empty, &input, &mut output).unwrap(), 1);
        executor.node() == "second"
    });
    assert_eq!(output.to_vec(..1).unwrap(), [5]);
    eventually("the lease is given back before its end", || first.releases() >= 1);
    eventually("its executor ends", || first.running() == 0);
}

#[test]
fn an_idempotent_call_gives_up_at_its_deadline_with_the_last_error() {
    let timeout = Duration::from_secs(2); // in which a busy machine asks once, and deploys
    let (node, mut executor) = Node::deployed(1, &Deployment::default().failover_timeout(timeout));
    let [empty] = functions(&executor, ["empty"]);
    let (input, mut output) = buffers(&executor, &[1]);
    node.hang_up();
    let full = RefusedBecause::NoCapacity;
    node.refuse(u32::MAX, full);
    let start = Instant::now();
    let error = executor.invoke_idempotent(&empty, &input, &mut output).unwrap_err();
    assert!(start.elapsed() >= timeout);
    assert!(
        matches!(error, Error::AllocationRefused { because, .. } if because == full),
        "{error}"
    );
    node.refuse(0, full);
    assert_eq!(executor.invoke_idempotent(&empty, &input, &mut output).unwrap(), 1);
}

#[test]
fn what_a_function_does_itself_is_not_repeated() {
    let (first, second, mut executor) = two_nodes(1, &limited(LIMIT));
    let names = ["never", "grow", "segfault", "exit"];
    let [never, grow, segfault, exit] = functions(&executor, names);
    let (input, mut output) = buffers(&executor, &100u32.to_le_bytes());
    let mut told = |executor: &mut Executor, function| {
        executor.invoke_idempotent(function, &input, &mut output).unwrap_err()
    };
    let error = told(&mut executor, &never);
    assert!(matches!(error, Error::TimeLimit { .. }), "{error}");
    let error = told(&mut executor, &grow);
    assert!(matches!(error, Error::OutputTooLarge { needed: 100, .. }), "{error}");
    assert_eq!(first.allocations(), 2); // replaced after the time limit
    let error = told(&mut executor, &segfault);
    assert!(matches!(error, Error::FunctionCrashed { signal: 11 }), "{error}");
    assert_eq!(first.allocations(), 2);
    // Another call was what ended the executor: this one gets a new process, on the same lease.
    let error = told(&mut executor, &exit);
    assert!(matches!(error, Error::FunctionExited { status: 3 }), "{error}");
    assert_eq!((first.allocations(), second.allocations()), (3, 0));
}

#[test]
fn an_executor_that_was_killed_is_replaced_on_its_lease_once_in_a_call() {
    let (first, second, mut executor) = two_nodes(1, &Deployment::default());
    let [empty, never] = functions(&executor, ["empty", "never"]);
    let (input, mut output) = buffers(&executor, &[1]);
    first.kill_executor(9);
    eventually("its threads end", || first.running() == 0);
    assert_eq!(executor.invoke_idempotent(&empty, &input, &mut output).unwrap(), 1);
    assert_eq!((first.allocations(), second.allocations()), (2, 0));

    let before = first.taken();
    thread::scope(|scope| {
        let call = scope.spawn(|| executor.invoke_idempotent(&never, &input, &mut output));
        for process in [2, 3] {
            eventually("a process runs", || first.allocations() == process && first.running() == 2);
            eventually("it is in flight", || first.taken() == before + process - 1);
            first.kill_executor(9);
        }
        let error = call.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::FunctionCrashed { signal: 9 }), "{error}");
    });
    assert_eq!((first.allocations(), second.allocations()), (3, 0));
}

#[test]
fn a_process_that_a_function_has_ended_is_replaced_by_the_next_call_if_the_deployment_says_so() {
    let (node, mut executor) = Node::deployed(2, &Deployment::default().restart(true));
    let [empty, segfault, exit, never] =
        functions(&executor, ["empty", "segfault", "exit", "never"]);
    let (input, mut output) = buffers(&executor, &[7]);
    assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);
    let error = executor.invoke(&segfault, &input, &mut output).unwrap_err();
    assert!(matches!(error, Error::FunctionCrashed { signal: 11 }), "{error}");
    assert_eq!(node.allocations(), 1, "not before the next call");
    assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);
    assert_eq!(output.to_vec(..1).unwrap(), [7]);
    let error = executor.invoke(&exit, &input, &mut output).unwrap_err();
    assert!(matches!(error, Error::FunctionExited { status: 3 }), "{error}");
    // The other ways to call.
    let inputs: Vec<_> = (0..5).map(|_| buffers(&executor, &[7]).0).collect();
    let mut outputs: Vec<_> = (0..5).map(|_| executor.output(64).unwrap()).collect();
    assert_eq!(executor.invoke_all(&empty, &inputs, &mut outputs).unwrap(), [1; 5]);
    assert_eq!(node.allocations(), 3);
    let in_flight: Vec<_> = (0..2)
        .map(|_| {
            let (input, output) = buffers(&executor, &[1]);
            executor.submit(&never, input, output).unwrap()
        })
        .collect();
    node.kill_executor(MEMORY_LIMIT);
    for pending in in_flight {
        let error = pending.wait().unwrap_err().error;
        let told = matches!(error, Error::MemoryLimit { leased_mb: 64, memory: Some(_) });
        assert!(told && error.to_string().contains("had 192 MB of 192"), "{error}");
    }
    let (more_input, more_output) = buffers(&executor, &[9]);
    let pending = executor.submit(&empty, more_input, more_output).unwrap();
    assert_eq!(pending.wait().unwrap().bytes, 1);
    assert_eq!(node.allocations(), 4);
    let mut call = executor.in_place(&empty, 1).unwrap();
    call.write(0, &[5]).unwrap();
    assert_eq!(call.invoke().unwrap().to_vec(..).unwrap(), [5]);
}

#[test]
fn calls_that_have_begun_are_not_made_again_by_a_restart() {
    let (node, mut executor) = Node::deployed(1, &Deployment::default().restart(true).slots(1));
    let [segfault, empty] = functions(&executor, ["segfault", "empty"]);
    let inputs: Vec<_> = (0..3).map(|_| buffers(&executor, &[1]).0).collect();
    let mut outputs: Vec<_> = (0..3).map(|_| executor.output(64).unwrap()).collect();
    let error = executor.invoke_all(&segfault, &inputs, &mut outputs).unwrap_err();
    assert!(matches!(error, Error::FunctionCrashed { signal: 11 }), "{error}");
    assert_eq!(node.allocations(), 1);
    let (input, mut output) = buffers(&executor, &[1]);
    assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);
    assert_eq!(node.allocations(), 2);
}
