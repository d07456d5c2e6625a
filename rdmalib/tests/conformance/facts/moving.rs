//! Bytes move, and completions tell of it.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use rdmalib::{
    Access, Flags, Opcode, Operation, QueuePair, QueuePairConfig, RnrRetry, Source, Status,
    WorkRequest,
};

use crate::Fixture;
use crate::ends::*;
use crate::peer::{ADDITIONS, Peer, address_bytes};

pub fn a_write_lands_before_its_completion(fixture: &Fixture) {
    let lengths = (0..2000).map(|_| 4096);
    writes_are_whole(fixture, Flags::SIGNALED, lengths);
}

pub fn a_large_write_is_whole_when_its_completion_comes(fixture: &Fixture) {
    const BYTES: usize = (1 << 20) + 4097;
    // From some ten thousand bytes on.
    let lengths = (0..fixture.rounds(120)).map(|round| BYTES >> (round % 6));
    writes_are_whole(fixture, Flags::SIGNALED | Flags::WITH_COMPLETION, lengths);
}

/// Makes a write of each of `lengths` bytes to the same place, the next one after the receiver has
/// checked the one before.
fn writes_are_whole(
    fixture: &Fixture,
    flags: Flags,
    lengths: impl Iterator<Item = usize> + Clone + Send,
) {
    let most = lengths.clone().max().unwrap();
    let (mut server, mut client) = ends(fixture);
    let target = server.region(most);
    let to = target.remote();
    server.post_receives(0..2);
    let rounds = || (0u32..).zip(lengths.clone());
    thread::scope(|scope| {
        let sent = rounds();
        scope.spawn(move || {
            let source = client.region(most);
            client.post_receives(0..2);
            for (round, bytes) in sent {
                source.fill(0..most, round as u8).unwrap();
                client.post(0, write_imm(&source, 0..bytes, to, round), flags);
                assert_eq!(next(&mut client.sends).status, Status::Success);
                // The server says that it has checked it.
                next(&mut client.receives);
                client.post_receives(0..1);
            }
        });
        for (round, bytes) in rounds() {
            let arrived = next(&mut server.receives);
            assert_eq!((arrived.immediate, arrived.bytes), (Some(round), bytes as u32));
            let all = self::bytes(&target);
            assert!(all[..bytes].iter().all(|byte| *byte == round as u8), "round {round}");
            let behind = all.get(bytes).copied();
            assert!(round == 0 || behind != Some(round as u8), "round {round} wrote too much");
            server.post_receives(0..1);
            let seen = Operation::Send { source: Source::Inline(&[]), immediate: None };
            server.post(0, seen, Flags::SIGNALED);
            next(&mut server.sends);
        }
    });
}

pub fn a_write_that_comes_with_its_completion_lands_where_it_belongs(fixture: &Fixture) {
    const BYTES: usize = 4200;
    let (mut server, mut client) = ends(fixture);
    let (source, target) = (client.region(BYTES), server.region(BYTES));
    let pattern: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    source.write(0, &pattern).unwrap();
    for bytes in (1..130).chain([4096]) {
        for (from, to) in [(0, 0), (3, 17), (64, 64)] {
            target.fill(0..BYTES, 0xff).unwrap();
            server.post_receives(0..1);
            let place = target.remote().offset(to as u64);
            let operation = write_imm(&source, from..from + bytes, place, bytes as u32);
            client.post(0, operation, Flags::SIGNALED | Flags::WITH_COMPLETION);
            let arrived = next(&mut server.receives);
            assert_eq!(
                (arrived.status, arrived.opcode),
                (Status::Success, Opcode::ReceiveWithImmediate)
            );
            assert_eq!((arrived.bytes, arrived.immediate), (bytes as u32, Some(bytes as u32)));
            let mut expected = vec![0xff; BYTES];
            expected[to..to + bytes].copy_from_slice(&pattern[from..from + bytes]);
            assert!(self::bytes(&target) == expected, "{bytes} bytes from {from} to {to}");
            assert_eq!(next(&mut client.sends).status, Status::Success);
        }
    }
}

