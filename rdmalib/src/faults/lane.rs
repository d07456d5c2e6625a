//! Carrying faults out: what stands between a poster and its provider's send queue.
//!
//! The poster posts by itself as long as nothing is held back. From the first request that is, a helper
//! thread hands out what is due until nothing is left: a poster who sleeps on its completion queue has
//! its late request sent all the same.
//! * ROOM - what is held back and what is outstanding fit into the provider's queue together: a request
//!   that was taken is not refused later for want of a place.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;

use super::owned::OwnedRequest;
use super::{Fault, MAX_DELAY, Script};
use crate::error::Result;
use crate::memory::{RemoteAddress, Slice};
use crate::queue_pair::{Flags, Operation, SendQueue, Source, State, WorkRequest};

/// A send queue behind a script.
#[derive(Debug)]
pub(crate) struct Faulty {
    script: Script,
    /// Sends and writes that were taken since the script began: the number of the next one.
    taken: u64,
    lane: SharedLane,
}

/// `None`: nothing in it yet, or the queue pair is gone.
type SharedLane = Arc<Mutex<Option<Lane>>>;

/// The way to the peer.
#[derive(Debug)]
struct Lane {
    send: SendQueue,
    held: VecDeque<Held>,
    /// A helper thread hands out what is held.
    helped: bool,
}

#[derive(Debug)]
struct Held {
    due: Instant,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Post(OwnedRequest),
    Disconnect,
}

fn lock(lane: &SharedLane) -> MutexGuard<'_, Option<Lane>> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faulty {
    /// With nothing behind it; [`fill`](Self::fill) it before use.
    pub(crate) fn new(script: Script) -> Self {
        Faulty { script, taken: 0, lane: Arc::default() }
    }

    /// Puts `send` behind the script.
    pub(crate) fn fill(&mut self, send: SendQueue) {
        *lock(&self.lane) = Some(Lane { send, held: VecDeque::new(), helped: false });
    }

    /// Begins with another script. What is held back stays so.
    pub(crate) fn restart(&mut self, script: Script) {
        self.script = script;
        self.taken = 0;
    }

    /// Lets `f` use the send queue itself.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut SendQueue) -> R) -> R {
        self.with_lane(|lane| f(&mut lane.send))
    }

    fn with_lane<R>(&self, f: impl FnOnce(&mut Lane) -> R) -> R {
        f(lock(&self.lane).as_mut().expect("filled, and taken only in drop"))
    }

    /// What is held back is flushed with the rest.
    pub(crate) fn disconnect(&mut self) {
        self.with_lane(|lane| {
            lane.send.disconnect();
            lane.progress(Instant::now());
        });
    }

    pub(crate) fn post(&mut self, request: &WorkRequest<'_>) -> Result<()> {
        let source = source(&request.operation);
        let fault = source.and_then(|source| self.script.fault(self.taken, length(source)));
        self.with_lane(|lane| {
            if let Some(fault) = fault {
                let number = (lane.send.number(), self.taken);
                tracing::debug!(queue_pair = number.0, request = number.1, ?fault, "fault");
            }
            lane.post(request, fault)?;
            if !lane.held.is_empty() && !lane.helped {
                lane.start_helper(&self.lane);
            }
            Ok(())
        })?;
        self.taken += u64::from(source.is_some());
        Ok(())
    }

    pub(crate) fn post_list(&mut self, requests: &[WorkRequest<'_>]) -> (usize, Result<()>) {
        for (posted, request) in requests.iter().enumerate() {
            if let Err(error) = self.post(request) {
                return (posted, Err(error));
            }
        }
        (requests.len(), Ok(()))
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // Also while a helper sleeps: the connection ends with its poster, not with a delay.
        let lane = lock(&self.lane).take();
        drop(lane);
    }
}

impl Lane {
    fn post(&mut self, request: &WorkRequest<'_>, fault: Option<Fault>) -> Result<()> {
        if self.send.state() == State::Init {
            return self.send.post(request); // the provider says why not
        }
        let held = self.held.len() as u32; // at most the queue's depth: ROOM
        self.send.check_room(held)?;
        match fault {
            None => self.put(request),
            Some(Fault::Drop) => self.put(&nothing(request)),
            Some(Fault::Truncate(bytes)) => self.put(&truncated(request, bytes)),
            Some(Fault::Delay(delay)) => {
                self.hold(Step::Post(OwnedRequest::new(request)), delay.min(MAX_DELAY));
                Ok(())
            }
            Some(Fault::Duplicate) => {
                if self.send.check_room(held + 1).is_ok() {
                    // ONE COMPLETION. It is the later copy's, so that it frees the places of both.
                    self.put(&WorkRequest { flags: request.flags - Flags::SIGNALED, ..*request })?;
                }
                self.put(request)
            }
            Some(Fault::Disconnect) if self.held.is_empty() => {
                self.send.disconnect();
                self.send.post(request) // which is flushed
            }
            Some(Fault::Disconnect) => {
                self.hold(Step::Disconnect, Duration::ZERO);
                self.put(request)
            }
        }
    }

