//! What connections of clients and of executor managers have in common: taking messages fairly, not
//! sleeping through one, and waiting for a peer that is slow to take ours.
//!
//! What a pass of the loop costs grows with the connections that have news, not with those that there are.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use rfaas_program::descriptor_set::{DescriptorSet, Tells};
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::{Malformed, MessageKind};

use crate::pool::LinkId;

/// Where connections announce that they have news.
#[derive(Debug)]
pub(crate) struct News(DescriptorSet);

impl News {
    /// Of no connection yet. Fails only if the process has no descriptor left.
    pub(crate) fn new() -> nix::Result<Self> {
        Ok(News(DescriptorSet::new()?))
    }

    /// Waits for news of `channel` from now on.
    pub(crate) fn add(&self, id: LinkId, channel: &Channel) -> Result<(), ChannelError> {
        let added = self.0.add(channel, id.0, Tells::Always);
        let os = |errno: Errno| rdmalib::Error::Os { call: "epoll_ctl", source: errno.into() };
        added.map_err(|errno| os(errno).into())
    }

    /// Does so no longer.
    pub(crate) fn remove(&self, channel: &Channel) {
        self.0.remove(channel);
    }

    /// Some of the connections that have news, their announcements taken back; none only if no connection has.
    pub(crate) fn some(
        &self,
        mut acknowledge: impl FnMut(LinkId) -> Result<(), ChannelError>,
    ) -> Vec<LinkId> {
        let mut found = Vec::new();
        self.0.take_readable(&mut found);
        let found: Vec<_> = found.into_iter().map(LinkId).collect();
        for id in &found {
            if let Err(error) = acknowledge(*id) {
                tracing::debug!(%error, "event not acknowledged"); // the connection's turn tells more
            }
        }
        found
    }

    /// Readable when there are any.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the descriptor of a connection is to announce, once all was taken that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announce {
    /// Nothing: the loop does not sleep.
    Nothing,
    /// What the peer wants to be known at once.
    Announced,
    /// All that arrives, and that the peer has taken what was sent to it.
    Everything,
}

/// Whether a peer may have sent more than was taken in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// There was nothing more, and its descriptor tells of what comes (unless the loop does not sleep).
    Done,
    /// Serve it again before sleeping.
    Again,
}

/// Hands up to `most` messages of one peer to `handle`. Any `Err` ends this connection, and only
/// this one.
pub(crate) fn take_messages<M: MessageKind>(
    channel: &mut Channel,
    announce: Announce,
    most: usize,
    mut handle: impl FnMut(&mut Channel, M) -> Result<(), ChannelError>,
) -> Result<Turn, ChannelError> {
    let mut armed = announce == Announce::Nothing;
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
                match announce {
                    Announce::Announced => channel.arm_for_announced()?,
                    Announce::Nothing | Announce::Everything => channel.arm()?,
                }
                armed = true;
            }
        }
    }
    Ok(Turn::Again)
}

/// Messages that a peer has not taken yet, in order. A machine that is busy makes a peer slow, not dead:
/// whether it is dead, its signs of life tell.
///
/// Sends that complete ring the bell of a channel that announces everything, so the next turn of the peer is the time to
/// [`flush`](Self::flush).
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
