//! Faults by script: what the peer and the poster see of them (`rdmalib::faults`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rdmalib::faults::{Chances, Fault, Script, VARIABLE};
use rdmalib::{
    Device, Error, Flags, Opcode, Operation, QueuePairConfig, Source, State, Status, WorkRequest,
};

use crate::Fixture;
use crate::ends::*;
use crate::peer::Peer;

/// Long enough to tell late from at once.
const LATE: Duration = Duration::from_millis(80);

/// A message of `bytes`, numbered.
fn send(bytes: &[u8], number: u32) -> Operation<'_> {
    Operation::Send { source: Source::Inline(bytes), immediate: Some(number) }
}

/// Two ends, and the client's requests meet the faults of `script`.
fn ends_with_script(fixture: &Fixture, script: Script) -> (End, End) {
    let (server, mut client) = ends(fixture);
    client.pair.inject(script);
    (server, client)
}

/// The next arrival's number.
fn arrived(end: &mut End) -> Option<u32> {
    let done = next(&mut end.receives);
    assert_eq!(done.status, Status::Success);
    done.immediate
}

fn succeeded(end: &mut End, id: u64) {
    let done = next(&mut end.sends);
    assert_eq!((done.id, done.status), (id, Status::Success));
}

pub fn a_dropped_request_succeeds_and_never_arrives(fixture: &Fixture) {
    let script = Script::new().at(0, Fault::Drop).at(2, Fault::Drop).at(3, Fault::Drop);
    let (mut server, mut client) = ends_with_script(fixture, script);
    let (source, target) = (client.region(8), server.region(8));
    source.fill(0..8, 7).unwrap();
    server.post_receives(0..2);
    client.post(0, send(&[], 0), Flags::SIGNALED);
    client.post(1, send(&[], 1), Flags::SIGNALED);
    client.post(2, write_imm(&source, 0..8, target.remote(), 2), Flags::SIGNALED);
    client.post(3, write(&source, 0..8, target.remote()), Flags::SIGNALED);
    client.post(4, send(&[], 4), Flags::SIGNALED);
    (0..5).for_each(|id| succeeded(&mut client, id));
    assert_eq!([arrived(&mut server), arrived(&mut server)], [Some(1), Some(4)]);
    assert_eq!(bytes(&target), [0; 8]);
    stays_empty(&mut server.receives);
}

pub fn a_late_request_arrives_while_its_poster_sleeps(fixture: &Fixture) {
    let script = Script::new().at(0, Fault::Delay(LATE));
    let (mut server, mut client) = ends_with_script(fixture, script);
    server.post_receives(0..1);
    let start = Instant::now();
    client.post(5, send(&[], 1), Flags::SIGNALED);
    assert_eq!(client.sends.poll_one(), None);
    let done = loop {
        client.sends.wait(Some(PATIENCE)).unwrap();
        if let Some(done) = client.sends.poll_one() {
            break done;
        }
        assert!(start.elapsed() < PATIENCE, "no completion came");
    };
    assert_eq!((done.id, done.status), (5, Status::Success));
    assert!(start.elapsed() >= LATE);
    assert_eq!(arrived(&mut server), Some(1));
}

pub fn everything_behind_a_late_request_stays_behind_it(fixture: &Fixture) {
    let script = Script::new()
        .at(1, Fault::Delay(LATE))
        .at(3, Fault::Delay(Duration::ZERO))
        .at(4, Fault::Drop)
        .at(5, Fault::Duplicate);
    let (mut server, mut client) = ends_with_script(fixture, script);
    let (source, target) = (client.region(32), server.region(32));
    source.fill(0..8, 7).unwrap();
    server.post_receives(0..8);
    client.post(0, send(&[], 0), Flags::SIGNALED);
    client.post(1, write_imm(&source, 0..8, target.remote(), 1), Flags::SIGNALED);
    let into = source.slice(16..24).unwrap();
    client.post(2, Operation::Read { into, from: target.remote() }, Flags::SIGNALED);
    let (into, at) = (source.slice(24..32).unwrap(), target.remote().offset(24));
    client.post(3, Operation::FetchAdd { into, at, add: 3 }, Flags::SIGNALED);
    for id in 2..5 {
        client.post(id + 2, send(&[], id as u32), Flags::SIGNALED);
    }
    let early: Vec<_> = std::iter::from_fn(|| client.sends.poll_one()).collect();
    assert!(early.iter().all(|done| done.id == 0), "{early:?}");
    for id in (early.len() as u64)..7 {
        succeeded(&mut client, id);
    }
    // The bytes that the late write had brought by then.
    assert_eq!(bytes(&source)[16..24], [7; 8]);
    assert_eq!(target.load_u64(24).unwrap(), 3);
    for number in 0..4 {
        assert_eq!(arrived(&mut server), Some(number));
    }
    stays_empty(&mut server.receives); // 4 was dropped
    // Nothing is held back any more: the fast way works again.
    client.post(7, send(&[], 5), Flags::SIGNALED);
    succeeded(&mut client, 7);
    assert_eq!([arrived(&mut server), arrived(&mut server)], [Some(5), Some(5)]);
}

