//! Queue pairs of the embedded device: who owns what.
//!
//! ```text
//!   SendQueue (poster) ──carries out at once──▶ peer's memory and ring        `one_sided`
//!        │ receiver not ready: baton            ▲
//!        └──▶ Backlog ──helper thread, again and again─┘                       `engine`
//!   ReceiveQueue (poster) ──▶ own ring ◀── peer
//!   Core: what poster, poller, helper share ──▶ Source (poller): arrivals and finished sends
//! ```
//! * STATE - `Core::state` only goes forward; the step to `Error` is made once, by whoever notices
//!   first: a failed request, `disconnect`, or a thread that sees the peer's socket end.
//! * RETIRE - a request leaves the send queue when its own or a later completion is polled:
//!   `retired` store(Release) in `Source`, load(Acquire) in `post`.
//! * IDS - ids are stored before `receives_posted` (Release) and loaded after it (Acquire).
//! * DRAIN - after `Error` was seen (Acquire) arrivals are looked at once more before anything is
//!   flushed: what a peer sent before it left is not lost.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::AsRawFd;

use super::arena::{Arena, Mapping};
use super::baton::{HelperEnd, PosterEnd, baton};
use super::completion::{CompletionQueue, Shared};
use super::engine::EngineHandle;
use super::one_sided::{Link, Outcome, OwnedWork, Work};
use super::ring::{Arm, ArrivalTaker, Receive, ReceivePoster, words_needed};
use super::{Domain, MAX_QUEUE_DEPTH};
use crate::completion::{Opcode, Status, WorkCompletion};
use crate::error::{Error, Result};
use crate::memory::{RegionInner, Slice};
use crate::queue_pair::{Flags, QueuePairConfig, RnrRetry, State, WorkRequest};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

const INIT: u32 = 0;
const CONNECTED: u32 = 1;
const ERROR: u32 = 2;

/// Arrival tags: the peer's operation, as bits.
pub(super) const TAG_IMMEDIATE: u32 = 1;
pub(super) const TAG_WRITE: u32 = 2;
pub(super) const TAG_TOO_LONG: u32 = 4;

/// What every thread that deals with a queue pair shares.
#[derive(Debug)]
pub(crate) struct Core {
    number: u32,
    state: AtomicU32,
    inbox: Arc<Mapping>,
    ring_offset: u64,
    ring_depth: u32,
    receive_depth: u32,
    /// This process's own count: the one in the ring is writable by the peer.
    receives_posted: AtomicU32,
    receives_taken: AtomicU32,
    receive_ids: Box<[AtomicU64]>,
    sent: SentRing,
    send_completions: Arc<Shared>,
    receive_completions: Arc<Shared>,
    halves: AtomicU32,
    socket: OnceLock<UnixStream>,
    engine: Arc<EngineHandle>,
}

/// Finished sends on their way from whoever carried them out to the poller.
#[derive(Debug)]
struct SentRing {
    depth: u32,
    mask: u32,
    entries: Box<[SentEntry]>,
    tail: AtomicU32,
    /// Requests whose place in the send queue is free again.
    retired: AtomicU32,
}

#[derive(Debug, Default)]
struct SentEntry {
    id: AtomicU64,
    /// `index << 32 | opcode << 16 | status`.
    what: AtomicU64,
}

