//! How two processes of one host meet: an abstract Unix socket named after the address, one message
//! each way with the descriptor of the sender's domain, then the socket stays as doorbell and as the
//! sign of life: the kernel closes it when its process ends, however it ends.
//!
//! Abstract sockets (`unix(7)`) leave no file behind and belong to a network namespace, as addresses
//! do. They have no permissions: as with TCP on localhost, any local user may connect, and what a
//! peer says is checked before it is believed.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::MAX_QUEUE_DEPTH;

use super::one_sided::Link;
use super::peer_arena::PeerArena;
use super::queue_pair::SendQueue;
use super::ring::{ArrivalPusher, Side, words_needed};
use crate::connection::{MAX_ACCEPT_DATA, MAX_CONNECT_DATA, MAX_REJECT_DATA, PrivateData};
use crate::error::{Error, Result};
use crate::events::readable_before;
use crate::queue_pair::State;

/// First words of every message: name and version of this handshake.
const MAGIC: u64 = u64::from_le_bytes(*b"rdmashm3");
/// Prefix of the socket's name.
const NAME: &str = "rdmalib-shm";
/// A connector that has not said what it wants by then is forgotten.
const HALF_OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Connectors that are waited for at once; more are refused.
const MAX_HALF_OPEN: usize = 1024;
/// Where ephemeral ports are taken from (RFC 6335, section 6).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49152..=65535;
const LISTENER: u64 = u64::MAX;

/// Both messages: a request, or the answer to one. Same machine, so native byte order.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Message {
    magic: u64,
    ring_offset: u64,
    ring_depth: u32,
    kind: u32,
    data_bytes: u32,
    data: [u8; MAX_ACCEPT_DATA],
}
const _: () = assert!(size_of::<Message>() == 224);

const CONNECT: u32 = 1;
const ACCEPT: u32 = 2;
const REJECT: u32 = 3;

impl Message {
    fn new(kind: u32, ring: (u64, u32), private_data: &PrivateData) -> Self {
        let bytes = private_data.as_slice();
        let mut data = [0; MAX_ACCEPT_DATA];
        data[..bytes.len()].copy_from_slice(bytes);
        Message {
            magic: MAGIC,
            ring_offset: ring.0,
            ring_depth: ring.1,
            kind,
            data_bytes: bytes.len() as u32,
            data,
        }
    }

    fn private_data(&self, max: usize) -> Result<PrivateData> {
        let bytes = self.data.get(..self.data_bytes as usize);
        bytes
            .ok_or(Error::Protocol("private data length"))
            .and_then(|bytes| PrivateData::new(bytes, max))
    }
}

fn socket_name(addr: SocketAddr) -> Result<UnixAddr> {
    UnixAddr::from_abstract_name(format!("{NAME}/{addr}")).map_err(|e| Error::os("socket name", e))
}

fn send_message(socket: &UnixStream, message: &Message, file: Option<&OwnedFd>) -> Result<()> {
    let fds: Vec<RawFd> = file.iter().map(|file| file.as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &control[..0] } else { &control[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let data = [IoSlice::new(message.as_bytes())];
    match sendmsg::<()>(socket.as_raw_fd(), &data, control, flags, None) {
        Ok(n) if n == size_of::<Message>() => Ok(()),
        // A fresh socket takes a message of this size whole, unless its peer is gone.
        Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Err(Error::Disconnected),
        Err(errno) => Err(Error::os("sendmsg", errno)),
    }
}

/// `None`: nothing has come yet.
fn receive_message(socket: &UnixStream) -> Result<Option<(Message, Option<OwnedFd>)>> {
    let mut bytes = [0; size_of::<Message>()];
    let mut control = cmsg_space!([RawFd; 4]);
    let mut data = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = match recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut control), flags) {
        Ok(received) => received,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(Errno::ECONNRESET) => return Err(Error::Disconnected),
        Err(errno) => return Err(Error::os("recvmsg", errno)),
    };
    let count = received.bytes;
    let mut files = Vec::new();
    for control in received.cmsgs().map_err(|e| Error::os("recvmsg", e))? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just installed these descriptors for us; nobody else knows them.
            files.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    match count {
        0 => return Err(Error::Disconnected),
        n if n != size_of::<Message>() => return Err(Error::Protocol("handshake of a wrong size")),
        _ => {}
    }
    let message = Message::read_from_bytes(&bytes).expect("the buffer has the message's size");
    if message.magic != MAGIC {
        return Err(Error::Protocol("the peer is another program or version"));
    }
    Ok(Some((message, files.into_iter().next())))
}

