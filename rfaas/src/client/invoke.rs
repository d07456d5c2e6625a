//! Invoking: checks a call, posts it, waits for it or not. The hot path starts here.
//!
//! A blocking invocation with nothing asynchronous outstanding posts one write and polls until the
//! reply is there: no allocation, lock, log line, system call or clock read. What happens in
//! between is in `workers`; who else may be polling, in `drive`; calls in the worker's memory, `in_place`.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Spin;
use super::buffer::{Input, Output};
use super::drive::{Alone, DataPath, Drive, Together};
use super::executor::{Executor, Function};
use super::failure::Outcome;
use super::pending::{Failed, Pending};
use super::tickets::Ticket;
use super::workers::Call;
use crate::error::{Error, Result};

impl Executor {
    /// Calls `function` with `input` on a worker that has the least to do, and blocks until its
    /// result is in `output`; returns the bytes of output.
    ///
    /// With asynchronous invocations in all slots it first waits for one of them.
    // Not inlined into applications: the path below is compiled here, once and as a whole.
    pub fn invoke(
        &mut self,
        function: &Function,
        input: &Input,
        output: &mut Output,
    ) -> Result<usize> {
        let call = self.check(function, input, output)?;
        let outcome = self.call(&call)?;
        self.finish(outcome, output)
    }

    /// Calls `function` once for each of `inputs`, each time on the worker that has the least to
    /// do, so that all workers are at work; blocks until all results are in `outputs`, of which
    /// there are as many. Returns the bytes of each output.
    ///
    /// If calls fail the error is that of the first in the list; nothing is in flight any more
    /// then.
    ///
    /// ```no_run
    /// # fn example(executor: &mut rfaas::Executor, parts: &[Vec<u8>]) -> rfaas::Result<()> {
    /// let function = executor.function("sum")?;
    /// let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    /// for part in parts {
    ///     let mut input = executor.input(part.len())?;
    ///     input.write(0, part)?;
    ///     inputs.push(input);
    ///     outputs.push(executor.output(8)?);
    /// }
    /// let sizes = executor.invoke_all(&function, &inputs, &mut outputs)?;
    /// for (output, bytes) in outputs.iter().zip(sizes) {
    ///     println!("{:?}", output.to_vec(..bytes)?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn invoke_all(
        &mut self,
        function: &Function,
        inputs: &[Input],
        outputs: &mut [Output],
    ) -> Result<Vec<usize>> {
        if inputs.len() != outputs.len() {
            return Err(Error::Invalid("there are as many outputs as inputs"));
        }
        let calls: Vec<Call<'_>> = inputs
            .iter()
            .zip(outputs.iter())
            .map(|(input, output)| self.check(function, input, output))
            .collect::<Result<_>>()?;
        let mut outcomes = Vec::with_capacity(calls.len());
        let posted = self.replacing(|data| match Alone::new(data) {
            Some(mut alone) => call_all(&mut alone, &calls, &mut outcomes),
            None => call_all(&mut Together::new(data), &calls, &mut outcomes),
        });
        // All are read, also after an error: reading a failed one takes its output from its worker.
        let mut sizes = Ok(Vec::with_capacity(outcomes.len()));
        for (outcome, output) in outcomes.into_iter().zip(outputs) {
            match (self.finish(outcome, output), &mut sizes) {
                (Ok(bytes), Ok(sizes)) => sizes.push(bytes),
                (Err(error), Ok(_)) => sizes = Err(error),
                (_, Err(_)) => {}
            }
        }
        let sizes = sizes?;
        posted.map(|()| sizes)
    }

    /// Starts a call of `function` on a worker that has the least to do and returns at once, unless
    /// workers were lost and the executor is replaced first. The
    /// buffers come back with the result, or with the error: [`Error::AllSlotsBusy`] if each slot
    /// of each worker has an invocation in flight.
    ///
    /// ```no_run
    /// # fn prepare() {}
    /// # fn example(executor: &mut rfaas::Executor) -> rfaas::Result<()> {
    /// let function = executor.function("empty")?;
    /// let (input, output) = (executor.input(64)?, executor.output(64)?);
    /// let pending = executor.submit(&function, input, output)?;
    /// prepare(); // the next one, while this one runs
    /// let completed = pending.wait()?; // or `pending.await?`
    /// println!("{:?}", completed.output.to_vec(..completed.bytes)?);
    /// let (input, output) = (completed.input, completed.output); // to be used again
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit(
        &mut self,
        function: &Function,
        input: Input,
        output: Output,
    ) -> Result<Pending, Failed> {
        match self.try_submit(function, &input, &output) {
            Ok(ticket) => Ok(Pending::new(Arc::clone(self.data.lend()), ticket, (input, output))),
            Err(error) => Err(Failed { error, input, output }),
        }
    }

    fn try_submit(
        &mut self,
        function: &Function,
        input: &Input,
        output: &Output,
    ) -> Result<Ticket> {
        let call = self.check(function, input, output)?;
        self.replacing(|data| {
            let mut together = Together::waiting(data, Spin::Never);
            if together.workers().due() {
                return Ok(None);
            }
            if let Some(ticket) = together.post(&call)? {
                return Ok(Some(ticket));
            }
            together.glance(); // replies may be there that nobody has looked at
            together.post(&call)?.ok_or(Error::AllSlotsBusy).map(Some)
        })
    }

    /// Posts `call` and waits for its outcome. After an error no worker has it.
    #[inline]
    pub(super) fn call(&mut self, call: &Call<'_>) -> Result<Outcome> {
        self.replacing(|data| match Alone::new(data) {
            Some(mut alone) => call_one(&mut alone, call),
            None => call_one(&mut Together::new(data), call),
        })
    }

    /// Does `what` with the data path; `None` says that the executor is to be replaced first.
    #[inline]
    pub(super) fn replacing<T>(
        &mut self,
        mut what: impl FnMut(&mut DataPath) -> Result<Option<T>>,
    ) -> Result<T> {
        loop {
            if !self.is_stopped()
                && let Some(done) = what(&mut self.data)?
            {
                return Ok(done);
            }
            self.restart()?; // nothing is due right after it
        }
    }

    /// Bytes of `output`, or why there are none.
    #[inline]
    pub(super) fn finish(&mut self, outcome: Outcome, output: &mut Output) -> Result<usize> {
        let result = self.data.read_outcome(outcome, output);
        if let Err(Error::TimeLimit { .. } | Error::WorkerLost { .. }) = &result {
            self.retire();
        }
        result
    }

    /// If the next call is to replace the executor, it ends now: the function that ran past its limit
    /// is not to use its core until then.
    #[cold]
    fn retire(&mut self) {
        let due = self.data.lock().workers.due();
        if due {
            self.stop();
        }
    }

    /// The call, if it can be made.
    #[inline]
    pub(super) fn check<'a>(
        &self,
        function: &Function,
        input: &'a Input,
        output: &Output,
    ) -> Result<Call<'a>> {
        self.data.check_process()?;
        if function.owner != self.blueprint.owner {
            return Err(Error::Foreign("function"));
        }
        if input.owner() != self.blueprint.owner || output.owner() != self.blueprint.owner {
            return Err(Error::Foreign("buffer"));
        }
        self.fits_slot(input.len())?;
        Ok(Call::new(function.index, input, output, self.blueprint.deployment.output_bytes))
    }

    /// An error unless a slot takes an input of `bytes` bytes.
    #[inline]
    pub(super) fn fits_slot(&self, bytes: usize) -> Result<()> {
        match self.blueprint.deployment.input_bytes {
            max if bytes > max => Err(Error::InputTooLarge { bytes, max }),
            _ => Ok(()),
        }
    }
}

