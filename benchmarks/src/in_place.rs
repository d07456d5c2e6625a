//! Calls in place, one after the other, checked like others.

use std::time::{Duration, Instant};

use rfaas::{Executor, Function, InPlaceCall, InPlaceResult};
use rfaas_program::Failure;

use crate::pattern;
use crate::service::Known;

/// One call after the other in the same memory.
#[derive(Debug)]
pub struct InPlace<'a> {
    /// The next one; `None` after a failure.
    call: Option<InPlaceCall<'a>>,
    payload_bytes: usize,
    known: Known,
}

impl<'a> InPlace<'a> {
    /// For calls of `function`, of whose result so much is `known`, with payloads of this many bytes.
    pub fn new(
        executor: &'a mut Executor,
        function: &Function,
        known: Known,
        payload_bytes: usize,
    ) -> Result<Self, Failure> {
        let mut call = executor.in_place(function, payload_bytes)?;
        call.fill(1)?;
        Ok(InPlace { call: Some(call), payload_bytes, known })
    }

    /// Measures one call, and checks that its result is its own.
    pub fn round_trip(&mut self, number: u64) -> Result<Duration, Failure> {
        let (known, bytes) = (self.known, self.payload_bytes);
        let mut call = self.take()?;
        if known != Known::Nothing {
            pattern::write_stamp(bytes, number, |offset, bytes| Ok(call.write(offset, bytes)?))?;
        }
        let start = Instant::now();
        let result = call.invoke();
        let took = start.elapsed();
        let result = result?;
        if known != Known::Nothing {
            pattern::compare_length(number, bytes, result.len())?;
            pattern::check_stamp(bytes, number, |offset, out| Ok(result.read(offset, out)?))?;
        }
        self.put_back(result)?;
        Ok(took)
    }

    /// Compares one whole payload, after the measurement, if the function is one that returns it.
    pub fn compare_once(&mut self, number: u64) -> Result<(), Failure> {
        if self.known != Known::All {
            return Ok(());
        }
        let sent = pattern::payload(self.payload_bytes);
        let mut call = self.take()?;
        call.write(0, &sent)?;
        let result = call.invoke()?;
        pattern::compare(number, 0, &sent, &result.to_vec(..)?)?;
        self.put_back(result)
    }

    /// The start, at most `most` bytes, of what the function makes of the tutorial's input, all ones.
    pub fn last_output(&mut self, most: usize) -> Result<Vec<u8>, Failure> {
        let mut call = self.take()?;
        call.fill(1)?;
        let result = call.invoke()?;
        let shown = result.to_vec(..result.len().min(most))?;
        self.put_back(result)?;
        Ok(shown)
    }

    fn take(&mut self) -> Result<InPlaceCall<'a>, Failure> {
        self.call.take().ok_or_else(|| Failure::later("a call in place failed before"))
    }

    fn put_back(&mut self, result: InPlaceResult<'a>) -> Result<(), Failure> {
        self.call = Some(result.again(self.payload_bytes)?);
        Ok(())
    }
}
