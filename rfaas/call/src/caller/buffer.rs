//! The inputs and outputs of calls: registered memory of one protection domain, with the space in front that the
//! protocol uses ([`rfaas_protocol::invocation`]).
//!
//! A worker may write an output at any time while a call is in flight. So nothing here gives a reference to the
//! bytes: they are copied in and out.

use std::fmt;
use std::ops::{Bound, RangeBounds};

use rdmalib::{Access, Domain, Error, Region, RemoteAddress, Result, Slice};
use zerocopy::{FromBytes, IntoBytes};

use rfaas_protocol::invocation::{FailureDetail, HEADER_SPACE, RequestHeader};

/// Offset of the request header: right in front of the input, so that both are one write.
pub(super) const HEADER_OFFSET: usize = HEADER_SPACE - size_of::<RequestHeader>();

/// What a worker needs to write an output.
const WRITABLE: Access = Access::LOCAL_WRITE.union(Access::REMOTE_WRITE);

/// The input of a call.
pub struct InputBuffer {
    memory: Box<Memory>,
    len: usize,
}

/// Where the output of a call lands.
pub struct OutputBuffer {
    memory: Box<Memory>,
}

/// A region with header space, addressed behind it. Boxed, since buffers travel by value: with a
/// result, with an error.
struct Memory {
    region: Region,
    domain: Domain,
}

impl fmt::Debug for InputBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input({} bytes of {})", self.len, self.capacity())
    }
}

impl fmt::Debug for OutputBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output({} bytes)", self.len())
    }
}

impl Memory {
    fn allocate(domain: &Domain, bytes: usize, access: Access) -> Result<Box<Self>> {
        let bytes = bytes.saturating_add(HEADER_SPACE); // no machine has as much as that
        let region = domain.allocate(bytes, access)?;
        Ok(Box::new(Memory { region, domain: domain.clone() }))
    }

    #[inline]
    fn capacity(&self) -> usize {
        self.region.len() - HEADER_SPACE
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        self.region.write(HEADER_SPACE + offset, bytes)
    }

    #[inline]
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len())?;
        self.region.read(HEADER_SPACE + offset, out)
    }

    fn fill(&self, bytes: usize, value: u8) {
        self.region
            .fill(HEADER_SPACE..HEADER_SPACE + bytes, value)
            .expect("a buffer is not longer than its region");
    }

    fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        copy_range(range, self.capacity(), |start, out| self.read(start, out))
    }

    /// Errors count from the first byte of the buffer, not of the region.
    #[inline]
    fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        check_range(offset, bytes, self.capacity())
    }

    fn as_ptr(&self) -> *mut u8 {
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
    /// Memory for an input of `bytes` bytes, zeroed.
    pub fn allocate(domain: &Domain, bytes: usize) -> Result<Self> {
        // Only our own device reads it.
        let memory = Memory::allocate(domain, bytes, Access::empty())?;
        Ok(InputBuffer { memory, len: bytes })
    }

    /// Bytes that a call sends.
    #[allow(clippy::len_without_is_empty)] // a size that was asked for, not a collection
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that fit.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.memory.capacity()
    }

    /// Sends `len` bytes from now on, at most [`capacity`](Self::capacity).
    pub fn set_len(&mut self, len: usize) -> Result<()> {
        self.memory.check(0, len)?;
        self.len = len;
        Ok(())
    }

    /// Sets all bytes that are sent to `value`.
    pub fn fill(&mut self, value: u8) {
        self.memory.fill(self.len, value);
    }

    /// Copies `bytes` in, from `offset` on. Fails if they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.memory.write(offset, bytes)
    }

    /// Copies bytes out, from `offset` on, filling `out`. Fails if there are not as many.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.memory.read(offset, out)
    }

    /// Returns a copy of the bytes in `range`. Fails if there are not as many.
    pub fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        self.memory.to_vec(range)
    }

    /// The address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Puts `header` in front of the bytes.
    #[inline]
    pub(super) fn set_header(&self, header: &RequestHeader) -> Result<()> {
        self.memory.region.write(HEADER_OFFSET, header.as_bytes())
    }

    /// What is sent: from `start` on, which is where the header is, or behind it.
    #[inline]
    pub(super) fn message(&self, start: usize) -> Result<Slice<'_>> {
        self.memory.region.slice(start..HEADER_SPACE + self.len)
    }

    /// Copies what is sent from `start` on to the front of `out`, which is long enough, and returns that part.
    #[inline]
    pub(super) fn copy_message<'a>(&self, start: usize, out: &'a mut [u8]) -> Result<&'a [u8]> {
        let out = &mut out[..HEADER_SPACE - start + self.len];
        self.memory.region.read(start, out)?;
        Ok(out)
    }
}

impl OutputBuffer {
    /// Memory for an output of up to `bytes` bytes, zeroed.
    pub fn allocate(domain: &Domain, bytes: usize) -> Result<Self> {
        Ok(OutputBuffer { memory: Memory::allocate(domain, bytes, WRITABLE)? })
    }

    /// Takes the right to write here from everybody who has it, by moving to memory under a new key: a worker that
    /// was given up may not know it yet. What was written before is lost.
    pub(super) fn revoke(&mut self) {
        let memory = &mut self.memory;
        match memory.domain.allocate(memory.region.len(), WRITABLE) {
            Ok(fresh) => memory.region = fresh,
            Err(error) => tracing::warn!(%error, "output not moved away from a lost worker"),
        }
    }

    /// Bytes that fit. The call returns how many there are.
    #[allow(clippy::len_without_is_empty)] // a size that was asked for, not a collection
    #[inline]
    pub fn len(&self) -> usize {
        self.memory.capacity()
    }

    /// Sets all bytes to `value`.
    pub fn fill(&mut self, value: u8) {
        self.memory.fill(self.len(), value);
    }

    /// Copies `bytes` in, from `offset` on. Fails if they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.memory.write(offset, bytes)
    }

    /// Copies bytes out, from `offset` on, filling `out`. Fails if there are not as many.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.memory.read(offset, out)
    }

    /// Returns a copy of the bytes in `range`. Fails if there are not as many.
    pub fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        self.memory.to_vec(range)
    }

    /// The address of the first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.memory.as_ptr()
    }

    /// Where a worker writes the result.
    #[inline]
    pub(super) fn remote(&self) -> RemoteAddress {
        self.memory.region.remote().offset(HEADER_SPACE as u64)
    }

    /// What a worker left in the header space with a failure. Its bytes: any number.
    pub(super) fn failure_detail(&self) -> Result<FailureDetail> {
        let mut bytes = [0; size_of::<FailureDetail>()];
        self.memory.region.read(0, &mut bytes)?;
        Ok(FailureDetail::read_from_bytes(&bytes).expect("the array has its size"))
    }
}
