//! Receiver not ready, and sleeping until there is something.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rdmalib::{
    CompletionQueue, Flags, Notify, Operation, QueuePairConfig, RnrRetry, Source, State, Status,
    WorkCompletion, WorkRequest,
};

use crate::Fixture;
use crate::ends::*;

fn with_retry(fixture: &Fixture, rnr_retry: RnrRetry) -> (End, End) {
    let rnr_timer = Duration::from_millis(2);
    ends_with(
        fixture,
        &QueuePairConfig { rnr_retry, rnr_timer, max_inline_data: 64, ..Default::default() },
    )
}

pub fn a_write_without_a_receive_fails_if_told_not_to_wait(fixture: &Fixture) {
    let (server, mut client) = with_retry(fixture, RnrRetry::Times(0));
    let (source, target) = (client.region(8), server.region(8));
    // A plain write needs no receive.
    assert_eq!(client.run(write(&source, 0..8, target.remote())), Status::Success);
    let status = client.run(write_imm(&source, 0..8, target.remote(), 1));
    assert_eq!(status, Status::RnrRetryExceeded);
    assert_eq!(client.pair.state(), State::Error);
}

pub fn a_write_without_a_receive_waits_for_one(fixture: &Fixture) {
    let (mut server, mut client) = with_retry(fixture, RnrRetry::Forever);
    let (source, target) = (client.region(8), server.region(8));
    client.post(4, write_imm(&source, 0..8, target.remote(), 7), Flags::SIGNALED);
    stays_empty(&mut client.sends);
    server.post_receives(3..4);
    let done = next(&mut server.receives);
    assert_eq!((done.id, done.immediate), (3, Some(7)));
    let done = next(&mut client.sends);
    assert_eq!((done.id, done.status), (4, Status::Success));
    // And the fast way works again.
    server.post_receives(4..5);
    assert_eq!(client.run(write_imm(&source, 0..8, target.remote(), 8)), Status::Success);
    assert_eq!(next(&mut server.receives).immediate, Some(8));
}

pub fn retries_for_a_receive_run_out(fixture: &Fixture) {
    let (server, mut client) = with_retry(fixture, RnrRetry::Times(3));
    let (source, target) = (client.region(8), server.region(8));
    client.post(1, write_imm(&source, 0..8, target.remote(), 1), Flags::empty());
    client.post(2, write(&source, 0..8, target.remote()), Flags::empty());
    let done = next(&mut client.sends);
    assert_eq!((done.id, done.status), (1, Status::RnrRetryExceeded));
    let done = next(&mut client.sends);
    assert_eq!((done.id, done.status), (2, Status::Flushed));
}

pub fn requests_behind_one_that_waits_keep_their_order(fixture: &Fixture) {
    const MESSAGES: u32 = 2000;
    let (mut server, mut client) = with_retry(fixture, RnrRetry::Forever);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut posted = 0u32;
            let mut done = 0;
            while done < MESSAGES {
                let data = posted.to_le_bytes();
                let operation =
                    Operation::Send { source: Source::Inline(&data), immediate: Some(posted) };
                let request =
                    WorkRequest { id: u64::from(posted), operation, flags: Flags::SIGNALED };
                if posted < MESSAGES && client.pair.post(&request).is_ok() {
                    posted += 1;
                }
                while let Some(completion) = client.sends.poll_one() {
                    assert_eq!((completion.id, completion.status), (done.into(), Status::Success));
                    done += 1;
                }
            }
        });
        // Receives are posted at intervals, so that the sender runs out of them often.
        let buffer = server.region(4);
        let mut posted = 0;
        for n in 0..MESSAGES {
            if posted == n {
                if n % 7 == 0 {
                    thread::sleep(Duration::from_micros(500));
                }
                for _ in 0..(n % 5 + 1).min(MESSAGES - posted) {
                    let place = buffer.slice(0..4).unwrap();
                    server.pair.post_receive(posted.into(), Some(place)).unwrap();
                    posted += 1;
                }
            }
            let done = next(&mut server.receives);
            assert_eq!((done.id, done.immediate, done.bytes), (n.into(), Some(n), 4));
        }
    });
}

fn readable(fd: impl AsFd, timeout: Duration) -> bool {
    let timeout = PollTimeout::try_from(timeout).unwrap();
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout).unwrap() == 1
}

pub fn an_armed_queue_wakes_its_sleeper(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    server.post_receives(0..4);
    let message = Operation::Send { source: Source::Inline(&[]), immediate: None };
    // Not armed: nothing wakes the sleeper.
    assert_eq!(client.run(message), Status::Success);
    server.receives.acknowledge().unwrap();
    assert!(!readable(&server.receives, Duration::from_millis(30)));
    // What landed before arming is not announced.
    server.receives.arm(Notify::Any).unwrap();
    assert!(!readable(&server.receives, Duration::from_millis(30)));
    assert!(server.receives.poll_one().is_some());
    // What lands after is, once.
    assert_eq!(client.run(message), Status::Success);
    assert!(readable(&server.receives, PATIENCE));
    server.receives.acknowledge().unwrap();
    assert!(server.receives.poll_one().is_some());
    assert_eq!(client.run(message), Status::Success);
    assert!(!readable(&server.receives, Duration::from_millis(30)));
    assert!(server.receives.poll_one().is_some());
}

