//! The hot path allocates nothing.

#![allow(clippy::unwrap_used)] // what fails here is the test

mod common;

use rfaas::Deployment;

#[test]
fn ten_thousand_blocking_invocations_allocate_nothing() {
    let (_node, mut executor) = common::Node::deployed(2, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    let mut buffers = None;
    let counted = allocation_counter::measure(|| {
        buffers = Some((executor.input(64).unwrap(), executor.output(64).unwrap()));
    });
    assert_ne!(counted.count_total, 0, "the counter counts: a buffer is allocated");
    let (input, mut output) = buffers.unwrap();
    executor.invoke(&empty, &input, &mut output).unwrap(); // the first may fill what others reuse
    let allocations = allocation_counter::measure(|| {
        for _ in 0..10_000 {
            executor.invoke(&empty, &input, &mut output).unwrap();
        }
    });
    assert_eq!(allocations.count_total, 0, "{allocations:?}");
}

#[test]
fn ten_thousand_calls_in_place_allocate_nothing() {
    let (_node, mut executor) = common::Node::deployed(2, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    let mut call = Some(executor.in_place(&empty, 64).unwrap());
    let mut invoke = || {
        let result = call.take().unwrap().invoke().unwrap();
        call = Some(result.again(64).unwrap());
    };
    invoke(); // the first one maps its output
    let allocations = allocation_counter::measure(|| (0..10_000).for_each(|_| invoke()));
    assert_eq!(allocations.count_total, 0, "{allocations:?}");
}
