//! The sending half of a connection of a server: writes with immediate data, out of memory that functions write.
//!
//! * Small payloads are copied to be sent inline. Of so many writes one is signaled, which makes room in the send queue
//!   for those before it; a failure also ends the receives of the connection.
//! * While the queue is full, the peer has some time to take the next of the earlier writes. One of few slots that
//!   keeps to these never fills it.

use std::time::{Duration, Instant};

use rdmalib::{
    CompletionQueue, Device, Domain, Flags, Operation, QueuePair, QueuePairConfig, Region,
    RemoteAddress, RnrRetry, Source, Status, WorkCompletion, WorkRequest,
};
use rfaas_protocol::invocation::MAX_SLOTS;

/// Completions taken from the queue at a time.
const BATCH: usize = 16;
/// Fewest writes that the send queue holds: enough that not every one needs to be signaled.
const MIN_SEND_DEPTH: u32 = 64;
/// Most: what is more waits for the adapter to have sent what is before it.
const MAX_SEND_DEPTH: u32 = 2 * MAX_SLOTS as u32;
/// Most writes of which one is signaled, so that a full queue has room again soon.
const MAX_UNSIGNALED: u32 = 64;
/// Time that a peer has to take the next writes when the send queue is full.
const TAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why something was not written.
#[derive(Debug)]
pub(crate) enum NotWritten {
    /// This thread was stopped while it waited for room.
    Stopped,
    /// The peer ended the connection, or is gone.
    Disconnected,
    /// An earlier write failed.
    Failed(Status),
    /// The peer posts no receives.
    NotTaken,
    /// The device refused it.
    Device(rdmalib::Error),
}

impl From<rdmalib::Error> for NotWritten {
    fn from(error: rdmalib::Error) -> Self {
        NotWritten::Device(error)
    }
}

/// The connection, and what is in flight on it.
#[derive(Debug)]
pub(crate) struct Writer {
    queue_pair: QueuePair,
    sent: CompletionQueue,
    /// Where small payloads are copied to be sent inline.
    inline: Box<[u8]>,
    /// Writes since the last signaled one.
    unsignaled: u32,
    signal_every: u32,
}

impl Writer {
    /// Makes an unconnected one for a peer that is written so many `payloads` at a time, whose writes may be from
    /// memory of `domain`. `receives` of them are posted under `id`, and complete into `arrivals`. An error says what
    /// the device could not provide.
    pub(crate) fn new(
        device: &Device,
        domain: &Domain,
        payloads: u32,
        (arrivals, id, receives): (&CompletionQueue, u64, u32),
    ) -> Result<Self, (&'static str, rdmalib::Error)> {
        let failed = |what| move |error| (what, error);
        // Twice, because a write leaves the queue only when a later signaled one has completed.
        let send_depth = payloads.saturating_mul(2).clamp(MIN_SEND_DEPTH, MAX_SEND_DEPTH);
        let config = QueuePairConfig {
            send_depth,
            receive_depth: receives,
            max_inline_data: device.spec().max_inline_data.min(device.limits().max_inline_data),
            rnr_retry: RnrRetry::Forever, // a slow peer is not a broken one
            ..QueuePairConfig::default()
        };
        let sent = device.completion_queue(send_depth).map_err(failed("completion queue"))?;
        let mut queue_pair =
            QueuePair::new(domain, &sent, arrivals, &config).map_err(failed("queue pair"))?;
        for _ in 0..receives {
            queue_pair.post_receive(id, None).map_err(failed("receives"))?;
        }
        Ok(Writer {
            queue_pair,
            sent,
            inline: vec![0; config.max_inline_data as usize].into(),
            unsignaled: 0,
            signal_every: (send_depth / 4).min(MAX_UNSIGNALED),
        })
    }

    /// Returns the connection, to be connected or accepted.
    pub(crate) fn queue_pair(&mut self) -> &mut QueuePair {
        &mut self.queue_pair
    }