pub fn solicited_completions_alone_wake_who_waits_for_them(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    server.post_receives(0..4);
    server.receives.arm(Notify::Solicited).unwrap();
    let message = Operation::Send { source: Source::Inline(&[]), immediate: None };
    client.post(0, message, Flags::SIGNALED);
    assert!(!readable(&server.receives, Duration::from_millis(30)));
    client.post(0, message, Flags::SIGNALED | Flags::SOLICITED);
    assert!(readable(&server.receives, PATIENCE));
    assert_eq!(server.receives.poll(&mut [WorkCompletion::default(); 4]), 2);
}

pub fn a_waker_ends_a_wait(fixture: &Fixture) {
    let (mut server, _client) = ends(fixture);
    let waker = server.receives.waker();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        let start = Instant::now();
        server.receives.wait(Some(PATIENCE)).unwrap();
        assert!(start.elapsed() < PATIENCE);
    });
    // One that came before the wait is not lost either.
    server.receives.waker().wake();
    let start = Instant::now();
    server.receives.wait(Some(PATIENCE)).unwrap();
    assert!(start.elapsed() < PATIENCE);
}

pub fn a_wait_ends_at_its_timeout(fixture: &Fixture) {
    let (mut server, _client) = ends(fixture);
    let start = Instant::now();
    server.receives.wait(Some(Duration::from_millis(20))).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(server.receives.poll_one(), None);
    server.receives.wait(Some(Duration::ZERO)).unwrap();
}

pub fn a_sleeper_is_woken_by_its_own_process(fixture: &Fixture) {
    let (server, client) = ends(fixture);
    let target = server.region(8);
    let End { mut pair, mut sends, domain, .. } = client;
    let source = domain.allocate(8, ALL).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            let operation = write(&source, 0..8, target.remote());
            pair.post(&WorkRequest { id: 6, operation, flags: Flags::SIGNALED }).unwrap();
        });
        let start = Instant::now();
        let done = loop {
            sends.wait(Some(PATIENCE)).unwrap();
            if let Some(done) = sends.poll_one() {
                break done;
            }
            assert!(start.elapsed() < PATIENCE, "slept through the completion");
        };
        assert_eq!(done.id, 6);
    });
}

/// A xorshift generator (Marsaglia 2003): any seed but 0.
fn random(state: &mut u32) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    *state
}

pub fn no_event_is_slept_through(fixture: &Fixture) {
    sleep_again_and_again(fixture, fixture.rounds(1_000_000), |_| {});
}

pub fn no_event_is_slept_through_by_who_stayed_awake(fixture: &Fixture) {
    let mut seed = 0x1234_5678;
    sleep_again_and_again(fixture, fixture.rounds(20_000), |queue| {
        if random(&mut seed).is_multiple_of(4) {
            queue.stay_awake();
        }
        if random(&mut seed).is_multiple_of(16) {
            queue.arm(Notify::Any).unwrap();
        }
    });
}

/// Sends `messages` messages to a thread that sleeps between them and does `before` each sleep.
fn sleep_again_and_again(
    fixture: &Fixture,
    messages: u32,
    mut before: impl FnMut(&mut CompletionQueue),
) {
    const DEPTH: u32 = 64;
    let (mut server, mut client) = ends(fixture);
    server.post_receives(0..u64::from(DEPTH));
    // How many the sleeper has taken: the sender stays at most `DEPTH` ahead, and pauses at random,
    // so that the sleeper is caught before, in and after arming.
    let taken = AtomicU32::new(0);
    thread::scope(|scope| {
        let (taken, client) = (&taken, &mut client); // the client's end outlives the last message
        scope.spawn(move || {
            let mut seed = 0x9e37_79b9;
            let message = Operation::Send { source: Source::Inline(&[]), immediate: None };
            for n in 0..messages {
                let window = random(&mut seed) % DEPTH;
                while n.wrapping_sub(taken.load(Ordering::Relaxed)) > window {
                    thread::yield_now();
                }
                for _ in 0..random(&mut seed) % 64 {
                    std::hint::spin_loop();
                }
                let flags = if n % 32 == 31 { Flags::SIGNALED } else { Flags::empty() };
                client.pair.post(&WorkRequest { id: 0, operation: message, flags }).unwrap();
                while client.sends.poll_one().is_some() {}
            }
        });
        let mut batch = [WorkCompletion::default(); DEPTH as usize];
        let mut n = 0;
        while n < messages {
            let start = Instant::now();
            before(&mut server.receives);
            server.receives.wait(Some(PATIENCE)).unwrap();
            let count = server.receives.poll(&mut batch) as u32;
            assert!(count > 0 || start.elapsed() < PATIENCE, "slept through message {n}");
            for done in &batch[..count as usize] {
                assert_eq!(done.status, Status::Success);
                server.pair.post_receive(done.id, None).unwrap();
            }
            n += count;
            taken.store(n, Ordering::Relaxed);
        }
    });
}
