//! Acceptances that connectors have not read. The kernel counts the descriptor in each for the user
//! of this process. When as many are under way as a process may have open (`RLIMIT_NOFILE`), no
//! process of that user can pass any more (`ETOOMANYREFS`, `unix(7)`): neither this one, nor an
//! executor.
//!
//! BOUNDED: closing the connection takes nothing back. Only the connector can, by reading or by
//! closing its end. So the socket of a connection that ends unread is kept, to see when that
//! happens. A further connector of a user with too many unread acceptances is turned away, whether
//! their connections live or have ended.
//!
//! The socket says what is read: then nothing is left in it (`SIOCOUTQ`). A byte that woke a peer
//! and that it has not taken yet looks the same, and counts a little longer. A connection that was
//! once seen read is not checked again.

#![allow(unsafe_code)]

use std::net::Shutdown;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::closer::{ClosedLater, Closing, Descriptor, check_later};
use crate::types::Peer;

/// Unread acceptances of one user's connectors. Ours read theirs at once, so few are.
const MOST_OF_USER: usize = 64;
/// Most unread acceptances of all users: a fourth of the descriptors that a process has by default.
/// A user of whom there is none is let in also then.
const MOST: usize = 256;

/// Pause before it is checked again whether a user with too many has read some: a check costs a
/// system call for each.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Acceptances that had not been read at the last check.
#[derive(Debug, Default)]
struct Unread {
    /// Of connections that have ended.
    ended: Vec<(Peer, ClosedLater<UnixStream>)>,
    /// Of connections that have not, or that had been read then.
    live: Vec<(Peer, Weak<UnixStream>)>,
    /// Users with too many, and when that was.
    full: Vec<(Peer, Instant)>,
}

static UNREAD: Mutex<Unread> =
    Mutex::new(Unread { ended: Vec::new(), live: Vec::new(), full: Vec::new() });

fn unread() -> MutexGuard<'static, Unread> {
    UNREAD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Unread {
    fn len(&self) -> usize {
        self.ended.len() + self.live.len()
    }

    /// Lets go of what was read meanwhile.
    fn forget_read(&mut self) {
        self.ended.retain(|(_, socket)| is_unread(socket));
        self.live.retain(|(_, socket)| socket.upgrade().is_some_and(|socket| is_unread(&socket)));
    }

    fn is_full(&self, peer: Peer) -> bool {
        let users = self.ended.iter().map(|(user, _)| user);
        let users = users.chain(self.live.iter().map(|(user, _)| user));
        let of_user = users.filter(|user| **user == peer).count();
        of_user >= MOST_OF_USER || (of_user > 0 && self.len() >= MOST)
    }
}

/// The socket of a connection.
#[derive(Debug)]
pub(super) struct Connected {
    /// Shared only while [`UNREAD`] is checked.
    socket: Arc<UnixStream>,
    /// Whom an acceptance is sent to.
    accepted: Option<Peer>,
}

impl Connected {
    /// A connection to a listener, which has answered.
    pub(super) fn to_listener(socket: UnixStream) -> Self {
        Connected { socket: Arc::new(socket), accepted: None }
    }

    /// A connection of `peer`, which an acceptance is sent to.
    pub(super) fn of_connector(socket: UnixStream, peer: Peer) -> Self {
        Connected { socket: Arc::new(socket), accepted: Some(peer) }
    }

    /// The acceptance was sent: from now on it counts (BOUNDED).
    pub(super) fn is_accepted(&self) {
        if let Some(peer) = self.accepted {
            unread().live.push((peer, Arc::downgrade(&self.socket)));
            check_later(forget_read);
        }
    }
}

impl Deref for Connected {
    type Target = UnixStream;

    #[inline]
    fn deref(&self) -> &UnixStream {
        &self.socket
    }
}

impl AsFd for Connected {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Descriptor for Connected {
    fn end(self) -> Option<Closing> {
        let mut unread = unread();
        let socket = Arc::into_inner(self.socket).expect("nobody else looks at it now");
        match self.accepted {
            Some(peer) if is_unread(&socket) => {
                let _ = socket.shutdown(Shutdown::Both); // ENOTCONN: the peer was faster
                unread.live.retain(|(_, socket)| socket.strong_count() > 0); // this one counts once
                unread.ended.push((peer, socket.into())); // BOUNDED
                drop(unread);
                check_later(forget_read);
                None
            }
            _ => {
                drop(unread);
                socket.end()
            }
        }
    }
}

/// Whether a connector of `peer` is to be turned away (BOUNDED).
pub(super) fn is_full(peer: Peer, now: Instant) -> bool {
    let mut unread = unread();
    if !unread.is_full(peer) {
        return false;
    }
    unread.full.retain(|(_, since)| now.saturating_duration_since(*since) < LOOK_AGAIN);
    if unread.full.iter().any(|(user, _)| *user == peer) {
        return true;
    }
    unread.forget_read();
    let full = unread.is_full(peer);
    if full {
        unread.full.push((peer, now));
    }
    full
}

/// Whether there are so many that some user may have too many.
pub(super) fn may_be_full() -> bool {
    unread().len() >= MOST_OF_USER
}

/// Lets go of what was read meanwhile; whether there is more.
fn forget_read() -> bool {
    let mut unread = unread();
    unread.forget_read();
    unread.len() > 0
}

/// Whether the peer has not read everything that was sent.
fn is_unread(socket: &UnixStream) -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (`unix(7)`), which has this number, stores one integer there.
    let told = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    told == 0 && bytes > 0
}
