//! Copies between a process's memory and memory that a peer may change meanwhile.
//!
//! Either side may change under our hands (a hostile peer, or a user who breaks the rule to leave
//! posted buffers alone): then the bytes are arbitrary, nothing else.

#![allow(unsafe_code)]

use std::ptr;

use super::mapping::Part;
use crate::sync::{Ordering, compiler_fence};
use rdmalib_ring::{FIRST_LINE, MAX_CARRIED};

/// Copies between shared memories. Either side may change under our hands (a hostile peer, or a
/// user who breaks the rule to leave posted buffers alone): then the bytes are arbitrary, nothing
/// else.
#[inline]
pub(super) fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: both ranges were checked by the callers: local ones by `Region::slice`, those of a
    // peer by `PeerArena::translate` or `PeerArena::at`, where a peer writes to by `Map::landing`.
    // They may overlap only if both name the same region through different mappings, at different
    // addresses, so the ranges of addresses never overlap unless a request names its own region on
    // both sides through one mapping, which no connection does.
    unsafe { ptr::copy_nonoverlapping(from, to, bytes) }
}

/// Fills the payload of an arrival: its second line first. The receiver polls the first line again
/// and again. The less time between the first change and the last, the less often it takes the line
/// away in between.
#[inline]
pub(super) fn fill(payload: *mut u8, from: *const u8, bytes: usize) {
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

/// Returns where the payload of an arrival is, which starts at word `word` of its ring.
#[inline]
pub(super) fn payload(ring: &Part, word: usize) -> *mut u8 {
    assert!(8 * word + MAX_CARRIED <= ring.len());
    // SAFETY: inside of the ring's mapping, just checked.
    unsafe { ring.as_ptr().add(8 * word) }
}

/// [`copy`] for at most [`MAX_CARRIED`] bytes, without a call: in pieces of one size, the last of
/// which may overlap the one before. The bytes are arbitrary if the two ranges overlap, which they
/// may.
#[inline]
pub(super) fn copy_carried(from: *const u8, to: *mut u8, bytes: usize) {
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

/// Copies the `N` bytes that are `offset` behind the two pointers; the caller has checked the
/// ranges.
#[inline(always)]
fn copy_chunk<const N: usize>(from: *const u8, to: *mut u8, offset: usize) {
    // SAFETY: `offset + N` is at most the number of bytes that `copy_carried` is to copy, and its
    // callers have checked the ranges as those of `copy` do.
    let from = unsafe { from.add(offset) };
    // SAFETY: likewise.
    let to = unsafe { to.add(offset) };
    // SAFETY: as in `copy`, the ranges are valid, and racing writers make the bytes arbitrary. They
    // may overlap: a peer that lies in the key table can have a payload land on itself.
    unsafe { ptr::copy(from, to, N) };
}
