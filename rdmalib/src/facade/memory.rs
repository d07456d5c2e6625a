//! Registered memory: [`Domain`] allocates [`Region`]s, a [`RemoteAddress`] names one of a peer,
//! and a [`RemoteMapping`] maps part of one where the provider can. Work requests on regions.
//!
//! A peer may write a region's bytes at any moment. So nothing here gives a reference to them: they
//! are copied in and out through raw pointers, and a second read may return other bytes.

#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

use crate::contract::{Domain as _, Memory, Region as _, RemoteMemory as _};
use crate::process::Owned;
use crate::providers::{AnyDomain, AnyRegion, AnyRemoteMemory, each, each_into};
use crate::sync::{AtomicU64, Ordering, compiler_fence};
use crate::types::{Access, Error, RemoteAddress, Result, work};

/// A checked range of a [`Region`]: the scatter/gather element of a work request
/// ([`Region::slice`]).
pub type Slice<'a> = work::Slice<&'a Region>;

/// Where the bytes of a send or write come from.
pub type Source<'a> = work::Source<&'a Region, &'a [u8]>;

/// What a work request does.
pub type Operation<'a> = work::Operation<&'a Region, &'a [u8]>;

/// One request for the send queue.
pub type WorkRequest<'a> = work::WorkRequest<&'a Region, &'a [u8]>;

/// A protection domain: what the peers of its queue pairs can reach. A cheap handle; the domain
/// lives as long as the last object in it.
///
/// How much a key protects depends on the provider:
/// * On RDMA devices the card checks key, range and rights of every access. A peer without a key
///   can only guess (keys have 32 bits), and a wrong guess ends its connection.
/// * On the embedded device the peer's own copy of this library checks them. A peer that is another
///   program can read and write **all** memory of the domain, keys or not, and no memory outside of
///   it. It can make the memory of a domain grow, unless the domain is
///   [fixed](crate::Device::fixed_domain).
///
/// So peers that must not reach each other's memory get domains of their own. What a peer writes in
/// its domain never makes this process panic or access memory outside.
#[derive(Clone)]
pub struct Domain {
    pub(super) device: u32,
    pub(crate) inner: Owned<AnyDomain>,
}

impl Domain {
    pub(super) fn new(device: u32, inner: AnyDomain) -> Self {
        Domain { device, inner: Owned::new(inner) }
    }

    /// Allocates and registers `bytes` bytes (at least one) of zeroed, page-aligned memory. It
    /// takes whole pages.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]: no bytes, more than can be addressed or than a
    /// [fixed domain](crate::Device::fixed_domain) has left, or remote rights without `LOCAL_WRITE`
    /// ([`Access`]). On shm [`Error::OutOfKeys`], [`Error::OutOfAddresses`],
    /// [`Error::FileSizeLimit`]; on verbs [`Error::Registration`], [`Error::Os`].
    pub fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        if bytes == 0 {
            return Err(Error::InvalidArgument("a memory region has at least one byte"));
        }
        if access.contains(Access::REMOTE_WRITE) || access.contains(Access::REMOTE_ATOMIC) {
            // ibv_reg_mr(3): remote write and atomics require local write.
            if !access.contains(Access::LOCAL_WRITE) {
                return Err(Error::InvalidArgument("remote write and atomics require LOCAL_WRITE"));
            }
        }
        self.inner.check()?;
        let inner = each_into!(&*self.inner, domain => domain.allocate(bytes, access)?);
        #[cfg(feature = "faults")]
        let inner = std::sync::Arc::new(inner);
        Ok(Region { inner: Owned::new(inner) })
    }
}

/// Registered memory. Dropping it revokes its key: requests that still name it then fail and do not
/// touch memory. (On the embedded device a peer that is just copying finishes its copy.)
///
/// # Reading and writing the bytes
/// A peer may change the bytes at any moment, so nothing here gives a reference to them, and nobody
/// may make one.
/// * [`read`](Self::read), [`write`](Self::write) and [`fill`](Self::fill) are plain copies: not
///   atomic at any size, not ordered. While somebody else changes the bytes, they may see some old
///   and some new ones, and a second read may return others. So copy once, then check the copy.
/// * **A completion orders.** Bytes that a request has moved are there once its completion was
///   polled, whichever thread polled it and then told the reader. Bytes that were written before a
///   request was posted are what it sends.
/// * **No byte tells of another.** Bytes of one write land in any order, the last one perhaps
///   first, and with [`Flags::WITH_COMPLETION`](crate::Flags::WITH_COMPLETION) perhaps none before
///   the completion is polled. So do not poll them; ask for immediate data.
/// * [`load_u64`](Self::load_u64) (Acquire) and [`store_u64`](Self::store_u64) (Release) are atomic
///   among the threads of this process. A counter that peers change with atomics alone may be
///   polled: its value is never torn. It orders no other bytes of a peer.
///
/// # Life
/// A region cannot be dropped before a request on it is posted:
/// ```compile_fail,E0505
/// # use rdmalib::*;
/// fn dropped_too_early(region: Region, pair: &mut QueuePair) {
///     let slice = region.slice(0..8).unwrap();
///     drop(region);
///     let _ = pair.post_receive(1, Some(slice));
/// }
/// ```
pub struct Region {
    #[cfg(not(feature = "faults"))]
    inner: Owned<AnyRegion>,
    /// Shared with requests that are held back.
    #[cfg(feature = "faults")]
    inner: Owned<std::sync::Arc<AnyRegion>>,
}

