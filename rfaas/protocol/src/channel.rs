//! A control connection: messages of this crate over one queue pair.
//!
//! ```text
//!   send ──▶ [send slots] ──▶ queue pair ──▶ peer          a slot is free again when its send completed
//!   take ◀── [arrived] ◀── completion queue ◀── peer       a receive is posted again when it was copied out
//! ```
//! Each channel has its own completion queue, whose descriptor tells of this peer alone, and its own
//! protection domain, so that a peer reaches only what was registered for it.
//! * Slots and receives are allocated once. A peer that floods fills its receives and then waits. A peer that takes
//!   nothing fills our slots, and then the user of the channel handles [`ChannelError::Busy`].
//! * A peer of the embedded device shares the memory of the domain. That of a manager's channels is as large as their
//!   messages need from the start, and stays so.
//! * The end of the connection is reported after every message that arrived before it: receives
//!   complete in the order of arrival, so the end is the first receive that failed, not a failed
//!   send.
//! * A message that is sent unannounced wakes nobody. It is taken in its turn, with the next one at the latest.
//! * Received bytes are copied out of the registered memory once, then parsed.
//!
//! Elsewhere: what the messages mean; deciding what to do with a peer that misbehaves; calls, which use queue pairs
//! directly.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, Domain, Flags, Notify, Opcode, Operation,
    PrivateData, QueuePair, QueuePairConfig, Region, RemoteAddress, RnrRetry, Source, State,
    Status, WorkCompletion, WorkRequest,
};
use zerocopy::IntoBytes;

use crate::reach::{self, Tried};
use crate::{Bytes, Hello, MAX_MESSAGE_BYTES, Malformed, MessageKind, Refusal, Role, parse_prefix};

/// Deepest receive queue of the embedded device; RDMA cards have as many or more.
pub const MOST_RECEIVES: u32 = 16_384;

/// Messages that may be under way to a peer before [`ChannelError::Busy`]: more than any conversation
/// has open at once, and still only 64 KiB a peer.
const SEND_SLOTS: u32 = 64;

/// Bytes of a page, in which memory is handed out.
const PAGE: usize = 4096;

/// Completions taken from the queue at a time.
const BATCH: usize = 16;

/// Bit of a request's id: it is a receive, and the rest is its buffer. Without it, a send slot.
const RECEIVE: u64 = 1 << 32;

/// One variant for each decision that the user of a channel may take.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The device refused: nobody listens, out of memory, a broken argument.
    #[error(transparent)]
    Rdma(rdmalib::Error),
    /// The peer refused the connection, in its words.
    #[error("the peer refused the connection: {0}")]
    Refused(String),
    /// A process listens there that did not prove to be the one that is meant. Nothing was sent to it.
    #[error(
        "who listens at {address} ({}) did not prove to know the cluster's secret: that of both sides must be the same, \
         or somebody passes for the other side",
        peer.as_deref().unwrap_or("unknown to the device")
    )]
    Unproved {
        /// The address.
        address: SocketAddr,
        /// Which process that is, as far as the device knows.
        peer: Option<String>,
    },
    /// The peer sent bytes that are no message; do not talk to it any further.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The connection has ended and everything that arrived before was taken.
    #[error("the connection has ended")]
    Disconnected,
    /// The deadline passed first; the connection is as it was.
    #[error("{what} timed out after {after:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The peer does not take our messages: as many as may be are under way. Try again later, or give it up.
    #[error("the peer does not take messages: {SEND_SLOTS} are under way")]
    Busy,
    /// The peer has several addresses, and was reached at none.
    #[error("none of its addresses answers: {}", reach::list(.0))]
    NoneReached(Vec<Tried>),
}

