//! The connection to a caller, as its callee has it: the slots that requests arrive in, and the replies.
//!
//! * There are more receives than slots. At most one request a slot is under way, and a request's receive is posted
//!   again before the next one is looked at. So a caller that keeps to its slots never uses them up; one that does not,
//!   waits.
//! * An output area is written again when its slot is used again. That is after the caller has seen the reply, and has
//!   read the output if that stays in place. So its write is done, and no send completion has to be waited for.

use std::ops::Deref;
use std::time::{Duration, Instant};

use rdmalib::{
    CompletionQueue, Device, Domain, Flags, Operation, QueuePair, QueuePairConfig, RemoteAddress,
    RnrRetry, Source, Status, WorkCompletion, WorkRequest,
};
use rfaas_protocol::invocation::{
    FailureDetail, HEADER_SPACE, InPlaceDetail, ReplyImmediate, ReplyStatus,
};
use rfaas_protocol::session::WorkerHello;
use rfaas_protocol::{Hello, Role, Secret};
use zerocopy::IntoBytes;

use super::end::ServiceEnd;
use super::layout::{Layout, Slot};
use super::memory::SlotMemory;
use super::requests::KeptHeader;

/// Completions taken from the queue at a time.
const BATCH: usize = 16;
/// Receives posted beyond the number of slots.
const SPARE_RECEIVES: u32 = 31;
/// Fewest replies that the send queue holds: enough that not every one needs to be signaled.
const MIN_SEND_DEPTH: u32 = 64;
/// Time that a caller has to take replies when the send queue is full. One that keeps to its slots never fills it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the queue depths of a worker with `slots` slots: sends, receives.
fn depths(slots: u16) -> (u32, u32) {
    let slots = u32::from(slots);
    // Twice, because a reply leaves the queue only when a later signaled one has completed.
    ((2 * slots).max(MIN_SEND_DEPTH), slots + SPARE_RECEIVES)
}

/// Makes a queue for the requests of one worker.
pub fn request_queue(device: &Device, layout: &Layout) -> rdmalib::Result<CompletionQueue> {
    device.completion_queue(depths(layout.slots()).1)
}

/// The connection. `M` has the memory of its slots.
#[derive(Debug)]
pub struct CallerConnection<M> {
    queue_pair: QueuePair, // first: fields drop in order, and its requests name the memory below
    sent: CompletionQueue,
    memory: M,
    /// Where small outputs are copied to be sent inline.
    inline: Box<[u8]>,
    /// Replies since the last signaled one.
    unsignaled: u32,
    signal_every: u32,
}

impl<M: Deref<Target = SlotMemory>> CallerConnection<M> {
    /// Makes an unconnected one, whose requests complete into `requests`. `memory` is in `domain`, which nothing else
    /// is in: the caller reaches the slots with it, and nothing else. An error says what the device could not provide.
    pub fn new(
        device: &Device,
        domain: &Domain,
        memory: M,
        requests: &CompletionQueue,
    ) -> Result<Self, (&'static str, rdmalib::Error)> {
        let failed = |what| move |error| (what, error);
        let (send_depth, receive_depth) = depths(memory.layout().slots());
        let config = QueuePairConfig {
            send_depth,
            receive_depth,
            max_inline_data: device.spec().max_inline_data.min(device.limits().max_inline_data),
            rnr_retry: RnrRetry::Forever, // a slow caller is not a broken one
            ..QueuePairConfig::default()
        };
        let sent = device.completion_queue(send_depth).map_err(failed("completion queue"))?;
        let mut queue_pair =
            QueuePair::new(domain, &sent, requests, &config).map_err(failed("queue pair"))?;
        for _ in 0..receive_depth {
            queue_pair.post_receive(0, None).map_err(failed("receives"))?;
        }
        Ok(CallerConnection {
            queue_pair,
            sent,
            memory,
            inline: vec![0; config.max_inline_data as usize].into(),
            unsignaled: 0,
            signal_every: send_depth / 4,
        })
    }

