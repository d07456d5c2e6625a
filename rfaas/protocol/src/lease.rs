//! Client and resource manager: a lease is asked for, granted as a signed [`Token`], given back.
//!
//! The token carries its terms and a HMAC-SHA256 (RFC 2104) over them with the cluster secret. The
//! executor manager checks it by itself, so a client may come before any news of the lease does.
//! It also carries a key, which the executor manager can derive and nobody else: with it client and node prove
//! who they are to each other ([`NodeProof`](super::allocation::NodeProof)). The key itself is shown to nobody: to
//! a node go the [`SignedTerms`], to the resource manager the token [without it](Token::without_key).

use std::num::NonZeroU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::constraints::MAX_GROWN;
use super::proof::{half, keyed, same};
use super::{Malformed, Text, WireAddress, messages, numbered, wire};

/// Longest node name, in bytes: a DNS name has at most 253 (RFC 1035, 2.3.4); names of cluster nodes
/// are short. Longer ones are refused, never cut.
pub const MAX_NODE_NAME_BYTES: usize = 128;
/// Longest client name, in bytes.
pub const MAX_CLIENT_NAME_BYTES: usize = 64;

/// Longest name of a graph, in bytes.
pub const MAX_GRAPH_NAME_BYTES: usize = 64;
/// Most bytes of the names of a worker's functions together, with a line feed between two.
pub const MAX_FUNCTION_NAMES_BYTES: usize = 256;
/// Largest number of a graph: readers of JSON that only know floating-point numbers keep it exact.
pub const MAX_GRAPH: u64 = (1 << 53) - 1;

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
    /// Returns the lease of this number, if it is not zero.
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(LeaseId)
    }

    /// Returns the number.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

wire! {
    /// What a lease grants: the signed part of a token.
    pub struct LeaseTerms [228 bytes] {
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
}

impl LeaseTerms {
    /// Returns the number of the lease; `None` in a claim without a resource manager.
    pub fn id(&self) -> Option<LeaseId> {
        LeaseId::new(self.lease.get())
    }

    /// Returns whether `other` is the same lease: the same terms, except for its end, which a
    /// renewal moves.
    pub fn same_lease(&self, other: &LeaseTerms) -> bool {
        LeaseTerms { expires_at_ms: other.expires_at_ms, ..*self } == *other
    }

    /// Returns whether it has ended at `now`.
    pub fn expired(&self, now: SystemTime) -> bool {
        now >= UNIX_EPOCH + Duration::from_millis(self.expires_at_ms.get())
    }
}

/// Terms and the resource manager's signature. They show that the lease was granted, not that its holder is the one it
/// was granted to.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SignedTerms {
    /// What is granted.
    pub terms: LeaseTerms,
    mac: [u8; 16],
}
const _: () = assert!(size_of::<SignedTerms>() == 244);

impl SignedTerms {
    /// Returns whether the cluster secret signed exactly these terms; takes the same time for every
    /// wrong one.
    pub fn verify(&self, secret: &[u8]) -> bool {
        mac(&self.terms, secret).verify_truncated_left(&self.mac).is_ok()
    }
}

impl std::fmt::Debug for SignedTerms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignedTerms").field("terms", &self.terms).finish_non_exhaustive()
    }
}

/// What the holder of a lease and its node know, and the cluster, and nobody else.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LeaseKey([u8; 16]);

impl LeaseKey {
    const NONE: LeaseKey = LeaseKey([0; 16]);

    /// Makes the key of this lease, for this run of its node. A renewed lease has the same.
    pub fn derive(lease: U64, instance: U64, secret: &[u8]) -> Self {
        let mut mac = keyed(secret, b"rFaaS lease key v5");
        mac.update(lease.as_bytes());
        mac.update(instance.as_bytes());
        LeaseKey(half(mac))
    }
}

impl std::fmt::Debug for LeaseKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LeaseKey(..)")
    }
}

/// Terms, their signature, and the key of the lease. Whoever holds it may claim the lease, so it is never logged or
/// listed.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Token {
    /// What is granted.
    pub terms: LeaseTerms,
    key: LeaseKey,
    mac: [u8; 16],
}
const _: () = assert!(size_of::<Token>() == 260);

impl Token {
    /// Signs `terms` with the cluster secret.
    pub fn sign(terms: LeaseTerms, secret: &[u8]) -> Self {
        let key = LeaseKey::derive(terms.lease, terms.instance, secret);
        Token { terms, key, mac: half(mac(&terms, secret)) }
    }

