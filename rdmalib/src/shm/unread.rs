//! Acceptances that connectors have not read. The kernel counts the descriptor in each for the user of this process,
//! and when as many are under way as a process may have open (`RLIMIT_NOFILE`), no process of that user can pass any
//! more (`ETOOMANYREFS`, `unix(7)`): neither this one, nor an executor.
//!
//! * BOUNDED - closing the connection takes nothing back: only that the connector reads, or closes
//!   its end. So the socket of a connection that ends unread is kept, to see when that is, and
//!   further connectors of a user who has left so many unread are turned away. Connections that
//!   have not ended come on top; their number is their owner's to bound.
//!
//! What is read is known from the socket, in which nothing is left then (`SIOCOUTQ`). A byte that was to wake a
//! peer, and which that has not taken yet, looks the same: then the socket is kept a little longer.

#![allow(unsafe_code)]

use std::net::Shutdown;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::closer::{ClosedLater, Closing, Descriptor, look_for_unread};
use crate::waiting::Peer;

/// Unread acceptances of one user's connectors. Ours read theirs at once, so few are.
const MOST_OF_USER: usize = 64;
/// Of all users: a fourth of the descriptors that a process has unless told otherwise. A user of whom there is
/// none is let in also then.
const MOST: usize = 256;

static KEPT: Mutex<Vec<(Peer, ClosedLater<UnixStream>)>> = Mutex::new(Vec::new());

fn kept() -> MutexGuard<'static, Vec<(Peer, ClosedLater<UnixStream>)>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The socket of a connection.
#[derive(Debug)]
pub(super) struct Connected {
    socket: UnixStream,
    /// Whom an acceptance was sent to.
    accepted: Option<Peer>,
}

impl Connected {
    /// A connection to a listener, which has answered.
    pub(super) fn to_listener(socket: UnixStream) -> Self {
        Connected { socket, accepted: None }
    }

    /// A connection of `peer`, which an acceptance is sent to.
    pub(super) fn of_connector(socket: UnixStream, peer: Peer) -> Self {
        Connected { socket, accepted: Some(peer) }
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
        match self.accepted {
            Some(peer) if is_unread(&self.socket) => {
                let _ = self.socket.shutdown(Shutdown::Both); // ENOTCONN: the peer was faster
                kept().push((peer, self.socket.into())); // BOUNDED
                look_for_unread();
                None
            }
            _ => self.socket.end(),
        }
    }
}

/// Whether a connector of `peer` is to be turned away (BOUNDED).
pub(super) fn is_full(peer: Peer) -> bool {
    let full = || {
        let kept = kept();
        let of_user = kept.iter().filter(|(user, _)| *user == peer).count();
        of_user >= MOST_OF_USER || (of_user > 0 && kept.len() >= MOST)
    };
    full() && {
        forget_read();
        full()
    }
}

/// Whether anybody may have to be turned away.
pub(super) fn are_many() -> bool {
    kept().len() >= MOST_OF_USER
}

/// Lets go of what was read meanwhile; whether there is more.
pub(super) fn forget_read() -> bool {
    let mut kept = kept();
    kept.retain(|(_, socket)| is_unread(socket));
    !kept.is_empty()
}

/// Whether the peer has not read everything that was sent.
fn is_unread(socket: &UnixStream) -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (`unix(7)`), which has this number, stores one integer there.
    let told = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    told == 0 && bytes > 0
}
