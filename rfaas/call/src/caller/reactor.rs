//! A thread that waits for completions on behalf of tasks that sleep, so that asynchronous calls need no particular
//! runtime.
//!
//! It is started by the first task that has to sleep. It is given work while tasks sleep, and has none otherwise: then
//! it has let go of the calls altogether, so that blocking callers are alone again.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use rdmalib::ForkMark;

/// The thread. `W` is what it works on.
#[derive(Debug)]
pub(super) struct Reactor<W> {
    /// Dropped to end the thread.
    work: Option<Sender<W>>,
    thread: Option<JoinHandle<()>>,
    /// It has work. Before it has none, it checks whether more tasks sleep.
    active: bool,
    /// The process that has the thread.
    process: ForkMark,
}

impl<W: Send + 'static> Reactor<W> {
    /// Starts a thread that does `work` with what it is given.
    pub(super) fn start(work: impl Fn(W) + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let run = move || receiver.into_iter().for_each(work);
        let thread = thread::Builder::new().name("rfaas-reactor".into()).spawn(run)?;
        let process = ForkMark::new();
        Ok(Reactor { work: Some(sender), thread: Some(thread), active: false, process })
    }

    /// Gives it work, unless it has some.
    pub(super) fn activate(&mut self, work: impl FnOnce() -> W) {
        if !self.active {
            self.active = true;
            if let Some(sender) = &self.work {
                // Fails only if the thread has ended, which it does only after the sender is gone.
                sender.send(work()).ok();
            }
        }
    }
}

impl<W> Reactor<W> {
    /// It has no work any more.
    pub(super) fn rests(&mut self) {
        self.active = false;
    }
}

impl<W> Drop for Reactor<W> {
    /// Waits for the thread. No task sleeps any more when this is called, so it ends soon.
    fn drop(&mut self) {
        if !self.process.is_here() {
            // A child has no such thread, and no use for what leads to it.
            std::mem::forget((self.work.take(), self.thread.take()));
            return;
        }
        self.work = None;
        let Some(thread) = self.thread.take() else { return };
        // A waker that it used may have dropped the last handle of its caller. Then this is the thread itself, which
        // ends by itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the reactor thread panicked");
        }
    }
}
