//! The connection to one worker, as its caller has it: writes requests into the worker's slots and reads replies.
//!
//! ```text
//!   made ──accept──▶ Call ──header and input, or the input alone──▶ slot of the worker ──reply──▶ read_reply
//! ```
//! * A receive is posted for each slot, and more to spare than replies are read before their receives are posted again
//!   (`driver`). A request in each slot, and as many whose completion is still to come, fit the send queue.
//! * Whatever a worker says is checked. What is wrong with it is told to the caller, which cuts the connection.
//! * Memory of the worker is mapped once and kept for later calls. A call that uses a mapping holds it too, since the
//!   worker may be given up meanwhile.
//!
//! Elsewhere: which worker a call goes to, and what a loss means (`workers`).

use std::sync::Arc;

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, Domain, Flags, Opcode, Operation, QueuePair,
    QueuePairConfig, ReceiveQueue, RemoteAddress, RemoteMapping, SendQueue, Source, Status,
    WorkCompletion, WorkRequest,
};
use rfaas_protocol::invocation::{HEADER_SPACE, ReplyImmediate, ReplyStatus, RequestImmediate};
use rfaas_protocol::session::WorkerHello;

use super::buffer::{HEADER_OFFSET, InputBuffer};
use super::call::Call;
use super::outcome::Outcome;
use super::slots::Slots;
use super::tickets::{Ticket, Tickets};

/// Receives beyond one a slot: a worker that answers twice is to be found out, not to be blocked.
const SPARE_RECEIVES: u32 = 31;
/// Bit of a request's id that says that it is a receive. The rest is the worker. Without it, it is a write.
const RECEIVE: u64 = 1 << 32;
/// Most bytes that are copied to be sent inline; devices allow some hundred.
const MAX_INLINE: usize = 512;

/// How deep the queues of a worker's connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Depths {
    send: u32,
    receive: u32,
}

impl Depths {
    /// Those of a worker with `slots` slots, on a device with queues of at most `limit` entries. Where a send queue is
    /// too short for two requests a slot, some calls wait for others.
    fn new(slots: u16, limit: u32) -> Self {
        let slots = u32::from(slots);
        Depths { send: (2 * slots).max(32).min(limit), receive: slots + SPARE_RECEIVES }
    }

    /// Returns which of so many writes completes: often enough that the send queue never fills with writes whose
    /// completion nobody sees.
    fn signal_every(self) -> u32 {
        (self.send / 4).max(1)
    }
}

/// Makes the queue that all connections of a caller to `workers` workers complete into, each with `slots` slots.
pub fn completion_queue(
    device: &Device,
    workers: u16,
    slots: u16,
) -> rdmalib::Result<CompletionQueue> {
    let Depths { send, receive } = Depths::new(slots, device.limits().max_queue_depth);
    device.completion_queue((send + receive).saturating_mul(u32::from(workers)))
}

/// What a caller needs of a worker's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotNeeds {
    /// Slots that it uses.
    pub slots: u16,
    /// Largest input, in bytes.
    pub input_bytes: usize,
}

impl SlotNeeds {
    /// Checks what a worker offers; an error says what it lacks.
    pub fn check(&self, hello: &WorkerHello) -> Result<(), String> {
        if hello.slots.get() < self.slots {
            return Err(format!("{} slots are fewer than asked for", hello.slots.get()));
        }
        let line = HEADER_SPACE as u64;
        let (stride, addr) = (u64::from(hello.slot_stride.get()), hello.input_addr.get());
        if stride % line != 0 || addr % line != 0 {
            return Err("slots are not aligned to 64 bytes".into());
        }
        if stride < line + self.input_bytes as u64 {
            return Err(format!("slots of {stride} bytes are smaller than asked for"));
        }
        Ok(())
    }
}

/// Where a worker's slots are.
#[derive(Clone, Copy, Debug)]
struct SlotArea {
    first: RemoteAddress,
    stride: u32,
    count: u16,
}

/// What is mapped of a worker's memory.
#[derive(Debug, Default)]
struct Mappings {
    /// All slots, once they were asked for; `None` inside if the provider cannot map them.
    inputs: Option<Option<Arc<RemoteMapping>>>,
    /// For each slot: where its output is, and the mapping.
    outputs: Vec<Option<(RemoteAddress, Arc<RemoteMapping>)>>,
}

/// The sending half of a worker's connection, and what is in flight on it.
#[derive(Debug)]
pub struct WorkerConnection {
    send: SendQueue,
    area: SlotArea,
    pub(super) slots: Slots,
    alive: bool,
    /// Writes since the last that completes.
    unsignaled: u32,
    signal_every: u32,
    max_inline: usize,
    mappings: Mappings,
}

