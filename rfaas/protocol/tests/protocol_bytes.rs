//! The bytes of every struct and message, spelled out: a layout that changes without a new protocol
//! version fails here, and so does one that differs between machines.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::net::SocketAddr;

use rfaas_protocol::accounting::{
    AccountingHello, COUNTERS_BYTES, Counters, EXECUTION_NS, EXECUTOR_BEATS, HOT_POLLING_NS,
    INVOCATIONS, LEAVES_AT_NS, MANAGER_BEATS,
};
use rfaas_protocol::allocation::{
    self, Allocate, AllocateRefused, Allocated, ClaimHello, ExecutorExited, LeaseEnding, NodeProof,
    OutputPart, OutputStream, ReadOutput, RefusedBecause, Released, Renew, Renewed, Serves,
};
use rfaas_protocol::assignment::{
    AssignedDevice, Assignment, HexSecret, Instructions, LibraryFile, PreloadedLibrary, Standby,
};
use rfaas_protocol::constraints::{Constraint, Constraints};
use rfaas_protocol::edge::{
    EdgeFailure, EdgeHello, EdgeImmediate, EdgeShape, EdgeSlots, EdgeStatus, FailedBecause,
    InPlaceLength, InputKind, ItemHeader, Join, OutputKind, TRACE_BYTES, Takes, TraceNote,
    TraceRecord,
};
use rfaas_protocol::invocation::{
    FailureDetail, HEADER_SPACE, INPUT_IN_PLACE, InPlaceDetail, MAX_SLOTS, OUTPUT_IN_PLACE,
    ReplyImmediate, ReplyStatus, RequestHeader, RequestImmediate,
};
use rfaas_protocol::isolation::{Layer, Layers};
use rfaas_protocol::launch::{
    Ended, FromGuardian, FromStandby, FromZygote, Grow, NotStarted, Speaks, Started, ToGuardian,
    ToStandby, ToZygote,
};
use rfaas_protocol::lease::{
    self, ClientName, EndReason, GangRequest, GraphWorker, GrowRequest, LeaseGranted, LeaseId,
    LeaseRefused, LeaseRelease, LeaseRenew, LeaseReplace, LeaseRequest, LeaseTerms, LeaseUnmet,
    NodeName, Reason, Token, Unusable,
};
use rfaas_protocol::library::LibraryHash;
use rfaas_protocol::node::{
    self, Bill, Draining, EndLease, LeaseClaimed, LeaseEnded, LeaseEndedAck, LeaseUsed,
    ManagerProof, NodeHello, Register, RegisterRefused, Registered,
};
use rfaas_protocol::session::{
    CodeDiffers, CodeFrom, EdgeHere, EdgeIn, EdgeOut, ExecutorHello, FromExecutor, FunctionNames,
    InputOfClient, Listening, LoadFailed, Part, ToExecutor, WorkerHello,
};
use rfaas_protocol::{
    Bytes, Clock, Empty, Hello, MessageKind, Nonce, Nonces, OLDEST_CLIENT, Proof, Refusal, Role,
    Secret, Text, VERSION, WireAddress,
};
use zerocopy::{FromBytes, IntoBytes};

#[track_caller]
fn is(actual: &impl Bytes, expected: &[&[u8]]) {
    assert_eq!(actual.as_bytes(), expected.concat());
}

#[track_caller]
fn says(message: &impl MessageKind, kind: u8, body: &impl Bytes) {
    assert_eq!(message.encode(), [&[kind, 0], body.as_bytes()].concat());
}

/// A text: its length, its bytes, zeros up to `N`.
fn text<const N: usize>(text: &str) -> Vec<u8> {
    let mut bytes = vec![text.len() as u8, (text.len() >> 8) as u8];
    bytes.extend(text.as_bytes());
    bytes.resize(2 + N, 0);
    bytes
}

const INSTANCE: u64 = 0x0102_0304_0506_0708;
const INSTANCE_BYTES: [u8; 8] = [8, 7, 6, 5, 4, 3, 2, 1];

fn terms() -> LeaseTerms {
    LeaseTerms {
        lease: 7.into(),
        cores: 2.into(),
        memory: 512.into(),
        expires_at_ms: 1_700_000_000_123.into(),
        instance: INSTANCE.into(),
        node: NodeName::new("node-1").unwrap(),
        client: ClientName::new("alice").unwrap(),
    }
}

fn terms_bytes() -> Vec<u8> {
    [
        &[7, 0, 0, 0, 0, 0, 0, 0][..],
        &[2, 0, 0, 0],
        &[0, 2, 0, 0],
        &[0x7b, 0x68, 0xe5, 0xcf, 0x8b, 1, 0, 0],
        &INSTANCE_BYTES,
        &text::<128>("node-1"),
        &text::<64>("alice"),
    ]
    .concat()
}

