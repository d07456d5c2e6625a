//! However a peer ends, the other end notices, spinning or asleep, and nothing is left behind.

use std::time::{Duration, Instant};

use rdmalib::{
    CompletionQueue, Error, Flags, Operation, QueuePairConfig, RnrRetry, Source, State, Status,
    WorkCompletion, WorkRequest,
};

use crate::Fixture;
use crate::ends::*;
use crate::peer::{LARGE, Peer, address_bytes};

fn poll(queue: &mut CompletionQueue) -> WorkCompletion {
    next(queue)
}

fn sleep(queue: &mut CompletionQueue) -> WorkCompletion {
    let start = Instant::now();
    loop {
        if let Some(completion) = queue.poll_one() {
            return completion;
        }
        assert!(start.elapsed() < PATIENCE, "slept through the end");
        queue.wait(Some(PATIENCE)).unwrap();
    }
}

fn a_peer_that(
    role: &str,
    fixture: &Fixture,
    wait: impl Fn(&mut CompletionQueue) -> WorkCompletion,
) {
    let (device, _) = open(fixture);
    let mut server = End::new(&device, &QueuePairConfig::default());
    server.post_receives(0..3);
    let (mut listener, to) = listen(&device);
    let mut peer = Peer::start(role, &fixture.client, to);
    accept(&mut listener, &mut server);
    assert_eq!(next(&mut server.receives).immediate, Some(1));
    assert_eq!(server.pair.state(), State::Connected);
    let end = Operation::Send { source: Source::Inline(&[]), immediate: None };
    assert_eq!(server.run(end), Status::Success);
    if role == "linger" {
        peer.kill();
    }
    for id in 1..3 {
        let done = wait(&mut server.receives);
        assert_eq!((done.id, done.status), (id, Status::Flushed));
    }
    assert_eq!(server.pair.state(), State::Error);
}

pub fn a_peers_close_ends_a_poll(fixture: &Fixture) {
    a_peer_that("close", fixture, poll);
}

pub fn a_peers_close_ends_a_sleep(fixture: &Fixture) {
    a_peer_that("close", fixture, sleep);
}

pub fn a_peers_exit_ends_a_poll(fixture: &Fixture) {
    a_peer_that("exit", fixture, poll);
}

pub fn a_peers_exit_ends_a_sleep(fixture: &Fixture) {
    a_peer_that("exit", fixture, sleep);
}

pub fn a_peers_kill_ends_a_poll(fixture: &Fixture) {
    a_peer_that("linger", fixture, poll);
}

pub fn a_peers_kill_ends_a_sleep(fixture: &Fixture) {
    a_peer_that("linger", fixture, sleep);
}

pub fn a_peers_kill_in_the_middle_of_a_large_write_ends_a_poll(fixture: &Fixture) {
    for round in 0..fixture.rounds(40).min(8) as u8 {
        let (device, _) = open(fixture);
        let mut server = End::new(&device, &QueuePairConfig::default());
        let target = server.region(LARGE);
        server.post_receives(0..2);
        let (mut listener, to) = listen(&device);
        let mut peer = Peer::start("write", &fixture.client, to);
        let request = listener.next(PATIENCE).unwrap().expect("a connector comes");
        request.accept(&mut server.pair, &address_bytes(target.remote())).unwrap();
        let mut killed = None;
        loop {
            let done = next(&mut server.receives);
            if done.status != Status::Success {
                assert_eq!(done.status, Status::Flushed);
                break;
            }
            // One that completes is whole, also after the kill.
            let n = done.immediate.unwrap() as u8;
            assert!(bytes(&target).iter().all(|byte| *byte == n), "round {round}, message {n}");
            if n < 2 + round || killed.is_some() {
                server.post_receives(0..1);
                let answer = Operation::Send { source: Source::Inline(&[]), immediate: None };
                let flags = Flags::SIGNALED;
                let _ = server.pair.post(&WorkRequest { id: 0, operation: answer, flags });
            }
            if n > round && killed.is_none() {
                // It is about to write the next one, or is writing it.
                std::thread::sleep(Duration::from_micros(u64::from(round) * 40));
                peer.kill();
                killed = Some(n);
            }
        }
        assert!(killed.is_some(), "it ended by itself");
        assert_eq!(server.pair.state(), State::Error);
    }
}

pub fn what_arrived_before_the_end_is_delivered_first(fixture: &Fixture) {
    for _ in 0..50 {
        let (mut server, mut client) = ends(fixture);
        server.post_receives(0..8);
        for n in 0..5 {
            let message = Operation::Send { source: Source::Inline(&[]), immediate: Some(n) };
            client.post(0, message, Flags::SIGNALED);
            next(&mut client.sends);
        }
        drop(client);
        for n in 0..5 {
            let done = next(&mut server.receives);
            assert_eq!((done.status, done.immediate), (Status::Success, Some(n)));
        }
        for id in 5..8 {
            let done = next(&mut server.receives);
            assert_eq!((done.id, done.status), (id, Status::Flushed));
        }
    }
}

