//! Messages of the handshake: 32 bytes, and private data behind them. Pure.

use std::time::Duration;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::protocol::Terms;
use super::super::wire::MAX_QUEUE_DEPTH;
use crate::types::{Error, MAX_ACCEPT_DATA, MAX_CONNECT_DATA, MAX_REJECT_DATA, Result};

/// Bytes before the private data.
pub(super) const GREETING: usize = 32;
/// Most bytes of a request.
pub(super) const MOST: usize = GREETING + MAX_CONNECT_DATA;

const MAGIC: [u8; 8] = *b"rdma/tcp";
const VERSION: u8 = 1;
/// A request waits for a receive for ever.
const FOR_EVER: u64 = u64::MAX;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Request = 1,
    Accept = 2,
    Reject = 3,
    /// Too many connections wait at the listener.
    Crowded = 4,
    // 5 and 6 are set aside for a challenge and its proof.
}

impl Kind {
    fn most_data(self) -> usize {
        match self {
            Kind::Request => MAX_CONNECT_DATA,
            Kind::Accept => MAX_ACCEPT_DATA,
            Kind::Reject => MAX_REJECT_DATA,
            Kind::Crowded => 0,
        }
    }
}

/// What every message begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Greeting {
    magic: [u8; 8],
    version: u8,
    kind: u8,
    proof: u8,
    reserved: u8,
    /// Bytes of private data behind it.
    length: U16,
    reserved_too: U16,
    send_depth: U32,
    patience_us: U64,
    reserved_last: U32,
}
const _: () = assert!(size_of::<Greeting>() == GREETING);

/// A message without its private data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) terms: Terms,
    pub(super) data_bytes: usize,
}

impl Message {
    /// Its bytes, with private data, whose length was checked.
    pub(super) fn bytes(kind: Kind, terms: Terms, data: &[u8]) -> Vec<u8> {
        let patience = terms.patience.map(|patience| patience.as_micros().try_into());
        let greeting = Greeting {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u8,
            proof: 0,
            reserved: 0,
            length: U16::new(data.len() as u16),
            reserved_too: U16::new(0),
            send_depth: U32::new(terms.send_depth),
            patience_us: U64::new(patience.map_or(FOR_EVER, |us| us.unwrap_or(FOR_EVER))),
            reserved_last: U32::new(0),
        };
        [greeting.as_bytes(), data].concat()
    }

    /// Whether these first bytes can be those of a message.
    pub(super) fn may_begin(bytes: &[u8]) -> bool {
        let known = bytes.len().min(MAGIC.len());
        bytes[..known] == MAGIC[..known]
    }

    /// Reads one; its private data follows.
    pub(super) fn read(bytes: &[u8; GREETING]) -> Result<Self> {
        let greeting: Greeting = zerocopy::transmute!(*bytes);
        if greeting.magic != MAGIC {
            return Err(Error::Protocol("another program answers there"));
        }
        if greeting.version != VERSION {
            return Err(Error::Protocol("it has another version of provider tcp"));
        }
        let kinds = [Kind::Request, Kind::Accept, Kind::Reject, Kind::Crowded];
        let kind = kinds.into_iter().find(|kind| *kind as u8 == greeting.kind);
        let kind = kind.ok_or(Error::Protocol("a message of no known kind"))?;
        if greeting.proof != 0 {
            return Err(Error::Protocol("it asks for a proof that this version does not have"));
        }
        let data_bytes = usize::from(greeting.length.get());
        if data_bytes > kind.most_data() {
            return Err(Error::Protocol("more private data than there can be"));
        }
        let send_depth = greeting.send_depth.get();
        let has_terms = matches!(kind, Kind::Request | Kind::Accept);
        if has_terms && !(1..=MAX_QUEUE_DEPTH).contains(&send_depth) {
            return Err(Error::Protocol("a send queue of a depth that cannot be"));
        }
        let patience = match greeting.patience_us.get() {
            FOR_EVER => None,
            // Longer than any that is asked for, and no time of the clock is passed.
            us => Some(Duration::from_micros(us.min(1 << 40))),
        };
        Ok(Message { kind, terms: Terms { send_depth, patience }, data_bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TERMS: Terms = Terms { send_depth: 64, patience: None };

    #[test]
    fn a_message_has_these_bytes() {
        let terms = Terms { send_depth: 0x0403_0201, patience: Some(Duration::from_micros(7)) };
        let bytes = Message::bytes(Kind::Reject, terms, &[9, 8]);
        assert_eq!(&bytes[..8], b"rdma/tcp");
        assert_eq!(bytes[8..16], [1, 3, 0, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[16..32], [1, 2, 3, 4, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[32..], [9, 8]);
    }

    #[test]
    fn what_is_written_is_read() {
        for patience in [None, Some(Duration::ZERO), Some(Duration::from_millis(6))] {
            let terms = Terms { patience, ..TERMS };
            let bytes = Message::bytes(Kind::Accept, terms, &[1; MAX_ACCEPT_DATA]);
            let read = Message::read(bytes[..GREETING].try_into().unwrap()).unwrap();
            let data_bytes = MAX_ACCEPT_DATA;
            assert_eq!(read, Message { kind: Kind::Accept, terms, data_bytes });
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = Message::bytes(Kind::Request, TERMS, &[]);
        // Magic, version, kind, proof, length, depth.
        for (at, value) in [(0, b'G'), (8, 2), (9, 0), (9, 7), (10, 1), (13, 1), (19, 1)] {
            let mut bytes: [u8; GREETING] = good[..].try_into().unwrap();
            bytes[at] = value;
            assert!(matches!(Message::read(&bytes), Err(Error::Protocol(_))), "{at}");
        }
        let none = Message::bytes(Kind::Request, Terms { send_depth: 0, ..TERMS }, &[]);
        assert!(Message::read(none[..].try_into().unwrap()).is_err());
        assert!(Message::may_begin(b"") && Message::may_begin(b"rdma"));
        assert!(!Message::may_begin(b"GET / HTTP/1.1"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_reason_to_panic(bytes: [u8; GREETING]) {
            if let Ok(message) = Message::read(&bytes) {
                prop_assert!(message.data_bytes <= MAX_ACCEPT_DATA);
            }
        }
    }
}
