//! The core of calls in place: a slot whose memory is mapped, and where its output has stayed.
//!
//! Where the output is, and how much of it, is the worker's word, which is checked like its other words.
//!
//! Elsewhere: what an application sees of it (`rfaas`), finding a slot (`workers`).

use std::fmt::Debug;
use std::sync::Arc;

use rdmalib::{RemoteAddress, RemoteMapping};
use rfaas_protocol::invocation::{HEADER_SPACE, InPlaceDetail};
use zerocopy::FromBytes;

use super::buffer::{InputBuffer, OutputBuffer};
use super::call::{Call, Place};
use super::calls::{Locked, Progress};
use super::handle::{CallResult, Called, Caller};
use super::outcome::{CallError, Failure, Outcome, Owner};
use super::workers::Found;
use crate::backoff::Spin;

/// A slot of a worker, and the memory that goes with it.
#[derive(Debug)]
pub struct MappedSlot {
    place: Place,
    /// All slots of the worker.
    inputs: Arc<RemoteMapping>,
    /// Where this one's input is in that mapping.
    input_offset: usize,
    /// The slot's output, and where the worker said it is. Known from its first result on.
    output: Option<(RemoteAddress, Arc<RemoteMapping>)>,
}

/// Why there is no output although the worker said so.
enum NoOutput {
    /// What it said cannot be.
    Breach(&'static str),
    /// Its connection has ended since.
    Gone,
    /// This process cannot map it.
    Here(rdmalib::Error),
}

impl MappedSlot {
    /// Finds a free slot; [`CallError::Busy`] if there is none. `None` inside: the provider maps no memory.
    pub fn find<O: Owner>(caller: &Caller<O>) -> CallResult<Option<MappedSlot>, O::Cause> {
        let mut locked = Locked::waiting(caller, Spin::Never);
        if locked.workers().must_be_replaced() {
            return Ok(Called::MustReplace);
        }
        let mut polled = false;
        loop {
            match locked.with_workers(|workers, woken| workers.find(woken))? {
                Found::Slot(place, inputs) => {
                    let input_offset = locked.workers().input_offset(place);
                    let slot = |inputs| MappedSlot { place, inputs, input_offset, output: None };
                    return Ok(Called::Done(inputs.map(slot)));
                }
                Found::Busy if polled => return Err(CallError::Busy),
                Found::Busy => {
                    locked.poll_once(); // replies may be there that nobody has seen
                    polled = true;
                }
                Found::Lost => locked.advance(),
            }
        }
    }

    /// Returns where the input is: the mapping and the offset in it.
    #[inline]
    pub fn input(&self) -> (&RemoteMapping, usize) {
        (&self.inputs, self.input_offset)
    }

    /// Returns where the output of the last call is, if it had any.
    #[inline]
    pub fn output(&self) -> Option<&RemoteMapping> {
        self.output.as_ref().map(|(_, output)| &**output)
    }

    /// Makes a call of `function` with the first `input_bytes` bytes of the slot and at most `most`
    /// bytes of output, for [`Caller::call_in_place`]. `header` and `reply` are where its header is
    /// sent from and where its reply goes.
    #[inline]
    pub fn request<'a>(
        &self,
        function: u16,
        input_bytes: usize,
        (header, reply): (&'a InputBuffer, &OutputBuffer),
        most: usize,
    ) -> Call<'a> {
        Call::in_place(function, self.place, header, input_bytes, reply, most)
    }

    /// Returns the bytes of output of `call`, whose outcome this is and whose reply went to `reply`,
    /// or why there are none.
    #[inline]
    pub fn read_outcome<O: Owner>(
        &mut self,
        caller: &mut Caller<O>,
        call: &Call<'_>,
        outcome: Outcome<O::Cause>,
        reply: &mut OutputBuffer,
    ) -> Result<usize, CallError<O::Cause>> {
        let most = call.capacity as usize;
        let detail_bytes = match outcome {
            Outcome::OutputTooLarge => {
                let needed = reply.failure_detail()?.needed_bytes.get();
                return Err(CallError::OutputTooLarge { needed, capacity: most });
            }
            outcome => caller.read_outcome(outcome, reply)?,
        };
        match self.find_output(caller, reply, detail_bytes, most) {
            Ok(bytes) => Ok(bytes),
            Err(why) => {
                let outcome = self.without_output(caller, call, why)?;
                caller.read_outcome(outcome, reply)
            }
        }
    }

    /// Returns the outcome of `call`, which has no output because of `why`.
    #[cold]
    fn without_output<O: Owner>(
        &self,
        caller: &mut Caller<O>,
        call: &Call<'_>,
        why: NoOutput,
    ) -> Result<Outcome<O::Cause>, CallError<O::Cause>> {
        let worker = self.place.worker;
        match why {
            NoOutput::Here(error) => Err(error.into()),
            NoOutput::Breach(breach) => {
                caller.with_workers(|workers, woken| workers.breach(worker, breach, woken));
                Ok(Outcome::Failed(Failure::WorkerLost(breach)))
            }
            NoOutput::Gone => {
                caller.with_workers(|workers, woken| workers.gone(worker, woken));
                caller.call_in_place(call) // there is no worker to call: it tells why
            }
        }
    }

    /// Checks where the output is, of at most `most` bytes, as the reply's detail in `reply` says. Returns how many
    /// bytes there are.
    #[inline]
    fn find_output<O: Owner>(
        &mut self,
        caller: &Caller<O>,
        reply: &OutputBuffer,
        detail_bytes: usize,
        most: usize,
    ) -> Result<usize, NoOutput> {
        if detail_bytes != size_of::<InPlaceDetail>() {
            return Err(NoOutput::Breach("it answered a call in place with something else"));
        }
        let mut detail = [0; size_of::<InPlaceDetail>()];
        reply.read(0, &mut detail).map_err(NoOutput::Here)?;
        let detail = InPlaceDetail::read_from_bytes(&detail).expect("the array has its size");
        let bytes = detail.output_bytes.get() as usize;
        if bytes > most {
            return Err(NoOutput::Breach("it answered with more bytes than an output has"));
        }
        let at = RemoteAddress { addr: detail.output_addr.get(), key: detail.output_key.get() };
        let known = self.output.as_ref().is_some_and(|(known, _)| *known == at);
        if bytes > 0 && !known {
            self.map_output(caller, at, most)?;
        }
        Ok(bytes)
    }

    #[cold]
    fn map_output<O: Owner>(
        &mut self,
        caller: &Caller<O>,
        at: RemoteAddress,
        most: usize,
    ) -> Result<(), NoOutput> {
        if !at.addr.is_multiple_of(HEADER_SPACE as u64) {
            return Err(NoOutput::Breach("its output is not aligned to 64 bytes"));
        }
        let output = caller.with_workers(|workers, _| workers.output(self.place, at, most));
        let output = output.map_err(|error| match error {
            rdmalib::Error::Disconnected => NoOutput::Gone,
            rdmalib::Error::RemoteAccess => {
                NoOutput::Breach("its output is where its key does not open")
            }
            error => NoOutput::Here(error),
        })?;
        self.output = Some((at, output));
        Ok(())
    }
}
