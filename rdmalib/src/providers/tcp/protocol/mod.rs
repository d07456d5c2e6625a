//! The protocol of one connection: bytes in, bytes out, no socket. Requests, receives and their
//! completions are here; what moves the bytes is a carrier, which asks this what to send
//! ([`Protocol::chunks`]) and where bytes belong ([`Protocol::landing`]).
//!
//! ```text
//!   post ──▶ requests ──┐                                  ┌──▶ memory, receives ──▶ completions
//!            answers ───┴─▶ frames ──▶ carrier ··· carrier ──▶ frames
//!   completions ◀── pending ◀── acknowledgements, answers ─────────┘
//! ```
//! * A request is carried out when its bytes are in place and, if it needs a receive, that has been
//!   used up. Acknowledgements count such requests, and travel in every header.
//! * A receiver that has posted no receive never stops reading: it puts the bytes in place and holds
//!   the completion. Messages have no place yet: up to [`EAGER`] bytes of them are kept, and a
//!   longer one is announced and comes when there is a receive.
//! * What a peer sends is checked before it is used. What it can make this side keep is bounded: as
//!   many held requests and answers as its send queue has places, and [`EAGER`] bytes.
//! * A connection ends once ([`Protocol::end`]): what is posted then and later is flushed.
//!
//! Elsewhere: what is sent (`sending`), what arrives (`receiving`), frames (`wire`), moving bytes
//! (`carrier`). A carrier that delivers messages in order can carry this as well as a byte stream.

mod receiving;
mod sending;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::receiving::Receiving;
use self::sending::Sending;
use super::memory::{Keys, Place};
use crate::types::{Error, Result, State, Status, WorkCompletion};

/// Bytes of messages that are sent before it is known that there is a receive for them, and most
/// that a receiver keeps of them.
pub(super) const EAGER: usize = 64 << 10;

/// Payloads of more bytes are handed to the carrier where they are; others are copied behind their
/// header.
const COPIED: usize = 16 << 10;

/// Frames are gathered for one call of the carrier until there are so many bytes.
const GATHERED: usize = 64 << 10;

/// What one end tells the other in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// Most requests that it has outstanding.
    pub(super) send_depth: u32,
    /// How long a request of it waits for a receive; `None`: for ever.
    pub(super) patience: Option<Duration>,
}

/// A posted receive.
#[derive(Debug)]
struct Receive {
    id: u64,
    /// Where a message goes, and how long it may be.
    buffer: Option<(Place, usize)>,
}

/// Completions that came since the owner was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub(super) sends: bool,
    pub(super) receives: bool,
    /// One of them is an error or was solicited.
    pub(super) urgent: bool,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Protocol {
    number: u32,
    state: State,
    sending: Sending,
    receiving: Receiving,
    news: News,
    /// A request of the peer has failed: it is told as soon as what is half sent is out, and then
    /// the connection ends.
    failing: Option<(u32, Status)>,
}

impl Protocol {
    /// Of queue pair `number`, whose peer may reach what `keys` name.
    pub(super) fn new(number: u32, keys: Arc<Keys>, send_depth: u32, receive_depth: u32) -> Self {
        Protocol {
            number,
            state: State::Init,
            sending: Sending::new(send_depth),
            receiving: Receiving::new(keys, receive_depth),
            news: News::default(),
            failing: None,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// There is a peer, and these are its terms.
    pub(super) fn connected(&mut self, peer: Terms) -> Result<()> {
        if self.state != State::Init {
            return Err(Error::InvalidArgument("queue pair was connected before, or is over"));
        }
        self.state = State::Connected;
        self.receiving.peer = peer;
        Ok(())
    }

    /// Whether what arrives still counts.
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Connected && self.failing.is_none()
    }

    /// Ends the connection: the oldest request that waits gets `oldest`, everything else is
    /// flushed. Without effect after the first time.
    pub(super) fn end(&mut self, oldest: Status) {
        if self.state == State::Error {
            return;
        }
        self.state = State::Error;
        self.news = News { sends: true, receives: true, urgent: true };
        self.flush_sends(oldest);
        self.flush_receives();
    }

    /// Request `sequence` of the peer has failed.
    fn fail(&mut self, sequence: u32, status: Status) {
        if self.failing.is_none() {
            self.failing = Some((sequence, status));
        }
    }

    /// Ends the connection if a request of the peer has failed and there is nothing left to send.
    pub(super) fn end_if_told(&mut self) {
        if self.failing.is_some() && self.sending.told_failure && !self.has_output() {
            self.end(Status::Flushed);
        }
    }

    /// What has the meaning of nothing: the peer is another program, or hostile.
    fn violation(&mut self, what: &'static str) {
        tracing::debug!(queue_pair = self.number, what, "the peer broke the protocol");
        self.end(Status::Flushed);
    }

    /// What is new since the last call.
    pub(super) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// When the oldest request of the peer that waits for a receive has waited for too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.receiving.deadline()
    }

    /// Fails the oldest request of the peer if it has waited for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.is_open() && self.deadline().is_some_and(|deadline| deadline <= now) {
            let sequence = self.carried_out();
            self.fail(sequence, Status::RnrRetryExceeded);
        }
    }

    fn completion(&self, id: u64) -> WorkCompletion {
        WorkCompletion { id, queue_pair: self.number, ..WorkCompletion::default() }
    }
}
