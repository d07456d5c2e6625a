//! A client that forks while it holds an executor: its child neither uses nor ends what is its parent's, and
//! says so, also while other threads of the parent were about anything at the moment of the fork.
#![allow(unsafe_code)] // fork(2): nothing safe leaves parent and child running
#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::Node;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rfaas::{Deployment, Error, Executor, Input, LeaseRequest, Output};

/// Runs `what` in a child, which has to end with it: what it returns is the number of what was wrong, 0 for
/// nothing.
fn in_child(what: impl FnOnce() -> i32) {
    // SAFETY: the child uses memory, which glibc makes usable after a fork, and what the client promises for
    // children, and ends without running what the test's process would at its end.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let status = catch_unwind(AssertUnwindSafe(what)).unwrap_or(99);
            // SAFETY: ends the child, whatever it holds.
            unsafe { nix::libc::_exit(status) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
}

fn buffers(executor: &Executor) -> (Input, Output) {
    let mut input = executor.input(8).unwrap();
    input.write(0, b"12345678").unwrap();
    (input, executor.output(8).unwrap())
}

/// The executor answers as before.
fn works(executor: &mut Executor) {
    let function = executor.function("empty").unwrap();
    let (input, mut output) = buffers(executor);
    assert_eq!(executor.invoke(&function, &input, &mut output).unwrap(), 8);
    assert_eq!(output.to_vec(..8).unwrap(), b"12345678");
}

fn forked<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Forked))
}

/// Returns the number of the first that is false.
fn first_wrong(held: &[bool]) -> i32 {
    held.iter().position(|held| !held).map_or(0, |at| at as i32 + 1)
}

#[test]
fn a_child_that_drops_what_it_inherits_ends_nothing() {
    let (node, executor) = Node::deployed(1, &Deployment::default());
    let mut lease = Some(executor.lease());
    let mut executor = Some(executor);
    for _ in 0..20 {
        in_child(|| {
            drop(executor.take()); // its copy: the parent keeps its own
            drop(lease.take());
            0
        });
    }
    let mut executor = executor.unwrap();
    works(&mut executor);
    assert_eq!((node.releases(), node.clients_gone(), node.allocations()), (0, 0, 1));
    executor.release().unwrap();
    assert_eq!(node.releases(), 1);
}

#[test]
fn every_use_in_a_child_is_an_error_that_says_why() {
    let (node, mut executor) = Node::deployed(1, &Deployment::default());
    let client = node.client();
    let lease = executor.lease();
    let function = executor.function("empty").unwrap();
    let (mut input, mut output) = buffers(&executor);
    let hold = executor.function("hold").unwrap();
    let (held_input, held_output) = buffers(&executor);
    let pending = executor.submit(&hold, held_input, held_output).unwrap();
    let mut pending = Some(pending);
    in_child(|| {
        let held = [
            forked(executor.invoke(&function, &input, &mut output)),
            forked(executor.invoke_idempotent(&function, &input, &mut output)),
            forked(executor.in_place(&function, 8).map(|_| ())),
            forked(executor.input(8)),
            forked(executor.output(8)),
            forked(input.write(0, &[0; 8])),
            forked(executor.restart()),
            forked(pending.take().unwrap().wait().map_err(Error::from)),
            forked(client.lease(LeaseRequest::new(1, 1))),
            forked(lease.renew(std::time::Duration::from_secs(1))),
            forked(lease.deploy(common::library())),
            lease.ending().is_none(),
        ];
        lease.on_ending(|_| {});
        first_wrong(&held)
    });
    // What was in flight is the parent's, and so is all else.
    assert_eq!(input.to_vec(..8).unwrap(), b"12345678");
    let flush = executor.function("flush").unwrap();
    executor.invoke(&flush, &input, &mut output).unwrap();
    assert_eq!(pending.take().unwrap().wait().unwrap().bytes, 8);
    works(&mut executor);
    assert_eq!((node.releases(), node.clients_gone()), (0, 0));
    drop(lease);
    executor.release().unwrap();
}

#[test]
fn a_child_that_releases_gives_nothing_back() {
    let (node, executor) = Node::deployed(1, &Deployment::default());
    let lease = executor.lease();
    let mut executor = Some(executor);
    in_child(|| {
        first_wrong(&[forked(executor.take().unwrap().release()), forked(lease.release())])
    });
    works(executor.as_mut().unwrap());
    assert_eq!(node.releases(), 0);
}