    /// Makes a claim without a signature, for executor managers that run without a resource
    /// manager.
    pub fn unsigned(terms: LeaseTerms) -> Self {
        Token { terms, key: LeaseKey::NONE, mac: [0; 16] }
    }

    /// Returns whether the cluster secret signed exactly these terms, and the key is theirs; takes
    /// the same time for every wrong one.
    pub fn verify(&self, secret: &[u8]) -> bool {
        let key = LeaseKey::derive(self.terms.lease, self.terms.instance, secret);
        same(&self.key.0, &key.0) & self.signed().verify(secret)
    }

    /// Returns what a node is shown.
    pub fn signed(&self) -> SignedTerms {
        SignedTerms { terms: self.terms, mac: self.mac }
    }

    /// Returns what a resource manager is shown, which nobody can claim the lease with.
    pub fn without_key(&self) -> Self {
        Token { key: LeaseKey::NONE, ..*self }
    }

    /// Returns it with the key of `token`, whose lease this is: a renewal is answered without it.
    #[must_use]
    pub fn with_key_of(&self, token: &Token) -> Self {
        Token { key: token.key, ..*self }
    }

    /// Returns the key, for proofs between client and node.
    pub fn key(&self) -> &LeaseKey {
        &self.key
    }

    /// Returns the text form for HTTP: base64url without padding (RFC 4648, 5).
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

/// In the same time, wherever keys and signatures differ.
impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.terms == other.terms && same(&self.key.0, &other.key.0) & same(&self.mac, &other.mac)
    }
}
impl Eq for Token {}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("terms", &self.terms).finish_non_exhaustive()
    }
}

fn mac(terms: &LeaseTerms, secret: &[u8]) -> Hmac<Sha256> {
    let mut mac = keyed(secret, b"rFaaS lease v5");
    mac.update(terms.as_bytes());
    mac
}

numbered! {
    /// Why a lease ended; also the `reason` of a bill.
    pub enum EndReason ("end reason") {
        /// The client gave it back.
        1 => Released,
        /// Its time was over.
        2 => Expired,
        /// The client disconnected or died.
        3 => ClientGone,
        /// The operator took the node back, or deleted the lease.
        4 => Withdrawn,
        /// The node or its executor manager was lost.
        5 => NodeLost,
        /// The executor manager is stopping.
        6 => Shutdown,
        /// Nobody claimed it in time.
        7 => Unclaimed,
    }
}

impl EndReason {
    /// Returns its name in JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            EndReason::Released => "released",
            EndReason::Expired => "expired",
            EndReason::ClientGone => "client_gone",
            EndReason::Withdrawn => "withdrawn",
            EndReason::NodeLost => "node_lost",
            EndReason::Shutdown => "shutdown",
            EndReason::Unclaimed => "unclaimed",
        }
    }
}