impl Core {
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    #[inline]
    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            INIT => State::Init,
            CONNECTED => State::Connected,
            _ => State::Error,
        }
    }

    pub(crate) fn ring(&self) -> (u64, u32) {
        (self.ring_offset, self.ring_depth)
    }

    /// From `Init` to `Connected`, over `socket`.
    pub(crate) fn connected(self: &Arc<Self>, socket: UnixStream) -> Result<()> {
        if self.socket.set(socket).is_err() {
            return Err(Error::InvalidArgument("queue pair was connected before"));
        }
        let socket = self.socket.get().expect("just set");
        let _ = self.state.compare_exchange(INIT, CONNECTED, Ordering::AcqRel, Ordering::Acquire);
        self.receive_completions.watch(self, socket)?;
        self.engine.watch(self, socket)
    }

    /// Into the error state: the peer is told, everything outstanding is flushed. STATE
    pub(crate) fn fail(&self) {
        if self.state.swap(ERROR, Ordering::AcqRel) == ERROR {
            return;
        }
        if let Some(socket) = self.socket.get() {
            let _ = socket.shutdown(std::net::Shutdown::Both); // ENOTCONN: the peer was faster
        }
        self.send_completions.notify(true);
        self.receive_completions.notify(true);
    }

    /// Wakes the peer, who sleeps. A full socket has woken it already.
    #[cold]
    pub(super) fn ring_doorbell(&self) {
        if let Some(socket) = self.socket.get() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = send(socket.as_raw_fd(), &[1], flags); // a broken socket is seen by its watchers
        }
    }

    /// Takes the bytes that a peer woke us with; sees its end.
    pub(super) fn take_doorbells(&self) {
        let Some(socket) = self.socket.get() else { return };
        let mut bytes = [0; 64];
        // Not until empty: a peer that floods its own queue must not hold ours.
        for _ in 0..4 {
            match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(n) if n == bytes.len() => {}
                Ok(0) => {
                    self.receive_completions.unwatch(socket);
                    return self.fail();
                }
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => return,
                Err(_) => {
                    self.receive_completions.unwatch(socket);
                    return self.fail();
                }
            }
        }
    }

    /// Puts a finished send where the poller finds it. Called by one thread at a time (the baton).
    pub(super) fn finish(&self, id: u64, index: u32, opcode: Opcode, status: Status) {
        self.sent.push(id, index, opcode, status);
        self.send_completions.notify(status != Status::Success);
    }

    fn half_dropped(&self) {
        if self.halves.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        self.fail();
        self.engine.unwatch(self.number);
        if let Some(socket) = self.socket.get() {
            self.receive_completions.unwatch(socket);
        }
        self.send_completions.detach(self);
        self.receive_completions.detach(self);
        self.send_completions.unreserve(self.sent.depth);
        self.receive_completions.unreserve(self.receive_depth);
    }
}

impl SentRing {
    fn new(depth: u32) -> Self {
        let size = depth.next_power_of_two();
        SentRing {
            depth,
            mask: size - 1,
            entries: (0..size).map(|_| SentEntry::default()).collect(),
            tail: AtomicU32::new(0),
            retired: AtomicU32::new(0),
        }
    }

    fn push(&self, id: u64, index: u32, opcode: Opcode, status: Status) {
        let tail = self.tail.load(Ordering::Relaxed);
        let entry = &self.entries[(tail & self.mask) as usize];
        entry.id.store(id, Ordering::Relaxed);
        let what = u64::from(index) << 32 | (opcode as u64) << 16 | status_code(status);
        entry.what.store(what, Ordering::Relaxed);
        // At most `depth` requests are outstanding, so the poller has left this entry.
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
    }
}

const OPCODES: [Opcode; 5] =
    [Opcode::Send, Opcode::Write, Opcode::Read, Opcode::FetchAdd, Opcode::CompareSwap];
const STATUSES: [Status; 8] = [
    Status::Success,
    Status::LocalLengthError,
    Status::LocalProtectionError,
    Status::Flushed,
    Status::RemoteInvalidRequest,
    Status::RemoteAccessError,
    Status::RemoteOperationError,
    Status::RnrRetryExceeded,
];

fn status_code(status: Status) -> u64 {
    STATUSES.iter().position(|s| *s == status).expect("the embedded device makes no other") as u64
}

/// A queue pair as a completion queue sees it: the poller's counters.
#[derive(Debug)]
pub(super) struct Source {
    core: Arc<Core>,
    arrivals: Option<ArrivalTaker<Arc<Mapping>>>,
    sends: bool,
    sent_head: u32,
}

