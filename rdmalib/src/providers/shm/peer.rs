//! Who is at the other end of a socket: the kernel says so, and the peer cannot choose.

use std::os::unix::net::UnixStream;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use crate::types::Peer;

/// Returns the user whose process is at the other end of `socket`.
pub(super) fn origin(socket: &UnixStream) -> Peer {
    getsockopt(socket, PeerCredentials).map_or(Peer::Unknown, |peer| Peer::User(peer.uid()))
}

/// Returns process and user at the other end of `socket`, for logs.
pub(super) fn peer_of(socket: &UnixStream) -> String {
    match getsockopt(socket, PeerCredentials) {
        Ok(peer) => format!("process {} of user {}", peer.pid(), peer.uid()),
        Err(_) => "unknown process".into(),
    }
}
