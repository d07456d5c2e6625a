//! Registered memory of this provider, and the keys by which a domain's peers name it.
//!
//! The memory is an anonymous mapping of this process. It is reached by raw pointers and copies
//! only. A key is a number that cannot be guessed from others. Dropping a region revokes its key;
//! bytes that are just being moved keep the mapping until they have been moved.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::{BuildHasher, Hasher};
use std::ptr::{self, NonNull};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::contract;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::types::{Access, Error, RemoteAddress, Result};

/// How a peer names the first byte of every region: no address of this process. It is a multiple of
/// the page size, so that offsets keep their alignment.
const FIRST: u64 = 4096;

/// Mapped, zeroed, page-aligned memory. Unmapped with the last reference.
#[derive(Debug)]
pub(super) struct Memory {
    first: NonNull<u8>,
    bytes: usize,
    access: Access,
    key: u32,
    revoked: AtomicBool,
}

// SAFETY: the mapping belongs to no thread, and its bytes are only copied through raw pointers.
unsafe impl Send for Memory {}
// SAFETY: as above; no method hands out a reference to its bytes.
unsafe impl Sync for Memory {}

impl Memory {
    #[inline]
    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// Whether its region was dropped.
    #[inline]
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Where `bytes` bytes from `offset` on are. Panics unless they are inside.
    #[inline]
    pub(super) fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "checked before");
        // SAFETY: inside the mapping, just checked.
        unsafe { self.first.as_ptr().add(offset) }
    }

    /// Copies `bytes` in.
    #[inline]
    pub(super) fn put(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: both ranges are valid, `to` by `at`. No reference to the mapping exists, so they
        // do not overlap; a thread that reads or writes meanwhile makes the bytes arbitrary.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies `bytes` bytes to the end of `out`.
    #[inline]
    pub(super) fn append_to(&self, offset: usize, bytes: usize, out: &mut Vec<u8>) {
        let from = self.at(offset, bytes);
        out.reserve(bytes);
        let end = out.len();
        // SAFETY: there is room for `bytes` more, just reserved.
        let to = unsafe { out.as_mut_ptr().add(end) };
        // SAFETY: as in `put`, the other way round.
        unsafe { ptr::copy_nonoverlapping(from, to, bytes) };
        // SAFETY: so many bytes have just been written.
        unsafe { out.set_len(end + bytes) };
    }

    /// The word at `offset`, for atomics; `None` unless it is aligned.
    pub(super) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) {
            return None;
        }
        let word = self.at(offset, 8);
        // SAFETY: eight aligned bytes of a mapping that lives as long as `self`. Whoever changes
        // them otherwise makes the value arbitrary.
        Some(unsafe { AtomicU64::from_ptr(word.cast()) })
    }

    /// The offset of `bytes` bytes from `address` on, if a peer may have them for `access`.
    #[inline]
    fn allows(&self, address: u64, bytes: usize, access: Access) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(FIRST)?).ok()?;
        let inside = offset.checked_add(bytes)? <= self.bytes;
        (inside && self.access.contains(access) && !self.is_revoked()).then_some(offset)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `Region::new` with this length, unmapped only here; pointers into it
        // are used only while a reference to `self` is held.
        if let Err(errno) = unsafe { munmap(self.first.cast(), self.bytes) } {
            tracing::error!(%errno, "munmap failed; memory leaked");
        }
    }
}

/// A place in registered memory; its range was checked.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) memory: Arc<Memory>,
    pub(super) offset: usize,
}

/// The keys of a protection domain.
#[derive(Debug, Default)]
pub(super) struct Keys(RwLock<HashMap<u32, Arc<Memory>>>);

impl Keys {
    /// The place that a peer names, if its key allows `access` to all of it. `last` is what the
    /// same peer named before.
    #[inline]
    pub(super) fn find(
        &self,
        last: &mut Option<Weak<Memory>>,
        (address, key): (u64, u32),
        bytes: usize,
        access: Access,
    ) -> Option<Place> {
        let same = |memory: &Arc<Memory>| memory.key == key && !memory.is_revoked();
        let known = last.as_ref().and_then(Weak::upgrade).filter(same);
        let memory = match known {
            Some(memory) => memory,
            None => {
                let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
                let memory = keys.get(&key)?;
                *last = Some(Arc::downgrade(memory));
                memory.clone()
            }
        };
        let offset = memory.allows(address, bytes, access)?;
        Some(Place { memory, offset })
    }
}

/// Registered memory. Dropping it revokes its key.
#[derive(Debug)]
pub(crate) struct Region {
    memory: Arc<Memory>,
    keys: Arc<Keys>,
}

impl Region {
    pub(super) fn new(keys: &Arc<Keys>, bytes: usize, access: Access) -> Result<Self> {
        let length = bytes.try_into().map_err(|_| Error::InvalidArgument("a region has bytes"))?;
        if isize::try_from(bytes).is_err() {
            return Err(Error::InvalidArgument("more bytes than can be addressed"));
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes; it replaces none.
        let first = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }
            .map_err(|errno| match errno {
                Errno::ENOMEM => Error::OutOfAddresses { bytes },
                errno => Error::os("mmap", errno),
            })?
            .cast();
        let revoked = AtomicBool::new(false);
        let mut memory = Memory { first, bytes, access, key: 0, revoked };
        let mut known = keys.0.write().unwrap_or_else(PoisonError::into_inner);
        let memory = loop {
            memory.key = random_key();
            if let Entry::Vacant(place) = known.entry(memory.key) {
                break place.insert(Arc::new(memory)).clone();
            }
        };
        drop(known);
        Ok(Region { memory, keys: keys.clone() })
    }

    #[inline]
    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    #[inline]
    pub(super) fn is_in(&self, keys: &Arc<Keys>) -> bool {
        Arc::ptr_eq(&self.keys, keys)
    }
}

/// A number that the system's random numbers key; never 0.
fn random_key() -> u32 {
    loop {
        // Each state has keys of its own.
        let key = RandomState::new().build_hasher().finish() as u32;
        if key != 0 {
            return key;
        }
    }
}

impl contract::Region for Region {
    #[inline]
    fn len(&self) -> usize {
        self.memory.bytes
    }

    #[inline]
    fn as_ptr(&self) -> *mut u8 {
        self.memory.first.as_ptr()
    }

    #[inline]
    fn remote(&self) -> RemoteAddress {
        RemoteAddress { addr: FIRST, key: self.memory.key.into() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.memory.revoked.store(true, Ordering::Release);
        self.keys.0.write().unwrap_or_else(PoisonError::into_inner).remove(&self.memory.key);
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
