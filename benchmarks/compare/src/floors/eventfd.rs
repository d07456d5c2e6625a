//! Two processes that wake each other: no warm call, in which both sides sleep, is faster.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::sys::eventfd::{EfdFlags, EventFd};
use rfaas_program::Failure;

use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::echo::{Echo, measure};
use crate::effort::Effort;
use crate::server::{Role, os};
use benchmarks::machine::{End, settle_down};
use benchmarks::peer::PeerProcess;

/// The floor of every warm round trip.
#[derive(Debug)]
pub struct Wake;

impl Contender for Wake {
    fn id(&self) -> Id {
        Id::Eventfd
    }

    fn settings(&self) -> String {
        "two processes, blocking reads of one eventfd each, each wakes the other".into()
    }

    fn payloads(&self) -> Vec<u32> {
        vec![size_of::<u64>() as u32] // 8
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let (wake, theirs) = pair()?;
        let (woken, their_out) = pair()?;
        let peer = Role::Eventfd.start_with(theirs, Stdio::from(their_out))?;
        let mut client = EventfdPair { wake, woken, word: [0; 8], answer: [0; 8], _peer: peer };
        settle_down(End::First);
        Ok(Round::of(measure(&mut client, payload, effort)?))
    }
}

/// One eventfd twice.
fn pair() -> Result<(File, OwnedFd), Failure> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(os("eventfd"))?;
    let ours = OwnedFd::from(event);
    let theirs = ours.try_clone().map_err(os("eventfd"))?;
    Ok((File::from(ours), theirs))
}

struct EventfdPair {
    wake: File,
    woken: File,
    word: [u8; size_of::<u64>()],
    answer: [u8; size_of::<u64>()],
    _peer: PeerProcess,
}

/// What is written to an eventfd is what is read from it, if it was zero before.
impl Echo for EventfdPair {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.word[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn round_trip(&mut self) -> Result<usize, Failure> {
        self.wake.write_all(&self.word).map_err(os("eventfd"))?;
        self.woken.read_exact(&mut self.answer).map_err(os("eventfd"))?;
        Ok(self.answer.len())
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
        out.copy_from_slice(&self.answer[offset..offset + out.len()]);
        Ok(())
    }
}

/// The other process.
pub fn serve(end: OwnedFd, out: OwnedFd) -> Result<(), Failure> {
    let (mut woken, mut wake) = (File::from(end), File::from(out));
    let mut word = [0; size_of::<u64>()];
    loop {
        woken.read_exact(&mut word).map_err(os("eventfd"))?;
        wake.write_all(&word).map_err(os("eventfd"))?;
    }
}
