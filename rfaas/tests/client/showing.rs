//! What handles show of themselves (`{:?}`), in assertions, logs, and a `main` that returns an error.

use std::fmt::Debug;
use std::time::Instant;

use rfaas::{
    Bill, Client, Deployment, Devices, EndReason, Ending, Error, LeaseRequest, Pending, describe,
};

use crate::buffers;
use crate::common::{Node, library};

/// A line on a screen, or two.
const SHORT: usize = 200;

/// It is one short line, with all of `words`.
fn shows(what: &impl Debug, words: &[&str]) {
    let text = format!("{what:?}");
    assert!(text.len() <= SHORT && !text.contains('\n'), "{} bytes: {text}", text.len());
    for word in words {
        assert!(text.contains(word), "{word} is not in {text}");
    }
}

fn empty_call(executor: &mut rfaas::Executor) -> Pending {
    let empty = executor.function("empty").unwrap();
    let (input, output) = buffers(executor, &[7; 32]);
    executor.submit(&empty, input, output).unwrap()
}

#[test]
fn handles_show_what_a_person_needs_in_one_short_line() {
    let (node, lease) = Node::leased(2);
    shows(&node.device, &["shm0", "shm", "127.0.0.1"]);
    shows(&node.client(), &["anonymous", "shm0", "executor_managers: 1"]);
    shows(&lease, &["fake", "cores: 2", "memory_mb: 64", "until it is deployed"]);

    let mut executor = lease.deploy(library()).unwrap();
    shows(&lease, &["id: 77"]);
    shows(&executor, &["fake", "lease: 77", "workers: 2", "functions: ", "running: true"]);
    let empty = executor.function("empty").unwrap();
    shows(&empty, &["Function"]);
    let (input, output) = buffers(&executor, &[7; 32]);
    shows(&input, &["32 bytes"]);
    shows(&output, &["64 bytes"]);

    let pending = empty_call(&mut executor);
    shows(&pending, &["Pending", "32 bytes", "64 bytes"]);
    shows(&pending.wait().unwrap(), &["bytes: 32"]);

    let call = executor.in_place(&empty, 16).unwrap();
    shows(&call, &["16 bytes"]);
    shows(&call.invoke().unwrap(), &["16 bytes"]);
}

#[test]
fn what_is_asked_for_and_told_is_shown_as_briefly() {
    shows(&LeaseRequest::new(2, 512), &["cores: 2", "memory: 512"]);
    shows(&Deployment::new(), &["input_bytes: 1048576", "slots: 4", "spin: Always"]);
    shows(&rfaas::Phases::default(), &["connect", "initialize"]);
    shows(&Ending { reason: EndReason::Withdrawn, at: Instant::now() }, &["Withdrawn"]);
    let bill =
        Bill { execution_ns: 1_500_000_000.into(), invocations: 3.into(), ..Bill::default() };
    shows(&bill, &["execution: 1.5s", "invocations: 3"]);
}

#[test]
fn an_error_shows_its_text_and_its_causes_where_main_returns_it() {
    let missing = Devices::load("/nowhere/devices.json").unwrap_err();
    let text = missing.to_string();
    assert_eq!(format!("{missing:?}"), text);
    assert_eq!(format!("{:?}", Error::from(missing)), text);
    shows(&Error::FunctionCrashed { signal: 11 }, &["a function crashed", "SIGSEGV"]);

    let (node, executor) = Node::deployed(1, &Deployment::new());
    let unknown = executor.function("no_such_function").unwrap_err();
    assert_eq!(format!("{unknown:?}"), unknown.to_string());
    let nowhere = node.device.device.listen(0).unwrap().local_addr();
    let unreachable = Client::connect(node.device.clone(), nowhere).unwrap_err();
    let told = format!("{unreachable:?}");
    assert_eq!(told, describe(&unreachable));
    assert!(told.contains("cannot be reached") && told.contains("nobody listens at"), "{told}");
}

#[test]
fn a_failed_call_shows_its_error_as_people_read_it() {
    let (_node, mut executor) = Node::deployed(1, &Deployment::new().input_bytes(100));
    let empty = executor.function("empty").unwrap();
    let (input, output) = buffers(&executor, &[7; 101]);
    let failed = executor.submit(&empty, input, output).unwrap_err();
    assert!(matches!(failed.error, Error::InputTooLarge { bytes: 101, max: 100 }));
    let text = "input of 101 bytes is too large: 100 fit; it takes `Deployment::input_bytes` of 101 or more \
                (of a graph: `Graph::input`)";
    assert_eq!(format!("{failed:?}"), text);
    assert_eq!(failed.to_string(), text);
}
