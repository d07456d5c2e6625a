//! Many descriptors that a loop waits for as one: what a pass costs does not grow with their number (epoll(7)).
//!
//! A descriptor leaves the set when it is closed, unless another process has a copy of it.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Descriptors taken from the kernel at once.
const BATCH: usize = 64;

/// How often a descriptor of a set tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// As long as it is readable.
    Always,
    /// When it is readable the first time. It is not waited for any longer then.
    Once,
}

/// The set. Readable, itself, when any descriptor in it is.
#[derive(Debug)]
pub struct DescriptorSet {
    epoll: Epoll,
}

impl DescriptorSet {
    /// Makes an empty one. Fails only if the process has no descriptor left.
    pub fn new() -> nix::Result<Self> {
        Ok(DescriptorSet { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Waits for `descriptor` from now on, under this `number`. Fails if the kernel has no memory for it.
    pub fn add(&self, descriptor: impl AsFd, number: u64, tells: Tells) -> nix::Result<()> {
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLONESHOT, tells == Tells::Once);
        self.epoll.add(descriptor, EpollEvent::new(flags, number))
    }

    /// Does so no longer. Without effect if `descriptor` is not in the set.
    pub fn remove(&self, descriptor: impl AsFd) {
        let _ = self.epoll.delete(descriptor); // ENOENT
    }

    /// Adds the numbers of those that are readable to `found`, of so many of them at most that
    /// others have their turn. Never waits.
    pub fn take_readable(&self, found: &mut Vec<u64>) {
        let mut events = [EpollEvent::empty(); BATCH];
        // EINTR: those that are readable stay so.
        let count: Result<usize, Errno> = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        found.extend(events[..count.unwrap_or(0)].iter().map(EpollEvent::data));
    }
}

impl AsFd for DescriptorSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write, pipe};

    use super::*;

    const NONE: [u64; 0] = [];

    fn readable(set: &DescriptorSet) -> Vec<u64> {
        let mut found = Vec::new();
        set.take_readable(&mut found);
        found.sort_unstable();
        found
    }

    #[test]
    fn what_is_readable_is_named_as_often_as_was_asked_for_until_it_is_closed() {
        let set = DescriptorSet::new().unwrap();
        let (mut always, mut to_always) = pipe().unwrap();
        let (once, mut to_once) = pipe().unwrap();
        set.add(&always, 7, Tells::Always).unwrap();
        set.add(&once, 8, Tells::Once).unwrap();
        assert_eq!(readable(&set), NONE);
        to_always.write_all(b"a").unwrap();
        to_once.write_all(b"a").unwrap();
        assert_eq!(readable(&set), [7, 8]);
        assert_eq!(readable(&set), [7], "the other one has told");
        always.read_exact(&mut [0]).unwrap();
        assert_eq!(readable(&set), NONE);
        to_always.write_all(b"a").unwrap();
        set.remove(&always);
        assert_eq!(readable(&set), NONE);
        set.add(&always, 9, Tells::Always).unwrap();
        drop(always);
        assert_eq!(readable(&set), NONE, "it is closed");
        set.remove(&once);
        set.remove(&once);
    }

    #[test]
    fn of_many_that_are_readable_none_is_left_out() {
        let set = DescriptorSet::new().unwrap();
        let pipes: Vec<_> = (0..2 * BATCH).map(|_| pipe().unwrap()).collect();
        for (number, (read, _)) in (0..).zip(&pipes) {
            set.add(read, number, Tells::Once).unwrap();
        }
        pipes.iter().for_each(|(_, write)| drop(write.try_clone().unwrap().write_all(b"a")));
        let mut found = Vec::new();
        (0..2).for_each(|_| set.take_readable(&mut found));
        found.sort_unstable();
        assert_eq!(found, (0..2 * BATCH as u64).collect::<Vec<_>>());
    }
}
