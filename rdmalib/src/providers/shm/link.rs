//! The link to a peer, and carrying out one work request on it: straight into and out of the peer's
//! mapped memory, then, for what completes at the receiver, into its ring.
//!
//! A request either has its whole effect or none: keys, ranges and rights are checked first, and a
//! request that needs a receive is not begun before there is one.
//!
//! A small write that may come with its completion ([`Flags::WITH_COMPLETION`]) travels inside its
//! arrival. The receiver's device copies the bytes to their place when the receiver polls the
//! completion, before it sees it. A receiver that polls the bytes instead of the completion would
//! not find them, and what its sender writes to the same place meanwhile they would undo; so this
//! is for requests that allow it.
//!
//! Elsewhere: copying (`copy`), large writes that both ends copy (`shared_copy`), the receiver's
//! side (`poller`).

#![allow(unsafe_code)]

use std::ptr;
use std::sync::Arc;

use super::arena::RegionMemory;
use super::copy::{copy, fill, payload};
use super::core::{Core, TAG_IMMEDIATE, TAG_SHARED, TAG_TOO_LONG, TAG_WRITE, completes};
use super::mapping::Part;
use super::peer_arena::PeerArena;
use super::shared_copy::{Job, MIN_BYTES};
use crate::sync::{AtomicU64, Ordering};
use crate::types::work::{Operation, Slice, Source, WorkRequest};
use crate::types::{Access, Flags, Opcode, RemoteAddress, State, Status};
use rdmalib_ring::{Arrival, ArrivalPusher, MAX_CARRIED, Way};

/// Longest message or write, in bytes: what a completion's length field holds.
pub(super) const MAX_BYTES: usize = u32::MAX as usize;

/// The link to a peer: its memory and its ring.
#[derive(Debug)]
pub(crate) struct Link {
    pub(super) memory: PeerArena,
    pub(super) ring: ArrivalPusher<Part>,
}

/// What became of an attempt to carry out a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The request has its effect or its error.
    Done,
    /// Nothing has happened yet: the peer has posted no receive.
    NotReady,
}

/// A request that was checked, with its number in the send queue. `B` holds inline bytes: borrowed
/// from the poster, or owned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work<M, B> {
    pub(super) index: u32,
    pub(super) request: WorkRequest<M, B>,
}

/// Work that is borrowed from its poster.
pub(super) type PostedWork<'a> = Work<&'a Arc<RegionMemory>, &'a [u8]>;

/// Work that outlives the call that posted it, with the memory that it refers to.
pub(super) type OwnedWork = Work<Arc<RegionMemory>, Box<[u8]>>;

impl Work<&Arc<RegionMemory>, &[u8]> {
    /// Returns a copy for later.
    pub(super) fn keep(&self) -> OwnedWork {
        let request = self.request.map(|memory| (*memory).clone(), |bytes| (*bytes).into());
        Work { index: self.index, request }
    }

    pub(super) fn opcode(&self) -> Opcode {
        match self.request.operation {
            Operation::Send { .. } => Opcode::Send,
            Operation::Write { .. } => Opcode::Write,
            Operation::Read { .. } => Opcode::Read,
            Operation::FetchAdd { .. } => Opcode::FetchAdd,
            Operation::CompareSwap { .. } => Opcode::CompareSwap,
        }
    }
}

impl OwnedWork {
    pub(super) fn as_posted(&self) -> PostedWork<'_> {
        Work { index: self.index, request: self.request.map(|memory| memory, |bytes| &**bytes) }
    }
}

type LocalSlice<'a> = Slice<&'a Arc<RegionMemory>>;
type LocalSource<'a> = Source<&'a Arc<RegionMemory>, &'a [u8]>;

/// Returns the first byte of `source`, if its region was not freed since.
#[inline]
fn readable(source: &LocalSource<'_>) -> Result<*const u8, Status> {
    match source {
        Source::Inline(bytes) => Ok(bytes.as_ptr()),
        Source::Region(slice) => first_byte(slice).map(|first| first.cast_const()),
    }
}

#[inline]
fn first_byte(slice: &LocalSlice<'_>) -> Result<*mut u8, Status> {
    if slice.region.revoked() {
        return Err(Status::LocalProtectionError);
    }
    // SAFETY: `offset` is inside the region: `Region::slice` checked it.
    Ok(unsafe { slice.region.as_ptr().add(slice.offset) })
}

