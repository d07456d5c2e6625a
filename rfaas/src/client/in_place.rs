//! Calls in place: the application builds its input in the memory that the function reads, and reads the
//! result where the function wrote it. No byte of either is copied or sent.
//!
//! ```text
//!   Executor ──in_place──▶ InPlaceCall ──invoke──▶ InPlaceResult ──again──▶ InPlaceCall …
//!      a free slot: written                a header there, where the output is back: read
//!      dropping either frees the slot
//! ```
//! Where the provider maps no remote memory, the same calls work with buffers of the executor's own, which
//! are sent and received as usual ([`Aside`]).
//! * STAYS - a result is as it was for as long as it lives, also if its executor ends meanwhile: the mapping
//!   keeps the memory, and its last owner leaves it alone.
//! * HELD - call and result borrow the executor, so nobody else posts meanwhile: the slot stays theirs, and
//!   its output as it is.
//! * HOSTILE - where the output is and how much, is the worker's word; it is checked like its other words.
//!
//! Elsewhere: slots and mappings (`workers/in_place`), what a loss means (`workers`).

use std::fmt;
use std::ops::RangeBounds;
use std::ptr::NonNull;
use std::sync::Arc;

use rdmalib::{RemoteAddress, RemoteMapping};
use zerocopy::FromBytes;

use super::Spin;
use super::buffer::{Input, Output, check, copy_of};
use super::drive::{Alone, Drive, Together, wake};
use super::executor::{Executor, Function};
use super::failure::{Failure, Outcome};
use super::invoke::post_and_wait;
use super::workers::{Call, Found, Place};
use crate::error::{Error, Result};
use rfaas_protocol::invocation::{HEADER_SPACE, InPlaceDetail};

/// A call whose input is built where the function will read it ([`Executor::in_place`]).
///
/// What its bytes are before they are written is not specified: zeros, an earlier input, or what a function
/// has made of it.
#[must_use = "nothing is called before `invoke`"]
pub struct InPlaceCall<'a> {
    held: Held<'a>,
    /// Of the input.
    len: usize,
}

/// The result of a call in place, where the function wrote it. It stays there as long as this lives, even
/// if the executor ends.
#[must_use = "it keeps the executor borrowed"]
pub struct InPlaceResult<'a> {
    held: Held<'a>,
    /// Of the output.
    len: usize,
}

/// What a call and its result hold, in turn.
struct Held<'a> {
    executor: &'a mut Executor,
    function: Function,
    /// Taken from the executor, given back when dropped.
    aside: Option<Aside>,
    /// `None`: the provider maps nothing, and input and output are aside.
    there: Option<There>,
}

/// A slot, and the memory that goes with it.
struct There {
    place: Place,
    /// All slots of the worker.
    inputs: Arc<RemoteMapping>,
    /// Of this one, in the mapping.
    input_offset: usize,
    /// The slot's output, and where the worker said it is; from its first result on.
    output: Option<(RemoteAddress, Arc<RemoteMapping>)>,
}

/// Registered memory of our own beside the worker's: a header to send and a place for the reply's detail.
/// Where the provider maps nothing: input and output themselves.
pub(super) struct Aside {
    input: Input,
    output: Output,
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

impl Executor {
    /// Begins a call of `function` in place, with `input_bytes` bytes of input, on a worker that has the
    /// least to do: [`Error::AllSlotsBusy`] if each slot of each has an invocation in flight. Unlike
    /// [`invoke`](Self::invoke), whose input and output are copied, it costs the same at any size; on a
    /// network device, where memory cannot be shared, as much as `invoke`.
    ///
    /// It borrows the executor until call and result are dropped. A loop reuses them
    /// ([`InPlaceResult::again`]).
    ///
    /// ```no_run
    /// # fn example(executor: &mut rfaas::Executor, frames: &[Vec<u8>]) -> rfaas::Result<()> {
    /// let function = executor.function("detect")?;
    /// let mut call = executor.in_place(&function, 16 << 20)?;
    /// for frame in frames {
    ///     call.write(0, frame)?; // or render it there, through `as_mut_ptr`
    ///     let result = call.invoke()?;
    ///     println!("{:?}", result.to_vec(..result.len().min(100))?);
    ///     call = result.again(16 << 20)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_place(&mut self, function: &Function, input_bytes: usize) -> Result<InPlaceCall<'_>> {
        self.data.check_process()?;
        if function.owner != self.blueprint.owner {
            return Err(Error::Foreign("function"));
        }
        self.fits_slot(input_bytes)?;
        let there = self.find_there()?;
        let aside = self.take_aside(there.is_some())?;
        let held = Held { executor: self, function: function.clone(), aside: Some(aside), there };
        Ok(InPlaceCall { held, len: input_bytes })
    }

