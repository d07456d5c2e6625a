//! How two processes of one host meet: an abstract Unix socket named after the address, one message
//! each way with the descriptor of the sender's domain, then the socket stays as doorbell and as the
//! sign of life: the kernel closes it when its process ends, however it ends.
//!
//! Abstract sockets (`unix(7)`) leave no file behind and belong to a network namespace, as addresses
//! do. They have no permissions: as with TCP on localhost, any local user may connect, and what a
//! peer says is checked before it is believed.
//!
//! * FAIR - a call looks at so many events ([`EVENTS`]), not for as long as there are any; connectors that have
//!   not said what they want have a bound, in all and for each user, and make room for others.
//! * ELSEWHERE - what a peer may have passed is closed by other threads (`closer`), and what it passes beside its
//!   memory is not taken.
//! * CAUSE - who is turned away is told by what, if it still listens.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::sockopt::{PeerCredentials, SendTimeout};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, recv, sendmsg, setsockopt};
use nix::sys::time::TimeVal;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::MAX_QUEUE_DEPTH;
use super::closer::ClosedLater;
use super::one_sided::Link;
use super::peer_arena::{PeerArena, PeerFile};
use super::queue_pair::SendQueue;
use super::received::{look, refuse_descriptors};
use super::ring::{ArrivalPusher, Side, words_needed};
use crate::connection::{MAX_ACCEPT_DATA, MAX_CONNECT_DATA, MAX_REJECT_DATA, PrivateData};
use crate::error::{Error, Result};
use crate::events::readable_before;
use crate::queue_pair::State;
use crate::waiting::{Peer, WaitingList};

/// First words of every message: name and version of this handshake.
const MAGIC: u64 = u64::from_le_bytes(*b"rdmashm3");
/// Prefix of the socket's name.
const NAME: &str = "rdmalib-shm";
/// A connector that has not said what it wants by then is forgotten.
const HALF_OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Connectors that are waited for at once. Ours send their request together with connecting, so few are; and
/// each costs a descriptor, of which a process has 1,024 unless told otherwise.
const MAX_HALF_OPEN: usize = 256;
/// Likewise, of one user.
const MAX_HALF_OPEN_OF_USER: usize = 64;
/// Connectors and messages looked at in one call, before its caller has its turn: some 0.2 ms.
const EVENTS: usize = 64;
/// Where ephemeral ports are taken from (RFC 6335, section 6).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49152..=65535;
const LISTENER: u64 = u64::MAX;
/// More than a peer that follows the protocol has to say before it is connected: a few times that it wakes us.
const EARLY_BYTES: usize = 64;
const TOO_MANY_FILES: Error = Error::Protocol("the peer passes more than its memory");

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
/// Turned away by the listener itself: others came later, and there is no more room.
const CROWDED: u32 = 4;
/// Likewise: it has no descriptor or address space left.
const EXHAUSTED: u32 = 5;

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
fn receive_message(socket: &UnixStream) -> Result<Option<(Message, Option<ClosedLater<OwnedFd>>)>> {
    let mut bytes = [0; size_of::<Message>()];
    let received = match look(socket, &mut bytes) {
        Ok(received) => received,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(Errno::ECONNRESET) => return Err(Error::Disconnected),
        Err(errno) => return Err(Error::os("recvmsg", errno)),
    };
    match received.bytes {
        0 => return Err(Error::Disconnected),
        n if n != size_of::<Message>() => return Err(Error::Protocol("handshake of a wrong size")),
        _ => {}
    }
    let message = Message::read_from_bytes(&bytes).expect("the buffer has the message's size");
    if message.magic != MAGIC {
        return Err(Error::Protocol("the peer is another program or version"));
    }
    if received.files.len() > 1 {
        return Err(TOO_MANY_FILES);
    }
    let file = received.files.into_iter().next();
    match (&file, received.cut) {
        (None, true) => return Err(Error::os("recvmsg", Errno::EMFILE)), // there is room for two, so that is why
        (Some(_), true) => return Err(TOO_MANY_FILES),
        _ => {}
    }
    // LOOKED AT: the same bytes, and we have the file.
    let taken = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
    taken.map_err(|e| Error::os("recv", e))?;
    expect_no_files(socket)?;
    Ok(Some((message, file)))
}

