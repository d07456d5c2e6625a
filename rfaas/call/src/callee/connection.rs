//! The connection to a caller, as its callee has it: the slots that requests arrive in, and the replies.
//!
//! * There are more receives than slots. At most one request a slot is under way, and a request's receive is posted
//!   again before the next one is looked at. So a caller that keeps to its slots never uses them up; one that does not,
//!   waits.
//! * An output area is written again when its slot is used again. That is after the caller has seen the reply, and has
//!   read the output if that stays in place. So its write is done, and no send completion has to be waited for.

use std::ops::Deref;

use rdmalib::{CompletionQueue, Device, Domain, QueuePair, Source};
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
use crate::writer::{NotWritten, Writer};

/// Receives posted beyond the number of slots.
const SPARE_RECEIVES: u32 = 31;

/// Returns how many receives a worker with `slots` slots posts.
fn receives(slots: u16) -> u32 {
    u32::from(slots) + SPARE_RECEIVES
}

/// Makes a queue for the requests of one worker.
pub fn request_queue(device: &Device, layout: &Layout) -> rdmalib::Result<CompletionQueue> {
    device.completion_queue(receives(layout.slots()))
}

/// The connection. `M` has the memory of its slots.
#[derive(Debug)]
pub struct CallerConnection<M> {
    writer: Writer, // first: fields drop in order, and its requests name the memory below
    memory: M,
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
        let slots = memory.layout().slots();
        let writer = Writer::new(device, domain, slots.into(), (requests, 0, receives(slots)))?;
        Ok(CallerConnection { writer, memory })
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
        dial(self.writer.queue_pair(), &Hello::with(Role::Worker, &hello))?;
        self.writer.warm_up();
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
        self.writer.repost_receive(0)
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
        let immediate = immediate(slot, request, ReplyStatus::Ok);
        let output = self.memory.output(slot);
        Ok(self.writer.write(
            (output.0, output.1, bytes),
            request.reply,
            Some(immediate),
            is_stopped,
        )?)
    }

    /// Returns why the connection ended: a failed reply, if that is why.
    pub(super) fn why_ended(&mut self) -> ServiceEnd {
        self.writer.failure().map_or(ServiceEnd::Disconnected, ServiceEnd::Reply)
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
        let source = if self.writer.most_inline() >= size_of::<InPlaceDetail>() {
            Source::Inline(detail.as_bytes())
        } else {
            Source::Region(self.memory.detail(slot, &detail)?)
        };
        let immediate = immediate(slot, request, ReplyStatus::Ok);
        Ok(self.writer.write_source(source, request.reply, immediate, is_stopped)?)
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
        let detail = FailureDetail { needed_bytes: u64::from(needed_bytes).into() };
        let source = Source::Region(self.memory.detail(slot, &detail)?);
        let immediate = immediate(slot, request, status);
        Ok(self.writer.write_source(source, to, immediate, is_stopped)?)
    }
}

#[inline]
fn immediate(slot: Slot, request: &KeptHeader, status: ReplyStatus) -> u32 {
    let sequence = request.sequence as u8; // its low byte is what returns
    ReplyImmediate { slot: slot.number(), status, sequence }.to_wire()
}

impl From<NotWritten> for ServiceEnd {
    fn from(why: NotWritten) -> Self {
        match why {
            NotWritten::Stopped => ServiceEnd::Stopped,
            NotWritten::Disconnected => ServiceEnd::Disconnected,
            NotWritten::Failed(status) => ServiceEnd::Reply(status),
            NotWritten::NotTaken => ServiceEnd::NotTaken,
            NotWritten::Device(error) => ServiceEnd::Device(error),
        }
    }
}