/// The first half of the HMAC-SHA256 with key "42" over "rFaaS lease key v5", lease and instance, from another
/// implementation.
const KEY: [u8; 16] = [
    0x40, 0x60, 0xe3, 0x3b, 0xd6, 0xc8, 0xde, 0x1a, 0x80, 0x42, 0x9c, 0xcc, 0xbb, 0x46, 0x05, 0x7e,
];

/// Likewise over "rFaaS lease v5" and these terms.
const TERMS_MAC: [u8; 16] = [
    0x55, 0xc1, 0x47, 0x44, 0xd1, 0x2e, 0xc1, 0xb5, 0x52, 0xf9, 0x83, 0xbd, 0x46, 0xbf, 0x01, 0x95,
];

fn token_bytes() -> Vec<u8> {
    [&terms_bytes()[..], &KEY, &TERMS_MAC].concat()
}

fn signed_bytes() -> Vec<u8> {
    [&terms_bytes()[..], &TERMS_MAC].concat()
}

/// 0 to 15, and 16 to 31.
fn nonces() -> Nonces {
    let caller = Nonce(std::array::from_fn(|i| i as u8));
    Nonces { caller, called: Nonce(std::array::from_fn(|i| 16 + i as u8)) }
}

/// FIPS 180-2, B.1.
const SHA256_OF_ABC: [u8; 32] = [
    0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
    0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
];

const CLOCK_BYTES: [u8; 8] = [0x7b, 0x68, 0xe5, 0xcf, 0x8b, 1, 0, 0];

fn clock() -> Clock {
    Clock { ms: 1_700_000_000_123.into() }
}

const BILL: Bill = Bill {
    allocated_ns: zerocopy::little_endian::U64::new(1),
    hot_polling_ns: zerocopy::little_endian::U64::new(2),
    execution_ns: zerocopy::little_endian::U64::new(3),
    invocations: zerocopy::little_endian::U64::new(0x0807_0605_0403_0201),
};
const BILL_BYTES: [u8; 32] = [
    1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8,
];
const SECRET: Secret = Secret(*b"0123456789abcdef");

#[test]
fn a_hello_is_magic_version_and_role() {
    assert_eq!((VERSION, OLDEST_CLIENT), (10, 4));
    for (role, number) in [
        (Role::Lease, 1),
        (Role::Node, 2),
        (Role::Allocation, 3),
        (Role::Accounting, 4),
        (Role::Executor, 5),
        (Role::Worker, 6),
        (Role::Edge, 7),
    ] {
        let hello = Hello::with(role, &Empty {});
        assert_eq!(hello, [b'r', b'F', b'a', b'S', 10, 0, number, 0]);
    }
    let hello = Hello::with(Role::Accounting, &AccountingHello { secret: SECRET });
    assert_eq!(hello, b"rFaS\x0a\0\x04\x000123456789abcdef");
}

#[test]
fn common_parts() {
    is(&Empty {}, &[]);
    is(&SECRET, &[b"0123456789abcdef"]);
    is(&Text::<4>::new("ab").unwrap(), &[&[2, 0, b'a', b'b', 0, 0]]);
    is(&Refusal::truncated("no"), &[&text::<120>("no")]);
    let v4: SocketAddr = "10.1.2.3:10005".parse().unwrap();
    is(
        &WireAddress::from(v4),
        &[&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3], &[0x15, 0x27]],
    );
    let v6: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
    is(
        &WireAddress::from(v6),
        &[&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[1, 0]],
    );
}

#[test]
fn accounting() {
    is(&AccountingHello { secret: SECRET }, &[b"0123456789abcdef"]);
    is(
        &Counters { addr: 0x0102_0304_0506_0708.into(), key: 9.into() },
        &[&[8, 7, 6, 5, 4, 3, 2, 1], &[9, 0, 0, 0, 0, 0, 0, 0]],
    );
    assert_eq!((HOT_POLLING_NS, EXECUTION_NS, INVOCATIONS), (0, 8, 16));
    assert_eq!((EXECUTOR_BEATS, MANAGER_BEATS), (24, 32));
    assert_eq!((LEAVES_AT_NS, COUNTERS_BYTES), (40, 48));
}

