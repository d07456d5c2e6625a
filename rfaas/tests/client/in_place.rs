//! Calls in place.

use std::thread;
use std::time::{Duration, Instant};

use rfaas::{Deployment, Error, Spin};

use crate::buffers;
use crate::common::{Node, eventually};

/// Returns bytes that differ between calls and with their place.
fn pattern(bytes: usize, call: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 31 % 251 + call) as u8).collect()
}

#[test]
fn a_call_in_place_returns_the_functions_bytes_at_every_size() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    let mut call = executor.in_place(&empty, 1).unwrap();
    call.write(0, &[9]).unwrap();
    let mut result = call.invoke().unwrap();
    assert_eq!(result.to_vec(..).unwrap(), [9]);
    for (number, bytes) in [0, 1, 7, 64, 4096, 1 << 20, 64, 0, 1 << 20].into_iter().enumerate() {
        let sent = pattern(bytes, number);
        let mut call = result.again(bytes).unwrap();
        assert_eq!(call.len(), bytes);
        call.write(0, &sent).unwrap();
        result = call.invoke().unwrap();
        assert_eq!((result.len(), result.is_empty()), (bytes, bytes == 0));
        assert_eq!(result.to_vec(..).unwrap(), sent);
        let mut tail = vec![0; bytes / 2];
        result.read(bytes - bytes / 2, &mut tail).unwrap();
        assert_eq!(tail, sent[bytes - bytes / 2..]);
    }
}

#[test]
fn calls_in_place_and_others_take_turns() {
    for spin in [Spin::Always, Spin::Never] {
        let (_node, mut executor) = Node::deployed(2, &Deployment::default().slots(2).spin(spin));
        let empty = executor.function("empty").unwrap();
        let (mut input, mut output) = buffers(&executor, &[0; 64]);
        for number in 0..200 {
            let mut call = executor.in_place(&empty, 64).unwrap();
            call.fill(number).unwrap();
            let result = call.invoke().unwrap();
            assert_eq!(result.to_vec(..).unwrap(), [number; 64]);
            drop(result);
            input.fill(number + 1);
            assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 64);
            assert_eq!(output.to_vec(..).unwrap(), [number + 1; 64]);
        }
    }
}

#[test]
fn seventy_thousand_calls_in_place_all_get_their_own_result() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().slots(2));
    let empty = executor.function("empty").unwrap();
    let mut call = executor.in_place(&empty, 4).unwrap();
    for i in 0u32..70_000 {
        call.write(0, &i.to_le_bytes()).unwrap();
        let result = call.invoke().unwrap();
        let mut bytes = [0; 4];
        result.read(0, &mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), i);
        call = result.again(4).unwrap();
    }
}

#[test]
fn input_and_output_are_aligned_and_stay_where_they_are() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().input_bytes(100).slots(3));
    let empty = executor.function("empty").unwrap();
    let mut places = Vec::new();
    for _ in 0..3 {
        let mut call = executor.in_place(&empty, 100).unwrap();
        let input = call.as_mut_ptr();
        let result = call.invoke().unwrap();
        let output = result.as_ptr();
        assert_eq!((input.addr() % 64, output.addr() % 64), (0, 0));
        let mut call = result.again(50).unwrap();
        assert_eq!(call.as_mut_ptr(), input);
        assert_eq!(call.invoke().unwrap().as_ptr(), output);
        places.push((input, output));
    }
    assert_eq!(places[0], places[2], "and are mapped once");
}

#[test]
fn a_call_in_place_has_the_bounds_that_were_asked_for() {
    let (_node, mut executor) =
        Node::deployed(1, &Deployment::default().input_bytes(100).output_bytes(32));
    let [empty, grow] = ["empty", "grow"].map(|name| executor.function(name).unwrap());
    let error = executor.in_place(&empty, 101).unwrap_err();
    assert!(matches!(error, Error::InputTooLarge { bytes: 101, max: 100 }), "{error}");

    let out_of_bounds = |error: Error| {
        assert!(matches!(error, Error::Rdma(rdmalib::Error::OutOfBounds { .. })), "{error}");
    };
    let mut call = executor.in_place(&empty, 10).unwrap();
    out_of_bounds(call.write(1, &[0; 10]).unwrap_err());
    out_of_bounds(call.write(usize::MAX, &[1]).unwrap_err());
    let result = call.invoke().unwrap();
    out_of_bounds(result.read(1, &mut [0; 10]).unwrap_err());
    out_of_bounds(result.to_vec(..11).unwrap_err());
    out_of_bounds(result.to_vec(usize::MAX..).unwrap_err());
    let error = result.again(101).unwrap_err();
    assert!(matches!(error, Error::InputTooLarge { bytes: 101, max: 100 }), "{error}");

    let mut call = executor.in_place(&grow, 4).unwrap();
    call.write(0, &33u32.to_le_bytes()).unwrap();
    let error = call.invoke().unwrap_err();
    assert!(matches!(error, Error::OutputTooLarge { needed: 33, capacity: 32 }), "{error}");
    let mut call = executor.in_place(&grow, 4).unwrap();
    call.write(0, &32u32.to_le_bytes()).unwrap();
    assert_eq!(call.invoke().unwrap().to_vec(..).unwrap(), [32; 32]);
}

