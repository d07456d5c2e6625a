//! Connecting.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect, setsockopt, socket,
    sockopt,
};
use std::os::fd::AsFd;

use super::super::carrier::Carrier;
use super::super::protocol::Terms;
use super::message::{GREETING, Kind, Message};
use super::socket::prepare;
use crate::types::{Error, PrivateData, Result};

/// One connection that is being made, and until when.
struct Connector {
    to: SocketAddr,
    timeout: Duration,
    deadline: Instant,
}

/// Connects from `from` to the listener at `to`. Returns the connection, the terms of the other
/// end and its private data.
pub(in super::super) fn connect_to(
    from: IpAddr,
    to: SocketAddr,
    terms: Terms,
    private_data: &PrivateData,
    timeout: Duration,
) -> Result<(Carrier, Terms, PrivateData)> {
    let now = Instant::now();
    let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(1 << 30));
    let connector = Connector { to, timeout, deadline };
    let mut socket = connector.dial(from)?;
    prepare(&socket)?;
    let request = Message::bytes(Kind::Request, terms, private_data.as_slice());
    // It fits into the empty buffer of a socket.
    socket.write_all(&request).map_err(|error| connector.lost(error))?;
    let mut greeting = [0; GREETING];
    connector.read(&mut socket, &mut greeting)?;
    let answer = Message::read(&greeting)?;
    let mut data = vec![0; answer.data_bytes];
    connector.read(&mut socket, &mut data)?;
    let private_data = PrivateData::new(&data, data.len())?;
    match answer.kind {
        Kind::Accept => {
            let carrier = Carrier::new(socket).map_err(|e| Error::os("fcntl", e))?;
            Ok((carrier, answer.terms, private_data))
        }
        Kind::Reject => Err(Error::Rejected { private_data }),
        Kind::Crowded => Err(Error::TooManyConnections(to)),
        Kind::Request => Err(Error::Protocol("a request in place of an answer")),
    }
}

impl Connector {
    fn dial(&self, from: IpAddr) -> Result<TcpStream> {
        let family = match from {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket(family, SockType::Stream, flags, None).map_err(|e| Error::os("socket", e))?;
        // The port is chosen when it is known where the connection goes, so that there are many.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
            .map_err(|e| Error::os("setsockopt", e))?;
        bind_to(&socket, SocketAddr::new(from, 0)).map_err(|e| Error::os("bind", e))?;
        match connect_socket(&socket, self.to) {
            Ok(()) => {}
            Err(Errno::EINPROGRESS | Errno::EINTR) => {
                self.wait(&socket, PollFlags::POLLOUT)?;
                let failed = nix::sys::socket::getsockopt(&socket, sockopt::SocketError)
                    .map_err(|e| Error::os("getsockopt", e))?;
                if failed != 0 {
                    return Err(self.unreached(from, Errno::from_raw(failed)));
                }
            }
            Err(errno) => return Err(self.unreached(from, errno)),
        }
        Ok(TcpStream::from(socket))
    }

    fn unreached(&self, from: IpAddr, errno: Errno) -> Error {
        match errno {
            Errno::ECONNREFUSED | Errno::ECONNRESET => Error::ConnectionRefused(self.to),
            Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EADDRNOTAVAIL
            | Errno::EAFNOSUPPORT
            | Errno::EINVAL
            | Errno::EACCES
            | Errno::EPERM
            | Errno::ETIMEDOUT => {
                Error::Unreachable { from, to: self.to, reason: errno.desc().into() }
            }
            errno => Error::os("connect", errno),
        }
    }

    /// The connection has ended before there was an answer.
    fn lost(&self, error: io::Error) -> Error {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        match error.kind() {
            BrokenPipe | ConnectionReset => Error::ConnectionDropped(self.to),
            // Its machine has gone silent, and the kernel has given it up.
            io::ErrorKind::TimedOut => Error::TimedOut { what: "connecting", after: self.timeout },
            _ => Error::os("the handshake", error),
        }
    }

    fn wait(&self, socket: &impl AsFd, flags: PollFlags) -> Result<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let limit = PollTimeout::try_from(left.as_nanos().div_ceil(1_000_000))
                .unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(socket.as_fd(), flags)], limit) {
                Ok(0) if left.is_zero() => {
                    return Err(Error::TimedOut { what: "connecting", after: self.timeout });
                }
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Error::os("poll", errno)),
            }
        }
    }

    /// Reads exactly so many bytes: frames may follow.
    fn read(&self, socket: &mut TcpStream, out: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            match socket.read(&mut out[filled..]) {
                Ok(0) => return Err(Error::ConnectionDropped(self.to)),
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(socket, PollFlags::POLLIN)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.lost(error)),
            }
        }
        Ok(())
    }
}

fn bind_to(socket: &OwnedFd, addr: SocketAddr) -> nix::Result<()> {
    match addr {
        SocketAddr::V4(addr) => bind(socket.as_raw_fd(), &SockaddrIn::from(addr)),
        SocketAddr::V6(addr) => bind(socket.as_raw_fd(), &SockaddrIn6::from(addr)),
    }
}

fn connect_socket(socket: &OwnedFd, addr: SocketAddr) -> nix::Result<()> {
    match addr {
        SocketAddr::V4(addr) => connect(socket.as_raw_fd(), &SockaddrIn::from(addr)),
        SocketAddr::V6(addr) => connect(socket.as_raw_fd(), &SockaddrIn6::from(addr)),
    }
}
