//! Queue pairs: one end of a reliable connection, where work requests are posted.
//!
//! ```text
//!   new ─────▶ Init ──connect / accept──▶ Connected ──failed request, disconnect, peer gone──▶ Error
//!              post_receive works         post works                     all requests are flushed
//! ```
//! Posting takes `&mut self`: one poster a queue at a time, checked at compile time. Sending and
//! receiving halves may go to two threads ([`QueuePair::split`]).

use std::net::SocketAddr;
use std::time::Duration;

use crate::completion::{CompletionQueue, CompletionQueueInner};
use crate::connection::{MAX_CONNECT_DATA, PrivateData};
use crate::error::{Error, Result};
#[cfg(feature = "faults")]
use crate::faults;
use crate::memory::{Access, Domain, DomainInner, RemoteAddress, RemoteMapping, Slice};
use crate::process::Owned;
use crate::sync::{AtomicU32, Ordering};
use crate::{shm, verbs};

/// How often a request is tried while the peer has posted no receive (`rnr_retry_count`,
/// `rdma_connect(3)`: 0 to 6 times, 7 is for ever).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RnrRetry {
    /// So many times after the first, `rnr_timer` apart; 0 to 6.
    Times(u8),
    /// Until the peer posts a receive or the connection ends.
    Forever,
}

/// Sizes and behaviour of a queue pair, fixed when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePairConfig {
    /// Most outstanding requests of the send queue. A request leaves the count when its own or a
    /// later signalled completion is polled.
    pub send_depth: u32,
    /// Most posted receives, counted until their completions are polled.
    pub receive_depth: u32,
    /// Largest inline payload, in bytes; at most the device's limit.
    pub max_inline_data: u32,
    /// What happens while the peer has posted no receive.
    pub rnr_retry: RnrRetry,
    /// Pause between two such tries. On verbs the receiving side's counts: it is what asks for the
    /// pause, in steps from 10 µs to 655 ms, rounded up.
    pub rnr_timer: Duration,
}

impl Default for QueuePairConfig {
    /// 64 requests each way, no inline data, patient with a slow receiver. The timer is InfiniBand's
    /// code 12, which is what most drivers default to.
    fn default() -> Self {
        QueuePairConfig {
            send_depth: 64,
            receive_depth: 64,
            max_inline_data: 0,
            rnr_retry: RnrRetry::Forever,
            rnr_timer: Duration::from_micros(640),
        }
    }
}

bitflags::bitflags! {
    /// Options of one work request; `ibv_post_send(3)`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Completes with an entry in the send completion queue. Without it only a failure does.
        const SIGNALED = 1;
        /// Rings the bell of a receiver that waits for [`Notify::Solicited`](crate::Notify::Solicited).
        const SOLICITED = 2;
        /// Starts after all earlier reads and atomics of this queue have finished.
        const FENCE = 4;
        /// The bytes of a write with immediate data need not be in place before the receiver polls its
        /// completion. Until the receiver has answered, no other request for these bytes is posted, and those
        /// of the source stay as they are, also when the request has completed. The embedded device then
        /// brings small and large ones faster; others take no notice.
        const WITH_COMPLETION = 8;
    }
}

