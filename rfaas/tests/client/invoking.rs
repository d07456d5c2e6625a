//! Blocking invocations.

use std::time::Duration;

use rfaas::{Deployment, Error, Spin};
use rfaas_protocol::session::MAX_FUNCTION_NAME_BYTES;

use crate::buffers;
use crate::common::Node;

#[test]
fn an_invocation_returns_the_functions_bytes() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    for bytes in [0, 1, 7, 64, 4096, 1 << 20] {
        let mut input = executor.input(bytes).unwrap();
        let mut output = executor.output(bytes).unwrap();
        let sent: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
        input.write(0, &sent).unwrap();
        let n = executor.invoke(&empty, &input, &mut output).unwrap();
        assert_eq!(n, bytes);
        assert_eq!(output.to_vec(..n).unwrap(), sent);
    }
}

#[test]
fn only_the_set_length_is_sent() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    let (mut input, mut output) = buffers(&executor, &[7; 64]);
    input.set_len(5).unwrap();
    assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 5);
    assert_eq!(output.to_vec(..6).unwrap(), [7, 7, 7, 7, 7, 0]);
    assert!(input.set_len(65).is_err());
    assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 5);
}

#[test]
fn only_the_input_is_sent_where_the_worker_knows_the_rest() {
    let (node, mut executor) = Node::deployed(1, &Deployment::default().slots(1));
    let (empty, grow) = (executor.function("empty").unwrap(), executor.function("grow").unwrap());
    let (mut input, mut output) = buffers(&executor, &[7; 64]);
    let (other, mut other_output) = buffers(&executor, &[4, 0, 0, 0]);
    let repeated = |calls: &mut dyn FnMut()| {
        let before = node.repeated();
        calls();
        node.repeated() - before
    };
    let calls = repeated(&mut || {
        for len in [64, 64, 1, 33] {
            input.set_len(len).unwrap();
            assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), len);
            assert_eq!(output.to_vec(..len).unwrap(), vec![7; len]);
        }
        // Another input, which is sent anyway.
        assert_eq!(executor.invoke(&empty, &other, &mut output).unwrap(), 4);
        assert_eq!(output.to_vec(..4).unwrap(), [4, 0, 0, 0]);
    });
    assert_eq!(calls, 4);
    let others = repeated(&mut || {
        assert_eq!(executor.invoke(&empty, &other, &mut other_output).unwrap(), 4);
        assert_eq!(executor.invoke(&grow, &other, &mut other_output).unwrap(), 4);
        assert_eq!(executor.invoke(&grow, &other, &mut output).unwrap(), 4);
    });
    assert_eq!(others, 0, "another output, or another function");
    let failed = repeated(&mut || {
        input.write(0, &100u32.to_le_bytes()).unwrap();
        let error = executor.invoke(&grow, &input, &mut output).unwrap_err(); // again
        assert!(matches!(error, Error::OutputTooLarge { needed: 100, .. }), "{error}");
        assert_eq!(executor.invoke(&grow, &other, &mut output).unwrap(), 4); // not after a failure
        input.set_len(0).unwrap();
        assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 0);
        assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 0); // there is nothing to send
    });
    assert_eq!(failed, 1);
}

#[test]
fn seventy_thousand_invocations_on_one_connection_all_get_their_own_result() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().slots(2));
    let empty = executor.function("empty").unwrap();
    let (mut input, mut output) = buffers(&executor, &[0; 4]);
    for i in 0u32..70_000 {
        input.write(0, &i.to_le_bytes()).unwrap();
        assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 4);
        let mut result = [0; 4];
        output.read(0, &mut result).unwrap();
        assert_eq!(u32::from_le_bytes(result), i);
    }
}

#[test]
fn every_way_to_wait_brings_the_result() {
    let spins = [Spin::Always, Spin::Never, Spin::For(Duration::from_millis(1))];
    for spin in spins {
        let (_node, mut executor) = Node::deployed(1, &Deployment::default().spin(spin));
        let empty = executor.function("empty").unwrap();
        let sleep = executor.function("sleep").unwrap();
        let (input, mut output) = buffers(&executor, &[9]);
        for _ in 0..50 {
            assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 1);
        }
        assert_eq!(executor.invoke(&sleep, &input, &mut output).unwrap(), 1);
    }
}

#[test]
fn an_input_larger_than_the_slot_is_refused_before_it_is_sent() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().input_bytes(100));
    let empty = executor.function("empty").unwrap();
    let (input, mut output) = (executor.input(101).unwrap(), executor.output(101).unwrap());
    let error = executor.invoke(&empty, &input, &mut output).unwrap_err();
    assert!(matches!(error, Error::InputTooLarge { bytes: 101, max: 100 }), "{error}");
    let input = executor.input(100).unwrap();
    assert_eq!(executor.invoke(&empty, &input, &mut output).unwrap(), 100);
}

#[test]
fn an_output_that_does_not_fit_is_an_error_that_says_how_much_would() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let grow = executor.function("grow").unwrap();
    let (mut input, mut output) = buffers(&executor, &65u32.to_le_bytes());
    let error = executor.invoke(&grow, &input, &mut output).unwrap_err();
    assert!(matches!(error, Error::OutputTooLarge { needed: 65, capacity: 64 }), "{error}");
    input.write(0, &64u32.to_le_bytes()).unwrap();
    assert_eq!(executor.invoke(&grow, &input, &mut output).unwrap(), 64);
    assert_eq!(output.to_vec(..).unwrap(), [64; 64]);
}

