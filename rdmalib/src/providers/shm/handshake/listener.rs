//! The listener: takes connectors, reads their requests, and forgets those that send none.
//!
//! One call handles at most [`EVENTS`] events, so its caller has its turn whatever connectors do.
//! Connectors without a request have a bound, in all and for each user, and make room for others. A
//! connector that is turned away is told why, if it still listens.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::super::closer::{ClosedLater, Passed};
use super::super::link::Link;
use super::super::peer::{origin, peer_of};
use super::super::unread;
use super::message::{CONNECT, CROWDED, EXHAUSTED, Message, receive_message, send_message};
use super::names::bind;
use super::request::ConnectRequest;
use crate::contract;
use crate::events::readable_before;
use crate::types::{Error, MAX_CONNECT_DATA, PrivateData, Result};
use crate::waiting::WaitingList;

/// A connector that has sent no request for so long is forgotten.
const HALF_OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Most connectors without a request. Ours send it when they connect, so there are few; and each
/// costs a descriptor, of which a process has 1,024 by default.
const MAX_HALF_OPEN: usize = 256;
/// Most of one user.
const MAX_HALF_OPEN_OF_USER: usize = 64;
/// Connectors and messages that one call handles: some 0.2 ms.
const EVENTS: usize = 64;
const LISTENER: u64 = u64::MAX;

/// Waits for connectors at one address.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    addr: SocketAddr,
    epoll: Epoll,
    /// Connectors that have sent no request, and since when.
    half_open: HashMap<u64, (ClosedLater<UnixStream>, Instant)>,
    /// The same, in the order in which they came.
    waiting: WaitingList<u64>,
    next_id: u64,
}

impl Listener {
    pub(in super::super) fn new(addr: SocketAddr) -> Result<Self> {
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
            if !readable_before(self.as_fd(), deadline)? {
                return Ok(None);
            }
        }
    }

    /// `None`: there is no request now, or it is the caller's turn; then the descriptor stays
    /// readable.
    fn try_next(&mut self) -> Result<Option<ConnectRequest>> {
        let now = Instant::now();
        self.forget_late(now);
        let mut yielded = false;
        for _ in 0..EVENTS {
            let mut events = [EpollEvent::empty()];
            let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(Error::os("epoll_wait", errno)),
            };
            let Some(event) = events[..count].first() else { return Ok(None) };
            let heard = match event.data() {
                LISTENER => self.take_connector(now, &mut yielded)?,
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
}

impl Listener {
    /// Takes the next connector; most have sent their request already.
    /// `yielded`: other processes had their turn, which is enough in one call.
    fn take_connector(
        &mut self,
        now: Instant,
        yielded: &mut bool,
    ) -> Result<Option<Box<ConnectRequest>>> {
        let socket = match self.socket.accept() {
            Ok((socket, _)) => ClosedLater::from(socket),
            Err(e) => return self.not_accepted(e).map(|()| None),
        };
        socket.set_nonblocking(true).map_err(|e| Error::os("fcntl", e))?;
        if unread::may_be_full() && unread::is_full(origin(&socket), now) {
            let peer = peer_of(&socket);
            tracing::warn!(peer, "turned away: its user's processes do not read acceptances");
            tell(&socket, CROWDED);
            return Ok(None);
        }
        let heard = match hear(socket) {
            // One that is about to send its request, and was kept from it by this process, does so now.
            Heard::Nothing(socket) if !*yielded => {
                *yielded = true;
                thread::yield_now();
                hear(socket)
            }
            heard => heard,
        };
        let socket = match heard {
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
                self.turn_away(oldest); // it has waited longest without a request
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

    /// Tells a connector why it is turned away.
    fn turn_away(&mut self, id: u64) {
        if let Some(socket) = self.forget(id) {
            tell(&socket, CROWDED);
        }
    }
}

/// What a connector has sent.
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
            Heard::Request(Box::new(ConnectRequest::new(socket, link, private_data)))
        }
        Err(error) => {
            if let Error::OutOfDescriptors { .. } | Error::OutOfAddresses { .. } = error {
                tell(&socket, EXHAUSTED);
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

fn check_request(
    message: &Message,
    file: Option<ClosedLater<Passed>>,
    socket: &UnixStream,
) -> Result<(PrivateData, Link)> {
    if message.kind != CONNECT {
        return Err(Error::Protocol("not a connection request"));
    }
    let private_data = message.private_data(MAX_CONNECT_DATA)?;
    Ok((private_data, message.link(file, socket)?))
}