pub fn inline_data_of_a_late_request_may_be_reused_at_once(fixture: &Fixture) {
    let script = Script::new().at(0, Fault::Delay(LATE));
    let (mut server, mut client) = ends_with_script(fixture, script);
    let landing = server.region(8);
    server.pair.post_receive(0, Some(landing.slice(0..8).unwrap())).unwrap();
    let mut inline = [7; 8];
    client.post(0, send(&inline, 0), Flags::SIGNALED);
    inline.fill(1);
    std::hint::black_box(&inline);
    assert_eq!(arrived(&mut server), Some(0));
    assert_eq!(bytes(&landing), [7; 8]);
}

pub fn a_duplicate_arrives_twice_and_completes_once(fixture: &Fixture) {
    let script = Script::new().at(0, Fault::Duplicate).at(1, Fault::Duplicate);
    let (mut server, mut client) = ends_with_script(fixture, script);
    let (source, target) = (client.region(8), server.region(8));
    server.post_receives(0..4);
    client.post(0, send(&[], 0), Flags::SIGNALED);
    client.post(1, write_imm(&source, 0..8, target.remote(), 1), Flags::SIGNALED);
    (0..2).for_each(|id| succeeded(&mut client, id));
    for number in [0, 0, 1, 1] {
        assert_eq!(arrived(&mut server), Some(number));
    }
    stays_empty(&mut client.sends);
}

pub fn a_queue_without_room_for_both_sends_a_duplicate_once(fixture: &Fixture) {
    let config = QueuePairConfig { send_depth: 2, ..QueuePairConfig::default() };
    let (mut server, mut client) = ends_with(fixture, &config);
    client.pair.inject(Script::new().at(1, Fault::Duplicate).at(2, Fault::Duplicate));
    server.post_receives(0..4);
    client.post(0, send(&[], 0), Flags::empty());
    client.post(1, send(&[], 1), Flags::SIGNALED);
    succeeded(&mut client, 1);
    client.post(2, send(&[], 2), Flags::SIGNALED);
    succeeded(&mut client, 2);
    for number in [0, 1, 2, 2] {
        assert_eq!(arrived(&mut server), Some(number));
    }
}

pub fn late_requests_fill_the_send_queue(fixture: &Fixture) {
    let config = QueuePairConfig { send_depth: 3, ..QueuePairConfig::default() };
    let (mut server, mut client) = ends_with(fixture, &config);
    client.pair.inject(Script::new().at(1, Fault::Delay(LATE)));
    server.post_receives(0..4);
    (0..3).for_each(|id| client.post(id.into(), send(&[], id), Flags::SIGNALED));
    let request = WorkRequest { id: 3, operation: send(&[], 3), flags: Flags::SIGNALED };
    let full = client.pair.post(&request).unwrap_err();
    assert!(matches!(full, Error::QueueFull { depth: 3 }), "{full}");
    succeeded(&mut client, 0);
    client.pair.post(&request).unwrap();
    (1..4).for_each(|id| succeeded(&mut client, id));
    for number in 0..4 {
        assert_eq!(arrived(&mut server), Some(number));
    }
}

pub fn a_truncated_request_arrives_cut(fixture: &Fixture) {
    let script = Script::new()
        .at(0, Fault::Truncate(3))
        .at(1, Fault::Truncate(3))
        .at(2, Fault::Truncate(3))
        .at(3, Fault::Truncate(0))
        .at(4, Fault::Truncate(9));
    let (mut server, mut client) = ends_with_script(fixture, script);
    let (source, target, landing) = (client.region(8), server.region(16), server.region(8));
    source.fill(0..8, 7).unwrap();
    for id in 0..4 {
        server.pair.post_receive(id, Some(landing.slice(0..8).unwrap())).unwrap();
    }
    client.post(0, send(&[7; 8], 0), Flags::SIGNALED);
    client.post(1, write_imm(&source, 0..8, target.remote(), 1), Flags::SIGNALED);
    client.post(2, write(&source, 0..8, target.remote().offset(8)), Flags::SIGNALED);
    let region = Source::Region(source.slice(0..8).unwrap());
    for id in 3..5 {
        let whole = Operation::Send { source: region, immediate: Some(id) };
        client.post(id.into(), whole, Flags::SIGNALED);
    }
    (0..5).for_each(|id| succeeded(&mut client, id));
    for (number, cut) in [(0, 3), (1, 3), (3, 0), (4, 8)] {
        let done = next(&mut server.receives);
        assert_eq!((done.immediate, done.bytes), (Some(number), cut));
    }
    assert_eq!(bytes(&target), [7, 7, 7, 0, 0, 0, 0, 0, 7, 7, 7, 0, 0, 0, 0, 0]);
}