#[test]
fn lease_structs() {
    is(&terms(), &[&terms_bytes()]);
    is(&Token::sign(terms(), b"42"), &[&token_bytes()]);
    is(&Token::unsigned(terms()), &[&terms_bytes(), &[0; 32]]);
    is(&Token::sign(terms(), b"42").without_key(), &[&terms_bytes(), &[0; 16], &TERMS_MAC]);
    is(&Token::sign(terms(), b"42").signed(), &[&signed_bytes()]);
    is(Token::sign(terms(), b"42").key(), &[&KEY]);
    let client = ClientName::new("alice").unwrap();
    let request = LeaseRequest {
        request: 1.into(),
        cores: 2.into(),
        memory: 3.into(),
        timeout_ms: 4.into(),
        max_nodes: 5.into(),
        client,
    };
    is(
        &request,
        &[
            &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0],
            &[4, 0, 0, 0, 0, 0, 0, 0],
            &[5, 0, 0, 0],
            &text::<64>("alice"),
        ],
    );
    let release = LeaseRelease { token: Token::sign(terms(), b"42") };
    is(&release, &[&token_bytes()]);
    let manager: SocketAddr = "127.0.0.1:10005".parse().unwrap();
    let renew =
        LeaseRenew { request: 1.into(), timeout_ms: 2.into(), token: Token::sign(terms(), b"42") };
    is(&renew, &[&[1, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0], &token_bytes()]);
    let replace = LeaseReplace {
        request: 1.into(),
        token: release.token,
        because: Unusable::Unreachable.to_wire(),
    };
    is(&replace, &[&[1, 0, 0, 0], &token_bytes(), &[2, 0]]);
    let granted = LeaseGranted {
        request: 1.into(),
        part: 2.into(),
        parts: 3.into(),
        manager: manager.into(),
        token: release.token,
    };
    is(
        &granted,
        &[
            &[1, 0, 0, 0, 2, 0, 3, 0],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1, 0x15, 0x27],
            &token_bytes(),
        ],
    );
    let refused = LeaseRefused { request: 1.into(), reason: Reason::truncated("full") };
    is(&refused, &[&[1, 0, 0, 0], &text::<240>("full")]);

    let mut gang = GangRequest::new(1.into(), 2, (3, 4), 5);
    (gang.wanted.wait_ms, gang.wanted.client) = (6.into(), client);
    let constraints = Constraints {
        together: true,
        apart: false,
        near: Some("n1".into()),
        leave_free: 8,
        at_least: 7,
        has: vec!["gpu".into(), "fast".into()],
        nodes: vec!["n1".into(), "n2".into()],
    };
    constraints.write_to(&mut gang).unwrap();
    is(
        &gang,
        &[
            &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 7, 0, 0, 0, 8, 0, 0, 0],
            &text::<64>("alice"),
            &text::<256>("gpu\nfast"),
            &text::<128>("n1"),
            &text::<512>("n1\nn2"),
        ],
    );
    let grown = [LeaseId::new(9), LeaseId::new(0x0102)].map(Option::unwrap);
    let grow = GrowRequest::new(&gang, &grown);
    is(
        &grow,
        &[
            &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 7, 0, 0, 0, 8, 0, 0, 0],
            &text::<64>("alice"),
            &text::<256>("gpu\nfast"),
            &[9, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0],
            &[0; 30 * 8],
        ],
    );
    let worker = GraphWorker {
        lease: 1.into(),
        graph: 2.into(),
        lane: 3.into(),
        worker: 4.into(),
        name: Text::truncated("words"),
        functions: Text::truncated("split\ncount"),
    };
    is(
        &worker,
        &[
            &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 4, 0],
            &text::<64>("words"),
            &text::<256>("split\ncount"),
        ],
    );
    let unmet = LeaseUnmet {
        request: 1.into(),
        constraints: Constraint::to_wire(&[Constraint::Near, Constraint::Has]),
        reason: Reason::truncated("full"),
    };
    is(&unmet, &[&[1, 0, 0, 0, 0x42, 0], &text::<240>("full")]);

    says(&lease::FromClient::Request(request), 1, &request);
    says(&lease::FromClient::Release(release), 2, &release);
    says(&lease::FromClient::Renew(renew), 3, &renew);
    says(&lease::FromClient::Replace(replace), 4, &replace);
    says(&lease::ToClient::Granted(granted), 1, &granted);
    says(&lease::FromClient::Gang(gang), 5, &gang);
    says(&lease::FromClient::Grow(grow), 6, &grow);
    says(&lease::FromClient::Worker(worker), 7, &worker);
    says(&lease::ToClient::Refused(refused), 2, &refused);
    says(&lease::ToClient::Unmet(unmet), 3, &unmet);
}

#[test]
fn reasons_of_an_end_are_numbered() {
    for (number, reason, name) in [
        (1, EndReason::Released, "released"),
        (2, EndReason::Expired, "expired"),
        (3, EndReason::ClientGone, "client_gone"),
        (4, EndReason::Withdrawn, "withdrawn"),
        (5, EndReason::NodeLost, "node_lost"),
        (6, EndReason::Shutdown, "shutdown"),
        (7, EndReason::Unclaimed, "unclaimed"),
    ] {
        assert_eq!((reason.to_wire().get(), reason.name()), (number, name));
        assert_eq!(EndReason::from_wire(number.into()), Ok(reason));
    }
}

