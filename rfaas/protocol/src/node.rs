//! Executor manager and resource manager: a node registers, then reports claims, ends and bills.
//!
//! Both prove to each other that they know the cluster secret, which never travels ([`ManagerProof`], [`Register`]).
//! Each tells the time with its signs of life: leases end by the resource manager's clock.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::isolation::Layers;
use super::lease::{LeaseTerms, NodeName, Reason};
use super::{Clock, Nonce, Nonces, Proof, WireAddress, messages, wire};

/// Stands for the time until a node leaves that stays.
pub const STAYS: u64 = u64::MAX;

wire! {
    /// Behind the [`Hello`](super::Hello) of a node.
    pub struct NodeHello [16 bytes] {
        /// To be answered for.
        pub nonce: Nonce,
    }
}
const _: () = assert!(size_of::<NodeHello>() + 8 <= rdmalib::MAX_CONNECT_DATA);

wire! {
    /// Private data of the acceptance: the resource manager proves itself.
    pub struct ManagerProof [48 bytes] {
        /// To be answered for by the registration.
        pub nonce: Nonce,
        proof: Proof,
    }
}
const _: () = assert!(size_of::<ManagerProof>() <= rdmalib::MAX_ACCEPT_DATA);

impl ManagerProof {
    /// Answers `hello`, which came to `address`, with the cluster secret.
    pub fn new(hello: &NodeHello, address: SocketAddr, secret: &[u8]) -> Self {
        let nonce = Nonce::generate();
        let nonces = Nonces { caller: hello.nonce, called: nonce };
        let address = WireAddress::from(address);
        let proof = Proof::new(secret, Self::LABEL, &nonces, &[address.as_bytes()]);
        ManagerProof { nonce, proof }
    }

    /// Returns whether who was called at `address` with `hello` is a resource manager of this
    /// secret; then the nonces of the connection.
    pub fn verify(&self, hello: &NodeHello, address: SocketAddr, secret: &[u8]) -> Option<Nonces> {
        let nonces = Nonces { caller: hello.nonce, called: self.nonce };
        let address = WireAddress::from(address);
        let proved = self.proof.verify(secret, Self::LABEL, &nonces, &[address.as_bytes()]);
        proved.then_some(nonces)
    }

    const LABEL: &[u8] = b"rFaaS manager v5";
}

wire! {
    /// Registers a node under its name.
    pub struct Register [200 bytes] {
        /// Name, as given to `/add` or in the executors database.
        pub node: NodeName,
        /// Chosen at random by each run of an executor manager, never 0: leases of another run have ended.
        pub instance: U64,
        /// Where it listens: must be what was given to `/add`, or clients would be sent elsewhere.
        pub address: WireAddress,
        /// What its clock says.
        pub clock: Clock,
        /// What its executors are isolated by: [`Layers::bits`].
        isolation: U32,
        proof: Proof,
    }
}

impl Register {
    /// Makes the registration of the node of this name, which listens at `address`, on the
    /// connection of `nonces`.
    pub fn new(
        node: NodeName,
        instance: u64,
        address: SocketAddr,
        nonces: &Nonces,
        secret: &[u8],
    ) -> Self {
        Register {
            node,
            instance: instance.into(),
            address: address.into(),
            clock: Clock::now(),
            isolation: Layers::NONE.bits().into(),
            proof: Proof::NONE,
        }
        .proved(nonces, secret)
    }

    fn proved(self, nonces: &Nonces, secret: &[u8]) -> Self {
        Register { proof: Proof::new(secret, Self::LABEL, nonces, &[self.said()]), ..self }
    }

    /// Returns the same, said at another time.
    pub fn at(self, clock: Clock, nonces: &Nonces, secret: &[u8]) -> Self {
        Register { clock, ..self }.proved(nonces, secret)
    }

    /// Returns the same, of a node whose executors are isolated by `layers`.
    pub fn isolated_by(self, layers: Layers, nonces: &Nonces, secret: &[u8]) -> Self {
        Register { isolation: layers.bits().into(), ..self }.proved(nonces, secret)
    }

    /// Returns what its executors are isolated by.
    pub fn isolation(&self) -> Layers {
        Layers::from_bits(self.isolation.get())
    }

    /// Returns whether its sender knows the cluster secret, and said all of this on the connection
    /// of `nonces`.
    pub fn verify(&self, nonces: &Nonces, secret: &[u8]) -> bool {
        self.proof.verify(secret, Self::LABEL, nonces, &[self.said()])
    }

