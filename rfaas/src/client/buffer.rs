//! Inputs and outputs: registered memory of one executor's domain, with the space in front that the
//! invocation protocol uses ([`protocol::invocation`](rfaas_protocol::invocation)).
//!
//! A worker may write an output at any time while an invocation is in flight. So nothing here gives
//! a reference to the bytes: they are copied in and out.

use std::fmt;
use std::ops::{Bound, RangeBounds};

use rdmalib::{Access, Domain, Region, RemoteAddress, Slice};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};
use rfaas_protocol::Secret;
use rfaas_protocol::invocation::{FailureDetail, HEADER_SPACE, RequestHeader};

/// Offset of the request header: right in front of the input, so that both are one write.
pub(super) const HEADER_OFFSET: usize = HEADER_SPACE - size_of::<RequestHeader>();

/// What a worker needs to write an output.
const WRITABLE: Access = Access::LOCAL_WRITE.union(Access::REMOTE_WRITE);

/// Tells the buffers and functions of one executor from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner(u64);

impl Owner {
    /// One that no other executor of this process has.
    pub(super) fn generate() -> Self {
        let Secret(random) = Secret::generate();
        let (half, _) = random.split_first_chunk().expect("a secret has 16 bytes");
        Owner(u64::from_ne_bytes(*half))
    }
}

/// The input of an invocation: registered memory of one executor.
pub struct Input {
    memory: Box<Memory>,
    len: usize,
}

/// Where the output of an invocation lands: registered memory of one executor.
pub struct Output {
    memory: Box<Memory>,
}

/// A region with header space, addressed behind it. Boxed, since buffers travel by value: with a
/// result, with an error.
struct Memory {
    region: Region,
    domain: Domain,
    owner: Owner,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input({} bytes of {})", self.len, self.capacity())
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output({} bytes)", self.len())
    }
}

impl Memory {
    fn allocate(domain: &Domain, owner: Owner, bytes: usize, access: Access) -> Result<Box<Self>> {
        let bytes = bytes
            .checked_add(HEADER_SPACE)
            .ok_or(Error::Invalid("a buffer is smaller than the address space"))?;
        let region = domain.allocate(bytes, access)?;
        Ok(Box::new(Memory { region, domain: domain.clone(), owner }))
    }

    fn capacity(&self) -> usize {
        self.region.len() - HEADER_SPACE
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        Ok(self.region.write(HEADER_SPACE + offset, bytes)?)
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len())?;
        Ok(self.region.read(HEADER_SPACE + offset, out)?)
    }

    fn fill(&self, bytes: usize, value: u8) {
        self.region
            .fill(HEADER_SPACE..HEADER_SPACE + bytes, value)
            .expect("a buffer is not longer than its region");
    }

    fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        copy_of(range, self.capacity(), |start, out| self.read(start, out))
    }

    /// Errors count from the first byte of the buffer, not of the region.
    fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        check(offset, bytes, self.capacity())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.region.as_ptr().wrapping_add(HEADER_SPACE)
    }
}

/// An error unless `bytes` bytes from `offset` on are among `len`.
#[inline]
pub(super) fn check(offset: usize, bytes: usize, len: usize) -> Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= len => Ok(()),
        _ => Err(rdmalib::Error::OutOfBounds { offset, bytes, region_bytes: len }.into()),
    }
}

/// A copy of the bytes in `range` of `len` bytes that `read` reads from an offset on.
pub(super) fn copy_of(
    range: impl RangeBounds<usize>,
    len: usize,
    read: impl FnOnce(usize, &mut [u8]) -> Result<()>,
) -> Result<Vec<u8>> {
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
    check(start, bytes, len)?; // before memory is asked for
    let mut copy = vec![0; bytes];
    read(start, &mut copy)?;
    Ok(copy)
}

impl Input {
    pub(super) fn allocate(domain: &Domain, owner: Owner, bytes: usize) -> Result<Self> {
        // Only our own device reads it.
        let memory = Memory::allocate(domain, owner, bytes, Access::empty())?;
        Ok(Input { memory, len: bytes })
    }