pub fn a_disconnect_is_told_after_what_arrived_before(fixture: &Fixture) {
    for delay in [None, Some(LATE)] {
        let mut script = Script::new().at(1, Fault::Disconnect);
        if let Some(delay) = delay {
            script = script.at(0, Fault::Delay(delay));
        }
        let (mut server, mut client) = ends_with_script(fixture, script);
        server.post_receives(0..3);
        client.post(0, send(&[], 0), Flags::SIGNALED);
        if delay.is_none() {
            succeeded(&mut client, 0); // it has gone, and is not cut off
        }
        client.post(1, send(&[], 1), Flags::empty());
        client.post(2, send(&[], 2), Flags::SIGNALED);
        if delay.is_some() {
            // On a card it may still be under way when the end comes.
            assert_eq!(next(&mut client.sends).id, 0);
        } else {
            assert_eq!(arrived(&mut server), Some(0));
        }
        for id in 1..3 {
            let done = next(&mut client.sends);
            assert_eq!((done.id, done.status), (id, Status::Flushed));
        }
        assert_eq!(client.pair.state(), State::Error);
        while next(&mut server.receives).status != Status::Flushed {}
        assert_eq!(server.pair.state(), State::Error);
    }
}

pub fn late_requests_are_flushed_at_the_end(fixture: &Fixture) {
    let script = Script::new().at(1, Fault::Delay(Duration::from_secs(60)));
    let (mut server, mut client) = ends_with_script(fixture, script);
    server.post_receives(0..4);
    (0..4).for_each(|id| client.post(id.into(), send(&[], id), Flags::empty()));
    assert_eq!(arrived(&mut server), Some(0));
    client.pair.disconnect();
    for id in 1..4 {
        let done = next(&mut client.sends);
        assert_eq!((done.id, done.status), (id, Status::Flushed));
    }
    assert_eq!(next(&mut server.receives).status, Status::Flushed);
}

pub fn a_late_request_ends_with_its_queue_pair(fixture: &Fixture) {
    let script = Script::new().at(0, Fault::Delay(LATE));
    let (mut server, mut client) = ends_with_script(fixture, script);
    server.post_receives(0..1);
    client.post(0, send(&[], 0), Flags::SIGNALED);
    drop(client);
    assert_eq!(next(&mut server.receives).status, Status::Flushed);
}

pub fn a_freed_region_serves_a_late_request(fixture: &Fixture) {
    let script = Script::new().at(0, Fault::Delay(LATE));
    let (mut server, mut client) = ends_with_script(fixture, script);
    let (source, target) = (client.region(8), server.region(8));
    source.fill(0..8, 7).unwrap();
    server.post_receives(0..1);
    client.post(0, write_imm(&source, 0..8, target.remote(), 1), Flags::empty());
    drop(source);
    assert_eq!(arrived(&mut server), Some(1));
    assert_eq!(bytes(&target), [7; 8]);
}

pub fn a_request_that_is_refused_late_is_flushed(fixture: &Fixture) {
    let script = Script::new().at(0, Fault::Delay(Duration::ZERO));
    let (server, mut client) = ends_with_script(fixture, script);
    let elsewhere = client.device.domain().unwrap().allocate(8, ALL).unwrap();
    let target = server.region(8);
    client.post(9, write(&elsewhere, 0..8, target.remote()), Flags::empty());
    let done = next(&mut client.sends);
    assert_eq!((done.id, done.status), (9, Status::Flushed));
    assert_eq!(client.pair.state(), State::Error);
}

pub fn requests_that_were_refused_have_no_number(fixture: &Fixture) {
    let config = QueuePairConfig { send_depth: 1, ..QueuePairConfig::default() };
    let (mut server, mut client) = ends_with(fixture, &config);
    client.pair.inject(Script::new().at(1, Fault::Drop));
    server.post_receives(0..2);
    for number in 0..3 {
        client.post(number.into(), send(&[], number), Flags::SIGNALED);
        let operation = send(&[], 9);
        let refused = WorkRequest { id: 9, operation, flags: Flags::SIGNALED };
        assert!(client.pair.post(&refused).is_err(), "the queue is full");
        succeeded(&mut client, number.into());
    }
    assert_eq!([arrived(&mut server), arrived(&mut server)], [Some(0), Some(2)]);
}

