//! Queue pairs: one end of a reliable connection, where work requests are posted.
//!
//! ```text
//!   new ─────▶ Init ──connect / accept──▶ Connected ──failed request, disconnect, peer gone──▶ Error
//!              post_receive works         post works                     all requests are flushed
//! ```
//! Posting takes `&mut self`: one poster a queue at a time, checked at compile time. Sending and
//! receiving halves may go to two threads ([`QueuePair::split`]).

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::{CompletionQueue, Domain, RemoteMapping, Slice, WorkRequest};
use crate::contract::{ReceiveQueue as _, SendQueue as _};
#[cfg(feature = "faults")]
use crate::faults;
use crate::process::Owned;
use crate::providers::{
    self, AnyConnectRequest, AnyReceiveQueue, AnySendQueue, each, each_optional,
};
use crate::types::{
    Access, Error, MAX_CONNECT_DATA, PrivateData, QueuePairConfig, RemoteAddress, Result, RnrRetry,
    State,
};

/// One end of a connection. Dropping it disconnects: the peer's requests are flushed.
///
/// There is one poster at a time:
/// ```compile_fail,E0499
/// # use rdmalib::*;
/// fn two_posters(pair: &mut QueuePair, request: &WorkRequest<'_>) {
///     std::thread::scope(|scope| {
///         scope.spawn(|| pair.post(request));
///         scope.spawn(|| pair.post(request));
///     });
/// }
/// ```
pub struct QueuePair {
    send: SendQueue,
    receive: ReceiveQueue,
    /// The user whose process has to listen where this connects to.
    listener: Option<u32>,
}

/// The half of a queue pair that sends, writes and reads.
pub struct SendQueue(Owned<SendSide>);

/// A provider's send queue, perhaps behind a script of faults.
#[derive(Debug)]
enum SendSide {
    Plain(AnySendQueue),
    #[cfg(feature = "faults")]
    Faulty(faults::Faulty),
}

impl SendSide {
    /// Lets `f` use the provider's send queue.
    fn with<R>(&self, f: impl FnOnce(&AnySendQueue) -> R) -> R {
        match self {
            SendSide::Plain(send) => f(send),
            #[cfg(feature = "faults")]
            SendSide::Faulty(send) => send.with(|send| f(send)),
        }
    }

    fn with_mut<R>(&mut self, f: impl FnOnce(&mut AnySendQueue) -> R) -> R {
        match self {
            SendSide::Plain(send) => f(send),
            #[cfg(feature = "faults")]
            SendSide::Faulty(send) => send.with(f),
        }
    }
}

/// The half of a queue pair that posts receives.
pub struct ReceiveQueue(Owned<AnyReceiveQueue>);

impl QueuePair {
    /// Makes a queue pair in state `Init`, in `domain`, whose requests complete into
    /// `send_completions` and `receive_completions` (which may be the same). Queues and domain must
    /// be of one device.
    pub fn new(
        domain: &Domain,
        send_completions: &CompletionQueue,
        receive_completions: &CompletionQueue,
        config: &QueuePairConfig,
    ) -> Result<QueuePair> {
        if matches!(config.rnr_retry, RnrRetry::Times(7..)) {
            return Err(Error::InvalidArgument("an RNR retry count is from 0 to 6, or for ever"));
        }
        domain.inner.check()?;
        send_completions.inner.check()?;
        receive_completions.inner.check()?;
        let (send, receive) = providers::queue_pair(
            &domain.inner,
            &send_completions.inner,
            &receive_completions.inner,
            config,
        )?;
        let send = SendQueue(Owned::new(SendSide::Plain(send)));
        let receive = ReceiveQueue(Owned::new(receive));
        let queue_pair = QueuePair { send, receive, listener: None };
        #[cfg(feature = "faults")]
        let queue_pair = queue_pair.inject_from_environment();
        Ok(queue_pair)
    }

    #[cfg(feature = "faults")]
    fn inject_from_environment(mut self) -> QueuePair {
        if let Some(script) = faults::of_environment(self.number()) {
            self.inject(script);
        }
        self
    }

    /// See [`SendQueue::inject`].
    #[cfg(feature = "faults")]
    pub fn inject(&mut self, script: faults::Script) {
        self.send.inject(script);
    }

