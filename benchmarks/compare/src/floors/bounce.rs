//! A cache line that bounces between two processes: no message between two cores is faster.

use std::hint::spin_loop;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::yield_now;

use rfaas_program::Failure;

use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::echo::{Echo, measure};
use crate::effort::Effort;
use crate::server::{Role, os};
use crate::shared_line::SharedLine;
use benchmarks::machine::{End, settle_down};
use benchmarks::peer::PeerProcess;

/// Word of the line that the client writes, and the one in which the other process answers.
const REQUEST: usize = 0;
const ANSWER: usize = 1;
/// Reads of the line before the core is yielded, which an end with a core of its own never reaches.
const FREE_LOOKS: u32 = 1 << 16;

/// The floor of every hot round trip.
#[derive(Debug)]
pub struct Bounce;

impl Contender for Bounce {
    fn id(&self) -> Id {
        Id::Bounce
    }

    fn settings(&self) -> String {
        "two processes, a word there and a word back on one shared cache line, both spin with pause, clock reads included"
            .into()
    }

    fn payloads(&self) -> Vec<u32> {
        vec![size_of::<u64>() as u32] // 8
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let (line, file) = SharedLine::new().map_err(os("a shared page"))?;
        let mut client =
            BouncingLine { line, word: [0; 8], answer: 0, _peer: Role::Bounce.start(file)? };
        settle_down(End::First);
        Ok(Round::of(measure(&mut client, payload, effort)?))
    }
}

struct BouncingLine {
    line: SharedLine,
    word: [u8; size_of::<u64>()],
    answer: u64,
    _peer: PeerProcess,
}

impl Echo for BouncingLine {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.word[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn round_trip(&mut self) -> Result<usize, Failure> {
        let before = self.answer;
        self.line.word(REQUEST).store(u64::from_le_bytes(self.word), Ordering::Release);
        self.answer = next(self.line.word(ANSWER), before);
        Ok(self.word.len())
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
        out.copy_from_slice(&self.answer.to_le_bytes()[offset..offset + out.len()]);
        Ok(())
    }
}

/// Spins until the word is no longer `before`; neighbouring requests differ.
#[inline]
fn next(word: &AtomicU64, before: u64) -> u64 {
    let mut looks = 0u32;
    loop {
        let now = word.load(Ordering::Acquire);
        if now != before {
            return now;
        }
        looks = looks.saturating_add(1);
        if looks > FREE_LOOKS { yield_now() } else { spin_loop() }
    }
}

/// The other process.
pub fn serve(end: OwnedFd) -> Result<(), Failure> {
    let line = SharedLine::of(end).map_err(os("the shared page"))?;
    let mut request = 0;
    loop {
        request = next(line.word(REQUEST), request);
        line.word(ANSWER).store(request, Ordering::Release);
    }
}
