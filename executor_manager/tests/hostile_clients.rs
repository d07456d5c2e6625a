//! Clients that mean harm: what each says is refused or ends its connection, is told in the log a
//! few times however often it is done, and costs no other client anything.
//!
//! Elsewhere: peers that only take up room (`crowds`), numbers that make no sense (`leases`).

#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

mod common;

use std::time::Duration;

use common::{Node, OBEDIENT, PATIENCE, Setup, allocate, device, terms, unsigned};
use rdmalib::{Access, QueuePair, QueuePairConfig, RemoteAddress};
use rfaas_protocol::allocation::{FromClient, RefusedBecause};
use rfaas_protocol::lease::Token;
use rfaas_protocol::{Empty, Hello, MAX_MESSAGE_BYTES, Malformed, MessageKind, Role, VERSION};

/// How often each does what it does.
const TIMES: usize = 200;
/// Lines about it that are told as they are, at most; more are counted.
const TOLD: usize = 10;

/// Bytes that are no message of this conversation.
struct Bytes(Vec<u8>);

impl MessageKind for Bytes {
    fn encode(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn decode(_: &[u8]) -> Result<Self, Malformed> {
        Ok(Bytes(Vec::new()))
    }
}

/// Bytes without any order; the same each time.
fn random(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// `hostile` did its thing many times: the log has it, and not many times, and an honest client is
/// served.
fn is_told_a_few_times(node: &mut Node, words: &str, hostile: impl Fn(&Node)) {
    let lines = |node: &Node| node.log().lines().filter(|line| line.contains(words)).count();
    let before = lines(node);
    for _ in 0..TIMES {
        hostile(node);
    }
    node.wait_for_log(words);
    let told = lines(node) - before;
    assert!((1..=TOLD).contains(&told), "{words:?}: {told} lines\n{}", node.log());
    let mut honest = node.client();
    honest.claim(unsigned(1));
    honest.release();
}

/// Sends `message` on a connection of its own, which ends of it.
fn ends_with(node: &Node, message: &[u8]) {
    let mut client = node.client();
    client.channel.send(&Bytes(message.to_vec())).unwrap();
    client.ended();
}

#[test]
fn bytes_that_are_no_message_are_told_a_few_times_and_harm_nobody() {
    let mut node = Setup::new(OBEDIENT).start();
    let whole = FromClient::Allocate(allocate(unsigned(1))).encode();
    let kind = u16::from_le_bytes([random(64)[0], random(64)[1]]);
    is_told_a_few_times(&mut node, &format!("unknown message kind {kind}"), |node| {
        ends_with(node, &random(64));
    });
    is_told_a_few_times(&mut node, "has 98 bytes", |node| ends_with(node, &whole[..100]));
    let mut oversized = whole.clone();
    oversized.resize(MAX_MESSAGE_BYTES, 0);
    is_told_a_few_times(&mut node, &format!("has {} bytes", MAX_MESSAGE_BYTES - 2), |node| {
        ends_with(node, &oversized);
    });
    node.stop();
}

#[test]
fn peers_of_other_versions_and_of_no_version_are_refused_by_name() {
    let mut node = Setup::new(OBEDIENT).start();
    let hello = Hello::with(Role::Allocation, &Empty {});
    for (version, words) in [
        (VERSION + 1, format!("protocol version {}", VERSION + 1)),
        (1, "protocol version 1,".into()),
    ] {
        let mut hello = hello.clone();
        hello[4..6].copy_from_slice(&version.to_le_bytes());
        is_told_a_few_times(&mut node, &words, |node| is_rejected(node, &hello));
    }
    is_told_a_few_times(&mut node, "does not speak the rFaaS protocol", |node| {
        is_rejected(node, &random(56));
    });
    node.stop();
}

/// Connects with `private_data` and is rejected.
fn is_rejected(node: &Node, private_data: &[u8]) {
    let device = device();
    let (domain, config) = (device.domain().unwrap(), QueuePairConfig::default());
    let queue = device.completion_queue(config.send_depth + config.receive_depth).unwrap();
    let mut pair = QueuePair::new(&domain, &queue, &queue, &config).unwrap();
    let error = pair.connect(node.address, private_data, PATIENCE).unwrap_err();
    assert!(matches!(error, rdmalib::Error::Rejected { .. }), "{error:?}");
}

#[test]
fn a_write_to_memory_that_nobody_offered_ends_its_connection_only() {
    let node = Setup::new(OBEDIENT).start();
    let mut good = node.client();
    good.claim(unsigned(1));
    for (addr, key) in [(0, 0), (4096, 1), (u64::MAX - 8, u64::MAX), (1 << 20, 0x1234)] {
        let mut bad = node.client();
        let source = bad.channel.domain().allocate(64, Access::empty()).unwrap();
        // What the device refuses at once and what it refuses later are the same to the manager.
        let _ = bad.channel.write_with_immediate(&source, 64, RemoteAddress { addr, key }, 7);
        bad.ended();
    }
    good.release();
    node.stop();
}

#[test]
fn a_library_of_two_gigabytes_has_to_fit_the_memory_of_its_lease() {
    let node = Setup::new(OBEDIENT).start();
    let mut announced = allocate(unsigned(1));
    announced.code_bytes = (2_u32 << 30).into();
    let (because, reason) = node.client().refused(announced);
    assert_eq!(because, RefusedBecause::BadRequest);
    assert!(reason.contains("MB of memory"), "{reason}");

    // With a lease of as much it costs the node nothing until bytes come: the executor holds it.
    let rich = Token::unsigned(terms(0, 1, 1000, Duration::from_secs(3600)));
    let mut announced = allocate(rich);
    announced.code_bytes = (900_u32 << 20).into();
    let before = memory_kib(&node);
    let mut client = node.client();
    client.ask(announced);
    assert!(memory_kib(&node) < before + (64 << 10), "it took memory for what was announced");
    client.release();
    node.stop();
}

/// What the manager has of memory.
fn memory_kib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    resident.trim_end_matches("kB").trim().parse().unwrap()
}