    /// Has [`connect`](Self::connect) refuse a listener that is not of this user, before anything
    /// is sent to it. The kernel knows the user on the embedded device; on verbs a peer is a
    /// machine, and this has no effect
    /// ([`Capabilities::knows_users`](crate::Capabilities::knows_users)).
    pub fn expect_listener(&mut self, user: Option<u32>) {
        self.listener = user;
    }

    /// Returns who is at the other end of a connection, as far as the device knows; for logs. On
    /// verbs nothing but the address that was connected to is known.
    pub fn peer(&self) -> Option<String> {
        self.send.0.with(|send| each!(send, send => send.peer()))
    }

    /// Connects to the listener at `to`, passing it `private_data` (at most
    /// [`MAX_CONNECT_DATA`] bytes). Returns what it passed back when it
    /// accepted. Waits for at most `timeout`. Receives should be posted before.
    pub fn connect(
        &mut self,
        to: SocketAddr,
        private_data: &[u8],
        timeout: Duration,
    ) -> Result<PrivateData> {
        let private_data = PrivateData::new(private_data, MAX_CONNECT_DATA)?;
        if self.state() != State::Init {
            return Err(Error::InvalidArgument("queue pair was connected before"));
        }
        self.send.0.check()?;
        let listener = self.listener;
        self.send.0.with_mut(
            |send| each!(send, send => send.connect(to, listener, &private_data, timeout)),
        )
    }

    pub(super) fn sending(&mut self) -> &mut SendQueue {
        &mut self.send
    }

    /// Returns the number that this queue pair has in completions; unique in this process while it
    /// lives.
    pub fn number(&self) -> u32 {
        self.send.number()
    }

    /// Returns where it is in its life. A peer's end is noticed without polling.
    pub fn state(&self) -> State {
        self.send.state()
    }

    /// Ends the connection: both sides' outstanding requests are flushed. Idempotent.
    pub fn disconnect(&mut self) {
        self.send.disconnect();
    }

    /// See [`SendQueue::post`].
    #[inline]
    pub fn post(&mut self, request: &WorkRequest<'_>) -> Result<()> {
        self.send.post(request)
    }

    /// See [`SendQueue::map_remote`].
    pub fn map_remote(
        &mut self,
        at: RemoteAddress,
        bytes: usize,
        access: Access,
    ) -> Result<Option<RemoteMapping>> {
        self.send.map_remote(at, bytes, access)
    }

    /// See [`SendQueue::post_list`].
    pub fn post_list(&mut self, requests: &[WorkRequest<'_>]) -> (usize, Result<()>) {
        self.send.post_list(requests)
    }

    /// See [`ReceiveQueue::post`].
    #[inline]
    pub fn post_receive(&mut self, id: u64, buffer: Option<Slice<'_>>) -> Result<()> {
        self.receive.post(id, buffer)
    }

    /// Returns the two halves, for two threads. The connection ends when the sending half is
    /// dropped or both are. The queue pair is not used as a whole any more:
    /// ```compile_fail,E0382
    /// # use rdmalib::*;
    /// fn used_after_the_split(pair: QueuePair) {
    ///     let (send, receive) = pair.split();
    ///     pair.state();
    /// }
    /// ```
    pub fn split(self) -> (SendQueue, ReceiveQueue) {
        (self.send, self.receive)
    }
}

impl SendQueue {
    /// See [`QueuePair::number`].
    pub fn number(&self) -> u32 {
        self.0.with(|send| each!(send, send => send.number()))
    }

    /// See [`QueuePair::state`].
    pub fn state(&self) -> State {
        if !self.0.is_ours() {
            return State::Error;
        }
        self.0.with(|send| each!(send, send => send.state()))
    }

    /// See [`QueuePair::disconnect`].
    pub fn disconnect(&mut self) {
        if !self.0.is_ours() {
            return; // it is the parent's
        }
        match &mut *self.0 {
            SendSide::Plain(send) => each!(send, send => send.disconnect()),
            #[cfg(feature = "faults")]
            SendSide::Faulty(send) => send.disconnect(),
        }
    }

