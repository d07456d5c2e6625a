//! A client calls functions of a real executor process: what comes back, in which order, how often, and
//! what becomes of requests that make no sense.

mod common;

use common::{DEADLINE, Reply, Session, Setup, faulty, wait_for};
use rdmalib::{Flags, Operation, Source, Status, WorkRequest};
use rfaas_protocol::invocation::ReplyStatus;
use zerocopy::IntoBytes;

#[test]
fn functions_are_listed_by_name_and_called_by_number() {
    let mut session = Session::start(&Setup::default(), &faulty());
    let mut sorted = session.functions.clone();
    sorted.sort();
    assert_eq!(session.functions, sorted);
    let echo = session.function("echo");
    for input in [&b""[..], b"x", b"abcdefgh", &[7; 4096]] {
        assert_eq!(session.workers[0].call(echo, input), input);
    }
}

#[test]
fn small_outputs_are_the_same_when_sent_inline() {
    let setup = Setup { max_inline_data: 100, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    for bytes in [0, 1, 99, 100, 101, 4096] {
        let input: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
        assert_eq!(session.workers[0].call(echo, &input), input);
    }
}

/// Requests that arrive while the worker is busy are found by one poll.
#[test]
fn requests_that_arrive_together_are_each_executed_once_in_order() {
    for hot_timeout_ms in [-1, 0] {
        let setup = Setup { slots: 9, hot_timeout_ms, ..Setup::default() };
        let mut session = Session::start(&setup, &faulty());
        let (count, sleep_ms) = (session.function("count"), session.function("sleep_ms"));
        let worker = &mut session.workers[0];
        for round in 0..20u32 {
            worker.submit(8, sleep_ms, 5u32.as_bytes());
            for slot in 0..8 {
                worker.submit(slot, count, &[]);
            }
            assert_eq!(worker.reply().unwrap().slot, 8);
            for slot in 0..8 {
                let reply = worker.reply().unwrap();
                assert_eq!(reply.slot, slot);
                assert_eq!(reply.output, (8 * round + u32::from(slot) + 1).as_bytes());
            }
        }
    }
}

#[test]
fn inputs_in_different_slots_do_not_mix() {
    let setup = Setup { slots: 4, input_bytes: 100, output_bytes: 100, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let worker = &mut session.workers[0];
    for round in 0..50u8 {
        for slot in 0..4u8 {
            worker.submit(slot.into(), echo, &[(16 * slot) ^ round; 100]);
        }
        for slot in 0..4u8 {
            let reply = worker.reply().unwrap();
            assert_eq!((reply.slot, reply.output), (slot.into(), vec![(16 * slot) ^ round; 100]));
        }
    }
}

#[test]
fn the_65537th_invocation_of_a_connection_is_like_the_first_and_all_are_counted() {
    let setup = Setup { hot_timeout_ms: -1, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let (echo, count) = (session.function("echo"), session.function("count"));
    let worker = &mut session.workers[0];
    for i in 0..65_536u32 {
        assert_eq!(worker.call(echo, i.as_bytes()), i.as_bytes());
    }
    assert_eq!(worker.call(count, &[]), 1u32.as_bytes());
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0));
    assert_eq!(session.manager.invocations(), 65_537);
    assert!(session.manager.execution_ns() > 0);
    assert!(session.manager.hot_polling_ns() > 0);
}

#[test]
fn an_unknown_function_is_an_answer() {
    let mut session = Session::start(&Setup::default(), &faulty());
    let functions = session.functions.len() as u32;
    let echo = session.function("echo");
    let worker = &mut session.workers[0];
    for function in [functions, u16::MAX.into()] {
        worker.submit(2, function, b"abc");
        let reply = worker.reply().unwrap();
        assert_eq!((reply.slot, reply.status), (2, ReplyStatus::UnknownFunction));
    }
    assert_eq!(worker.call(echo, b"abc"), b"abc");
}

#[test]
fn a_header_that_disagrees_with_its_message_is_malformed() {
    let setup = Setup { input_bytes: 64, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let worker = &mut session.workers[0];
    for (claimed, sent) in [(5, 4), (4, 5), (u32::MAX, 4), (u32::MAX - 31, 0), (0, 1), (64, 63)] {
        let header = worker.header(1, echo, claimed as usize);
        worker.submit_with(header, 1, &vec![1; sent]);
        let reply = worker.reply().unwrap();
        assert_eq!((reply.slot, reply.status), (1, ReplyStatus::Malformed), "{claimed} {sent}");
    }
    assert_eq!(worker.call(echo, &[9; 64]), [9; 64]);
}

#[test]
fn an_input_larger_than_the_slot_is_malformed_even_if_it_was_sent() {
    // Slot 0's message runs on into slot 1, which the client's key allows.
    let setup = Setup { input_bytes: 100, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let worker = &mut session.workers[0];
    worker.submit(0, echo, &[1; 101]);
    assert_eq!(worker.reply().unwrap().status, ReplyStatus::Malformed);
    assert_eq!(worker.call(echo, &[1; 100]), [1; 100]);
}

#[test]
fn output_larger_than_the_callers_buffer_is_refused_and_not_written() {
    let mut session = Session::start(&Setup::default(), &faulty());
    let fill = session.function("fill");
    let worker = &mut session.workers[0];
    let mut header = worker.header(0, fill, 4);
    header.output_capacity = 99.into();
    worker.submit_with(header, 0, 100u32.as_bytes());
    let reply = worker.reply().unwrap();
    assert_eq!((reply.status, reply.needed_bytes), (ReplyStatus::OutputTooLarge, 100));
    let mut output = [0; 100];
    worker.output.read(64, &mut output).unwrap();
    assert_eq!(output, [0; 100]);

    let mut header = worker.header(0, fill, 4);
    header.output_capacity = 100.into();
    worker.submit_with(header, 0, 100u32.as_bytes());
    assert_eq!(worker.reply().unwrap().output, [0x5a; 100]);
}

#[test]
fn output_larger_than_was_agreed_is_refused_whatever_the_caller_has_room_for() {
    let setup = Setup { output_bytes: 1000, input_bytes: 64, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let claim = session.function("claim");
    let worker = &mut session.workers[0];
    for (bytes, status) in [
        (1000, ReplyStatus::Ok),
        (1001, ReplyStatus::OutputTooLarge),
        (u32::MAX, ReplyStatus::OutputTooLarge),
    ] {
        let mut header = worker.header(3, claim, 4);
        header.output_capacity = u32::MAX.into();
        worker.submit_with(header, 3, bytes.as_bytes());
        let reply = worker.reply().unwrap();
        assert_eq!(reply.status, status, "{bytes}");
        if status != ReplyStatus::Ok {
            assert_eq!(reply.needed_bytes, u64::from(bytes));
        }
    }
}

#[test]
fn an_echo_of_more_than_the_agreed_output_is_refused_not_a_crash() {
    let setup = Setup { output_bytes: 64, input_bytes: 40_000, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let worker = &mut session.workers[0];
    worker.submit(0, echo, &[1; 40_000]);
    let reply = worker.reply().unwrap();
    assert_eq!((reply.status, reply.needed_bytes), (ReplyStatus::OutputTooLarge, 40_000));
}

#[test]
fn requests_without_a_header_or_a_slot_end_the_connection_of_their_worker_only() {
    let setup = Setup { workers: 5, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");

    let header = session.workers[0].header(0, echo, 0);
    session.workers[0].write(0, &header.as_bytes()[..31], Some(0)); // shorter than a header
    session.workers[1].write(0, header.as_bytes(), Some(4)); // one slot too far
    session.workers[2].write(0, header.as_bytes(), Some(0x1_0000)); // 16 bits too far
    let worker = &mut session.workers[3];
    let message = worker.output.slice(0..8).unwrap();
    let send = Operation::Send { source: Source::Region(message), immediate: None };
    let request = WorkRequest { id: 1, operation: send, flags: Flags::SIGNALED };
    worker.pair.post(&request).unwrap(); // a message instead of a write
    for worker in &mut session.workers[..4] {
        assert!(worker.ends());
    }
    assert_eq!(session.workers[4].call(echo, b"still here"), b"still here");
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0));
    assert_eq!(session.manager.invocations(), 1);
}

#[test]
fn a_reply_address_that_is_not_the_clients_ends_that_worker_only() {
    let setup = Setup { workers: 3, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let mut header = session.workers[0].header(0, echo, 3);
    header.reply_key = 0xdead_beef.into();
    session.workers[0].submit_with(header, 0, b"abc");
    let mut header = session.workers[1].header(0, echo, 3);
    header.reply_addr = (u64::MAX - 1).into();
    session.workers[1].submit_with(header, 0, b"abc");
    assert!(session.workers[0].ends());
    assert!(session.workers[1].ends());
    assert_eq!(session.workers[2].call(echo, b"abc"), b"abc");
}

#[test]
fn a_worker_whose_client_cuts_it_off_ends_alone() {
    let setup = Setup { workers: 2, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let cut_off = session.workers.remove(0);
    drop(cut_off);
    assert_eq!(session.workers[0].call(echo, b"abc"), b"abc");
    assert!(session.child.try_wait().unwrap().is_none());
}

#[test]
fn more_workers_than_64_serve() {
    let setup = Setup { workers: 70, slots: 1, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    for worker in &mut session.workers {
        worker.submit(0, echo, b"abc");
    }
    for worker in &mut session.workers {
        assert_eq!(worker.reply().unwrap().output, b"abc");
    }
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0));
    assert_eq!(session.manager.invocations(), 70);
}

#[test]
fn functions_have_the_stack_that_c_programs_are_used_to() {
    let code = common::compile("tests/functions/deep.c", &[]);
    let mut session = Session::start(&Setup::default(), &code);
    let megabytes = 7u32;
    assert_eq!(session.workers[0].call(0, megabytes.as_bytes()), megabytes.as_bytes());
}

#[test]
fn one_slot_and_the_most_slots_work() {
    for slots in [1, 1024] {
        let setup = Setup { slots, input_bytes: 8, output_bytes: 8, ..Setup::default() };
        let mut session = Session::start(&setup, &faulty());
        let echo = session.function("echo");
        let worker = &mut session.workers[0];
        for _ in 0..3 {
            for slot in 0..slots {
                worker.submit(slot, echo, slot.as_bytes());
            }
            for slot in 0..slots {
                let Reply { slot: answered, output, .. } = worker.reply().unwrap();
                assert_eq!((answered, output), (slot, slot.as_bytes().to_vec()));
            }
        }
    }
}

/// A client that posts no receives for its replies fills the worker's send queue.
#[test]
fn a_client_that_takes_no_replies_is_cut_off() {
    let setup = Setup { slots: 4, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let worker = &mut session.workers[0];
    // 16 receives are posted and none is posted again: the 17th reply waits, and those behind it.
    let cut_off = (0..200).any(|_| {
        let header = worker.header(0, echo, 0);
        worker.submit_with(header, 0, b"");
        let sent = wait_for("the request is sent, or the connection ends", || {
            worker.queue.wait(Some(DEADLINE)).unwrap();
            std::iter::from_fn(|| worker.queue.poll_one()).find(|done| done.id == 1)
        });
        sent.status != Status::Success
    });
    assert!(cut_off);
}

/// A library that is loaded before any other counts what the worker's thread allocates.
#[test]
fn ten_thousand_hot_invocations_allocate_nothing() {
    let mut session = Session::counting_allocations();
    let (echo, allocations) = (session.function("echo"), session.function("allocations_so_far"));
    let worker = &mut session.workers[0];
    for _ in 0..100 {
        worker.call(echo, b"warm up");
    }
    let before = worker.call(allocations, &[]);
    assert_ne!(before, 0u64.as_bytes(), "the counter counts: starting a worker allocates");
    for _ in 0..10_000 {
        worker.call(echo, b"abc");
    }
    assert_eq!(worker.call(allocations, &[]), before);
}
