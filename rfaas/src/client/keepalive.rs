//! The thread that speaks for claimed leases while the application is busy with something else: it
//! gives the signs of life that executor managers wait for, and hears at once that a lease ends.
//!
//! ```text
//!   claimed ──watch──▶ members: arm, look again, sleep until news, a beat is due, or the bell rings
//!                        └── over, or the last handle dropped ──▶ forgotten
//! ```
//! One thread for all leases of a client, from its first claim to its end. It keeps no lease alive,
//! takes a lease only if nobody else has it (who has it, beats while it waits), and never touches the
//! path of an invocation.
//!
//! Elsewhere: what is sent and what news mean (`manager`), whom they are told (`lease`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::lease::LeaseInner;
use super::manager::Manager;

/// How soon a lease that somebody else had is looked at again.
const BUSY: Duration = Duration::from_millis(10);
/// Pause after poll(2) failed, which it does when the kernel has no memory.
const POLL_AGAIN: Duration = Duration::from_millis(100);

/// The thread of one client, once there is a lease to speak for.
#[derive(Debug, Default)]
pub(super) struct Keepalive {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
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
    lease: Weak<LeaseInner>,
    /// Of its connection; a copy, so that it can be slept on while somebody else has the lease.
    descriptor: OwnedFd,
    /// Somebody has: what rings there is for them.
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
    /// Speaks for `lease`, whose connection `manager` is, from now on.
    pub(super) fn watch(&self, lease: &Arc<LeaseInner>, manager: &mut Manager) -> io::Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match &mut *running {
            Some(running) => running,
            none => none.insert(Running::start()?),
        };
        let descriptor = manager.as_fd().try_clone_to_owned()?;
        manager.ring_on_news(Arc::clone(&running.shared.bell));
        let member = Member { lease: Arc::downgrade(lease), descriptor, busy: false };
        running.shared.inbox().newcomers.push(member);
        ring(&running.shared.bell);
        Ok(())
    }
}

/// Wakes the thread.
pub(super) fn ring(bell: &EventFd) {
    let _ = bell.write(1); // fails only if it has been ringing 2^64 times already
}

impl Running {
    fn start() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_flags(flags)?);
        let shared = Arc::new(Shared { bell, inbox: Mutex::default() });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("rfaas-keepalive".into())
            .spawn(move || of_thread.speak())?;
        Ok(Running { shared, thread })
    }
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
            let until = tend(&mut members);
            self.sleep(&members, until);
        }
    }

    /// Sleeps until a connection has news, the bell rings, or `until`.
    fn sleep(&self, members: &[Member], until: Option<Instant>) {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(until) => {
                // Rounded up: a loop that wakes before its deadline would spin until it.
                let left = until.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
            }
        };
        let free = members.iter().filter(|member| !member.busy).map(|m| m.descriptor.as_fd());
        let mut polled: Vec<_> = std::iter::once(self.bell.as_fd())
            .chain(free)
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "cannot wait for news of leases");
                thread::sleep(POLL_AGAIN);
            }
        }
    }
}

/// Looks after all of them; when to do so again at the latest.
fn tend(members: &mut Vec<Member>) -> Option<Instant> {
    let mut next: Option<Instant> = None;
    members.retain_mut(|member| {
        let Some(lease) = member.lease.upgrade() else { return false };
        let tended = lease.tend();
        member.busy = matches!(tended, Tended::Busy);
        let until = match tended {
            Tended::Over => return false,
            Tended::Busy => Instant::now() + BUSY,
            Tended::Until(until) => until,
        };
        next = Some(next.map_or(until, |next| next.min(until)));
        true
    });
    next
}

impl Drop for Keepalive {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { shared, thread }) = running else { return };
        shared.inbox().stop = true;
        ring(&shared.bell);
        // It may have held the last handle for a moment: then this is the thread, which ends by itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the keepalive thread panicked");
        }
    }
}
