//! The inputs and outputs of calls: registered memory of one protection domain, with the space in front that the
//! protocol uses ([`rfaas_protocol::invocation`]).
//!
//! A worker may write an output at any time while a call is in flight. So nothing here gives a reference to the
//! bytes: they are copied in and out.

use std::fmt;
use std::ops::{Bound, Deref, RangeBounds};

use rdmalib::{Access, Domain, Error, Region, RemoteAddress, Result, Slice};
use zerocopy::{FromBytes, IntoBytes};

use rfaas_protocol::invocation::{FailureDetail, HEADER_SPACE, RequestHeader};

/// Offset of the request header: right in front of the input, so that both are one write.
pub(super) const HEADER_OFFSET: usize = HEADER_SPACE - size_of::<RequestHeader>();

/// What a worker needs to write an output.
const WRITABLE: Access = Access::LOCAL_WRITE.union(Access::REMOTE_WRITE);

/// The input of a call.
pub struct InputBuffer {
    memory: Box<CallMemory>,
    len: usize,
}

/// Where the output of a call lands.
pub struct OutputBuffer {
    memory: Box<CallMemory>,
}

/// What inputs and outputs have alike: a region with header space, addressed behind it. Boxed, since
/// buffers travel by value: with a result, with an error.
pub struct CallMemory {
    region: Region,
    domain: Domain,
}

impl Deref for InputBuffer {
    type Target = CallMemory;

    #[inline]
    fn deref(&self) -> &CallMemory {
        &self.memory
    }
}

impl Deref for OutputBuffer {
    type Target = CallMemory;

    #[inline]
    fn deref(&self) -> &CallMemory {
        &self.memory
    }
}

impl fmt::Debug for InputBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input({} bytes of {})", self.len, self.capacity())
    }
}

impl fmt::Debug for OutputBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output({} bytes)", self.capacity())
    }
}

impl CallMemory {
    fn allocate(domain: &Domain, bytes: usize, access: Access) -> Result<Box<Self>> {
        let bytes = bytes.saturating_add(HEADER_SPACE); // no machine has as much as that
        let region = domain.allocate(bytes, access)?;
        Ok(Box::new(CallMemory { region, domain: domain.clone() }))
    }

    /// Returns how many bytes fit.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.region.len() - HEADER_SPACE
    }

    /// Copies `bytes` in, from `offset` on. Fails if they do not fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        self.region.write(HEADER_SPACE + offset, bytes)
    }

    /// Copies bytes out, from `offset` on, filling `out`. Fails if there are not as many.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len())?;
        self.region.read(HEADER_SPACE + offset, out)
    }

    /// Sets the first `bytes` bytes, of those that fit, to `value`.
    pub fn fill(&self, bytes: usize, value: u8) -> Result<()> {
        self.check(0, bytes)?;
        self.region.fill(HEADER_SPACE..HEADER_SPACE + bytes, value)
    }

    /// Returns a copy of the bytes in `range`. Fails if there are not as many.
    pub fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        copy_range(range, self.capacity(), |start, out| self.read(start, out))
    }

    /// Errors count from the first byte of the buffer, not of the region.
    #[inline]
    fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        check_range(offset, bytes, self.capacity())
    }

    /// Returns the address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.as_ptr().wrapping_add(HEADER_SPACE)
    }
}

/// Fails unless `bytes` bytes from `offset` on are among `len`.
#[inline]
pub fn check_range(offset: usize, bytes: usize, len: usize) -> Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= len => Ok(()),
        _ => Err(Error::OutOfBounds { offset, bytes, region_bytes: len }),
    }
}

/// Returns a copy of the bytes in `range` of `len` bytes, which `read` reads from an offset on.
pub fn copy_range<E: From<Error>>(
    range: impl RangeBounds<usize>,
    len: usize,
    read: impl FnOnce(usize, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<u8>, E> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => len,
    };
    let bytes = end.saturating_sub(start);
    check_range(start, bytes, len)?; // before memory is asked for
    let mut copy = vec![0; bytes];
    read(start, &mut copy)?;
    Ok(copy)
}

impl InputBuffer {
    /// Allocates memory for an input of `bytes` bytes, zeroed.
    pub fn allocate(domain: &Domain, bytes: usize) -> Result<Self> {
        // Only our own device reads it.
        let memory = CallMemory::allocate(domain, bytes, Access::empty())?;
        Ok(InputBuffer { memory, len: bytes })
    }

    /// Returns how many bytes a call sends.
    #[allow(clippy::len_without_is_empty)] // a size that was asked for, not a collection
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Has calls send `len` bytes from now on, at most [`capacity`](CallMemory::capacity).
    pub fn set_len(&mut self, len: usize) -> Result<()> {
        self.check(0, len)?;
        self.len = len;
        Ok(())
    }

    /// Puts `header` in front of the bytes.
    #[inline]
    pub(super) fn set_header(&self, header: &RequestHeader) -> Result<()> {
        self.region.write(HEADER_OFFSET, header.as_bytes())
    }

    /// Returns what is sent: from `start` on, which is where the header is, or behind it.
    #[inline]
    pub(super) fn message(&self, start: usize) -> Result<Slice<'_>> {
        self.region.slice(start..HEADER_SPACE + self.len)
    }

    /// Copies what is sent from `start` on to the front of `out`, which is long enough, and returns that part.
    #[inline]
    pub(super) fn copy_message<'a>(&self, start: usize, out: &'a mut [u8]) -> Result<&'a [u8]> {
        let out = &mut out[..HEADER_SPACE - start + self.len];
        self.region.read(start, out)?;
        Ok(out)
    }
}

/// Has the memory of `region` be there. On the embedded device, the control group of whoever touches it first is
/// charged for it: here that of this process, and not that of the executor that writes an output.
fn touch(region: &Region) -> Result<()> {
    region.fill(0..region.len(), 0)
}

impl OutputBuffer {
    /// Allocates memory for an output of up to `bytes` bytes, zeroed.
    pub fn allocate(domain: &Domain, bytes: usize) -> Result<Self> {
        let memory = CallMemory::allocate(domain, bytes, WRITABLE)?;
        touch(&memory.region)?;
        Ok(OutputBuffer { memory })
    }

    /// Takes the right to write here from everybody who has it, by moving to memory under a new key: a worker that
    /// was given up may not know it yet. What was written before is lost.
    pub(super) fn revoke(&mut self) {
        let memory = &mut self.memory;
        let fresh = memory.domain.allocate(memory.region.len(), WRITABLE);
        match fresh.and_then(|fresh| touch(&fresh).map(|()| fresh)) {
            Ok(fresh) => memory.region = fresh,
            Err(error) => tracing::warn!(%error, "output not moved away from a lost worker"),
        }
    }

    /// Returns where a worker writes the result.
    #[inline]
    pub(super) fn remote(&self) -> RemoteAddress {
        self.region.remote().offset(HEADER_SPACE as u64)
    }

    /// Returns what a worker left in the header space with a failure. Its bytes: any number.
    pub(super) fn failure_detail(&self) -> Result<FailureDetail> {
        let mut bytes = [0; size_of::<FailureDetail>()];
        self.region.read(0, &mut bytes)?;
        Ok(FailureDetail::read_from_bytes(&bytes).expect("the array has its size"))
    }
}
