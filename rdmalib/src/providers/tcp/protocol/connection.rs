//! One end of a connection: its state, and how it ends.

use std::sync::Arc;
use std::time::Instant;

use super::super::memory::Keys;
use super::received::Receiving;
use super::sent::Sending;
use super::terms::{News, Terms};
use crate::types::{Error, Result, State, Status, WorkCompletion};

/// One end of a connection.
#[derive(Debug)]
pub(in super::super) struct Protocol {
    pub(super) number: u32,
    pub(super) state: State,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    pub(super) news: News,
    /// A request of the peer has failed: it is told as soon as what is half sent is out, and then
    /// the connection ends.
    pub(super) failing: Option<(u32, Status)>,
}

impl Protocol {
    /// Of queue pair `number`, whose peer may reach what `keys` name.
    pub(in super::super) fn new(
        number: u32,
        keys: Arc<Keys>,
        send_depth: u32,
        receive_depth: u32,
    ) -> Self {
        Protocol {
            number,
            state: State::Init,
            sending: Sending::new(send_depth),
            receiving: Receiving::new(keys, receive_depth),
            news: News::default(),
            failing: None,
        }
    }

    pub(in super::super) fn state(&self) -> State {
        self.state
    }

    /// There is a peer, and these are its terms.
    pub(in super::super) fn connected(&mut self, peer: Terms) -> Result<()> {
        if self.state != State::Init {
            return Err(Error::InvalidArgument("queue pair was connected before, or is over"));
        }
        self.state = State::Connected;
        self.receiving.peer = peer;
        Ok(())
    }

    /// Whether what arrives still counts.
    pub(in super::super) fn is_open(&self) -> bool {
        self.state == State::Connected && self.failing.is_none()
    }

    /// Ends the connection: the oldest request that waits gets `oldest`, everything else is
    /// flushed. Without effect after the first time.
    pub(in super::super) fn end(&mut self, oldest: Status) {
        if self.state == State::Error {
            return;
        }
        self.state = State::Error;
        self.news = News { sends: true, receives: true, urgent: true };
        self.flush_sends(oldest);
        self.flush_receives();
    }

    /// Request `sequence` of the peer has failed.
    pub(super) fn fail(&mut self, sequence: u32, status: Status) {
        if self.failing.is_none() {
            self.failing = Some((sequence, status));
        }
    }

    /// Ends the connection if a request of the peer has failed and there is nothing left to send.
    pub(in super::super) fn end_if_told(&mut self) {
        if self.failing.is_some() && self.sending.told_failure && !self.has_output() {
            self.end(Status::Flushed);
        }
    }

    /// What has the meaning of nothing: the peer is another program, or hostile.
    pub(super) fn violation(&mut self, what: &'static str) {
        tracing::debug!(queue_pair = self.number, what, "the peer broke the protocol");
        self.end(Status::Flushed);
    }

    /// What is new since the last call.
    pub(in super::super) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// When the oldest request of the peer that waits for a receive has waited for too long.
    pub(in super::super) fn deadline(&self) -> Option<Instant> {
        self.receiving.deadline()
    }

    /// Fails the oldest request of the peer if it has waited for too long.
    pub(in super::super) fn expire(&mut self, now: Instant) {
        if self.is_open() && self.deadline().is_some_and(|deadline| deadline <= now) {
            let sequence = self.carried_out();
            self.fail(sequence, Status::RnrRetryExceeded);
        }
    }

    pub(super) fn completion(&self, id: u64) -> WorkCompletion {
        WorkCompletion { id, queue_pair: self.number, ..WorkCompletion::default() }
    }
}
