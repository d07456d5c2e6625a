//! A cache line that two processes share: the only unsafe code of the comparison.
//!
//! What a round trip cannot be faster than is a cache line that bounces between two cores. The library below
//! (`rdmalib`) gives no peer's memory away as a reference, so the floor maps its own page: a sealed memfd, whose
//! descriptor the other process inherits and maps too.
//!
//! * SEALED - the page cannot shrink, whichever process has the descriptor: touching it never raises SIGBUS.
//! * The page is reached only through `&AtomicU64`, by both processes.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;

/// Bytes of the page, of which the first line is used.
const PAGE_BYTES: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not zero");
/// Words of the line: 64 bytes, as on every processor that has been met.
pub const WORDS: usize = 8;

/// A cache line of shared memory.
#[derive(Debug)]
pub struct SharedLine {
    page: NonNull<c_void>,
}

// SAFETY: the page belongs to this value until it is dropped, wherever that is, and is reached only as atomics.
unsafe impl Send for SharedLine {}

impl SharedLine {
    /// A new page, zeroed, and the descriptor with which another process maps it.
    pub fn new() -> Result<(Self, OwnedFd), Errno> {
        let file = memfd_create("line", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        ftruncate(&file, PAGE_BYTES.get() as i64)?; // 4096
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?; // SEALED
        Ok((Self::map(&file)?, file))
    }

    /// Maps a page that another process made. Anything else is refused.
    pub fn of(file: impl AsFd) -> Result<Self, Errno> {
        let seals = SealFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GET_SEALS)?);
        let bytes = nix::sys::stat::fstat(&file)?.st_size;
        // SEALED: both are final, if the first is.
        if !seals.contains(SealFlag::F_SEAL_SHRINK) || bytes != PAGE_BYTES.get() as i64 {
            return Err(Errno::EINVAL);
        }
        Self::map(&file)
    }

    fn map(file: impl AsFd) -> Result<Self, Errno> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes, so no memory that is in use is replaced.
        let page = unsafe { mmap(None, PAGE_BYTES, access, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(SharedLine { page })
    }

    /// Word `number` of the line, below [`WORDS`].
    #[inline]
    pub fn word(&self, number: usize) -> &AtomicU64 {
        assert!(number < WORDS, "the line has {WORDS} words");
        let first = self.page.cast::<AtomicU64>();
        // SAFETY: in bounds of the page (just checked), which is mapped as long as `self` lives.
        let word = unsafe { first.add(number) };
        // SAFETY: aligned, since the page is; mapped readable and writable as long as `self` lives and backed by a
        // file of that size (SEALED); any bytes are a valid u64, and no process reaches them but through atomics.
        unsafe { word.as_ref() }
    }
}

impl Drop for SharedLine {
    fn drop(&mut self) {
        // SAFETY: `map` mapped this page, nothing else unmaps it, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.page, PAGE_BYTES.get()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_is_stored_through_one_mapping_is_read_through_the_other() {
        let (ours, file) = SharedLine::new().unwrap();
        let theirs = SharedLine::of(&file).unwrap();
        drop(file);
        for number in 0..WORDS {
            assert_eq!(theirs.word(number).load(Ordering::Relaxed), 0);
            ours.word(number).store(number as u64 + 1, Ordering::Release);
        }
        for number in 0..WORDS {
            assert_eq!(theirs.word(number).load(Ordering::Acquire), number as u64 + 1);
        }
    }

    #[test]
    fn a_file_that_may_shrink_is_refused() {
        assert!(SharedLine::of(tempfile::tempfile().unwrap()).is_err());
        assert!(SharedLine::of(File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    #[should_panic(expected = "the line has")]
    fn there_is_no_word_behind_the_line() {
        SharedLine::new().unwrap().0.word(WORDS);
    }
}
