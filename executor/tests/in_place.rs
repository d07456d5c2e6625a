//! Calls whose input is built where the function reads it and whose output is read where the function wrote
//! it: what travels is a header there and 16 bytes back.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

mod common;

use common::{Reply, Session, Setup, Worker, faulty};
use rdmalib::{Access, Error, RemoteAddress, RemoteMapping};
use rfaas_protocol::invocation::{
    INPUT_IN_PLACE, InPlaceDetail, OUTPUT_IN_PLACE, ReplyStatus, RequestHeader,
};
use zerocopy::{FromBytes, IntoBytes};

const BOTH: u16 = INPUT_IN_PLACE | OUTPUT_IN_PLACE;

/// The input of `slot`, mapped.
fn input(worker: &mut Worker, slot: u16, bytes: usize) -> RemoteMapping {
    let start = u64::from(slot) * u64::from(worker.hello.slot_stride.get()) + 64;
    let at = RemoteAddress {
        addr: worker.hello.input_addr.get() + start,
        key: worker.hello.input_key.get(),
    };
    let access = Access::REMOTE_WRITE | Access::REMOTE_READ;
    worker.pair.map_remote(at, bytes, access).unwrap().expect("shm maps")
}

fn header(
    worker: &mut Worker,
    slot: u16,
    function: u32,
    bytes: usize,
    flags: u16,
) -> RequestHeader {
    let mut header = worker.header(slot, function, bytes);
    header.output_capacity = u32::MAX.into();
    header.flags = flags.into();
    header
}

/// Calls `function` in `slot`, whose input is there already.
fn submit(worker: &mut Worker, slot: u16, function: u32, bytes: usize) {
    let header = header(worker, slot, function, bytes, BOTH);
    worker.submit_with(header, slot, &[]);
}

/// Where the output of a reply is, and how much.
fn place(reply: &Reply) -> (RemoteAddress, usize) {
    assert_eq!(reply.status, ReplyStatus::Ok);
    let detail = InPlaceDetail::read_from_bytes(&reply.output).expect("a detail came back");
    let at = RemoteAddress { addr: detail.output_addr.get(), key: detail.output_key.get() };
    assert_eq!(at.addr % 64, 0);
    (at, detail.output_bytes.get() as usize)
}

/// The output of a reply, from where the function wrote it.
fn output(worker: &mut Worker, reply: &Reply) -> Vec<u8> {
    let (at, bytes) = place(reply);
    let mut out = vec![0; bytes];
    if bytes > 0 {
        let mapping = worker.pair.map_remote(at, bytes, Access::REMOTE_READ).unwrap();
        mapping.expect("shm maps").read(0, &mut out).unwrap();
    }
    out
}

#[test]
fn a_function_sees_what_was_never_sent_and_its_output_stays_where_it_wrote_it() {
    let most = 1 << 20;
    for max_inline_data in [0, 100] {
        let setup = Setup {
            input_bytes: most as u32,
            output_bytes: most as u32,
            max_inline_data,
            ..Setup::default()
        };
        let mut session = Session::start(&setup, &faulty());
        let echo = session.function("echo");
        let worker = &mut session.workers[0];
        for slot in [0, 3] {
            let input = input(worker, slot, most);
            for bytes in [0, 1, 64, 4096, most] {
                let sent: Vec<u8> = (0..bytes).map(|i| (i * 31 + bytes) as u8).collect();
                input.write(0, &sent).unwrap();
                submit(worker, slot, echo, bytes); // 32 bytes
                let reply = worker.reply().unwrap();
                assert_eq!(reply.slot, slot);
                assert_eq!(output(worker, &reply), sent);
            }
        }
    }
}

#[test]
fn input_and_output_are_in_place_each_by_itself_too() {
    let mut session = Session::start(&Setup::default(), &faulty());
    let echo = session.function("echo");
    let worker = &mut session.workers[0];

    let in_place = input(worker, 1, 64);
    in_place.write(0, &[7; 64]).unwrap();
    let mut head = header(worker, 1, echo, 64, INPUT_IN_PLACE);
    head.output_capacity = 64.into();
    worker.submit_with(head, 1, &[]);
    assert_eq!(worker.reply().unwrap().output, [7; 64]);

    let head = header(worker, 1, echo, 64, OUTPUT_IN_PLACE);
    worker.submit_with(head, 1, &[8; 64]);
    let reply = worker.reply().unwrap();
    assert_eq!(output(worker, &reply), [8; 64]);
}

#[test]
fn an_output_stays_until_its_slot_is_used_again() {
    let mut session = Session::start(&Setup::default(), &faulty());
    let echo = session.function("echo");
    let worker = &mut session.workers[0];
    let kept = input(worker, 2, 4096);
    kept.fill(0..4096, 1).unwrap();
    submit(worker, 2, echo, 4096);
    let reply = worker.reply().unwrap();
    for slot in [0, 1, 3] {
        input(worker, slot, 4096).fill(0..4096, 2).unwrap();
        submit(worker, slot, echo, 4096);
        worker.reply().unwrap();
        worker.submit(slot, echo, &[3; 4096]);
        worker.reply().unwrap();
    }
    assert_eq!(output(worker, &reply), [1; 4096]);
    kept.fill(0..4096, 4).unwrap();
    submit(worker, 2, echo, 4096);
    let second = worker.reply().unwrap();
    assert_eq!(place(&second), place(&reply), "at the same place");
    assert_eq!(output(worker, &second), [4; 4096]);
}