    /// Connects to the caller as worker number `worker` of `session`. `dial` connects with what is to be said first.
    pub fn connect<E>(
        &mut self,
        session: Secret,
        worker: u16,
        dial: impl FnOnce(&mut QueuePair, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (layout, inputs) = (self.memory.layout(), self.memory.remote_inputs());
        let hello = WorkerHello {
            session,
            worker: worker.into(),
            slots: layout.slots().into(),
            slot_stride: layout.slot_stride().into(),
            input_addr: inputs.addr.into(),
            input_key: inputs.key.into(),
        };
        dial(&mut self.queue_pair, &Hello::with(Role::Worker, &hello))?;
        self.sent.poll_one(); // what the first poll of a queue costs is paid now
        Ok(())
    }

    /// Returns the memory of the slots.
    #[inline]
    pub(super) fn memory(&self) -> &SlotMemory {
        &self.memory
    }

    /// Posts the receive of a request again.
    #[inline]
    pub(super) fn repost_receive(&mut self) -> rdmalib::Result<()> {
        self.queue_pair.post_receive(0, None)
    }

    /// Replies with the first `bytes` bytes of output in `slot`, which go to where the caller wants them.
    #[inline]
    pub(super) fn reply(
        &mut self,
        slot: Slot,
        request: &KeptHeader,
        bytes: u32,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), ServiceEnd> {
        let flags = self.flags();
        let work = |source| write(slot, request, ReplyStatus::Ok, source, request.reply, flags);
        let posted = match self.inline.get_mut(..bytes as usize) {
            Some(copy) if bytes > 0 => {
                self.memory.read_output(slot, copy)?;
                self.queue_pair.post(&work(Source::Inline(copy)))
            }
            _ => {
                let output = self.memory.output(slot, bytes)?;
                self.queue_pair.post(&work(Source::Region(output)))
            }
        };
        match posted {
            Ok(()) => Ok(()),
            Err(rdmalib::Error::QueueFull { .. }) => {
                let (memory, queue_pair) = (&self.memory, &mut self.queue_pair);
                let work = work(Source::Region(memory.output(slot, bytes)?));
                post_when_there_is_room(queue_pair, &mut self.sent, &work, is_stopped)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the flags of the next reply. One of so many is signaled, which makes room for those before. The caller
    /// may sleep, so all ring its bell.
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

    /// Returns why the connection ended: a failed reply, if that is why.
    pub(super) fn why_ended(&mut self) -> ServiceEnd {
        while let Some(done) = self.sent.poll_one() {
            if !matches!(done.status, Status::Success | Status::Flushed) {
                return ServiceEnd::Reply(done.status);
            }
        }
        ServiceEnd::Disconnected
    }

    /// Tells the caller that the `bytes` bytes of output stay in `slot`, and where that is.
    #[inline(never)] // one branch is what it costs other replies
    pub(super) fn reply_in_place(
        &mut self,
        slot: Slot,
        request: &KeptHeader,
        bytes: u32,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), ServiceEnd> {
        let output = self.memory.remote_output(slot);
        let detail = InPlaceDetail {
            output_addr: output.addr.into(),
            output_key: output.key.into(),
            output_bytes: bytes.into(),
        };
        let flags = self.flags();
        let source = if self.inline.len() >= size_of::<InPlaceDetail>() {
            Source::Inline(detail.as_bytes())
        } else {
            Source::Region(self.memory.detail(slot, &detail)?)
        };
        let work = write(slot, request, ReplyStatus::Ok, source, request.reply, flags);
        match self.queue_pair.post(&work) {
            Err(rdmalib::Error::QueueFull { .. }) => {
                post_when_there_is_room(&mut self.queue_pair, &mut self.sent, &work, is_stopped)
            }
            posted => Ok(posted?),
        }
    }

    /// Tells the caller that the call failed; `needed_bytes` as in [`FailureDetail`].
    #[cold]
    pub(super) fn reply_failure(
        &mut self,
        slot: Slot,
        request: &KeptHeader,
        status: ReplyStatus,
        needed_bytes: u32,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), ServiceEnd> {
        let to = request.reply.offset((HEADER_SPACE as u64).wrapping_neg());
        let flags = self.flags();
        let detail = FailureDetail { needed_bytes: u64::from(needed_bytes).into() };
        let source = Source::Region(self.memory.detail(slot, &detail)?);
        let work = write(slot, request, status, source, to, flags);
        post_when_there_is_room(&mut self.queue_pair, &mut self.sent, &work, is_stopped)
    }
}

#[inline]
fn write<'a>(
    slot: Slot,
    request: &KeptHeader,
    status: ReplyStatus,
    source: Source<'a>,
    to: RemoteAddress,
    flags: Flags,
) -> WorkRequest<'a> {
    let sequence = request.sequence as u8; // its low byte is what returns
    let immediate = ReplyImmediate { slot: slot.number(), status, sequence }.to_wire();
    WorkRequest {
        id: 0,
        operation: Operation::Write { source, to, immediate: Some(immediate) },
        flags,
    }
}

/// Posts `request`. While the queue is full, waits for the caller to take earlier replies.
#[cold]
fn post_when_there_is_room(
    queue_pair: &mut QueuePair,
    sent: &mut CompletionQueue,
    request: &WorkRequest<'_>,
    is_stopped: impl Fn() -> bool,
) -> Result<(), ServiceEnd> {
    // Signaled, so that a queue full of unsignaled replies comes to an end.
    let request = WorkRequest { flags: request.flags | Flags::SIGNALED, ..*request };
    let deadline = Instant::now() + REPLY_TIMEOUT;
    loop {
        match queue_pair.post(&request) {
            Ok(()) => return Ok(()),
            Err(rdmalib::Error::QueueFull { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(done) = sent.poll_one() {
            match done.status {
                Status::Success => {}
                Status::Flushed => return Err(ServiceEnd::Disconnected),
                status => return Err(ServiceEnd::Reply(status)),
            }
        }
        if is_stopped() {
            return Err(ServiceEnd::Stopped);
        }
        if Instant::now() >= deadline {
            return Err(ServiceEnd::NotTaken);
        }
        std::thread::yield_now();
    }
}