pub fn a_script_may_come_before_the_connection_and_be_replaced(fixture: &Fixture) {
    let (server, client) = open(fixture);
    let config = QueuePairConfig { max_inline_data: 8, ..Default::default() };
    let (mut server, mut client) = (End::new(&server, &config), End::new(&client, &config));
    for end in [&mut server, &mut client] {
        end.pair.inject(Script::new().at(0, Fault::Drop));
        end.post_receives(0..2);
        let early = WorkRequest { id: 0, operation: send(&[], 9), flags: Flags::empty() };
        assert!(end.pair.post(&early).is_err(), "there is no connection");
    }
    join(&mut server, &mut client);
    for number in 0..2 {
        client.post(number.into(), send(&[], number), Flags::SIGNALED);
        server.post(number.into(), send(&[], number), Flags::SIGNALED);
    }
    assert_eq!([arrived(&mut server), arrived(&mut client)], [Some(1), Some(1)]);
    let (mut sending, _receiving) = client.pair.split();
    sending.inject(Script::new().at(1, Fault::Drop));
    let requests = [2, 3, 4].map(|number| WorkRequest {
        id: number.into(),
        operation: send(&[], number),
        flags: Flags::SIGNALED,
    });
    let (posted, result) = sending.post_list(&requests);
    result.unwrap();
    assert_eq!(posted, 3);
    server.post_receives(2..3);
    assert_eq!([arrived(&mut server), arrived(&mut server)], [Some(2), Some(4)]);
}

/// What of `script` a peer sees of 200 messages of 8 bytes: their numbers and lengths.
fn seen(fixture: &Fixture, script: &Script) -> Vec<(u32, u32)> {
    const MESSAGES: u32 = 200;
    let depth = 2 * MESSAGES + 1; // as if each was duplicated
    let config = QueuePairConfig {
        send_depth: depth,
        receive_depth: depth,
        max_inline_data: 8,
        ..QueuePairConfig::default()
    };
    let (mut server, mut client) = ends_with(fixture, &config);
    let landing = server.region(8);
    for id in 0..depth {
        server.pair.post_receive(id.into(), Some(landing.slice(0..8).unwrap())).unwrap();
    }
    client.pair.inject(script.clone());
    (0..MESSAGES).for_each(|n| client.post(n.into(), send(&[7; 8], n), Flags::SIGNALED));
    client.pair.inject(Script::new());
    client.post(MESSAGES.into(), send(&[], MESSAGES), Flags::SIGNALED);
    (0..=MESSAGES).for_each(|n| succeeded(&mut client, n.into()));
    let arrivals = std::iter::from_fn(|| {
        let done = next(&mut server.receives);
        assert_eq!((done.status, done.opcode), (Status::Success, Opcode::Receive));
        Some((done.immediate.unwrap(), done.bytes))
    });
    arrivals.take_while(|(number, _)| *number < MESSAGES).collect()
}

/// What a peer has to see of them.
fn told(script: &Script) -> Vec<(u32, u32)> {
    let one = |number: u32| match script.fault(number.into(), 8) {
        Some(Fault::Drop) => vec![],
        Some(Fault::Duplicate) => vec![(number, 8), (number, 8)],
        Some(Fault::Truncate(bytes)) => vec![(number, bytes as u32)],
        Some(Fault::Delay(_) | Fault::Disconnect) | None => vec![(number, 8)],
    };
    (0..200).flat_map(one).collect()
}

pub fn the_same_seed_makes_the_same_faults(fixture: &Fixture) {
    let chances = Chances {
        drop: 0.2,
        delay: 0.05,
        delay_for: Duration::from_millis(1),
        duplicate: 0.2,
        truncate: 0.2,
        disconnect: 0.0,
    };
    let script = Script::random(7, chances).unwrap();
    let first = seen(fixture, &script);
    assert_eq!(first, told(&script));
    assert_eq!(first, seen(fixture, &script));
    assert_ne!(first, seen(fixture, &Script::random(8, chances).unwrap()));
}

/// A process with `script` in [`VARIABLE`] that connects to us and sends one message.
fn process(fixture: &Fixture, script: &str, to: SocketAddr) -> Peer {
    Peer::start_with("close", &fixture.client, to, &[(VARIABLE, script)])
}

pub fn a_variable_injects_into_every_queue_pair_of_a_process(fixture: &Fixture) {
    let device = Device::open(&fixture.server).unwrap();
    let (mut listener, to) = listen(&device);
    let mut server = End::new(&device, &QueuePairConfig::default());
    server.post_receives(0..3);
    let _peer = process(fixture, "seed=1,duplicate=1", to);
    accept(&mut listener, &mut server);
    assert_eq!([arrived(&mut server), arrived(&mut server)], [Some(1), Some(1)]);
}

pub fn a_wrong_variable_is_told_when_a_device_is_opened(fixture: &Fixture) {
    let device = Device::open(&fixture.server).unwrap();
    let (_listener, to) = listen(&device);
    let mut peer = process(fixture, "seed=1,lose=1", to);
    let error = peer.error();
    assert!(error.contains("RDMALIB_FAULTS: lose=1: unknown"), "{error}");
}
