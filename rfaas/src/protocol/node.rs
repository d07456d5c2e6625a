//! Executor manager and resource manager: a node registers, then reports claims, ends and bills.
//!
//! The resource manager's acceptance carries a [`Challenge`]; the registration answers it with a
//! HMAC over challenge and name, so the cluster secret itself never travels and an old registration
//! cannot be replayed.

use std::fmt;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::lease::{LeaseTerms, NodeName, Reason};
use super::{Empty, messages};

/// Private data of the acceptance.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Challenge {
    /// Random bytes, fresh for each connection.
    pub nonce: [u8; 32],
}

/// Registers a node under its name.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Register {
    /// Name, as given to `/add` or in the executors database.
    pub node: NodeName,
    /// Chosen at random by each run of an executor manager, never 0: leases of another run have ended.
    pub instance: U64,
    proof: [u8; 32],
}
const _: () = assert!(size_of::<Register>() == 170);

impl Register {
    /// Answers `challenge` with the cluster secret.
    pub fn new(node: NodeName, instance: u64, challenge: &Challenge, secret: &[u8]) -> Self {
        let unproved = Register { node, instance: instance.into(), proof: [0; 32] };
        let proof = unproved.mac(challenge, secret).finalize().into_bytes().into();
        Register { proof, ..unproved }
    }

    /// Whether the sender knows the cluster secret.
    pub fn verify(&self, challenge: &Challenge, secret: &[u8]) -> bool {
        self.mac(challenge, secret).verify_slice(&self.proof).is_ok()
    }

    fn mac(&self, challenge: &Challenge, secret: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
        mac.update(b"rFaaS node v2");
        mac.update(&challenge.nonce);
        mac.update(self.node.as_bytes());
        mac.update(self.instance.as_bytes());
        mac
    }
}

/// What a lease used; all times in nanoseconds.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Bill {
    /// From the claim to the end, once (not times cores).
    pub allocated_ns: U64,
    /// Workers spinning without work, summed over workers.
    pub hot_polling_ns: U64,
    /// Functions running, summed over workers.
    pub execution_ns: U64,
    /// Functions called.
    pub invocations: U64,
}
const _: () = assert!(size_of::<Bill>() == 32);

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

/// A client showed its token: the lease is in use. Sent again for each lease held after a
/// reconnection.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseClaimed {
    /// Its terms.
    pub terms: LeaseTerms,
}

/// A lease ended and its processes are gone. Sent again until acknowledged.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseEnded {
    /// Its terms.
    pub terms: LeaseTerms,
    /// [`EndReason`](super::lease::EndReason).
    pub reason: U16,
    /// What it used.
    pub bill: Bill,
}

/// What a lease that is in use has used so far; sent in every period, so that not more than that is lost
/// with the node.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseUsed {
    /// The lease.
    pub lease: U64,
    /// What it used since its claim.
    pub bill: Bill,
}

/// The executor manager is to stop: no lease is to be granted here any more.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Draining {
    /// How long its leases may still last, in milliseconds.
    pub grace_ms: U32,
}

/// The end of a lease was taken into the books.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseEndedAck {
    /// The lease.
    pub lease: U64,
}

/// The node is known and may get leases.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Registered {
    /// Cores that it may lease out, as the operator set them.
    pub cores: U32,
    /// Memory likewise, in MB.
    pub memory: U32,
    /// How often each side says something, in milliseconds.
    pub heartbeat_ms: U32,
    /// Silence after which the other side is given up, in milliseconds.
    pub silence_ms: U32,
}

/// The node may not register; the connection ends.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RegisterRefused {
    /// Why.
    pub reason: Reason,
}

/// Ends a lease: stop its executors, report its bill.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct EndLease {
    /// The lease.
    pub lease: U64,
    /// [`EndReason`](super::lease::EndReason).
    pub reason: U16,
    /// How long running invocations may go on, in milliseconds.
    pub grace_ms: U32,
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
        /// Still alive.
        4 => Heartbeat(Empty),
        /// What a lease has used so far.
        5 => Used(LeaseUsed),
        /// It is to stop.
        6 => Draining(Draining),
    }
}
messages! {
    /// Resource manager to executor manager.
    pub enum ToNode {
        /// Answer to a registration.
        1 => Registered(Registered),
        /// Answer to a registration.
        2 => Refused(RegisterRefused),
        /// A bill was booked.
        3 => EndedAck(LeaseEndedAck),
        /// End a lease.
        4 => EndLease(EndLease),
        /// Still alive.
        5 => Heartbeat(Empty),
    }
}
