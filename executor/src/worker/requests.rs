//! Which request an arrival is: one with a header of its own, or the last one of its slot again.
//!
//! * HOSTILE - a header is copied out of the slot once; it is checked and used here, and again only if it
//!   was found to make sense. The client can break its own connection, which ends the worker.

use rdmalib::{Status, WorkCompletion};
use rfaas::protocol::invocation::{RequestHeader, RequestImmediate};

use super::End;
use crate::layout::Slot;
use crate::library::Memory;

/// A request, as it is carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) slot: Slot,
    pub(super) header: RequestHeader,
    /// Whether header and message agree, and the input fits the slot.
    pub(super) makes_sense: bool,
}

/// The last header of each slot.
#[derive(Debug)]
pub(super) struct Requests(Box<[Option<RequestHeader>]>);

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
        let last = &mut self.0[usize::from(slot.number())];
        if immediate.again {
            let Some(last) = last else {
                return Err(End::Breach("it repeated a request that it had not made"));
            };
            last.repeat(done.bytes);
            let makes_sense = done.bytes <= memory.layout().input_bytes();
            return Ok(Request { slot, header: *last, makes_sense });
        }
        if (done.bytes as usize) < size_of::<RequestHeader>() {
            return Err(End::Breach("it wrote no header"));
        }
        let header = memory.header(slot)?;
        let makes_sense = header.message_bytes() == Some(u64::from(done.bytes))
            && header.input_bytes.get() <= memory.layout().input_bytes();
        *last = makes_sense.then_some(header);
        Ok(Request { slot, header, makes_sense })
    }
}
