//! The thread that waits for completions on behalf of tasks that sleep, so that asynchronous
//! invocations need no particular runtime.
//!
//! Started by the first task that has to sleep. While tasks sleep it is a driver like any other
//! (`drive`), asleep on the completion channel; when none does, it lets go of the executor's data
//! path altogether, so that blocking callers are alone again.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use rdmalib::ForkMark;

use super::Spin;
use super::drive::{Drive, Shared, Together};

/// The thread, as its executor's state has it.
#[derive(Debug)]
pub(super) struct Reactor {
    /// Dropped to end the thread.
    work: Option<Sender<Arc<Shared>>>,
    thread: Option<JoinHandle<()>>,
    /// It has work: it looks, before it has none, whether more tasks sleep.
    active: bool,
    /// Which has the thread.
    process: ForkMark,
}

impl Reactor {
    fn start() -> io::Result<Self> {
        let (work, receiver) = channel();
        let thread =
            thread::Builder::new().name("rfaas-reactor".into()).spawn(move || run(&receiver))?;
        let process = ForkMark::new();
        Ok(Reactor { work: Some(work), thread: Some(thread), active: false, process })
    }
}

/// Has the reactor wait for the tasks that sleep; `shared` is the one that `together` is of. To be
/// called with the lock held under which the task was registered.
pub(super) fn activate(shared: &Arc<Shared>, together: &mut Together<'_>) -> io::Result<()> {
    let slot = &mut together.state().reactor;
    let reactor = match slot {
        Some(reactor) => reactor,
        None => slot.insert(Reactor::start()?),
    };
    if !reactor.active {
        reactor.active = true;
        if let Some(work) = &reactor.work {
            // Fails only if the thread has ended, which it does only after `work` is gone.
            work.send(Arc::clone(shared)).ok();
        }
    }
    Ok(())
}

fn run(work: &Receiver<Arc<Shared>>) {
    while let Ok(shared) = work.recv() {
        let mut together = Together::waiting(&shared, Spin::Never);
        while together.workers().tickets.watched() > 0 {
            together.advance();
        }
        if let Some(reactor) = &mut together.state().reactor {
            reactor.active = false;
        }
    }
}

impl Drop for Reactor {
    /// Waits for the thread. Nobody watches any more when this is called, so it ends soon.
    fn drop(&mut self) {
        if !self.process.is_here() {
            // A child has no such thread, and no use for what leads to it.
            std::mem::forget((self.work.take(), self.thread.take()));
            return;
        }
        self.work = None;
        let Some(thread) = self.thread.take() else { return };
        // A waker that it used may have dropped the last handle of the executor: then this is the
        // thread itself, which ends by itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the reactor thread panicked");
        }
    }
}