/// From now on the peer passes no descriptors, and has not passed any with what it has sent already: reading what
/// wakes us would close them there and then.
fn expect_no_files(socket: &UnixStream) -> Result<()> {
    refuse_descriptors(socket);
    let mut bytes = [0; EARLY_BYTES];
    match look(socket, &mut bytes) {
        Ok(early) if !early.files.is_empty() || early.cut => Err(TOO_MANY_FILES),
        Ok(early) if early.bytes == bytes.len() => {
            Err(Error::Protocol("the peer does not wait for us"))
        }
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNRESET) => Ok(()), // its end is noticed later
        Err(errno) => Err(Error::os("recvmsg", errno)),
    }
}

/// Whose process is at the other end.
fn origin(socket: &UnixStream) -> Peer {
    getsockopt(socket, PeerCredentials).map_or(Peer::Unknown, |peer| Peer::User(peer.uid()))
}

/// The way to the peer at the other end of `socket`, which sent `message`.
fn link(
    message: &Message,
    file: Option<ClosedLater<OwnedFd>>,
    socket: &UnixStream,
) -> Result<Link> {
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

impl SendQueue {
    /// Connects to the listener at `to`; see [`QueuePair::connect`](crate::QueuePair::connect).
    pub(crate) fn connect(
        &mut self,
        to: SocketAddr,
        listener: Option<u32>,
        private_data: &PrivateData,
        timeout: Duration,
    ) -> Result<PrivateData> {
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
        let request = Message::new(CONNECT, self.core().ring(), private_data);
        send_message(&socket, &request, Some(self.arena().file())).map_err(|e| dropped(e, to))?;
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
                self.set_link(link(&answer, file, &socket)?, Side::Connector);
                self.core().connected(socket)?;
                Ok(private_data)
            }
            REJECT => Err(Error::Rejected { private_data: answer.private_data(MAX_REJECT_DATA)? }),
            CROWDED => Err(Error::TooManyConnections(to)),
            EXHAUSTED => Err(Error::ListenerExhausted(to)),
            _ => Err(Error::Protocol("unknown answer to a connection request")),
        }
    }
}

/// CAUSE. That somebody listened is known: nobody does is another error.
fn dropped(error: Error, to: SocketAddr) -> Error {
    match error {
        Error::Disconnected => Error::ConnectionDropped(to),
        other => other,
    }
}

/// `None`: the listener's queue was full until the deadline.
fn open_socket(to: SocketAddr, deadline: Instant) -> Result<Option<ClosedLater<UnixStream>>> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let name = format!("{NAME}/{to}");
    let address =
        UnixAddr::new_abstract(name.as_bytes()).map_err(|e| Error::os("socket name", e))?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| Error::os("socket", e))?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // In the kernel's queue, in which who came first is first; zero would be for ever.
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

/// Waits for connectors at one address.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    addr: SocketAddr,
    epoll: Epoll,
    /// Connectors that have not said what they want, and since when.
    half_open: HashMap<u64, (ClosedLater<UnixStream>, Instant)>,
    /// The same, in the order in which they came.
    waiting: WaitingList<u64>,
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
        let (half_open, waiting) =
            (HashMap::new(), WaitingList::new(MAX_HALF_OPEN_OF_USER, MAX_HALF_OPEN));
        Ok(Listener { socket, addr, epoll, half_open, waiting, next_id: 0 })
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

    /// FAIR. `None`: there is none now, or it is the caller's turn; then the descriptor stays readable.
    pub(crate) fn try_next(&mut self) -> Result<Option<ConnectRequest>> {
        let now = Instant::now();
        self.forget_late(now);
        for _ in 0..EVENTS {
            let mut events = [EpollEvent::empty()];
            let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(Error::os("epoll_wait", errno)),
            };
            let Some(event) = events[..count].first() else { return Ok(None) };
            let heard = match event.data() {
                LISTENER => self.take_connector(now)?,
                id => match self.forget(id).map(hear) {
                    Some(Heard::Request(request)) => Some(request),
                    Some(Heard::Failed(error)) => return Err(error),
                    Some(Heard::Nothing(_) | Heard::Gone) | None => None, // its descriptor was readable
                },
            };
            if let Some(request) = heard {
                return Ok(Some(*request));
            }
        }
        Ok(None)
    }

    /// Takes the next connector; most have sent their request already.
    fn take_connector(&mut self, now: Instant) -> Result<Option<Box<ConnectRequest>>> {
        let socket = match self.socket.accept() {
            Ok((socket, _)) => ClosedLater::from(socket),
            Err(e) => return self.not_accepted(e).map(|()| None),
        };
        socket.set_nonblocking(true).map_err(|e| Error::os("fcntl", e))?;
        let socket = match hear(socket) {
            Heard::Request(request) => return Ok(Some(request)),
            Heard::Nothing(socket) => socket,
            Heard::Gone => return Ok(None),
            Heard::Failed(error) => return Err(error),
        };
        let id = self.next_id;
        self.next_id += 1;
        self.epoll
            .add(&*socket, EpollEvent::new(EpollFlags::EPOLLIN, id))
            .map_err(|e| Error::os("epoll_ctl", e))?;
        if let Some(oldest) = self.waiting.add(id, origin(&socket)) {
            self.turn_away(oldest);
        }
        self.half_open.insert(id, (socket, now));
        Ok(None)
    }

    /// What is wrong with this listener, if something is.
    fn not_accepted(&mut self, error: io::Error) -> Result<()> {
        use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        if matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock) {
            return Ok(());
        }
        match (Error::os("accept", error), self.waiting.oldest()) {
            (Error::OutOfDescriptors { .. }, Some(oldest)) => {
                self.turn_away(oldest); // who has waited without a word has had its time
                Ok(())
            }
            (error, _) => Err(error),
        }
    }

    fn forget_late(&mut self, now: Instant) {
        while let Some(oldest) = self.waiting.oldest() {
            let late =
                |(_, since): &(ClosedLater<UnixStream>, Instant)| now - *since >= HALF_OPEN_LIMIT;
            if !self.half_open.get(&oldest).is_none_or(late) {
                return;
            }
            self.forget(oldest);
        }
    }

    /// Takes a connector out of those that are waited for.
    fn forget(&mut self, id: u64) -> Option<ClosedLater<UnixStream>> {
        self.waiting.remove(id);
        let (socket, _) = self.half_open.remove(&id)?;
        let _ = self.epoll.delete(&*socket);
        Some(socket)
    }

    /// CAUSE.
    fn turn_away(&mut self, id: u64) {
        if let Some(socket) = self.forget(id) {
            tell(&socket, CROWDED);
        }
    }
}