#[test]
fn a_function_of_another_executor_is_refused_in_place_too() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let (_other_node, other) = Node::deployed(1, &Deployment::default());
    let foreign = other.function("empty").unwrap();
    let error = executor.in_place(&foreign, 1).unwrap_err();
    assert!(matches!(error, Error::Foreign("function")), "{error}");
}

#[test]
fn a_call_in_place_needs_a_free_slot() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().slots(2));
    let [hold, flush, empty] =
        ["hold", "flush", "empty"].map(|name| executor.function(name).unwrap());
    let (input, output) = buffers(&executor, &[1]);
    let first = executor.submit(&hold, input, output).unwrap();
    // One is left.
    let mut call = executor.in_place(&empty, 64).unwrap();
    call.fill(5).unwrap();
    let result = call.invoke().unwrap();
    assert_eq!(result.to_vec(..).unwrap(), [5; 64]);
    drop(result);
    let (input, output) = buffers(&executor, &[2]);
    let second = executor.submit(&flush, input, output).unwrap();
    assert_eq!((first.wait().unwrap().bytes, second.wait().unwrap().bytes), (1, 0));

    let pending = [1, 2].map(|byte| {
        let (input, output) = buffers(&executor, &[byte]);
        executor.submit(&hold, input, output).unwrap()
    });
    let error = executor.in_place(&empty, 64).unwrap_err();
    assert!(matches!(error, Error::AllSlotsBusy), "{error}");
    drop(pending);
    // Nobody asks for their results any more, but the slots are in use.
    let error = executor.in_place(&empty, 64).unwrap_err();
    assert!(matches!(error, Error::AllSlotsBusy), "{error}");
}

#[test]
fn a_slot_freed_behind_a_call_in_place_does_not_take_its_place() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().slots(2));
    let [sleep, empty] = ["sleep", "empty"].map(|name| executor.function(name).unwrap());
    let (input, output) = buffers(&executor, &[20]);
    let pending = executor.submit(&sleep, input, output).unwrap();
    let mut call = executor.in_place(&empty, 64).unwrap();
    call.fill(1).unwrap();
    assert_eq!(pending.wait().unwrap().bytes, 1);
    let result = call.invoke().unwrap();
    assert_eq!(result.to_vec(..).unwrap(), [1; 64]);
}

#[test]
fn a_result_in_place_is_waited_for_beside_others() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let sleep = executor.function("sleep").unwrap();
    let (input, output) = buffers(&executor, &[10]);
    let pending = executor.submit(&sleep, input, output).unwrap();
    thread::scope(|scope| {
        let other = scope.spawn(move || pending.wait().unwrap().bytes);
        let mut call = executor.in_place(&sleep, 8).unwrap();
        for _ in 0..5 {
            call.fill(3).unwrap();
            let result = call.invoke().unwrap();
            assert_eq!(result.to_vec(..).unwrap(), [3; 8]);
            call = result.again(8).unwrap();
        }
        drop(call);
        assert_eq!(other.join().unwrap(), 1);
    });
}

#[test]
fn what_ends_the_executor_is_told_to_a_call_in_place() {
    for (name, status) in [("segfault", None), ("exit", Some(3))] {
        let (_node, mut executor) = Node::deployed(1, &Deployment::default());
        let function = executor.function(name).unwrap();
        for _ in 0..2 {
            let ended = match executor.in_place(&function, 1) {
                Ok(call) => call.invoke().unwrap_err(),
                Err(error) => error,
            };
            match status {
                None => assert!(matches!(ended, Error::FunctionCrashed { signal: 11 }), "{ended}"),
                Some(s) => {
                    assert!(matches!(ended, Error::FunctionExited { status } if status == s));
                }
            }
        }
    }
}

