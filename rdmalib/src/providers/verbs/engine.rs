//! The helper thread of an open device: reads what the connection manager and the device say
//! unasked.
//!
//! It puts a queue pair whose peer has gone into the error state, so that a poller that never makes
//! a system call sees it, and tells the operator of the device's events (ibv_get_async_event(3)).
//! It sleeps otherwise.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::SigSet;

use super::bindings::types::*;
use super::cm::EventChannel;
use super::objects::{AsyncEvent, Context};
use crate::events::Events;
use crate::types::{Error, Result};

/// Number of the device's own descriptor in the epoll set; those of queue pairs have 24 bits.
const DEVICE: u32 = u32::MAX;

/// A queue pair that the helper tells what is said of it.
pub(super) trait Watched: Send + Sync {
    /// The connection manager has something to say.
    fn take_connection_events(&self);
    /// The device says `kind` of this queue pair.
    fn device_event(&self, kind: ibv_event_type);
    /// The device cannot go on.
    fn device_failed(&self);
}

/// What other threads use of the helper.
struct Engine {
    events: Events,
    name: String,
    state: Mutex<EngineState>,
}

#[derive(Default)]
struct EngineState {
    /// By the device's number.
    queue_pairs: HashMap<u32, Weak<dyn Watched>>,
    stop: bool,
}

/// Stops the helper when the device closes. It is not joined: it may itself drop the last object of
/// the device.
#[derive(Debug)]
pub(super) struct EngineHandle(Arc<Engine>);

impl EngineHandle {
    /// Starts the helper of the device called `name`, which stays open until the helper has ended.
    pub(super) fn start(context: Arc<Context>, name: &str) -> Result<Self> {
        let engine =
            Arc::new(Engine { events: Events::new()?, name: name.into(), state: Mutex::default() });
        engine.events.add(context.async_fd(), DEVICE, EpollFlags::EPOLLIN)?;
        let helper = engine.clone();
        thread::Builder::new()
            .name("rdma-verbs".into())
            .spawn(move || helper.run(&context))
            .map_err(|e| Error::os("starting the device's helper thread", e))?;
        Ok(EngineHandle(engine))
    }

    /// Tells `watched` what the device says of its queue pair `number`.
    pub(super) fn watch_events(&self, number: u32, watched: Weak<dyn Watched>) {
        self.0.state().queue_pairs.insert(number, watched);
    }

    /// Tells it also of what arrives at `channel`, the channel of its connection.
    pub(super) fn watch_connection(&self, number: u32, channel: &EventChannel) -> Result<()> {
        self.0.events.add(channel, number, EpollFlags::EPOLLIN)
    }

    /// Stops reading `channel`, which is broken.
    pub(super) fn unwatch_connection(&self, channel: &EventChannel) {
        self.0.events.remove(channel);
    }

    /// Forgets the queue pair; its channel leaves the epoll set when it is closed.
    pub(super) fn unwatch(&self, number: u32) {
        self.0.state().queue_pairs.remove(&number);
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
        write!(f, "Engine({})", self.name)
    }
}

impl Engine {
    fn state(&self) -> MutexGuard<'_, EngineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self, number: u32) -> Option<Arc<dyn Watched>> {
        self.state().queue_pairs.get(&number).and_then(Weak::upgrade)
    }

    fn run(&self, context: &Context) {
        // Signals are for the program's own threads.
        let _ = SigSet::all().thread_block();
        while !self.state().stop {
            let slept = self.events.sleep(None, |number| match number {
                DEVICE => self.take_device_events(context),
                number => {
                    if let Some(watched) = self.watched(number) {
                        watched.take_connection_events();
                    }
                }
            });
            if let Err(error) = slept {
                tracing::error!(%error, "cannot wait; ends of connections go unnoticed");
                thread::sleep(Duration::from_secs(1)); // no end of retries without a pause
            }
        }
    }

    fn take_device_events(&self, context: &Context) {
        let mut taken = 0;
        while let Some(event) = context.next_async_event() {
            self.device_event(&event);
            taken += 1;
        }
        if taken == 0 {
            // Nobody else reads them, so this is no false alarm.
            tracing::error!(device = self.name, "the device's events cannot be read any more");
            self.events.remove(context.async_fd());
        }
    }

    fn device_event(&self, event: &AsyncEvent<'_>) {
        let (device, text) = (&self.name, event.text());
        if let Some(number) = event.queue_pair() {
            tracing::debug!(device, number, "{text}");
            if let Some(watched) = self.watched(number) {
                watched.device_event(event.kind());
            }
            return;
        }
        match event.kind() {
            IBV_EVENT_DEVICE_FATAL | IBV_EVENT_CQ_ERR => {
                tracing::error!(device, "{text}; the connections of the device end");
                let all: Vec<_> = self.state().queue_pairs.values().cloned().collect();
                all.iter().filter_map(Weak::upgrade).for_each(|watched| watched.device_failed());
            }
            IBV_EVENT_PORT_ERR => tracing::warn!(device, "{text}: the port is down"),
            IBV_EVENT_PORT_ACTIVE => tracing::info!(device, "{text}: the port is up"),
            _ => tracing::debug!(device, "{text}"),
        }
    }
}