pub fn writes_that_come_with_their_completions_land_in_order(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let (source, target) = (client.region(64), server.region(64));
    source.fill(0..32, 1).unwrap();
    source.fill(32..64, 2).unwrap();
    server.post_receives(0..2);
    client.post(0, write_imm(&source, 0..32, target.remote(), 1), Flags::WITH_COMPLETION);
    let second = write_imm(&source, 32..48, target.remote().offset(8), 2);
    client.post(1, second, Flags::SIGNALED | Flags::WITH_COMPLETION);
    next(&mut client.sends);
    next(&mut server.receives);
    next(&mut server.receives);
    let expected = [[1; 8].as_slice(), &[2; 16], &[1; 8], &[0; 32]].concat();
    assert_eq!(bytes(&target), expected);
}

pub fn completions_come_in_posting_order(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let (source, target) = (client.region(64), server.region(64));
    server.post_receives(100..132);
    for id in 0..32 {
        let operation = match id % 4 {
            0 => write(&source, 0..8, target.remote()),
            1 => write_imm(&source, 0..8, target.remote(), id as u32),
            2 => Operation::Read { into: source.slice(8..16).unwrap(), from: target.remote() },
            _ => Operation::FetchAdd {
                into: source.slice(16..24).unwrap(),
                at: target.remote().offset(32),
                add: 1,
            },
        };
        client.post(id, operation, Flags::SIGNALED);
    }
    for id in 0..32 {
        assert_eq!(next(&mut client.sends).id, id);
    }
    for (receive, sent) in (100..108).zip((1..32).step_by(4)) {
        let done = next(&mut server.receives);
        assert_eq!((done.id, done.immediate), (receive, Some(sent)));
    }
}

pub fn immediate_data_arrives_unchanged(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let (source, target) = (client.region(8), server.region(8));
    let values = [0, 1, 0x1234_5678, 0x8000_0000, u32::MAX];
    server.post_receives(0..5);
    for value in values {
        assert_eq!(client.run(write_imm(&source, 0..8, target.remote(), value)), Status::Success);
        let done = next(&mut server.receives);
        assert_eq!((done.immediate, done.bytes), (Some(value), 8));
        assert_eq!(done.opcode, Opcode::ReceiveWithImmediate);
    }
}

pub fn a_message_lands_in_the_receive_that_was_posted_first(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let buffers = server.region(64);
    for id in 0..4 {
        let at = 16 * id;
        server.pair.post_receive(id as u64, Some(buffers.slice(at..at + 16).unwrap())).unwrap();
    }
    for id in 0..4u8 {
        let message = [id + 1; 5];
        let immediate = (id == 2).then_some(99);
        let source = Source::Inline(&message);
        assert_eq!(client.run(Operation::Send { source, immediate }), Status::Success);
    }
    for id in 0..4u8 {
        let done = next(&mut server.receives);
        assert_eq!((done.id, done.bytes, done.opcode), (u64::from(id), 5, Opcode::Receive));
        assert_eq!(done.immediate, (id == 2).then_some(99));
        let at = 16 * usize::from(id);
        assert_eq!(bytes(&buffers)[at..at + 6], [id + 1, id + 1, id + 1, id + 1, id + 1, 0]);
    }
}

pub fn a_read_brings_the_peers_bytes(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let (from, into) = (server.region(100), client.region(100));
    from.write(10, b"there").unwrap();
    let read =
        Operation::Read { into: into.slice(50..55).unwrap(), from: from.remote().offset(10) };
    assert_eq!(client.run(read), Status::Success);
    assert_eq!(&bytes(&into)[49..56], b"\0there\0");
}

