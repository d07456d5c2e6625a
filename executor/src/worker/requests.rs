//! Which request an arrival is: one with a header of its own, or the last one of its slot again.
//!
//! * HOSTILE - a header is copied out of the slot once; it is checked and used here, and again only if it
//!   was found to make sense. The client can break its own connection, which ends the worker.

use rdmalib::{RemoteAddress, Status, WorkCompletion};
use rfaas_protocol::invocation::{RequestHeader, RequestImmediate};

use super::End;
use crate::layout::Slot;
use crate::library::Memory;

/// A request, as it is carried out. In the processor's own words: those of the wire have no alignment, and what is
/// written in pieces of one size and read in others waits in the processor's store buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) slot: Slot,
    pub(super) asked: Asked,
    /// Bytes of input.
    pub(super) input_bytes: u32,
    /// Whether header and message agree, and the input fits the slot.
    pub(super) makes_sense: bool,
}

/// What a header says besides the size of the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Where the client wants the output.
    pub(super) reply: RemoteAddress,
    /// Bytes that fit there.
    pub(super) output_capacity: u32,
    pub(super) function: u32,
    pub(super) sequence: u32,
    /// Whether the output stays where the function writes it.
    pub(super) output_stays: bool,
}

impl From<&RequestHeader> for Asked {
    fn from(header: &RequestHeader) -> Self {
        Asked {
            reply: RemoteAddress { addr: header.reply_addr.get(), key: header.reply_key.get() },
            output_capacity: header.output_capacity.get(),
            function: header.function.get().into(),
            sequence: header.sequence.get(),
            output_stays: header.output_stays(),
        }
    }
}

/// The last request of each slot.
#[derive(Debug)]
pub(super) struct Requests(Box<[Option<Asked>]>);

impl Requests {
    /// Those of a worker with `slots` slots, none of which was used.
    pub(super) fn new(slots: u16) -> Self {
        Requests(vec![None; usize::from(slots)].into())
    }

    /// The request that has arrived with `done`.
    #[inline]
    pub(super) fn read(&mut self, done: &WorkCompletion, memory: &Memory) -> Result<Request, End> {
        debug_assert_eq!(done.status, Status::Success);
        let Some(immediate) = done.immediate else {
            return Err(End::Breach("it sent a message to a worker"));
        };
        let immediate = RequestImmediate::from_wire(immediate);
        let Some(slot) = memory.layout().slot(immediate.slot) else {
            return Err(End::Breach("it named a slot that it was not given"));
        };
        if !immediate.again {
            return self.read_header(slot, done, memory);
        }
        let Some(asked) = &mut self.0[usize::from(slot.number())] else {
            return Err(End::Breach("it repeated a request that it had not made"));
        };
        asked.sequence = asked.sequence.wrapping_add(1);
        let makes_sense = done.bytes <= memory.layout().input_bytes();
        Ok(Request { slot, asked: *asked, input_bytes: done.bytes, makes_sense })
    }

    /// A request with a header of its own.
    #[inline]
    fn read_header(
        &mut self,
        slot: Slot,
        done: &WorkCompletion,
        memory: &Memory,
    ) -> Result<Request, End> {
        if (done.bytes as usize) < size_of::<RequestHeader>() {
            return Err(End::Breach("it wrote no header"));
        }
        let header = memory.header(slot)?;
        let (asked, input_bytes) = (Asked::from(&header), header.input_bytes.get());
        let makes_sense = header.message_bytes() == Some(u64::from(done.bytes))
            && input_bytes <= memory.layout().input_bytes();
        self.0[usize::from(slot.number())] = makes_sense.then_some(asked);
        Ok(Request { slot, asked, input_bytes, makes_sense })
    }
}