/// Likewise, if the device may write there.
fn writable(slice: &LocalSlice<'_>) -> Result<*mut u8, Status> {
    if !slice.region.access().contains(Access::LOCAL_WRITE) {
        return Err(Status::LocalProtectionError);
    }
    first_byte(slice)
}

/// Returns the job that two processors can share, if `source` is large enough.
fn job(source: &LocalSource<'_>) -> Option<Job> {
    match source {
        Source::Region(slice) if slice.bytes >= MIN_BYTES => {
            Some(Job::new(slice.region.offset() + slice.offset as u64, slice.bytes))
        }
        _ => None,
    }
}

impl Link {
    pub(crate) fn new(memory: PeerArena, ring: ArrivalPusher<Part>) -> Self {
        Link { memory, ring }
    }

    /// Carries out a small write with immediate data inside its arrival, if the request allows that
    /// ([`Flags::WITH_COMPLETION`]) and nothing is in the way: the hot path. Does not complete the
    /// request. On `false` nothing was done, and the caller uses [`carry_out`](Self::carry_out).
    #[inline]
    pub(super) fn try_write_in_arrival(&mut self, core: &Core, work: &PostedWork<'_>) -> bool {
        let Operation::Write { source, to, immediate: Some(immediate) } = work.request.operation
        else {
            return false;
        };
        let (flags, bytes) = (work.request.flags, source.len());
        if !flags.contains(Flags::WITH_COMPLETION) || !(1..=MAX_CARRIED).contains(&bytes) {
            return false;
        }
        let Ok(from) = readable(&source) else { return false };
        if core.state() == State::Error
            || self.ring.closed()
            || !self.memory.permits(to, bytes, Access::REMOTE_WRITE)
            || !self.ring.may_push()
        {
            return false;
        }
        let way = self.ring.way();
        let (memory, word) = self.ring.payload(way);
        fill(payload(memory, word), from, bytes);
        let arrival = Arrival {
            immediate,
            bytes: bytes as u32, // at most MAX_CARRIED
            tag: TAG_WRITE | TAG_IMMEDIATE,
            carried_to: Some((to.addr, to.key)),
        };
        if self.ring.push(way, arrival, flags.contains(Flags::SOLICITED)) {
            core.ring_doorbell();
        }
        true
    }

    /// Carries `work` out and completes it, or finds that the receiver is not ready.
    #[inline]
    pub(super) fn carry_out(&mut self, core: &Core, work: &PostedWork<'_>) -> Outcome {
        let status = if core.state() == State::Error || self.ring.closed() {
            Status::Flushed
        } else {
            match self.attempt(core, work) {
                Ok(Outcome::Done) => Status::Success,
                Ok(later) => return later,
                Err(status) => status,
            }
        };
        if completes(work.request.flags, status) {
            core.finish(work.request.id, work.index, work.opcode(), status);
        }
        if status != Status::Success {
            core.fail();
        }
        Outcome::Done
    }

