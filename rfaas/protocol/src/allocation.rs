//! Client and executor manager: a lease is claimed with what its token proves, becomes an executor process that
//! dials the client, and is given back on the same connection. Before anything is claimed, the executor manager
//! has proved to be that of the lease's node ([`NodeProof`]): only it is told whom executors are to show what.
//! The end of the connection ends the
//! lease, and so does a client's silence: from [`Allocated`] to the end of the lease each side says
//! something in every period that it names.

use std::net::SocketAddr;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{I32, I64, U16, U32, U64};

use super::lease::{LeaseKey, Reason, SignedTerms, Token};
use super::library::LibraryHash;
use super::node::Bill;
use super::{
    Clock, Empty, Malformed, Nonce, Nonces, Proof, Secret, WireAddress, messages, numbered, wire,
};

wire! {
    /// Behind the [`Hello`](super::Hello) of a client: which lease the connection is for.
    pub struct ClaimHello [32 bytes] {
        /// The lease, as in its [terms](super::lease::LeaseTerms); 0 without a resource manager.
        pub lease: U64,
        /// Likewise.
        pub instance: U64,
        /// To be answered for. A client of an older release has none: zeros.
        pub nonce: Nonce,
    }
}
const _: () = assert!(size_of::<ClaimHello>() + 8 <= rdmalib::MAX_CONNECT_DATA);

impl ClaimHello {
    /// Makes one for the lease of `token`.
    pub fn new(token: &Token) -> Self {
        let terms = &token.terms;
        ClaimHello { lease: terms.lease, instance: terms.instance, nonce: Nonce::generate() }
    }

    /// Returns the key of the lease, for who knows the cluster secret.
    pub fn key(&self, secret: &[u8]) -> LeaseKey {
        LeaseKey::derive(self.lease, self.instance, secret)
    }
}

wire! {
    /// Private data of the acceptance: the executor manager proves itself.
    pub struct NodeProof [48 bytes] {
        /// To be answered for by claims.
        pub nonce: Nonce,
        proof: Proof,
    }
}
const _: () = assert!(size_of::<NodeProof>() <= rdmalib::MAX_ACCEPT_DATA);

impl NodeProof {
    /// Answers `hello`, which came to `address`, with the key of its lease.
    pub fn new(hello: &ClaimHello, address: SocketAddr, key: &LeaseKey) -> Self {
        let nonce = Nonce::generate();
        let nonces = Nonces { caller: hello.nonce, called: nonce };
        let address = WireAddress::from(address);
        let proof = Proof::new(key.as_bytes(), Self::LABEL, &nonces, &[address.as_bytes()]);
        NodeProof { nonce, proof }
    }

    /// Proves nothing: without a resource manager there is no secret.
    pub fn none() -> Self {
        NodeProof { nonce: Nonce::generate(), proof: Proof::NONE }
    }

    /// Returns the nonces of the connection.
    pub fn nonces(&self, hello: &ClaimHello) -> Nonces {
        Nonces { caller: hello.nonce, called: self.nonce }
    }

    /// Returns whether who was called at `address` with `hello` knows the lease's key, without
    /// having been told.
    pub fn verify(&self, hello: &ClaimHello, address: SocketAddr, key: &LeaseKey) -> bool {
        let address = WireAddress::from(address);
        let nonces = self.nonces(hello);
        self.proof.verify(key.as_bytes(), Self::LABEL, &nonces, &[address.as_bytes()])
    }

    const LABEL: &[u8] = b"rFaaS executor manager v5";
}