impl From<rdmalib::Error> for ChannelError {
    fn from(error: rdmalib::Error) -> Self {
        match error {
            rdmalib::Error::Disconnected => ChannelError::Disconnected,
            rdmalib::Error::TimedOut { what, after } => ChannelError::TimedOut { what, after },
            rdmalib::Error::QueueFull { .. } => ChannelError::Busy,
            other => ChannelError::Rdma(other),
        }
    }
}

/// What a peer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming<M> {
    /// It sent a message.
    Message(M),
    /// It wrote to memory that we gave it the key of, with immediate data.
    Written {
        /// The immediate data.
        immediate: u32,
        /// How many bytes it wrote.
        bytes: u32,
    },
}

/// A receive that a peer used up and that was not taken yet.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    buffer: u32,
    bytes: u32,
    /// The immediate data of a write; a message has none.
    written: Option<u32>,
}

/// One end of a control connection.
pub struct Channel {
    queue_pair: QueuePair, // first: fields drop in order, and its requests name the regions below
    send_slots: Region,
    receive_buffers: Region,
    completions: CompletionQueue,
    domain: Domain,
    /// Send slots that no request uses.
    free: Vec<u32>,
    arrived: VecDeque<Arrival>,
    /// Receives that the device holds.
    posted: u32,
    /// A receive failed: nothing arrives after it.
    ended: bool,
    /// A send failed: the peer does not have everything.
    send_failed: bool,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Channel({:?})", self.queue_pair)
    }
}

impl Channel {
    /// Makes an unconnected channel, on which a peer may be `receive_depth` messages or writes (at
    /// least one) ahead of us before it has to wait. Costs 1 KiB of registered memory for each.
    pub fn new(device: &Device, receive_depth: u32) -> Result<Channel, ChannelError> {
        Self::in_domain(device, device.domain()?, receive_depth)
    }

    /// Makes one for messages only: nothing else can be registered in its [`domain`](Self::domain),
    /// and a peer cannot make that larger.
    pub fn of_messages(device: &Device, receive_depth: u32) -> Result<Channel, ChannelError> {
        let depth = receive_depth as usize;
        // Slots, receive buffers, and the device's own of each receive, which is less; each in whole pages.
        let messages = depth.saturating_mul(2).saturating_add(SEND_SLOTS as usize);
        let bytes = messages.saturating_mul(MAX_MESSAGE_BYTES).saturating_add(3 * PAGE);
        Self::in_domain(device, device.fixed_domain(bytes)?, receive_depth)
    }

    fn in_domain(
        device: &Device,
        domain: Domain,
        receive_depth: u32,
    ) -> Result<Channel, ChannelError> {
        if receive_depth == 0 {
            return Err(
                rdmalib::Error::InvalidArgument("a channel has at least one receive").into()
            );
        }
        let completions = device.completion_queue(SEND_SLOTS.saturating_add(receive_depth))?;
        let config = QueuePairConfig {
            send_depth: SEND_SLOTS,
            receive_depth,
            max_inline_data: 0,
            // A slow peer is not a broken one: whatever needs its answer has a deadline.
            rnr_retry: RnrRetry::Forever,
            ..QueuePairConfig::default()
        };
        let queue_pair = QueuePair::new(&domain, &completions, &completions, &config)?;
        let buffers = |count: u32, access| {
            domain.allocate((count as usize).saturating_mul(MAX_MESSAGE_BYTES), access)
        };
        let mut channel = Channel {
            queue_pair,
            send_slots: buffers(SEND_SLOTS, Access::empty())?,
            receive_buffers: buffers(receive_depth, Access::LOCAL_WRITE)?,
            completions,
            domain,
            free: (0..SEND_SLOTS).rev().collect(),
            arrived: VecDeque::with_capacity(receive_depth as usize),
            posted: 0,
            ended: false,
            send_failed: false,
        };
        for buffer in 0..receive_depth {
            channel.post_receive(buffer)?;
        }
        Ok(channel)
    }

