//! The part of the corpus that is bytes: a valid input of each kind, made from the types that it is read as. So a
//! message that is new or has changed is in the corpus too. What fuzzing has found, and texts, are files beside these.
//!
//! `RFAAS_WRITE_CORPUS=1 cargo test -p fuzz --test seeds` writes them.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rfaas_protocol::accounting::AccountingHello;
use rfaas_protocol::allocation::{self, Allocate, ClaimHello};
use rfaas_protocol::edge::EdgeHello;
use rfaas_protocol::invocation::{INPUT_IN_PLACE, OUTPUT_IN_PLACE};
use rfaas_protocol::lease::{
    self, GangRequest, GrowRequest, LeaseId, LeaseRequest, LeaseTerms, Token,
};
use rfaas_protocol::node::{self, NodeHello, Register};
use rfaas_protocol::session::{
    ExecutorHello, FromExecutor, FunctionNames, ToExecutor, WorkerHello,
};
use rfaas_protocol::{
    Bytes, Empty, Hello, MAX_MESSAGE_BYTES, MessageKind, Nonce, Nonces, Refusal, Role, Text, launch,
};
use zerocopy::{FromZeros, IntoBytes};

/// Files of the corpus, by target and name.
type Seeds = BTreeMap<(&'static str, String), Vec<u8>>;

#[test]
fn the_corpus_has_a_valid_input_of_each_kind() {
    let mut seeds = Seeds::new();
    messages(&mut seeds);
    openings(&mut seeds);
    tokens(&mut seeds);
    local_channel(&mut seeds);
    invocations(&mut seeds);
    handshake(&mut seeds);
    replies(&mut seeds);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for ((target, name), bytes) in seeds {
        let path = folder.join(target).join(name);
        if std::env::var_os("RFAAS_WRITE_CORPUS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let is_there = fs::read(&path).is_ok_and(|there| there == bytes);
        assert!(is_there, "{} is not what it is now: see the head of this file", path.display());
    }
}

/// Returns all messages of one side, with nothing in them.
fn empty<M: MessageKind>() -> Vec<Vec<u8>> {
    let with = |kind: u16, bytes| [&kind.to_le_bytes()[..], &vec![0; bytes]].concat();
    let valid = |message: &Vec<u8>| M::decode(message).is_ok();
    let of_kind = |kind| (0..MAX_MESSAGE_BYTES).map(move |bytes| with(kind, bytes)).find(valid);
    let all: Vec<_> = (1..64).map_while(of_kind).collect();
    assert!(!all.is_empty(), "kinds begin at 1");
    all
}

fn messages(seeds: &mut Seeds) {
    let mut add = |name: &str, messages: Vec<Vec<u8>>| {
        for (number, message) in messages.into_iter().enumerate() {
            seeds.insert(("messages", format!("{name}-{}", number + 1)), message);
        }
    };
    add("lease-from-client", empty::<lease::FromClient>());
    add("lease-to-client", empty::<lease::ToClient>());
    add("node-from-node", empty::<node::FromNode>());
    add("node-to-node", empty::<node::ToNode>());
    add("allocation-from-client", empty::<allocation::FromClient>());
    add("allocation-to-client", empty::<allocation::ToClient>());
    add("session-from-executor", empty::<FromExecutor>());
    add("session-to-executor", empty::<ToExecutor>());
    add("launch-from-zygote", empty::<launch::FromZygote>());
    add("launch-to-zygote", empty::<launch::ToZygote>());
    add("launch-from-guardian", empty::<launch::FromGuardian>());
    add("launch-to-guardian", empty::<launch::ToGuardian>());
    add(
        "meaning",
        vec![
            lease::FromClient::Request(LeaseRequest {
                request: 1.into(),
                cores: 2.into(),
                memory: 512.into(),
                timeout_ms: 60_000.into(),
                max_nodes: 1.into(),
                client: Text::new("somebody").unwrap(),
            })
            .encode(),
            allocation::FromClient::Allocate(allocate()).encode(),
            node::FromNode::Register(register()).encode(),
            FromExecutor::Functions(FunctionNames::from(&["empty".to_owned()], 0).0).encode(),
            lease::FromClient::Grow(growth()).encode(),
        ],
    );
}

/// Two workers beside two leases.
fn growth() -> GrowRequest {
    let mut gang = GangRequest::new(1.into(), 2, (1, 64), 60_000);
    (gang.wanted.client, gang.wanted.has) =
        (Text::new("somebody").unwrap(), Text::new("gpu").unwrap());
    GrowRequest::new(&gang, &[1, 2].map(|id| LeaseId::new(id).unwrap()))
}

/// What is said first, and what a refusal says.
fn openings(seeds: &mut Seeds) {
    fn of<T: Bytes>(role: Role) -> Vec<u8> {
        Hello::with(role, &T::new_zeroed())
    }
    for (name, bytes) in [
        ("lease", of::<Empty>(Role::Lease)),
        ("node", of::<NodeHello>(Role::Node)),
        ("allocation", of::<ClaimHello>(Role::Allocation)),
        ("accounting", of::<AccountingHello>(Role::Accounting)),
        ("executor", of::<ExecutorHello>(Role::Executor)),
        ("worker", of::<WorkerHello>(Role::Worker)),
        ("edge", of::<EdgeHello>(Role::Edge)),
        ("refusal", Refusal::new("there is no room").unwrap().as_bytes().to_vec()),
    ] {
        seeds.insert(("messages", format!("opening-{name}")), bytes);
    }
}

fn terms() -> LeaseTerms {
    LeaseTerms {
        lease: 1.into(),
        cores: 2.into(),
        memory: 512.into(),
        expires_at_ms: (1 << 41).into(),
        instance: 5.into(),
        node: Text::new("node").unwrap(),
        client: Text::new("somebody").unwrap(),
    }
}

const NONCES: Nonces = Nonces { caller: Nonce([1; 16]), called: Nonce([2; 16]) };

fn allocate() -> Allocate {
    let mut allocate = Allocate::new_zeroed();
    let token = Token::sign(terms(), fuzz::SECRET);
    allocate.signed = token.signed();
    allocate.client = std::net::SocketAddr::from(([127, 0, 0, 1], 4000)).into();
    allocate.hot_timeout_ms = (-1).into();
    allocate.input_bytes = 1024.into();
    allocate.output_bytes = 1024.into();
    allocate.code_bytes = 50_000.into();
    allocate.slots = 4.into();
    allocate.serves = 1.into();
    allocate.proved(token.key(), &NONCES)
}

fn register() -> Register {
    let address = ([127, 0, 0, 1], 10_005).into();
    let clock = terms().expires_at_ms;
    let register = Register::new(Text::new("node").unwrap(), 5, address, &NONCES, fuzz::SECRET);
    register.at(rfaas_protocol::Clock { ms: clock }, &NONCES, fuzz::SECRET)
}

fn tokens(seeds: &mut Seeds) {
    let genuine = Token::sign(terms(), fuzz::SECRET);
    let ahead_and_held = [7_u64, 7, 1].map(u64::to_le_bytes).concat();
    let without_lease = LeaseTerms { lease: 0.into(), ..terms() };
    for (name, bytes) in [
        ("genuine", genuine.as_bytes().to_vec()),
        ("text", genuine.to_text().into_bytes()),
        ("without-key", genuine.without_key().as_bytes().to_vec()),
        ("unsigned", Token::unsigned(without_lease).as_bytes().to_vec()),
        ("signed-terms", genuine.signed().as_bytes().to_vec()),
        ("judged", [terms().as_bytes(), &ahead_and_held].concat()),
        ("hash", "0123456789abcdef".repeat(4).into_bytes()),
        ("claim", allocate().as_bytes().to_vec()),
        ("register", register().as_bytes().to_vec()),
    ] {
        seeds.insert(("tokens", name.to_owned()), bytes);
    }
}

fn local_channel(seeds: &mut Seeds) {
    let mut add = |kind: u8, name: &str, messages: Vec<Vec<u8>>| {
        for (number, message) in messages.into_iter().enumerate() {
            let descriptors = 1 + number as u8;
            let packet = [&[kind, descriptors], &message[..]].concat();
            seeds.insert(("local_channel", format!("{name}-{descriptors}")), packet);
        }
    };
    add(0, "from-zygote", empty::<launch::FromZygote>());
    add(1, "to-zygote", empty::<launch::ToZygote>());
    add(2, "from-guardian", empty::<launch::FromGuardian>());
    add(3, "to-guardian", empty::<launch::ToGuardian>());
}

/// Steps of a caller, as target `invocations` reads them.
fn invocations(seeds: &mut Seeds) {
    const SERVE: u8 = 0x80;
    let request = |function: u8, flags: u16, input_bytes: u16| {
        let mut step = vec![SERVE | 5, 0]; // with the right key, to slot 0
        step.extend(128_u16.to_le_bytes()); // where the output goes
        step.extend(256_u32.to_le_bytes()); // its room
        step.extend([function, flags as u8]);
        step.extend(input_bytes.to_le_bytes());
        step.extend(1_u32.to_le_bytes());
        step
    };
    let again = [SERVE | 3, 0, 3, b'a', b'b', b'c'];
    let one_slot = [0_u8];
    for (name, steps) in [
        ("call", vec![request(0, 0, 8)]),
        ("nothing", vec![request(1, 0, 0)]),
        ("output-too-large", vec![request(3, 0, 8)]),
        ("unknown-function", vec![request(9, 0, 8)]),
        ("output-in-place", vec![request(2, OUTPUT_IN_PLACE, 8)]),
        ("both-in-place", vec![request(0, OUTPUT_IN_PLACE | INPUT_IN_PLACE, 256)]),
        ("again", vec![request(0, 0, 8), again.to_vec(), again.to_vec()]),
        ("written", vec![vec![0, 32, 0, 4, 1, 2, 3, 4], vec![1, 0, 0, 0, 0, 32, 0, 2, 1, 2]]),
        ("sent", vec![vec![2, 3, 1, 2, 3]]),
    ] {
        let bytes = [&one_slot[..], &steps.concat()].concat();
        seeds.insert(("invocations", name.to_owned()), bytes);
    }
}

/// A peer of the embedded device, as target `handshake` reads it.
fn handshake(seeds: &mut Seeds) {
    const TABLE: u64 = 256 << 10;
    const KEY: u64 = 1 << 13 | 1;
    let message = |kind: u32| {
        let mut message = b"rdmashm3".to_vec();
        message.extend(TABLE.to_ne_bytes()); // its ring
        message.extend(8_u32.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(4_u32.to_ne_bytes()); // private data
        message.extend(b"data");
        message.resize(224, 0);
        message
    };
    // A page behind the ring, in the table's first entry but one: key and rights, start, size.
    let place = TABLE + 8 * 4096;
    let table = [(4_u16, KEY << 32 | u64::from(u32::MAX)), (5, place), (6, 4096)];
    let table: Vec<u8> = table
        .iter()
        .flat_map(|(at, word)| [&at.to_le_bytes()[..], &word.to_le_bytes()].concat())
        .collect();
    let asked = [&place.to_le_bytes()[..], &KEY.to_le_bytes(), &64_u16.to_le_bytes()].concat();
    for (name, kind, files, says) in [
        ("connects", 0, 1, 1),
        ("accepts", 1, 1, 2),
        ("rejects", 1, 0, 3),
        ("crowded", 1, 0, 4),
        ("exhausted", 1, 0, 5),
        ("without-memory", 0, 0, 1),
        ("with-two-files", 0, 2, 1),
        ("may-shrink", 2, 1, 1),
        ("no-memfd", 4, 1, 1),
        ("says-more", 8, 1, 1),
        ("in-parts", 16, 1, 1),
    ] {
        let head = [&[kind, files][..], &17_u16.to_le_bytes(), &message(says)].concat();
        let bytes = [&head[..], &asked, &asked, &table].concat();
        seeds.insert(("handshake", name.to_owned()), bytes);
    }
}

/// Steps of a worker, as target `replies` reads them.
fn replies(seeds: &mut Seeds) {
    const REQUEST: [u8; 1] = [0];
    let ok = |bytes: u8| vec![1, 0, bytes];
    let failure = |status: u8| [&[2, status, 0, 0][..], &1000_u64.to_le_bytes()].concat();
    let in_place = |bytes: u32| [&[3, 0, 0][..], &bytes.to_le_bytes(), &[0]].concat();
    let call = |reply: Vec<u8>| [&REQUEST[..], &reply].concat();
    let honest = [0_u8; 2];
    for (name, kinds, lie, steps) in [
        ("answers", 0, honest, vec![call(ok(8)), call(ok(0)), call(ok(192)), call(ok(9))]),
        ("answers-too-much", 0, honest, vec![call(ok(255))]),
        ("answers-twice", 0, honest, vec![call(ok(8)), ok(8)]),
        ("fails", 0, honest, vec![call(failure(1)), call(failure(2)), call(failure(3))]),
        ("fails-elsewhere", 0, honest, vec![[&REQUEST[..], &[2, 2, 1, 1], &[9; 8]].concat()]),
        ("in-place", 15, honest, vec![call(in_place(8)), call(in_place(192)), call(in_place(0))]),
        ("in-place-too-much", 15, honest, vec![call(in_place(u32::MAX))]),
        ("in-place-fails", 15, honest, vec![call(failure(2))]),
        ("writes", 0, honest, vec![[&REQUEST[..], &[4], &[0; 6], &[7; 64]].concat()]),
        ("sends", 0, honest, vec![[&REQUEST[..], &[5, 1, 2, 3]].concat()]),
        ("lies", 0, [20, 1], vec![call(ok(8))]),
        ("says-nothing", 2, honest, vec![]),
    ] {
        let bytes = [&[kinds], &lie[..], &steps.concat()].concat();
        seeds.insert(("replies", name.to_owned()), bytes);
    }
}
