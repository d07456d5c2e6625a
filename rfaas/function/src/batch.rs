//! A run of a batch, from inside.

use crate::end::End;
use crate::output::Output;

/// One of the runs that a function is called with at once. Unless it is [ended](Self::end) otherwise, what is written in
/// its output goes over the edges of this run.
#[derive(Debug)]
pub struct Run<'a> {
    input: &'a [u8],
    output: Output<'a>,
    slot: u32,
    /// Its place in the batch, wherever the function has moved it.
    number: Option<usize>,
    end: End,
}

impl<'a> Run<'a> {
    /// Makes one with this input, whose output goes to `place`: for tests.
    pub fn new(input: &'a [u8], place: &'a mut [u8]) -> Self {
        Run { input, output: Output::new(place), slot: 0, number: None, end: End::Value }
    }

    pub(crate) fn in_batch(self, number: usize, slot: u32) -> Self {
        Run { slot, number: Some(number), ..self }
    }

    pub(crate) fn number(&self) -> Option<usize> {
        self.number
    }

    /// Returns its input.
    pub fn input(&self) -> &'a [u8] {
        self.input
    }

    /// Returns its output.
    pub fn output(&mut self) -> &mut Output<'a> {
        &mut self.output
    }

    /// Returns its slot: no other run that is under way has it.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Ends it so: it has failed, or has no value. A run of a batch is not called again: it fails with the code of
    /// [`Denied::Rights`](crate::Denied::Rights) then.
    pub fn end(&mut self, end: impl Into<End>) {
        self.end = end.into();
    }

    /// Returns what is written, or how it was ended otherwise.
    pub fn written(&self) -> Result<&[u8], End> {
        match self.end {
            End::Value => Ok(self.output.written()),
            end => Err(end),
        }
    }
}