    /// A free slot, mapped; `None` if the provider cannot.
    fn find_there(&mut self) -> Result<Option<There>> {
        self.replacing(|data| {
            let mut woken = Vec::new();
            let mut together = Together::waiting(data, Spin::Never);
            if together.workers().due() {
                return Ok(None);
            }
            let mut looked = false;
            let found = loop {
                match together.workers().find(&mut woken) {
                    Ok(Found::Slot(place, inputs)) => {
                        let input_offset = together.workers().input_offset(place);
                        break Ok(inputs.map(|inputs| There {
                            place,
                            inputs,
                            input_offset,
                            output: None,
                        }));
                    }
                    Ok(Found::Busy) if looked => break Err(Error::AllSlotsBusy),
                    Ok(Found::Busy) => {
                        together.glance(); // replies may be there that nobody has looked at
                        looked = true;
                    }
                    Ok(Found::Lost) => together.advance(),
                    Err(error) => break Err(error),
                }
            };
            drop(together);
            wake(woken);
            found.map(Some)
        })
    }

    /// The buffers beside the memory in place, or, if there is none, in its stead.
    fn take_aside(&mut self, in_place: bool) -> Result<Aside> {
        if let Some(aside) = self.aside.take() {
            return Ok(aside);
        }
        let deployment = &self.blueprint.deployment;
        let (input, output) = if in_place {
            (0, size_of::<InPlaceDetail>())
        } else {
            (deployment.input_bytes, deployment.output_bytes)
        };
        Ok(Aside { input: self.input(input)?, output: self.output(output)? })
    }

    /// Posts `call`, which has a place, and waits for its outcome.
    #[inline]
    fn call_in_place(&mut self, call: &Call<'_>) -> Result<Outcome> {
        match Alone::new(&mut self.data) {
            Some(mut alone) => post_and_wait(&mut alone, call),
            None => post_and_wait(&mut Together::new(&self.data), call),
        }
    }

    /// HOSTILE. The worker of `place` has answered what cannot be: it is cut off.
    #[cold]
    fn breach(&mut self, place: Place, breach: &'static str) -> Outcome {
        let mut woken = Vec::new();
        self.data.lock().workers.breach(place.worker, breach, &mut woken);
        wake(woken);
        Outcome::Failed(Failure::WorkerLost(breach))
    }

    /// The connection to the worker of `place` has ended.
    #[cold]
    fn gone(&mut self, place: Place) {
        let mut woken = Vec::new();
        self.data.lock().workers.gone(place.worker, &mut woken);
        wake(woken);
    }
}

impl<'a> InPlaceCall<'a> {
    /// Bytes of input.
    #[allow(clippy::len_without_is_empty)] // a size that was asked for, not a collection
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies `bytes` in, from `offset` on. An error if they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        check(offset, bytes.len(), self.len)?;
        match &self.held.there {
            Some(there) => Ok(there.inputs.write(there.input_offset + offset, bytes)?),
            None => self.held.aside().input.write(offset, bytes),
        }
    }

    /// Sets all bytes to `value`.
    pub fn fill(&mut self, value: u8) -> Result<()> {
        let len = self.len;
        if let Some(there) = &self.held.there {
            let start = there.input_offset;
            return Ok(there.inputs.fill(start..start + len, value)?);
        }
        let input = &mut self.held.aside().input;
        input.set_len(len)?;
        input.fill(value);
        Ok(())
    }

    /// First byte of [`len`](Self::len) bytes that may be read and written as long as the call lives;
    /// 64-byte aligned. Building the input through it copies nothing at all.
    ///
    /// The memory is shared with the executor's process, whose functions may change it at any time. So it is
    /// used through the pointer, and a reference to it is sound only if the functions leave it alone
    /// between calls.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        match &self.held.there {
            Some(there) => there.inputs.as_ptr().wrapping_add(there.input_offset),
            None => self.held.aside().input.as_ptr(),
        }
    }

    /// Calls the function and blocks until its result is there. Errors are those of
    /// [`Executor::invoke`], and after one the slot is free again. Input in the memory of a worker cannot
    /// be sent to another: if the worker was lost before the call, that fails with
    /// [`Error::WorkerLost`], or the reason, and the next [`Executor::in_place`] finds another.
    pub fn invoke(self) -> Result<InPlaceResult<'a>> {
        let InPlaceCall { mut held, len } = self;
        let len = if held.there.is_some() { held.call(len)? } else { held.call_aside(len)? };
        Ok(InPlaceResult { held, len })
    }
}

