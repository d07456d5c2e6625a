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
//! Elsewhere: the messages (`message`), the listener (`listener`), connecting (`connector`), what every socket
//! has (`socket`).

mod connector;
mod listener;
mod message;
mod socket;

pub(super) use self::connector::connect_to;
pub(crate) use self::listener::{ConnectRequest, Listener};
