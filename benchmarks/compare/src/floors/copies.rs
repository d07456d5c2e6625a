//! Two copies in memory: what an echo through a slot does at least, a copy in and a copy out.

use std::hint::black_box;

use rfaas_program::Failure;

use crate::PAYLOADS;
use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::echo::{Echo, measure};
use crate::effort::Effort;
use benchmarks::machine::{End, settle_down};

/// The floor of large payloads.
#[derive(Debug)]
pub struct Copies;

impl Contender for Copies {
    fn id(&self) -> Id {
        Id::Copies
    }

    fn settings(&self) -> String {
        "one thread, memcpy from input to slot and from slot to output, buffers warm".into()
    }

    fn payloads(&self) -> Vec<u32> {
        PAYLOADS.to_vec()
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        settle_down(End::First);
        let buffer = || vec![1; payload as usize]; // not zero: pages that are really there
        let mut buffers = Buffers { input: buffer(), slot: buffer(), output: buffer() };
        Ok(Round::of(measure(&mut buffers, payload, effort)?))
    }
}

struct Buffers {
    input: Vec<u8>,
    slot: Vec<u8>,
    output: Vec<u8>,
}

impl Echo for Buffers {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.input[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn round_trip(&mut self) -> Result<usize, Failure> {
        self.slot.copy_from_slice(black_box(&self.input));
        // Else the compiler could copy straight from the input.
        self.output.copy_from_slice(black_box(&self.slot));
        Ok(black_box(&self.output).len())
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
        out.copy_from_slice(&self.output[offset..offset + out.len()]);
        Ok(())
    }
}