    /// Returns all but the proof.
    fn said(&self) -> &[u8] {
        &self.as_bytes()[..size_of::<Self>() - size_of::<Proof>()]
    }

    const LABEL: &[u8] = b"rFaaS node v7";
}

/// What a lease used. Times are in nanoseconds; `get` of a field returns its number.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Bill {
    /// Time from the claim to the end, once and not times cores.
    pub allocated_ns: U64,
    /// Time that workers spun without work, summed over workers.
    pub hot_polling_ns: U64,
    /// Time that functions ran, summed over workers.
    pub execution_ns: U64,
    /// Number of calls.
    pub invocations: U64,
}
const _: () = assert!(size_of::<Bill>() == 32);

impl Bill {
    /// Most calls on a bill, 2^53: more are not kept exactly by readers of JSON that have only doubles
    /// (RFC 8259, section 6). A worker that answers one every nanosecond needs 104 days for as many.
    pub const MOST_INVOCATIONS: u64 = 1 << 53;
}

impl fmt::Debug for Bill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |ns: U64| Duration::from_nanos(ns.get());
        let mut out = f.debug_struct("Bill");
        out.field("allocated", &time(self.allocated_ns));
        out.field("hot_polling", &time(self.hot_polling_ns));
        out.field("execution", &time(self.execution_ns));
        out.field("invocations", &self.invocations.get()).finish()
    }
}

wire! {
    /// A client showed its token: the lease is in use. Sent again for each lease held after a
    /// reconnection.
    pub struct LeaseClaimed [228 bytes] {
        /// Its terms.
        pub terms: LeaseTerms,
    }

    /// A lease ended and its processes are gone. Sent again until acknowledged.
    pub struct LeaseEnded [262 bytes] {
        /// Its terms.
        pub terms: LeaseTerms,
        /// [`EndReason`](super::lease::EndReason).
        pub reason: U16,
        /// What it used.
        pub bill: Bill,
    }

    /// What a lease that is in use has used so far; sent in every period, so that not more than that is lost
    /// with the node.
    pub struct LeaseUsed [40 bytes] {
        /// The lease.
        pub lease: U64,
        /// What it used since its claim.
        pub bill: Bill,
    }

    /// The executor manager is to stop: no lease is to be granted here any more.
    pub struct Draining [4 bytes] {
        /// How long its leases may still last, in milliseconds.
        pub grace_ms: U32,
    }

    /// The end of a lease was taken into the books.
    pub struct LeaseEndedAck [8 bytes] {
        /// The lease.
        pub lease: U64,
    }

    /// The node is known and may get leases.
    pub struct Registered [32 bytes] {
        /// Cores that it may lease out, as the operator set them.
        pub cores: U32,
        /// Memory likewise, in MB.
        pub memory: U32,
        /// How often each side says something, in milliseconds.
        pub heartbeat_ms: U32,
        /// Silence after which the other side is given up, in milliseconds.
        pub silence_ms: U32,
        /// What the resource manager's clock says, by which leases end.
        pub clock: Clock,
        /// In how many milliseconds the node leaves; [`STAYS`] if it does not.
        pub leaves_in_ms: U64,
    }

    /// The node may not register; the connection ends.
    pub struct RegisterRefused [242 bytes] {
        /// Why.
        pub reason: Reason,
    }

    /// Ends a lease: stop its executors, report its bill.
    pub struct EndLease [14 bytes] {
        /// The lease.
        pub lease: U64,
        /// [`EndReason`](super::lease::EndReason).
        pub reason: U16,
        /// How long running invocations may go on, in milliseconds.
        pub grace_ms: U32,
    }
}

messages! {
    /// Executor manager to resource manager.
    pub enum FromNode {
        /// First message.
        1 => Register(Register),
        /// A lease is in use.
        2 => Claimed(LeaseClaimed),
        /// A lease ended.
        3 => Ended(LeaseEnded),
        /// Still alive; what its clock says.
        4 => Heartbeat(Clock),
        /// What a lease has used so far.
        5 => Used(LeaseUsed),
        /// It is to stop.
        6 => Draining(Draining),
    }
}
messages! {
    /// Resource manager to executor manager.
    pub enum ToNode {
        /// Answer to a registration. Again when the operator has changed something of it.
        1 => Registered(Registered),
        /// Answer to a registration.
        2 => Refused(RegisterRefused),
        /// A bill was booked.
        3 => EndedAck(LeaseEndedAck),
        /// End a lease.
        4 => EndLease(EndLease),
        /// Still alive; what its clock says.
        5 => Heartbeat(Clock),
    }
}
