//! How a thread sleeps: on an epoll set with an eventfd in it, for descriptors and other threads of
//! this process; or until one descriptor is readable.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::types::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Events taken from the kernel at once.
const BATCH: usize = 32;
/// Data of the eventfd in the set. Descriptors have the numbers of queue pairs, which are a u32.
const OWN: u64 = u64::MAX;

/// The set. Readable, itself, when anything in it is.
#[derive(Debug)]
pub(crate) struct Events {
    epoll: Epoll,
    event: EventFd,
}

impl Events {
    pub(crate) fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|e| Error::os("epoll_create1", e))?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| Error::os("eventfd", e))?;
        let events = Events { epoll, event };
        events.watch(&events.event, OWN, EpollFlags::EPOLLIN)?;
        Ok(events)
    }

    fn watch(&self, fd: impl AsFd, number: u64, flags: EpollFlags) -> Result<()> {
        self.epoll.add(fd, EpollEvent::new(flags, number)).map_err(|e| Error::os("epoll_ctl", e))
    }

    /// Wakes the sleeper when `fd` is ready as `flags` say; the sleeper gets `number`.
    pub(crate) fn add(&self, fd: impl AsFd, number: u32, flags: EpollFlags) -> Result<()> {
        self.watch(fd, number.into(), flags)
    }

    /// Waits for other things from `fd`, which is in the set.
    pub(crate) fn modify(&self, fd: impl AsFd, number: u32, flags: EpollFlags) -> Result<()> {
        let mut event = EpollEvent::new(flags, number.into());
        self.epoll.modify(fd, &mut event).map_err(|e| Error::os("epoll_ctl", e))
    }

    /// Stops doing so. Without effect if `fd` is not in the set.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd); // ENOENT
    }

    /// Wakes the sleeper, or the next one.
    #[cold]
    pub(crate) fn wake(&self) {
        let _ = self.event.write(1); // EAGAIN: the counter is at its maximum, so it is awake already
    }

    /// Sleeps for at most `timeout` (`None`: no limit) and hands out the numbers of what is ready.
    /// A [`wake`](Self::wake) has no number.
    pub(crate) fn sleep(
        &self,
        timeout: Option<Duration>,
        mut ready: impl FnMut(u32),
    ) -> Result<()> {
        let mut events = [EpollEvent::empty(); BATCH];
        let limit = timeout.map_or(EpollTimeout::NONE, |timeout| {
            EpollTimeout::try_from(milliseconds(timeout)).unwrap_or(EpollTimeout::MAX)
        });
        let count = match self.epoll.wait(&mut events, limit) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(Error::os("epoll_wait", errno)),
        };
        for event in &events[..count] {
            match u32::try_from(event.data()) {
                Ok(number) => ready(number),
                Err(_) => {
                    let _ = self.event.read(); // EAGAIN: nobody else reads it, so there was a number
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

/// Never less than asked for.
fn milliseconds(timeout: Duration) -> u128 {
    timeout.as_nanos().div_ceil(1_000_000)
}

/// Waits until `fd` is readable, or may be; `false`: not before `deadline`.
pub(crate) fn readable_before(fd: impl AsFd, deadline: Instant) -> Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(false);
    }
    let timeout = PollTimeout::try_from(milliseconds(left)).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(true), // a false alarm is found out by reading
        Err(errno) => Err(Error::os("poll", errno)),
    }
}