    /// Posts `request`, now or behind what is held back. ORDER
    fn put(&mut self, request: &WorkRequest<'_>) -> Result<()> {
        if self.held.is_empty() {
            return self.send.post(request);
        }
        self.hold(Step::Post(OwnedRequest::new(request)), Duration::ZERO);
        Ok(())
    }

    fn hold(&mut self, step: Step, delay: Duration) {
        self.held.push_back(Held { due: Instant::now() + delay, step });
    }

    /// Hands out what is due, all of it after the end; returns when to come back, or `None` when
    /// nothing is held any more.
    fn progress(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.held.front() {
            if first.due > now && self.send.state() != State::Error {
                return Some(first.due);
            }
            match &first.step {
                Step::Disconnect => self.send.disconnect(),
                Step::Post(request) => match self.send.post(&request.as_request()) {
                    Ok(()) => {}
                    Err(error) => {
                        // Too late to refuse it: it ends as a request does that fails later.
                        tracing::warn!(%error, "a late request was refused; the connection ends");
                        self.send.disconnect();
                        let flushed = self.send.post(&nothing(&request.as_request()));
                        if let Err(error) = flushed {
                            tracing::warn!(%error, "and it does not complete");
                        }
                    }
                },
            }
            self.held.pop_front();
        }
        None
    }

    fn start_helper(&mut self, lane: &SharedLane) {
        let shared = lane.clone();
        let helper = thread::Builder::new().name("rdma-faults".into());
        match helper.spawn(move || help(&shared)) {
            Ok(_) => self.helped = true,
            Err(error) => {
                tracing::warn!(%error, "no thread for late requests; they go now");
                self.progress(Instant::now() + MAX_DELAY);
            }
        }
    }
}

/// The helper thread: ends when nothing is held any more.
fn help(shared: &SharedLane) {
    // Signals are for the program's own threads.
    let _ = SigSet::all().thread_block();
    loop {
        let due = {
            let mut lane = lock(shared);
            let Some(lane) = lane.as_mut() else { return };
            let due = lane.progress(Instant::now());
            lane.helped = due.is_some();
            due
        };
        let Some(due) = due else { return };
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Where the bytes of a request that may have a fault come from.
fn source<'a>(operation: &Operation<'a>) -> Option<Source<'a>> {
    match *operation {
        Operation::Send { source, .. } | Operation::Write { source, .. } => Some(source),
        Operation::Read { .. } | Operation::FetchAdd { .. } | Operation::CompareSwap { .. } => None,
    }
}

fn length(source: Source<'_>) -> usize {
    match source {
        Source::Region(slice) => slice.bytes,
        Source::Inline(bytes) => bytes.len(),
    }
}

/// A request that completes as `request` does and that the peer sees nothing of: a write of no bytes
/// needs no key and no receive (InfiniBand specification 1.4, C9-88).
fn nothing<'a>(request: &WorkRequest<'_>) -> WorkRequest<'a> {
    let (source, to) = (Source::Inline(&[]), RemoteAddress::default());
    let operation = Operation::Write { source, to, immediate: None };
    WorkRequest { id: request.id, operation, flags: request.flags }
}

/// The first `most` bytes of `request`.
fn truncated<'a>(request: &WorkRequest<'a>, most: usize) -> WorkRequest<'a> {
    let cut = |source| match source {
        Source::Region(slice) => Source::Region(Slice { bytes: slice.bytes.min(most), ..slice }),
        Source::Inline(bytes) => Source::Inline(&bytes[..bytes.len().min(most)]),
    };
    let operation = match request.operation {
        Operation::Send { source, immediate } => Operation::Send { source: cut(source), immediate },
        Operation::Write { source, to, immediate } => {
            Operation::Write { source: cut(source), to, immediate }
        }
        other => other,
    };
    WorkRequest { operation, ..*request }
}