pub fn atomics_return_the_old_value(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let (word, old) = (server.region(64), client.region(8));
    let at = word.remote().offset(8);
    let into = || old.slice(0..8).unwrap();
    word.write(8, &u64::MAX.to_ne_bytes()).unwrap();
    let add = Operation::FetchAdd { into: into(), at, add: 3 };
    assert_eq!(client.run(add), Status::Success);
    assert_eq!((old.load_u64(0).unwrap(), word.load_u64(8).unwrap()), (u64::MAX, 2));
    let swap = |expect| Operation::CompareSwap { into: into(), at, expect, swap: 50 };
    assert_eq!(client.run(swap(1)), Status::Success);
    assert_eq!((old.load_u64(0).unwrap(), word.load_u64(8).unwrap()), (2, 2));
    assert_eq!(client.run(swap(2)), Status::Success);
    assert_eq!((old.load_u64(0).unwrap(), word.load_u64(8).unwrap()), (2, 50));
    word.store_u64(8, 60).unwrap();
    assert_eq!(client.run(swap(2)), Status::Success);
    assert_eq!((old.load_u64(0).unwrap(), word.load_u64(8).unwrap()), (60, 60));
}

pub fn atomics_are_atomic_between_two_processes(fixture: &Fixture) {
    let (server, client) = open(fixture);
    let (mut listener, to) = listen(&server);
    let domain = server.domain().unwrap();
    let counter = domain.allocate(8, ALL).unwrap();
    let queue = server.completion_queue(1024).unwrap();
    let config = QueuePairConfig::default();
    let mut mine = End::new(&client, &config);
    let mut accept = || {
        let mut pair = QueuePair::new(&domain, &queue, &queue, &config).unwrap();
        let request = listener.next(PATIENCE).unwrap().expect("a connector comes");
        request.accept(&mut pair, &address_bytes(counter.remote())).unwrap();
        pair
    };
    let mut peer = Peer::start("add", &fixture.client, to);
    let theirs = accept();
    let ours = thread::scope(|scope| {
        scope.spawn(|| mine.pair.connect(to, &[], PATIENCE).unwrap());
        accept()
    });
    let old = mine.region(8);
    for _ in 0..ADDITIONS {
        let into = old.slice(0..8).unwrap();
        let add = Operation::FetchAdd { into, at: counter.remote(), add: 1 };
        assert_eq!(mine.run(add), Status::Success);
    }
    peer.wait();
    assert_eq!(counter.load_u64(0).unwrap(), 4 * ADDITIONS); // ones of ours, threes of the peer
    drop((theirs, ours));
}

pub fn a_write_of_nothing_still_announces_itself(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    server.post_receives(5..6);
    let nowhere = rdmalib::RemoteAddress::default();
    let operation =
        Operation::Write { source: Source::Inline(&[]), to: nowhere, immediate: Some(4) };
    assert_eq!(client.run(operation), Status::Success);
    let done = next(&mut server.receives);
    assert_eq!((done.id, done.bytes, done.immediate), (5, 0, Some(4)));
}

pub fn inline_data_may_be_reused_at_once(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let target = server.region(256);
    let mut buffer = [7; 200];
    // No receive is posted, so the request must wait, without the caller's memory.
    let operation = Operation::Write {
        source: Source::Inline(&buffer),
        to: target.remote(),
        immediate: Some(1),
    };
    client.post(1, operation, Flags::SIGNALED);
    buffer.fill(8);
    server.post_receives(0..1);
    assert_eq!(next(&mut client.sends).status, Status::Success);
    next(&mut server.receives);
    assert_eq!(bytes(&target)[..201], [&[7; 200][..], &[0]].concat());
}

pub fn requests_posted_as_a_list_are_carried_out_in_order(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let target = server.region(8);
    server.post_receives(0..10);
    let values: Vec<[u8; 1]> = (0..10).map(|n| [n]).collect();
    let requests: Vec<_> = values
        .iter()
        .map(|value| WorkRequest {
            id: u64::from(value[0]),
            operation: Operation::Write {
                source: Source::Inline(value),
                to: target.remote(),
                immediate: Some(u32::from(value[0])),
            },
            flags: if value[0] == 9 { Flags::SIGNALED } else { Flags::empty() },
        })
        .collect();
    let (posted, result) = client.pair.post_list(&requests);
    result.unwrap();
    assert_eq!(posted, 10);
    assert_eq!(next(&mut client.sends).id, 9);
    for n in 0..10 {
        assert_eq!(next(&mut server.receives).immediate, Some(n));
    }
    assert_eq!(bytes(&target)[0], 9);
}

