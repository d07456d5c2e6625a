//! Client and executor manager: a lease is claimed with its token, becomes an executor process that
//! dials the client, and is given back on the same connection. The end of the connection ends the
//! lease, and so does a client's silence: from [`Allocated`] to the end of the lease each side says
//! something in every period that it names.

use zerocopy::little_endian::{I32, I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::lease::{Reason, Token};
use super::node::Bill;
use super::{Empty, Malformed, Secret, WireAddress, messages};

/// Claims a lease and asks for its executor. May be sent again on the same connection once the
/// executor has exited.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Allocate {
    /// The lease.
    pub token: Token,
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
    /// Input slots of each worker: invocations in flight.
    pub slots: U16,
}
const _: () = assert!(size_of::<Allocate>() == 316);

/// The executor process was started; it dials next.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Allocated {
    /// The lease: of the token, or a new number if there is no resource manager.
    pub lease: U64,
    /// How often each side says something while the lease is held, in milliseconds.
    pub heartbeat_ms: U32,
    /// Silence after which the other side is given up, in milliseconds.
    pub silence_ms: U32,
}

/// More time for the lease that this connection holds: shows the token that its renewal was answered with.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Renew {
    /// Of the same lease, with a later end.
    pub token: Token,
}

/// The lease ends later now.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Renewed {
    /// End, in milliseconds since the Unix epoch.
    pub expires_at_ms: U64,
}

/// A claim was refused. If the lease was claimed before on this connection it still is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AllocateRefused {
    /// [`RefusedBecause`].
    pub because: U16,
    /// In words.
    pub reason: Reason,
}

/// Why a claim was refused, as far as a client may decide on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RefusedBecause {
    /// The token is not one of this cluster, or not for this node.
    BadToken = 1,
    /// The lease has expired, or was ended before.
    LeaseEnded = 2,
    /// Too few cores or too little memory is free.
    NoCapacity = 3,
    /// The request cannot be met anywhere (zero slots, sizes beyond limits).
    BadRequest = 4,
    /// The executor program could not be started.
    SpawnFailed = 5,
    /// The node is being withdrawn.
    Draining = 6,
}

impl RefusedBecause {
    /// Reads the wire form.
    pub fn from_wire(value: U16) -> Result<Self, Malformed> {
        Ok(match value.get() {
            1 => RefusedBecause::BadToken,
            2 => RefusedBecause::LeaseEnded,
            3 => RefusedBecause::NoCapacity,
            4 => RefusedBecause::BadRequest,
            5 => RefusedBecause::SpawnFailed,
            6 => RefusedBecause::Draining,
            _ => return Err(Malformed::Field("refusal")),
        })
    }

    /// The wire form.
    pub fn to_wire(self) -> U16 {
        (self as u16).into()
    }
}

/// The executor process has ended: a function crashed it or called `exit`, or it and its manager lost
/// sight of each other.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ExecutorExited {
    /// Signal that killed it, or 0.
    pub signal: I32,
    /// Exit status, if no signal did.
    pub status: I32,
    /// 1: it gave no sign of life and was killed, or saw none of its manager's and ended; else 0.
    pub silent: U16,
}

/// The lease ends soon: no new invocations after the deadline.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeaseEnding {
    /// [`EndReason`](super::lease::EndReason).
    pub reason: U16,
    /// Time left, in milliseconds; 0: it has ended.
    pub grace_ms: U32,
}

/// The lease has ended on the client's request; this is its bill.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Released {
    /// What it used.
    pub bill: Bill,
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
    }
}