impl Region {
    #[inline]
    fn inner(&self) -> &AnyRegion {
        &self.inner
    }

    /// The memory, for a request that is held back: its key is revoked when both are dropped.
    #[cfg(feature = "faults")]
    pub(super) fn shared(&self) -> &std::sync::Arc<AnyRegion> {
        &self.inner
    }

    /// Returns the length in bytes, as it was asked for.
    #[allow(clippy::len_without_is_empty)] // never empty
    #[inline]
    pub fn len(&self) -> usize {
        each!(self.inner(), region => region.len())
    }

    /// Returns the first byte, page-aligned. Valid while the region lives, and may be read and
    /// written whatever [`Access`] says, but not
    /// [in a forked child](crate#forked-processes). A peer with the key may change the bytes at any
    /// time, so they are used through raw pointers and never through a reference.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        each!(self.inner(), region => region.as_ptr())
    }

    /// Returns how a peer names the region's first byte.
    #[inline]
    pub fn remote(&self) -> RemoteAddress {
        each!(self.inner(), region => region.remote())
    }

    /// Returns `range` of this region as the local side of a work request. Fails if the range is
    /// not inside ([`Error::OutOfBounds`]) or ends before it starts ([`Error::InvalidArgument`]).
    #[inline]
    pub fn slice(&self, range: Range<usize>) -> Result<Slice<'_>> {
        self.bytes().check(range.start, range.len())?;
        if range.start > range.end {
            return Err(Error::InvalidArgument("range ends before it starts"));
        }
        Ok(Slice { region: self, offset: range.start, bytes: range.len() })
    }

    /// Copies bytes out, from `offset` on. Fails if they are not all inside
    /// ([`Error::OutOfBounds`]), or in a forked child.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.own_bytes()?.read(offset, out)
    }

    /// Copies `bytes` in, at `offset`. Takes `&self`, because use is not exclusive anyway: peers
    /// with the key write too. Fails as [`read`](Self::read) does.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.own_bytes()?.write(offset, bytes)
    }

    /// Sets `range` to `value`. Fails as [`read`](Self::read) does.
    pub fn fill(&self, range: Range<usize>, value: u8) -> Result<()> {
        self.own_bytes()?.fill(range, value)
    }

    /// Reads an aligned counter that peers add to (Acquire); `offset` is a multiple of 8. Fails
    /// otherwise ([`Error::InvalidArgument`]), and as [`read`](Self::read) does.
    #[inline]
    pub fn load_u64(&self, offset: usize) -> Result<u64> {
        Ok(self.counter(offset)?.load(Ordering::Acquire))
    }

    /// Sets an aligned counter that peers read (Release); `offset` is a multiple of 8. Not atomic
    /// against a peer's atomics: one of two simultaneous updates may be lost. (A card is atomic
    /// only with itself.) Fails as [`load_u64`](Self::load_u64) does.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64) -> Result<()> {
        self.counter(offset)?.store(value, Ordering::Release);
        Ok(())
    }

    fn counter(&self, offset: usize) -> Result<&AtomicU64> {
        self.own_bytes()?.check(offset, 8)?;
        if !offset.is_multiple_of(8) {
            return Err(Error::InvalidArgument("a 64-bit counter is 8-byte aligned"));
        }
        // SAFETY: inside the region, checked.
        let at = unsafe { self.as_ptr().add(offset) };
        // SAFETY: eight aligned bytes of a live region (page-aligned plus a multiple of 8); peers
        // change them atomically or, if they do not, make the value arbitrary.
        Ok(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// The bytes, in the process that made the region.
    #[inline]
    fn own_bytes(&self) -> Result<Bytes<'_>> {
        self.inner.check()?;
        Ok(self.bytes())
    }

    #[inline]
    fn bytes(&self) -> Bytes<'_> {
        Bytes { first: self.as_ptr(), len: self.len(), owner: PhantomData }
    }
}

