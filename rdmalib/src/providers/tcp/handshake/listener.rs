//! The listener: takes connectors, reads their requests, and forgets those that send none.
//!
//! One call handles at most [`EVENTS`] events, so its caller has its turn whatever connectors do.
//! Connectors without a request have a bound, in all and for each address, and make room for
//! others.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv};

use super::super::carrier::Carrier;
use super::super::protocol::Terms;
use super::message::{GREETING, Kind, MOST, Message};
use super::socket::prepare;
use crate::contract;
use crate::events::readable_before;
use crate::types::{Error, Peer, PrivateData, Result};
use crate::waiting::WaitingList;

/// A connector that has not sent its request for so long is forgotten.
const HALF_OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Most connectors without a request. Ours send it when they connect, so there are few; and each
/// costs a descriptor, of which a process has 1,024 by default.
const MAX_HALF_OPEN: usize = 256;
/// Most of one address.
const MAX_HALF_OPEN_OF_ADDRESS: usize = 64;
/// Connectors and messages that one call handles.
const EVENTS: usize = 64;
const LISTENER: u64 = u64::MAX;
/// What a rejection says of terms: nothing.
const NO_TERMS: Terms = Terms { send_depth: 0, patience: None };

/// A connector that has not sent its whole request.
#[derive(Debug)]
struct HalfOpen {
    socket: TcpStream,
    from: SocketAddr,
    since: Instant,
    bytes: [u8; MOST],
    filled: usize,
}

/// Waits for connectors at one address.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    epoll: Epoll,
    half_open: HashMap<u64, HalfOpen>,
    /// The same, in the order in which they came.
    waiting: WaitingList<u64>,
    next_id: u64,
}

impl Listener {
    pub(in super::super) fn new(addr: SocketAddr) -> Result<Self> {
        let socket = TcpListener::bind(addr).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::AddressInUse(addr),
            _ => Error::os("bind", error),
        })?;
        let addr = socket.local_addr().map_err(|e| Error::os("getsockname", e))?;
        socket.set_nonblocking(true).map_err(|e| Error::os("fcntl", e))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|e| Error::os("epoll_create1", e))?;
        epoll
            .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))
            .map_err(|e| Error::os("epoll_ctl", e))?;
        let waiting = WaitingList::new(MAX_HALF_OPEN_OF_ADDRESS, MAX_HALF_OPEN);
        Ok(Listener { socket, addr, epoll, half_open: HashMap::new(), waiting, next_id: 0 })
    }
}

impl contract::Listener for Listener {
    type ConnectRequest = ConnectRequest;

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    fn next(&mut self, timeout: Duration) -> Result<Option<ConnectRequest>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(request) = self.try_next()? {
                return Ok(Some(request));
            }
            // Those that say nothing are forgotten in time, also when nobody else comes.
            let oldest = self.waiting.oldest().and_then(|id| self.half_open.get(&id));
            let late = oldest.map_or(deadline, |half| half.since + HALF_OPEN_LIMIT);
            if !readable_before(self.as_fd(), deadline.min(late))? && Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    fn try_next(&mut self) -> Result<Option<ConnectRequest>> {
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
                id => self.hear(id),
            };
            if heard.is_some() {
                return Ok(heard);
            }
        }
        Ok(None)
    }
}

impl Listener {
    /// Takes the next connector; most have sent their request already.
    fn take_connector(&mut self, now: Instant) -> Result<Option<ConnectRequest>> {
        let (socket, from) = match self.socket.accept() {
            Ok(accepted) => accepted,
            Err(error) => return self.not_accepted(error).map(|()| None),
        };
        socket.set_nonblocking(true).map_err(|e| Error::os("fcntl", e))?;
        if let Err(error) = prepare(&socket) {
            tracing::debug!(%error, "a connector has gone");
            return Ok(None);
        }
        let mut half = HalfOpen { socket, from, since: now, bytes: [0; MOST], filled: 0 };
        match half.hear() {
            Heard::Request => return Ok(half.request()),
            Heard::Gone => return Ok(None),
            Heard::Nothing => {}
        }
        let id = self.next_id;
        self.next_id += 1;
        self.epoll
            .add(&half.socket, EpollEvent::new(EpollFlags::EPOLLIN, id))
            .map_err(|e| Error::os("epoll_ctl", e))?;
        if let Some(oldest) = self.waiting.add(id, Peer::Address(from.ip())) {
            self.turn_away(oldest);
        }
        self.half_open.insert(id, half);
        Ok(None)
    }

    /// Reads what a connector has sent.
    fn hear(&mut self, id: u64) -> Option<ConnectRequest> {
        let heard = self.half_open.get_mut(&id)?.hear();
        match heard {
            Heard::Nothing => None,
            Heard::Gone => {
                self.forget(id);
                None
            }
            Heard::Request => self.forget(id)?.request(),
        }
    }

