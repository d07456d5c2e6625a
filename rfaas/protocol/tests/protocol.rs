//! Properties of the wire protocol: what is sent is read, what nobody sent is an error, and only the
//! cluster's secret signs.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use rfaas_protocol::allocation::{Allocate, ClaimHello, NodeProof};
use rfaas_protocol::assignment::HexSecret;
use rfaas_protocol::invocation::{
    INPUT_IN_PLACE, MAX_SLOTS, OUTPUT_IN_PLACE, ReplyImmediate, ReplyStatus, RequestHeader,
    RequestImmediate,
};
use rfaas_protocol::lease::{
    ClientName, EndReason, LeaseId, LeaseTerms, MAX_CLIENT_NAME_BYTES, MAX_NODE_NAME_BYTES,
    NodeName, Token,
};
use rfaas_protocol::node::{ManagerProof, NodeHello, Register};
use rfaas_protocol::session::{FromExecutor, FunctionNames, ToExecutor, WorkerHello};
use rfaas_protocol::{
    Empty, Hello, MAX_MESSAGE_BYTES, Malformed, MessageKind, Nonce, Nonces, Refusal, Role, Secret,
    Text, VERSION, WireAddress, allocation, launch, lease, node, parse_prefix,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

fn terms() -> LeaseTerms {
    LeaseTerms {
        lease: 7.into(),
        cores: 2.into(),
        memory: 512.into(),
        expires_at_ms: 1_000.into(),
        instance: 9.into(),
        node: NodeName::new("node-1").unwrap(),
        client: ClientName::new("alice").unwrap(),
    }
}

const NONCES: Nonces = Nonces { caller: Nonce([5; 16]), called: Nonce([6; 16]) };

/// With one nonce of these only.
fn other_connections() -> [Nonces; 3] {
    let fresh = Nonce([7; 16]);
    let Nonces { caller, called } = NONCES;
    [
        Nonces { caller: fresh, called },
        Nonces { caller, called: fresh },
        Nonces { caller: called, called: caller },
    ]
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn register() -> Register {
    Register::new(NodeName::new("node-1").unwrap(), 1, address(10_005), &NONCES, b"42")
}

/// A claim of the lease of `token`, not proved.
fn claim(token: &Token) -> Allocate {
    Allocate { signed: token.signed(), slots: 4.into(), ..Allocate::new_zeroed() }
}

/// Decodes as messages of every conversation; whichever accepts it must encode the same bytes again.
fn decode_as_each(bytes: &[u8]) -> usize {
    fn one<M: MessageKind>(bytes: &[u8]) -> usize {
        let Ok(message) = M::decode(bytes) else { return 0 };
        assert_eq!(message.encode(), bytes);
        1
    }
    one::<lease::FromClient>(bytes)
        + one::<lease::ToClient>(bytes)
        + one::<node::FromNode>(bytes)
        + one::<node::ToNode>(bytes)
        + one::<allocation::FromClient>(bytes)
        + one::<allocation::ToClient>(bytes)
        + one::<FromExecutor>(bytes)
        + one::<ToExecutor>(bytes)
        + one::<launch::FromZygote>(bytes)
        + one::<launch::ToZygote>(bytes)
        + one::<launch::FromGuardian>(bytes)
        + one::<launch::ToGuardian>(bytes)
        + one::<launch::FromStandby>(bytes)
        + one::<launch::ToStandby>(bytes)
}

/// Lengths of all message bodies, so that random bytes are often of the right length.
const BODIES: [usize; 35] = [
    0, 2, 4, 6, 8, 10, 14, 16, 18, 20, 24, 32, 38, 40, 44, 90, 200, 228, 242, 244, 246, 248, 252,
    260, 262, 266, 272, 286, 344, 374, 514, 538, 622, 1010, 1016,
];

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
        decode_as_each(&bytes);
        let _ = Hello::parse(&bytes);
        let _ = parse_prefix::<WorkerHello>(&bytes);
        let _ = parse_prefix::<Refusal>(&bytes).map(|refusal| refusal.get().map(str::len));
    }

    #[test]
    fn a_message_that_is_read_is_the_one_that_was_sent(
        kind in 0u8..9,
        len in prop::sample::select(&BODIES[..]),
        body in prop::collection::vec(any::<u8>(), 1016),
    ) {
        decode_as_each(&[&[kind, 0], &body[..len]].concat());
    }

    #[test]
    fn fields_of_hostile_messages_are_errors_at_worst(bytes in prop::collection::vec(any::<u8>(), size_of::<Token>())) {
        let token = Token::read_from_bytes(&bytes).unwrap();
        prop_assert!(!token.verify(b"42"));
        let _ = token.terms.node.get();
        let _ = token.terms.expired(SystemTime::now());
        let _ = format!("{token:?}");
        let _ = EndReason::from_wire(u16::from_le_bytes([bytes[0], bytes[1]]).into());
        let _ = allocation::RefusedBecause::from_wire(u16::from_le_bytes([bytes[0], bytes[1]]).into());
    }

    #[test]
    fn a_request_immediate_survives_the_wire(
        slot in 0..MAX_SLOTS as u32, again in any::<bool>(), any in any::<u32>()
    ) {
        let request = RequestImmediate { slot, again };
        prop_assert_eq!(RequestImmediate::from_wire(request.to_wire()), request);
        prop_assert_eq!(RequestImmediate::from_wire(any).to_wire(), any);
    }

    #[test]
    fn a_reply_immediate_survives_the_wire(
        slot in 0..MAX_SLOTS as u16, status in 0u8..4, sequence in any::<u8>(), any in any::<u32>()
    ) {
        let status = [
            ReplyStatus::Ok, ReplyStatus::UnknownFunction, ReplyStatus::OutputTooLarge, ReplyStatus::Malformed,
        ][usize::from(status)];
        let reply = ReplyImmediate { slot, status, sequence };
        prop_assert_eq!(ReplyImmediate::from_wire(reply.to_wire()), Ok(reply));
        match ReplyImmediate::from_wire(any) {
            Ok(reply) => prop_assert_eq!(reply.to_wire(), any),
            Err(error) => prop_assert_eq!(error, Malformed::Field("reply status")),
        }
    }

    #[test]
    fn an_address_survives_the_wire(v6 in any::<bool>(), ip in any::<[u8; 16]>(), port in any::<u16>()) {
        let ip = if v6 { ip.into() } else { [ip[0], ip[1], ip[2], ip[3]].into() };
        let addr = SocketAddr::new(ip, port);
        let back = SocketAddr::from(WireAddress::from(addr));
        prop_assert_eq!(back, SocketAddr::new(addr.ip().to_canonical(), port));
    }

    #[test]
    fn text_survives_the_wire(text in "\\PC{0,64}") {
        match Text::<64>::new(&text) {
            Some(wire) => prop_assert_eq!(wire.get(), Ok(&text[..])),
            None => prop_assert!(text.len() > 64),
        }
        let cut = Text::<64>::truncated(&text);
        let cut = cut.get().unwrap();
        prop_assert!(text.starts_with(cut) && cut.len() + 4 > text.len().min(64));
    }

    #[test]
    fn a_token_with_any_bit_changed_is_refused(bit in 0..8 * size_of::<Token>()) {
        let mut token = Token::sign(terms(), b"42");
        prop_assert!(token.verify(b"42"));
        token.as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!token.verify(b"42"));
    }

    #[test]
    fn a_registration_with_any_bit_changed_is_refused(bit in 0..8 * size_of::<Register>()) {
        let mut register = register();
        prop_assert!(register.verify(&NONCES, b"42"));
        register.as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!register.verify(&NONCES, b"42"));
    }

    #[test]
    fn a_claim_with_any_bit_changed_is_refused(bit in 0..8 * size_of::<Allocate>()) {
        let token = Token::sign(terms(), b"42");
        let mut claim = claim(&token).proved(token.key(), &NONCES);
        prop_assert!(claim.verify(token.key(), &NONCES));
        claim.as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!claim.verify(token.key(), &NONCES));
    }

    #[test]
    fn names_of_functions_arrive_in_order_in_as_few_messages_as_have_room(
        names in prop::collection::vec("[a-zé_]{1,200}", 1..40),
    ) {
        let (mut arrived, mut next) = (Vec::new(), 0);
        while next < names.len() {
            let (part, after) = FunctionNames::from(&names, next);
            prop_assert_eq!((part.first.get() as usize, part.count.get() as usize), (next, names.len()));
            let bytes: usize = names[next..after].iter().map(|name| name.len() + 1).sum();
            prop_assert!(after == names.len() || bytes + names[after].len() + 1 > 1000);
            arrived.extend(part.get().unwrap().into_iter().map(str::to_owned));
            prop_assert_eq!(arrived.len(), after);
            next = after;
        }
        prop_assert_eq!(arrived, names);
    }

    #[test]
    fn names_that_a_peer_makes_up_are_names_or_an_error(len in 0u16..1100, bytes in prop::collection::vec(0u8..3, 1000)) {
        let body = [&[0; 8][..], &len.to_le_bytes(), &bytes].concat();
        let part = FunctionNames::read_from_bytes(&body).unwrap();
        if let Ok(names) = part.get() {
            let bytes: usize = names.iter().map(|name| name.len() + 1).sum();
            prop_assert_eq!(bytes, usize::from(len));
            prop_assert!(names.iter().all(|name| !name.is_empty() && name.len() <= 512));
        }
    }

    #[test]
    fn token_text_of_anything_is_an_error_at_worst(text in "[A-Za-z0-9_=+/ -]{0,400}") {
        if let Ok(token) = Token::from_text(&text) {
            prop_assert_eq!(token.to_text(), text);
        }
    }
}

