//! Inputs and outputs as an application has them: memory of one executor, with the errors of this crate.

use std::fmt;
use std::ops::RangeBounds;

use rdmalib::Domain;
use rfaas_call::caller::{InputBuffer, OutputBuffer};
use rfaas_protocol::Secret;
use rfaas_protocol::invocation::HEADER_SPACE;

use crate::error::{Error, Result};

/// Tells the buffers and functions of one executor from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin(u64);

impl Origin {
    /// Makes one that no other executor of this process has.
    pub(crate) fn generate() -> Self {
        let Secret(random) = Secret::generate();
        let (half, _) = random.split_first_chunk().expect("a secret has 16 bytes");
        Origin(u64::from_ne_bytes(*half))
    }
}

/// The input of a call: registered memory of one executor ([`Executor::input`](crate::Executor::input)).
///
/// It cannot be changed while an asynchronous call is in flight: [`submit`](crate::Executor::submit) takes it, and the
/// result gives it back.
///
/// ```compile_fail,E0382
/// # fn example(executor: &mut rfaas::Executor) -> rfaas::Result<()> {
/// let function = executor.function("empty")?;
/// let (mut input, output) = (executor.input(64)?, executor.output(64)?);
/// let pending = executor.submit(&function, input, output)?;
/// input.fill(1); // error: the call in flight has it
/// # pending.wait()?;
/// # Ok(())
/// # }
/// ```
pub struct Input {
    pub(crate) buffer: InputBuffer,
    pub(crate) origin: Origin,
}

/// Where the output of a call lands: registered memory of one executor
/// ([`Executor::output`](crate::Executor::output)).
///
/// It cannot be read while an asynchronous call is in flight: [`submit`](crate::Executor::submit) takes it, and the
/// result gives it back.
///
/// ```compile_fail,E0382
/// # fn example(executor: &mut rfaas::Executor) -> rfaas::Result<()> {
/// let function = executor.function("empty")?;
/// let (input, output) = (executor.input(64)?, executor.output(64)?);
/// let pending = executor.submit(&function, input, output)?;
/// println!("{:?}", output.to_vec(..)?); // error: the call in flight has it
/// # pending.wait()?;
/// # Ok(())
/// # }
/// ```
pub struct Output {
    pub(crate) buffer: OutputBuffer,
    pub(crate) origin: Origin,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.buffer.fmt(f)
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.buffer.fmt(f)
    }
}

/// Fails if memory of `bytes` bytes, with the space in front, is larger than the address space.
fn check_size(bytes: usize) -> Result<()> {
    match bytes.checked_add(HEADER_SPACE) {
        Some(_) => Ok(()),
        None => Err(Error::Invalid("a buffer is smaller than the address space")),
    }
}

impl Input {
    pub(crate) fn allocate(domain: &Domain, origin: Origin, bytes: usize) -> Result<Self> {
        check_size(bytes)?;
        Ok(Input { buffer: InputBuffer::allocate(domain, bytes)?, origin })
    }

    /// Returns how many bytes a call sends.
    #[allow(clippy::len_without_is_empty)] // a size that was asked for, not a collection
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Returns how many bytes fit.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Has calls send `len` bytes from now on, at most [`capacity`](Self::capacity).
    pub fn set_len(&mut self, len: usize) -> Result<()> {
        Ok(self.buffer.set_len(len)?)
    }

    /// Sets all bytes that are sent to `value`.
    ///
    /// # Panics
    /// In a forked child, which has no buffers.
    pub fn fill(&mut self, value: u8) {
        self.buffer
            .fill(self.len(), value)
            .expect("as many bytes as fit, in the process that made them");
    }

    /// Copies `bytes` in, from `offset` on. Fails if they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        Ok(self.buffer.write(offset, bytes)?)
    }

    /// Copies bytes out, from `offset` on, filling `out`. Fails if there are not as many.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        Ok(self.buffer.read(offset, out)?)
    }

    /// Returns a copy of the bytes in `range`. Fails if there are not as many.
    pub fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        Ok(self.buffer.to_vec(range)?)
    }
}

impl Output {
    pub(crate) fn allocate(domain: &Domain, origin: Origin, bytes: usize) -> Result<Self> {
        check_size(bytes)?;
        Ok(Output { buffer: OutputBuffer::allocate(domain, bytes)?, origin })
    }

    /// Returns how many bytes fit. A call returns how many there are after it.
    #[allow(clippy::len_without_is_empty)] // a size that was asked for, not a collection
    pub fn len(&self) -> usize {
        self.buffer.capacity()
    }

    /// Sets all bytes to `value`.
    ///
    /// # Panics
    /// In a forked child, which has no buffers.
    pub fn fill(&mut self, value: u8) {
        self.buffer
            .fill(self.len(), value)
            .expect("as many bytes as fit, in the process that made them");
    }

    /// Copies `bytes` in, from `offset` on. Fails if they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        Ok(self.buffer.write(offset, bytes)?)
    }

    /// Copies bytes out, from `offset` on, filling `out`. Fails if there are not as many.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        Ok(self.buffer.read(offset, out)?)
    }

    /// Returns a copy of the bytes in `range`, such as `..n` after a call that returned `n`. Fails if there are not as
    /// many.
    pub fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        Ok(self.buffer.to_vec(range)?)
    }
}
