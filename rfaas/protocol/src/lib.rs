//! The messages of client, managers and executors: one module a conversation. This crate is internal: applications use
//! `rfaas`.
//!
//! ```text
//!   lease        client ──▶ resource_manager            asks for cores, gets a signed token
//!   node         executor_manager ◀─▶ resource_manager  registers, reports claims and bills
//!   allocation   client ◀─▶ executor_manager            proves that it has the token, gets executors, gives them back
//!   accounting   executor ──▶ executor_manager          where its time is counted
//!   launch       executor_manager ◀─▶ zygote, guardian  starts executors, tells how they ended
//!   session      executor ──▶ client                    dials back, takes code if it has none, offers input slots
//!   invocation   client ◀─▶ worker                      writes with immediate data; no server between
//!   edge         worker ──▶ worker, client              what functions of a graph hand on
//! ```
//! Integers are little-endian and structs have neither padding nor alignment, so their bytes are the
//! message. Every connection opens with a [`Hello`] in its private data; after that a message is a
//! [`kind`](MessageKind) and its struct, at most [`MAX_MESSAGE_BYTES`] in all. Bytes from a peer are
//! hostile: a message that does not parse is an error of that peer, never a panic. How peers prove their identity is in
//! `proof`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub mod accounting;
pub mod allocation;
pub mod assignment;
mod capacity;
pub mod channel;
pub mod constraints;
pub mod edge;
pub mod heartbeat;
pub mod invocation;
pub mod isolation;
pub mod launch;
pub mod lease;
pub mod library;
pub mod node;
pub mod placement;
mod proof;
pub mod reach;
pub mod session;

pub use capacity::Capacity;
pub use proof::{Clock, ClockWatch, Nonce, Nonces, Proof};

/// Defines structs whose bytes are their wire form, and how many these are.
macro_rules! wire {
    ($($(#[$doc:meta])* pub struct $name:ident [$bytes:literal bytes] $fields:tt)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
        #[derive(zerocopy::KnownLayout, zerocopy::Unaligned)]
        #[repr(C)]
        pub struct $name $fields

        const _: [(); $bytes] = [(); size_of::<$name>()];
    )* };
}
pub(crate) use wire;

/// Defines an enum of what one side may say in a field, each with its number: `number => Variant`. A
/// number that is none of these is an error of the field that is named.
macro_rules! numbered {
    ($(#[$doc:meta])* pub enum $name:ident ($field:literal) { $($(#[$vdoc:meta])* $number:literal => $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum $name { $($(#[$vdoc])* $variant = $number,)* }

        impl $name {
            /// Reads the wire form.
            #[doc(hidden)]
            pub fn from_wire(value: zerocopy::little_endian::U16) -> Result<Self, $crate::Malformed> {
                match value.get() {
                    $($number => Ok($name::$variant),)*
                    _ => Err($crate::Malformed::Field($field)),
                }
            }

            /// Returns the wire form.
            #[doc(hidden)]
            pub fn to_wire(self) -> zerocopy::little_endian::U16 {
                (self as u16).into()
            }
        }
    };
}
pub(crate) use numbered;

/// Version of all conversations together. Peers of another version are refused by name.
pub const VERSION: u16 = 10;
/// Oldest version of a client that is accepted: what it says without a proof means what it did. It cannot claim leases.
pub const OLDEST_CLIENT: u16 = 4;

/// Largest message on a control connection, in bytes: the longest struct (an allocation request)
/// and room to grow.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// First bytes of every connection, so that a stray peer is recognised: "rFaS".
const MAGIC: u32 = u32::from_le_bytes(*b"rFaS");

/// A peer sent bytes that are no message of this conversation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not the length that this kind of message has.
    #[error("message {what} has {bytes} bytes, not {expected}")]
    Length {
        /// Name of the struct.
        what: &'static str,
        /// Bytes received.
        bytes: usize,
        /// Bytes that it has.
        expected: usize,
    },
    /// A kind that this conversation does not know.
    #[error("unknown message kind {0}")]
    Kind(u16),
    /// The connection does not begin with our magic number.
    #[error("the peer does not speak the rFaaS protocol")]
    Magic,
    /// The peer speaks another version.
    #[error(
        "the peer speaks protocol version {theirs}, this program speaks {VERSION}; use the same release on both sides"
    )]
    Version {
        /// Its version.
        theirs: u16,
    },
    /// A field has a value that it cannot have.
    #[error("field {0} of a message is invalid")]
    Field(&'static str),
}

/// The role of a peer that connects, and what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Role {
    /// A client that asks a resource manager for leases.
    Lease = 1,
    /// An executor manager that registers its node.
    Node = 2,
    /// A client that claims a lease at an executor manager.
    Allocation = 3,
    /// A worker that counts its time at its executor manager.
    Accounting = 4,
    /// An executor process that dials its client.
    Executor = 5,
    /// A worker thread that dials its client.
    Worker = 6,
    /// Who will write to a worker, or to a client, over an edge of a graph.
    Edge = 7,
}

wire! {
    /// Opens a connection: the first bytes of its private data.
    pub struct Hello [8 bytes] {
        magic: U32,
        version: U16,
        role: U16,
    }
}

impl Hello {
    /// Returns private data: a hello, then `body`.
    pub fn with(role: Role, body: &impl Bytes) -> Vec<u8> {
        let hello =
            Hello { magic: MAGIC.into(), version: VERSION.into(), role: (role as u16).into() };
        [hello.as_bytes(), body.as_bytes()].concat()
    }