#[test]
fn node_structs() {
    let Nonces { caller, called } = nonces();
    let hello = NodeHello { nonce: caller };
    is(&hello, &[&caller.0]);
    // HMAC-SHA256 with key "42" over "rFaaS manager v5", both nonces and the address that was called, from another
    // implementation.
    let proof: [u8; 32] = [
        0xff, 0xe0, 0xe6, 0xff, 0xa4, 0x7c, 0xc8, 0xa5, 0x3a, 0xf0, 0xf5, 0xe0, 0x7d, 0x9c, 0x9d,
        0x21, 0xc3, 0x58, 0x05, 0xde, 0xa1, 0xc3, 0x30, 0x81, 0xbc, 0xd4, 0x3c, 0x92, 0x0d, 0x09,
        0xc7, 0x3c,
    ];
    let manager = ManagerProof::read_from_bytes(&[&called.0[..], &proof].concat()).unwrap();
    let address: SocketAddr = "127.0.0.1:10000".parse().unwrap();
    assert_eq!(manager.verify(&hello, address, b"42"), Some(nonces()));
    let address: SocketAddr = "10.1.2.3:10005".parse().unwrap();
    let register =
        Register::new(NodeName::new("node-1").unwrap(), INSTANCE, address, &nonces(), b"42");
    let register = register.at(clock(), &nonces(), b"42");
    let layers: Layers = [Layer::User, Layer::Seccomp].into_iter().collect();
    let register = register.isolated_by(layers, &nonces(), b"42");
    // Likewise over "rFaaS node v7", both nonces and all that is before it.
    let proof = [
        0x43, 0xb1, 0x65, 0x11, 0x3d, 0x83, 0x07, 0x96, 0x44, 0xdd, 0xe2, 0x6d, 0x9a, 0x9d, 0x4a,
        0x86, 0xee, 0x61, 0x71, 0xc9, 0xa8, 0x36, 0x4d, 0x6a, 0x0c, 0x60, 0xbb, 0x8a, 0x84, 0x0a,
        0xfa, 0x3e,
    ];
    let (at, isolation) = (WireAddress::from(address), [1, 0x40, 0, 0]);
    let name = text::<128>("node-1");
    is(&register, &[&name, &INSTANCE_BYTES, at.as_bytes(), &CLOCK_BYTES, &isolation, &proof]);
    assert_eq!(register.isolation(), layers);
    is(&BILL, &[&BILL_BYTES]);
    let claimed = LeaseClaimed { terms: terms() };
    is(&claimed, &[&terms_bytes()]);
    let ended = LeaseEnded { terms: terms(), reason: EndReason::Expired.to_wire(), bill: BILL };
    is(&ended, &[&terms_bytes(), &[2, 0], &BILL_BYTES]);
    let ack = LeaseEndedAck { lease: 7.into() };
    is(&ack, &[&[7, 0, 0, 0, 0, 0, 0, 0]]);
    let used = LeaseUsed { lease: 7.into(), bill: BILL };
    is(&used, &[&[7, 0, 0, 0, 0, 0, 0, 0], &BILL_BYTES]);
    let draining = Draining { grace_ms: 0x0403_0201.into() };
    is(&draining, &[&[1, 2, 3, 4]]);
    let registered = Registered {
        cores: 2.into(),
        memory: 512.into(),
        heartbeat_ms: 3.into(),
        silence_ms: 4.into(),
        clock: clock(),
        leaves_in_ms: 5.into(),
    };
    let numbers = [2, 0, 0, 0, 0, 2, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0];
    is(&registered, &[&numbers, &CLOCK_BYTES, &[5, 0, 0, 0, 0, 0, 0, 0]]);
    let refused = RegisterRefused { reason: Reason::truncated("unknown") };
    is(&refused, &[&text::<240>("unknown")]);
    let end = EndLease { lease: 7.into(), reason: 4.into(), grace_ms: 0x0403_0201.into() };
    is(&end, &[&[7, 0, 0, 0, 0, 0, 0, 0], &[4, 0], &[1, 2, 3, 4]]);

    says(&node::FromNode::Register(register), 1, &register);
    says(&node::FromNode::Claimed(claimed), 2, &claimed);
    says(&node::FromNode::Ended(ended), 3, &ended);
    says(&node::FromNode::Heartbeat(clock()), 4, &clock());
    says(&node::FromNode::Used(used), 5, &used);
    says(&node::FromNode::Draining(draining), 6, &draining);
    says(&node::ToNode::Registered(registered), 1, &registered);
    says(&node::ToNode::Refused(refused), 2, &refused);
    says(&node::ToNode::EndedAck(ack), 3, &ack);
    says(&node::ToNode::EndLease(end), 4, &end);
    says(&node::ToNode::Heartbeat(clock()), 5, &clock());
}

