//! How two ends meet over TCP.
//!
//! ```text
//!   connector ── Request (terms, private data) ──▶ listener ──▶ the application
//!             ◀─ Accept (terms, private data), Reject (private data), Crowded
//!             ◀═ frames ═▶                                      (`protocol`)
//! ```
//! Until a request is complete, a peer has a socket and 88 bytes here, for a limited time, and there
//! is a bound of such peers, in all and for each address. What begins otherwise than a request is
//! closed at once. A proof that the peer knows a secret belongs before the request is handed out:
//! `Challenge` and `Proof` are set aside for it, and a request says in `proof` which one it can give
//! (0: none).
//!
//! Elsewhere: the messages (`message`), the listener (`listener`), connecting (`connector`).

mod connector;
mod listener;
mod message;

pub(super) use self::connector::connect_to;
pub(crate) use self::listener::{ConnectRequest, Listener};

use std::net::TcpStream;

use nix::sys::socket::{setsockopt, sockopt};

use crate::types::{Error, Result};

/// How long the kernel tries to send what the peer does not acknowledge, in milliseconds.
const USER_TIMEOUT_MS: u32 = 2000;
/// Seconds of silence after which the kernel asks whether the peer is there, and between questions.
const KEEPALIVE_SECONDS: u32 = 1;
/// Questions without an answer after which it is not.
const KEEPALIVE_QUESTIONS: u32 = 2;

/// Sets what every connection has: small messages are not delayed, and a peer that has gone silent
/// is given up.
fn prepare(socket: &TcpStream) -> Result<()> {
    let failed = |e| Error::os("setsockopt", e);
    socket.set_nodelay(true).map_err(|e| Error::os("setsockopt", e))?;
    setsockopt(socket, sockopt::TcpUserTimeout, &USER_TIMEOUT_MS).map_err(failed)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS).map_err(failed)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &KEEPALIVE_SECONDS).map_err(failed)?;
    setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE_QUESTIONS).map_err(failed)?;
    setsockopt(socket, sockopt::KeepAlive, &true).map_err(failed)
}