/// Whatever becomes of who wrote it: a client may be reading.
#[test]
fn an_output_stays_as_it_was_when_its_worker_or_its_executor_ends() {
    let ways: [fn(&mut Session); 3] = [
        |session| session.workers[0].pair.disconnect(),
        |session| session.terminate(),
        |session| session.signal("KILL"),
    ];
    for end in ways {
        let mut session = Session::start(&Setup::default(), &faulty());
        let echo = session.function("echo");
        let worker = &mut session.workers[0];
        input(worker, 0, 4096).fill(0..4096, 6).unwrap();
        submit(worker, 0, echo, 4096);
        let (at, bytes) = place(&worker.reply().unwrap());
        let mapping = worker.pair.map_remote(at, bytes, Access::REMOTE_READ).unwrap().unwrap();
        end(&mut session);
        // Without a worker its process ends as soon as the client's other connection does.
        drop(session.control.take());
        session.exit_status();
        let mut seen = vec![0; bytes];
        mapping.read(0, &mut seen).unwrap();
        assert_eq!(seen, [6; 4096]);
    }
}

#[test]
fn headers_that_disagree_with_their_flags_are_malformed() {
    let setup = Setup { input_bytes: 64, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let worker = &mut session.workers[0];
    for (flags, claimed, sent) in [
        (BOTH, 4, 4),
        (BOTH, 4, 1),
        (BOTH, 0, 1),
        (INPUT_IN_PLACE, 64, 64),
        (BOTH, 65, 0),
        (BOTH, u32::MAX, 0),
        (BOTH, u32::MAX - 31, 0),
        (OUTPUT_IN_PLACE, 4, 0),
        (OUTPUT_IN_PLACE, 4, 5),
        (4, 4, 4),
        (4, 4, 0),
        (4 | BOTH, 4, 0),
        (u16::MAX, 4, 0),
        (1 << 15, 4, 4),
    ] {
        let header = header(worker, 1, echo, claimed as usize, flags);
        worker.submit_with(header, 1, &vec![1; sent]);
        let reply = worker.reply().unwrap();
        assert_eq!(
            (reply.slot, reply.status),
            (1, ReplyStatus::Malformed),
            "{flags:#x} {claimed} {sent}"
        );
    }
    assert_eq!(worker.call(echo, &[9; 64]), [9; 64]);
}

#[test]
fn an_unknown_function_is_an_answer_in_place_too() {
    let mut session = Session::start(&Setup::default(), &faulty());
    let functions = session.functions.len() as u32;
    let worker = &mut session.workers[0];
    submit(worker, 0, functions, 4);
    assert_eq!(worker.reply().unwrap().status, ReplyStatus::UnknownFunction);
}

#[test]
fn output_beyond_the_callers_limit_or_the_agreed_one_is_refused_in_place_too() {
    let setup = Setup { output_bytes: 1000, input_bytes: 64, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let claim = session.function("claim");
    let worker = &mut session.workers[0];
    let input = input(worker, 0, 4);
    for (limit, bytes, fits) in [
        (u32::MAX, 1000u32, true),
        (u32::MAX, 1001, false),
        (u32::MAX, u32::MAX, false),
        (99, 99, true),
        (99, 100, false),
    ] {
        input.write(0, bytes.as_bytes()).unwrap();
        let mut header = header(worker, 0, claim, 4, BOTH);
        header.output_capacity = limit.into();
        worker.submit_with(header, 0, &[]);
        let reply = worker.reply().unwrap();
        if fits {
            assert_eq!(place(&reply).1, bytes as usize);
        } else {
            assert_eq!(reply.status, ReplyStatus::OutputTooLarge, "{limit} {bytes}");
            assert_eq!(reply.needed_bytes, u64::from(bytes));
        }
    }
}

/// The key of outputs lets a client read its own worker's, and nothing else.
#[test]
fn an_output_cannot_be_written_by_the_client_nor_reached_by_another_worker() {
    let setup = Setup { workers: 2, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let [first, second] = &mut session.workers[..] else { panic!("two workers") };
    input(first, 0, 64).fill(0..64, 5).unwrap();
    submit(first, 0, echo, 64);
    let (at, bytes) = place(&first.reply().unwrap());
    for access in [Access::REMOTE_WRITE, Access::REMOTE_WRITE | Access::REMOTE_READ] {
        let error = first.pair.map_remote(at, bytes, access).unwrap_err();
        assert!(matches!(error, Error::RemoteAccess), "{error}");
    }
    let error = second.pair.map_remote(at, bytes, Access::REMOTE_READ).unwrap_err();
    assert!(matches!(error, Error::RemoteAccess), "{error}");
    assert_eq!(first.call(echo, b"abc"), b"abc");
    assert_eq!(second.call(echo, b"abc"), b"abc");
}

#[test]
fn a_reply_place_that_is_not_the_clients_ends_that_worker_only() {
    let setup = Setup { workers: 2, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let mut header = header(&mut session.workers[0], 0, echo, 4, BOTH);
    header.reply_key = 0xdead_beef.into();
    session.workers[0].submit_with(header, 0, &[]);
    assert!(session.workers[0].ends());
    assert_eq!(session.workers[1].call(echo, b"abc"), b"abc");
}

#[test]
fn ten_thousand_hot_invocations_in_place_allocate_nothing() {
    let mut session = Session::counting_allocations();
    let (echo, allocations) = (session.function("echo"), session.function("allocations_so_far"));
    let worker = &mut session.workers[0];
    let in_place = |worker: &mut Worker| {
        submit(worker, 1, echo, 64);
        assert_eq!(worker.reply().unwrap().status, ReplyStatus::Ok);
    };
    (0..100).for_each(|_| in_place(worker));
    let before = worker.call(allocations, &[]);
    assert_ne!(before, 0u64.as_bytes(), "the counter counts: starting a worker allocates");
    (0..10_000).for_each(|_| in_place(worker));
    assert_eq!(worker.call(allocations, &[]), before);
}
