//! Shared memory mapped into this process, reached through raw pointers and atomics only.

#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::addresses::Charge;
use super::closer::ClosedLater;
use crate::contract;
use crate::sync::AtomicU64;
use crate::types::{Error, Result};
use rdmalib_ring::Words;

/// A domain's file. Its pages are given back with the last reference.
pub(super) type SharedFile = Arc<ClosedLater<OwnedFd>>;

/// Shared memory that is mapped into this process; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    ptr: NonNull<u8>,
    bytes: usize,
    /// If it is a peer's memory: the addresses are counted.
    _charge: Option<Charge>,
    /// Dropped after it is unmapped, so that this is never what frees the file's pages.
    _file: SharedFile,
}

// SAFETY: the memory is shared with other processes anyway and is only reached through raw pointers
// or atomics; the mapping itself does not belong to a thread.
unsafe impl Send for Mapping {}
// SAFETY: likewise; no method hands out a reference to plain memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes of `file` from the page-aligned `offset` on, to be read and written.
    pub(super) fn new(file: &SharedFile, offset: u64, bytes: usize) -> Result<Self> {
        Self::protected(file, offset, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Maps likewise, but a write here faults: for memory that is only read.
    pub(super) fn read_only(file: &SharedFile, offset: u64, bytes: usize) -> Result<Self> {
        Self::protected(file, offset, bytes, ProtFlags::PROT_READ)
    }

    fn protected(
        file: &SharedFile,
        offset: u64,
        bytes: usize,
        protection: ProtFlags,
    ) -> Result<Self> {
        let length = NonZeroUsize::new(bytes).ok_or(Error::InvalidArgument("empty mapping"))?;
        let offset = i64::try_from(offset).map_err(|_| Error::InvalidArgument("offset"))?;
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no memory of
        // ours. That the file may change or grow under it is what the users of a Mapping expect;
        // that it cannot shrink (and fault) is SEALED.
        let ptr = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &**file, offset) }
            .map_err(|errno| match errno {
                Errno::ENOMEM => Error::OutOfAddresses { bytes },
                errno => Error::os("mmap of shared memory", errno),
            })?;
        Ok(Mapping { ptr: ptr.cast(), bytes, _charge: None, _file: file.clone() })
    }

    /// The same, counted by `charge` as long as it is mapped.
    pub(super) fn charged(mut self, charge: Option<Charge>) -> Self {
        self._charge = charge;
        self
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Where `bytes` bytes from `offset` on are; `None` if they are not all inside.
    #[inline]
    pub(super) fn at(&self, offset: u64, bytes: usize) -> Option<*mut u8> {
        if offset.checked_add(bytes as u64)? > self.bytes as u64 {
            return None;
        }
        // SAFETY: `offset` is inside the mapping or one past it, just checked.
        Some(unsafe { self.as_ptr().add(offset as usize) })
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

/// A range of a mapping, which it keeps mapped: reached without looking at the mapping itself.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    ptr: NonNull<u8>,
    bytes: usize,
    _whole: Arc<Mapping>,
}

// SAFETY: as for `Mapping`, a range of which it is.
unsafe impl Send for Part {}
// SAFETY: likewise.
unsafe impl Sync for Part {}

impl Part {
    /// `bytes` bytes of `whole` from `offset` on; `None` if they are not all inside.
    pub(super) fn new(whole: Arc<Mapping>, offset: u64, bytes: usize) -> Option<Part> {
        let ptr = NonNull::new(whole.at(offset, bytes)?)?;
        Some(Part { ptr, bytes, _whole: whole })
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

impl contract::RemoteMemory for Part {
    #[inline]
    fn len(&self) -> usize {
        self.len()
    }

    #[inline]
    fn as_ptr(&self) -> *mut u8 {
        self.as_ptr()
    }
}

impl From<Mapping> for Part {
    fn from(mapping: Mapping) -> Part {
        Part { ptr: mapping.ptr, bytes: mapping.bytes, _whole: Arc::new(mapping) }
    }
}

impl Words for Part {
    /// The part must start at a multiple of eight bytes, as those of an arena do.
    #[inline]
    fn words(&self) -> &[AtomicU64] {
        debug_assert!(self.ptr.cast::<AtomicU64>().is_aligned());
        // SAFETY: `bytes` bytes from `ptr` on are inside a mapping that lives as long as `self`
        // (`new`). Atomics allow any other thread or process to change the words meanwhile.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), self.bytes / 8) }
    }

    #[inline]
    fn prefetch(&self, word: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch changes nothing and never faults, whatever the address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.ptr.as_ptr().wrapping_add(8 * word).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = word; // no stable intrinsic elsewhere
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
