//! The thread on which libraries are loaded: that may take long, and their constructors as long as they like, while the
//! main thread still hears that the lease is over.
//!
//! ```text
//!   check: received, sealed, its functions listed      while connections are made: nothing of it runs
//!     └──load: its constructors run ──▶ `Loaded`       once, when all connections are there
//! ```
//! It starts with the process, so that a lease does not wait for a thread. Libraries of the operator have one of their
//! own: a constructor may have blocked its signals, say.
//!
//! Elsewhere: what checking and loading are (`library`).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::{io, thread};

use rfaas_program::footprint::stack_bytes;
use rfaas_protocol::assignment::PreloadedLibrary;

use crate::events::{Notifier, ThreadEvent};
use crate::fatal;
use crate::library::{CheckedLibrary, Code, Library, LoadError, SealedFile};
use crate::plan::{Plan, StandbyPlan};

/// The thread. It ends with this, or when it has loaded what was checked.
#[derive(Debug)]
pub struct Loader {
    tasks: Sender<Task>,
    notifier: Notifier,
}

#[derive(Debug)]
enum Task {
    /// Checks the library of the plan.
    Check(Code, Arc<Plan>),
    /// Loads what was checked last.
    Load,
}

impl Loader {
    /// Starts it. `notifier` gets what was loaded.
    pub fn start(notifier: Notifier) -> io::Result<Self> {
        let (sender, tasks) = mpsc::channel();
        let of_thread = notifier.clone();
        spawn(move || work(&tasks, &of_thread))?;
        Ok(Loader { tasks: sender, notifier })
    }

    /// Loads the libraries of the operator, whose files are `files`, in the order of the instructions.
    pub fn load_early(&self, files: Vec<OwnedFd>, standby: &Arc<StandbyPlan>) -> io::Result<()> {
        let (notifier, standby) = (self.notifier.clone(), standby.clone());
        spawn(move || notifier.tell(ThreadEvent::Preloaded(load_early(files, &standby))))
    }

    /// Checks the library of `plan`, whose code is `code`.
    pub fn check(&self, code: Code, plan: &Arc<Plan>) {
        self.tell(Task::Check(code, plan.clone()));
    }

    /// Loads the library that was checked last.
    pub fn load(&self) {
        self.tell(Task::Load);
    }

    fn tell(&self, task: Task) {
        let _ = self.tasks.send(task); // it lives until it has loaded what was checked
    }
}

/// Starts a thread on which libraries are loaded.
fn spawn(load: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("loader".into());
    let thread = thread.stack_size(stack_bytes()); // constructors are functions too
    let started = thread.spawn(move || {
        fatal::note_stack();
        load();
    });
    started.map(drop)
}

fn work(tasks: &Receiver<Task>, notifier: &Notifier) {
    let mut checked = None;
    for task in tasks {
        match task {
            Task::Check(code, plan) => {
                let file = SealedFile::of(code, plan.code_bytes as usize, &plan.code_hash);
                checked = Some(file.and_then(CheckedLibrary::new));
            }
            Task::Load => {
                let checked = checked.take().expect("it is checked before it is loaded");
                return notifier.tell(ThreadEvent::Loaded(checked.and_then(Library::load)));
            }
        }
    }
}

fn load_early(files: Vec<OwnedFd>, standby: &StandbyPlan) -> Result<Vec<Library>, LoadError> {
    let load = |(file, library): (OwnedFd, &PreloadedLibrary)| {
        let code = Code::FromNode(file);
        let file = SealedFile::of(code, library.bytes as usize, &library.hash)?;
        Library::load_early(CheckedLibrary::new(file)?)
    };
    files.into_iter().zip(&standby.preload).map(load).collect()
}