#[test]
fn allocation_structs() {
    let client: SocketAddr = "127.0.0.1:258".parse().unwrap();
    let (token, Nonces { caller, called }) = (Token::sign(terms(), b"42"), nonces());
    let hello = ClaimHello { lease: 7.into(), instance: INSTANCE.into(), nonce: caller };
    is(&hello, &[&[7, 0, 0, 0, 0, 0, 0, 0], &INSTANCE_BYTES, &caller.0]);
    // HMAC-SHA256 with the lease's key over "rFaaS executor manager v5", both nonces and the address that was called,
    // from another implementation.
    let proof: [u8; 32] = [
        0x3a, 0xd0, 0x8c, 0xaf, 0x31, 0xa4, 0xe9, 0x9e, 0x80, 0xd5, 0xe3, 0x4e, 0x25, 0x6e, 0xe7,
        0x17, 0xc0, 0xf8, 0x85, 0x93, 0x1c, 0x86, 0xbb, 0x02, 0x9b, 0xf5, 0x1f, 0xfc, 0xf2, 0xd4,
        0xd0, 0x50,
    ];
    let node = NodeProof::read_from_bytes(&[&called.0[..], &proof].concat()).unwrap();
    assert!(node.verify(&hello, "10.1.2.3:10005".parse().unwrap(), token.key()));
    let allocate = Allocate {
        signed: token.signed(),
        clock: Clock { ms: 5.into() },
        client: client.into(),
        session: SECRET,
        hot_timeout_ms: (-1).into(),
        input_bytes: 1.into(),
        output_bytes: 2.into(),
        code_bytes: 3.into(),
        code_hash: LibraryHash::of(b"abc"),
        slots: 4.into(),
        serves: Serves::Graph.to_wire(),
        proof: Proof::NONE,
    }
    .proved(token.key(), &nonces());
    // Likewise over "rFaaS client v9", both nonces and all that is before it.
    let proof = [
        0x99, 0x19, 0xeb, 0x8e, 0x80, 0x49, 0xd8, 0x77, 0x5f, 0x26, 0x87, 0xc5, 0xad, 0xc4, 0xfc,
        0xe8, 0x0f, 0x3c, 0xc1, 0x8b, 0x4c, 0x7f, 0xbd, 0xd4, 0x43, 0x7f, 0x28, 0x42, 0x74, 0xbd,
        0x73, 0x9c,
    ];
    is(
        &allocate,
        &[
            &signed_bytes(),
            &[5, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1, 2, 1],
            b"0123456789abcdef",
            &[0xff; 8],
            &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0],
            &SHA256_OF_ABC,
            &[4, 0],
            &[2, 0],
            &proof,
        ],
    );
    let allocated = Allocated { lease: 7.into(), heartbeat_ms: 8.into(), silence_ms: 9.into() };
    is(&allocated, &[&[7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0]]);
    let renew = Renew { signed: token.signed(), clock: clock() };
    is(&renew, &[&signed_bytes(), &CLOCK_BYTES]);
    let renewed = Renewed { expires_at_ms: 7.into() };
    is(&renewed, &[&[7, 0, 0, 0, 0, 0, 0, 0]]);
    let refused = AllocateRefused {
        because: RefusedBecause::NoCapacity.to_wire(),
        reason: Reason::truncated("full"),
    };
    is(&refused, &[&[3, 0], &text::<240>("full")]);
    let exited = ExecutorExited {
        signal: 11.into(),
        status: (-2).into(),
        silent: 1.into(),
        memory_limit: 0x100.into(),
        memory_used: 0xff.into(),
    };
    let (limit, used) = ([0, 1, 0, 0, 0, 0, 0, 0], [0xff, 0, 0, 0, 0, 0, 0, 0]);
    is(&exited, &[&[11, 0, 0, 0], &[0xfe, 0xff, 0xff, 0xff], &[1, 0], &limit, &used]);
    let ending = LeaseEnding { reason: 4.into(), grace_ms: 1000.into() };
    is(&ending, &[&[4, 0], &[0xe8, 3, 0, 0]]);
    let released = Released { bill: BILL };
    is(&released, &[&BILL_BYTES]);
    let read = ReadOutput { from: 3.into() };
    is(&read, &[&[3, 0, 0, 0, 0, 0, 0, 0]]);
    let part = OutputPart::new(3, 4, 9, OutputStream::Stderr, b"oh no");
    is(
        &part,
        &[
            &[3, 0, 0, 0, 0, 0, 0, 0],
            &[4, 0, 0, 0, 0, 0, 0, 0],
            &[9, 0, 0, 0, 0, 0, 0, 0],
            &[2, 0, 5, 0],
            b"oh no",
            &[0; 983],
        ],
    );
    assert_eq!(part.bytes(), Ok(&b"oh no"[..]));
    assert_eq!(OutputStream::Stdout.to_wire().get(), 1);

    says(&allocation::FromClient::Allocate(allocate), 1, &allocate);
    says(&allocation::FromClient::Release(Empty {}), 2, &Empty {});
    says(&allocation::FromClient::Heartbeat(Empty {}), 3, &Empty {});
    says(&allocation::FromClient::Renew(renew), 4, &renew);
    says(&allocation::FromClient::ReadOutput(read), 5, &read);
    says(&allocation::ToClient::Allocated(allocated), 1, &allocated);
    says(&allocation::ToClient::Refused(refused), 2, &refused);
    says(&allocation::ToClient::ExecutorExited(exited), 3, &exited);
    says(&allocation::ToClient::LeaseEnding(ending), 4, &ending);
    says(&allocation::ToClient::Released(released), 5, &released);
    says(&allocation::ToClient::Heartbeat(Empty {}), 6, &Empty {});
    says(&allocation::ToClient::Renewed(renewed), 7, &renewed);
    says(&allocation::ToClient::OutputPart(part), 8, &part);
}