    /// Posts one request. Never waits. `Err` means that it was not posted and will not complete;
    /// a later failure shows in its completion.
    #[inline]
    pub fn post(&mut self, request: &WorkRequest<'_>) -> Result<()> {
        self.0.check()?;
        match &mut *self.0 {
            SendSide::Plain(send) => each!(send, send => send.post(request)),
            #[cfg(feature = "faults")]
            SendSide::Faulty(send) => send.post(&shared(request)),
        }
    }

    /// Posts requests in order, with one doorbell where the device can. Returns how many were
    /// posted, and the error that stopped it.
    pub fn post_list(&mut self, requests: &[WorkRequest<'_>]) -> (usize, Result<()>) {
        if let Err(error) = self.0.check() {
            return (0, Err(error));
        }
        match &mut *self.0 {
            SendSide::Plain(send) => each!(send, send => send.post_list(requests)),
            #[cfg(feature = "faults")]
            SendSide::Faulty(send) => {
                for (posted, request) in requests.iter().enumerate() {
                    if let Err(error) = send.post(&shared(request)) {
                        return (posted, Err(error));
                    }
                }
                (requests.len(), Ok(()))
            }
        }
    }

    /// Maps `bytes` bytes (at least one) of the peer's memory into this process, if its key allows
    /// `access` to all of them: [`Access::REMOTE_READ`], [`Access::REMOTE_WRITE`] or both. `None`
    /// where the provider cannot
    /// ([`Capabilities::maps_remote_memory`](crate::Capabilities::maps_remote_memory)). Otherwise
    /// it makes system calls and, unlike a request that is refused, [`Error::RemoteAccess`] leaves
    /// the connection as it is.
    ///
    /// The key is checked now and not again: see [`RemoteMapping`].
    pub fn map_remote(
        &mut self,
        at: RemoteAddress,
        bytes: usize,
        access: Access,
    ) -> Result<Option<RemoteMapping>> {
        if access.is_empty() || !(Access::REMOTE_READ | Access::REMOTE_WRITE).contains(access) {
            return Err(Error::InvalidArgument("memory is mapped to be read, written or both"));
        }
        if bytes == 0 {
            return Err(Error::InvalidArgument("a mapping has at least one byte"));
        }
        self.0.check()?;
        let mapped = self.0.with_mut(|send| -> Result<_> {
            Ok(each_optional!(send, send => send.map_remote(at, bytes, access)?))
        })?;
        Ok(mapped.map(|memory| RemoteMapping::new(memory, access)))
    }

    /// Lets sends and writes from now on meet the faults of `script`, in place of one that was
    /// given before. Reads and atomics have no faults; they wait behind a request that is late.
    #[cfg(feature = "faults")]
    pub fn inject(&mut self, script: faults::Script) {
        if !self.0.is_ours() {
            return; // it is the parent's
        }
        if let SendSide::Faulty(send) = &mut *self.0 {
            return send.restart(script);
        }
        let faulty = Owned::new(SendSide::Faulty(faults::Faulty::new(script)));
        let before = std::mem::replace(&mut self.0, faulty).into_ours();
        if let (SendSide::Faulty(faulty), Ok(SendSide::Plain(send))) = (&mut *self.0, before) {
            faulty.fill(send);
        }
    }

    /// Connects the peer that made `request`.
    pub(super) fn accept(&mut self, request: AnyConnectRequest, private_data: &[u8]) -> Result<()> {
        self.0.with_mut(|send| providers::accept(request, send, private_data))
    }
}

/// `request`, on memory that it can share.
#[cfg(feature = "faults")]
fn shared<'a>(request: &WorkRequest<'a>) -> faults::Request<'a> {
    request.map(|region| region.shared(), |bytes| *bytes)
}

impl ReceiveQueue {
    /// Posts a receive: for a peer's send that goes to `buffer`, or for one write with immediate
    /// data, which needs none.
    #[inline]
    pub fn post(&mut self, id: u64, buffer: Option<Slice<'_>>) -> Result<()> {
        self.0.check()?;
        each!(&mut *self.0, receive => receive.post(id, buffer))
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueuePair({}, {:?})", self.number(), self.state())
    }
}

impl fmt::Debug for SendQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendQueue({}, {:?})", self.number(), self.state())
    }
}

impl fmt::Debug for ReceiveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveQueue").finish_non_exhaustive()
    }
}
