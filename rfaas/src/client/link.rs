//! The client's connection to the resource manager: asks for leases, gives back those not used.
//!
//! One question at a time: who asks holds the connection until the answer is there. A lease that is
//! dropped meanwhile waits in the outbox; whoever lets go of the connection sends what is in there.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::LeaseRequest;
use super::lease::Candidate;
use crate::channel::{Channel, ChannelError, Incoming};
use crate::config::OpenDevice;
use crate::error::{Error, Result};
use crate::protocol::lease::{
    self, ClientName, FromClient, LeaseGranted, LeaseRelease, ToClient, Token,
};
use crate::protocol::{Empty, Malformed, Role};

const WHAT: &str = "the resource manager";
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer; a manager decides in microseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The connection.
#[derive(Debug)]
pub(super) struct Link {
    address: SocketAddr,
    conversation: Mutex<Conversation>,
    /// Leases to give back.
    outbox: Mutex<Vec<Token>>,
}

#[derive(Debug)]
struct Conversation {
    channel: Channel,
    /// Number of the last question.
    request: u32,
}

impl Link {
    pub(super) fn connect(device: &OpenDevice, address: SocketAddr) -> Result<Self> {
        let conversation = Conversation { channel: open(device, address)?, request: 0 };
        let (conversation, outbox) = (Mutex::new(conversation), Mutex::default());
        Ok(Link { address, conversation, outbox })
    }

    /// Asks for a lease. If the connection has ended, the manager may have been started again: one
    /// more is tried.
    pub(super) fn lease(
        &self,
        device: &OpenDevice,
        request: &LeaseRequest,
        client: ClientName,
    ) -> Result<Candidate> {
        let mut conversation = self.lock();
        if !conversation.channel.is_connected() {
            conversation.channel = open(device, self.address)?;
        }
        let granted = conversation.ask(request, client);
        drop(conversation);
        self.flush();
        let LeaseGranted { manager, token, .. } = granted?;
        let node = token.terms.node.get()?.to_owned();
        Ok(Candidate { node, address: manager.into(), token })
    }

    /// Gives back a lease that was not claimed. Does not wait.
    pub(super) fn give_back(&self, token: Token) {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).push(token);
        self.flush();
    }

    /// Sends what is in the outbox, unless whoever has the connection does so afterwards.
    fn flush(&self) {
        loop {
            let mut conversation = match self.conversation.try_lock() {
                Ok(conversation) => conversation,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let tokens =
                std::mem::take(&mut *self.outbox.lock().unwrap_or_else(PoisonError::into_inner));
            if tokens.is_empty() {
                return;
            }
            tokens.into_iter().for_each(|token| conversation.give_back(token));
            // Once more: one that came since found the connection taken and left it to us.
        }
    }

    fn lock(&self) -> MutexGuard<'_, Conversation> {
        self.conversation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conversation {
    fn ask(&mut self, request: &LeaseRequest, client: ClientName) -> Result<LeaseGranted> {
        let failed = |source| Error::Connection { what: WHAT, source };
        self.request = self.request.wrapping_add(1);
        let question = FromClient::Request(lease::LeaseRequest {
            request: self.request.into(),
            cores: request.cores.into(),
            memory: request.memory.into(),
            timeout_ms: u64::try_from(request.timeout.as_millis()).unwrap_or(u64::MAX).into(),
            max_nodes: 1.into(),
            client,
        });
        self.channel.send(&question).map_err(failed)?;
        let start = Instant::now();
        loop {
            let left = ANSWER_TIMEOUT.saturating_sub(start.elapsed());
            match self.channel.receive(left) {
                Ok(Incoming::Message(ToClient::Granted(granted))) => {
                    if granted.request.get() == self.request {
                        return Ok(granted);
                    }
                    // The answer to a question that was given up: nobody knows of this lease.
                    self.give_back(granted.token);
                }
                Ok(Incoming::Message(ToClient::Refused(refused))) => {
                    if refused.request.get() == self.request {
                        let reason = refused.reason.get()?.to_owned();
                        return Err(Error::LeaseRefused { reason });
                    }
                }
                Ok(Incoming::Written { .. }) => return Err(Malformed::Field("message kind").into()),
                Err(ChannelError::TimedOut { .. }) => {
                    return Err(Error::NoAnswer { what: WHAT, after: ANSWER_TIMEOUT });
                }
                Err(source) => return Err(failed(source)),
            }
        }
    }

    fn give_back(&mut self, token: Token) {
        let lease = token.terms.lease.get();
        match self.channel.send(&FromClient::Release(LeaseRelease { token })) {
            Ok(()) => tracing::debug!(lease, "lease given back"),
            // An unclaimed lease ends with the connection, and at the latest when its time is over.
            Err(error) => tracing::debug!(%error, lease, "lease not given back"),
        }
    }
}

fn open(device: &OpenDevice, address: SocketAddr) -> Result<Channel> {
    let mut channel = Channel::new(&device.device, device.entry.default_receive_buffer_size)
        .map_err(|source| Error::Connection { what: WHAT, source })?;
    channel
        .connect(address, Role::Lease, &Empty {}, CONNECT_TIMEOUT)
        .map_err(|source| Error::Unreachable { what: WHAT, address, source: Box::new(source) })?;
    Ok(channel)
}