#[test]
fn reasons_of_a_refusal_are_numbered() {
    for (number, because) in [
        (1, RefusedBecause::BadToken),
        (2, RefusedBecause::LeaseEnded),
        (3, RefusedBecause::NoCapacity),
        (4, RefusedBecause::BadRequest),
        (5, RefusedBecause::SpawnFailed),
        (6, RefusedBecause::Draining),
    ] {
        assert_eq!(because.to_wire().get(), number);
        assert_eq!(RefusedBecause::from_wire(number.into()), Ok(because));
    }
}

#[test]
fn reasons_of_an_exchange_are_numbered() {
    for (number, because) in
        [(1, Unusable::Refused), (2, Unusable::Unreachable), (3, Unusable::Unproved)]
    {
        assert_eq!(because.to_wire().get(), number);
        assert_eq!(Unusable::from_wire(number.into()), Ok(because));
    }
    assert!(Unusable::from_wire(0.into()).is_err() && Unusable::from_wire(4.into()).is_err());
}

#[test]
fn session_structs() {
    is(
        &ExecutorHello {
            session: SECRET,
            code_addr: 1.into(),
            code_key: 2.into(),
            code_from: CodeFrom::Client.to_wire(),
        },
        &[b"0123456789abcdef", &[1, 0, 0, 0, 0, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0], &[1, 0]],
    );
    is(
        &WorkerHello {
            session: SECRET,
            worker: 1.into(),
            slots: 2.into(),
            slot_stride: 3.into(),
            input_addr: 4.into(),
            input_key: 5.into(),
        },
        &[
            b"0123456789abcdef",
            &[1, 0, 2, 0, 3, 0, 0, 0],
            &[4, 0, 0, 0, 0, 0, 0, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0],
        ],
    );
    let names = ["no", "empty", "fail"].map(str::to_owned);
    let (names, next) = FunctionNames::from(&names, 1);
    let head = [1, 0, 0, 0, 3, 0, 0, 0, 11, 0];
    is(&names, &[&head, b"empty\0fail\0", &[0; 989]]);
    assert_eq!((names.get(), next), (Ok(vec!["empty", "fail"]), 3));
    let failed = LoadFailed { reason: Text::truncated("libm.so.6: no such file") };
    is(&failed, &[&text::<512>("libm.so.6: no such file")]);
    says(&FromExecutor::Functions(names), 1, &names);
    says(&FromExecutor::LoadFailed(failed), 2, &failed);
    let differs = CodeDiffers { received: LibraryHash::of(b"abc") };
    is(&differs, &[&SHA256_OF_ABC]);
    says(&FromExecutor::CodeDiffers(differs), 3, &differs);
    let listening =
        Listening { address: WireAddress::from(SocketAddr::from(([127, 0, 0, 1], 258))) };
    const ADDRESS: [u8; 18] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1, 2, 1];
    is(&listening, &[&ADDRESS]);
    says(&FromExecutor::Listening(listening), 4, &listening);
    let part = Part {
        worker: 1.into(),
        function: 2.into(),
        member: 3.into(),
        members: 4.into(),
        join: Join::Of.to_wire(),
        wanted: 5.into(),
        takes: Takes::Keyed.to_wire(),
        batch: 7.into(),
        within_ms: 6.into(),
        batch_wait_us: 8.into(),
        name: Text::new("sum").unwrap(),
    };
    let numbers = [1, 0, 2, 0, 3, 0, 4, 0, 1, 0, 5, 0, 2, 0, 7, 0, 6, 0, 0, 0, 8, 0, 0, 0];
    is(&part, &[&numbers, &text::<512>("sum")]);
    says(&ToExecutor::Part(part), 1, &part);
    let input = InputOfClient { bytes: 3.into() };
    is(&input, &[&[3, 0, 0, 0]]);
    says(&ToExecutor::InputOfClient(input), 2, &input);
    let kind = InputKind::Answer.to_wire();
    let edge_in = EdgeIn { secret: SECRET, bytes: 3.into(), kind, on_link: 7.into() };
    is(&edge_in, &[b"0123456789abcdef", &[3, 0, 0, 0, 2, 0, 7, 0]]);
    says(&ToExecutor::EdgeIn(edge_in), 3, &edge_in);
    let kind = InputKind::Items.to_wire();
    let edge_here = EdgeHere { from: 1.into(), edge: 2.into(), bytes: 3.into(), kind };
    is(&edge_here, &[&[1, 0, 2, 0, 3, 0, 0, 0, 1, 0]]);
    says(&ToExecutor::EdgeHere(edge_here), 4, &edge_here);
    let kind = OutputKind::Done.to_wire();
    let (to, edge) = (listening.address, 2.into());
    let on_link = 8.into();
    let edge_out = EdgeOut { to, secret: SECRET, bytes: 3.into(), edge, kind, on_link };
    is(&edge_out, &[&ADDRESS, b"0123456789abcdef", &[3, 0, 0, 0, 2, 0, 4, 0, 8, 0]]);
    says(&ToExecutor::EdgeOut(edge_out), 5, &edge_out);
    says(&ToExecutor::Complete(Empty {}), 6, &Empty {});
    assert_eq!(CodeFrom::from_wire(2.into()), Ok(CodeFrom::Node));
    assert!(CodeFrom::from_wire(0.into()).is_err() && CodeFrom::from_wire(3.into()).is_err());
}

