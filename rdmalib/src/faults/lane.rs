//! Carrying faults out: what stands between a poster and its provider's send queue.
//!
//! The poster posts by itself as long as nothing is held back. From the first request that is, a
//! helper thread hands out what is due until nothing is left: a poster that sleeps on its
//! completion queue has its late request sent all the same.
//!
//! What is held back and what is outstanding fit into the provider's queue together: a request that
//! was taken is not refused later for want of a place.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;

use super::script::{Fault, MAX_DELAY, Script};
use crate::contract::SendQueue as _;
use crate::providers::{AnyRegion, AnySendQueue, each};
use crate::types::work::{Operation, Slice, Source, WorkRequest};
use crate::types::{Flags, RemoteAddress, Result, State};

/// A request on memory that it can share.
pub(crate) type Request<'a> = WorkRequest<&'a Arc<AnyRegion>, &'a [u8]>;

/// A request that outlives the call that posted it: regions stay registered, inline data is copied.
type OwnedRequest = WorkRequest<Arc<AnyRegion>, Box<[u8]>>;

fn owned(request: &Request<'_>) -> OwnedRequest {
    request.map(|region| (*region).clone(), |bytes| (*bytes).into())
}

/// The provider's send queue behind the script.
#[derive(Debug)]
struct Plain(AnySendQueue);

impl Plain {
    fn number(&self) -> u32 {
        each!(&self.0, send => send.number())
    }

    fn state(&self) -> State {
        each!(&self.0, send => send.state())
    }

    fn disconnect(&mut self) {
        each!(&mut self.0, send => send.disconnect());
    }

    fn check_room(&self, ahead: u32) -> Result<()> {
        each!(&self.0, send => send.check_room(ahead))
    }

    fn post(&mut self, request: &Request<'_>) -> Result<()> {
        let request = request.map(|region| &***region, |bytes| *bytes);
        each!(&mut self.0, send => send.post(&request))
    }
}

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
    send: Plain,
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
    pub(crate) fn fill(&mut self, send: AnySendQueue) {
        *lock(&self.lane) = Some(Lane { send: Plain(send), held: VecDeque::new(), helped: false });
    }

    /// Begins with another script. What is held back stays so.
    pub(crate) fn restart(&mut self, script: Script) {
        self.script = script;
        self.taken = 0;
    }

    /// Lets `f` use the send queue itself.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut AnySendQueue) -> R) -> R {
        self.with_lane(|lane| f(&mut lane.send.0))
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

    pub(crate) fn post(&mut self, request: &Request<'_>) -> Result<()> {
        let length = length(&request.operation);
        let fault = length.and_then(|bytes| self.script.fault(self.taken, bytes));
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
        self.taken += u64::from(length.is_some());
        Ok(())
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
    fn post(&mut self, request: &Request<'_>, fault: Option<Fault>) -> Result<()> {
        if self.send.state() == State::Init {
            return self.send.post(request); // the provider says why not
        }
        let held = self.held.len() as u32; // at most the queue's depth
        self.send.check_room(held)?;
        match fault {
            None => self.put(request),
            Some(Fault::Drop) => self.put(&nothing(request)),
            Some(Fault::Truncate(bytes)) => self.put(&truncated(request, bytes)),
            Some(Fault::Delay(delay)) => {
                self.hold(Step::Post(owned(request)), delay.min(MAX_DELAY));
                Ok(())
            }
            Some(Fault::Duplicate) => {
                if self.send.check_room(held + 1).is_ok() {
                    // The one completion is the later copy's, so that it frees the places of both.
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

    /// Posts `request`, now or behind what is held back.
    fn put(&mut self, request: &Request<'_>) -> Result<()> {
        if self.held.is_empty() {
            return self.send.post(request);
        }
        self.hold(Step::Post(owned(request)), Duration::ZERO);
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
                Step::Post(request) => {
                    let request = request.map(|region| region, |bytes| &**bytes);
                    if let Err(error) = self.send.post(&request) {
                        // Too late to refuse it: it ends as a request does that fails later.
                        tracing::warn!(%error, "a late request was refused; the connection ends");
                        self.send.disconnect();
                        let flushed = self.send.post(&nothing(&request));
                        if let Err(error) = flushed {
                            tracing::warn!(%error, "and it does not complete");
                        }
                    }
                }
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

/// Returns how many bytes a request moves, if it may have a fault.
fn length<M>(operation: &Operation<M, &[u8]>) -> Option<usize> {
    match operation {
        Operation::Send { source, .. } | Operation::Write { source, .. } => Some(source.len()),
        Operation::Read { .. } | Operation::FetchAdd { .. } | Operation::CompareSwap { .. } => None,
    }
}

/// A request that completes as `request` does and that the peer sees nothing of: a write of no
/// bytes needs no key and no receive (InfiniBand specification 1.4, C9-88).
fn nothing<'a>(request: &Request<'_>) -> Request<'a> {
    let (source, to) = (Source::Inline(&[][..]), RemoteAddress::default());
    let operation = Operation::Write { source, to, immediate: None };
    WorkRequest { id: request.id, operation, flags: request.flags }
}

/// The first `most` bytes of `request`.
fn truncated<'a>(request: &Request<'a>, most: usize) -> Request<'a> {
    let cut = |source: Source<&'a Arc<AnyRegion>, &'a [u8]>| match source {
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