wire! {
    /// Asks for a lease.
    pub struct LeaseRequest [90 bytes] {
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

    /// What several leases are asked for with, wherever they are.
    pub struct WantedLeases [366 bytes] {
        /// Chosen by the client, returned in the answer.
        pub request: U32,
        /// How many leases, or workers of leases that grow, at least one.
        pub leases: U32,
        /// Cores of each, at least one.
        pub cores: U32,
        /// Memory of each in MB, at least one.
        pub memory: U32,
        /// How long each lasts from its grant on, in milliseconds, at least one.
        pub timeout_ms: U64,
        /// How long the request may wait for room, in milliseconds.
        pub wait_ms: U64,
        /// 1: all on one node, 2: each on a node of its own.
        pub flags: U16,
        /// So many cores of the request, and of leases that it grows, at least on each node that is taken.
        pub at_least: U32,
        /// So many cores stay free on each node that is taken.
        pub leave_free: U32,
        /// Whom to bill: who has the leases that grow.
        pub client: ClientName,
        /// Labels that each node has, a line each.
        pub has: Text<256>,
    }

    /// Asks for several leases at once, all of them or none, with constraints: where they may be
    /// ([`Constraints`](crate::constraints::Constraints)). Answered by as many grants, refused, or by the constraints
    /// that cannot hold; if it may wait, when there is room.
    pub struct GangRequest [1010 bytes] {
        /// What is asked for.
        pub wanted: WantedLeases,
        /// A node that has some of them; empty: any.
        pub near: NodeName,
        /// The nodes themselves, a line a lease; empty: any.
        pub nodes: Text<512>,
    }

    /// Asks for workers beside those of leases that the client has, all of them or none: on the nodes of these first,
    /// those with most cores of them first of all. Answered as a [`GangRequest`] is, but by one grant for each node,
    /// which has all workers there.
    pub struct GrowRequest [622 bytes] {
        /// What is asked for.
        pub wanted: WantedLeases,
        /// The leases that it grows; 0: none.
        pub grows: [U64; MAX_GROWN],
    }

    /// Asks for more time for a lease that has not ended; answered by a grant with a new token, which
    /// has no key, or refused.
    pub struct LeaseRenew [272 bytes] {
        /// Chosen by the client, returned in the answer.
        pub request: U32,
        /// How long from now on, in milliseconds, at least one.
        pub timeout_ms: U64,
        /// The lease, shown by its token.
        pub token: Token,
    }

    /// Gives a lease back that was not claimed, or asks the manager to end one that was. Our clients show
    /// the token without its key, since they cannot know that it is the resource manager that they tell:
    /// then it counts on the connection only that the lease was granted on, and there until the lease has
    /// ended. So neither who listens in the resource manager's place nor who reads what goes between client
    /// and node can end a lease with what it learns from this, a renewal or a claim. Where the connection
    /// was lost meanwhile, a lease that nobody claimed has ended with it.
    pub struct LeaseRelease [260 bytes] {
        /// The lease, shown by its token.
        pub token: Token,
    }

    /// A lease was granted, or renewed. A request that was met from several nodes is answered by as many.
    pub struct LeaseGranted [286 bytes] {
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
    pub struct LeaseRefused [246 bytes] {
        /// Of the request.
        pub request: U32,
        /// Why.
        pub reason: Reason,
    }

    /// Leases were refused because of constraints; nothing was changed.
    pub struct LeaseUnmet [248 bytes] {
        /// Of the request.
        pub request: U32,
        /// Which: without one of them, or without all, there would be room
        /// ([`Constraint`](crate::constraints::Constraint)).
        pub constraints: U16,
        /// Why.
        pub reason: Reason,
    }

    /// Says what a lease is for: a worker of a graph. It counts once, on the connection that the lease was granted on,
    /// and is not answered. It changes nothing but what people are shown.
    pub struct GraphWorker [344 bytes] {
        /// [`LeaseId`].
        pub lease: U64,
        /// Number of the graph, drawn by the client: 1 to [`MAX_GRAPH`].
        pub graph: U64,
        /// Which lane of it.
        pub lane: U16,
        /// Which worker of that.
        pub worker: U16,
        /// Name of the graph.
        pub name: Text<MAX_GRAPH_NAME_BYTES>,
        /// Names of the functions that the worker calls, a line each.
        pub functions: Text<MAX_FUNCTION_NAMES_BYTES>,
    }

    /// Asks for a lease like one that could not be used, on another node, in exchange for it, on the connection that
    /// it was granted on; answered by a grant, or refused, and then it is as before. Its node is then
    /// tried last for a while.
    pub struct LeaseReplace [266 bytes] {
        /// Chosen by the client, returned in the answer.
        pub request: U32,
        /// The lease, shown by its token.
        pub token: Token,
        /// [`Unusable`].
        pub because: U16,
    }
}

numbered! {
    /// Why a lease could not be used.
    pub enum Unusable ("why a lease cannot be used") {
        /// Its node refused the claim.
        1 => Refused,
        /// Its node could not be reached, or did not answer.
        2 => Unreachable,
        /// The process that listens at its node's address could not prove to be the node.
        3 => Unproved,
    }
}

impl Unusable {
    /// Returns what the node did, in words.
    pub fn in_words(self) -> &'static str {
        match self {
            Unusable::Refused => "it refused the claim",
            Unusable::Unreachable => "it could not be reached",
            Unusable::Unproved => "who listens at its address did not prove to be it",
        }
    }
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
        /// Asks for another in exchange for one that could not be used.
        4 => Replace(LeaseReplace),
        /// Asks for several at once, with constraints.
        5 => Gang(GangRequest),
        /// Asks for more workers beside leases that there are.
        6 => Grow(GrowRequest),
        /// Says what a lease is for.
        7 => Worker(GraphWorker),
    }
}
messages! {
    /// Resource manager to client.
    pub enum ToClient {
        /// Granted.
        1 => Granted(LeaseGranted),
        /// Refused.
        2 => Refused(LeaseRefused),
        /// Refused because of constraints.
        3 => Unmet(LeaseUnmet),
    }
}
