//! What a device is opened from, and what it can do.

use std::{fmt, net::IpAddr, str::FromStr};

use super::error::{Error, Result};

/// Which implementation drives a device. [The front page](crate#providers) compares them.
///
/// As text, in both directions, it is `verbs`, `tcp` or `shm`, exactly so: any other text, capital letters
/// too, is [`Error::InvalidArgument`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// libibverbs and librdmacm: InfiniBand, RoCE, SoftRoCE.
    Verbs,
    /// The embedded device: shared memory between processes of one host.
    Shm,
    /// TCP: any IP network.
    Tcp,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Provider::Verbs => "verbs",
            Provider::Shm => "shm",
            Provider::Tcp => "tcp",
        })
    }
}

impl FromStr for Provider {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "verbs" => Ok(Provider::Verbs),
            "shm" => Ok(Provider::Shm),
            "tcp" => Ok(Provider::Tcp),
            _ => Err(Error::InvalidArgument("provider is not \"verbs\", \"tcp\" or \"shm\"")),
        }
    }
}

/// Describes a device to open: one entry of the device database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Name; for verbs as `ibv_devices` prints it, free for shm and tcp.
    pub name: String,
    /// Which implementation opens it.
    pub provider: Provider,
    /// Address of the device's network interface: listeners bind it, and connections come from it.
    /// On shm it is only a name: processes of one network namespace that use the same address and
    /// port meet. It is one address, not `0.0.0.0` or `::`.
    pub ip_address: IpAddr,
    /// Largest inline payload to ask of the device, in bytes; 0 disables inline data. A device that
    /// does not have as much gives what it has ([`Limits::max_inline_data`]).
    pub max_inline_data: u32,
}

/// How much a device takes. Requests beyond it are refused with an error.
///
/// Some limits are the same for all devices of a provider:
///
/// | | shm, tcp | verbs |
/// | --- | --- | --- |
/// | bytes of one send, write or read | 4 GiB − 1 | 2 GiB |
/// | regions of one domain | shm: 8192 ([`Error::OutOfKeys`]); tcp: as many mappings as a process may have | what the card has |
/// | private data | [`MAX_CONNECT_DATA`](crate::MAX_CONNECT_DATA), [`MAX_ACCEPT_DATA`](crate::MAX_ACCEPT_DATA), [`MAX_REJECT_DATA`](crate::MAX_REJECT_DATA) | the same |
///
/// A region takes whole pages. Regions and connections are also limited by what the process may
/// have: memory that may be locked (verbs), address space and descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Largest inline payload, in bytes; on shm and tcp at most 512.
    pub max_inline_data: u32,
    /// Most work requests that one send or receive queue holds; on shm and tcp 16,384.
    pub max_queue_depth: u32,
    /// Most entries of one completion queue; on shm and tcp 4,194,304.
    pub max_completion_entries: u32,
}

/// How a device's provider differs from others, as far as a program may have to ask. Differences
/// that it need not ask for are in the table on [the front page](crate#providers). An
/// [`Error`] or a [`Status`](crate::Status) that only one provider has says so. All
/// else is the same on all providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A peer's memory can be mapped ([`SendQueue::map_remote`](crate::SendQueue::map_remote)). Not
    /// where a network lies between.
    pub maps_remote_memory: bool,
    /// The kernel names the user at the other end, so that
    /// [`expect_listener`](crate::QueuePair::expect_listener) has an effect and a
    /// [`Peer`](crate::Peer) is a user. Elsewhere a peer is a machine.
    pub knows_users: bool,
    /// Peers share the memory of a domain, so that
    /// [`fixed_domain`](crate::Device::fixed_domain) differs from a domain.
    pub shares_domain_memory: bool,
    /// Widest remote key that is handed out, in bits
    /// ([`RemoteAddress::key`](crate::RemoteAddress)).
    pub key_bits: u32,
    /// A message that is longer than its receive ends with
    /// [`RemoteInvalidRequest`](crate::Status::RemoteInvalidRequest) at the sender and
    /// [`LocalLengthError`](crate::Status::LocalLengthError) at the receiver. Some RDMA devices
    /// (SoftRoCE) report [`RemoteOperationError`](crate::Status::RemoteOperationError) and
    /// [`Other`](crate::Status::Other)`(2)` instead.
    pub exact_length_errors: bool,
}