/// Posts `call` and waits for its outcome. `None`: the executor is to be replaced first.
#[inline]
fn call_one(drive: &mut impl Drive, call: &Call<'_>) -> Result<Option<Outcome>> {
    if drive.workers().due() {
        return Ok(None);
    }
    post_and_wait(drive, call).map(Some)
}

/// Posts `call` as soon as there is a slot and waits for its outcome.
#[inline]
pub(super) fn post_and_wait(drive: &mut impl Drive, call: &Call<'_>) -> Result<Outcome> {
    let ticket = loop {
        match drive.post(call)? {
            Some(ticket) => break ticket,
            None => drive.advance(),
        }
    };
    loop {
        if let Some(outcome) = drive.workers().tickets.take(ticket) {
            return Ok(outcome);
        }
        drive.advance();
    }
}

/// Posts `calls` as slots become free and waits for all outcomes, which it appends to `outcomes` in
/// the order of the calls. If posting fails, those posted before are waited for nevertheless. `None`:
/// the executor is to be replaced first.
fn call_all(
    drive: &mut impl Drive,
    calls: &[Call<'_>],
    outcomes: &mut Vec<Outcome>,
) -> Result<Option<()>> {
    if drive.workers().due() {
        return Ok(None);
    }
    let mut in_flight = VecDeque::new();
    let mut rest = calls.iter();
    let mut next = rest.next();
    let mut failed = Ok(());
    loop {
        while let Some(call) = next {
            match drive.post(call) {
                Ok(Some(ticket)) => {
                    in_flight.push_back(ticket);
                    next = rest.next();
                }
                Ok(None) => break,
                Err(error) => {
                    failed = Err(error);
                    next = None;
                }
            }
        }
        // Outcomes are taken in order; that does not keep slots from being used again.
        while let Some(outcome) =
            in_flight.front().and_then(|ticket| drive.workers().tickets.take(*ticket))
        {
            in_flight.pop_front();
            outcomes.push(outcome);
        }
        if in_flight.is_empty() && next.is_none() {
            return failed.map(Some);
        }
        drive.advance();
    }
}