/// What a connector has said.
enum Heard {
    Request(Box<ConnectRequest>),
    /// Nothing so far.
    Nothing(ClosedLater<UnixStream>),
    /// It has gone, or has to: it was no request, or one that cannot be answered.
    Gone,
    /// This process has no descriptor left for the memory that comes with a request.
    Failed(Error),
}

fn hear(socket: ClosedLater<UnixStream>) -> Heard {
    let request = match receive_message(&socket) {
        Ok(None) => return Heard::Nothing(socket),
        Ok(Some((message, file))) => check_request(&message, file, &socket),
        Err(error) => Err(error),
    };
    match request {
        Ok((private_data, link)) => {
            Heard::Request(Box::new(ConnectRequest { socket, link, private_data }))
        }
        Err(error) => {
            if let Error::OutOfDescriptors { .. } | Error::OutOfAddresses { .. } = error {
                tell(&socket, EXHAUSTED); // CAUSE
            }
            if let Error::OutOfDescriptors { .. } = error {
                return Heard::Failed(error);
            }
            tracing::debug!(%error, "connector dropped");
            Heard::Gone
        }
    }
}

/// Tells a connector why it is dropped, if it can still be told.
fn tell(socket: &UnixStream, kind: u32) {
    let answer = Message::new(kind, (0, 0), &PrivateData::nothing());
    if let Err(error) = send_message(socket, &answer, None) {
        tracing::debug!(%error, "a connector that was dropped could not be told why");
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
    message: &Message,
    file: Option<ClosedLater<OwnedFd>>,
    socket: &UnixStream,
) -> Result<(PrivateData, Link)> {
    if message.kind != CONNECT {
        return Err(Error::Protocol("not a connection request"));
    }
    let private_data = message.private_data(MAX_CONNECT_DATA)?;
    Ok((private_data, link(message, file, socket)?))
}

/// Who is at the other end of `socket`.
pub(super) fn peer_of(socket: &UnixStream) -> String {
    match getsockopt(socket, PeerCredentials) {
        Ok(peer) => format!("process {} of user {}", peer.pid(), peer.uid()),
        Err(_) => "unknown process".into(),
    }
}

/// A connector that waits for an answer.
#[derive(Debug)]
pub(crate) struct ConnectRequest {
    socket: ClosedLater<UnixStream>,
    link: Link,
    private_data: PrivateData,
}

impl ConnectRequest {
    pub(crate) fn private_data(&self) -> &[u8] {
        self.private_data.as_slice()
    }

    pub(crate) fn peer(&self) -> String {
        peer_of(&self.socket)
    }

    pub(crate) fn origin(&self) -> Peer {
        origin(&self.socket)
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