wire! {
    /// Claims a lease and asks for its executor. May be sent again on the same connection once the
    /// executor has exited.
    pub struct Allocate [374 bytes] {
        /// The lease.
        pub signed: SignedTerms,
        /// What the client's clock says, which an unsigned claim ends by.
        pub clock: Clock,
        /// Where the client waits for its executor and workers.
        pub client: WireAddress,
        /// What they must show there.
        pub session: Secret,
        /// Polling mode: −1 always hot, 0 always warm, else milliseconds of spinning after the last
        /// invocation.
        pub hot_timeout_ms: I64,
        /// Largest input of an invocation, in bytes.
        pub input_bytes: U32,
        /// Largest output of an invocation, in bytes.
        pub output_bytes: U32,
        /// Size of the function library, in bytes.
        pub code_bytes: U32,
        /// What it is known by: a node that has it wants no code.
        pub code_hash: LibraryHash,
        /// Input slots of each worker: invocations in flight.
        pub slots: U16,
        /// [`Serves`].
        pub serves: U16,
        /// By the lease's key; none without a resource manager.
        pub proof: Proof,
    }
}

impl Allocate {
    /// Returns the same, proved to come from the holder of `key` on the connection of `nonces`.
    pub fn proved(self, key: &LeaseKey, nonces: &Nonces) -> Self {
        let proof = Proof::new(key.as_bytes(), Self::LABEL, nonces, &[self.said()]);
        Allocate { proof, ..self }
    }

    /// Returns whether the holder of `key` said all of this on the connection of `nonces`.
    pub fn verify(&self, key: &LeaseKey, nonces: &Nonces) -> bool {
        self.proof.verify(key.as_bytes(), Self::LABEL, nonces, &[self.said()])
    }

    /// Returns all but the proof.
    fn said(&self) -> &[u8] {
        &self.as_bytes()[..size_of::<Self>() - size_of::<Proof>()]
    }

    const LABEL: &[u8] = b"rFaaS client v9";
}

numbered! {
    /// What the workers of an executor are for.
    pub enum Serves ("what workers serve") {
        /// They answer calls of the client.
        1 => Calls,
        /// They hand on what functions return, as the client tells each ([`ToExecutor`](super::session::ToExecutor)).
        2 => Graph,
    }
}

wire! {
    /// The executor process was started; it dials next.
    pub struct Allocated [16 bytes] {
        /// The lease: of the token, or a new number if there is no resource manager.
        pub lease: U64,
        /// How often each side says something while the lease is held, in milliseconds.
        pub heartbeat_ms: U32,
        /// Silence after which the other side is given up, in milliseconds.
        pub silence_ms: U32,
    }

    /// More time for the lease that this connection holds, whose holder was proved: shows what its renewal was answered
    /// with.
    pub struct Renew [252 bytes] {
        /// Of the same lease, with a later end.
        pub signed: SignedTerms,
        /// What the client's clock says, which an unsigned claim ends by.
        pub clock: Clock,
    }

    /// The lease ends later now.
    pub struct Renewed [8 bytes] {
        /// End, in milliseconds since the Unix epoch.
        pub expires_at_ms: U64,
    }

    /// A claim was refused. If the lease was claimed before on this connection it still is. With
    /// [`RefusedBecause::SpawnFailed`] it may come behind [`Allocated`]: a container has not started after all.
    pub struct AllocateRefused [244 bytes] {
        /// [`RefusedBecause`].
        pub because: U16,
        /// In words.
        pub reason: Reason,
    }
}

numbered! {
    /// Why a claim was refused, as far as a client may decide on it.
    pub enum RefusedBecause ("refusal") {
        /// The token is not one of this cluster, or not for this node.
        1 => BadToken,
        /// The lease has expired, or was ended before.
        2 => LeaseEnded,
        /// Too few cores or too little memory is free.
        3 => NoCapacity,
        /// The request cannot be met anywhere (zero slots, sizes beyond limits).
        4 => BadRequest,
        /// The executor program could not be started.
        5 => SpawnFailed,
        /// The node is being withdrawn.
        6 => Draining,
    }
}

