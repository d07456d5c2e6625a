//! What can go wrong below a work completion: opening, registering, connecting, posting.
//!
//! A work request that fails *after* it was posted is not an [`Error`]: it is a
//! [`WorkCompletion`](crate::WorkCompletion) whose [`Status`](crate::Status) says why.

use std::{io, net::IpAddr, net::SocketAddr, time::Duration};

use nix::errno::Errno;

use super::connection::PrivateData;
use super::device::Provider;

/// The result of a fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed: one variant for each decision that a caller may take. [The front
/// page](crate#what-to-do-about-an-error) sorts them by what to do.
///
/// An error is about the call. A request that was posted and then fails is a
/// [`Status`](crate::Status). Some look alike:
/// * [`RemoteAccess`](Self::RemoteAccess) refuses a call, and the connection goes on;
///   [`Status::RemoteAccessError`](crate::Status::RemoteAccessError) ends a request and its
///   connection.
/// * [`Rejected`](Self::Rejected) is an application's answer;
///   [`ConnectionRefused`](Self::ConnectionRefused) means that there is no listener;
///   [`TooManyConnections`](Self::TooManyConnections) and
///   [`ListenerExhausted`](Self::ListenerExhausted) are a listener's answer that its application
///   never saw; [`ListenerQueueFull`](Self::ListenerQueueFull) means that not even the listener saw
///   the connection; [`ConnectionDropped`](Self::ConnectionDropped) means that it went without an
///   answer.
/// * [`TimedOut`](Self::TimedOut) says that no answer came, [`Disconnected`](Self::Disconnected)
///   that none will.
/// * [`OutOfDescriptors`](Self::OutOfDescriptors) is this process's limit,
///   [`TooManyUnread`](Self::TooManyUnread) is the user's, because of processes that do not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device cannot be opened on this machine; another device may. On verbs also: it was
    /// removed while a listener waited on it.
    #[error("device {device:?} cannot be opened by provider {provider}: {reason}")]
    DeviceUnavailable {
        /// Name as given in the device database.
        device: String,
        /// Provider that was asked.
        provider: Provider,
        /// Why, and what to do.
        reason: String,
    },
    /// Another listener has this address; choose another port or stop it.
    #[error(
        "address {0} is already in use: stop the program that listens there or choose another port"
    )]
    AddressInUse(SocketAddr),
    /// Nobody listens at this address (yet); retry later or check the address.
    #[error("nobody listens at {0}: check the address, the port and that the program there runs")]
    ConnectionRefused(SocketAddr),
    /// The listener's queue had no place within the time limit, because so many connect, or because
    /// its program does not ask for requests; retry later. Only on shm.
    #[error(
        "no place in the queue of the listener at {to} within {after:?}: too many connect at once; try again later"
    )]
    ListenerQueueFull {
        /// Address that was tried.
        to: SocketAddr,
        /// How long.
        after: Duration,
    },
    /// The listener turned the connection away, before its program saw it: too many connections
    /// wait there that have sent no request yet, or too many of this user have not read that they
    /// were accepted (shm). Retry later. Not on verbs.
    #[error("the program at {0} has too many connections that wait; try again later")]
    TooManyConnections(SocketAddr),
    /// The listener has no descriptor or address space for one more connection; retry later. Only
    /// on shm.
    #[error(
        "the program at {0} has no file descriptor or address space left for another connection: raise its limits \
         (ulimit -n, ulimit -v), or try again later"
    )]
    ListenerExhausted(SocketAddr),
    /// The listener closed the connection before it answered: it is ending, accepting failed there,
    /// or it is another program. Not on verbs.
    #[error(
        "the program at {0} closed the connection before it answered: it may have ended just now, or be another \
         program or version"
    )]
    ConnectionDropped(SocketAddr),
    /// A process of another user than expected listens at this address; nothing was sent to it
    /// ([`expect_listener`](crate::QueuePair::expect_listener)). Only on shm.
    #[error(
        "user {listens} listens at {to}, not user {expected}, whom this device's entry trusts: end what runs there"
    )]
    WrongUser {
        /// The address.
        to: SocketAddr,
        /// User id of the process that listens there.
        listens: u32,
        /// User id that was expected.
        expected: u32,
    },
    /// The address cannot be reached from the device; check the address and the network. Not on
    /// shm.
    #[error("{to} cannot be reached from {from}: {reason}; check that both are on one network")]
    Unreachable {
        /// Address of the device that the connection should come from.
        from: IpAddr,
        /// Address that was tried.
        to: SocketAddr,
        /// What the connection manager or the kernel said.
        reason: String,
    },
    /// The listener's application refused the connection; its private data may say why.
    #[error("the connection was rejected by the peer")]
    Rejected {
        /// What the peer passed to [`ConnectRequest::reject`](crate::ConnectRequest::reject).
        private_data: PrivateData,
    },
    /// The deadline passed first; the operation had no effect that the caller sees. A listener may
    /// see a connection that comes and ends ([`connect`](crate::QueuePair::connect)).
    #[error("{what} timed out after {after:?}")]
    TimedOut {
        /// The operation that was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The connection has ended; connect again, with another queue pair.
    #[error("the connection has ended")]
    Disconnected,
    /// As many requests as the queue holds are outstanding; poll completions, then retry. If none
    /// ever comes, no request was [signaled](crate::Flags::SIGNALED), or the peer posts no
    /// receives.
    #[error("queue full: {depth} requests are outstanding")]
    QueueFull {
        /// Depth given when the queue pair was made.
        depth: u32,
    },
    /// Inline data is larger than the queue pair allows; use a registered region instead.
    #[error("{bytes} bytes are too many for inline data: this queue pair allows {max}")]
    InlineTooLarge {
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A range does not lie inside its memory region.
    #[error(
        "range of {bytes} bytes at offset {offset} is outside of a region of {region_bytes} bytes"
    )]
    OutOfBounds {
        /// First byte, from the region's start.
        offset: usize,
        /// Length of the range.
        bytes: usize,
        /// Length of the region.
        region_bytes: usize,
    },
    /// The key does not allow what was asked of the peer's memory, or not all of it
    /// ([`map_remote`](crate::SendQueue::map_remote)); or it is wider than any key of the device (a
    /// post, on verbs). Nothing has changed.
    #[error("the peer's key does not allow this access to this range of its memory")]
    RemoteAccess,
    /// More private data than the handshake carries.
    #[error("{bytes} bytes of private data are too many: this message carries {max}")]
    PrivateDataTooLong {
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The completion queue could overflow if this queue pair used it.
    #[error("completion queue holds {capacity} entries, the queue pairs on it would need {needed}")]
    CompletionQueueTooSmall {
        /// Entries asked for when it was made.
        capacity: u32,
        /// Sum of the depths of the queues that complete into it.
        needed: u32,
    },
    /// An argument that the device cannot honour, or a call out of turn (a queue pair that is not
    /// connected, or was before).
    #[error("invalid argument: {0}")]
    InvalidArgument(&'static str),
    /// The domain has as many regions as its key table holds; drop some. Only on shm.
    #[error("no memory key is left: a protection domain holds {max} regions")]
    OutOfKeys {
        /// Size of the key table.
        max: usize,
    },
    /// The device did not take the memory; usually more than this process may lock. Only on verbs.
    #[error(
        "registering {bytes} bytes of memory failed (locked memory: {}); raise the limit, \
         e.g. ulimit -l unlimited, or LimitMEMLOCK=infinity in a systemd unit",
        limit.map_or("no limit".into(), |limit| format!("at most {limit} bytes"))
    )]
    Registration {
        /// Bytes that should have been registered.
        bytes: usize,
        /// Bytes that this process may lock (`RLIMIT_MEMLOCK`); `None`: any.
        limit: Option<u64>,
        /// The error of `ibv_reg_mr`.
        #[source]
        source: io::Error,
    },
    /// This process, or the system, has no file descriptor left.
    #[error(
        "{call} failed: no file descriptor is left; raise the limit (ulimit -n), or use fewer connections"
    )]
    OutOfDescriptors {
        /// Name of the call.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// Processes of this user have passed as many descriptors as a process may have open, and the
    /// receivers have not read them. Until they do, no process of this user can pass any. Only on
    /// shm, where connecting and accepting pass one.
    #[error(
        "{call} failed: too many descriptors that this user's processes have passed to others were not read by them; \
         end the processes that do not read, or raise the limit (ulimit -n)"
    )]
    TooManyUnread {
        /// Name of the call.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// The limit of file sizes is too small: on the embedded device it applies to shared memory
    /// too. Only on shm.
    #[error(
        "{bytes} bytes of shared memory are more than this process's limit of file sizes ({limit} bytes): raise it, \
         e.g. ulimit -f unlimited, or LimitFSIZE=infinity in a systemd unit"
    )]
    FileSizeLimit {
        /// Size that the memory file should have had.
        bytes: u64,
        /// The limit (`RLIMIT_FSIZE`).
        limit: u64,
    },
    /// This process has no address space for more memory, or has reached its bound of peers' memory
    /// ([`limit_peers`](crate::limit_peers), shm). Not on verbs.
    #[error(
        "no address space is left to map {bytes} bytes of memory; raise the limit (ulimit -v), or use less"
    )]
    OutOfAddresses {
        /// Bytes that should have been mapped.
        bytes: usize,
    },
    /// The object was made before a fork and belongs to the parent. Open a device in the child
    /// ([what a child may do](crate#forked-processes)).
    #[error(
        "this process was forked from the one that opened the device, whose connections and memory are not its \
         own: open a device in this process, or fork before opening one"
    )]
    Forked,
    /// The peer broke the wire protocol, or is another version; the connection is not used further.
    #[error("peer broke the connection protocol: {0}")]
    Protocol(&'static str),
    /// A system or library call failed.
    #[error("{call} failed")]
    Os {
        /// Name of the call.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The error of `call`: an [`Error::Os`], unless it has a variant of its own.
    pub(crate) fn os(call: &'static str, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE) => Error::OutOfDescriptors { call, source },
            Some(Errno::ETOOMANYREFS) => Error::TooManyUnread { call, source },
            _ => Error::Os { call, source },
        }
    }
}
