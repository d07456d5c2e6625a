//! The helper thread of an open device: does what a network card and the kernel do by themselves.
//!
//! It notices that a peer has closed its socket (also because it was killed) and puts the queue pair
//! into the error state, so that a poller who never makes a system call sees it; and it carries on
//! with requests whose receiver was not ready. It sleeps otherwise.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::SigSet;

use super::core::Core;
use super::queue_pair::Backlog;
use crate::error::{Error, Result};

const OWN_EVENT: u64 = u64::MAX;

/// What other threads use of the helper.
#[derive(Debug)]
pub(crate) struct Engine {
    epoll: Epoll,
    event: EventFd,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    connections: HashMap<u32, Weak<Core>>,
    late: Vec<Arc<Backlog>>,
    stop: bool,
}

/// Stops the helper when the device closes. It is not joined: it may itself drop the last object of
/// the device, and holds nothing that outlives the process.
#[derive(Debug)]
pub(crate) struct EngineHandle(Arc<Engine>);

impl EngineHandle {
    pub(crate) fn start() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|e| Error::os("epoll_create1", e))?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| Error::os("eventfd", e))?;
        epoll
            .add(&event, EpollEvent::new(EpollFlags::EPOLLIN, OWN_EVENT))
            .map_err(|e| Error::os("epoll_ctl", e))?;
        let engine = Arc::new(Engine { epoll, event, shared: Mutex::default() });
        let helper = engine.clone();
        thread::Builder::new()
            .name("rdma-shm".into())
            .spawn(move || helper.run())
            .map_err(|e| Error::os("starting the device's helper thread", e))?;
        Ok(EngineHandle(engine))
    }
}

impl std::ops::Deref for EngineHandle {
    type Target = Arc<Engine>;

    fn deref(&self) -> &Arc<Engine> {
        &self.0
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.0.shared().stop = true;
        self.0.kick();
    }
}

impl Engine {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kick(&self) {
        let _ = self.event.write(1); // EAGAIN: kicked already
    }

    /// Watches for the end of a connection.
    pub(super) fn watch(&self, core: &Arc<Core>, socket: &UnixStream) -> Result<()> {
        self.shared().connections.insert(core.number(), Arc::downgrade(core));
        let flags = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLONESHOT;
        self.epoll
            .add(socket, EpollEvent::new(flags, u64::from(core.number())))
            .map_err(|e| Error::os("epoll_ctl", e))
    }

    /// Stops watching; the socket leaves the epoll set when it is closed.
    pub(super) fn unwatch(&self, number: u32) {
        self.shared().connections.remove(&number);
    }

    /// Carries on with a queue pair whose receiver was not ready.
    pub(super) fn help(&self, backlog: Arc<Backlog>) {
        self.shared().late.push(backlog);
        self.kick();
    }

    fn run(&self) {
        // Signals are for the program's own threads.
        let _ = SigSet::all().thread_block();
        let mut late: Vec<(Instant, Arc<Backlog>)> = Vec::new();
        loop {
            self.sleep_until(late.iter().map(|(due, _)| *due).min());
            let now = Instant::now();
            let mut shared = self.shared();
            if shared.stop {
                return;
            }
            late.extend(shared.late.drain(..).map(|backlog| (now + backlog.rnr_timer(), backlog)));
            drop(shared);
            late = late
                .into_iter()
                .filter_map(|(due, backlog)| {
                    let due = if due > now { Some(due) } else { backlog.progress(now) };
                    due.map(|due| (due, backlog))
                })
                .collect();
        }
    }

    fn sleep_until(&self, due: Option<Instant>) {
        let timeout = due.map_or(EpollTimeout::NONE, |due| {
            let millis =
                due.saturating_duration_since(Instant::now()).as_nanos().div_ceil(1_000_000);
            EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
        });
        let mut events = [EpollEvent::empty(); 32];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => {
                tracing::error!(%errno, "epoll_wait failed; ends of connections go unnoticed");
                0
            }
        };
        for event in &events[..count] {
            if event.data() == OWN_EVENT {
                let _ = self.event.read();
                continue;
            }
            let core =
                self.shared().connections.get(&(event.data() as u32)).and_then(Weak::upgrade);
            if let Some(core) = core {
                core.fail();
            }
        }
    }
}
