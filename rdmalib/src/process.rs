//! Tells the process that made something from one that was forked from it, at the price of one
//! load. A forked process has the same memory, descriptors and connections, and must not use them.
//!
//! ```text
//!   ForkMark::new() ─▶ number in a page that the kernel empties in children ─▶ is_here: the same number?
//! ```
//! fork(2) itself empties the page (`MADV_WIPEONFORK`, Linux 4.14), so this also works for a raw
//! system call that runs no handlers of pthread_atfork(3). A child that shares its parent's memory,
//! as after vfork(2), is not told from it.
//!
//! In a child the objects of this crate that it inherits do nothing, and calls return
//! [`Error::Forked`]; only the use of a pointer to memory, or of a descriptor, is not checked. When
//! they are dropped, they are forgotten: no lock is waited for that another thread of the parent
//! held at the fork, nothing shared is written, no peer is told. Their memory and descriptors go
//! with the child.

#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

use crate::sync::{AtomicU32, Ordering};
use crate::types::{Error, Result};

/// Bytes of the page; the kernel rounds up to its own.
const PAGE_BYTES: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");

/// Number of the next process that makes a mark, counted on through forks, so that no child has its
/// parent's.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// In place of the page where there is none: older kernels, no memory. Then no fork is noticed.
static NO_PAGE: AtomicU32 = AtomicU32::new(0);

/// A mark of this process that a process forked from it does not have.
///
/// The objects of this crate have one each ([what a forked child may do](crate#forked-processes)).
/// It is public for crates above that have threads, locks or libraries of their own, which a child
/// does not have either: the client library, the engine of a call, the executor.
#[derive(Clone, Copy, Debug)]
pub struct ForkMark {
    page: &'static AtomicU32,
    number: u32,
}

impl ForkMark {
    /// Makes the mark of the calling process. A child may make its own. Where the kernel cannot
    /// help (before Linux 4.14, or without memory), children are not told from their parent.
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

    /// Returns whether this is the process that made the mark, and not one that was forked from it.
    #[inline]
    pub fn is_here(&self) -> bool {
        self.page.load(Ordering::Relaxed) == self.number
    }

    /// Returns [`Error::Forked`] in a process that was forked from the one that made the mark.
    #[inline]
    pub fn check(&self) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(Error::Forked) }
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
    // SAFETY: the page is aligned, zeroed, and never unmapped; it is reached through this atomic
    // only.
    Ok(unsafe { page.cast::<AtomicU32>().as_ref() })
}

/// Something that belongs to the process that made it.
#[derive(Debug)]
pub(crate) struct Owned<T> {
    mark: ForkMark,
    value: ManuallyDrop<T>,
}

impl<T> Owned<T> {
    #[inline]
    pub(crate) fn new(value: T) -> Self {
        Owned { mark: ForkMark::new(), value: ManuallyDrop::new(value) }
    }

    #[inline]
    pub(crate) fn is_ours(&self) -> bool {
        self.mark.is_here()
    }

    /// [`Error::Forked`] in a child that has inherited it.
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        self.mark.check()
    }

    /// `value`, of the same process.
    pub(crate) fn also<U>(&self, value: U) -> Owned<U> {
        Owned { mark: self.mark, value: ManuallyDrop::new(value) }
    }

    /// The thing itself, in the process that made it.
    pub(crate) fn into_ours(mut self) -> Result<T> {
        self.check()?;
        // SAFETY: taken once, since `self` is forgotten next.
        let value = unsafe { ManuallyDrop::take(&mut self.value) };
        std::mem::forget(self);
        Ok(value)
    }
}

impl<T: Clone> Clone for Owned<T> {
    /// Of the same process: what a child clones it still does not own.
    fn clone(&self) -> Self {
        Owned { mark: self.mark, value: self.value.clone() }
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Owned<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: dropped only here; `into_ours`, which takes it, forgets `self`.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

/// Returns a number that nothing else in this process has: for devices and queue pairs, whatever
/// their provider.
pub(crate) fn next_number() -> u32 {
    static NEXT_NUMBER: AtomicU32 = AtomicU32::new(1);
    NEXT_NUMBER.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests;
