//! What a lease is claimed and ended with: tokens, their text, signed terms, proofs. Who does not know the secret
//! cannot make one, whatever it sends; who does can make one of any terms, and a node judges those.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use executor_manager::identity::Identity;
use executor_manager::request::{Authority, Opening, RequestRefusal};
use rfaas_protocol::allocation::{Allocate, ClaimHello, NodeProof};
use rfaas_protocol::lease::{LeaseId, LeaseTerms, NodeName, SignedTerms, Token};
use rfaas_protocol::library::LibraryHash;
use rfaas_protocol::node::{ManagerProof, NodeHello, Register};
use rfaas_protocol::{Clock, Nonce, Nonces, Proof};
use zerocopy::FromBytes;

use crate::cursor::Cursor;
use crate::{SECRET, assert_line};

/// The node that judges, and its run.
const NODE: &str = "node";
const INSTANCE: u64 = 5;
/// The nonces of the connection.
const NONCES: Nonces = Nonces { caller: Nonce([1; 16]), called: Nonce([2; 16]) };
/// Where the node listens.
const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 10_005);

pub(crate) fn run(bytes: &[u8]) {
    token(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        text_forms(text);
    }
    proofs(bytes);
    judged(bytes);
}

/// A token counts if it is what the secret makes of its terms. Its text is read as itself.
fn token(bytes: &[u8]) {
    if let Ok((token, _)) = Token::read_from_prefix(bytes) {
        let genuine = Token::sign(token.terms, SECRET);
        assert_eq!(token.verify(SECRET), token == genuine);
        assert!(genuine.verify(SECRET) && !genuine.verify(b"another secret"));
        assert_eq!(genuine.signed() == token.signed(), token.signed().verify(SECRET));
        assert_eq!(Token::from_text(&token.to_text()), Ok(token));
        assert!(!token.without_key().verify(SECRET), "the key of a lease is not all zeros");
        assert_line(&format!("{token:?}"));
    }
    if let Ok((signed, _)) = SignedTerms::read_from_prefix(bytes) {
        assert_eq!(signed.verify(SECRET), signed == Token::sign(signed.terms, SECRET).signed());
    }
}

/// A text that is read has no other spelling.
fn text_forms(text: &str) {
    match Token::from_text(text) {
        Ok(token) => assert_eq!(token.to_text(), text),
        Err(malformed) => assert_line(&malformed.to_string()),
    }
    match LibraryHash::try_from(text.to_owned()) {
        Ok(hash) => assert_eq!(hash.to_string(), text.to_ascii_lowercase()),
        Err(wrong) => assert_line(wrong),
    }
}

/// Nobody proves anything without the secret.
fn proofs(bytes: &[u8]) {
    let key = Token::sign(terms(bytes), SECRET);
    let address = ADDRESS.into();
    if let Ok((hello, rest)) = ClaimHello::read_from_prefix(bytes) {
        if let Ok((proof, _)) = NodeProof::read_from_prefix(rest) {
            assert!(!proof.verify(&hello, address, key.key()));
        }
        let genuine = NodeProof::new(&hello, address, key.key());
        assert!(genuine.verify(&hello, address, key.key()));
    }
    if let Ok((hello, rest)) = NodeHello::read_from_prefix(bytes)
        && let Ok((proof, _)) = ManagerProof::read_from_prefix(rest)
    {
        assert_eq!(proof.verify(&hello, address, SECRET), None);
    }
    if let Ok((register, _)) = Register::read_from_prefix(bytes) {
        let genuine = register.at(register.clock, &NONCES, SECRET);
        assert_eq!(register.verify(&NONCES, SECRET), register == genuine);
        assert!(genuine.verify(&NONCES, SECRET));
    }
    if let Ok((allocate, _)) = Allocate::read_from_prefix(bytes) {
        let genuine = allocate.proved(key.key(), &NONCES);
        assert_eq!(allocate.verify(key.key(), &NONCES), allocate == genuine);
        assert!(genuine.verify(key.key(), &NONCES));
        let of_another = Nonces { caller: NONCES.called, called: NONCES.caller };
        assert!(!genuine.verify(key.key(), &of_another), "worth nothing elsewhere");
    }
}

fn terms(bytes: &[u8]) -> LeaseTerms {
    let terms = Cursor::new(bytes).array::<{ size_of::<LeaseTerms>() }>();
    LeaseTerms::read_from_bytes(&terms).expect("any bytes are terms")
}

/// A node judges terms that its resource manager has signed, or nobody. Times that it may give are within the lease.
fn judged(bytes: &[u8]) {
    let mut input = Cursor::new(bytes);
    let terms = terms(input.bytes(size_of::<LeaseTerms>()));
    let [now, clock] = [input.u64(), input.u64()].map(|ms| Clock { ms: ms.into() });
    let held = LeaseId::new(input.u64());
    let now: SystemTime = now.time();

    let (signed, unsigned) = (Token::sign(terms, SECRET), Token::unsigned(terms));
    let cluster = cluster();
    let admitted = cluster.admit(&signed.signed(), clock, held, now);
    if let Ok(left) = judge(admitted, &terms, now) {
        assert!(terms.node.get() == Ok(NODE) && terms.instance.get() == INSTANCE);
        assert!(!left.is_zero());
    }
    assert!(cluster.admit(&unsigned.signed(), clock, held, now).is_err(), "nobody has signed it");
    let anyone = Authority::Anyone.admit(&unsigned.signed(), clock, held, now);
    if judge(anyone, &terms, clock.time()).is_ok() {
        assert!(terms.lease.get() == 0 || held == terms.id());
    }

    let hello =
        ClaimHello { lease: terms.lease, instance: terms.instance, nonce: Nonce(input.array()) };
    let (opening, proof) = cluster.answer(Some(hello), ADDRESS.into());
    let proves = proof.verify(&hello, ADDRESS.into(), signed.key());
    assert_eq!(proves, matches!(opening, Opening::Lease { .. }));
    let Ok((allocate, _)) = Allocate::read_from_prefix(bytes) else { return };
    let allocate = Allocate { signed: signed.signed(), clock, proof: Proof::NONE, ..allocate };
    let claimed = cluster.admit_claim(&allocate, &opening, now);
    assert!(judge(claimed, &terms, now).is_err(), "the holder of a lease proves that it is");
    if let Opening::Lease { nonces, .. } = opening {
        let proved = allocate.proved(signed.key(), &nonces);
        let (claimed, admitted) = (
            cluster.admit_claim(&proved, &opening, now),
            cluster.admit(&signed.signed(), clock, None, now),
        );
        assert_eq!(claimed, admitted);
    }
}

fn judge(
    admitted: Result<Duration, RequestRefusal>,
    terms: &LeaseTerms,
    now: SystemTime,
) -> Result<Duration, ()> {
    match admitted {
        Ok(left) => {
            let end = UNIX_EPOCH + Duration::from_millis(terms.expires_at_ms.get());
            assert_eq!(now + left, end);
            Ok(left)
        }
        Err(refusal) => {
            assert_line(&refusal.reason);
            Err(())
        }
    }
}

fn cluster() -> Authority {
    Authority::ResourceManager(Arc::new(Identity {
        name: NodeName::new(NODE).expect("a short name"),
        instance: INSTANCE.try_into().expect("not zero"),
        address: ADDRESS.into(),
        secret: SECRET.into(),
        warning: None,
    }))
}
