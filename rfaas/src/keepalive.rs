//! The thread that gives signs of life for claimed leases while the application is busy with something else. It also
//! learns at once that a lease ends.
//!
//! ```text
//!   claimed ──watch──▶ members: arm, poll again, sleep until news, a sign of life is due, or the bell rings
//!                        └── over, or the last holder dropped ──▶ forgotten
//! ```
//! One thread for all leases of a client, from its first claim to its end. It keeps no lease alive,
//! takes a lease only if nobody else has it (a thread that has it gives signs of life while it
//! waits), and never touches the path of a call. Each lease wakes it for its own signs of life and
//! its manager's, and for no other's.
//!
//! Elsewhere: what is sent and what news mean (`executor_manager`), telling the application of an end (`lease_core`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rdmalib::ForkMark;

use crate::executor_manager::{ExecutorManager, Polled, ring};
use crate::lease_core::LeaseCore;

/// How soon a lease that somebody else had is polled again.
const BUSY: Duration = Duration::from_millis(10);
/// Pause after poll(2) failed, which it does when the kernel has no memory.
const POLL_AGAIN: Duration = Duration::from_millis(100);

/// The thread of one client, once it has claimed a lease.
#[derive(Debug, Default)]
pub(crate) struct Keepalive {
    thread: Mutex<Option<Arc<Keeper>>>,
}

/// What the thread has, and how it gets leases.
#[derive(Debug)]
struct Keeper {
    /// The process that has the thread.
    process: ForkMark,
    bell: Arc<EventFd>,
    inbox: Mutex<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    newcomers: Vec<WatchedLease>,
    stop: bool,
}

/// A lease that is polled.
#[derive(Debug)]
struct WatchedLease {
    lease: Weak<LeaseCore>,
    /// A copy of its connection's, so that the thread can sleep on it while somebody else has the lease.
    descriptor: OwnedFd,
    /// When to poll it at the latest.
    until: Instant,
    /// Somebody else has it, and hears what rings there.
    busy: bool,
}

impl Keepalive {
    /// Polls `lease`, whose connection is `manager`, from now on.
    pub(crate) fn watch(
        &self,
        lease: &Arc<LeaseCore>,
        manager: &mut ExecutorManager,
    ) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let keeper = match &mut *thread {
            Some(keeper) => keeper,
            none => none.insert(start()?),
        };
        let (lease, until) = (Arc::downgrade(lease), Instant::now());
        let descriptor = manager.as_fd().try_clone_to_owned()?;
        manager.ring_on_news(Arc::clone(&keeper.bell));
        keeper.inbox().newcomers.push(WatchedLease { lease, descriptor, until, busy: false });
        ring(&keeper.bell);
        Ok(())
    }
}

fn start() -> io::Result<Arc<Keeper>> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let bell = Arc::new(EventFd::from_flags(flags)?);
    let keeper = Arc::new(Keeper { process: ForkMark::new(), bell, inbox: Mutex::default() });
    let of_thread = Arc::clone(&keeper);
    thread::Builder::new().name("rfaas-keepalive".into()).spawn(move || of_thread.run())?;
    Ok(keeper)
}

impl Keeper {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut members = Vec::new();
        loop {
            let _ = self.bell.read(); // before the inbox is read: what comes after that rings again
            {
                let mut inbox = self.inbox();
                if inbox.stop {
                    return;
                }
                members.append(&mut inbox.newcomers);
            }
            poll_members(&mut members);
            self.sleep(&mut members);
        }
    }

    /// Sleeps until a connection has news, the bell rings, or it is time; marks the members that this concerns.
    fn sleep(&self, members: &mut [WatchedLease]) {
        let timeout = match members.iter().map(|member| member.until).min() {
            None => PollTimeout::NONE,
            Some(until) => {
                // Rounded up: a loop that wakes before its deadline would spin until it.
                let left = until.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
            }
        };
        let wanted = |member: &WatchedLease| match member.busy {
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
            // The bell does not say for which member it rings.
            if rang[0] || *rang_itself {
                member.until = now;
            }
        }
    }
}

/// Polls the `members` whose time has come, and forgets those that are over.
fn poll_members(members: &mut Vec<WatchedLease>) {
    let now = Instant::now();
    members.retain_mut(|member| {
        if member.until > now {
            return true;
        }
        let Some(lease) = member.lease.upgrade() else { return false };
        let polled = lease.poll();
        member.busy = matches!(polled, Polled::Busy);
        member.until = match polled {
            Polled::Over => return false,
            Polled::Busy => now + BUSY,
            Polled::Until(until) => until,
        };
        true
    });
}

impl Drop for Keepalive {
    /// Does not wait for the thread, which may be in the application's code just now. It has nothing of
    /// the client's and ends by itself.
    fn drop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = thread
            && keeper.process.is_here()
        {
            keeper.inbox().stop = true;
            ring(&keeper.bell);
        }
    }
}
