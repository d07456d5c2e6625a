//! Client and resource manager: a lease is asked for, granted as a signed [`Token`], given back.
//!
//! The token carries its terms and a HMAC-SHA256 (RFC 2104) over them with the cluster secret. The
//! executor manager checks it by itself, so a client may come before any news of the lease does.

use std::num::NonZeroU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Malformed, Text, WireAddress, messages};

/// Longest node name, in bytes: a DNS name has at most 253 (RFC 1035, 2.3.4); names of cluster nodes
/// are short. Longer ones are refused, never cut.
pub const MAX_NODE_NAME_BYTES: usize = 128;
/// Longest client name, in bytes.
pub const MAX_CLIENT_NAME_BYTES: usize = 64;

/// Name of a node.
pub type NodeName = Text<MAX_NODE_NAME_BYTES>;
/// Name that a client is billed under.
pub type ClientName = Text<MAX_CLIENT_NAME_BYTES>;
/// An explanation for people.
pub type Reason = Text<240>;

/// Identifies a lease; unique in a cluster, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub NonZeroU64);

impl LeaseId {
    /// `id`, if it is not zero.
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(LeaseId)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a lease grants: the signed part of a token.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseTerms {
    /// [`LeaseId`]; 0 in a claim without a resource manager.
    pub lease: U64,
    /// Cores: one worker each.
    pub cores: U32,
    /// Memory of all its executors together, in MB.
    pub memory: U32,
    /// End, in milliseconds since the Unix epoch.
    pub expires_at_ms: U64,
    /// Which run of the node's executor manager it holds for
    /// ([`Register::instance`](super::node::Register)): what was claimed there ended with it, and cannot
    /// be claimed again at the next. 0 in a claim without a resource manager.
    pub instance: U64,
    /// Where it holds.
    pub node: NodeName,
    /// Whom it is billed to.
    pub client: ClientName,
}
const _: () = assert!(size_of::<LeaseTerms>() == 228);

impl LeaseTerms {
    /// Whether `other` is the same lease: the same terms, except for its end, which a renewal moves.
    pub fn same_lease(&self, other: &LeaseTerms) -> bool {
        LeaseTerms { expires_at_ms: other.expires_at_ms, ..*self } == *other
    }

    /// Whether it has ended at `now`.
    pub fn expired(&self, now: SystemTime) -> bool {
        now >= UNIX_EPOCH + Duration::from_millis(self.expires_at_ms.get())
    }
}

/// Terms and their signature. Whoever holds it may claim the lease, so it is never logged or listed.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Token {
    /// What is granted.
    pub terms: LeaseTerms,
    mac: [u8; 32],
}
const _: () = assert!(size_of::<Token>() == 260);

impl Token {
    /// Signs `terms` with the cluster secret.
    pub fn sign(terms: LeaseTerms, secret: &[u8]) -> Self {
        Token { terms, mac: mac(&terms, secret).finalize().into_bytes().into() }
    }

    /// A claim without a signature, for executor managers that run without a resource manager.
    pub fn unsigned(terms: LeaseTerms) -> Self {
        Token { terms, mac: [0; 32] }
    }

    /// Whether the cluster secret signed exactly these terms; takes the same time for every wrong one.
    pub fn verify(&self, secret: &[u8]) -> bool {
        mac(&self.terms, secret).verify_slice(&self.mac).is_ok()
    }

    /// Text form for HTTP: base64url without padding (RFC 4648, 5).
    pub fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.as_bytes())
    }

    /// Reads the text form; the signature is not checked here.
    pub fn from_text(text: &str) -> Result<Self, Malformed> {
        URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| Token::read_from_bytes(&bytes).ok())
            .ok_or(Malformed::Field("token"))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("terms", &self.terms).finish_non_exhaustive()
    }
}

fn mac(terms: &LeaseTerms, secret: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(b"rFaaS lease v2"); // so that no other use of the secret signs a lease
    mac.update(terms.as_bytes());
    mac
}

/// Why a lease ended; also the `reason` of a bill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum EndReason {
    /// The client gave it back.
    Released = 1,
    /// Its time was over.
    Expired = 2,
    /// The client disconnected or died.
    ClientGone = 3,
    /// The operator took the node back, or deleted the lease.
    Withdrawn = 4,
    /// The node or its executor manager was lost.
    NodeLost = 5,
    /// The executor manager is stopping.
    Shutdown = 6,
}

impl EndReason {
    /// Reads the wire form.
    pub fn from_wire(value: U16) -> Result<Self, Malformed> {
        Ok(match value.get() {
            1 => EndReason::Released,
            2 => EndReason::Expired,
            3 => EndReason::ClientGone,
            4 => EndReason::Withdrawn,
            5 => EndReason::NodeLost,
            6 => EndReason::Shutdown,
            _ => return Err(Malformed::Field("end reason")),
        })
    }

    /// The wire form.
    pub fn to_wire(self) -> U16 {
        (self as u16).into()
    }

    /// As JSON and logs name it.
    pub fn name(self) -> &'static str {
        match self {
            EndReason::Released => "released",
            EndReason::Expired => "expired",
            EndReason::ClientGone => "client_gone",
            EndReason::Withdrawn => "withdrawn",
            EndReason::NodeLost => "node_lost",
            EndReason::Shutdown => "shutdown",
        }
    }
}

/// Asks for a lease.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseRequest {
    /// Chosen by the client, returned in the answer.
    pub request: U32,
    /// Cores, at least one.
    pub cores: U32,
    /// Memory in MB, at least one.
    pub memory: U32,
    /// How long, in milliseconds, at least one.
    pub timeout_ms: U64,
    /// On how many nodes it may be met; each is a lease of its own, and either all are granted or none.
    pub max_nodes: U32,
    /// Whom to bill.
    pub client: ClientName,
}
const _: () = assert!(size_of::<LeaseRequest>() == 90);

/// Asks for more time for a lease that has not ended; answered by a grant with a new token, or refused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseRenew {
    /// Chosen by the client, returned in the answer.
    pub request: U32,
    /// How long from now on, in milliseconds, at least one.
    pub timeout_ms: U64,
    /// The lease, shown by its token.
    pub token: Token,
}
const _: () = assert!(size_of::<LeaseRenew>() == 272);

/// Gives a lease back that was not claimed, or asks the manager to end one that was.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseRelease {
    /// The lease, shown by its token.
    pub token: Token,
}

/// A lease was granted, or renewed. A request that was met from several nodes is answered by as many.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseGranted {
    /// Of the request.
    pub request: U32,
    /// Which of the request's leases it is, from 0.
    pub part: U16,
    /// How many there are: at least one.
    pub parts: U16,
    /// Executor manager to show the token to.
    pub manager: WireAddress,
    /// The lease.
    pub token: Token,
}

/// A lease was refused; nothing was changed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseRefused {
    /// Of the request.
    pub request: U32,
    /// Why.
    pub reason: Reason,
}

messages! {
    /// Client to resource manager.
    pub enum FromClient {
        /// Asks for a lease.
        1 => Request(LeaseRequest),
        /// Gives one back.
        2 => Release(LeaseRelease),
        /// Asks for more time.
        3 => Renew(LeaseRenew),
    }
}
messages! {
    /// Resource manager to client.
    pub enum ToClient {
        /// Granted.
        1 => Granted(LeaseGranted),
        /// Refused.
        2 => Refused(LeaseRefused),
    }
}
