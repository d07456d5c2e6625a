//! The helper thread of an open device: does what a network card and the kernel do by themselves.
//!
//! It notices that a peer has closed its socket (also because it was killed) and puts the queue pair
//! into the error state, so that a poller who never makes a system call sees it; and it carries on
//! with requests whose receiver was not ready. It sleeps otherwise.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::SigSet;

use super::core::Core;
use super::queue_pair::Backlog;
use crate::events::Events;
use crate::types::{Error, Result};

/// What other threads use of the helper.
#[derive(Debug)]
pub(crate) struct Engine {
    events: Events,
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
        let engine = Arc::new(Engine { events: Events::new()?, shared: Mutex::default() });
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
        self.0.events.wake();
    }
}

impl Engine {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches for the end of a connection.
    pub(super) fn watch(&self, core: &Arc<Core>, socket: &UnixStream) -> Result<()> {
        self.shared().connections.insert(core.number(), Arc::downgrade(core));
        let flags = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLONESHOT;
        self.events.add(socket, core.number(), flags)
    }

    /// Stops watching; the socket leaves the epoll set when it is closed.
    pub(super) fn unwatch(&self, number: u32) {
        self.shared().connections.remove(&number);
    }

    /// Carries on with a queue pair whose receiver was not ready.
    pub(super) fn help(&self, backlog: Arc<Backlog>) {
        self.shared().late.push(backlog);
        self.events.wake();
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
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        let slept = self.events.sleep(timeout, |number| {
            let core = self.shared().connections.get(&number).and_then(Weak::upgrade);
            if let Some(core) = core {
                core.fail();
            }
        });
        if let Err(error) = slept {
            tracing::error!(%error, "cannot wait; ends of connections go unnoticed");
            thread::sleep(Duration::from_secs(1)); // no end of retries without a pause
        }
    }
}