impl Source {
    pub(super) fn new(core: Arc<Core>, queue: &Arc<Shared>) -> Self {
        let arrivals = Arc::ptr_eq(&core.receive_completions, queue)
            .then(|| ArrivalTaker::new(core.inbox.clone(), core.ring_depth));
        let sends = Arc::ptr_eq(&core.send_completions, queue);
        Source { core, arrivals, sends, sent_head: 0 }
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn arm(&self, arm: Arm) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.arm(arm);
        }
    }

    pub(super) fn ready(&self) -> bool {
        let receives = self.arrivals.as_ref().is_some_and(|arrivals| {
            arrivals.taken() != self.core.receives_posted.load(Ordering::Acquire)
                && (arrivals.ready() || self.core.state() == State::Error)
        });
        receives || (self.sends && self.core.sent.tail.load(Ordering::Acquire) != self.sent_head)
    }

    #[inline]
    pub(super) fn poll(&mut self, out: &mut [WorkCompletion]) -> usize {
        let mut taken = 0;
        if self.sends {
            while taken < out.len() {
                let Some(completion) = self.take_sent() else { break };
                out[taken] = completion;
                taken += 1;
            }
        }
        while taken < out.len() {
            let Some(completion) = self.take_arrival() else { break };
            out[taken] = completion;
            taken += 1;
        }
        taken
    }

    #[inline]
    fn take_sent(&mut self) -> Option<WorkCompletion> {
        let ring = &self.core.sent;
        if ring.tail.load(Ordering::Acquire) == self.sent_head {
            return None;
        }
        let entry = &ring.entries[(self.sent_head & ring.mask) as usize];
        let (id, what) = (entry.id.load(Ordering::Relaxed), entry.what.load(Ordering::Relaxed));
        self.sent_head = self.sent_head.wrapping_add(1);
        let index = (what >> 32) as u32;
        ring.retired.store(index.wrapping_add(1), Ordering::Release); // RETIRE
        Some(WorkCompletion {
            id,
            status: STATUSES[(what & 0xffff) as usize],
            opcode: OPCODES[(what >> 16 & 0xffff) as usize],
            bytes: 0,
            immediate: None,
            queue_pair: self.core.number,
        })
    }

    #[inline]
    fn take_arrival(&mut self) -> Option<WorkCompletion> {
        let arrivals = self.arrivals.as_mut()?;
        let core = &*self.core;
        let index = arrivals.taken();
        if index == core.receives_posted.load(Ordering::Acquire) {
            return None; // IDS
        }
        let arrival = match arrivals.take() {
            Some(arrival) => Some(arrival),
            None if core.state() == State::Error => arrivals.take(), // DRAIN
            None => return None,
        };
        let id = core.receive_ids[(index & (core.ring_depth - 1)) as usize].load(Ordering::Relaxed);
        let mut completion =
            WorkCompletion { id, queue_pair: core.number, ..WorkCompletion::default() };
        match arrival {
            None => {
                arrivals.skip();
                completion.status = Status::Flushed;
                completion.opcode = Opcode::Receive;
            }
            Some(arrival) => {
                let write = arrival.tag & TAG_WRITE != 0;
                completion.opcode =
                    if write { Opcode::ReceiveWithImmediate } else { Opcode::Receive };
                completion.bytes = arrival.bytes;
                completion.immediate =
                    (arrival.tag & TAG_IMMEDIATE != 0).then_some(arrival.immediate);
                if arrival.tag & TAG_TOO_LONG != 0 {
                    completion.status = Status::LocalLengthError;
                }
            }
        }
        core.receives_taken.store(arrivals.taken(), Ordering::Release);
        if completion.status == Status::LocalLengthError {
            core.fail();
        }
        Some(completion)
    }
}

