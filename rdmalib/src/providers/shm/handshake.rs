//! How two processes of one host meet: an abstract Unix socket named after the address, one message
//! each way with the descriptor of the sender's domain. Then the socket stays as doorbell and as
//! sign of life: the kernel closes it when its process ends, however it ends.
//!
//! Abstract sockets (`unix(7)`) leave no file behind and belong to a network namespace, as
//! addresses do. They have no permissions: as with TCP on localhost, any local user may connect,
//! and what a peer says is checked before it is used.
//!
//! A connector that is turned away is told why, if it still listens.
//!
//! Elsewhere: waiting for connectors (`listener`), the messages (`message`), the name of the socket
//! (`names`).

mod listener;
mod message;
mod names;

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{PeerCredentials, SendTimeout};
use nix::sys::socket::{getsockopt, setsockopt};
use nix::sys::time::TimeVal;

pub(crate) use self::listener::Listener;
use self::message::{
    ACCEPT, CONNECT, CROWDED, EXHAUSTED, Message, REJECT, receive_message, send_message,
};
use self::names::name_of;
use super::Shm;
use super::closer::{ClosedLater, Passed};
use super::device::MAX_QUEUE_DEPTH;
use super::link::Link;
use super::mapping::SharedFile;
use super::peer::{origin, peer_of};
use super::peer_arena::{PeerArena, PeerFile};
use super::queue_pair::SendQueue;
use super::unread::Connected;
use crate::contract::{self, SendQueue as _};
use crate::events::readable_before;
use crate::types::{Error, MAX_ACCEPT_DATA, MAX_REJECT_DATA, Peer, PrivateData, Result, State};
use rdmalib_ring::{ArrivalPusher, Side, words_needed};

/// Makes the link to the peer at the other end of `socket`, which sent `message`.
fn link(message: &Message, file: Option<ClosedLater<Passed>>, socket: &UnixStream) -> Result<Link> {
    let file = file.ok_or(Error::Protocol("the peer sent no memory"))?;
    let depth = message.ring_depth;
    if !depth.is_power_of_two() || depth > MAX_QUEUE_DEPTH {
        return Err(Error::Protocol("ring depth"));
    }
    let memory = PeerArena::new(PeerFile::new(file, origin(socket))?)?;
    let ring = memory.map_ring(message.ring_offset, 8 * words_needed(depth))?;
    let ring = ArrivalPusher::new(ring, depth).ok_or(Error::Protocol("ring size"))?;
    Ok(Link::new(memory, ring))
}

/// A connection that the listener has accepted.
pub(super) struct Accepted {
    pub(super) link: Link,
    pub(super) socket: ClosedLater<Connected>,
    pub(super) private_data: PrivateData,
}

/// Connects the receive ring `ring` of the domain `file` to the listener at `to`, if that is of user
/// `listener`; see [`QueuePair::connect`](crate::QueuePair::connect).
pub(super) fn connect_to(
    (file, ring): (&SharedFile, (u64, u32)),
    to: SocketAddr,
    listener: Option<u32>,
    private_data: &PrivateData,
    timeout: Duration,
) -> Result<Accepted> {
    let deadline = Instant::now() + timeout;
    let late = || Error::TimedOut { what: "connecting", after: timeout };
    let full = || Error::ListenerQueueFull { to, after: timeout };
    let socket = open_socket(to, deadline)?.ok_or_else(full)?;
    if let Some(expected) = listener {
        // Of the process that listens: unix(7), SO_PEERCRED.
        let peer = getsockopt(&socket, PeerCredentials);
        let listens = peer.map_err(|e| Error::os("getsockopt", e))?.uid();
        if listens != expected {
            return Err(Error::WrongUser { to, listens, expected });
        }
    }
    let request = Message::new(CONNECT, ring, private_data);
    send_message(&socket, &request, Some(file)).map_err(|e| dropped(e, to))?;
    let (answer, file) = loop {
        match receive_message(&socket) {
            Ok(Some(answer)) => break answer,
            Ok(None) if !readable_before(&socket, deadline)? => return Err(late()),
            Ok(None) => {}
            Err(error) => return Err(dropped(error, to)),
        }
    };
    match answer.kind {
        ACCEPT => {
            let private_data = answer.private_data(MAX_ACCEPT_DATA)?;
            let link = link(&answer, file, &socket)?;
            Ok(Accepted { link, socket: socket.map(Connected::to_listener), private_data })
        }
        REJECT => Err(Error::Rejected { private_data: answer.private_data(MAX_REJECT_DATA)? }),
        CROWDED => Err(Error::TooManyConnections(to)),
        EXHAUSTED => Err(Error::ListenerExhausted(to)),
        _ => Err(Error::Protocol("unknown answer to a connection request")),
    }
}

/// A listener was there: the error differs from the one for an address where nobody listens.
fn dropped(error: Error, to: SocketAddr) -> Error {
    match error {
        Error::Disconnected => Error::ConnectionDropped(to),
        other => other,
    }
}

/// Returns a connected socket. `None`: the listener's queue was full until the deadline.
fn open_socket(to: SocketAddr, deadline: Instant) -> Result<Option<ClosedLater<UnixStream>>> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let address =
        UnixAddr::new_abstract(name_of(to).as_bytes()).map_err(|e| Error::os("socket name", e))?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| Error::os("socket", e))?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // The kernel's queue is first come, first served; zero would mean for ever.
        let left_us = left.as_micros().clamp(1, 1 << 40) as i64;
        let limit = TimeVal::new(left_us / 1_000_000, left_us % 1_000_000);
        setsockopt(&socket, SendTimeout, &limit).map_err(|e| Error::os("setsockopt", e))?;
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::ECONNREFUSED) => return Err(Error::ConnectionRefused(to)),
            Err(Errno::EAGAIN | Errno::EINTR) if left.is_zero() => return Ok(None),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("connect", errno)),
        }
    }
    let socket = ClosedLater::from(UnixStream::from(socket));
    socket.set_nonblocking(true).map_err(|e| Error::os("fcntl", e))?;
    Ok(Some(socket))
}

/// A connector that waits for an answer.
#[derive(Debug)]
pub(crate) struct ConnectRequest {
    socket: ClosedLater<UnixStream>,
    link: Link,
    private_data: PrivateData,
}

impl contract::ConnectRequest<Shm> for ConnectRequest {
    fn private_data(&self) -> &[u8] {
        self.private_data.as_slice()
    }

    fn peer(&self) -> String {
        peer_of(&self.socket)
    }

    fn origin(&self) -> Peer {
        origin(&self.socket)
    }

    fn accept(self, queue: &mut SendQueue, private_data: &[u8]) -> Result<()> {
        let private_data = PrivateData::new(private_data, MAX_ACCEPT_DATA)?;
        if queue.state() != State::Init {
            return Err(Error::InvalidArgument("queue pair was connected before"));
        }
        let answer = Message::new(ACCEPT, queue.core().ring(), &private_data);
        let peer = self.origin();
        let socket = self.socket.map(|socket| Connected::of_connector(socket, peer));
        send_message(&socket, &answer, Some(queue.arena().file()))?;
        socket.is_accepted();
        queue.set_link(self.link, Side::Acceptor);
        queue.core().connected(socket)
    }

    fn reject(self, private_data: &[u8]) -> Result<()> {
        let private_data = PrivateData::new(private_data, MAX_REJECT_DATA)?;
        send_message(&self.socket, &Message::new(REJECT, (0, 0), &private_data), None)
    }
}
