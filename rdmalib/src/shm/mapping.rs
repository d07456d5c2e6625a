//! Shared memory mapped into this process, reached through raw pointers and atomics only.

#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::ring::Words;
use crate::error::{Error, Result};
use crate::sync::AtomicU64;

/// Shared memory that is mapped into this process; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is shared with other processes anyway and is only reached through raw pointers
// or atomics; the mapping itself does not belong to a thread.
unsafe impl Send for Mapping {}
// SAFETY: likewise; no method hands out a reference to plain memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes of `file` from the page-aligned `offset` on.
    pub(super) fn new(file: impl AsFd, offset: u64, bytes: usize) -> Result<Self> {
        let length = NonZeroUsize::new(bytes).ok_or(Error::InvalidArgument("empty mapping"))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let offset = i64::try_from(offset).map_err(|_| Error::InvalidArgument("offset"))?;
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no memory of
        // ours. That the file may change or grow under it is what the users of a Mapping expect;
        // that it cannot shrink (and fault) is SEALED.
        let ptr = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, offset) }
            .map_err(|e| Error::os("mmap of shared memory", e))?;
        Ok(Mapping { ptr: ptr.cast(), bytes })
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }
}

impl Words for Mapping {
    #[inline]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `bytes` long and lives as long as `self`. Atomics
        // allow any other thread or process to change the words meanwhile.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), self.bytes / 8) }
    }
}

impl Words for Arc<Mapping> {
    #[inline]
    fn words(&self) -> &[AtomicU64] {
        self.as_ref().words()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `ptr` and `bytes` are those of the mmap in `new`, unmapped only here; every
        // pointer into it was derived from a borrow of `self` or an `Arc` of it.
        if let Err(errno) = unsafe { munmap(self.ptr.cast(), self.bytes) } {
            tracing::error!(%errno, "munmap failed; address space leaked");
        }
    }
}