    /// What is wrong with this listener, if something is.
    fn not_accepted(&mut self, error: io::Error) -> Result<()> {
        use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        if matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock) {
            return Ok(());
        }
        match (Error::os("accept", error), self.waiting.oldest()) {
            (Error::OutOfDescriptors { .. }, Some(oldest)) => {
                self.turn_away(oldest); // it has waited longest without a request
                Ok(())
            }
            (error, _) => Err(error),
        }
    }

    fn forget_late(&mut self, now: Instant) {
        while let Some(oldest) = self.waiting.oldest() {
            let is_late = |half: &HalfOpen| now.duration_since(half.since) >= HALF_OPEN_LIMIT;
            if !self.half_open.get(&oldest).is_none_or(is_late) {
                return;
            }
            self.forget(oldest);
        }
    }

    /// Takes a connector out of those that are waited for.
    fn forget(&mut self, id: u64) -> Option<HalfOpen> {
        self.waiting.remove(id);
        let half = self.half_open.remove(&id)?;
        let _ = self.epoll.delete(&half.socket);
        Some(half)
    }

    /// Closes it, and tells it why.
    fn turn_away(&mut self, id: u64) {
        if let Some(mut half) = self.forget(id) {
            let _ = half.socket.write(&Message::bytes(Kind::Crowded, NO_TERMS, &[]));
        }
    }
}

/// What a connector has sent.
enum Heard {
    /// All of its request.
    Request,
    /// Not all of it so far.
    Nothing,
    /// It has gone, or has to: it is no request.
    Gone,
}

impl HalfOpen {
    /// Reads what there is, and no more than a request.
    fn hear(&mut self) -> Heard {
        loop {
            let expected = match self.expected() {
                Ok(expected) => expected,
                Err(error) => {
                    tracing::debug!(%error, peer = %self.from, "connector dropped");
                    return Heard::Gone;
                }
            };
            if self.filled == expected {
                return Heard::Request;
            }
            match self.socket.read(&mut self.bytes[self.filled..expected]) {
                Ok(0) => return Heard::Gone,
                Ok(bytes) => self.filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Heard::Gone,
            }
        }
    }

    /// How many bytes its request has, as far as that is known.
    fn expected(&self) -> Result<usize> {
        if !Message::may_begin(&self.bytes[..self.filled]) {
            return Err(Error::Protocol("it does not begin as a request"));
        }
        let Some(greeting) = self.bytes[..self.filled].first_chunk::<GREETING>() else {
            return Ok(GREETING);
        };
        let message = Message::read(greeting)?;
        if message.kind != Kind::Request {
            return Err(Error::Protocol("not a connection request"));
        }
        Ok(GREETING + message.data_bytes)
    }

    /// The request, which is complete.
    fn request(self) -> Option<ConnectRequest> {
        let terms = Message::read(self.bytes.first_chunk()?).ok()?.terms;
        let private_data = PrivateData::new(&self.bytes[GREETING..self.filled], MOST).ok()?;
        Some(ConnectRequest { socket: self.socket, from: self.from, terms, private_data })
    }
}

/// A connector that waits for an answer.
pub(crate) struct ConnectRequest {
    socket: TcpStream,
    from: SocketAddr,
    terms: Terms,
    private_data: PrivateData,
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectRequest({})", self.from)
    }
}

impl ConnectRequest {
    /// Connects it. Returns the connection, its terms, and who it is.
    pub(in super::super) fn accept(
        mut self,
        terms: Terms,
        private_data: &PrivateData,
    ) -> Result<(Carrier, Terms, String)> {
        // Nothing comes before the answer: what is there is the end, or a peer that breaks the rule.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        match recv(self.socket.as_raw_fd(), &mut [0], flags) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => return Err(Error::Disconnected),
        }
        let answer = Message::bytes(Kind::Accept, terms, private_data.as_slice());
        self.socket.write_all(&answer).map_err(|_| Error::Disconnected)?; // the buffer is empty
        let carrier = Carrier::new(self.socket).map_err(|e| Error::os("fcntl", e))?;
        Ok((carrier, self.terms, self.from.to_string()))
    }
}

impl contract::ConnectRequest for ConnectRequest {
    fn private_data(&self) -> &[u8] {
        self.private_data.as_slice()
    }

    fn peer(&self) -> String {
        self.from.to_string()
    }

    fn origin(&self) -> Peer {
        Peer::Address(self.from.ip())
    }

    fn reject(mut self, private_data: &PrivateData) -> Result<()> {
        let answer = Message::bytes(Kind::Reject, NO_TERMS, private_data.as_slice());
        self.socket.write_all(&answer).map_err(|_| Error::Disconnected)
    }
}
