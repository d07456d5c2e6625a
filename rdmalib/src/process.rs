//! Whether this is still the process that made something, at the price of one load: a process that was forked has
//! the same memory, descriptors and connections, and must not use them.
//!
//! ```text
//!   ForkMark::new() ─▶ number in a page that the kernel empties in children ─▶ is_here: the same number?
//! ```
//! The page is emptied by fork(2) itself (`MADV_WIPEONFORK`, Linux 4.14), so it also tells of a raw system call that
//! runs no handlers of pthread_atfork(3). A child that shares its parent's memory, as of vfork(2), is not told from it.

#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::sync::OnceLock;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

use crate::sync::{AtomicU32, Ordering};

/// Bytes of the page; the kernel rounds up to its own.
const PAGE_BYTES: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");

/// Number of the next process that makes a mark, counted on through forks, so that no child has its parent's.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// In place of the page where there is none: older kernels, no memory. Then no fork is noticed.
static NO_PAGE: AtomicU32 = AtomicU32::new(0);

/// What a process that is forked from this one does not have.
#[derive(Clone, Copy, Debug)]
pub struct ForkMark {
    page: &'static AtomicU32,
    number: u32,
}

impl ForkMark {
    /// The mark of the process that calls this. A child may make its own.
    pub fn new() -> Self {
        let page = page();
        let number = match page.load(Ordering::Relaxed) {
            0 => {
                let next = NEXT.fetch_add(1, Ordering::Relaxed);
                match page.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => next,
                    Err(first) => first,
                }
            }
            number => number,
        };
        ForkMark { page, number }
    }

    /// Whether this is the process that made the mark, and not one that was forked from it.
    #[inline]
    pub fn is_here(&self) -> bool {
        self.page.load(Ordering::Relaxed) == self.number
    }
}

impl Default for ForkMark {
    fn default() -> Self {
        Self::new()
    }
}

/// The page, made once and kept for ever.
fn page() -> &'static AtomicU32 {
    static PAGE: OnceLock<&'static AtomicU32> = OnceLock::new();
    PAGE.get_or_init(|| map().unwrap_or(&NO_PAGE))
}

fn map() -> nix::Result<&'static AtomicU32> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of ours.
    let page = unsafe { mmap_anonymous(None, PAGE_BYTES, protection, MapFlags::MAP_PRIVATE) }?;
    // SAFETY: the page was just mapped, holds nothing yet, and only children find it emptied.
    unsafe { madvise(page, PAGE_BYTES.get(), MmapAdvise::MADV_WIPEONFORK) }?;
    // SAFETY: the page is aligned, zeroed, and never unmapped; it is reached through this atomic only.
    Ok(unsafe { page.cast::<AtomicU32>().as_ref() })
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    #[test]
    fn a_mark_is_not_that_of_a_child_which_can_make_its_own() {
        let mark = ForkMark::new();
        assert!(mark.is_here() && ForkMark::new().is_here());
        // SAFETY: the child makes atomic accesses and ends at once.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let own = ForkMark::new();
                let right = !mark.is_here() && own.is_here() && own.number != mark.number;
                // SAFETY: _exit(2) has no preconditions.
                unsafe { libc::_exit(if right { 42 } else { 1 }) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 42));
            }
        }
        assert!(mark.is_here());
    }
}