/// Where the bytes of a send or write come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Registered memory, which must stay as it is until the request has completed.
    Region(Slice<'a>),
    /// Any memory, copied while posting; at most `max_inline_data` bytes.
    Inline(&'a [u8]),
}

/// What a work request does.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// Two-sided: the bytes go to the receive that the peer posted first.
    Send {
        /// The message.
        source: Source<'a>,
        /// Immediate data for the receiver's completion, in host byte order.
        immediate: Option<u32>,
    },
    /// One-sided: the bytes go where `to` says; with immediate data they also use up a receive and
    /// complete at the peer.
    Write {
        /// The bytes; may be empty.
        source: Source<'a>,
        /// Their destination.
        to: RemoteAddress,
        /// Immediate data for the receiver's completion, in host byte order.
        immediate: Option<u32>,
    },
    /// One-sided: fills `into` with the peer's bytes.
    Read {
        /// Destination; its region needs [`Access::LOCAL_WRITE`](crate::Access::LOCAL_WRITE).
        into: Slice<'a>,
        /// Where they are.
        from: RemoteAddress,
    },
    /// Adds to an aligned 64-bit counter of the peer; the old value lands in `into`.
    FetchAdd {
        /// Eight bytes for the old value, in host byte order.
        into: Slice<'a>,
        /// The counter; a multiple of 8.
        at: RemoteAddress,
        /// What is added, wrapping.
        add: u64,
    },
    /// Replaces an aligned 64-bit word of the peer if it has the expected value; the old value lands
    /// in `into`.
    CompareSwap {
        /// Eight bytes for the old value, in host byte order.
        into: Slice<'a>,
        /// The word; a multiple of 8.
        at: RemoteAddress,
        /// Value that it must have.
        expect: u64,
        /// Value that it then gets.
        swap: u64,
    },
}

/// Checks the two sides of an atomic: eight bytes here, eight aligned bytes there.
#[inline]
pub(crate) fn check_atomic(into: Slice<'_>, at: RemoteAddress) -> Result<()> {
    if into.bytes != 8 {
        return Err(Error::InvalidArgument("an atomic returns eight bytes"));
    }
    if !at.addr.is_multiple_of(8) {
        return Err(Error::InvalidArgument("an atomic's remote address is a multiple of 8"));
    }
    Ok(())
}

/// One request for the send queue.
#[derive(Clone, Copy, Debug)]
pub struct WorkRequest<'a> {
    /// Returned in the completion; free for the caller.
    pub id: u64,
    /// What to do.
    pub operation: Operation<'a>,
    /// How.
    pub flags: Flags,
}

/// Where a queue pair is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not connected.
    Init,
    /// Connected.
    Connected,
    /// Over: every request is, or will be, completed with [`Status::Flushed`](crate::Status::Flushed).
    Error,
}

/// A number that nothing else in this process has: for queue pairs, whatever their provider.
pub(crate) fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// One end of a connection. Dropping it disconnects: the peer's requests are flushed.
pub struct QueuePair {
    send: SendQueue,
    receive: ReceiveQueue,
    /// Whose process is to listen where this connects to, if that matters.
    listener: Option<u32>,
}

/// The half that sends, writes, reads.
pub struct SendQueue(Owned<SendInner>);

#[derive(Debug)]
pub(crate) enum SendInner {
    Shm(shm::SendQueue),
    Verbs(verbs::SendQueue),
    /// One of them behind a script of faults.
    #[cfg(feature = "faults")]
    Faulty(faults::Faulty),
}

/// The half that posts receives.
pub struct ReceiveQueue(Owned<ReceiveInner>);

#[derive(Debug)]
enum ReceiveInner {
    Shm(shm::ReceiveQueue),
    Verbs(verbs::ReceiveQueue),
}

impl QueuePair {
    /// A queue pair in state `Init`, in `domain`, whose requests complete into `send_completions` and
    /// `receive_completions` (which may be the same). Queues and domain must be of one device.
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
        let (send, receive) =
            match (&*domain.inner, &*send_completions.inner, &*receive_completions.inner) {
                (
                    DomainInner::Shm(domain),
                    CompletionQueueInner::Shm(send),
                    CompletionQueueInner::Shm(receive),
                ) => {
                    let (send, receive) = shm::queue_pair(domain, send, receive, config)?;
                    (SendInner::Shm(send), ReceiveInner::Shm(receive))
                }
                (
                    DomainInner::Verbs(domain),
                    CompletionQueueInner::Verbs(send),
                    CompletionQueueInner::Verbs(receive),
                ) => {
                    let (send, receive) = verbs::queue_pair(domain, send, receive, config)?;
                    (SendInner::Verbs(send), ReceiveInner::Verbs(receive))
                }
                _ => return Err(Error::InvalidArgument("completion queue is of another device")),
            };
        let (send, receive) = (SendQueue(Owned::new(send)), ReceiveQueue(Owned::new(receive)));
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