    /// Returns the domain to register memory in that this one peer may reach.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Has [`connect`](Self::connect) refuse a listener that is not of this user, where the device knows
    /// users. Nothing is sent to it.
    pub fn expect_listener(&mut self, user: Option<u32>) {
        self.queue_pair.expect_listener(user);
    }

    /// Returns which process is at the other end, as far as the device knows; for people.
    pub fn peer(&self) -> Option<String> {
        self.queue_pair.peer()
    }

    /// Connects to the listener at `to` as `role`, telling it `body`; returns what it answered when it
    /// accepted, to be read with [`parse_prefix`]. Waits for at most `timeout`. A channel that could
    /// not be connected is of no further use.
    pub fn connect(
        &mut self,
        to: SocketAddr,
        role: Role,
        body: &impl Bytes,
        timeout: Duration,
    ) -> Result<PrivateData, ChannelError> {
        let hello = Hello::with(role, body);
        self.queue_pair.connect(to, &hello, timeout).map_err(|error| match error {
            rdmalib::Error::Rejected { private_data } => match refusal(private_data.as_slice()) {
                Some(why) => ChannelError::Refused(why),
                None => ChannelError::Rdma(rdmalib::Error::Rejected { private_data }),
            },
            other => other.into(),
        })
    }

    /// Connects the peer that asked, answering it `reply`.
    pub fn accept(
        &mut self,
        request: ConnectRequest,
        reply: &impl Bytes,
    ) -> Result<(), ChannelError> {
        Ok(request.accept(&mut self.queue_pair, reply.as_bytes())?)
    }

    /// Sends a message. Never waits: [`ChannelError::Busy`] if the peer takes none.
    pub fn send<M: MessageKind>(&mut self, message: &M) -> Result<(), ChannelError> {
        self.send_as(message, Flags::SOLICITED)
    }

    /// Sends a message that a peer which has [armed for announced ones](Self::arm_for_announced) is not told of: it is
    /// there when that looks the next time. For signs of life, whose times both know.
    pub fn send_unannounced<M: MessageKind>(&mut self, message: &M) -> Result<(), ChannelError> {
        self.send_as(message, Flags::empty())
    }

    fn send_as<M: MessageKind>(&mut self, message: &M, flags: Flags) -> Result<(), ChannelError> {
        let bytes = message.encode();
        assert!(bytes.len() <= MAX_MESSAGE_BYTES, "checked where messages are defined");
        let slot = self.take_slot()?;
        let start = slot as usize * MAX_MESSAGE_BYTES;
        let posted = self.send_slots.write(start, &bytes).and_then(|()| {
            let source = Source::Region(self.send_slots.slice(start..start + bytes.len())?);
            self.queue_pair.post(&WorkRequest {
                id: u64::from(slot),
                operation: Operation::Send { source, immediate: None },
                flags: flags | Flags::SIGNALED,
            })
        });
        self.slot_used(slot, posted)
    }

    /// Writes the first `len` bytes of `source`, a region of [`domain`](Self::domain), to the peer's
    /// memory and tells it with `immediate`. Never waits. The region must stay as it is until the
    /// peer has answered or [`flush`](Self::flush) has returned.
    pub fn write_with_immediate(
        &mut self,
        source: &Region,
        len: usize,
        to: RemoteAddress,
        immediate: u32,
    ) -> Result<(), ChannelError> {
        let source = Source::Region(source.slice(0..len)?);
        let slot = self.take_slot()?; // its bytes stay unused: it only counts the request
        let posted = self.queue_pair.post(&WorkRequest {
            id: u64::from(slot),
            operation: Operation::Write { source, to, immediate: Some(immediate) },
            flags: Flags::SIGNALED | Flags::SOLICITED,
        });
        self.slot_used(slot, posted)
    }

