//! Writing a request into a slot: the whole of it, or its input only, where the rest is known there.

use rdmalib::{Flags, Operation, RemoteAddress, Source, WorkRequest};

use super::{Call, Worker};
use crate::client::buffer::{HEADER_OFFSET, Input};
use rfaas_protocol::invocation::{HEADER_SPACE, RequestImmediate};

/// Most bytes that are copied to be sent inline; devices allow some hundred.
pub(super) const MAX_INLINE: usize = 512;

impl Worker {
    /// Writes `call` into the next free slot. The caller occupies that slot if it succeeds.
    #[inline]
    pub(super) fn post(&mut self, index: usize, call: &Call<'_>) -> rdmalib::Result<()> {
        let next = self.slots.next().expect("the caller chose a worker with a free slot");
        self.post_to(index, next, call)
    }

    /// Writes `call` into a slot, for its use of this sequence.
    #[inline]
    pub(super) fn post_to(
        &mut self,
        index: usize,
        (slot, sequence): (u16, u32),
        call: &Call<'_>,
    ) -> rdmalib::Result<()> {
        let asked = call.asked();
        let again = asked.is_some_and(|asked| self.slots.is_again(slot, &asked));
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
            self.slots.ask(slot, asked);
        }
        Ok(())
    }

    /// Writes a request, which is what is in `input` from `start` on and fits [`MAX_INLINE`], to `to`.
    #[inline(never)] // its copy is cleared at each call
    fn write_inline(
        &mut self,
        index: usize,
        input: &Input,
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
        let completes = self.unsignalled + 1 >= self.signal_every;
        let signaled = if completes { Flags::SIGNALED } else { Flags::empty() };
        self.send.post(&WorkRequest {
            id: index as u64,
            operation: Operation::Write { source, to, immediate: Some(immediate.to_wire()) },
            flags: signaled | Flags::SOLICITED | Flags::WITH_COMPLETION,
        })?;
        self.unsignalled = if completes { 0 } else { self.unsignalled + 1 };
        Ok(())
    }
}