#[test]
fn every_message_has_a_length_of_its_own_and_fits() {
    let accepted: usize = (0..256u16)
        .flat_map(|kind| BODIES.map(|len| [&kind.to_le_bytes()[..], &vec![1; len]].concat()))
        .map(|bytes| decode_as_each(&bytes))
        .sum();
    assert_eq!(accepted, 54, "messages of all conversations: is BODIES complete?");
    assert!(BODIES.iter().all(|len| len + 2 <= MAX_MESSAGE_BYTES));
}

#[test]
fn a_message_of_another_length_is_refused() {
    let bytes = node::ToNode::EndedAck(node::LeaseEndedAck { lease: 1.into() }).encode();
    for wrong in [&bytes[..9], &[&bytes[..], &[0]].concat()[..]] {
        let expected = Malformed::Length { what: "EndedAck", bytes: wrong.len() - 2, expected: 8 };
        assert_eq!(node::ToNode::decode(wrong), Err(expected));
    }
    for short in [&[][..], &[1]] {
        let expected = Malformed::Length { what: "ToNode", bytes: short.len(), expected: 2 };
        assert_eq!(node::ToNode::decode(short), Err(expected));
    }
    assert_eq!(node::ToNode::decode(&[9, 1]), Err(Malformed::Kind(0x0109)));
    assert_eq!(node::ToNode::decode(&[0, 0]), Err(Malformed::Kind(0)));
}