#[test]
fn an_executor_that_ends_before_the_call_or_behind_its_result_is_told_too() {
    let (node, mut executor) = Node::deployed(1, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    let mut call = executor.in_place(&empty, 64).unwrap();
    call.fill(1).unwrap();
    node.kill_executor(9);
    eventually("the executor's threads end", || node.running() == 0);
    call.fill(2).unwrap(); // the memory is still there
    let error = call.invoke().unwrap_err();
    assert!(matches!(error, Error::FunctionCrashed { signal: 9 }), "{error}");
    let error = executor.in_place(&empty, 64).unwrap_err();
    assert!(matches!(error, Error::FunctionCrashed { signal: 9 }), "{error}");

    let (node, mut executor) = Node::deployed(1, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    let mut call = executor.in_place(&empty, 64).unwrap();
    call.fill(3).unwrap();
    let result = call.invoke().unwrap();
    node.kill_executor(9);
    eventually("the executor's threads end", || node.running() == 0);
    assert_eq!(result.to_vec(..).unwrap(), [3; 64], "a result that is there stays");
    let error = result.again(64).unwrap().invoke().unwrap_err();
    assert!(matches!(error, Error::FunctionCrashed { signal: 9 }), "{error}");
}

#[test]
fn past_its_time_limit_a_call_in_place_fails_and_the_next_has_a_new_executor() {
    let limit = Duration::from_millis(50);
    let (node, mut executor) = Node::deployed(1, &Deployment::default().invocation_timeout(limit));
    let [never, empty] = ["never", "empty"].map(|name| executor.function(name).unwrap());
    let start = Instant::now();
    let error = executor.in_place(&never, 1).unwrap().invoke().unwrap_err();
    assert!(matches!(error, Error::TimeLimit { after } if after == limit), "{error}");
    assert!(start.elapsed() >= limit);
    for byte in [1, 2] {
        let mut call = executor.in_place(&empty, 64).unwrap();
        call.fill(byte).unwrap();
        assert_eq!(call.invoke().unwrap().to_vec(..).unwrap(), [byte; 64]);
    }
    assert_eq!(node.allocations(), 2);
}

#[test]
fn a_call_in_place_that_was_not_posted_ends_no_process() {
    let deployment = Deployment::default().slots(2).invocation_timeout(Duration::from_secs(2));
    let (node, mut executor) = Node::deployed(1, &deployment);
    let never = executor.function("never").unwrap();
    let empty = executor.function("empty").unwrap();
    let (input, output) = buffers(&executor, &[1]);
    let pending = executor.submit(&never, input, output).unwrap();
    let call = executor.in_place(&empty, 1).unwrap();
    assert!(matches!(pending.wait().unwrap_err().error, Error::TimeLimit { .. }));
    let error = call.invoke().unwrap_err(); // its worker is gone, and so it was not posted
    assert!(matches!(error, Error::WorkerLost { .. }), "{error}");
    thread::sleep(Duration::from_millis(300)); // what ends a process ends it sooner
    assert_eq!(node.running(), 1);
    drop(executor.in_place(&empty, 1).unwrap());
    assert_eq!(node.allocations(), 2, "the next call has it replaced");
}

#[test]
fn after_a_restart_calls_in_place_are_in_the_new_executors_memory() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    for byte in 0..5 {
        let mut call = executor.in_place(&empty, 64).unwrap();
        call.fill(byte).unwrap();
        assert_eq!(call.invoke().unwrap().to_vec(..).unwrap(), [byte; 64]);
        executor.restart().unwrap();
    }
}

#[test]
fn a_worker_that_breaks_the_protocol_in_place_is_cut_and_the_others_go_on() {
    let ways = [("misplaced", 0), ("misplaced", 1), ("misplaced", 2), ("misplaced", 3)];
    for (breach, way) in ways.into_iter().chain([("oversize", 0), ("strangers", 0)]) {
        let (_node, mut executor) = Node::deployed(2, &Deployment::default());
        let [breach, empty] = [breach, "empty"].map(|name| executor.function(name).unwrap());
        // Another invocation keeps the executor from being replaced, to see that the other worker goes on.
        let hold = executor.function("hold").unwrap();
        let mut call = executor.in_place(&breach, 1).unwrap();
        call.fill(way).unwrap();
        let error = call.invoke().unwrap_err();
        assert!(matches!(error, Error::WorkerLost { .. }), "{error}");
        let (input, output) = buffers(&executor, &[1]);
        let _held = executor.submit(&hold, input, output).unwrap();
        for byte in 0..10 {
            let mut call = executor.in_place(&empty, 8).unwrap();
            call.fill(byte).unwrap();
            assert_eq!(call.invoke().unwrap().to_vec(..).unwrap(), [byte; 8]);
        }
    }
}

#[test]
fn a_connection_that_ends_alone_fails_the_call_in_place_and_the_next_is_on_another_worker() {
    let (_node, mut executor) = Node::deployed(2, &Deployment::default());
    let [unplug, empty] = ["unplug", "empty"].map(|name| executor.function(name).unwrap());
    let error = executor.in_place(&unplug, 1).unwrap().invoke().unwrap_err();
    assert!(matches!(error, Error::ExecutorGone), "{error}");
    let mut call = executor.in_place(&empty, 8).unwrap();
    call.fill(4).unwrap();
    assert_eq!(call.invoke().unwrap().to_vec(..).unwrap(), [4; 8]);
}

#[test]
fn a_node_that_is_lost_ends_a_call_in_place() {
    let (node, mut executor) = Node::deployed(1, &Deployment::default());
    let never = executor.function("never").unwrap();
    let call = executor.in_place(&never, 1).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            node.hang_up();
        });
        let error = call.invoke().unwrap_err();
        assert!(matches!(error, Error::ExecutorGone), "{error}");
    });
}
