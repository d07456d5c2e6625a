//! A library with an `rfaas_init`: when it is called, what becomes of one that fails, and what functions may ask for
//! where there is no graph.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use common::{Session, Setup, compile};

/// What an entry answers that may not be used.
const RIGHTS: i32 = -3;

fn asks() -> Vec<u8> {
    compile("tests/functions/asks.c", &["-I../rfaas/function/include", "-pthread", "-std=c11"])
}

fn setup(init: &str) -> Setup {
    Setup { workers: 3, env: vec![("FUNCTION_INIT".into(), init.into())], ..Setup::default() }
}

fn numbers(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks().0.iter().map(|number| i32::from_ne_bytes(*number)).collect()
}

#[test]
fn it_is_called_once_in_each_worker_before_the_first_call_and_is_no_function() {
    for init in ["r0", "f"] {
        let setup = setup(init);
        let mut session = Session::start(&setup, &asks());
        assert!(!session.functions.contains(&"rfaas_init".to_owned()), "{:?}", session.functions);
        let prepared = session.function("prepared");
        for worker in &mut session.workers {
            for _ in 0..2 {
                let said = numbers(&worker.call(prepared, &[]));
                assert_eq!(said, [1, RIGHTS, setup.output_bytes as i32]);
            }
        }
    }
}

#[test]
fn one_that_fails_is_told_with_what_it_returned_and_ends_the_executor_with_status_3() {
    for returned in [-5, 1] {
        let (mut session, listed) =
            Session::start_and_list(&setup(&format!("r{returned}")), &asks());
        let error = listed.unwrap_err();
        assert!(error.contains(&format!("rfaas_init returned {returned} in worker")), "{error}");
        std::thread::sleep(Duration::from_millis(100)); // while the other workers say the same
        session.control = None;
        assert_eq!(session.exit_status().code(), Some(3));
    }
}

#[test]
fn one_that_crashes_or_ends_its_thread_is_a_crash() {
    for init in ["c", "t"] {
        // One: the others would not come any more.
        let (setup, code) = (Setup { workers: 1, ..setup(init) }, asks());
        let mut session = Session::spawn(&setup, &code);
        session.connect(&setup, &code);
        assert_eq!(session.exit_status().signal(), Some(6), "{init}");
    }
}

#[test]
fn it_ends_also_while_one_hangs() {
    for told in [true, false] {
        let (setup, code) = (setup("h"), asks());
        let mut session = Session::spawn(&setup, &code);
        session.connect(&setup, &code);
        std::thread::sleep(Duration::from_millis(50));
        if told {
            session.terminate();
        } else {
            session.control = None;
        }
        assert_eq!(session.exit_status().code(), Some(0));
    }
}

#[test]
fn a_call_that_belongs_to_no_graph_has_no_rights() {
    let setup = setup("");
    let mut session = Session::start(&setup, &asks());
    let room = setup.output_bytes as i32;
    for (function, room) in [("asks", room), ("thread_asks", 0), ("child_asks", room)] {
        let number = session.function(function);
        let said = numbers(&session.workers[1].call(number, &[]));
        let mut expected = [RIGHTS; 9];
        (expected[0], expected[8]) = (0, room);
        assert_eq!(said, expected, "{function}");
    }
    // One that ends its call otherwise returns more than any output holds.
    let end = session.function("end");
    for how in [&b"a1"[..], b"l", b"f1", b"n"] {
        let worker = &mut session.workers[0];
        worker.submit(0, end, how);
        let reply = worker.reply().unwrap();
        assert_eq!(reply.status, rfaas_protocol::invocation::ReplyStatus::OutputTooLarge);
    }
}