    /// Returns the role, and the bytes behind the hello. A client may be of an older release.
    pub fn parse(private_data: &[u8]) -> Result<(Role, &[u8]), Malformed> {
        let (hello, rest) = Hello::read_from_prefix(private_data).map_err(|_| Malformed::Magic)?;
        if hello.magic.get() != MAGIC {
            return Err(Malformed::Magic);
        }
        let version = hello.version.get();
        let role = match hello.role.get() {
            1 => Role::Lease,
            2 => Role::Node,
            3 => Role::Allocation,
            4 => Role::Accounting,
            5 => Role::Executor,
            6 => Role::Worker,
            7 => Role::Edge,
            _ if version != VERSION => return Err(Malformed::Version { theirs: version }),
            other => return Err(Malformed::Kind(other)),
        };
        let oldest = match role {
            Role::Lease | Role::Allocation => OLDEST_CLIENT,
            Role::Node | Role::Accounting | Role::Executor | Role::Worker | Role::Edge => VERSION,
        };
        match (oldest..=VERSION).contains(&version) {
            true => Ok((role, rest)),
            false => Err(Malformed::Version { theirs: version }),
        }
    }
}

/// A struct whose bytes are its wire form.
pub trait Bytes: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned {}
impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned> Bytes for T {}

/// Reads private data behind a [`Hello`] (or in an acceptance), which may be padded with zeros.
pub fn parse_prefix<T: Bytes>(bytes: &[u8]) -> Result<T, Malformed> {
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| Malformed::Length {
        what: std::any::type_name::<T>(),
        bytes: bytes.len(),
        expected: size_of::<T>(),
    })
}

wire! {
    /// Nothing: for a hello without a body.
    pub struct Empty [0 bytes] {}
}

/// Why a connection was refused: the private data of a rejection, in people's words.
pub type Refusal = Text<120>;
const _: () = assert!(size_of::<Refusal>() <= rdmalib::MAX_REJECT_DATA);

/// UTF-8 text of at most `N` bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Text<const N: usize> {
    len: U16,
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    /// Returns `text`, or `None` if it is longer than `N` bytes.
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; N];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Text { len: u16::try_from(text.len()).ok()?.into(), bytes })
    }

    /// Returns as much of `text` as fits: for explanations, never for names.
    pub fn truncated(text: &str) -> Self {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Text::new(&text[..end]).unwrap_or(Text { len: 0.into(), bytes: [0; N] })
    }

    /// Returns the text; an error if the peer's bytes are none.
    pub fn get(&self) -> Result<&str, Malformed> {
        self.bytes
            .get(..usize::from(self.len.get()))
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .ok_or(Malformed::Field("text"))
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.get().unwrap_or("<invalid>"), f)
    }
}

wire! {
    /// An IP address and port; IPv4 as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2).
    pub struct WireAddress [18 bytes] {
        ip: [u8; 16],
        port: U16,
    }
}

impl From<SocketAddr> for WireAddress {
    fn from(addr: SocketAddr) -> Self {
        let ip = match addr.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        WireAddress { ip: ip.octets(), port: addr.port().into() }
    }
}

impl From<WireAddress> for SocketAddr {
    fn from(wire: WireAddress) -> Self {
        SocketAddr::new(Ipv6Addr::from(wire.ip).to_canonical(), wire.port.get())
    }
}

/// An unguessable word that lets its holder speak for one lease on one connection.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Secret(pub [u8; 16]);

impl Secret {
    /// Draws a fresh one from the system's random source.
    pub fn generate() -> Self {
        Secret(proof::random())
    }
}

/// In the same time, wherever they differ.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        proof::same(&self.0, &other.0)
    }
}
impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A set of messages that one side of a conversation sends.
pub trait MessageKind: Sized {
    /// Returns the wire form: the kind, then the struct.
    fn encode(&self) -> Vec<u8>;
    /// Reads a whole message.
    fn decode(bytes: &[u8]) -> Result<Self, Malformed>;
}

/// Defines an enum of messages: `kind => Variant(Struct)`.
macro_rules! messages {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $kind:literal => $variant:ident($body:ty),)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant)] // rare, short-lived, and plain bytes: a box gains nothing
        pub enum $name { $($(#[$vdoc])* $variant($body),)* }

        impl $crate::MessageKind for $name {
            fn encode(&self) -> Vec<u8> {
                match self {
                    $($name::$variant(body) => {
                        [&u16::to_le_bytes($kind)[..], zerocopy::IntoBytes::as_bytes(body)].concat()
                    })*
                }
            }

            fn decode(bytes: &[u8]) -> Result<Self, $crate::Malformed> {
                let Some((kind, body)) = bytes.split_first_chunk::<2>() else {
                    return Err($crate::Malformed::Length {
                        what: stringify!($name), bytes: bytes.len(), expected: 2,
                    });
                };
                match u16::from_le_bytes(*kind) {
                    $($kind => <$body as zerocopy::FromBytes>::read_from_bytes(body)
                        .map($name::$variant)
                        .map_err(|_| $crate::Malformed::Length {
                            what: stringify!($variant), bytes: body.len(), expected: size_of::<$body>(),
                        }),)*
                    other => Err($crate::Malformed::Kind(other)),
                }
            }
        }

        const _: () = { $(assert!(size_of::<$body>() + 2 <= $crate::MAX_MESSAGE_BYTES);)* };
    };
}
pub(crate) use messages;