/// The way to the peer that sent `message`.
fn link(message: &Message, file: Option<OwnedFd>) -> Result<Link> {
    let file = file.ok_or(Error::Protocol("the peer sent no memory"))?;
    let depth = message.ring_depth;
    if !depth.is_power_of_two() || depth > MAX_QUEUE_DEPTH {
        return Err(Error::Protocol("ring depth"));
    }
    let memory = PeerArena::new(file)?;
    let ring = memory.map_ring(message.ring_offset, 8 * words_needed(depth))?;
    let ring = ArrivalPusher::new(ring, depth).ok_or(Error::Protocol("ring size"))?;
    Ok(Link::new(memory, ring))
}

impl SendQueue {
    /// Connects to the listener at `to`; see [`QueuePair::connect`](crate::QueuePair::connect).
    pub(crate) fn connect(
        &mut self,
        to: SocketAddr,
        private_data: &PrivateData,
        timeout: Duration,
    ) -> Result<PrivateData> {
        let deadline = Instant::now() + timeout;
        let late = || Error::TimedOut { what: "connecting", after: timeout };
        let socket = open_socket(to, deadline)?.ok_or_else(late)?;
        let request = Message::new(CONNECT, self.core().ring(), private_data);
        send_message(&socket, &request, Some(self.arena().file())).map_err(|e| refused(e, to))?;
        let (answer, file) = loop {
            match receive_message(&socket) {
                Ok(Some(answer)) => break answer,
                Ok(None) if !readable_before(&socket, deadline)? => return Err(late()),
                Ok(None) => {}
                Err(error) => return Err(refused(error, to)),
            }
        };
        match answer.kind {
            ACCEPT => {
                let private_data = answer.private_data(MAX_ACCEPT_DATA)?;
                self.set_link(link(&answer, file)?, Side::Connector);
                self.core().connected(socket)?;
                Ok(private_data)
            }
            REJECT => Err(Error::Rejected { private_data: answer.private_data(MAX_REJECT_DATA)? }),
            _ => Err(Error::Protocol("unknown answer to a connection request")),
        }
    }
}

/// A listener that goes away while we connect is one that does not listen.
fn refused(error: Error, to: SocketAddr) -> Error {
    match error {
        Error::Disconnected => Error::ConnectionRefused(to),
        other => other,
    }
}

/// `None`: the listener's queue was full until the deadline.
fn open_socket(to: SocketAddr, deadline: Instant) -> Result<Option<UnixStream>> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let name = format!("{NAME}/{to}");
    let address =
        UnixAddr::new_abstract(name.as_bytes()).map_err(|e| Error::os("socket name", e))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|e| Error::os("socket", e))?;
    loop {
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => return Ok(Some(UnixStream::from(socket))),
            Err(Errno::ECONNREFUSED) => return Err(Error::ConnectionRefused(to)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("connect", errno)),
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1)); // the kernel has no event for this
    }
}

/// Waits for connectors at one address.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    addr: SocketAddr,
    epoll: Epoll,
    half_open: HashMap<u64, (UnixStream, Instant)>,
    next_id: u64,
}

