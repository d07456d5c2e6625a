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

/// One end of a connection, where work requests are posted. Dropping it disconnects.
///
/// ```text
///   new ────▶ Init ──connect / accept──▶ Connected ──failed request, disconnect, peer gone──▶ Error
///    post      refused                    carried out                                     flushed
///    receive   taken                      taken                                           flushed
/// ```
/// A queue pair connects once. After its end another one is made. One that is disconnected before
/// it was connected is over, too.
///
/// # Posting
/// * In `Init`, receives may be posted, and should be: the peer may send at once when it is
///   connected. Posting anything else is [`Error::InvalidArgument`].
/// * In `Connected`, requests are carried out in order. One for which the peer has posted no
///   receive waits ([`RnrRetry`]), and so do all behind it. Posting never waits.
/// * In `Error`, posts succeed as long as there is room, and complete with
///   [`Status::Flushed`](crate::Status::Flushed), also if the queue pair never was connected.
///
/// # Ending a connection
/// [`disconnect`](Self::disconnect), and dropping the sending half or the whole, end the connection
/// at both ends at once:
/// * What arrived here before is still completed, and so are requests of this end that have been
///   carried out; everything else that is posted, here and there, is flushed. A request that was on
///   its way may or may not have taken effect.
/// * After `disconnect` completions can be polled as before. Completions of a queue pair that was
///   *dropped* are lost if they were not polled.
///
/// So, to lose nothing: have the last request [signaled](crate::Flags::SIGNALED) and poll its
/// completion. With it the bytes are at the peer, which gets its own completion, if there is one,
/// before its requests are flushed. Whether the peer's *program* has seen it, only an answer of the
/// program says. Then disconnect, poll until every receive has been flushed if their ids or buffers
/// matter, and drop the queue pair.
///
/// # One poster at a time
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
    pub(super) device: u32,
    /// The user whose process has to listen where this connects to.
    listener: Option<u32>,
}

/// The half of a queue pair that sends, writes and reads ([`QueuePair::split`]). Dropping it ends
/// the connection, as [dropping a queue pair](QueuePair#ending-a-connection) does.
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

/// The half of a queue pair that posts receives ([`QueuePair::split`]). Dropping it ends nothing:
/// receives that were posted stay so.
pub struct ReceiveQueue(Owned<AnyReceiveQueue>);

impl QueuePair {
    /// Makes a queue pair in state `Init`, in `domain`, whose requests complete into
    /// `send_completions` and `receive_completions` (which may be the same). Queues and domain must
    /// be of one device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a size of `config` is beyond the device's
    /// [`Limits`](crate::Limits), a number of retries is more than 6, or an object is of another
    /// device. [`Error::CompletionQueueTooSmall`] if the depths do not fit into what other queue
    /// pairs leave of a completion queue. On shm also what [`Domain::allocate`] returns, because
    /// the receives lie in the domain.
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
        if [send_completions.device, receive_completions.device] != [domain.device; 2] {
            return Err(Error::InvalidArgument("completion queue is not of the domain's device"));
        }
        let (send, receive) = providers::queue_pair(
            &domain.inner,
            &send_completions.inner,
            &receive_completions.inner,
            config,
        )?;
        let send = SendQueue(Owned::new(SendSide::Plain(send)));
        let receive = ReceiveQueue(Owned::new(receive));
        let queue_pair = QueuePair { send, receive, device: domain.device, listener: None };
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

    /// Returns who is at the other end of a connection, as far as the device knows; for logs.
    /// `None` before there is a connection, and on verbs, where nothing but the address that was
    /// connected to is known.
    pub fn peer(&self) -> Option<String> {
        self.send.0.with(|send| each!(send, send => send.peer()))
    }