impl<'a> InPlaceResult<'a> {
    /// Bytes of output.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the function returned nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out, from `offset` on, filling `out`. An error if there are not as many.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        check(offset, out.len(), self.len)?;
        match (&self.held.there, &self.held.aside) {
            (Some(There { output: Some((_, output)), .. }), _) => Ok(output.read(offset, out)?),
            (None, Some(aside)) => aside.output.read(offset, out),
            _ => Ok(()), // nothing was returned, so nothing is read
        }
    }

    /// A copy of the bytes in `range`. An error if there are not as many.
    pub fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        copy_of(range, self.len, |start, out| self.read(start, out))
    }

    /// First byte of [`len`](Self::len) bytes that may be read, not written, as long as the result lives;
    /// 64-byte aligned, unless there are none.
    ///
    /// The memory is the executor's, whose functions may change it at any time. So it is used through the
    /// pointer, and a reference to it is sound only if the functions leave it alone between calls.
    pub fn as_ptr(&self) -> *const u8 {
        match (&self.held.there, &self.held.aside) {
            (Some(There { output: Some((_, output)), .. }), _) => output.as_ptr(),
            (None, Some(aside)) => aside.output.as_ptr(),
            _ => NonNull::dangling().as_ptr(),
        }
    }

    /// Another call of the same function, in the same memory, with `input_bytes` bytes of input. The result
    /// is given up.
    pub fn again(self, input_bytes: usize) -> Result<InPlaceCall<'a>> {
        self.held.executor.fits_slot(input_bytes)?;
        Ok(InPlaceCall { held: self.held, len: input_bytes })
    }
}

impl Held<'_> {
    fn aside(&mut self) -> &mut Aside {
        self.aside.as_mut().expect("taken only while dropping")
    }

    /// Calls the function with the first `len` bytes of the slot; returns the bytes of output.
    #[inline]
    fn call(&mut self, len: usize) -> Result<usize> {
        let there = self.there.as_mut().expect("the caller has looked");
        let Aside { input, output } = self.aside.as_mut().expect("taken only while dropping");
        let most = self.executor.blueprint.deployment.output_bytes;
        let call = Call::in_place(self.function.index, there.place, input, len, output, most);
        let detail_bytes = match self.executor.call_in_place(&call)? {
            Outcome::OutputTooLarge => {
                let needed = output.failure_detail()?.needed_bytes.get();
                return Err(Error::OutputTooLarge { needed, capacity: most });
            }
            outcome => self.executor.finish(outcome, output)?,
        };
        let outcome = match there.find_output(self.executor, output, detail_bytes, most) {
            Ok(bytes) => return Ok(bytes),
            Err(Unusable::Here(error)) => return Err(error),
            Err(Unusable::Breach(breach)) => self.executor.breach(there.place, breach),
            Err(Unusable::Gone) => {
                self.executor.gone(there.place);
                self.executor.call_in_place(&call)? // there is no worker to call: it tells why
            }
        };
        self.executor.finish(outcome, output)
    }

    /// The ordinary call, with the first `len` bytes of our own input.
    fn call_aside(&mut self, len: usize) -> Result<usize> {
        let Aside { input, output } = self.aside.as_mut().expect("taken only while dropping");
        input.set_len(len)?;
        self.executor.invoke(&self.function, input, output)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.executor.aside = self.aside.take();
    }
}

/// Why there is no output although the worker said so.
enum Unusable {
    /// What it said cannot be.
    Breach(&'static str),
    /// Its connection ended since.
    Gone,
    /// This process cannot map it.
    Here(Error),
}

impl There {
    /// Looks where the output is, of at most `most` bytes, as the reply's detail in `reply` says; returns
    /// how many bytes there are.
    #[inline]
    fn find_output(
        &mut self,
        executor: &mut Executor,
        reply: &Output,
        detail_bytes: usize,
        most: usize,
    ) -> Result<usize, Unusable> {
        if detail_bytes != size_of::<InPlaceDetail>() {
            return Err(Unusable::Breach("it answered a call in place with something else"));
        }
        let mut detail = [0; size_of::<InPlaceDetail>()];
        reply.read(0, &mut detail).map_err(Unusable::Here)?;
        let detail = InPlaceDetail::read_from_bytes(&detail).expect("the array has its size");
        let bytes = detail.output_bytes.get() as usize;
        if bytes > most {
            return Err(Unusable::Breach("it answered with more bytes than an output has"));
        }
        let at = RemoteAddress { addr: detail.output_addr.get(), key: detail.output_key.get() };
        let known = self.output.as_ref().is_some_and(|(known, _)| *known == at);
        if bytes > 0 && !known {
            self.map_output(executor, at, most)?;
        }
        Ok(bytes)
    }

    #[cold]
    fn map_output(
        &mut self,
        executor: &mut Executor,
        at: RemoteAddress,
        most: usize,
    ) -> Result<(), Unusable> {
        if !at.addr.is_multiple_of(HEADER_SPACE as u64) {
            return Err(Unusable::Breach("its output is not aligned to 64 bytes"));
        }
        let output = executor.data.lock().workers.output(self.place, at, most);
        let output = output.map_err(|error| match error {
            rdmalib::Error::Disconnected => Unusable::Gone,
            rdmalib::Error::RemoteAccess => {
                Unusable::Breach("its output is where its key does not open")
            }
            error => Unusable::Here(error.into()),
        })?;
        self.output = Some((at, output));
        Ok(())
    }
}