/// Makes the two halves of a queue pair.
pub(crate) fn queue_pair(
    domain: &Domain,
    send: &CompletionQueue,
    receive: &CompletionQueue,
    config: &QueuePairConfig,
) -> Result<(SendQueue, ReceiveQueue)> {
    let depths = [config.send_depth, config.receive_depth];
    if depths.iter().any(|depth| !(1..=MAX_QUEUE_DEPTH).contains(depth)) {
        return Err(Error::InvalidArgument("queue depths are from 1 to 16384"));
    }
    if config.max_inline_data > super::MAX_INLINE_DATA {
        return Err(Error::InvalidArgument("max_inline_data is larger than the device's limit"));
    }
    if matches!(config.rnr_retry, RnrRetry::Times(7..)) {
        return Err(Error::InvalidArgument("an RNR retry count is from 0 to 6, or for ever"));
    }
    let ring_depth = config.receive_depth.next_power_of_two();
    let (ring_offset, ring) = domain.arena.allocate_ring(8 * words_needed(ring_depth))?;
    let ring = Arc::new(ring);
    send.shared().reserve(config.send_depth)?;
    if let Err(error) = receive.shared().reserve(config.receive_depth) {
        send.shared().unreserve(config.send_depth);
        return Err(error);
    }
    let core = Arc::new(Core {
        number: super::next_number(),
        state: AtomicU32::new(INIT),
        inbox: ring.clone(),
        ring_offset,
        ring_depth,
        receive_depth: config.receive_depth,
        receives_posted: AtomicU32::new(0),
        receives_taken: AtomicU32::new(0),
        receive_ids: (0..ring_depth).map(|_| AtomicU64::new(0)).collect(),
        sent: SentRing::new(config.send_depth),
        send_completions: send.shared().clone(),
        receive_completions: receive.shared().clone(),
        halves: AtomicU32::new(2),
        socket: OnceLock::new(),
        engine: domain.device.engine.clone(),
    });
    receive.shared().attach(&core);
    if !Arc::ptr_eq(send.shared(), receive.shared()) {
        send.shared().attach(&core);
    }
    let (poster, helper) = baton(None);
    let backlog = Arc::new(Backlog {
        core: core.clone(),
        rnr_retry: config.rnr_retry,
        rnr_timer: config.rnr_timer.max(Duration::from_micros(1)),
        queue: Mutex::new(Waiting { helper, works: VecDeque::new(), tries: 0 }),
    });
    let receive = ReceiveQueue {
        poster: ReceivePoster::new(ring, ring_depth),
        core: core.clone(),
        arena: domain.arena.clone(),
    };
    let send = SendQueue {
        max_inline_data: config.max_inline_data as usize,
        arena: domain.arena.clone(),
        posted: 0,
        link: poster,
        backlog,
        core,
    };
    Ok((send, receive))
}

/// Requests that wait for the peer to post a receive, in order.
#[derive(Debug)]
pub(crate) struct Backlog {
    core: Arc<Core>,
    rnr_retry: RnrRetry,
    rnr_timer: Duration,
    queue: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    helper: HelperEnd<Option<Link>>,
    works: VecDeque<OwnedWork>,
    /// Tries of the first work since it became the first.
    tries: u8,
}

impl Backlog {
    fn queue(&self) -> MutexGuard<'_, Waiting> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries again; returns when to come back, or `None` when nothing waits any more and the poster
    /// has the link again. For the helper thread.
    pub(super) fn progress(&self, now: Instant) -> Option<Instant> {
        let mut queue = self.queue();
        let Waiting { helper, works, tries } = &mut *queue;
        while let Some(work) = works.front() {
            let carried_out = helper.with(|link| {
                let link = link.as_mut().expect("only a connected queue pair has a backlog");
                link.carry_out(&self.core, &work.as_work())
            });
            match carried_out {
                Some(Outcome::Done) => {}
                Some(Outcome::NotReady) => {
                    *tries = tries.saturating_add(1);
                    if !self.exhausted(*tries) {
                        return Some(now + self.rnr_timer);
                    }
                    link_failed(&self.core, &work.as_work());
                }
                None => return None, // the poster has it: nothing can be waiting
            }
            works.pop_front();
            *tries = 0;
        }
        helper.give_back();
        None
    }

    /// Whether a request that found no receive `tries` times has to fail.
    fn exhausted(&self, tries: u8) -> bool {
        matches!(self.rnr_retry, RnrRetry::Times(retries) if tries > retries)
    }

    pub(super) fn rnr_timer(&self) -> Duration {
        self.rnr_timer
    }
}