/// A connection that waits for its worker to dial.
#[derive(Debug)]
pub struct Unconnected {
    queue_pair: QueuePair,
    index: usize,
    depths: Depths,
    max_inline: usize,
}

/// A worker that was accepted, and the receiving half of its connection.
#[derive(Debug)]
pub struct Accepted {
    /// What is sent to it.
    pub connection: WorkerConnection,
    /// What comes from it.
    pub receives: ReceiveQueue,
}

impl Unconnected {
    /// Makes the connection to worker number `index` of a caller with these `needs`. Replies may land in the memory of
    /// `domain`.
    pub fn new(
        index: usize,
        needs: SlotNeeds,
        device: &Device,
        domain: &Domain,
        completions: &CompletionQueue,
    ) -> rdmalib::Result<Unconnected> {
        let limits = device.limits();
        let depths = Depths::new(needs.slots, limits.max_queue_depth);
        let config = QueuePairConfig {
            send_depth: depths.send,
            receive_depth: depths.receive,
            max_inline_data: limits.max_inline_data,
            ..QueuePairConfig::default()
        };
        let mut queue_pair = QueuePair::new(domain, completions, completions, &config)?;
        for _ in 0..depths.receive {
            queue_pair.post_receive(receive_id(index), None)?;
        }
        let max_inline = (limits.max_inline_data as usize).min(MAX_INLINE);
        Ok(Unconnected { queue_pair, index, depths, max_inline })
    }

    /// Accepts the worker that dials with `hello`, which was [checked](SlotNeeds::check) for `needs`. `None` if it is
    /// gone again.
    pub fn accept(
        mut self,
        request: ConnectRequest,
        hello: &WorkerHello,
        needs: SlotNeeds,
    ) -> Option<Accepted> {
        if let Err(error) = request.accept(&mut self.queue_pair, &[]) {
            tracing::debug!(%error, worker = self.index, "worker not connected");
            return None;
        }
        let (send, receives) = self.queue_pair.split();
        let area = SlotArea {
            first: RemoteAddress { addr: hello.input_addr.get(), key: hello.input_key.get() },
            stride: hello.slot_stride.get(),
            count: needs.slots,
        };
        let connection = WorkerConnection {
            send,
            area,
            slots: Slots::new(area.count),
            alive: true,
            unsignaled: 0,
            signal_every: self.depths.signal_every(),
            max_inline: self.max_inline,
            mappings: Mappings::default(),
        };
        Some(Accepted { connection, receives })
    }
}

/// Returns the worker whose reply `completion` is. The reply has used up a receive.
#[inline]
pub(super) fn replier(completion: &WorkCompletion) -> Option<usize> {
    let replied = completion.id & RECEIVE != 0 && completion.status == Status::Success;
    replied.then_some(worker_of(completion))
}

/// Returns the worker that `completion` is about.
#[inline]
pub(super) fn worker_of(completion: &WorkCompletion) -> usize {
    completion.id as u32 as usize // the low half; the bit above it is the kind
}

/// Returns whether `completion` is of a write, which has made room in the send queue.
#[inline]
pub(super) fn is_write(completion: &WorkCompletion) -> bool {
    completion.id & RECEIVE == 0
}

/// Returns the id of the receives of `worker`.
#[inline]
pub(super) fn receive_id(worker: usize) -> u64 {
    RECEIVE | worker as u64
}

impl WorkerConnection {
    /// Returns whether it was not cut.
    #[inline]
    pub(super) fn is_alive(&self) -> bool {
        self.alive
    }

    /// Returns the number of its slots.
    pub(super) fn slot_count(&self) -> u16 {
        self.area.count
    }

    /// Ends the connection. Returns the calls in flight on it.
    pub(super) fn cut(&mut self) -> Vec<Ticket> {
        self.send.disconnect();
        self.alive = false;
        self.mappings = Mappings::default();
        self.slots.drain()
    }

    /// Writes `call` into the next free slot of this connection, which is number `index`. The caller occupies that
    /// slot if it succeeds.
    #[inline]
    pub(super) fn post(&mut self, index: usize, call: &Call<'_>) -> rdmalib::Result<()> {
        let next = self.slots.next().expect("the caller chose a worker with a free slot");
        self.post_to(index, next, call)
    }

    /// Writes `call` into a slot, for its use with this sequence number: header and input, or the input alone if the
    /// worker keeps the header.
    #[inline]
    pub(super) fn post_to(
        &mut self,
        index: usize,
        (slot, sequence): (u16, u32),
        call: &Call<'_>,
    ) -> rdmalib::Result<()> {
        let request = call.kept_request();
        let again = request.is_some_and(|request| self.slots.keeps(slot, &request));
        let start = if again { HEADER_SPACE } else { HEADER_OFFSET };
        if !again {
            call.input.set_header(&call.header(sequence))?;
        }
        let offset = u64::from(slot) * u64::from(self.area.stride) + start as u64;
        let to = self.area.first.offset(offset);
        let immediate = RequestImmediate { slot: slot.into(), again };
        if HEADER_SPACE - start + call.input.len() <= self.max_inline {
            self.write_inline(index, call.input, start, to, immediate)?;
        } else {
            self.write(index, Source::Region(call.input.message(start)?), to, immediate)?;
        }
        if !again {
            self.slots.keep(slot, request);
        }
        Ok(())
    }

