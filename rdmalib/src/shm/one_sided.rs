//! Carrying out one work request: straight into and out of the peer's mapped memory, then, for what
//! the receiver is told of, into its ring.
//!
//! A request either has its whole effect or none: keys, ranges and rights are checked first, and a
//! request that needs a receive is not begun before there is one.
//!
//! Elsewhere: small writes that travel in their arrivals (`carried`), large ones that both ends copy
//! (`shared_copy`).

#![allow(unsafe_code)]

use std::ptr;
use std::sync::Arc;

use super::arena::{Arena, RegionMemory};
use super::core::{Core, TAG_IMMEDIATE, TAG_SHARED, TAG_TOO_LONG, TAG_WRITE, completes};
use super::mapping::Part;
use super::peer_arena::PeerArena;
use super::shared_copy::{Job, MIN_BYTES};
use crate::completion::{Opcode, Status};
use crate::error::{Error, Result};
use crate::memory::{Access, RegionInner, RemoteAddress, Slice};
use crate::queue_pair::{Flags, Operation, Source, State, WorkRequest, check_atomic};
use crate::sync::{AtomicU64, Ordering};
use rdmalib_ring::{Arrival, ArrivalPusher, Way};

/// Longest message or write, in bytes: what a completion's length field holds.
const MAX_BYTES: usize = u32::MAX as usize;

/// The way to the peer: its memory and its ring.
#[derive(Debug)]
pub(crate) struct Link {
    pub(super) memory: PeerArena,
    pub(super) ring: ArrivalPusher<Part>,
}

/// Whether a request is through with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has its effect or its error.
    Done,
    /// Nothing has happened yet: the peer has posted no receive.
    NotReady,
}

/// Local memory of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Local<'a> {
    Region { memory: &'a Arc<RegionMemory>, offset: usize, bytes: usize },
    Inline(&'a [u8]),
}

/// A checked request, borrowed from its poster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work<'a> {
    pub(super) id: u64,
    pub(super) index: u32,
    pub(super) flags: Flags,
    pub(super) operation: Verb<Local<'a>>,
}

/// The operations, over whatever holds the local side.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb<L> {
    Send { from: L, immediate: Option<u32> },
    Write { from: L, to: RemoteAddress, immediate: Option<u32> },
    Read { into: L, from: RemoteAddress },
    Atomic { into: L, at: RemoteAddress, kind: Atomic },
}

/// The two atomics.
#[derive(Clone, Copy, Debug)]
pub(super) enum Atomic {
    FetchAdd { add: u64 },
    CompareSwap { expect: u64, swap: u64 },
}

/// A request that outlives the call that posted it.
#[derive(Debug)]
pub(super) struct OwnedWork {
    id: u64,
    index: u32,
    flags: Flags,
    operation: Verb<OwnedLocal>,
}

#[derive(Debug)]
enum OwnedLocal {
    Region { memory: Arc<RegionMemory>, offset: usize, bytes: usize },
    Inline(Box<[u8]>),
}

impl<L> Verb<L> {
    #[inline]
    pub(super) fn opcode(&self) -> Opcode {
        match self {
            Verb::Send { .. } => Opcode::Send,
            Verb::Write { .. } => Opcode::Write,
            Verb::Read { .. } => Opcode::Read,
            Verb::Atomic { kind: Atomic::FetchAdd { .. }, .. } => Opcode::FetchAdd,
            Verb::Atomic { kind: Atomic::CompareSwap { .. }, .. } => Opcode::CompareSwap,
        }
    }

    fn map<'a, M>(&'a self, f: impl Fn(&'a L) -> M) -> Verb<M> {
        match self {
            Verb::Send { from, immediate } => Verb::Send { from: f(from), immediate: *immediate },
            Verb::Write { from, to, immediate } => {
                Verb::Write { from: f(from), to: *to, immediate: *immediate }
            }
            Verb::Read { into, from } => Verb::Read { into: f(into), from: *from },
            Verb::Atomic { into, at, kind } => Verb::Atomic { into: f(into), at: *at, kind: *kind },
        }
    }
}

