//! The memory of one worker that functions read and write: input slots, output areas, guard pages.
//!
//! Bytes in it change under our hands (a client writes its slots when it likes), so there are no
//! references to it: only pointers for functions, and copies.

use std::ffi::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{ProtFlags, mprotect};
use rdmalib::{Access, Domain, Region, RemoteAddress, Slice};
use rfaas_protocol::Bytes;
use rfaas_protocol::invocation::RequestHeader;
use zerocopy::FromBytes;

use crate::layout::{Layout, Slot};

/// Most guard pages of a process. Each splits a mapping in two, and a process has at most 65,530 of
/// these (`vm.max_map_count`), most of which belong to the library.
pub const MAX_GUARDS: usize = 4096;

/// Input slots and output areas, laid out as [`Layout`] says.
#[derive(Debug)]
pub struct Memory {
    layout: Layout,
    inputs: Region,
    /// Dropped last of all that is in its domain: so a client that reads an output in place finds it as it
    /// was, also when this worker has ended (`rdmalib`'s shared memory, LAST).
    outputs: Region,
    /// The guards that are in place, by their offset among the outputs.
    guards: Vec<std::ops::Range<usize>>,
}

impl Memory {
    /// Allocates it in `domain`: inputs that the peer may write and read, outputs that it may read, which is
    /// what it takes to use them in place. At most `max_guards` guard pages.
    pub fn new(domain: &Domain, layout: Layout, max_guards: usize) -> rdmalib::Result<Memory> {
        let inputs = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
        let mut memory = Memory {
            layout,
            inputs: domain.allocate(layout.inputs_len(), inputs)?,
            outputs: domain.allocate(layout.outputs_len(), Access::REMOTE_READ)?,
            guards: Vec::new(),
        };
        memory.place_guards(max_guards);
        Ok(memory)
    }

    /// The plan that this memory follows.
    #[inline]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How the client names the first byte of slot 0.
    pub fn remote_inputs(&self) -> RemoteAddress {
        self.inputs.remote()
    }

    /// The header that is in `slot` now: read once, and not again.
    #[inline]
    pub fn header(&self, slot: Slot) -> rdmalib::Result<RequestHeader> {
        let mut bytes = [0; size_of::<RequestHeader>()];
        self.inputs.read(self.layout.header(slot), &mut bytes)?;
        Ok(RequestHeader::read_from_bytes(&bytes).expect("any 32 bytes are a RequestHeader"))
    }

    /// The first `bytes` bytes of output in `slot`, to be sent.
    #[inline]
    pub fn output(&self, slot: Slot, bytes: u32) -> rdmalib::Result<Slice<'_>> {
        let start = self.layout.output(slot);
        self.outputs.slice(start..start + bytes as usize)
    }

    /// Copies the first bytes of output in `slot` to `out`.
    pub fn read_output(&self, slot: Slot, out: &mut [u8]) -> rdmalib::Result<()> {
        self.outputs.read(self.layout.output(slot), out)
    }

    /// Puts `detail` in front of the output of `slot`, to be sent; it has at most 64 bytes.
    pub fn detail(&self, slot: Slot, detail: &impl Bytes) -> rdmalib::Result<Slice<'_>> {
        let start = self.layout.detail(slot);
        self.outputs.write(start, detail.as_bytes())?;
        self.outputs.slice(start..start + size_of_val(detail))
    }

    /// How the client names the first byte of output in `slot`.
    #[inline]
    pub fn remote_output(&self, slot: Slot) -> RemoteAddress {
        self.outputs.remote().offset(self.layout.output(slot) as u64)
    }

    /// Where a function finds `input_bytes` bytes of input in `slot`, and where its output goes. Both
    /// lie inside of this memory, are aligned to 64 bytes and valid as long as it lives.
    #[inline]
    pub(super) fn pointers(&self, slot: Slot, input_bytes: u32) -> (*mut u8, *mut u8) {
        assert!(
            slot.number() < self.layout.slots() && input_bytes <= self.layout.input_bytes(),
            "the worker checks what a client asks for"
        );
        (
            self.inputs.as_ptr().wrapping_add(self.layout.input(slot)),
            self.outputs.as_ptr().wrapping_add(self.layout.output(slot)),
        )
    }

    /// Makes guard pages inaccessible: all of them, or only the last one, which keeps functions out
    /// of other memory, if there are too many.
    fn place_guards(&mut self, max: usize) {
        let slots = usize::from(self.layout.slots());
        let skipped = if slots <= max { 0 } else { slots - 1 };
        for guard in self.layout.guards().skip(skipped) {
            if let Err(errno) = protect(&self.outputs, &guard, ProtFlags::PROT_NONE) {
                // Functions that keep to the agreed output work as well without.
                tracing::warn!(%errno, "no guard page behind an output: a function that writes too much goes unnoticed");
                return;
            }
            self.guards.push(guard);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // The device gets its pages back as it gave them; it may clear or reuse them.
        for guard in self.guards.drain(..) {
            let usable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            if let Err(errno) = protect(&self.outputs, &guard, usable) {
                tracing::error!(%errno, "a guard page stays in place");
            }
        }
    }
}

/// Sets what this process may do with a page range of `region`.
fn protect(region: &Region, range: &std::ops::Range<usize>, to: ProtFlags) -> nix::Result<()> {
    assert!(range.start <= range.end && range.end <= region.len(), "guards lie in their region");
    let start = region.as_ptr().wrapping_add(range.start).cast::<c_void>();
    let start = NonNull::new(start).ok_or(nix::Error::EFAULT)?;
    // SAFETY: the range is part of a region that this module owns (just checked) and that is mapped
    // as long as it lives. No reference to its bytes exists, here or in rdmalib, which copies them, and
    // never those of a guard: no slot's output or detail reaches into one (`Layout`).
    unsafe { mprotect(start, range.len(), to) }
}
