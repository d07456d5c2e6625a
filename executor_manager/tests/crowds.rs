//! Many clients, and peers that only take up room: they connect and hang up, say nothing, or claim
//! nothing. A client that wants something is served beside them.
#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::*;
use nix::sys::signal::Signal;
use rfaas_protocol::allocation::{FromClient, RefusedBecause, ToClient};
use rfaas_protocol::channel::{Channel, ChannelError};
use rfaas_protocol::{Empty, Role};

/// More than may wait at a manager.
const CROWD: usize = 300;

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn who_has_waited_longest_makes_room_for_who_claims() {
    many_descriptors();
    let mut node = Setup::new(OBEDIENT).start();
    let before = descriptors(node.pid());
    let device = device();
    let mut crowd: Vec<Channel> = (0..CROWD)
        .map(|_| {
            let mut channel = Channel::new(&device, 4).unwrap();
            channel.connect(node.address, Role::Allocation, &Empty {}, PATIENCE).unwrap();
            channel.send(&FromClient::Heartbeat(Empty {})).unwrap();
            channel
        })
        .collect();
    let mut client = Client::connect(node.address);
    let answer = client.ask(allocate(unsigned(1)));
    assert!(matches!(answer, ToClient::Allocated(_)), "{answer:?}");
    let oldest = &mut crowd[0];
    loop {
        match oldest.receive::<ToClient>(PATIENCE) {
            Err(ChannelError::Disconnected) => break,
            Ok(_) => {} // why
            other => panic!("{other:?}"),
        }
    }
    // Not because its time was up.
    node.wait_for_log("client makes room");
    // 128 of one user wait, of up to 8 descriptors each; and the lease.
    let now = descriptors(node.pid());
    assert!(now < before + 130 * 8, "{now} descriptors, {before} before");
}

#[test]
fn who_connects_and_hangs_up_keeps_nobody_waiting() {
    let mut setup = Setup::new(OBEDIENT);
    setup.heartbeat_ms = 50;
    let node = setup.start();
    let mut holder = Client::connect(node.address);
    let answer = holder.ask(allocate(unsigned(1)));
    assert!(matches!(answer, ToClient::Allocated(_)), "{answer:?}");
    let (name, over) = (name(node.address), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if let Ok(mut socket) = UnixStream::connect_addr(&name) {
                    let _ = socket.write_all(&[b'x'; 224]); // it may be closed already
                }
            }
        });
        for _ in 0..10 {
            holder.heartbeat();
            holder.beat();
        }
        let mut newcomer = Client::connect(node.address);
        let answer = newcomer.ask(allocate(unsigned(1)));
        over.store(true, Ordering::Relaxed);
        assert!(matches!(answer, ToClient::Allocated(_)), "{answer:?}");
    });
}

#[test]
fn who_says_nothing_keeps_nobody_waiting() {
    many_descriptors();
    let node = Setup::new(OBEDIENT).start();
    let name = name(node.address);
    let _silent: Vec<_> = (0..1100).map(|_| UnixStream::connect_addr(&name).unwrap()).collect();
    let mut client = Client::connect(node.address);
    let answer = client.ask(allocate(unsigned(1)));
    assert!(matches!(answer, ToClient::Allocated(_)), "{answer:?}");
}

#[test]
fn a_request_that_comes_with_its_connection_is_answered() {
    for node in nodes("exit 0") {
        for _ in 0..50 {
            let (because, _) = node.client().refused(allocate(unsigned(0)));
            assert_eq!(because, RefusedBecause::BadRequest);
        }
    }
}

#[test]
fn more_requests_than_are_taken_at_once_are_all_answered() {
    for node in nodes("exit 0") {
        let mut clients: Vec<_> = (0..8).map(|_| node.client()).collect();
        for client in &mut clients {
            client.refused(allocate(unsigned(0))); // connected
        }
        node.signal(Signal::SIGSTOP);
        for client in &mut clients {
            for _ in 0..30 {
                client.send(&FromClient::Allocate(allocate(unsigned(0))));
            }
        }
        node.signal(Signal::SIGCONT);
        for client in &mut clients {
            for _ in 0..30 {
                assert!(matches!(client.next(), ToClient::Refused(_)));
            }
        }
        drop(clients);
        node.client().refused(allocate(unsigned(0)));
        let log = node.log().replace(" WARN executor.isolation is none", ""); // as it is here
        assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "an end is no error:\n{log}");
    }
}

#[test]
fn clients_that_go_while_their_messages_are_taken_harm_nobody() {
    for node in nodes(OBEDIENT) {
        let mut good = node.client();
        good.claim(unsigned(1));
        for round in 0..30 {
            let mut client = node.client();
            for _ in 0..round % 4 {
                client.send(&FromClient::Allocate(allocate(unsigned(1))));
                client.send(&FromClient::Release(Empty {}));
            }
            if round % 2 == 0 {
                client.channel.disconnect();
            }
        }
        good.release();
        wait_until_free(&node, 4);
        node.stop();
    }
}