    /// Waits until the peer has everything that was sent, for at most `timeout`; with zero it does not wait.
    /// For a last word before [`disconnect`](Self::disconnect), which cuts off what is under way.
    pub fn flush(&mut self, timeout: Duration) -> Result<(), ChannelError> {
        let start = Instant::now();
        loop {
            self.poll();
            if self.send_failed {
                return Err(ChannelError::Disconnected);
            }
            if self.free.len() == SEND_SLOTS as usize {
                return Ok(());
            }
            self.sleep("sending", start, timeout)?;
        }
    }

    /// Returns what arrived first and was not taken yet, if anything. Never waits.
    /// [`ChannelError::Disconnected`] once everything that arrived was taken.
    pub fn try_receive<M: MessageKind>(&mut self) -> Result<Option<Incoming<M>>, ChannelError> {
        if self.arrived.is_empty() {
            self.poll();
        }
        let Some(arrival) = self.arrived.pop_front() else {
            return if self.is_over() { Err(ChannelError::Disconnected) } else { Ok(None) };
        };
        // The length is the device's word, but the bytes are the peer's: one copy.
        let mut copy = [0; MAX_MESSAGE_BYTES];
        let len = (arrival.bytes as usize).min(MAX_MESSAGE_BYTES);
        if arrival.written.is_none() {
            let start = arrival.buffer as usize * MAX_MESSAGE_BYTES;
            self.receive_buffers.read(start, &mut copy[..len])?;
        }
        if let Err(error) = self.post_receive(arrival.buffer) {
            // The connection is over; what arrived before is still delivered.
            tracing::debug!(%error, "receive not posted again");
        }
        if let Some(immediate) = arrival.written {
            return Ok(Some(Incoming::Written { immediate, bytes: arrival.bytes }));
        }
        Ok(Some(Incoming::Message(M::decode(&copy[..len])?)))
    }

    /// Returns what arrives next, within `timeout`.
    pub fn receive<M: MessageKind>(
        &mut self,
        timeout: Duration,
    ) -> Result<Incoming<M>, ChannelError> {
        let start = Instant::now();
        loop {
            if let Some(incoming) = self.try_receive()? {
                return Ok(incoming);
            }
            self.sleep("waiting for a message", start, timeout)?;
        }
    }

    /// Asks for the descriptor ([`AsFd`]) to become readable when something arrives or the connection
    /// ends. Before sleeping on it, [`try_receive`](Self::try_receive) until there is nothing: what
    /// arrived before this call is not announced.
    pub fn arm(&mut self) -> Result<(), ChannelError> {
        Ok(self.completions.arm(Notify::Any)?)
    }

    /// Does the same, but for what was [sent unannounced](Self::send_unannounced). That the peer has taken what was
    /// sent to it, so that there is room for more, is not announced either.
    ///
    /// Of a connection that has ended everything is announced: a device need not take what it flushes for urgent.
    pub fn arm_for_announced(&mut self) -> Result<(), ChannelError> {
        let notify = match self.queue_pair.state() {
            State::Error => Notify::Any,
            State::Init | State::Connected => Notify::Solicited,
        };
        Ok(self.completions.arm(notify)?)
    }

    /// Takes back the announcement; to be called when the descriptor was readable, before arming
    /// again.
    pub fn acknowledge(&mut self) -> Result<(), ChannelError> {
        Ok(self.completions.acknowledge()?)
    }

    /// Returns whether messages can be sent: false before a connection and from its end on, even
    /// while messages that arrived before it wait to be taken.
    pub fn is_connected(&self) -> bool {
        !self.ended && self.queue_pair.state() == State::Connected
    }

    /// Ends the connection at once, also for what is under way. Idempotent.
    pub fn disconnect(&mut self) {
        self.queue_pair.disconnect();
    }

    /// Lets messages and writes from now on meet the faults of `script`; the first of them is number 0.
    /// The peer has to cope with messages that are lost, doubled, late or cut.
    #[cfg(feature = "faults")]
    pub fn inject(&mut self, script: rdmalib::faults::Script) {
        self.queue_pair.inject(script);
    }