pub fn memory_registered_after_connecting_is_reachable(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let source = client.region(1 << 16);
    source.fill(0..1 << 16, 3).unwrap();
    for megabytes in [1, 5, 40] {
        let target = server.region(megabytes << 20);
        let last = (megabytes << 20) - (1 << 16);
        let to = target.remote().offset(last as u64);
        assert_eq!(client.run(write(&source, 0..1 << 16, to)), Status::Success);
        let mut end = [0; 2];
        target.read(last - 1, &mut end).unwrap();
        assert_eq!(end, [0, 3]);
    }
}

pub fn starting_processes_leaves_memory_where_it_is(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let (source, target) = (client.region(64), server.region(64));
    let own = nix::unistd::getuid().as_raw();
    for round in 1..20u8 {
        // With a user id the standard library forks, without one it uses posix_spawn. While the child
        // lives, what this process writes must still be what the device reads, and the reverse.
        let mut command = Command::new("sleep");
        command.arg("0.01");
        if round % 2 == 0 {
            command.uid(own);
        }
        let mut child = command.spawn().unwrap();
        source.fill(0..64, round).unwrap();
        target.fill(0..64, 0).unwrap();
        assert_eq!(client.run(write(&source, 0..64, target.remote())), Status::Success);
        assert_eq!(bytes(&target), [round; 64]);
        child.wait().unwrap();
    }
}

pub fn unsignaled_requests_do_not_complete(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let (source, target) = (client.region(8), server.region(8));
    for id in 0..20 {
        client.post(id, write(&source, 0..8, target.remote()), Flags::empty());
    }
    stays_empty(&mut client.sends);
    assert_eq!(client.run(write(&source, 0..8, target.remote())), Status::Success);
    stays_empty(&mut client.sends);
}

pub fn one_completion_queue_serves_several_queue_pairs(fixture: &Fixture) {
    const PAIRS: u64 = 5;
    let (server, client) = open(fixture);
    let config = QueuePairConfig { receive_depth: 8, send_depth: 8, ..QueuePairConfig::default() };
    let domain = server.domain().unwrap();
    let mut shared = server.completion_queue(16 * PAIRS as u32).unwrap();
    let (mut listener, to) = listen(&server);
    let mut pairs = Vec::new();
    let mut clients: Vec<_> = (0..PAIRS).map(|_| End::new(&client, &config)).collect();
    for (n, end) in clients.iter_mut().enumerate() {
        let mut pair = QueuePair::new(&domain, &shared, &shared, &config).unwrap();
        (0..4).for_each(|id| pair.post_receive(10 * n as u64 + id, None).unwrap());
        thread::scope(|scope| {
            scope.spawn(|| end.pair.connect(to, &[], PATIENCE).unwrap());
            let request = listener.next(PATIENCE).unwrap().expect("a connector comes");
            request.accept(&mut pair, &[]).unwrap();
        });
        pairs.push(pair);
    }
    for round in 0..4 {
        for (n, end) in clients.iter_mut().enumerate() {
            let source = Source::Inline(&[]);
            let immediate = Some(n as u32);
            assert_eq!(end.run(Operation::Send { source, immediate }), Status::Success);
            let done = next(&mut shared);
            assert_eq!(done.queue_pair, pairs[n].number());
            assert_eq!((done.id, done.immediate), (10 * n as u64 + round, immediate));
        }
    }
}

