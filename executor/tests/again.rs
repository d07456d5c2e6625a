//! Requests that ask again for what their slot was asked last: only the input is sent.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

mod common;

use common::{Session, Setup, faulty};
use rfaas_protocol::invocation::ReplyStatus;
use zerocopy::IntoBytes;

#[test]
fn a_request_is_made_again_with_other_inputs_of_any_size() {
    let setup = Setup { input_bytes: 5000, output_bytes: 5000, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let (echo, claim) = (session.function("echo"), session.function("claim"));
    let worker = &mut session.workers[0];
    worker.submit(1, echo, b"once");
    let first = worker.reply().unwrap();
    worker.submit(2, claim, 7u32.as_bytes());
    assert_eq!(worker.reply().unwrap().output.len(), 7);
    for (n, bytes) in [(1, 4), (2, 1), (3, 96), (4, 5000), (5, 0), (6, 300)] {
        let input = vec![n; bytes];
        worker.submit_again(1, &input);
        let reply = worker.reply().unwrap();
        assert_eq!((reply.slot, reply.status), (1, ReplyStatus::Ok));
        assert_eq!(reply.sequence, first.sequence + n);
        assert_eq!(reply.output, input);
    }
    worker.submit_again(2, 9u32.as_bytes());
    assert_eq!(worker.reply().unwrap().output.len(), 9);
    // Another request there, and that again; the first one's sequence is over.
    worker.submit(1, claim, 3u32.as_bytes());
    let other = worker.reply().unwrap();
    worker.submit_again(1, 5u32.as_bytes());
    let reply = worker.reply().unwrap();
    assert_eq!((reply.sequence, reply.output.len()), (other.sequence + 1, 5));
}

#[test]
fn a_request_made_again_may_fail_and_be_made_again() {
    let setup = Setup { input_bytes: 64, output_bytes: 1000, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let claim = session.function("claim");
    let worker = &mut session.workers[0];
    worker.submit(0, claim, 1000u32.as_bytes());
    assert_eq!(worker.reply().unwrap().status, ReplyStatus::Ok);
    worker.submit_again(0, 1001u32.as_bytes());
    let reply = worker.reply().unwrap();
    assert_eq!((reply.status, reply.needed_bytes), (ReplyStatus::OutputTooLarge, 1001));
    worker.submit_again(0, 8u32.as_bytes());
    assert_eq!(worker.reply().unwrap().output.len(), 8);
    // 65 bytes: they reach into the next slot, which its client may write, too.
    worker.submit_again(0, &[0; 65]);
    assert_eq!(worker.reply().unwrap().status, ReplyStatus::Malformed);
}

#[test]
fn what_was_not_asked_cannot_be_asked_again() {
    let setup = Setup { workers: 4, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let never = &mut session.workers[0];
    never.submit_again(0, b"again");
    let elsewhere = &mut session.workers[1];
    assert_eq!(elsewhere.call(echo, b"in slot 0"), b"in slot 0");
    elsewhere.submit_again(1, b"again");
    let nonsense = &mut session.workers[2];
    assert_eq!(nonsense.call(echo, b"abc"), b"abc");
    let header = nonsense.header(0, echo, 4); // of a message that has 3
    nonsense.submit_with(header, 0, b"abc");
    assert_eq!(nonsense.reply().unwrap().status, ReplyStatus::Malformed);
    nonsense.submit_again(0, b"abc");
    for worker in &mut session.workers[..3] {
        assert!(worker.ends());
    }
    assert_eq!(session.workers[3].call(echo, b"still here"), b"still here");
}