impl Listener {
    pub(crate) fn new(addr: SocketAddr) -> Result<Self> {
        if addr.ip().is_unspecified() {
            return Err(Error::InvalidArgument(
                "an shm device needs an address of its own, not 0.0.0.0 or ::",
            ));
        }
        let (socket, addr) = bind(addr)?;
        socket.set_nonblocking(true).map_err(|e| Error::os("fcntl", e))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|e| Error::os("epoll_create1", e))?;
        epoll
            .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))
            .map_err(|e| Error::os("epoll_ctl", e))?;
        Ok(Listener { socket, addr, epoll, half_open: HashMap::new(), next_id: 0 })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    pub(crate) fn next(&mut self, timeout: Duration) -> Result<Option<ConnectRequest>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(request) = self.try_next()? {
                return Ok(Some(request));
            }
            if !readable_before(self.as_fd(), deadline)? {
                return Ok(None);
            }
        }
    }

    pub(crate) fn try_next(&mut self) -> Result<Option<ConnectRequest>> {
        let now = Instant::now();
        self.half_open.retain(|_, (_, since)| now.duration_since(*since) < HALF_OPEN_LIMIT);
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let count = match self.epoll.wait(&mut events[..1], EpollTimeout::ZERO) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(Error::os("epoll_wait", errno)),
            };
            let Some(event) = events[..count].first() else { return Ok(None) };
            if event.data() == LISTENER {
                self.take_connector(now)?;
            } else if let Some((socket, _)) = self.half_open.remove(&event.data()) {
                let _ = self.epoll.delete(&socket);
                match receive_message(&socket).and_then(|m| check_request(m, socket)) {
                    Ok(request) => return Ok(Some(request)),
                    Err(error) => tracing::debug!(%error, "connector dropped"),
                }
            }
        }
    }

    fn take_connector(&mut self, now: Instant) -> Result<()> {
        let socket = match self.socket.accept() {
            Ok((socket, _)) => socket,
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                return Ok(());
            }
            Err(e) => return Err(Error::os("accept", e)),
        };
        if self.half_open.len() >= MAX_HALF_OPEN {
            return Ok(()); // closed: the connector sees a refusal
        }
        socket.set_nonblocking(true).map_err(|e| Error::os("fcntl", e))?;
        let id = self.next_id;
        self.next_id += 1;
        self.epoll
            .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, id))
            .map_err(|e| Error::os("epoll_ctl", e))?;
        self.half_open.insert(id, (socket, now));
        Ok(())
    }
}

fn bind(addr: SocketAddr) -> Result<(UnixListener, SocketAddr)> {
    let bind = |addr: SocketAddr| match UnixListener::bind_addr(&socket_name(addr)?) {
        Ok(socket) => Ok(socket),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(Error::AddressInUse(addr)),
        Err(e) => Err(Error::os("bind", e)),
    };
    if addr.port() != 0 {
        return Ok((bind(addr)?, addr));
    }
    // Start somewhere else in each process, so that few tries are in vain.
    let start = std::process::id().wrapping_mul(0x9e37) ^ crate::queue_pair::next_number();
    for i in 0..EPHEMERAL.len() as u32 {
        let port = EPHEMERAL.start() + (start.wrapping_add(i) % EPHEMERAL.len() as u32) as u16;
        let candidate = SocketAddr::new(addr.ip(), port);
        match bind(candidate) {
            Ok(socket) => return Ok((socket, candidate)),
            Err(Error::AddressInUse(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::AddressInUse(addr))
}

fn check_request(
    message: Option<(Message, Option<OwnedFd>)>,
    socket: UnixStream,
) -> Result<ConnectRequest> {
    let (message, file) = message.ok_or(Error::Disconnected)?;
    if message.kind != CONNECT {
        return Err(Error::Protocol("not a connection request"));
    }
    let private_data = message.private_data(MAX_CONNECT_DATA)?;
    Ok(ConnectRequest { private_data, link: link(&message, file)?, socket })
}

/// A connector that waits for an answer.
#[derive(Debug)]
pub(crate) struct ConnectRequest {
    socket: UnixStream,
    link: Link,
    private_data: PrivateData,
}

impl ConnectRequest {
    pub(crate) fn private_data(&self) -> &[u8] {
        self.private_data.as_slice()
    }

    pub(crate) fn peer(&self) -> String {
        match getsockopt(&self.socket, PeerCredentials) {
            Ok(peer) => format!("process {} of user {}", peer.pid(), peer.uid()),
            Err(_) => "unknown process".into(),
        }
    }

    pub(crate) fn accept(self, queue: &mut SendQueue, private_data: &[u8]) -> Result<()> {
        let private_data = PrivateData::new(private_data, MAX_ACCEPT_DATA)?;
        if queue.state() != State::Init {
            return Err(Error::InvalidArgument("queue pair was connected before"));
        }
        let answer = Message::new(ACCEPT, queue.core().ring(), &private_data);
        send_message(&self.socket, &answer, Some(queue.arena().file()))?;
        queue.set_link(self.link, Side::Acceptor);
        queue.core().connected(self.socket)
    }

    pub(crate) fn reject(self, private_data: &[u8]) -> Result<()> {
        let private_data = PrivateData::new(private_data, MAX_REJECT_DATA)?;
        send_message(&self.socket, &Message::new(REJECT, (0, 0), &private_data), None)
    }
}
