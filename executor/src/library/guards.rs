//! Guard pages behind the output areas of a worker: a function that writes more than was agreed is stopped there.

use std::ffi::c_void;
use std::ops::{Deref, Range};
use std::ptr::NonNull;

use nix::sys::mman::{ProtFlags, mprotect};
use rdmalib::{Domain, Region};
use rfaas_call::callee::{Layout, SlotMemory};

/// Most guard pages of a process. Each splits a mapping in two, and a process has at most 65,530 of these
/// (`vm.max_map_count`), most of which belong to the library.
pub const MAX_GUARDS: usize = 4096;

/// The memory of a worker's slots, with guard pages.
#[derive(Debug)]
pub struct GuardedMemory {
    memory: SlotMemory,
    /// The guards that are in place, by their offset among the outputs.
    guards: Vec<Range<usize>>,
}

impl GuardedMemory {
    /// Allocates the memory in `domain`, with at most `max_guards` guard pages.
    pub fn new(domain: &Domain, layout: Layout, max_guards: usize) -> rdmalib::Result<Self> {
        let memory = SlotMemory::new(domain, layout)?;
        let mut guarded = GuardedMemory { memory, guards: Vec::new() };
        guarded.place_guards(max_guards);
        Ok(guarded)
    }

    /// Makes guard pages inaccessible: all of them, or only the last one, which keeps functions out of other memory, if
    /// there are too many.
    fn place_guards(&mut self, max: usize) {
        let slots = usize::from(self.memory.layout().slots());
        let skipped = if slots <= max { 0 } else { slots - 1 };
        for guard in self.memory.layout().guards().skip(skipped) {
            if let Err(errno) = protect(self.memory.outputs(), &guard, ProtFlags::PROT_NONE) {
                // Functions that keep to the agreed output work as well without.
                tracing::warn!(%errno, "no guard page behind an output: a function that writes too much goes unnoticed");
                return;
            }
            self.guards.push(guard);
        }
    }
}

impl Deref for GuardedMemory {
    type Target = SlotMemory;

    #[inline]
    fn deref(&self) -> &SlotMemory {
        &self.memory
    }
}

impl Drop for GuardedMemory {
    fn drop(&mut self) {
        // The device gets its pages back as it gave them; it may clear or reuse them.
        for guard in self.guards.drain(..) {
            let usable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            if let Err(errno) = protect(self.memory.outputs(), &guard, usable) {
                tracing::error!(%errno, "a guard page stays in place");
            }
        }
    }
}

/// Sets what this process may do with a page range of `region`.
fn protect(region: &Region, range: &Range<usize>, to: ProtFlags) -> nix::Result<()> {
    assert!(range.start <= range.end && range.end <= region.len(), "guards lie in their region");
    let start = region.as_ptr().wrapping_add(range.start).cast::<c_void>();
    let start = NonNull::new(start).ok_or(nix::Error::EFAULT)?;
    // SAFETY: the range is part of a region (just checked) that is mapped as long as the caller's borrow. It holds the
    // outputs of a `SlotMemory` that this module owns. No reference to its bytes exists: `SlotMemory` and rdmalib copy
    // them, and never those of a guard, since no slot's output or detail reaches into one (`Layout`).
    unsafe { mprotect(start, range.len(), to) }
}
