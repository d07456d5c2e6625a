//! Asynchronous invocations: as futures in a runtime and without one, waited for in threads, mixed
//! with blocking ones, finished in any order, dropped.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::Duration;

use rfaas::{Deployment, Error, Executor, Function, Input, Output, Pending, Spin};

use crate::buffers;
use crate::common::{LONG, Node};

/// All a runtime needs: sleep until woken, poll.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Arc::new(Unpark(thread::current())).into();
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park_timeout(LONG),
        }
    }
}

/// Submits `bytes` to `function`.
fn submit(executor: &mut Executor, function: &Function, bytes: &[u8]) -> Pending {
    let (input, output) = buffers(executor, bytes);
    executor.submit(function, input, output).unwrap()
}

fn bytes(completed: &rfaas::Completed) -> Vec<u8> {
    completed.output.to_vec(..completed.bytes).unwrap()
}

#[test]
fn a_result_can_be_waited_for() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    let completed = submit(&mut executor, &empty, b"hello").wait().unwrap();
    assert_eq!(bytes(&completed), b"hello");
    assert_eq!(completed.input.to_vec(..).unwrap(), b"hello");
}

#[test]
fn a_result_can_be_awaited_without_a_runtime() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    let sleep = executor.function("sleep").unwrap();
    for function in [&empty, &sleep] {
        let completed = block_on(submit(&mut executor, function, &[20])).unwrap();
        assert_eq!(bytes(&completed), [20]);
    }
}

#[test]
fn results_can_be_awaited_in_tokio() {
    let (_node, executor) = Node::deployed(2, &Deployment::default().slots(4));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async move {
        let mut executor = executor;
        let sleep = executor.function("sleep").unwrap();
        for _ in 0..20 {
            let tasks: Vec<_> = (0..8u8)
                .map(|i| {
                    let pending = submit(&mut executor, &sleep, &[i % 3, i]);
                    tokio::spawn(async move { (i, bytes(&pending.await.unwrap())) })
                })
                .collect();
            for task in tasks {
                let (i, result) = task.await.unwrap();
                assert_eq!(result, [i % 3, i]);
            }
        }
    });
}

#[test]
fn results_come_in_any_order() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().slots(8));
    let hold = executor.function("hold").unwrap();
    let flush = executor.function("flush").unwrap();
    for _ in 0..50 {
        let held: Vec<_> = (0..7u8).map(|i| submit(&mut executor, &hold, &[i])).collect();
        let (input, mut output) = buffers(&executor, &[]);
        assert_eq!(executor.invoke(&flush, &input, &mut output).unwrap(), 0);
        // Asked for in yet another order.
        let mut held: Vec<_> = held.into_iter().enumerate().collect();
        held.rotate_left(3);
        for (i, pending) in held {
            assert_eq!(bytes(&pending.wait().unwrap()), [i as u8]);
        }
    }
}

#[test]
fn finished_results_that_nobody_took_keep_no_slot() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().slots(2));
    let empty = executor.function("empty").unwrap();
    let mut pending: Vec<Pending> = Vec::new();
    let (input, mut output) = buffers(&executor, &[200]);
    for i in 0..100u8 {
        pending.push(submit(&mut executor, &empty, &[i]));
        assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);
    }
    for (i, pending) in pending.into_iter().enumerate() {
        assert_eq!(bytes(&pending.wait().unwrap()), [i as u8]);
    }
}

#[test]
fn with_all_slots_in_flight_a_submission_is_refused_and_gives_the_buffers_back() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().slots(2));
    let hold = executor.function("hold").unwrap();
    let empty = executor.function("empty").unwrap();
    let held = submit(&mut executor, &hold, &[1]);
    let slow = submit(&mut executor, &hold, &[2]);
    let (input, output) = buffers(&executor, &[3]);
    let failed = executor.submit(&empty, input, output).unwrap_err();
    assert!(matches!(failed.error, Error::AllSlotsBusy), "{}", failed.error);
    assert_eq!(failed.input.to_vec(..).unwrap(), [3]);
    // The worker is stuck for good with both slots held; give the executor up.
    drop(executor);
    for pending in [held, slow] {
        let failed = pending.wait().unwrap_err();
        assert!(matches!(failed.error, Error::WorkerLost { .. }), "{}", failed.error);
    }
}

#[test]
fn blocking_and_asynchronous_invocations_mix() {
    let (_node, mut executor) = Node::deployed(2, &Deployment::default().slots(4));
    let sleep = executor.function("sleep").unwrap();
    let empty = executor.function("empty").unwrap();
    let (input, mut output) = buffers(&executor, b"blocking");
    for round in 0..30u8 {
        let first = submit(&mut executor, &sleep, &[1, round]);
        let second = submit(&mut executor, &empty, &[2, round]);
        let awaited = thread::spawn(move || block_on(first).unwrap());
        assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 8);
        assert_eq!(output.to_vec(..8).unwrap(), b"blocking");
        let third = submit(&mut executor, &sleep, &[1, round]);
        assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 8);
        assert_eq!(bytes(&second.wait().unwrap()), [2, round]);
        assert_eq!(bytes(&block_on(third).unwrap()), [1, round]);
        assert_eq!(bytes(&awaited.join().unwrap()), [1, round]);
    }
}