#[test]
fn an_output_is_not_filled_beyond_what_the_deployment_allows() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default().output_bytes(32));
    let grow = executor.function("grow").unwrap();
    let (input, mut output) = buffers(&executor, &33u32.to_le_bytes());
    let error = executor.invoke(&grow, &input, &mut output).unwrap_err();
    assert!(matches!(error, Error::OutputTooLarge { needed: 33, capacity: 32 }), "{error}");
}

#[test]
fn an_unknown_function_is_refused_with_the_names_there_are() {
    let (node, executor) = Node::deployed(1, &Deployment::default());
    let error = executor.function("emtpy").unwrap_err();
    let Error::UnknownFunction { name, available } = error else { panic!("{error}") };
    assert_eq!(name, "emtpy");
    assert_eq!(available, executor.functions());
    // One that is too long for the wire too: names are looked up here, and requests bring numbers.
    let error = executor.function(&"g".repeat(MAX_FUNCTION_NAME_BYTES + 1)).unwrap_err();
    assert!(matches!(error, Error::UnknownFunction { .. }), "{error}");
    assert!(error.to_string().contains("at most 512 bytes, this one 513"), "{error}");
    assert_eq!(node.taken(), 0, "nothing was sent");
}

#[test]
fn buffers_and_functions_of_another_executor_are_refused() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::default());
    let (_other_node, other) = Node::deployed(1, &Deployment::default());
    let empty = executor.function("empty").unwrap();
    let (input, mut output) = buffers(&executor, &[1]);
    let (foreign_input, mut foreign_output) = buffers(&other, &[1]);
    let foreign_empty = other.function("empty").unwrap();
    let errors = [
        executor.invoke(&foreign_empty, &input, &mut output).unwrap_err(),
        executor.invoke(&empty, &foreign_input, &mut output).unwrap_err(),
        executor.invoke(&empty, &input, &mut foreign_output).unwrap_err(),
    ];
    assert!(errors.iter().all(|error| matches!(error, Error::Foreign(_))), "{errors:?}");
}

#[test]
fn one_call_uses_all_workers_and_keeps_the_order_of_its_inputs() {
    let (_node, mut executor) = Node::deployed(3, &Deployment::default().slots(2));
    let place = executor.function("where").unwrap();
    let sleep = executor.function("sleep").unwrap();
    for count in [0, 1, 3, 40] {
        let sleeps: Vec<u8> = (0..count).map(|i| (i % 4) as u8).collect();
        let inputs: Vec<_> = sleeps.iter().map(|ms| buffers(&executor, &[*ms]).0).collect();
        let mut outputs: Vec<_> = inputs.iter().map(|_| executor.output(8).unwrap()).collect();
        let sizes = executor.invoke_all(&sleep, &inputs, &mut outputs).unwrap();
        assert_eq!(sizes, vec![1; count]);
        let echoed: Vec<u8> = outputs.iter().map(|output| output.to_vec(..1).unwrap()[0]).collect();
        assert_eq!(echoed, sleeps);
        let sizes = executor.invoke_all(&place, &inputs, &mut outputs).unwrap();
        assert_eq!(sizes, vec![2; count]);
        let mut workers: Vec<u8> =
            outputs.iter().map(|output| output.to_vec(..1).unwrap()[0]).collect();
        workers.sort_unstable();
        workers.dedup();
        assert_eq!(workers.len(), count.min(3), "each worker got a call before any got a second");
    }
}

#[test]
fn one_failing_call_of_many_is_an_error_and_nothing_is_left_in_flight() {
    let (_node, mut executor) = Node::deployed(2, &Deployment::default().slots(2));
    let grow = executor.function("grow").unwrap();
    let empty = executor.function("empty").unwrap();
    let mut inputs: Vec<_> = (0..9u32).map(|i| buffers(&executor, &i.to_le_bytes()).0).collect();
    inputs[4].write(0, &65u32.to_le_bytes()).unwrap();
    inputs[7].write(0, &66u32.to_le_bytes()).unwrap();
    let mut outputs: Vec<_> = inputs.iter().map(|_| executor.output(64).unwrap()).collect();
    let error = executor.invoke_all(&grow, &inputs, &mut outputs).unwrap_err();
    assert!(matches!(error, Error::OutputTooLarge { needed: 65, .. }), "{error}");
    // All eight slots are free again.
    let pending: Vec<_> = (0..4)
        .map(|_| {
            let (input, output) = buffers(&executor, &[1]);
            executor.submit(&empty, input, output).unwrap()
        })
        .collect();
    pending.into_iter().for_each(|pending| assert_eq!(pending.wait().unwrap().bytes, 1));
    let error = executor.invoke_all(&grow, &inputs, &mut outputs[1..]).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}

#[test]
fn more_workers_than_sixty_four_are_used() {
    let (_node, mut executor) = Node::deployed(70, &Deployment::default().slots(1));
    assert_eq!(executor.workers(), 70);
    let place = executor.function("where").unwrap();
    let inputs: Vec<_> = (0..70).map(|_| buffers(&executor, &[]).0).collect();
    let mut outputs: Vec<_> = inputs.iter().map(|_| executor.output(2).unwrap()).collect();
    executor.invoke_all(&place, &inputs, &mut outputs).unwrap();
    let mut workers: Vec<_> = outputs.iter().map(|output| output.to_vec(..).unwrap()).collect();
    workers.sort_unstable();
    workers.dedup();
    assert_eq!(workers.len(), 70);
}
