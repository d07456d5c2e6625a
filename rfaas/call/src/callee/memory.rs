//! The memory of one worker that functions read and write: input slots and output areas.
//!
//! Bytes in it change at any time, since a caller writes its slots when it likes. So there are no references to it:
//! only pointers for functions, and copies.

use rdmalib::{Access, Domain, Region, RemoteAddress, Slice};
use rfaas_protocol::Bytes;
use rfaas_protocol::invocation::RequestHeader;
use zerocopy::FromBytes;

use super::layout::{Layout, Slot};
use crate::place::Place;

/// Input slots and output areas, laid out as [`Layout`] says.
#[derive(Debug)]
pub struct SlotMemory {
    layout: Layout,
    inputs: Region,
    /// Dropped last of all that is in its domain. So a caller that reads an output in place finds it as it was, also
    /// when this worker has ended: the embedded device never uses the memory of a domain's last region again.
    outputs: Region,
}

impl SlotMemory {
    /// Allocates it in `domain`: inputs that the caller may write and read, and outputs that it may read, which is what
    /// it takes to use them in place.
    pub fn new(domain: &Domain, layout: Layout) -> rdmalib::Result<SlotMemory> {
        let inputs = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
        Ok(SlotMemory {
            layout,
            inputs: domain.allocate(layout.inputs_len(), inputs)?,
            outputs: domain.allocate(layout.outputs_len(), Access::REMOTE_READ)?,
        })
    }

    /// Returns the layout that this memory follows.
    #[inline]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns how the caller names the first byte of slot 0.
    pub fn remote_inputs(&self) -> RemoteAddress {
        self.inputs.remote()
    }

    /// Returns all output areas and the guard pages behind them.
    pub fn outputs(&self) -> &Region {
        &self.outputs
    }

    /// Returns the header that is in `slot` now. It is to be read once, and not again.
    #[inline]
    pub(super) fn header(&self, slot: Slot) -> rdmalib::Result<RequestHeader> {
        let mut bytes = [0; size_of::<RequestHeader>()];
        self.inputs.read(self.layout.header(slot), &mut bytes)?;
        Ok(RequestHeader::read_from_bytes(&bytes).expect("any 32 bytes are a RequestHeader"))
    }

    /// Returns where the output of `slot` starts, in which region.
    #[inline]
    pub(crate) fn output(&self, slot: Slot) -> (&Region, usize) {
        (&self.outputs, self.layout.output(slot))
    }

    /// Puts `detail`, of at most 64 bytes, in front of the output of `slot`, to be sent.
    #[inline]
    pub(crate) fn detail(&self, slot: Slot, detail: &impl Bytes) -> rdmalib::Result<Slice<'_>> {
        let start = self.layout.detail(slot);
        self.outputs.write(start, detail.as_bytes())?;
        self.outputs.slice(start..start + size_of_val(detail))
    }

    /// Returns how the caller names the first byte of output in `slot`.
    #[inline]
    pub(super) fn remote_output(&self, slot: Slot) -> RemoteAddress {
        self.outputs.remote().offset(self.layout.output(slot) as u64)
    }

    /// Returns where a function finds `input_bytes` bytes of input in `slot`, and where its output goes.
    ///
    /// # Panics
    ///
    /// If there is no such slot or no room for such an input, which a callee checks before it calls.
    #[inline]
    pub fn place(&self, slot: Slot, input_bytes: u32) -> Place<'_> {
        assert!(
            slot.number() < self.layout.slots() && input_bytes <= self.layout.input_bytes(),
            "the callee checks what a caller asks for"
        );
        let input = (&self.inputs, self.layout.input(slot));
        Place::new(input, input_bytes, self.output(slot))
    }
}
