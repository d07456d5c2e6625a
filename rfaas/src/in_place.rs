//! Calls in place: the application builds its input in the memory that the function reads, and reads the
//! result where the function wrote it. No byte of either is copied or sent.
//!
//! ```text
//!   Executor ──in_place──▶ InPlaceCall ──invoke──▶ InPlaceResult ──again──▶ InPlaceCall …
//!      a free slot: written                a header there, where the output is back: read
//!      dropping either frees the slot
//! ```
//! Where the provider maps no memory of a peer, the same calls work with bounce buffers of the
//! executor's own, which are sent and received as usual.
//! * A result stays as it was for as long as it lives, also if its executor ends meanwhile: the
//!   mapping keeps the memory, and its last owner leaves it alone.
//! * Call and result borrow the executor, so nobody else posts meanwhile. The slot stays theirs,
//!   and its output as it is.
//!
//! Elsewhere: slots, mappings, checking what the worker says (`rfaas_call`).

use std::fmt;
use std::ops::RangeBounds;
use std::ptr::NonNull;

use rfaas_call::caller::{MappedSlot, check_range, copy_range};

use crate::deployed::{DeployedExecutor, Function};
use crate::error::Result;

/// A call whose input is built where the function will read it ([`Executor::in_place`](crate::Executor::in_place)).
///
/// Before they are written, its bytes are unspecified: zeros, an earlier input, or what a function has made of it.
#[must_use = "nothing is called before `invoke`"]
pub struct InPlaceCall<'a> {
    held: Held<'a>,
    /// Bytes of input.
    len: usize,
}

/// The result of a call in place, where the function wrote it. It stays there as long as this
/// lives, even if the executor ends. The next call gives it up:
///
/// ```compile_fail,E0382
/// # fn example(call: rfaas::InPlaceCall<'_>) -> rfaas::Result<()> {
/// let result = call.invoke()?;
/// let next = result.again(64)?;
/// println!("{:?}", result.to_vec(..)?); // error: its memory is the next call's
/// # next.invoke()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "it keeps the executor borrowed"]
pub struct InPlaceResult<'a> {
    held: Held<'a>,
    /// Bytes of output.
    len: usize,
}

/// What a call and its result hold, in turn.
struct Held<'a> {
    executor: &'a mut DeployedExecutor,
    function: Function,
    /// `None`: the provider maps no memory of a peer, and input and output are the executor's bounce buffers.
    mapped: Option<MappedSlot>,
}

impl fmt::Debug for InPlaceCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InPlaceCall({:?}, input of {} bytes)", self.held.function, self.len)
    }
}

impl fmt::Debug for InPlaceResult<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InPlaceResult({:?}, {} bytes)", self.held.function, self.len)
    }
}

impl<'a> InPlaceCall<'a> {
    /// Begins a call of `function` with `input_bytes` bytes of input.
    pub(crate) fn begin(
        executor: &'a mut DeployedExecutor,
        function: &Function,
        input_bytes: usize,
    ) -> Result<Self> {
        executor.check_process()?;
        executor.check_function(function)?;
        executor.fits_slot(input_bytes)?;
        let mapped = executor.replacing(|caller| MappedSlot::find(caller))?;
        executor.make_bounce_buffers(mapped.is_some())?;
        let held = Held { executor, function: function.clone(), mapped };
        Ok(InPlaceCall { held, len: input_bytes })
    }

    /// Returns the bytes of input.
    #[allow(clippy::len_without_is_empty)] // a size that was asked for, not a collection
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies `bytes` in, from `offset` on. Fails if they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        check_range(offset, bytes.len(), self.len)?;
        match &self.held.mapped {
            Some(slot) => {
                let (inputs, start) = slot.input();
                Ok(inputs.write(start + offset, bytes)?)
            }
            None => self.held.executor.bounce_buffers_mut().0.write(offset, bytes),
        }
    }

    /// Sets all bytes to `value`.
    pub fn fill(&mut self, value: u8) -> Result<()> {
        let len = self.len;
        if let Some(slot) = &self.held.mapped {
            let (inputs, start) = slot.input();
            return Ok(inputs.fill(start..start + len, value)?);
        }
        let (input, _) = self.held.executor.bounce_buffers_mut();
        input.set_len(len)?;
        input.fill(value);
        Ok(())
    }

    /// Returns the address of [`len`](Self::len) bytes that may be read and written as long as the call lives;
    /// 64-byte aligned. Building the input through it copies nothing at all.
    ///
    /// The memory is shared with the executor's process, whose functions may change it at any time. So it is
    /// used through the pointer, and a reference to it is sound only if the functions leave it alone
    /// between calls.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        match &self.held.mapped {
            Some(slot) => {
                let (inputs, start) = slot.input();
                inputs.as_ptr().wrapping_add(start)
            }
            None => self.held.executor.bounce_buffers().0.buffer.as_ptr(),
        }
    }

    /// Calls the function and blocks until its result is there. Errors are those of
    /// [`Executor::invoke`](crate::Executor::invoke), and after one the slot is free again. Input in the memory of a
    /// worker cannot be sent to another: if the worker was lost before the call, that fails with
    /// [`Error::WorkerLost`](crate::Error::WorkerLost), or the reason, and the next
    /// [`Executor::in_place`](crate::Executor::in_place) finds another.
    pub fn invoke(self) -> Result<InPlaceResult<'a>> {
        let InPlaceCall { mut held, len } = self;
        let Held { executor, function, mapped } = &mut held; // moved once, not in pieces
        let len = match mapped {
            Some(slot) => executor.call_in_place(slot, function, len)?,
            None => executor.call_with_bounce_buffers(function, len)?,
        };
        Ok(InPlaceResult { held, len })
    }
}

impl<'a> InPlaceResult<'a> {
    /// Returns the bytes of output.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the function returned nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out, from `offset` on, filling `out`. Fails if there are not as many.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        check_range(offset, out.len(), self.len)?;
        match self.held.mapped.as_ref().map(MappedSlot::output) {
            Some(Some(output)) => Ok(output.read(offset, out)?),
            Some(None) => Ok(()), // nothing was returned, so nothing is read
            None => self.held.executor.bounce_buffers().1.read(offset, out),
        }
    }

    /// Returns a copy of the bytes in `range`. Fails if there are not as many.
    pub fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        copy_range(range, self.len, |start, out| self.read(start, out))
    }

    /// Returns the address of [`len`](Self::len) bytes that may be read, not written, as long as the result lives;
    /// 64-byte aligned, unless there are none.
    ///
    /// The memory is the executor's, whose functions may change it at any time. So it is used through the
    /// pointer, and a reference to it is sound only if the functions leave it alone between calls.
    pub fn as_ptr(&self) -> *const u8 {
        match self.held.mapped.as_ref().map(MappedSlot::output) {
            Some(Some(output)) => output.as_ptr(),
            Some(None) => NonNull::dangling().as_ptr(),
            None => self.held.executor.bounce_buffers().1.buffer.as_ptr(),
        }
    }

    /// Begins another call of the same function, in the same memory, with `input_bytes` bytes of input. The result is
    /// given up.
    pub fn again(self, input_bytes: usize) -> Result<InPlaceCall<'a>> {
        self.held.executor.fits_slot(input_bytes)?;
        Ok(InPlaceCall { held: self.held, len: input_bytes })
    }
}
