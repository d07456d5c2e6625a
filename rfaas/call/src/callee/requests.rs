//! Which request an arrival is: one with a header of its own, or the last one of its slot again.
//!
//! A header is copied out of the slot once. It is checked, and kept for requests without one only if it makes sense. A
//! caller can break its own connection, which ends the worker, and nothing else.

use rdmalib::{RemoteAddress, Status, WorkCompletion};
use rfaas_protocol::invocation::{RequestHeader, RequestImmediate};

use super::end::ServiceEnd;
use super::layout::Slot;
use super::memory::SlotMemory;

/// A request, as it is carried out. Its numbers are the processor's own and not those of the wire, which have no
/// alignment. Store-to-load forwarding fails for loads of another size than the stores, which costs some ten cycles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) slot: Slot,
    pub(super) header: KeptHeader,
    /// Bytes of input.
    pub(super) input_bytes: u32,
    /// Whether header and message agree, and the input fits the slot.
    pub(super) makes_sense: bool,
}

/// What a header says besides the size of the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeptHeader {
    /// Where the caller wants the output.
    pub(super) reply: RemoteAddress,
    /// Bytes that fit there.
    pub(super) output_capacity: u32,
    pub(super) function: u32,
    pub(super) sequence: u32,
    /// Whether the output stays where the function writes it.
    pub(super) output_stays: bool,
}

impl From<&RequestHeader> for KeptHeader {
    fn from(header: &RequestHeader) -> Self {
        KeptHeader {
            reply: RemoteAddress { addr: header.reply_addr.get(), key: header.reply_key.get() },
            output_capacity: header.output_capacity.get(),
            function: header.function.get().into(),
            sequence: header.sequence.get(),
            output_stays: header.output_stays(),
        }
    }
}

/// The kept header of each slot.
#[derive(Debug)]
pub(super) struct Requests(Box<[Option<KeptHeader>]>);

impl Requests {
    /// Makes room for a worker with `slots` slots, none of which was used.
    pub(super) fn new(slots: u16) -> Self {
        Requests(vec![None; usize::from(slots)].into())
    }

    /// Returns the request that has arrived with `done`.
    #[inline]
    pub(super) fn read(
        &mut self,
        done: &WorkCompletion,
        memory: &SlotMemory,
    ) -> Result<Request, ServiceEnd> {
        debug_assert_eq!(done.status, Status::Success);
        let Some(immediate) = done.immediate else {
            return Err(ServiceEnd::Breach("it sent a message to a worker"));
        };
        let immediate = RequestImmediate::from_wire(immediate);
        let Some(slot) = memory.layout().slot(immediate.slot) else {
            return Err(ServiceEnd::Breach("it named a slot that it was not given"));
        };
        if !immediate.again {
            return self.read_header(slot, done, memory);
        }
        let Some(header) = &mut self.0[usize::from(slot.number())] else {
            return Err(ServiceEnd::Breach("it repeated a request that it had not made"));
        };
        header.sequence = header.sequence.wrapping_add(1);
        let makes_sense = done.bytes <= memory.layout().input_bytes();
        Ok(Request { slot, header: *header, input_bytes: done.bytes, makes_sense })
    }

    /// Returns a request with a header of its own.
    #[inline]
    fn read_header(
        &mut self,
        slot: Slot,
        done: &WorkCompletion,
        memory: &SlotMemory,
    ) -> Result<Request, ServiceEnd> {
        if (done.bytes as usize) < size_of::<RequestHeader>() {
            return Err(ServiceEnd::Breach("it wrote no header"));
        }
        let header = memory.header(slot)?;
        let (kept, input_bytes) = (KeptHeader::from(&header), header.input_bytes.get());
        let makes_sense = header.message_bytes() == Some(u64::from(done.bytes))
            && input_bytes <= memory.layout().input_bytes();
        self.0[usize::from(slot.number())] = makes_sense.then_some(kept);
        Ok(Request { slot, header: kept, input_bytes, makes_sense })
    }
}