    /// Writes a request to `to`: what is in `input` from `start` on, which fits [`MAX_INLINE`].
    // Not inlined: zeroing the 512-byte buffer must not cost requests that are not sent inline.
    #[inline(never)]
    fn write_inline(
        &mut self,
        index: usize,
        input: &InputBuffer,
        start: usize,
        to: RemoteAddress,
        immediate: RequestImmediate,
    ) -> rdmalib::Result<()> {
        let mut copy = [0; MAX_INLINE];
        let message = input.copy_message(start, &mut copy)?;
        self.write(index, Source::Inline(message), to, immediate)
    }

    /// Writes a request to `to`.
    #[inline]
    fn write(
        &mut self,
        index: usize,
        source: Source<'_>,
        to: RemoteAddress,
        immediate: RequestImmediate,
    ) -> rdmalib::Result<()> {
        let completes = self.unsignaled + 1 >= self.signal_every;
        let signaled = if completes { Flags::SIGNALED } else { Flags::empty() };
        self.send.post(&WorkRequest {
            id: index as u64,
            operation: Operation::Write { source, to, immediate: Some(immediate.to_wire()) },
            flags: signaled | Flags::SOLICITED | Flags::WITH_COMPLETION,
        })?;
        self.unsignaled = if completes { 0 } else { self.unsignaled + 1 };
        Ok(())
    }

    /// Returns which call a receive completion answers, and how; or what is wrong with it.
    #[inline]
    pub(super) fn read_reply<C: Copy + PartialEq>(
        &mut self,
        completion: &WorkCompletion,
        tickets: &Tickets<C>,
    ) -> Result<(Ticket, Outcome<C>), &'static str> {
        let (Opcode::ReceiveWithImmediate, Some(immediate)) =
            (completion.opcode, completion.immediate)
        else {
            return Err("it sent something that is not a reply");
        };
        let reply = ReplyImmediate::from_wire(immediate)
            .map_err(|_| "it answered with a status that does not exist")?;
        let ticket = self.slots.answered(reply)?;
        let outcome = match reply.status {
            // Then it did not go where it should, for there it does not fit.
            ReplyStatus::Ok if completion.bytes > tickets.capacity(ticket) => {
                return Err("it answered with more bytes than the output holds");
            }
            ReplyStatus::Ok => Outcome::Bytes(completion.bytes),
            ReplyStatus::OutputTooLarge => Outcome::OutputTooLarge,
            ReplyStatus::UnknownFunction => Outcome::UnknownFunction,
            ReplyStatus::Malformed => Outcome::Malformed,
        };
        self.slots.free(reply);
        Ok((ticket, outcome))
    }

    /// Maps all slots; `None` if the provider cannot.
    pub(super) fn map_inputs(&mut self) -> rdmalib::Result<Option<Arc<RemoteMapping>>> {
        if let Some(inputs) = &self.mappings.inputs {
            return Ok(inputs.clone());
        }
        let bytes = usize::from(self.area.count) * self.area.stride as usize;
        let access = Access::REMOTE_READ | Access::REMOTE_WRITE;
        let inputs = self.send.map_remote(self.area.first, bytes, access)?.map(Arc::new);
        Ok(self.mappings.inputs.insert(inputs).clone())
    }

    /// Returns where the input of `slot` starts in the mapping of all slots.
    pub(super) fn input_offset(&self, slot: u16) -> usize {
        usize::from(slot) * self.area.stride as usize + HEADER_SPACE
    }

    /// Maps the output of `slot`, `bytes` bytes that the worker says are at `at`.
    pub(super) fn map_output(
        &mut self,
        slot: u16,
        at: RemoteAddress,
        bytes: usize,
    ) -> rdmalib::Result<Arc<RemoteMapping>> {
        let slot = usize::from(slot);
        let outputs = &mut self.mappings.outputs;
        outputs.resize(outputs.len().max(slot + 1), None);
        if let Some((was, output)) = &outputs[slot]
            && *was == at
        {
            return Ok(output.clone());
        }
        let output = self.send.map_remote(at, bytes, Access::REMOTE_READ)?;
        let output = Arc::new(output.ok_or(rdmalib::Error::RemoteAccess)?);
        outputs[slot] = Some((at, output.clone()));
        Ok(output)
    }
}