pub fn both_halves_work_in_two_threads(fixture: &Fixture) {
    const MESSAGES: u64 = 20_000;
    let config = QueuePairConfig { rnr_retry: RnrRetry::Forever, ..QueuePairConfig::default() };
    let (server, mut client) = ends_with(fixture, &config);
    let End { pair, mut receives, domain, .. } = server;
    let (mut send, mut receive) = pair.split();
    let buffer = domain.allocate(64, Access::LOCAL_WRITE).unwrap();
    let post = |receive: &mut rdmalib::ReceiveQueue, id| {
        receive.post(id, Some(buffer.slice(0..64).unwrap())).unwrap();
    };
    (0..8).for_each(|id| post(&mut receive, id));
    client.post_receives(0..1);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..MESSAGES {
                assert_eq!(next(&mut receives).id, n);
                post(&mut receive, n + 8);
            }
        });
        for n in 0..MESSAGES {
            let source = Source::Inline(&[]);
            client.post(n, Operation::Send { source, immediate: None }, Flags::SIGNALED);
            assert_eq!(next(&mut client.sends).status, Status::Success);
        }
    });
    let operation = Operation::Send { source: Source::Inline(&[]), immediate: Some(5) };
    send.post(&WorkRequest { id: 0, operation, flags: Flags::empty() }).unwrap();
    assert_eq!(next(&mut client.receives).immediate, Some(5));
}

/// Each end posts in one thread and polls in another. In turn, the two are close behind each other
/// and far apart.
pub fn messages_that_cross_arrive_in_order_and_whole(fixture: &Fixture) {
    const SLOTS: u32 = 8;
    const MOST: usize = 96;
    let messages = fixture.rounds(200_000);
    let bytes = |n: u32| 1 + n as usize % MOST;
    let (server, client) = ends(fixture);
    let targets = [&server, &client].map(|end| end.region(SLOTS as usize * MOST));
    let taken = [AtomicU32::new(0), AtomicU32::new(0)];
    let slot = |n: u32| (n % SLOTS) as usize * MOST;
    thread::scope(|scope| {
        for (at, end) in [server, client].into_iter().enumerate() {
            let End { mut sends, mut receives, pair, .. } = end;
            let (mut send, mut receive) = pair.split();
            (0..SLOTS).for_each(|n| receive.post(n.into(), None).unwrap());
            let (mine, theirs, taken) = (&targets[at], &targets[1 - at], &taken);
            let poster = scope.spawn(move || {
                for n in 0..messages {
                    let start = Instant::now();
                    let most_under_way = [1, 2, SLOTS][(n / 64 % 3) as usize];
                    while n - taken[1 - at].load(Ordering::Acquire) >= most_under_way {
                        assert!(start.elapsed() < PATIENCE, "the peer takes nothing");
                        thread::yield_now();
                    }
                    let payload = [n as u8; MOST];
                    let operation = Operation::Write {
                        source: Source::Inline(&payload[..bytes(n)]),
                        to: theirs.remote().offset(slot(n) as u64),
                        immediate: Some(n),
                    };
                    let how = if n % 5 == 0 { Flags::empty() } else { Flags::WITH_COMPLETION };
                    let flags = how | Flags::SIGNALED;
                    send.post(&WorkRequest { id: n.into(), operation, flags }).unwrap();
                    assert_eq!(next(&mut sends).status, Status::Success);
                }
                send // both ends outlive the last message
            });
            scope.spawn(move || {
                for n in 0..messages {
                    let done = next(&mut receives);
                    assert_eq!((done.id, done.immediate), (n.into(), Some(n)));
                    assert_eq!(done.bytes as usize, bytes(n));
                    let mut got = [0; MOST];
                    mine.read(slot(n), &mut got).unwrap();
                    assert!(got[..bytes(n)].iter().all(|byte| *byte == n as u8), "message {n}");
                    receive.post(u64::from(n) + u64::from(SLOTS), None).unwrap();
                    taken[at].store(n + 1, Ordering::Release);
                }
                poster.join().unwrap();
            });
        }
    });
}