    /// Returns a free send slot, after looking whether sends have completed.
    fn take_slot(&mut self) -> Result<u32, ChannelError> {
        self.poll();
        if self.ended || self.send_failed {
            return Err(ChannelError::Disconnected);
        }
        self.free.pop().ok_or(ChannelError::Busy)
    }

    /// Gives `slot` back if its request was not posted: no completion will.
    fn slot_used(&mut self, slot: u32, posted: rdmalib::Result<()>) -> Result<(), ChannelError> {
        posted.map_err(|error| {
            self.free.push(slot);
            error.into()
        })
    }

    fn post_receive(&mut self, buffer: u32) -> Result<(), ChannelError> {
        let start = buffer as usize * MAX_MESSAGE_BYTES;
        let slice = self.receive_buffers.slice(start..start + MAX_MESSAGE_BYTES)?;
        self.queue_pair.post_receive(RECEIVE | u64::from(buffer), Some(slice))?;
        self.posted += 1;
        Ok(())
    }

    /// Returns whether nothing can arrive any more. Without a posted receive none can fail, so then
    /// the state has to tell.
    fn is_over(&self) -> bool {
        self.arrived.is_empty()
            && (self.ended || (self.posted == 0 && self.queue_pair.state() == State::Error))
    }

    /// Takes all completions: frees send slots, notes arrivals. Ends, since nothing is posted here.
    fn poll(&mut self) {
        let mut batch = [WorkCompletion::default(); BATCH];
        loop {
            let taken = self.completions.poll(&mut batch);
            batch[..taken].iter().for_each(|completion| self.complete(completion));
            if taken < BATCH {
                return;
            }
        }
    }

    fn complete(&mut self, completion: &WorkCompletion) {
        if !matches!(completion.status, Status::Success | Status::Flushed) {
            tracing::debug!(status = ?completion.status, "request failed; the connection ends");
        }
        let index = completion.id as u32; // the low half; the bit above it is the kind
        if completion.id & RECEIVE == 0 {
            self.free.push(index);
            self.send_failed |= completion.status != Status::Success;
            return;
        }
        self.posted -= 1;
        if completion.status != Status::Success {
            self.ended = true;
            return;
        }
        let written = (completion.opcode == Opcode::ReceiveWithImmediate)
            .then(|| completion.immediate.unwrap_or_default());
        self.arrived.push_back(Arrival { buffer: index, bytes: completion.bytes, written });
    }

    /// Sleeps until there may be something new; an error once `timeout` after `start` has come.
    fn sleep(
        &mut self,
        what: &'static str,
        start: Instant,
        timeout: Duration,
    ) -> Result<(), ChannelError> {
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(ChannelError::TimedOut { what, after: timeout });
        }
        Ok(self.completions.wait(Some(left))?)
    }
}

/// Readable when an [armed](Channel::arm) channel has news: for `poll(2)` or an async runtime.
impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.completions.as_fd()
    }
}

/// Bounds what this process takes in peers' memory: no more than messages of the deepest channel need. For programs
/// whose connections are all channels, or as small.
pub fn limit_peers_to_messages() {
    rdmalib::limit_peers(u64::from(MOST_RECEIVES) * MAX_MESSAGE_BYTES as u64);
}

/// Refuses the peer that asked, telling it `why` as far as it fits (120 bytes).
pub fn refuse(request: ConnectRequest, why: &str) {
    if let Err(error) = request.reject(Refusal::truncated(why).as_bytes()) {
        tracing::debug!(%error, why, "the refused peer could not be told"); // it is gone: no harm
    }
}

/// Returns the peer's words in a rejection, fit for a terminal, if there are any.
fn refusal(private_data: &[u8]) -> Option<String> {
    let refusal: Refusal = parse_prefix(private_data).ok()?;
    let text = refusal.get().ok().filter(|text| !text.is_empty())?;
    Some(text.replace(char::is_control, " "))
}