#[test]
fn a_hello_is_read_with_the_zeros_that_a_device_appends() {
    let body = WorkerHello {
        session: Secret([1; 16]),
        worker: 1.into(),
        slots: 2.into(),
        slot_stride: 3.into(),
        input_addr: 4.into(),
        input_key: 5.into(),
    };
    let mut hello = Hello::with(Role::Worker, &body);
    assert!(hello.len() <= rdmalib::MAX_CONNECT_DATA);
    hello.resize(rdmalib::MAX_CONNECT_DATA, 0);
    let (role, rest) = Hello::parse(&hello).unwrap();
    assert_eq!((role, parse_prefix(rest)), (Role::Worker, Ok(body)));
}

#[test]
fn a_peer_of_another_version_or_another_kind_is_recognised() {
    let hello = Hello::with(Role::Lease, &Empty {});
    let mut other = hello.clone();
    other[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
    assert_eq!(Hello::parse(&other), Err(Malformed::Version { theirs: VERSION + 1 }));
    let text = Hello::parse(&other).unwrap_err().to_string();
    assert!(text.contains("version 11") && text.contains("speaks 10"), "{text}");

    let mut other = hello.clone();
    other[0] ^= 1;
    assert_eq!(Hello::parse(&other), Err(Malformed::Magic));
    assert_eq!(Hello::parse(&hello[..7]), Err(Malformed::Magic));
    assert_eq!(Hello::parse(&[]), Err(Malformed::Magic));

    let mut other = hello;
    other[6] = 8;
    assert_eq!(Hello::parse(&other), Err(Malformed::Kind(8)));
}

#[test]
fn a_body_that_is_cut_off_is_refused() {
    let hello = Hello::with(Role::Worker, &Empty {});
    let (_, rest) = Hello::parse(&hello).unwrap();
    let error = parse_prefix::<WorkerHello>(rest).unwrap_err();
    assert!(matches!(error, Malformed::Length { bytes: 0, expected: 40, .. }), "{error}");
}

#[test]
fn a_token_is_valid_under_its_own_secret_only() {
    let token = Token::sign(terms(), b"42");
    assert!(token.verify(b"42"));
    assert!(!token.verify(b"43"));
    assert!(!token.verify(b""));
    assert!(!Token::unsigned(terms()).verify(b"42"));
}

#[test]
fn a_registration_is_valid_on_its_own_connection_and_under_its_secret_only() {
    let register = register();
    assert!(register.verify(&NONCES, b"42"));
    assert!(!register.verify(&NONCES, b"43"));
    for other in other_connections() {
        assert!(!register.verify(&other, b"42"), "said again elsewhere");
    }
}

#[test]
fn a_claim_is_valid_on_its_own_connection_and_by_its_holder_only() {
    let (token, other) = (Token::sign(terms(), b"42"), LeaseTerms { lease: 8.into(), ..terms() });
    let claim = claim(&token).proved(token.key(), &NONCES);
    assert!(claim.verify(token.key(), &NONCES));
    assert!(!claim.verify(Token::sign(other, b"42").key(), &NONCES));
    for other in other_connections() {
        assert!(!claim.verify(token.key(), &other), "said again elsewhere");
    }
    let renewed = LeaseTerms { expires_at_ms: 9_000.into(), ..terms() };
    assert_eq!(Token::sign(renewed, b"42").key().as_bytes(), token.key().as_bytes());
    let next_run = LeaseTerms { instance: 10.into(), ..terms() };
    assert_ne!(Token::sign(next_run, b"42").key().as_bytes(), token.key().as_bytes());
}

#[test]
fn who_is_called_proves_itself_to_its_caller_at_its_own_address_only() {
    let (here, elsewhere) = (address(10_000), address(10_001));
    let (hello, another) =
        (NodeHello { nonce: Nonce([1; 16]) }, NodeHello { nonce: Nonce([2; 16]) });
    let proof = ManagerProof::new(&hello, here, b"42");
    let nonces = Nonces { caller: hello.nonce, called: proof.nonce };
    assert_eq!(proof.verify(&hello, here, b"42"), Some(nonces));
    let mapped = "[::ffff:127.0.0.1]:10000".parse().unwrap();
    assert_eq!(proof.verify(&hello, mapped, b"42"), Some(nonces), "the same address");
    for (hello, address, secret) in
        [(&another, here, b"42"), (&hello, elsewhere, b"42"), (&hello, here, b"43")]
    {
        assert_eq!(proof.verify(hello, address, secret), None);
    }

    let token = Token::sign(terms(), b"42");
    let (hello, another) = (ClaimHello::new(&token), ClaimHello::new(&token));
    let proof = NodeProof::new(&hello, here, &hello.key(b"42"));
    assert!(proof.verify(&hello, here, token.key()), "the node derives the key");
    assert!(!proof.verify(&another, here, token.key()));
    assert!(!proof.verify(&hello, elsewhere, token.key()), "passed on by who listens elsewhere");
    assert!(!proof.verify(&hello, here, Token::sign(terms(), b"43").key()));
    assert!(!NodeProof::none().verify(&hello, here, token.key()));
}

#[test]
fn a_token_without_its_key_shows_its_terms_and_claims_nothing() {
    let token = Token::sign(terms(), b"42");
    let shown = token.without_key();
    assert!(shown.signed().verify(b"42") && !shown.verify(b"42"));
    let claim = claim(&shown).proved(shown.key(), &NONCES);
    assert!(!claim.verify(token.key(), &NONCES));
    assert!(!Token::unsigned(terms()).signed().verify(b"42"));
    assert_ne!(shown, token);
}

#[test]
fn clients_of_the_release_before_are_listened_to_and_nobody_else_of_it() {
    for (role, listened_to) in [
        (Role::Lease, true),
        (Role::Allocation, true),
        (Role::Node, false),
        (Role::Accounting, false),
        (Role::Executor, false),
        (Role::Worker, false),
        (Role::Edge, false),
    ] {
        let mut hello = Hello::with(role, &Empty {});
        for (version, accepted) in
            [(10, true), (9, listened_to), (4, listened_to), (3, false), (11, false)]
        {
            hello[4] = version;
            let theirs = version.into();
            let expected = if accepted { Ok(role) } else { Err(Malformed::Version { theirs }) };
            assert_eq!(Hello::parse(&hello).map(|(role, _)| role), expected, "{version}");
        }
    }
}

#[test]
fn token_text_is_read_back_and_nothing_else_is() {
    let token = Token::sign(terms(), b"42");
    let text = token.to_text();
    assert_eq!(text.len(), (size_of::<Token>() * 4).div_ceil(3));
    assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    assert_eq!(Token::from_text(&text), Ok(token));
    let padded = format!("{text}=");
    let longer = format!("{text}AAAA");
    for wrong in ["", &text[..335], &text[..332], &padded, &longer, &text.replace('A', "!")] {
        assert_eq!(Token::from_text(wrong), Err(Malformed::Field("token")));
    }
}

#[test]
fn secrets_are_not_printed() {
    let token = Token::sign(terms(), b"42");
    assert!(format!("{token:?}").ends_with(", .. }"));
    assert_eq!(format!("{:?}", Secret([1; 16])), "Secret(..)");
    assert_eq!(format!("{:?}", HexSecret(Secret([1; 16]))), "HexSecret(..)");
}

#[test]
fn terms_expire_at_their_end_and_not_before() {
    let terms = terms();
    assert!(!terms.expired(UNIX_EPOCH + Duration::from_millis(999)));
    assert!(terms.expired(UNIX_EPOCH + Duration::from_millis(1000)));
    let never = LeaseTerms { expires_at_ms: u64::MAX.into(), ..terms };
    assert!(!never.expired(SystemTime::now()));
}

#[test]
fn text_fits_up_to_its_limit_and_is_never_cut_inside_a_character() {
    assert!(Text::<4>::new("").is_some());
    assert!(Text::<4>::new("abcd").is_some());
    assert!(Text::<4>::new("abcde").is_none());
    assert_eq!(Text::<4>::truncated("abcde").get(), Ok("abcd"));
    assert_eq!(Text::<4>::truncated("abcé").get(), Ok("abc"));
    assert_eq!(Text::<4>::truncated("🦀").get(), Ok("🦀"));
    assert_eq!(Text::<4>::truncated("a🦀").get(), Ok("a"));
    assert!(NodeName::new(&"n".repeat(MAX_NODE_NAME_BYTES)).is_some());
    assert!(NodeName::new(&"n".repeat(MAX_NODE_NAME_BYTES + 1)).is_none());
    assert!(ClientName::new(&"c".repeat(MAX_CLIENT_NAME_BYTES)).is_some());
    assert!(ClientName::new(&"c".repeat(MAX_CLIENT_NAME_BYTES + 1)).is_none());
}

#[test]
fn text_that_is_none_is_refused() {
    for bytes in [[5, 0, 1, 1, 1, 1], [0xff, 0xff, 1, 1, 1, 1], [1, 0, 0xff, 0, 0, 0]] {
        let text = Text::<4>::read_from_bytes(&bytes).unwrap();
        assert_eq!(text.get(), Err(Malformed::Field("text")));
        assert_eq!(format!("{text:?}"), "\"<invalid>\"");
    }
}

#[test]
fn a_hex_secret_is_32_digits() {
    let secret = Secret(std::array::from_fn(|i| 17 * i as u8));
    let text = String::from(HexSecret(secret));
    assert_eq!(text, "00112233445566778899aabbccddeeff");
    assert!(HexSecret::try_from(text.clone()).is_ok_and(|read| read.0 == secret));
    for wrong in ["", "00", &text[1..], "0011223344556677889 aabbccddeeff", "éééééééééééééééé"]
    {
        assert!(HexSecret::try_from(wrong.to_owned()).is_err(), "{wrong}");
    }
    assert_ne!(Secret::generate(), Secret::generate());
}

#[test]
fn lease_zero_is_no_lease() {
    assert_eq!(LeaseId::new(0), None);
    assert_eq!(LeaseId::new(7).unwrap().get(), 7);
    assert_eq!(LeaseId::new(7).unwrap().to_string(), "7");
}

#[test]
fn a_header_says_how_long_its_message_is() {
    let bytes = |flags: u16, input_bytes: u32| {
        let mut header = RequestHeader::new_zeroed();
        header.flags = flags.into();
        header.input_bytes = input_bytes.into();
        header.message_bytes()
    };
    for input in [0, 1, u32::MAX] {
        let whole = Some(32 + u64::from(input));
        assert_eq!(bytes(0, input), whole);
        assert_eq!(bytes(OUTPUT_IN_PLACE, input), whole);
        assert_eq!(bytes(INPUT_IN_PLACE, input), Some(32));
        assert_eq!(bytes(OUTPUT_IN_PLACE | INPUT_IN_PLACE, input), Some(32));
        for unknown in [4, 5, 6, 7, 1 << 15, u16::MAX] {
            assert_eq!(bytes(unknown, input), None);
        }
    }
}