#[test]
fn edge_structs() {
    is(&EdgeHello { secret: SECRET }, &[b"0123456789abcdef"]);
    let slots = EdgeSlots { addr: 1.into(), key: 2.into() };
    is(&slots, &[&[1, 0, 0, 0, 0, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0]]);
    let failure = EdgeFailure {
        because: FailedBecause::OutputTooLarge.to_wire(),
        function: 2.into(),
        member: 3.into(),
        unused: 0.into(),
        returned: 4.into(),
        most: 5.into(),
    };
    is(&failure, &[&[1, 0, 2, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0]]);
    for (wire, edge, slot, status, run) in [
        (0, 0, 0, EdgeStatus::Value, 0),
        (0x0720_0603, 1, 0x203, EdgeStatus::Failed, 7),
        (0xff1f_ffff, 0x7ff, 0x3ff, EdgeStatus::Value, 255),
        (0x0040_0400, 1, 0, EdgeStatus::InPlace, 0),
    ] {
        let immediate = EdgeImmediate { edge, slot, status, run };
        assert_eq!(immediate.to_wire(), wire);
        assert_eq!(EdgeImmediate::from_wire(wire), Ok(immediate));
    }
    assert!(EdgeImmediate::from_wire(0x0060_0000).is_err());
    const LARGEST: u64 = 1 << 32;
    for (bytes, stride) in [(0, 64), (1, 64), (64, 64), (65, 128), (u32::MAX, LARGEST)] {
        assert_eq!(EdgeShape { slots: 2, bytes }.stride(), stride);
        assert_eq!(EdgeShape { slots: 2, bytes }.all_bytes(), 2 * stride);
    }
    for (bytes, stride, in_place) in [(16383, 16384, false), (16384, 16384, true)] {
        let shape = EdgeShape { slots: 1, bytes };
        assert_eq!((shape.stride(), shape.is_in_place()), (stride, in_place));
    }
    is(&ItemHeader { key: 1.into(), bytes: 2.into() }, &[&[1, 0, 0, 0, 2, 0, 0, 0]]);
    is(&InPlaceLength { bytes: 1.into() }, &[&[1, 0, 0, 0]]);
    let record = TraceRecord {
        begin_ns: 1.into(),
        took_ns: 2.into(),
        bytes_in: 3.into(),
        bytes_out: 4.into(),
        together: 5.into(),
        notes: 6.into(),
        calls: 7.into(),
        run: 8,
        failed: 1,
    };
    let numbers = [3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 6, 0, 7, 0, 8, 1];
    is(&record, &[&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0], &numbers]);
    let note = TraceNote { key: *b"residual\0\0\0\0\0\0\0\0", value: (-2).into() };
    is(&note, &[b"residual\0\0\0\0\0\0\0\0", &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]]);
    assert_eq!(TRACE_BYTES, 128);
}

#[test]
fn launch_structs() {
    let speaks = Speaks { version: 6.into() };
    is(&speaks, &[&[6, 0]]);
    let grow = Grow { memory: 0x0102_0304.into() };
    is(&grow, &[&[4, 3, 2, 1]]);
    let started = Started { pid: 0x0102_0304.into() };
    is(&started, &[&[4, 3, 2, 1]]);
    let not_started = NotStarted { reason: Text::truncated("no memory") };
    is(&not_started, &[&text::<240>("no memory")]);
    let ended = Ended { signal: 11.into(), status: 0.into() };
    is(&ended, &[&[11, 0, 0, 0, 0, 0, 0, 0]]);
    says(&ToZygote::Prepare(speaks), 1, &speaks);
    says(&ToZygote::Start(Empty {}), 2, &Empty {});
    says(&FromZygote::Ready(speaks), 1, &speaks);
    says(&FromZygote::Started(started), 2, &started);
    says(&FromZygote::NotStarted(not_started), 3, &not_started);
    says(&FromGuardian::Ended(ended), 1, &ended);
    says(&ToGuardian::Stop(Empty {}), 1, &Empty {});
    says(&ToGuardian::Go(Empty {}), 2, &Empty {});
    says(&ToGuardian::Grow(grow), 3, &grow);
    says(&FromStandby::Ready(Empty {}), 1, &Empty {});
    says(&ToStandby::Assign(Empty {}), 1, &Empty {});
}

