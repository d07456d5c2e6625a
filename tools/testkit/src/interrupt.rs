//! Ctrl-C in a program with local clusters: their managers are stopped and their directories removed before it ends.
//! Destructors do that otherwise, but a signal runs none.
//!
//! A second Ctrl-C (SIGINT) ends the program at once. The managers then die with it (`process`), and its directories
//! are removed all the same.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::procfs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas_program::{LAST_LINES, log};
use tokio::signal::unix::{SignalKind, signal};

/// Longest wait for managers that were asked to stop.
const GRACE: Duration = Duration::from_secs(10);
/// Pause between two checks whether they have.
const CHECK_AGAIN: Duration = Duration::from_millis(10);

/// Clusters of this process: their directories, and the ids of the processes that they have started.
static CLUSTERS: Mutex<BTreeMap<PathBuf, Vec<u32>>> = Mutex::new(BTreeMap::new());

/// A signal is ending this process.
static ENDING: AtomicBool = AtomicBool::new(false);

fn clusters() -> MutexGuard<'static, BTreeMap<PathBuf, Vec<u32>>> {
    CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner) // each change of it is a single step
}

/// A cluster has this directory.
pub(crate) fn started(directory: &Path) {
    clusters().insert(directory.to_owned(), Vec::new());
}

/// It runs this process too.
pub(crate) fn runs(directory: &Path, id: u32) {
    if let Some(ids) = clusters().get_mut(directory) {
        ids.push(id);
    }
}

/// It is gone.
pub(crate) fn stopped(directory: &Path) {
    clusters().remove(directory);
}

/// The end of a program whose clusters signals stop. To be dropped last: where a signal is ending
/// the process, that does not return, because the program's own end would come before that of its
/// managers, and its failure is only that they are being stopped.
#[derive(Debug)]
#[must_use = "the program is to end after its managers"]
pub struct EndAfterClusters(());

impl Drop for EndAfterClusters {
    fn drop(&mut self) {
        while ENDING.load(Ordering::Acquire) {
            std::thread::park();
        }
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP stop the clusters of this process and then end it, with `status` or, without
/// one, with the status that a shell has for that signal (128 and its number).
pub fn stop_clusters_on_signals(status: Option<i32>) -> io::Result<EndAfterClusters> {
    // Handlers, not a blocked mask that is waited on: programs that are started would inherit the mask.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        [
            (signal(SignalKind::interrupt())?, Signal::SIGINT),
            (signal(SignalKind::terminate())?, Signal::SIGTERM),
            (signal(SignalKind::hangup())?, Signal::SIGHUP), // its terminal was closed
        ]
    };
    let mut next = move || {
        runtime.block_on(poll_fn(|context| {
            for (signal, which) in &mut signals {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*which);
                }
            }
            Poll::Pending
        }))
    };
    let watch = move || {
        let first = next();
        ENDING.store(true, Ordering::Release); // before any manager stops: what fails then is no failure
        let status = status.unwrap_or(128 + first as i32);
        let directories: Vec<_> = clusters().keys().cloned().collect();
        let stopping = std::thread::spawn(move || {
            let clean = stop_clusters();
            if !clean {
                log::complain(&"a manager did not stop in time and was killed");
            }
            log::finish(LAST_LINES);
            std::process::exit(if clean { status } else { 1 });
        });
        let mut interrupts = u32::from(first == Signal::SIGINT);
        while interrupts < 2 {
            interrupts += u32::from(next() == Signal::SIGINT);
        }
        drop(stopping); // it is not waited for
        remove(&directories);
        std::process::exit(status);
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch)?;
    Ok(EndAfterClusters(()))
}

/// Whether all managers stopped when asked to.
fn stop_clusters() -> bool {
    let clusters = clusters(); // kept: no further cluster starts from here on
    // Started later, stopped earlier: the executor manager before the resource manager, which books its bills.
    let mut clean = true;
    for id in clusters.values().flat_map(|ids| ids.iter().rev()) {
        clean &= stop(Pid::from_raw(id.cast_signed()));
    }
    remove(clusters.keys());
    clean
}

fn remove<'a>(directories: impl IntoIterator<Item = &'a PathBuf>) {
    for directory in directories {
        // What is left of it is a temporary directory that the system clears.
        let _ = std::fs::remove_dir_all(directory);
    }
}

fn stop(process: Pid) -> bool {
    let deadline = Instant::now() + GRACE;
    let mut signal = Some(Signal::SIGTERM);
    // It is not ours to wait for: that its destructor does.
    while kill(process, signal.take()).is_ok()
        && procfs::is_running(process.as_raw().cast_unsigned())
    {
        if Instant::now() > deadline {
            let _ = kill(process, Signal::SIGKILL);
            return false;
        }
        std::thread::sleep(CHECK_AGAIN);
    }
    true
}
