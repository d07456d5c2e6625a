//! The helper thread of an open device: does what a network card and the kernel do by themselves.
//!
//! It notices that a peer has closed its socket (also because the peer was killed) and puts the
//! queue pair into the error state, so that a poller that never makes a system call sees it. It
//! carries on with requests whose receiver was not ready. It sleeps otherwise.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::SigSet;

use crate::events::Events;
use crate::types::{Error, Result};

/// A queue pair whose peer the helper watches.
pub(super) trait Watched: Send + Sync {
    /// The peer has ended.
    fn peer_ended(&self);
}

/// Work that waits for a peer.
pub(super) trait Late: Send + Sync {
    /// How long it waits before the first try.
    fn first_try_after(&self) -> Duration;

    /// Tries again; returns when to come back, or `None` when nothing waits any more.
    fn try_again(&self, now: Instant) -> Option<Instant>;
}

/// What other threads use of the helper.
pub(crate) struct Engine {
    events: Events,
    state: Mutex<EngineState>,
}

#[derive(Default)]
struct EngineState {
    connections: HashMap<u32, Weak<dyn Watched>>,
    late: Vec<Arc<dyn Late>>,
    stop: bool,
}

/// Stops the helper when the device closes. It is not joined: it may itself drop the last object of
/// the device, and holds nothing that outlives the process.
#[derive(Debug)]
pub(crate) struct EngineHandle(Arc<Engine>);

impl EngineHandle {
    pub(crate) fn start() -> Result<Self> {
        let engine = Arc::new(Engine { events: Events::new()?, state: Mutex::default() });
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
        self.0.state().stop = true;
        self.0.events.wake();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    fn state(&self) -> MutexGuard<'_, EngineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches for the end of connection `number`, and tells `watched` of it.
    pub(super) fn watch(
        &self,
        number: u32,
        watched: Weak<dyn Watched>,
        socket: &UnixStream,
    ) -> Result<()> {
        self.state().connections.insert(number, watched);
        let flags = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLONESHOT;
        self.events.add(socket, number, flags)
    }

    /// Stops watching; the socket leaves the epoll set when it is closed.
    pub(super) fn unwatch(&self, number: u32) {
        self.state().connections.remove(&number);
    }

    /// Carries on with a queue pair whose receiver was not ready.
    pub(super) fn help(&self, late: Arc<dyn Late>) {
        self.state().late.push(late);
        self.events.wake();
    }

    fn run(&self) {
        // Signals are for the program's own threads.
        let _ = SigSet::all().thread_block();
        let mut late: Vec<(Instant, Arc<dyn Late>)> = Vec::new();
        loop {
            self.sleep_until(late.iter().map(|(due, _)| *due).min());
            let now = Instant::now();
            let mut state = self.state();
            if state.stop {
                return;
            }
            late.extend(state.late.drain(..).map(|work| (now + work.first_try_after(), work)));
            drop(state);
            late = late
                .into_iter()
                .filter_map(|(due, work)| {
                    let due = if due > now { Some(due) } else { work.try_again(now) };
                    due.map(|due| (due, work))
                })
                .collect();
        }
    }

    fn sleep_until(&self, due: Option<Instant>) {
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        let slept = self.events.sleep(timeout, |number| {
            let watched = self.state().connections.get(&number).and_then(Weak::upgrade);
            if let Some(watched) = watched {
                watched.peer_ended();
            }
        });
        if let Err(error) = slept {
            tracing::error!(%error, "cannot wait; ends of connections go unnoticed");
            thread::sleep(Duration::from_secs(1)); // no end of retries without a pause
        }
    }
}
