//! Small writes with immediate data, which travel inside of their arrivals: the hot path.
//!
//! * LANDING - the receiver's device copies the bytes to their place when the receiver polls the completion,
//!   before it sees it. For writes that may ([`Flags::WITH_COMPLETION`]): who polls the bytes instead of the
//!   completion would not find them, and what its sender writes to the same place meanwhile they would undo.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use super::arena::{Arena, Map};
use super::core::{Core, TAG_IMMEDIATE, TAG_WRITE};
use super::mapping::Part;
use super::one_sided::{Link, Local, local};
use crate::memory::{Access, RemoteAddress};
use crate::queue_pair::{Flags, Operation, Source, State, WorkRequest};
use crate::sync::{Ordering, compiler_fence};
use rdmalib_ring::{Arrival, FIRST_LINE, MAX_CARRIED};

/// A small write with immediate data that may come with its completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Small<'a> {
    /// `bytes` bytes of local memory, which is borrowed for `'a`.
    from: *const u8,
    bytes: usize,
    to: RemoteAddress,
    immediate: u32,
    memory: PhantomData<&'a u8>,
}

impl<'a> Small<'a> {
    /// `request`, if it is one, and nothing is wrong with it here.
    #[inline]
    pub(super) fn new(
        request: &WorkRequest<'a>,
        arena: &Arc<Arena>,
        max_inline: usize,
    ) -> Option<Small<'a>> {
        let Operation::Write { source, to, immediate: Some(immediate) } = request.operation else {
            return None;
        };
        if !request.flags.contains(Flags::WITH_COMPLETION) {
            return None;
        }
        let local = match source {
            Source::Region(slice) => local(slice, arena).ok()?,
            Source::Inline(bytes) if bytes.len() > max_inline => return None,
            Source::Inline(bytes) => Local::Inline(bytes),
        };
        let bytes = local.len();
        if !(1..=MAX_CARRIED).contains(&bytes) {
            return None;
        }
        let from = local.readable().ok()?;
        Some(Small { from, bytes, to, immediate, memory: PhantomData })
    }
}

impl Link {
    /// Carries out a small write with immediate data, inside of its arrival (LANDING): the hot path.
    /// `false`: it has not, and whatever the reason is, [`carry_out`](Self::carry_out) does what is to be
    /// done.
    #[inline]
    pub(super) fn carry(&mut self, core: &Core, small: &Small, flags: Flags) -> bool {
        let Small { from, bytes, to, immediate, .. } = *small;
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
}

/// LANDING. Copies the `bytes` bytes of a payload, in a ring or the turn slot from word `payload_word` on, to
/// where the peer wants them.
/// What it may not write, and what was freed since it was allowed to, stays as it is: as if the write had
/// come before that.
#[inline]
pub(super) fn land(
    memory: &Map,
    ring: &Part,
    payload_word: usize,
    to: RemoteAddress,
    bytes: usize,
) {
    if bytes > MAX_CARRIED {
        return; // a lie
    }
    if let Some(target) = memory.landing(to, bytes) {
        copy_carried(payload(ring, payload_word), target, bytes);
    }
}

/// Fills the payload of an arrival: its second line first. The receiver looks at the first one again and
/// again; the less time between the first change and the last, the less often it takes the line away
/// between them.
#[inline]
fn fill(payload: *mut u8, from: *const u8, bytes: usize) {
    let mut first = bytes;
    if let Some(second) = bytes.checked_sub(FIRST_LINE) {
        first = FIRST_LINE;
        // SAFETY: the range has `bytes` bytes, which is at least this.
        let from = unsafe { from.add(FIRST_LINE) };
        // SAFETY: an arrival has room for MAX_CARRIED.
        let to = unsafe { payload.add(FIRST_LINE) };
        copy_carried(from, to, second);
        compiler_fence(Ordering::Release); // in this order
    }
    copy_carried(from, payload, first);
}

/// Where the payload of an arrival is, which starts at word `word` of its ring.
#[inline]
fn payload(ring: &Part, word: usize) -> *mut u8 {
    assert!(8 * word + MAX_CARRIED <= ring.len());
    // SAFETY: inside of the ring's mapping, just checked.
    unsafe { ring.as_ptr().add(8 * word) }
}

/// [`copy`] for at most [`MAX_CARRIED`] bytes, without a call: in pieces of one size, the last of which may
/// overlap the one before. The bytes are arbitrary if the two ranges overlap, which they may.
#[inline]
fn copy_carried(from: *const u8, to: *mut u8, bytes: usize) {
    debug_assert!(bytes <= MAX_CARRIED);
    match bytes {
        65.. => copy_pieces::<32, 3>(from, to, bytes),
        33.. => copy_pieces::<32, 2>(from, to, bytes),
        32 => copy_pieces::<32, 1>(from, to, bytes),
        16.. => copy_pieces::<16, 2>(from, to, bytes),
        8.. => copy_pieces::<8, 2>(from, to, bytes),
        4.. => copy_pieces::<4, 2>(from, to, bytes),
        _ => copy_pieces::<1, 3>(from, to, bytes),
    }
}

/// Copies `bytes` bytes as `COUNT` pieces of `N`; there are none, or from one piece to as many.
#[inline(always)]
fn copy_pieces<const N: usize, const COUNT: usize>(from: *const u8, to: *mut u8, bytes: usize) {
    let Some(last) = bytes.checked_sub(N) else { return };
    for piece in 0..COUNT {
        copy_chunk::<N>(from, to, last.min(piece * N));
    }
}

/// Copies the `N` bytes that are `offset` behind the two pointers; the caller has checked the ranges.
#[inline(always)]
fn copy_chunk<const N: usize>(from: *const u8, to: *mut u8, offset: usize) {
    // SAFETY: `offset + N` is at most the number of bytes that `copy_carried` is to copy, and its callers
    // have checked the ranges as those of `copy` do.
    let from = unsafe { from.add(offset) };
    // SAFETY: likewise.
    let to = unsafe { to.add(offset) };
    // SAFETY: as in `copy`, the ranges are valid, and racing writers make the bytes arbitrary. They may
    // overlap: a peer that lies in the key table can have a payload land on itself.
    unsafe { ptr::copy(from, to, N) };
}
