//! Memory regions: mapped here, registered with the device (`ibv_reg_mr(3)`), and gone in the
//! reverse order.

#![allow(unsafe_code)]

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::bindings::types::*;
use super::library::check;
use super::objects::ProtectionDomain;
use crate::contract;
use crate::types::{Access, Error, RemoteAddress, Result};

/// Where registered memory is, as work requests name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registered {
    pub(super) first: u64,
    pub(super) local_key: u32,
}

/// Memory of ours that the device knows: mapped, zeroed, page-aligned.
#[derive(Debug)]
pub(crate) struct MemoryRegion {
    raw: NonNull<ibv_mr>,
    bytes: usize,
    memory: NonNull<u8>,
    local_key: u32,
    remote_key: u32,
    access: Access,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: as for `Context`; the memory is used through copies only (see the facade).
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    pub(super) fn new(
        domain: &Arc<ProtectionDomain>,
        bytes: usize,
        access: Access,
    ) -> Result<Self> {
        let length = bytes.try_into().map_err(|_| Error::InvalidArgument("a region has bytes"))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes; it replaces none.
        let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }
            .map_err(|e| Error::os("mmap", e))?;
        // SAFETY: an open domain and a mapping of `bytes` bytes, which is unmapped only after the
        // region is deregistered.
        let raw = unsafe {
            domain.library().verbs.ibv_reg_mr(
                domain.as_ptr(),
                memory.as_ptr(),
                bytes,
                access_flags(access) as i32,
            )
        };
        let Some(raw) = NonNull::new(raw) else {
            let source = io::Error::last_os_error();
            // SAFETY: mapped above, and nobody knows it.
            let _ = unsafe { munmap(memory, bytes) };
            return Err(Error::Registration { bytes, limit: locked_memory_limit(), source });
        };
        // SAFETY: filled by ibv_reg_mr.
        let region = unsafe { raw.as_ref() };
        let (local_key, remote_key) = (region.lkey, region.rkey);
        let memory = memory.cast();
        let domain = domain.clone();
        Ok(MemoryRegion { raw, bytes, memory, local_key, remote_key, access, domain })
    }

    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// Returns address and local key of the first byte, as work requests name it.
    #[inline]
    pub(super) fn registered(&self) -> Registered {
        Registered { first: self.memory.as_ptr().addr() as u64, local_key: self.local_key }
    }

    pub(super) fn is_in(&self, domain: &ProtectionDomain) -> bool {
        ptr::eq(self.domain.as_ptr(), domain.as_ptr())
    }
}

impl contract::Region for MemoryRegion {
    #[inline]
    fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    #[inline]
    fn len(&self) -> usize {
        self.bytes
    }

    /// How a peer names the first byte: by our own address, as the device translates it.
    #[inline]
    fn remote(&self) -> RemoteAddress {
        RemoteAddress { addr: self.memory.as_ptr().addr() as u64, key: self.remote_key.into() }
    }
}

/// Memory of a peer that is mapped here: there is none, since a network lies between.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NeverMapped {}

impl contract::RemoteMemory for NeverMapped {
    fn len(&self) -> usize {
        match *self {}
    }

    fn as_ptr(&self) -> *mut u8 {
        match *self {}
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: made in `new`, deregistered only here.
        let returned = unsafe { self.domain.library().verbs.ibv_dereg_mr(self.raw.as_ptr()) };
        if let Err(error) = check(returned) {
            let bytes = self.bytes;
            tracing::error!(%error, bytes, "ibv_dereg_mr failed; the memory stays registered");
            return; // and mapped: the device may still write it
        }
        // SAFETY: mapped in `new` with this length; no reference into it exists, as `crate::facade`
        // gives none, and the device has forgotten it.
        if let Err(error) = unsafe { munmap(self.memory.cast(), self.bytes) } {
            tracing::error!(%error, "munmap failed; memory leaked");
        }
    }
}

/// Our rights as `ibv_reg_mr(3)` takes them.
fn access_flags(access: Access) -> ibv_access_flags {
    let flags = [
        (Access::LOCAL_WRITE, IBV_ACCESS_LOCAL_WRITE),
        (Access::REMOTE_WRITE, IBV_ACCESS_REMOTE_WRITE),
        (Access::REMOTE_READ, IBV_ACCESS_REMOTE_READ),
        (Access::REMOTE_ATOMIC, IBV_ACCESS_REMOTE_ATOMIC),
    ];
    flags.iter().filter(|(ours, _)| access.contains(*ours)).fold(0, |sum, (_, flag)| sum | flag)
}

/// Bytes that this process may pin; `None`: no limit.
fn locked_memory_limit() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}
