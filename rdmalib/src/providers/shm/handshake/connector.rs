//! Connecting to a listener.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{PeerCredentials, SendTimeout};
use nix::sys::socket::{getsockopt, setsockopt};
use nix::sys::time::TimeVal;

use super::super::closer::ClosedLater;
use super::super::link::Link;
use super::super::mapping::SharedFile;
use super::super::unread::Connected;
use super::message::{
    ACCEPT, CONNECT, CROWDED, EXHAUSTED, Message, REJECT, receive_message, send_message,
};
use super::names::name_of;
use crate::events::readable_before;
use crate::types::{Error, MAX_ACCEPT_DATA, MAX_REJECT_DATA, PrivateData, Result};

/// Connects the receive ring `ring` of the domain `file` to the listener at `to`, if that is of
/// user `listener`; see [`QueuePair::connect`](crate::QueuePair::connect).
pub(in super::super) fn connect_to(
    (file, ring): (&SharedFile, (u64, u32)),
    to: SocketAddr,
    listener: Option<u32>,
    private_data: &PrivateData,
    timeout: Duration,
) -> Result<(Link, ClosedLater<Connected>, PrivateData)> {
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
            let link = answer.link(file, &socket)?;
            Ok((link, socket.map(Connected::to_listener), private_data))
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