impl<'a> Work<'a> {
    /// Checks what can be checked before posting.
    #[inline]
    pub(super) fn new(
        request: &WorkRequest<'a>,
        index: u32,
        arena: &Arc<Arena>,
        max_inline: usize,
    ) -> Result<Self> {
        let source = |source: Source<'a>| match source {
            Source::Region(slice) => local(slice, arena),
            Source::Inline(bytes) if bytes.len() > max_inline => {
                Err(Error::InlineTooLarge { bytes: bytes.len(), max: max_inline })
            }
            Source::Inline(bytes) => Ok(Local::Inline(bytes)),
        };
        let word = |slice: Slice<'a>, at| {
            check_atomic(slice, at)?;
            local(slice, arena)
        };
        let operation = match request.operation {
            Operation::Send { source: from, immediate } => {
                Verb::Send { from: source(from)?, immediate }
            }
            Operation::Write { source: from, to, immediate } => {
                Verb::Write { from: source(from)?, to, immediate }
            }
            Operation::Read { into, from } => Verb::Read { into: local(into, arena)?, from },
            Operation::FetchAdd { into, at, add } => {
                Verb::Atomic { into: word(into, at)?, at, kind: Atomic::FetchAdd { add } }
            }
            Operation::CompareSwap { into, at, expect, swap } => Verb::Atomic {
                into: word(into, at)?,
                at,
                kind: Atomic::CompareSwap { expect, swap },
            },
        };
        Ok(Work { id: request.id, index, flags: request.flags, operation })
    }

    /// A copy for later, with the memory that it refers to.
    pub(super) fn keep(&self) -> OwnedWork {
        let operation = self.operation.map(|local| match *local {
            Local::Region { memory, offset, bytes } => {
                OwnedLocal::Region { memory: memory.clone(), offset, bytes }
            }
            Local::Inline(bytes) => OwnedLocal::Inline(bytes.into()),
        });
        OwnedWork { id: self.id, index: self.index, flags: self.flags, operation }
    }
}

impl OwnedWork {
    pub(super) fn as_work(&self) -> Work<'_> {
        let operation = self.operation.map(|local| match local {
            OwnedLocal::Region { memory, offset, bytes } => {
                Local::Region { memory, offset: *offset, bytes: *bytes }
            }
            OwnedLocal::Inline(bytes) => Local::Inline(bytes),
        });
        Work { id: self.id, index: self.index, flags: self.flags, operation }
    }
}

#[inline]
pub(super) fn local<'a>(slice: Slice<'a>, arena: &Arc<Arena>) -> Result<Local<'a>> {
    let RegionInner::Shm(region) = slice.region.inner() else {
        return Err(Error::InvalidArgument("memory region is of another device"));
    };
    if !region.memory().is_in(arena) {
        return Err(Error::InvalidArgument("memory region is of another protection domain"));
    }
    if slice.bytes > MAX_BYTES {
        return Err(Error::InvalidArgument("one request moves less than 4 GiB"));
    }
    Ok(Local::Region { memory: region.memory(), offset: slice.offset, bytes: slice.bytes })
}

impl Local<'_> {
    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Local::Region { bytes, .. } => *bytes,
            Local::Inline(bytes) => bytes.len(),
        }
    }

    /// First byte, if the region was not freed since.
    #[inline]
    pub(super) fn readable(&self) -> Result<*const u8, Status> {
        match self {
            Local::Inline(bytes) => Ok(bytes.as_ptr()),
            Local::Region { memory, .. } if memory.revoked() => Err(Status::LocalProtectionError),
            Local::Region { memory, offset, .. } => {
                // SAFETY: `offset` is inside the region: `Region::slice` checked it.
                Ok(unsafe { memory.as_ptr().add(*offset) })
            }
        }
    }

    /// Likewise, if the device may write there.
    fn writable(&self) -> Result<*mut u8, Status> {
        match self {
            Local::Region { memory, .. } if memory.access().contains(Access::LOCAL_WRITE) => {
                self.readable().map(|from| from.cast_mut())
            }
            _ => Err(Status::LocalProtectionError),
        }
    }

    /// What two can copy, if it is large enough.
    fn job(&self) -> Option<Job> {
        match self {
            Local::Region { memory, offset, bytes } if *bytes >= MIN_BYTES => {
                Some(Job::new(memory.offset() + *offset as u64, *bytes))
            }
            _ => None,
        }
    }
}

