//! What every connection has: small messages are not delayed, and a peer that has gone silent is
//! given up.

use std::net::TcpStream;

use nix::sys::socket::{setsockopt, sockopt};

use crate::types::{Error, Result};

/// How long the kernel tries to send what the peer does not acknowledge, in milliseconds.
const USER_TIMEOUT_MS: u32 = 2000;
/// Seconds of silence after which the kernel asks whether the peer is there, and between questions.
const KEEPALIVE_SECONDS: u32 = 1;
/// Questions without an answer after which it is not.
const KEEPALIVE_QUESTIONS: u32 = 2;

/// Sets that.
pub(super) fn prepare(socket: &TcpStream) -> Result<()> {
    let failed = |e| Error::os("setsockopt", e);
    socket.set_nodelay(true).map_err(|e| Error::os("setsockopt", e))?;
    setsockopt(socket, sockopt::TcpUserTimeout, &USER_TIMEOUT_MS).map_err(failed)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS).map_err(failed)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &KEEPALIVE_SECONDS).map_err(failed)?;
    setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE_QUESTIONS).map_err(failed)?;
    setsockopt(socket, sockopt::KeepAlive, &true).map_err(failed)
}
