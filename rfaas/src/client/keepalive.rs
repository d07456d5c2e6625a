//! The thread that speaks for claimed leases while the application is busy with something else: it
//! gives the signs of life that executor managers wait for, and hears at once that a lease ends.
//!
//! ```text
//!   claimed ──watch──▶ members: arm, look again, sleep until news, a beat is due, or the bell rings
//!                        └── over, or the last handle dropped ──▶ forgotten
//! ```
//! One thread for all leases of a client, from its first claim to its end. It keeps no lease alive, takes
//! a lease only if nobody else has it (who has it, beats while it waits), and never touches the path of an
//! invocation. Each lease wakes it for our beat and for its manager's, and for nobody else's.
//!
//! Elsewhere: what is sent and what news mean (`manager`), whom they are told (`lease`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rdmalib::ForkMark;

use super::life::Life;
use super::manager::Manager;

/// How soon a lease that somebody else had is looked at again.
const BUSY: Duration = Duration::from_millis(10);
/// Pause after poll(2) failed, which it does when the kernel has no memory.
const POLL_AGAIN: Duration = Duration::from_millis(100);

/// The thread of one client, once there is a lease to speak for.
#[derive(Debug, Default)]
pub(super) struct Keepalive {
    thread: Mutex<Option<Arc<Shared>>>,
}

/// What the thread is told through.
#[derive(Debug)]
struct Shared {
    /// Which has the thread.
    process: ForkMark,
    bell: Arc<EventFd>,
    inbox: Mutex<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    newcomers: Vec<Member>,
    stop: bool,
}

/// A lease that is spoken for.
#[derive(Debug)]
struct Member {
    life: Weak<Life>,
    /// Of its connection; a copy, so that it can be slept on while somebody else has the lease.
    descriptor: OwnedFd,
    /// When to look after it at the latest.
    until: Instant,
    /// Somebody has it: what rings there is for them.
    busy: bool,
}

/// What became of a lease that was looked after.
pub(super) enum Tended {
    /// Nothing more is to be done for it.
    Over,
    /// Somebody else has it.
    Busy,
    /// Next time then, unless its connection has news before.
    Until(Instant),
}

impl Keepalive {
    /// Speaks for the lease that `life` is of, and whose connection `manager` is, from now on.
    pub(super) fn watch(&self, life: &Arc<Life>, manager: &mut Manager) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = match &mut *thread {
            Some(shared) => shared,
            none => none.insert(start()?),
        };
        let (life, until) = (Arc::downgrade(life), Instant::now());
        let descriptor = manager.as_fd().try_clone_to_owned()?;
        manager.ring_on_news(Arc::clone(&shared.bell));
        shared.inbox().newcomers.push(Member { life, descriptor, until, busy: false });
        ring(&shared.bell);
        Ok(())
    }
}

/// Wakes the thread.
pub(super) fn ring(bell: &EventFd) {
    let _ = bell.write(1); // fails only if it has been ringing 2^64 times already
}

fn start() -> io::Result<Arc<Shared>> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let bell = Arc::new(EventFd::from_flags(flags)?);
    let shared = Arc::new(Shared { process: ForkMark::new(), bell, inbox: Mutex::default() });
    let of_thread = Arc::clone(&shared);
    thread::Builder::new().name("rfaas-keepalive".into()).spawn(move || of_thread.speak())?;
    Ok(shared)
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn speak(&self) {
        let mut members = Vec::new();
        loop {
            let _ = self.bell.read(); // before looking: who comes after that rings again
            {
                let mut inbox = self.inbox();
                if inbox.stop {
                    return;
                }
                members.append(&mut inbox.newcomers);
            }
            tend(&mut members);
            self.sleep(&mut members);
        }
    }

    /// Sleeps until a connection has news, the bell rings, or it is time; marks whom that concerns.
    fn sleep(&self, members: &mut [Member]) {
        let timeout = match members.iter().map(|member| member.until).min() {
            None => PollTimeout::NONE,
            Some(until) => {
                // Rounded up: a loop that wakes before its deadline would spin until it.
                let left = until.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
            }
        };
        let wanted = |member: &Member| match member.busy {
            true => PollFlags::empty(),
            false => PollFlags::POLLIN,
        };
        let mut polled = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        polled.extend(members.iter().map(|m| PollFd::new(m.descriptor.as_fd(), wanted(m))));
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "cannot wait for news of leases");
                thread::sleep(POLL_AGAIN);
            }
        }
        let rang: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let now = Instant::now();
        for (member, rang_itself) in members.iter_mut().zip(&rang[1..]) {
            // The bell does not say whom it rings for.
            if rang[0] || *rang_itself {
                member.until = now;
            }
        }
    }
}

/// Looks after those of `members` for whom it is time; forgets those that are over.
fn tend(members: &mut Vec<Member>) {
    let now = Instant::now();
    members.retain_mut(|member| {
        if member.until > now {
            return true;
        }
        let Some(life) = member.life.upgrade() else { return false };
        let tended = life.tend();
        member.busy = matches!(tended, Tended::Busy);
        member.until = match tended {
            Tended::Over => return false,
            Tended::Busy => now + BUSY,
            Tended::Until(until) => until,
        };
        true
    });
}

impl Drop for Keepalive {
    /// Does not wait for the thread, which may be in the application's code just now. It has nothing of
    /// the client's and ends by itself.
    fn drop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(shared) = thread
            && shared.process.is_here()
        {
            shared.inbox().stop = true;
            ring(&shared.bell);
        }
    }
}
