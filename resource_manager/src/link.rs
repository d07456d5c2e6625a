//! What connections of clients and of executor managers have in common: taking messages fairly, not
//! sleeping through one, and waiting for a peer that is slow to take ours.

use std::collections::VecDeque;

use rfaas_program::poll_loop::Idle;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::{Malformed, MessageKind};

/// Whether a peer may have sent more than was taken in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// There was nothing more, and its descriptor tells of news (unless the loop does not sleep).
    Done,
    /// Serve it again before sleeping.
    Again,
}

/// Hands up to `most` messages of one peer to `handle`. Any `Err` ends this connection, and only
/// this one.
pub(crate) fn take_messages<M: MessageKind>(
    channel: &mut Channel,
    idle: Idle,
    most: usize,
    mut handle: impl FnMut(&mut Channel, M) -> Result<(), ChannelError>,
) -> Result<Turn, ChannelError> {
    let mut armed = idle == Idle::Poll;
    let mut taken = 0;
    while taken < most {
        match channel.try_receive::<M>()? {
            Some(Incoming::Message(message)) => {
                taken += 1;
                handle(channel, message)?;
            }
            // No peer was given a key to write with.
            Some(Incoming::Written { .. }) => return Err(Malformed::Field("kind").into()),
            None if armed => return Ok(Turn::Done),
            // Look again: a message that landed before `arm` is not announced.
            None => {
                channel.arm()?;
                armed = true;
            }
        }
    }
    Ok(Turn::Again)
}

/// Messages that a peer has not taken yet, in order. A machine that is busy makes a peer slow, not dead:
/// whether it is dead, its signs of life tell.
///
/// Sends that complete ring the bell of an armed channel like messages that arrive, so the next turn of
/// the peer is the time to [`flush`](Self::flush).
#[derive(Debug)]
pub(crate) struct Outbox<M> {
    messages: VecDeque<M>,
    most: usize,
}

impl<M: MessageKind> Outbox<M> {
    /// An empty one, in which `most` may wait.
    pub(crate) fn new(most: usize) -> Self {
        Outbox { messages: VecDeque::new(), most }
    }

    /// Sends `message` after those that wait. [`ChannelError::Busy`] if too many do.
    pub(crate) fn send(&mut self, channel: &mut Channel, message: M) -> Result<(), ChannelError> {
        if self.messages.len() >= self.most {
            return Err(ChannelError::Busy);
        }
        self.messages.push_back(message);
        self.flush(channel)
    }

    /// Sends as many as the peer takes now.
    pub(crate) fn flush(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        while let Some(message) = self.messages.front() {
            match channel.send(message) {
                Ok(()) => drop(self.messages.pop_front()),
                Err(ChannelError::Busy) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}
