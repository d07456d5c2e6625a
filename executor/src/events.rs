//! What other threads tell the main thread: a channel with a bell that `poll(2)` hears.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::beat::BeatError;
use crate::library::{Library, LoadError};
use crate::worker::StartError;
use rfaas_call::callee::ServiceEnd;

/// Something happened in another thread.
#[derive(Debug)]
pub enum Event {
    /// The loader is done.
    Loaded(Result<Library, LoadError>),
    /// There are no signs of life between executor and manager any more.
    BeatEnded(BeatError),
    /// A worker's thread is done; its account is closed.
    WorkerEnded {
        /// Its index.
        worker: usize,
        /// Why.
        end: Result<ServiceEnd, StartError>,
    },
    /// No thread of a worker is left.
    WorkersJoined,
}

/// The main thread's end.
#[derive(Debug)]
pub struct Events {
    queue: Receiver<Event>,
    bell: Arc<EventFd>,
}

/// Another thread's end.
#[derive(Clone, Debug)]
pub struct Notifier {
    queue: Sender<Event>,
    bell: Arc<EventFd>,
}

/// Both ends.
pub fn events() -> io::Result<(Notifier, Events)> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let bell = Arc::new(EventFd::from_flags(flags)?);
    let (sender, receiver) = mpsc::channel();
    Ok((Notifier { queue: sender, bell: bell.clone() }, Events { queue: receiver, bell }))
}

impl Notifier {
    /// Tells the main thread.
    pub fn tell(&self, event: Event) {
        // Nobody listens any more only when the process is about to end.
        if self.queue.send(event).is_ok() {
            // Fails only if the counter is full: then the bell rings anyway.
            let _ = self.bell.write(1);
        }
    }
}

impl Events {
    /// The next event, if there is one. Rung off before looking: an event that comes after the look
    /// rings again.
    pub fn next(&self) -> Option<Event> {
        let _ = self.bell.read(); // would block: it did not ring
        let event = self.queue.try_recv().ok();
        if event.is_some() {
            let _ = self.bell.write(1); // there may be more
        }
        event
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