    /// Connects to the listener at `to`, passing it `private_data` (at most
    /// [`MAX_CONNECT_DATA`] bytes). Returns what it passed back when it
    /// accepted. Waits for at most `timeout`. Receives should be posted before.
    ///
    /// After an error [`state`](Self::state) says whether this queue pair can be used: it is still
    /// [`State::Init`] unless the connection failed after the listener had accepted. In any other
    /// state it is used up.
    ///
    /// # Errors
    /// * [`Error::ConnectionRefused`], [`Error::Unreachable`], [`Error::ListenerQueueFull`]: the
    ///   listener was not reached.
    /// * [`Error::WrongUser`]: it was, but is not whom
    ///   [`expect_listener`](Self::expect_listener) names.
    /// * [`Error::Rejected`], [`Error::TooManyConnections`], [`Error::ListenerExhausted`],
    ///   [`Error::ConnectionDropped`]: it did not accept.
    /// * [`Error::TimedOut`]: it did not answer in time. Its program may still find the request, or
    ///   have accepted it just now: its accept then fails, or the connection ends there at once.
    /// * [`Error::InvalidArgument`]: this queue pair was connected before, or is over.
    ///   [`Error::PrivateDataTooLong`]: nothing was sent. [`Error::Protocol`]: the answer makes no
    ///   sense.
    /// * [`Error::OutOfDescriptors`], [`Error::TooManyUnread`], [`Error::OutOfAddresses`],
    ///   [`Error::Os`]: this machine has not what it takes.
    pub fn connect(
        &mut self,
        to: SocketAddr,
        private_data: &[u8],
        timeout: Duration,
    ) -> Result<PrivateData> {
        let private_data = PrivateData::new(private_data, MAX_CONNECT_DATA)?;
        self.check_unconnected()?;
        let listener = self.listener;
        self.send.0.with_mut(
            |send| each!(send, send => send.connect(to, listener, &private_data, timeout)),
        )
    }

    /// Whether it can be connected.
    pub(super) fn check_unconnected(&self) -> Result<()> {
        self.send.0.check()?;
        if self.state() != State::Init {
            return Err(Error::InvalidArgument("queue pair was connected before, or is over"));
        }
        Ok(())
    }

    /// Connects the peer that made `request`.
    pub(super) fn accept(
        &mut self,
        request: AnyConnectRequest,
        private_data: &PrivateData,
    ) -> Result<()> {
        self.send.0.with_mut(|send| providers::accept(request, send, private_data))
    }

    /// Returns the number that this queue pair has in completions. No other queue pair of this
    /// process, on whatever device, has it while this one lives. A number comes again only after
    /// 2³² others. Numbers rise, with gaps.
    pub fn number(&self) -> u32 {
        self.send.number()
    }

    /// Returns where it is in its life. A peer's end is noticed without polling. It makes no system
    /// call.
    pub fn state(&self) -> State {
        self.send.state()
    }

    /// Ends the connection: both sides' outstanding requests are flushed
    /// ([what becomes of which](Self#ending-a-connection)). Idempotent. It does not wait.
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

    /// Returns the two halves, for two threads. Dropping the sending half ends the connection;
    /// dropping only the receiving half does not. The queue pair is not used as a whole any more:
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
    /// a later failure shows in its completion. What the states of a queue pair do to a post is
    /// [told there](QueuePair#posting).
    ///
    /// A request takes a place until its own or a later completion is polled, and only
    /// [signaled](crate::Flags::SIGNALED) requests and failed ones have a completion. So signal at
    /// least one in every [`send_depth`](QueuePairConfig::send_depth).
    ///
    /// # Errors
    /// [`Error::QueueFull`]: poll completions and try again. [`Error::InlineTooLarge`].
    /// [`Error::InvalidArgument`]: not connected yet, memory of another domain or device, too many
    /// bytes, or an atomic that is misaligned or whose `into` has not 8 bytes. On verbs
    /// [`Error::RemoteAccess`] for a key that is too wide, and [`Error::Os`] for what its driver
    /// refuses.
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
    /// posted, and the error that stopped it: the first so many of `requests` will complete, the
    /// others were not posted. Errors are those of [`post`](Self::post).
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
    ///
    /// # Errors
    /// [`Error::RemoteAccess`]: the key does not allow it. [`Error::OutOfAddresses`]: this process
    /// has no room, or may map no more of this peer ([`limit_peers`](crate::limit_peers)).
    /// [`Error::Disconnected`]: the connection is over. [`Error::InvalidArgument`]: there is none
    /// yet, or `access` or `bytes` is nothing that can be mapped.
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
}

/// `request`, on memory that it can share.
#[cfg(feature = "faults")]
fn shared<'a>(request: &WorkRequest<'a>) -> faults::Request<'a> {
    request.map(|region| region.shared(), |bytes| *bytes)
}

impl ReceiveQueue {
    /// Posts a receive, also before the queue pair is connected. It is used up by the next send
    /// (stored in `buffer`) or the next write with immediate data (ignores `buffer`). `id` comes
    /// back in the completion.
    ///
    /// A buffer needs [`Access::LOCAL_WRITE`], and is left alone until the completion. A send fails
    /// at both ends if it is longer than `buffer`, or if the buffer's region was dropped. `None` is
    /// a buffer of no bytes: for writes with immediate data, and sends of nothing.
    ///
    /// # Errors
    /// [`Error::QueueFull`]: poll completions and try again. [`Error::InvalidArgument`]: memory of
    /// another domain or device or without `LOCAL_WRITE`, or too many bytes. On verbs
    /// [`Error::Os`] for what its driver refuses.
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
