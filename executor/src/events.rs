//! The events of other threads, for the main thread: a channel with a bell that `poll(2)` waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::beat::BeatError;
use crate::library::{Library, LoadError};
use crate::worker::{WorkerEnd, WorkerStartError};

/// Something happened in another thread.
#[derive(Debug)]
pub enum ThreadEvent {
    /// The loader is done.
    Loaded(Result<Library, LoadError>),
    /// It has loaded the operator's libraries.
    Preloaded(Result<Vec<Library>, LoadError>),
    /// A thread has connected to the manager that does so without a lease.
    CountsHere,
    /// A worker has connected to manager and client.
    WorkerConnected,
    /// A worker has initialised the library.
    Initialised,
    /// There are no signs of life between executor and manager any more.
    BeatEnded(BeatError),
    /// A worker's thread is done; its account is closed.
    WorkerEnded {
        /// The worker's index.
        worker: usize,
        /// Why it ended.
        end: Result<WorkerEnd, WorkerStartError>,
    },
    /// No thread of a worker is left.
    WorkersJoined,
}

/// The main thread's end.
#[derive(Debug)]
pub struct ThreadEvents {
    queue: Receiver<ThreadEvent>,
    bell: Arc<EventFd>,
}

/// Another thread's end.
#[derive(Clone, Debug)]
pub struct Notifier {
    queue: Sender<ThreadEvent>,
    bell: Arc<EventFd>,
}

/// Makes both ends.
pub fn events() -> io::Result<(Notifier, ThreadEvents)> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let bell = Arc::new(EventFd::from_flags(flags)?);
    let (sender, receiver) = mpsc::channel();
    Ok((Notifier { queue: sender, bell: bell.clone() }, ThreadEvents { queue: receiver, bell }))
}

impl Notifier {
    /// Hands the main thread an event.
    pub fn tell(&self, event: ThreadEvent) {
        // The main thread listens until the process is about to end.
        if self.queue.send(event).is_ok() {
            // Fails only if the counter is full: then the bell rings anyway.
            let _ = self.bell.write(1);
        }
    }
}

impl ThreadEvents {
    /// Returns the next event, if there is one. The bell is silenced before that: an event that
    /// comes later rings again.
    pub fn next(&self) -> Option<ThreadEvent> {
        let _ = self.bell.read(); // would block: it did not ring
        let event = self.queue.try_recv().ok();
        if event.is_some() {
            let _ = self.bell.write(1); // there may be more
        }
        event
    }
}

impl AsFd for ThreadEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