/// A range of a peer's memory that is mapped into this process
/// ([`SendQueue::map_remote`](crate::SendQueue::map_remote)): its bytes are used where they are,
/// without a request. Dropping it unmaps them.
///
/// What is written here before a request on the same connection is there when the peer sees that
/// request. What the peer has written before a request of its own is there after its completion.
/// There is no other order.
///
/// A mapping is not a key. It stays, with the bytes, when the owner drops its region or the
/// connection ends; by then the owner may use the memory for something else. So a mapping is used
/// only while both sides have agreed on it, and an owner allows it only to peers that it trusts
/// with its whole domain.
pub struct RemoteMapping {
    memory: Owned<AnyRemoteMemory>,
    access: Access,
}

impl RemoteMapping {
    /// `memory` is mapped for `access`.
    pub(crate) fn new(memory: AnyRemoteMemory, access: Access) -> Self {
        RemoteMapping { memory: Owned::new(memory), access }
    }

    /// Returns the length in bytes, as it was asked for.
    #[allow(clippy::len_without_is_empty)] // never empty
    #[inline]
    pub fn len(&self) -> usize {
        each!(&*self.memory, memory => memory.len())
    }

    /// Returns the first byte, with the alignment that it has in the peer's region. Valid while the
    /// mapping lives. The peer may change the bytes at any time. Writing without
    /// [`Access::REMOTE_WRITE`] raises SIGSEGV; reading never faults.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        each!(&*self.memory, memory => memory.as_ptr())
    }

    /// Copies bytes out, from `offset` on. An error unless mapped with [`Access::REMOTE_READ`].
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.allows(Access::REMOTE_READ)?.read(offset, out)
    }

    /// Copies `bytes` in, at `offset`. An error unless mapped with [`Access::REMOTE_WRITE`].
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.allows(Access::REMOTE_WRITE)?.write(offset, bytes)
    }

    /// Sets `range` to `value`. An error unless mapped with [`Access::REMOTE_WRITE`].
    pub fn fill(&self, range: Range<usize>, value: u8) -> Result<()> {
        self.allows(Access::REMOTE_WRITE)?.fill(range, value)
    }

    #[inline]
    fn allows(&self, access: Access) -> Result<Bytes<'_>> {
        self.memory.check()?;
        if !self.access.contains(access) {
            return Err(Error::InvalidArgument("the memory was not mapped for this access"));
        }
        Ok(Bytes { first: self.as_ptr(), len: self.len(), owner: PhantomData })
    }
}

/// Memory of a borrowed owner, which others may change at any time; copied through raw pointers.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    first: *mut u8,
    len: usize,
    owner: PhantomData<&'a ()>,
}

impl Bytes<'_> {
    #[inline]
    fn read(self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len())?;
        // SAFETY: `offset` is inside the memory, checked; its owner keeps it mapped.
        let from = unsafe { self.first.add(offset) };
        // SAFETY: `out.len()` bytes from there are inside, checked; `out` is ours alone.
        unsafe { ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        // The compiler may not read the memory again in place of the copy: a peer may have changed
        // it.
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    #[inline]
    fn write(self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        // SAFETY: `offset` is inside the memory, checked; its owner keeps it mapped, and writable:
        // a region always is, a mapping was asked.
        let to = unsafe { self.first.add(offset) };
        // SAFETY: `bytes.len()` bytes from there are inside, checked; no reference to them exists,
        // and a racing peer only makes the bytes arbitrary.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn fill(self, range: Range<usize>, value: u8) -> Result<()> {
        self.check(range.start, range.len())?;
        // SAFETY: the range starts inside the memory, checked; writable as in `write`.
        let to = unsafe { self.first.add(range.start) };
        // SAFETY: as in `write`.
        unsafe { ptr::write_bytes(to, value, range.len()) };
        Ok(())
    }

    #[inline]
    fn check(self, offset: usize, bytes: usize) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Error::OutOfBounds { offset, bytes, region_bytes: self.len }),
        }
    }
}

impl<'a, R> Memory<'a, R> for &'a Region
where
    &'a AnyRegion: Memory<'a, R>,
{
    #[inline]
    fn of_provider(self) -> Option<&'a R> {
        self.inner().of_provider()
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain").finish_non_exhaustive()
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes)", self.len())
    }
}

impl fmt::Debug for RemoteMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteMapping({} bytes)", self.len())
    }
}