#[test]
fn several_threads_and_tasks_wait_at_once_and_none_misses_its_result() {
    for spin in [Spin::Always, Spin::Never, Spin::For(Duration::from_millis(1))] {
        let deployment = Deployment::default().slots(8).spin(spin);
        let (_node, mut executor) = Node::deployed(2, &deployment);
        let sleep = executor.function("sleep").unwrap();
        let empty = executor.function("empty").unwrap();
        let (input, mut output) = buffers(&executor, &[0]);
        for round in 0..10u8 {
            let waiters: Vec<_> = (0..12u8)
                .map(|i| {
                    let pending = submit(&mut executor, &sleep, &[(i + round) % 4, i, round]);
                    thread::spawn(move || {
                        let completed = match i % 2 {
                            0 => pending.wait(),
                            _ => block_on(pending),
                        };
                        (i, bytes(&completed.unwrap()))
                    })
                })
                .collect();
            for _ in 0..5 {
                assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);
            }
            for waiter in waiters {
                let (i, result) = waiter.join().unwrap();
                assert_eq!(result, [(i + round) % 4, i, round]);
            }
        }
    }
}

#[test]
fn one_call_over_all_workers_works_while_others_are_in_flight() {
    let (_node, mut executor) = Node::deployed(2, &Deployment::default().slots(2));
    let sleep = executor.function("sleep").unwrap();
    let slow = submit(&mut executor, &sleep, &[30]);
    let inputs: Vec<_> = (0..20u8).map(|i| buffers(&executor, &[i % 2, i]).0).collect();
    let mut outputs: Vec<_> = inputs.iter().map(|_| executor.output(2).unwrap()).collect();
    let sizes = executor.invoke_all(&sleep, &inputs, &mut outputs).unwrap();
    assert_eq!(sizes, [2; 20]);
    for (i, output) in outputs.iter().enumerate() {
        assert_eq!(output.to_vec(..).unwrap(), [i as u8 % 2, i as u8]);
    }
    assert_eq!(bytes(&slow.wait().unwrap()), [30]);
}

#[test]
fn a_dropped_invocation_frees_its_slot_when_its_worker_has_finished() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().slots(2));
    let sleep = executor.function("sleep").unwrap();
    let empty = executor.function("empty").unwrap();
    let (input, mut output) = buffers(&executor, &[5]);
    for i in 0..20u8 {
        drop(submit(&mut executor, &sleep, &[2]));
        if i % 2 == 0 {
            let mut polled = submit(&mut executor, &sleep, &[2]);
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(pin!(&mut polled).poll(&mut context).is_pending());
            drop(polled);
        }
        // Waits for a slot where none is free.
        assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);
        assert_eq!(output.to_vec(..1).unwrap(), [5]);
    }
}

#[test]
fn a_future_may_change_its_task_and_be_waited_for_in_the_end() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let sleep = executor.function("sleep").unwrap();
    let mut pending = submit(&mut executor, &sleep, &[20]);
    for _ in 0..3 {
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(pin!(&mut pending).poll(&mut context).is_pending());
    }
    assert_eq!(bytes(&pending.wait().unwrap()), [20]);
}

#[test]
fn an_executor_dropped_inside_the_task_that_awaits_it_leaves_nothing_behind() {
    struct Both {
        _executor: Executor,
        pending: Pending,
    }
    let (node, mut executor) = Node::deployed(1, &Deployment::default());
    let never = executor.function("never").unwrap();
    let pending = submit(&mut executor, &never, &[]);
    let mut both = Both { _executor: executor, pending };
    let mut context = Context::from_waker(std::task::Waker::noop());
    assert!(pin!(&mut both.pending).poll(&mut context).is_pending());
    drop(both);
    crate::common::eventually("all threads of the executor end", || node.running() == 0);
}

#[test]
fn a_submission_gives_its_buffers_back_to_be_used_again() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    let mut both: (Input, Output) = buffers(&executor, &[1, 2, 3]);
    for _ in 0..1000 {
        let completed = executor.submit(&empty, both.0, both.1).unwrap().wait().unwrap();
        assert_eq!(bytes(&completed), [1, 2, 3]);
        both = (completed.input, completed.output);
    }
}

#[test]
fn an_executor_and_its_invocations_may_change_threads() {
    fn can_change_threads<T: Send>() {}
    can_change_threads::<Executor>();
    can_change_threads::<Pending>();
    can_change_threads::<rfaas::Client>();
    can_change_threads::<rfaas::Lease>();
}