wire! {
    /// The executor process has ended: a function crashed it or called `exit`, or it and its manager lost
    /// sight of each other.
    pub struct ExecutorExited [26 bytes] {
        /// Signal that killed it, or 0.
        pub signal: I32,
        /// Exit status, if no signal did.
        pub status: I32,
        /// 1: it gave no sign of life and was killed, or saw none of its manager's and ended; else 0.
        pub silent: U16,
        /// Most memory that its processes might have, in bytes, if it ended for want of memory
        /// ([`MEMORY_LIMIT`](super::assignment::MEMORY_LIMIT)) and the node knows; else 0.
        pub memory_limit: U64,
        /// The most that they had at a time, in bytes, likewise.
        pub memory_used: U64,
    }

    /// The lease ends soon: no new invocations after the deadline.
    pub struct LeaseEnding [6 bytes] {
        /// [`EndReason`](super::lease::EndReason).
        pub reason: U16,
        /// Time left, in milliseconds; 0: it has ended.
        pub grace_ms: U32,
    }

    /// The lease has ended on the client's request; this is its bill.
    pub struct Released [32 bytes] {
        /// What it used.
        pub bill: Bill,
    }

    /// Asks for what executors and functions have written, in the lease that this connection holds or held last.
    /// One question at a time: a later one takes the place of an earlier one that was not answered yet.
    pub struct ReadOutput [8 bytes] {
        /// Bytes of it that the client has, or knows to be dropped.
        pub from: U64,
    }

    /// The next part of it: bytes of one stream. All bytes are counted, of both streams, in the order in which the
    /// manager has read them.
    pub struct OutputPart [1016 bytes] {
        /// What was asked for.
        pub from: U64,
        /// How many bytes came before these. If that is more than was asked for, those between were dropped.
        pub at: U64,
        /// How many bytes there were by now, in all.
        pub end: U64,
        /// [`OutputStream`].
        pub stream: U16,
        /// How many of the bytes count. None: there is no further part by now.
        len: U16,
        bytes: [u8; MAX_PART_BYTES],
    }
}

/// Most bytes of output in a message.
pub const MAX_PART_BYTES: usize = 988;

numbered! {
    /// What an executor or a function has written to.
    pub enum OutputStream ("output stream") {
        /// Standard output.
        1 => Stdout,
        /// Standard error.
        2 => Stderr,
    }
}

impl OutputPart {
    /// Makes one of `bytes`, which are [`MAX_PART_BYTES`] at most; further ones are left out.
    pub fn new(from: u64, at: u64, end: u64, stream: OutputStream, bytes: &[u8]) -> Self {
        let taken = &bytes[..bytes.len().min(MAX_PART_BYTES)];
        let mut whole = [0; MAX_PART_BYTES];
        whole[..taken.len()].copy_from_slice(taken);
        OutputPart {
            from: from.into(),
            at: at.into(),
            end: end.into(),
            stream: stream.to_wire(),
            len: (taken.len() as u16).into(), // MAX_PART_BYTES at most
            bytes: whole,
        }
    }

    /// Returns the bytes; an error if the peer says that there are more than fit.
    pub fn bytes(&self) -> Result<&[u8], Malformed> {
        self.bytes.get(..usize::from(self.len.get())).ok_or(Malformed::Field("output"))
    }
}

messages! {
    /// Client to executor manager.
    pub enum FromClient {
        /// Claims the lease.
        1 => Allocate(Allocate),
        /// Gives it back.
        2 => Release(Empty),
        /// Still alive.
        3 => Heartbeat(Empty),
        /// Moves its end.
        4 => Renew(Renew),
        /// Asks for what functions wrote.
        5 => ReadOutput(ReadOutput),
    }
}
messages! {
    /// Executor manager to client.
    pub enum ToClient {
        /// The executor was started.
        1 => Allocated(Allocated),
        /// It was not.
        2 => Refused(AllocateRefused),
        /// It has ended.
        3 => ExecutorExited(ExecutorExited),
        /// The lease ends.
        4 => LeaseEnding(LeaseEnding),
        /// Answer to a release.
        5 => Released(Released),
        /// Still alive.
        6 => Heartbeat(Empty),
        /// Answer to a renewal; the other is a refusal.
        7 => Renewed(Renewed),
        /// Answer to a question for output.
        8 => OutputPart(OutputPart),
    }
}