    /// [`SendQueue::inject`].
    #[cfg(feature = "faults")]
    pub fn inject(&mut self, script: faults::Script) {
        self.send.inject(script);
    }

    /// Has [`connect`](Self::connect) refuse a listener that is not of this user, before anything is sent to it.
    /// The kernel knows the user on the embedded device; on verbs a peer is a machine, and this has no effect.
    pub fn expect_listener(&mut self, user: Option<u32>) {
        self.listener = user;
    }

    /// Who is at the other end of a connection, as far as the device knows; for logs. On verbs the address that was
    /// connected to is all that is known.
    pub fn peer(&self) -> Option<String> {
        self.send.peer()
    }

    /// Connects to the listener at `to`, passing it `private_data` (at most
    /// [`MAX_CONNECT_DATA`] bytes); returns what it passed back when it
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
        self.send.connect(to, self.listener, &private_data, timeout)
    }

    pub(crate) fn sending(&mut self) -> &mut SendQueue {
        &mut self.send
    }

    /// Number that this queue pair has in completions; unique in this process while it lives.
    pub fn number(&self) -> u32 {
        self.send.number()
    }

    /// Where it is in its life. A peer's end is noticed without polling.
    pub fn state(&self) -> State {
        self.send.state()
    }

    /// Ends the connection: both sides' outstanding requests are flushed. Idempotent.
    pub fn disconnect(&mut self) {
        self.send.disconnect();
    }

    /// [`SendQueue::post`].
    #[inline]
    pub fn post(&mut self, request: &WorkRequest<'_>) -> Result<()> {
        self.send.post(request)
    }

    /// [`SendQueue::map_remote`].
    pub fn map_remote(
        &mut self,
        at: RemoteAddress,
        bytes: usize,
        access: Access,
    ) -> Result<Option<RemoteMapping>> {
        self.send.map_remote(at, bytes, access)
    }

    /// [`SendQueue::post_list`].
    pub fn post_list(&mut self, requests: &[WorkRequest<'_>]) -> (usize, Result<()>) {
        self.send.post_list(requests)
    }

    /// [`ReceiveQueue::post`].
    #[inline]
    pub fn post_receive(&mut self, id: u64, buffer: Option<Slice<'_>>) -> Result<()> {
        self.receive.post(id, buffer)
    }

    /// The two halves, for two threads. The connection ends when the sending half is dropped or
    /// both are.
    pub fn split(self) -> (SendQueue, ReceiveQueue) {
        (self.send, self.receive)
    }
}

impl SendQueue {
    /// [`QueuePair::number`].
    pub fn number(&self) -> u32 {
        match &*self.0 {
            SendInner::Shm(send) => send.number(),
            SendInner::Verbs(send) => send.number(),
            #[cfg(feature = "faults")]
            SendInner::Faulty(send) => send.with(|send| send.number()),
        }
    }

    /// [`QueuePair::state`].
    pub fn state(&self) -> State {
        if !self.0.is_ours() {
            return State::Error;
        }
        match &*self.0 {
            SendInner::Shm(send) => send.state(),
            SendInner::Verbs(send) => send.state(),
            #[cfg(feature = "faults")]
            SendInner::Faulty(send) => send.with(|send| send.state()),
        }
    }

    /// [`QueuePair::disconnect`].
    pub fn disconnect(&mut self) {
        if !self.0.is_ours() {
            return; // it is the parent's
        }
        match &mut *self.0 {
            SendInner::Shm(send) => send.disconnect(),
            SendInner::Verbs(send) => send.disconnect(),
            #[cfg(feature = "faults")]
            SendInner::Faulty(send) => send.disconnect(),
        }
    }

    /// Posts one request. Never waits. `Err` means that it was not posted and will not complete;
    /// what goes wrong later is told by its completion.
    #[inline]
    pub fn post(&mut self, request: &WorkRequest<'_>) -> Result<()> {
        self.0.check()?;
        match &mut *self.0 {
            SendInner::Shm(send) => send.post(request),
            SendInner::Verbs(send) => send.post(request),
            #[cfg(feature = "faults")]
            SendInner::Faulty(send) => send.post(request),
        }
    }