fn link_failed(core: &Core, work: &Work<'_>) {
    core.finish(work.id, work.index, work.operation.opcode(), Status::RnrRetryExceeded);
    core.fail();
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct SendQueue {
    core: Arc<Core>,
    arena: Arc<Arena>,
    max_inline_data: usize,
    posted: u32,
    link: PosterEnd<Option<Link>>,
    backlog: Arc<Backlog>,
}

impl SendQueue {
    pub(crate) fn number(&self) -> u32 {
        self.core.number
    }

    pub(crate) fn state(&self) -> State {
        self.core.state()
    }

    pub(crate) fn disconnect(&mut self) {
        self.core.fail();
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(crate) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Gives the poster its way to the peer, before the state becomes `Connected`.
    pub(crate) fn set_link(&mut self, link: Link) {
        self.link.with(|state| *state = Some(link)).expect("nothing was posted before");
    }

    #[inline]
    pub(crate) fn post(&mut self, request: &WorkRequest<'_>) -> Result<()> {
        let depth = self.core.sent.depth;
        let retired = self.core.sent.retired.load(Ordering::Acquire); // RETIRE
        if self.posted.wrapping_sub(retired) >= depth {
            return Err(Error::QueueFull { depth });
        }
        let work = Work::new(request, self.posted, &self.arena, self.max_inline_data)?;
        let outcome = self.link.with(|link| match link {
            Some(link) => Ok(link.carry_out(&self.core, &work)),
            None => Err(Error::InvalidArgument("queue pair is not connected")),
        });
        match outcome.transpose()? {
            Some(Outcome::Done) => {}
            Some(Outcome::NotReady) if self.backlog.exhausted(1) => link_failed(&self.core, &work),
            Some(Outcome::NotReady) | None => self.post_late(&work),
        }
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// The receiver is not ready, or earlier requests wait for it: the helper carries on.
    #[cold]
    fn post_late(&mut self, work: &Work<'_>) {
        let mut queue = self.backlog.queue();
        let first = queue.works.is_empty();
        queue.works.push_back(work.keep());
        if first {
            // The lock is held: the helper has just given back, or never had it.
            self.link.give();
            queue.tries = 1;
            self.core.engine.help(self.backlog.clone());
        }
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

impl Drop for SendQueue {
    fn drop(&mut self) {
        self.core.fail();
        self.core.half_dropped();
    }
}

/// The half that posts receives.
#[derive(Debug)]
pub(crate) struct ReceiveQueue {
    core: Arc<Core>,
    arena: Arc<Arena>,
    poster: ReceivePoster<Arc<Mapping>>,
}

impl ReceiveQueue {
    #[inline]
    pub(crate) fn post(&mut self, id: u64, buffer: Option<Slice<'_>>) -> Result<()> {
        let core = &*self.core;
        let posted = core.receives_posted.load(Ordering::Relaxed); // only we store it
        let depth = core.receive_depth;
        if posted.wrapping_sub(core.receives_taken.load(Ordering::Acquire)) >= depth {
            return Err(Error::QueueFull { depth });
        }
        let receive = match buffer {
            None => Receive { place: 0, key: 0, bytes: 0 },
            Some(slice) => {
                let RegionInner::Shm(region) = &slice.region.inner;
                if !region.memory().is_in(&self.arena) {
                    return Err(Error::InvalidArgument("buffer is of another protection domain"));
                }
                if !region.memory().access().contains(crate::memory::Access::LOCAL_WRITE) {
                    return Err(Error::InvalidArgument("a receive buffer needs LOCAL_WRITE"));
                }
                let bytes = u32::try_from(slice.bytes)
                    .map_err(|_| Error::InvalidArgument("a message has less than 4 GiB"))?;
                let at = region.remote().offset(slice.offset as u64);
                Receive { place: at.addr, key: at.key, bytes }
            }
        };
        core.receive_ids[(posted & (core.ring_depth - 1)) as usize].store(id, Ordering::Relaxed);
        core.receives_posted.store(posted.wrapping_add(1), Ordering::Release); // IDS
        self.poster.post(receive);
        if core.state() == State::Error {
            core.receive_completions.notify(true); // it is flushed at once: a sleeper must see it
        }
        Ok(())
    }
}

impl Drop for ReceiveQueue {
    fn drop(&mut self) {
        self.core.half_dropped();
    }
}

/// Whether a request that ended with `status` shows in the completion queue.
#[inline]
pub(super) fn completes(flags: Flags, status: Status) -> bool {
    flags.contains(Flags::SIGNALED) || status != Status::Success
}
