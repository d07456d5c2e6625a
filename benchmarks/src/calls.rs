//! Calls of one function, one after the other: sent, and in place.

use std::time::{Duration, Instant};

use rfaas::{Executor, Function, InPlaceCall, InPlaceResult};
use rfaas_program::Failure;

use crate::echo::Echo;
use crate::plan::RunPlan;
use crate::service::Buffers;

/// Calls whose input and output are sent.
#[derive(Debug)]
pub struct Calls<'a> {
    executor: &'a mut Executor,
    function: &'a Function,
    buffers: Buffers,
}

impl<'a> Calls<'a> {
    /// Of `function`, with payloads of this run.
    pub fn new(
        plan: &RunPlan,
        executor: &'a mut Executor,
        function: &'a Function,
    ) -> Result<Self, Failure> {
        let buffers = Buffers::new(plan, executor, 1)?;
        Ok(Calls { executor, function, buffers })
    }
}

impl Echo for Calls<'_> {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.buffers.inputs[0].write(offset, bytes)?)
    }

    #[inline]
    fn round_trip(&mut self) -> Result<usize, Failure> {
        let (input, output) = (&self.buffers.inputs[0], &mut self.buffers.outputs[0]);
        Ok(self.executor.invoke(self.function, input, output)?)
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
        Ok(self.buffers.outputs[0].read(offset, out)?)
    }
}

/// Calls whose input and output stay where the function has them, one after the other in the same slot.
#[derive(Debug)]
pub struct CallsInPlace<'a> {
    /// Which of them is there; `None` after a failure.
    state: Option<InPlaceState<'a>>,
    payload_bytes: usize,
}

#[derive(Debug)]
enum InPlaceState<'a> {
    Call(InPlaceCall<'a>),
    Result(InPlaceResult<'a>),
}

impl<'a> CallsInPlace<'a> {
    /// Of `function`, with payloads of this many bytes, all ones until something is written.
    pub fn new(
        executor: &'a mut Executor,
        function: &Function,
        payload_bytes: usize,
    ) -> Result<Self, Failure> {
        let mut call = executor.in_place(function, payload_bytes)?;
        call.fill(1)?;
        Ok(CallsInPlace { state: Some(InPlaceState::Call(call)), payload_bytes })
    }

    /// The next call: the one that is there, or another after the result that is.
    fn take(&mut self) -> Result<InPlaceCall<'a>, Failure> {
        match self.state.take() {
            Some(InPlaceState::Call(call)) => Ok(call),
            Some(InPlaceState::Result(result)) => Ok(result.again(self.payload_bytes)?),
            None => Err(Failure::later("a call in place failed before")),
        }
    }
}

impl Echo for CallsInPlace<'_> {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        let mut call = self.take()?;
        call.write(offset, bytes)?;
        self.state = Some(InPlaceState::Call(call));
        Ok(())
    }

    fn round_trip(&mut self) -> Result<usize, Failure> {
        self.timed_round_trip().map(|(_, len)| len)
    }

    /// The call alone: that it is moved from and to where this keeps it is not measured.
    #[inline]
    fn timed_round_trip(&mut self) -> Result<(Duration, usize), Failure> {
        let call = self.take()?;
        let start = Instant::now();
        let result = call.invoke();
        let took = start.elapsed();
        let result = result?;
        let len = result.len();
        self.state = Some(InPlaceState::Result(result));
        Ok((took, len))
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
        match &self.state {
            Some(InPlaceState::Result(result)) => Ok(result.read(offset, out)?),
            _ => Err(Failure::later("no result is there")),
        }
    }
}