    /// Posts requests in order, with one doorbell where the device can. Returns how many were posted,
    /// and the error that stopped it.
    pub fn post_list(&mut self, requests: &[WorkRequest<'_>]) -> (usize, Result<()>) {
        if let Err(error) = self.0.check() {
            return (0, Err(error));
        }
        match &mut *self.0 {
            SendInner::Shm(send) => send.post_list(requests),
            SendInner::Verbs(send) => send.post_list(requests),
            #[cfg(feature = "faults")]
            SendInner::Faulty(send) => send.post_list(requests),
        }
    }

    /// Maps `bytes` bytes (at least one) of the peer's memory into this process, if its key allows `access`
    /// to all of them: [`Access::REMOTE_READ`], [`Access::REMOTE_WRITE`] or both. `None` where the provider
    /// cannot: a network lies between. Otherwise it makes system calls and, unlike a request that is
    /// refused, [`Error::RemoteAccess`] leaves the connection as it is.
    ///
    /// The key is looked at now and not again: see [`RemoteMapping`].
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
        match &mut *self.0 {
            SendInner::Shm(send) => send.map_remote(at, bytes, access).map(Some),
            SendInner::Verbs(_) => Ok(None),
            #[cfg(feature = "faults")]
            SendInner::Faulty(send) => send.with(|send| send.map_remote(at, bytes, access)),
        }
    }

    /// Lets sends and writes from now on meet the faults of `script`, in place of one that was given
    /// before. Reads and atomics have no faults; they wait behind a request that is late.
    #[cfg(feature = "faults")]
    pub fn inject(&mut self, script: faults::Script) {
        if let SendInner::Faulty(send) = &mut *self.0 {
            return send.restart(script);
        }
        let faulty = Owned::new(SendInner::Faulty(faults::Faulty::new(script)));
        let send = std::mem::replace(&mut self.0, faulty);
        if let SendInner::Faulty(faulty) = &mut *self.0 {
            faulty.fill(SendQueue(send));
        }
    }

    /// Whether there is room for one more request than the `ahead` that will be posted before it.
    #[cfg(feature = "faults")]
    pub(crate) fn check_room(&self, ahead: u32) -> Result<()> {
        match &*self.0 {
            SendInner::Shm(send) => send.check_room(ahead),
            SendInner::Verbs(send) => send.check_room(ahead),
            SendInner::Faulty(send) => send.with(|send| send.check_room(ahead)),
        }
    }

    pub(crate) fn inner(&mut self) -> &mut SendInner {
        &mut self.0
    }

    pub(crate) fn connect(
        &mut self,
        to: SocketAddr,
        listener: Option<u32>,
        private_data: &PrivateData,
        timeout: Duration,
    ) -> Result<PrivateData> {
        self.0.check()?;
        match &mut *self.0 {
            SendInner::Shm(send) => send.connect(to, listener, private_data, timeout),
            SendInner::Verbs(send) => send.connect(to, private_data, timeout),
            #[cfg(feature = "faults")]
            SendInner::Faulty(send) => {
                send.with(|send| send.connect(to, listener, private_data, timeout))
            }
        }
    }

    fn peer(&self) -> Option<String> {
        match &*self.0 {
            SendInner::Shm(send) => send.core().peer(),
            SendInner::Verbs(_) => None,
            #[cfg(feature = "faults")]
            SendInner::Faulty(send) => send.with(|send| send.peer()),
        }
    }
}

impl ReceiveQueue {
    /// Posts a receive: for a peer's send that goes to `buffer`, or for one write with immediate
    /// data, which needs none.
    #[inline]
    pub fn post(&mut self, id: u64, buffer: Option<Slice<'_>>) -> Result<()> {
        self.0.check()?;
        match &mut *self.0 {
            ReceiveInner::Shm(receive) => receive.post(id, buffer),
            ReceiveInner::Verbs(receive) => receive.post(id, buffer),
        }
    }
}