    /// Bytes that an invocation sends.
    #[allow(clippy::len_without_is_empty)] // a size that was asked for, not a collection
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that fit.
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

    /// Copies `bytes` in, from `offset` on. An error if they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.memory.write(offset, bytes)
    }

    /// Copies bytes out, from `offset` on, filling `out`. An error if there are not as many.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.memory.read(offset, out)
    }

    /// A copy of the bytes in `range`. An error if there are not as many.
    pub fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        self.memory.to_vec(range)
    }

    pub(super) fn owner(&self) -> Owner {
        self.memory.owner
    }

    /// The first byte.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Puts `header` in front of the bytes.
    #[inline]
    pub(super) fn set_header(&self, header: &RequestHeader) -> rdmalib::Result<()> {
        self.memory.region.write(HEADER_OFFSET, header.as_bytes())
    }

    /// What is sent: from `start` on, which is where the header is, or behind it.
    #[inline]
    pub(super) fn message(&self, start: usize) -> rdmalib::Result<Slice<'_>> {
        self.memory.region.slice(start..HEADER_SPACE + self.len)
    }

    /// Copies what is sent from `start` on to the front of `out`, which is long enough, and returns that part.
    #[inline]
    pub(super) fn copy_message<'a>(
        &self,
        start: usize,
        out: &'a mut [u8],
    ) -> rdmalib::Result<&'a [u8]> {
        let out = &mut out[..HEADER_SPACE - start + self.len];
        self.memory.region.read(start, out)?;
        Ok(out)
    }
}

impl Output {
    pub(super) fn allocate(domain: &Domain, owner: Owner, bytes: usize) -> Result<Self> {
        Ok(Output { memory: Memory::allocate(domain, owner, bytes, WRITABLE)? })
    }

    /// Takes the right to write here from everybody who has it, by moving to memory under a new
    /// key: for a worker that was given up and may not know it yet. What was written before is
    /// lost.
    pub(super) fn revoke(&mut self) {
        let memory = &mut self.memory;
        match memory.domain.allocate(memory.region.len(), WRITABLE) {
            Ok(fresh) => memory.region = fresh,
            Err(error) => tracing::warn!(%error, "output not moved away from a lost worker"),
        }
    }

    /// Bytes that fit. How many there are after an invocation, it returns.
    #[allow(clippy::len_without_is_empty)] // a size that was asked for, not a collection
    pub fn len(&self) -> usize {
        self.memory.capacity()
    }

    /// Sets all bytes to `value`.
    pub fn fill(&mut self, value: u8) {
        self.memory.fill(self.len(), value);
    }

    /// Copies `bytes` in, from `offset` on. An error if they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.memory.write(offset, bytes)
    }

    /// Copies bytes out, from `offset` on, filling `out`. An error if there are not as many.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.memory.read(offset, out)
    }

    /// A copy of the bytes in `range`, such as `..n` after an invocation that returned `n`. An
    /// error if there are not as many.
    pub fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        self.memory.to_vec(range)
    }

    pub(super) fn owner(&self) -> Owner {
        self.memory.owner
    }

    /// The first byte.
    pub(super) fn as_ptr(&self) -> *const u8 {
        self.memory.as_ptr()
    }

    /// Where a worker writes the result.
    #[inline]
    pub(super) fn remote(&self) -> RemoteAddress {
        self.memory.region.remote().offset(HEADER_SPACE as u64)
    }

    /// What a worker left in the header space with a failure. Its bytes: any number.
    pub(super) fn failure_detail(&self) -> rdmalib::Result<FailureDetail> {
        let mut bytes = [0; size_of::<FailureDetail>()];
        self.memory.region.read(0, &mut bytes)?;
        Ok(FailureDetail::read_from_bytes(&bytes).expect("the array has its size"))
    }
}