#[test]
fn invocation_structs() {
    is(
        &RequestHeader {
            reply_addr: 0x0807_0605_0403_0201.into(),
            reply_key: 0x1807_1605_1403_1201.into(),
            output_capacity: 2.into(),
            function: 3.into(),
            flags: 4.into(),
            input_bytes: 5.into(),
            sequence: 6.into(),
        },
        &[
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0x01, 0x12, 0x03, 0x14, 0x05, 0x16, 0x07, 0x18],
            &[2, 0, 0, 0, 3, 0, 4, 0, 5, 0, 0, 0, 6, 0, 0, 0],
        ],
    );
    assert_eq!((OUTPUT_IN_PLACE, INPUT_IN_PLACE), (1, 2));
    assert_eq!(RequestImmediate { slot: 0x3ff, again: false }.to_wire(), 0x3ff);
    assert_eq!(RequestImmediate { slot: 1, again: true }.to_wire(), 0x8000_0001);
    is(
        &InPlaceDetail {
            output_addr: 0x0807_0605_0403_0201.into(),
            output_key: 1.into(),
            output_bytes: 2.into(),
        },
        &[&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 0, 0, 0, 0, 0, 0, 0], &[2, 0, 0, 0]],
    );
    is(&FailureDetail { needed_bytes: 1.into() }, &[&[1, 0, 0, 0, 0, 0, 0, 0]]);
    assert_eq!((HEADER_SPACE, MAX_SLOTS), (64, 1024));
    for (number, status) in [
        (0, ReplyStatus::Ok),
        (1, ReplyStatus::UnknownFunction),
        (2, ReplyStatus::OutputTooLarge),
        (3, ReplyStatus::Malformed),
    ] {
        let reply = ReplyImmediate { slot: 0x0102, status, sequence: 0xfe };
        assert_eq!(reply.to_wire(), 0xfe00_0102 | number << 16);
    }
}

#[test]
fn instructions_are_this_json() {
    let standby = Standby {
        device: AssignedDevice {
            name: "shm0".into(),
            provider: "shm".into(),
            ip_address: "127.0.0.1".parse().unwrap(),
            max_inline_data: 0,
        },
        manager: "127.0.0.1:10005".parse().unwrap(),
        manager_secret: HexSecret(SECRET),
        most_workers: 3,
        open_files: 1024,
        heartbeat_ms: 8,
        silence_ms: 9,
        sandbox: None,
        memory: None,
        preload: vec![PreloadedLibrary { hash: LibraryHash::of(b"abc"), bytes: 3 }],
    };
    let assignment = Assignment {
        lease: 7,
        memory: 512,
        client: "[::1]:5".parse().unwrap(),
        session_secret: HexSecret(Secret([0xf0; 16])),
        workers: 2,
        pin_to: Some(vec![0, 1]),
        slots: 4,
        input_bytes: 5,
        output_bytes: 6,
        code_bytes: 7,
        code_hash: LibraryHash::of(b"abc"),
        library: LibraryFile::Empty,
        hot_timeout_ms: -1,
        graph: true,
    };
    let mut instructions = Instructions { standby, assignment: None };
    let mut json = serde_json::json!({
        "standby": {
            "device": {"name": "shm0", "provider": "shm", "ip_address": "127.0.0.1",
                "max_inline_data": 0},
            "manager": "127.0.0.1:10005",
            "manager_secret": "30313233343536373839616263646566",
            "most_workers": 3,
            "open_files": 1024,
            "heartbeat_ms": 8,
            "silence_ms": 9,
            "preload": [{"bytes": 3,
                "hash": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}],
        },
    });
    assert_eq!(serde_json::to_value(&instructions).unwrap(), json);
    assert_eq!(serde_json::from_value::<Instructions>(json.clone()).unwrap(), instructions);
    instructions.assignment = Some(assignment);
    json["assignment"] = serde_json::json!({
        "lease": 7,
        "memory": 512,
        "client": "[::1]:5",
        "session_secret": "f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0",
        "workers": 2,
        "pin_to": [0, 1],
        "slots": 4,
        "input_bytes": 5,
        "output_bytes": 6,
        "code_bytes": 7,
        "code_hash": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "library": "empty",
        "hot_timeout_ms": -1,
        "graph": true,
    });
    assert_eq!(serde_json::to_value(&instructions).unwrap(), json);
    assert_eq!(serde_json::from_value::<Instructions>(json).unwrap(), instructions);
}