impl Link {
    pub(crate) fn new(memory: PeerArena, ring: ArrivalPusher<Part>) -> Self {
        Link { memory, ring }
    }

    /// Carries `work` out and completes it, or finds that the receiver is not ready.
    #[inline]
    pub(super) fn carry_out(&mut self, core: &Core, work: &Work<'_>) -> Outcome {
        let status = if core.state() == State::Error || self.ring.closed() {
            Status::Flushed
        } else {
            match self.attempt(core, work) {
                Ok(Outcome::Done) => Status::Success,
                Ok(later) => return later,
                Err(status) => status,
            }
        };
        if completes(work.flags, status) {
            core.finish(work.id, work.index, work.operation.opcode(), status);
        }
        if status != Status::Success {
            core.fail();
        }
        Outcome::Done
    }

    #[inline]
    fn attempt(&mut self, core: &Core, work: &Work<'_>) -> Result<Outcome, Status> {
        let solicited = work.flags.contains(Flags::SOLICITED);
        match &work.operation {
            Verb::Write { from, to, immediate } => {
                let target = self.target(*to, from.len(), Access::REMOTE_WRITE)?;
                let source = from.readable()?;
                if immediate.is_some() && !self.ring.may_push() {
                    return Ok(Outcome::NotReady);
                }
                let may_share = work.flags.contains(Flags::WITH_COMPLETION);
                if let (Some(immediate), Some(job), true) = (*immediate, from.job(), may_share) {
                    self.share(core, job, (source, target), *to, immediate, solicited);
                    return Ok(Outcome::Done);
                }
                copy(source, target, from.len());
                if let Some(immediate) = immediate {
                    let tag = TAG_WRITE | TAG_IMMEDIATE;
                    self.announce(core, *immediate, from.len(), tag, solicited);
                }
            }
            Verb::Send { from, immediate } => {
                return self.send(core, from, *immediate, solicited);
            }
            Verb::Read { into, from } => {
                let source = self.target(*from, into.len(), Access::REMOTE_READ)?;
                copy(source, into.writable()?, into.len());
            }
            Verb::Atomic { into, at, kind } => {
                let target = self.target(*at, 8, Access::REMOTE_ATOMIC)?;
                // Checked while posting, but the peer says where its memory is.
                if target.addr() % 8 != 0 {
                    return Err(Status::RemoteInvalidRequest);
                }
                let result = into.writable()?;
                // SAFETY: eight bytes of mapped memory (checked), aligned; all who use them
                // atomically, in any process, agree on the size.
                let word = unsafe { AtomicU64::from_ptr(target.cast()) };
                let old = match *kind {
                    Atomic::FetchAdd { add } => word.fetch_add(add, Ordering::AcqRel),
                    Atomic::CompareSwap { expect, swap } => word
                        .compare_exchange(expect, swap, Ordering::AcqRel, Ordering::Acquire)
                        .unwrap_or_else(|old| old),
                };
                copy(old.to_ne_bytes().as_ptr(), result, 8);
            }
        }
        Ok(Outcome::Done)
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
        from: &Local<'_>,
        immediate: Option<u32>,
        solicited: bool,
    ) -> Result<Outcome, Status> {
        let source = from.readable()?;
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

/// Copies between shared memories. Either side may change under our hands (a hostile peer, or a user
/// who breaks the rule to leave posted buffers alone): then the bytes are arbitrary, nothing else.
#[inline]
pub(super) fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: both ranges were checked by the callers: `Local` by `Region::slice`, remote ones by
    // `PeerArena::translate`. They may overlap only if both name the same region through different
    // mappings, at different addresses, so the ranges of addresses never overlap unless a request
    // names its own region on both sides through one mapping, which no connection does.
    unsafe { ptr::copy_nonoverlapping(from, to, bytes) }
}