pub fn an_end_right_after_accepting_is_noticed(fixture: &Fixture) {
    for round in 0..20 {
        let (mut server, mut client) = ends(fixture);
        client.post_receives(0..1);
        if round % 2 == 0 {
            drop(server);
        } else {
            server.pair.disconnect();
        }
        assert_eq!(sleep(&mut client.receives).status, Status::Flushed);
        assert_eq!(client.pair.state(), State::Error);
    }
}

pub fn after_the_end_everything_posted_is_flushed(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let (source, target) = (client.region(8), server.region(8));
    client.pair.disconnect();
    client.pair.disconnect();
    assert_eq!(client.run(write(&source, 0..8, target.remote())), Status::Flushed);
    client.post_receives(5..6);
    let done = next(&mut client.receives);
    assert_eq!((done.id, done.status), (5, Status::Flushed));
    server.post_receives(6..7);
    let done = sleep(&mut server.receives);
    assert_eq!((done.id, done.status), (6, Status::Flushed));
    let again = client.pair.connect("127.0.0.1:1".parse().unwrap(), &[], PATIENCE);
    assert!(matches!(again, Err(Error::InvalidArgument(_))), "{again:?}");
}

pub fn a_queue_pair_that_ends_before_it_is_connected_flushes_too(fixture: &Fixture) {
    let (_, device) = open(fixture);
    let mut end = End::new(&device, &QueuePairConfig::default());
    end.post_receives(1..2);
    end.pair.disconnect();
    assert_eq!(end.pair.state(), State::Error);
    end.post_receives(2..3);
    for id in 1..3 {
        let done = sleep(&mut end.receives);
        assert_eq!((done.id, done.status), (id, Status::Flushed));
    }
    let message = Operation::Send { source: Source::Inline(&[]), immediate: None };
    for (id, flags) in [(3, Flags::SIGNALED), (4, Flags::empty())] {
        end.post(id, message, flags);
        let done = sleep(&mut end.sends);
        assert_eq!((done.id, done.status), (id, Status::Flushed));
    }
    let (_listener, to) = listen(&device);
    let connected = end.pair.connect(to, &[], PATIENCE);
    assert!(matches!(connected, Err(Error::InvalidArgument(_))), "{connected:?}");
}

pub fn after_a_disconnect_the_peer_writes_nothing(fixture: &Fixture) {
    for _ in 0..100 {
        let (mut server, mut client) = ends(fixture);
        let (source, target) = (client.region(8), server.region(8));
        source.fill(0..8, 1).unwrap();
        server.pair.disconnect();
        // The client may not have noticed yet.
        assert_ne!(client.run(write(&source, 0..8, target.remote())), Status::Success);
        assert_eq!(bytes(&target), [0; 8]);
    }
}

pub fn a_failed_request_ends_both_sides(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    server.post_receives(0..1);
    let source = client.region(8);
    let wrong = rdmalib::RemoteAddress { addr: 1 << 20, key: 12345 };
    assert_eq!(client.run(write(&source, 0..8, wrong)), Status::RemoteAccessError);
    assert_eq!(sleep(&mut server.receives).status, Status::Flushed);
    assert_eq!(server.pair.state(), State::Error);
}

pub fn a_waiting_request_is_flushed_at_the_end(fixture: &Fixture) {
    let config = QueuePairConfig { rnr_retry: RnrRetry::Forever, ..Default::default() };
    let (server, mut client) = ends_with(fixture, &config);
    let message = Operation::Send { source: Source::Inline(&[]), immediate: None };
    for id in 0..3 {
        client.pair.post(&WorkRequest { id, operation: message, flags: Flags::empty() }).unwrap();
    }
    drop(server);
    for id in 0..3 {
        let done = sleep(&mut client.sends);
        assert_eq!((done.id, done.status), (id, Status::Flushed));
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub fn an_end_leaves_no_descriptor_behind(fixture: &Fixture) {
    // Other facts run at the same time: look for what grows with every round.
    let rounds = fixture.rounds(300).max(100) as usize;
    let before = descriptors();
    for _ in 0..rounds {
        let (mut server, mut client) = ends(fixture);
        server.post_receives(0..1);
        let message = Operation::Send { source: Source::Inline(&[]), immediate: None };
        assert_eq!(client.run(message), Status::Success);
    }
    let start = Instant::now();
    // Helper threads close what is theirs a moment later.
    while descriptors() > before + rounds / 2 {
        assert!(start.elapsed() < PATIENCE, "{before} descriptors grew to {}", descriptors());
        std::thread::yield_now();
    }
}
