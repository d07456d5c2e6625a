//! Large writes: the sender's processor and the receiver's copy them together.
//!
//! ```text
//!   arrival's payload   FROM, CHUNK, NEXT, COPIED
//!   sender    announces ─▶ takes chunk after chunk ─▶ done
//!   receiver      polls ─▶ takes chunk after chunk ─▶ all COPIED? ─▶ completion
//! ```
//! One processor does not fill the memory's bandwidth, and a receiver that waits for the bytes has
//! nothing else to do. A side that has time takes the next chunk; a receiver that is busy or asleep
//! leaves all of them to the sender, whose request is carried out without it.
//!
//! A chunk is counted when it is in place (Release); the receiver sees the completion after all of
//! them are (Acquire).
//!
//! HOSTILE: the words are the peer's too. The side that copies a chunk checks its place, and
//! neither takes more chunks than there are. A peer that lies about them only spoils its own
//! message.
//!
//! For writes that may come with their completion
//! ([`Flags::WITH_COMPLETION`](crate::Flags::WITH_COMPLETION)): their poster leaves the source
//! alone until the answer, since the receiver may still be reading it.

use super::copy::copy;
use crate::sync::{AtomicU64, Ordering};
use rdmalib_ring::Words;

/// Least size for which it pays, in bytes: below, fetching the words from the other processor takes
/// longer than what is saved.
pub(super) const MIN_BYTES: usize = 48 << 10;
/// Smallest and largest chunk, in bytes; in between, a quarter of the whole. With fewer chunks one
/// side would wait for the other's last, and each chunk costs a transfer of a word.
const MIN_CHUNK: usize = 16 << 10;
const MAX_CHUNK: usize = 512 << 10;

/// Words of the arrival's payload.
const FROM: usize = 0;
const CHUNK: usize = 1;
const NEXT: usize = 2;
const COPIED: usize = 3;

/// A large write, as both ends see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// Where the bytes are in the sender's arena.
    pub(super) from: u64,
    pub(super) bytes: usize,
    chunk: usize,
}

impl Job {
    pub(super) fn new(from: u64, bytes: usize) -> Job {
        let chunk = (bytes / 4).clamp(MIN_CHUNK, MAX_CHUNK).next_multiple_of(64);
        Job { from, bytes, chunk }
    }

    /// Describes the job in the arrival whose payload starts at `word`, before that is pushed.
    pub(super) fn write(&self, ring: &impl Words, word: usize) {
        let words = &ring.words()[word..word + 4];
        words[FROM].store(self.from, Ordering::Relaxed);
        words[CHUNK].store(self.chunk as u64, Ordering::Relaxed);
        words[NEXT].store(0, Ordering::Relaxed);
        words[COPIED].store(0, Ordering::Relaxed);
    }

    /// Reads what a peer has described there; `None` if that makes no sense.
    pub(super) fn read(ring: &impl Words, word: usize, bytes: usize) -> Option<Job> {
        let words = &ring.words()[word..word + 4];
        let chunk = usize::try_from(words[CHUNK].load(Ordering::Relaxed)).ok()?;
        let job = Job { from: words[FROM].load(Ordering::Relaxed), bytes, chunk };
        (job == Job::new(job.from, bytes)).then_some(job)
    }

    fn chunks(&self) -> u64 {
        self.bytes.div_ceil(self.chunk) as u64
    }

    /// Copies chunks until none is left; `place` says where one is: from, to. A chunk without a
    /// place is left out.
    pub(super) fn copy(
        &self,
        ring: &impl Words,
        word: usize,
        mut place: impl FnMut(usize, usize) -> Option<(*const u8, *mut u8)>,
    ) {
        let words = &ring.words()[word..word + 4];
        for _ in 0..self.chunks() {
            let index = words[NEXT].fetch_add(1, Ordering::Relaxed);
            if index >= self.chunks() {
                return;
            }
            let offset = index as usize * self.chunk;
            let bytes = self.chunk.min(self.bytes - offset);
            if let Some((from, to)) = place(offset, bytes) {
                copy(from, to, bytes);
            }
            words[COPIED].fetch_add(1, Ordering::Release); // the chunk before the count
        }
    }

    /// Whether all chunks are in place.
    pub(super) fn is_done(&self, ring: &impl Words, word: usize) -> bool {
        let copied: &AtomicU64 = &ring.words()[word + COPIED];
        copied.load(Ordering::Acquire) >= self.chunks()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn ring() -> Arc<Vec<AtomicU64>> {
        Arc::new((0..8).map(|_| AtomicU64::new(u64::MAX)).collect())
    }

    #[test]
    fn chunks_cover_a_job_of_any_size_once_whoever_takes_them() {
        for bytes in [MIN_BYTES, MIN_BYTES + 1, 1 << 20, (3 << 20) + 17] {
            let (ring, from) = (ring(), vec![7u8; bytes]);
            let to: Vec<AtomicU64> = (0..bytes.div_ceil(8)).map(|_| AtomicU64::new(0)).collect();
            let job = Job::new(4096, bytes);
            job.write(&ring, 2);
            assert_eq!(Job::read(&ring, 2, bytes), Some(job));
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        job.copy(&ring, 2, |offset, bytes| {
                            let to = to.as_ptr().cast_mut().cast::<u8>().wrapping_add(offset);
                            Some((from[offset..offset + bytes].as_ptr(), to))
                        });
                    });
                }
            });
            assert!(job.is_done(&ring, 2));
            let to: Vec<u8> =
                to.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
            assert_eq!(to[..bytes], from);
            assert!(to[bytes..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_job_that_nobody_finished_is_not_done() {
        let (ring, job) = (ring(), Job::new(0, 1 << 20));
        job.write(&ring, 0);
        assert!(!job.is_done(&ring, 0));
        ring[NEXT].store(1, Ordering::Relaxed); // the other side has taken one, and has not said that it is there
        job.copy(&ring, 0, |_, _| None);
        assert!(!job.is_done(&ring, 0));
    }

    #[test]
    fn lies_about_a_job_end() {
        let (ring, job) = (ring(), Job::new(0, 1 << 20));
        job.write(&ring, 0);
        for chunk in [0, 1, 63, u64::MAX] {
            ring[CHUNK].store(chunk, Ordering::Relaxed);
            assert_eq!(Job::read(&ring, 0, 1 << 20), None);
        }
        let mut taken = 0;
        job.copy(&ring, 0, |_, _| {
            taken += 1;
            ring[NEXT].store(0, Ordering::Relaxed); // again and again
            None
        });
        assert_eq!(taken, job.chunks());
    }
}