    #[inline]
    fn attempt(&mut self, core: &Core, work: &PostedWork<'_>) -> Result<Outcome, Status> {
        let solicited = work.request.flags.contains(Flags::SOLICITED);
        match &work.request.operation {
            Operation::Write { source: from, to, immediate } => {
                let target = self.target(*to, from.len(), Access::REMOTE_WRITE)?;
                let source = readable(from)?;
                if immediate.is_some() && !self.ring.may_push() {
                    return Ok(Outcome::NotReady);
                }
                let may_share = work.request.flags.contains(Flags::WITH_COMPLETION);
                if let (Some(immediate), Some(job), true) = (*immediate, job(from), may_share) {
                    self.share(core, job, (source, target), *to, immediate, solicited);
                    return Ok(Outcome::Done);
                }
                copy(source, target, from.len());
                if let Some(immediate) = immediate {
                    let tag = TAG_WRITE | TAG_IMMEDIATE;
                    self.announce(core, *immediate, from.len(), tag, solicited);
                }
            }
            Operation::Send { source: from, immediate } => {
                return self.send(core, from, *immediate, solicited);
            }
            Operation::Read { into, from } => {
                let source = self.target(*from, into.bytes, Access::REMOTE_READ)?;
                copy(source, writable(into)?, into.bytes);
            }
            Operation::FetchAdd { into, at, add } => {
                self.atomic(into, *at, |word| word.fetch_add(*add, Ordering::AcqRel))?;
            }
            Operation::CompareSwap { into, at, expect, swap } => {
                self.atomic(into, *at, |word| {
                    word.compare_exchange(*expect, *swap, Ordering::AcqRel, Ordering::Acquire)
                        .unwrap_or_else(|old| old)
                })?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Lets `change` change the peer's word `at`, and puts the old value that it returns into
    /// `into`.
    fn atomic(
        &mut self,
        into: &LocalSlice<'_>,
        at: RemoteAddress,
        change: impl FnOnce(&AtomicU64) -> u64,
    ) -> Result<(), Status> {
        let target = self.target(at, 8, Access::REMOTE_ATOMIC)?;
        // Checked while posting, but the peer says where its memory is.
        if target.addr() % 8 != 0 {
            return Err(Status::RemoteInvalidRequest);
        }
        let result = writable(into)?;
        // SAFETY: eight bytes of mapped memory (checked), aligned; all who use them atomically, in
        // any process, agree on the size.
        let old = change(unsafe { AtomicU64::from_ptr(target.cast()) });
        copy(old.to_ne_bytes().as_ptr(), result, 8);
        Ok(())
    }

    /// Carries out a large write together with the receiver.
    fn share(
        &mut self,
        core: &Core,
        job: Job,
        (source, target): (*const u8, *mut u8),
        to: RemoteAddress,
        immediate: u32,
        solicited: bool,
    ) {
        // Not through the turn slot, which the peer may overwrite while we still read the job.
        let (memory, word) = self.ring.payload(Way::Ring);
        job.write(memory, word);
        let arrival = Arrival {
            immediate,
            bytes: job.bytes as u32, // at most MAX_BYTES, checked while posting
            tag: TAG_WRITE | TAG_IMMEDIATE | TAG_SHARED,
            carried_to: Some((to.addr, to.key)),
        };
        if self.ring.push(Way::Ring, arrival, solicited) {
            core.ring_doorbell();
        }
        job.copy(self.ring.memory(), word, |offset, _| {
            // SAFETY: `offset` is inside of the range, which was checked by the caller.
            let from = unsafe { source.add(offset) };
            // SAFETY: likewise.
            Some((from, unsafe { target.add(offset) }))
        });
    }

    fn send(
        &mut self,
        core: &Core,
        from: &LocalSource<'_>,
        immediate: Option<u32>,
        solicited: bool,
    ) -> Result<Outcome, Status> {
        let source = readable(from)?;
        if !self.ring.may_push() {
            return Ok(Outcome::NotReady);
        }
        let receive = self.ring.receive();
        let tag = if immediate.is_some() { TAG_IMMEDIATE } else { 0 };
        if from.len() > receive.bytes as usize {
            self.announce(core, 0, 0, tag | TAG_TOO_LONG, true);
            return Err(Status::RemoteInvalidRequest);
        }
        let place = RemoteAddress { addr: receive.place, key: receive.key.into() };
        // The receiver's own key: LOCAL_WRITE, which it checked when it posted. If it has freed the
        // buffer since, the failure is its own.
        let target = self
            .target(place, from.len(), Access::LOCAL_WRITE)
            .map_err(|_| Status::RemoteOperationError)?;
        copy(source, target, from.len());
        self.announce(core, immediate.unwrap_or(0), from.len(), tag, solicited);
        Ok(Outcome::Done)
    }

    #[inline]
    fn target(
        &mut self,
        at: RemoteAddress,
        bytes: usize,
        access: Access,
    ) -> Result<*mut u8, Status> {
        if bytes == 0 {
            return Ok(ptr::dangling_mut()); // as on InfiniBand, nothing is checked for no bytes
        }
        self.memory.translate(at, bytes, access).ok_or(Status::RemoteAccessError)
    }

    #[inline]
    fn announce(&mut self, core: &Core, immediate: u32, bytes: usize, tag: u32, solicited: bool) {
        let bytes = bytes as u32; // at most MAX_BYTES, checked while posting
        let arrival = Arrival { immediate, bytes, tag, carried_to: None };
        if self.ring.push(self.ring.way(), arrival, solicited) {
            core.ring_doorbell();
        }
    }
}