    /// Pays now what the first poll of a queue costs.
    pub(crate) fn warm_up(&mut self) {
        self.sent.poll_one();
    }

    /// Posts a receive again.
    #[inline]
    pub(crate) fn repost_receive(&mut self, id: u64) -> rdmalib::Result<()> {
        self.queue_pair.post_receive(id, None)
    }

    /// Returns the most bytes that are sent inline.
    #[inline]
    pub(crate) fn most_inline(&self) -> usize {
        self.inline.len()
    }

    /// Writes `bytes` bytes of `memory`, from `at` on, to `to`: with immediate data, unless the peer is not to notice.
    #[inline]
    pub(crate) fn write(
        &mut self,
        (memory, at, bytes): (&Region, usize, u32),
        to: RemoteAddress,
        immediate: Option<u32>,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        let flags = self.flags();
        let whole = || memory.slice(at..at + bytes as usize).map(Source::Region);
        let posted = match self.inline.get_mut(..bytes as usize) {
            Some(copy) if bytes > 0 => {
                memory.read(at, copy)?;
                self.queue_pair.post(&request(Source::Inline(copy), to, immediate, flags))
            }
            _ => self.queue_pair.post(&request(whole()?, to, immediate, flags)),
        };
        match posted {
            Ok(()) => Ok(()),
            Err(rdmalib::Error::QueueFull { .. }) => {
                self.post_when_there_is_room(request(whole()?, to, immediate, flags), is_stopped)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes `source` to `to`.
    #[inline]
    pub(crate) fn write_source(
        &mut self,
        source: Source<'_>,
        to: RemoteAddress,
        immediate: u32,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        let work = request(source, to, Some(immediate), self.flags());
        match self.queue_pair.post(&work) {
            Ok(()) => Ok(()),
            Err(rdmalib::Error::QueueFull { .. }) => self.post_when_there_is_room(work, is_stopped),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the flags of the next write. The peer may sleep, so all ring its bell.
    #[inline]
    fn flags(&mut self) -> Flags {
        let flags = Flags::SOLICITED | Flags::WITH_COMPLETION;
        self.unsignaled += 1;
        if self.unsignaled < self.signal_every {
            return flags;
        }
        self.unsignaled = 0;
        // What is there from the last signaled one makes room now; a failure also ends the receives.
        self.sent.poll(&mut [WorkCompletion::default(); BATCH]);
        flags | Flags::SIGNALED
    }

    /// Returns the failed write that has ended the connection, if that is why.
    pub(crate) fn failure(&mut self) -> Option<Status> {
        while let Some(done) = self.sent.poll_one() {
            if !matches!(done.status, Status::Success | Status::Flushed) {
                return Some(done.status);
            }
        }
        None
    }

    /// Posts `work`. While the queue is full, waits for the peer to take earlier writes.
    #[cold]
    fn post_when_there_is_room(
        &mut self,
        work: WorkRequest<'_>,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        // Signaled, so that a queue full of unsignaled writes comes to an end.
        let work = WorkRequest { flags: work.flags | Flags::SIGNALED, ..work };
        let mut deadline = Instant::now() + TAKE_TIMEOUT;
        loop {
            match self.queue_pair.post(&work) {
                Ok(()) => return Ok(()),
                Err(rdmalib::Error::QueueFull { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            while let Some(done) = self.sent.poll_one() {
                match done.status {
                    Status::Success => deadline = Instant::now() + TAKE_TIMEOUT, // it takes some
                    Status::Flushed => return Err(NotWritten::Disconnected),
                    status => return Err(NotWritten::Failed(status)),
                }
            }
            if is_stopped() {
                return Err(NotWritten::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(NotWritten::NotTaken);
            }
            std::thread::yield_now();
        }
    }
}

#[inline]
fn request(
    source: Source<'_>,
    to: RemoteAddress,
    immediate: Option<u32>,
    flags: Flags,
) -> WorkRequest<'_> {
    let operation = Operation::Write { source, to, immediate };
    WorkRequest { id: 0, operation, flags }
}
