//! What poster, poller and helper thread share of one queue pair ([`Core`]), and how a completion
//! queue reads it ([`Source`]).
//!
//! * STATE - `Core::state` only goes forward; the step to `Error` is made once, by whoever notices
//!   first: a failed request, `disconnect`, or a thread that sees the peer's socket end.
//! * RETIRE - a request leaves the send queue when its own or a later completion is polled:
//!   `retired` store(Release) in `Source`, load(Acquire) in `post`.
//! * IDS - ids are stored before `receives_posted` (Release) and loaded after it (Acquire).
//! * DRAIN - after `Error` was seen (Acquire) arrivals are looked at once more before anything is
//!   flushed: what a peer sent before it left is not lost.
//!
//! Elsewhere: posting (`queue_pair`), carrying out (`one_sided`), the list of sources (`completion`).

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::arena::Map;
use super::carried;
use super::completion::Shared;
use super::engine::EngineHandle;
use super::mapping::Part;
use super::peer_arena::PeerArena;
use super::ring::{self, Arm, Arrival, ArrivalTaker};
use super::shared_copy::Job;
use crate::completion::{Opcode, Status, WorkCompletion};
use crate::error::{Error, Result};
use crate::memory::RemoteAddress;
use crate::queue_pair::{Flags, QueuePairConfig, State};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

const INIT: u32 = 0;
const CONNECTED: u32 = 1;
const ERROR: u32 = 2;

/// Arrival tags: the peer's operation, as bits.
pub(super) const TAG_IMMEDIATE: u32 = 1;
pub(super) const TAG_WRITE: u32 = 2;
pub(super) const TAG_TOO_LONG: u32 = 4;
pub(super) const TAG_SHARED: u32 = 8;

/// What every thread that deals with a queue pair shares.
pub(crate) struct Core {
    number: u32,
    state: AtomicU32,
    /// Where the domain's memory is: of payloads that land.
    memory: Arc<Map>,
    inbox: Part,
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
    /// The peer's memory, for large writes of its.
    peer: OnceLock<Arc<OwnedFd>>,
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

/// Short: completion queues and queue pairs refer to each other.
impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Core({}, {:?})", self.number, self.state())
    }
}

impl Core {
    /// Sets places in both completion queues aside and shows up there; `ring` is the receive ring
    /// and its offset in the domain.
    pub(super) fn new(
        send: &Arc<Shared>,
        receive: &Arc<Shared>,
        config: &QueuePairConfig,
        memory: &Arc<Map>,
        (ring_offset, inbox): (u64, Part),
        engine: Arc<EngineHandle>,
    ) -> Result<Arc<Self>> {
        send.reserve(config.send_depth)?;
        if let Err(error) = receive.reserve(config.receive_depth) {
            send.unreserve(config.send_depth);
            return Err(error);
        }
        let ring_depth = config.receive_depth.next_power_of_two();
        let core = Arc::new(Core {
            number: crate::queue_pair::next_number(),
            state: AtomicU32::new(INIT),
            memory: memory.clone(),
            inbox,
            ring_offset,
            ring_depth,
            receive_depth: config.receive_depth,
            receives_posted: AtomicU32::new(0),
            receives_taken: AtomicU32::new(0),
            receive_ids: (0..ring_depth).map(|_| AtomicU64::new(0)).collect(),
            sent: SentRing::new(config.send_depth),
            send_completions: send.clone(),
            receive_completions: receive.clone(),
            halves: AtomicU32::new(2),
            socket: OnceLock::new(),
            peer: OnceLock::new(),
            engine,
        });
        receive.attach(&core);
        if !Arc::ptr_eq(send, receive) {
            send.attach(&core);
        }
        Ok(core)
    }

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

    /// Whether one more request fits, after `posted`.
    #[inline]
    pub(super) fn check_send_room(&self, posted: u32) -> Result<()> {
        let retired = self.sent.retired.load(Ordering::Acquire); // RETIRE
        if posted.wrapping_sub(retired) >= self.sent.depth {
            return Err(Error::QueueFull { depth: self.sent.depth });
        }
        Ok(())
    }

    /// Whether one more receive fits. For the one who posts receives, as is `note_receive`.
    #[inline]
    pub(super) fn check_receive_room(&self) -> Result<()> {
        let posted = self.receives_posted.load(Ordering::Relaxed); // only the caller stores it
        if posted.wrapping_sub(self.receives_taken.load(Ordering::Acquire)) >= self.receive_depth {
            return Err(Error::QueueFull { depth: self.receive_depth });
        }
        Ok(())
    }

    /// Counts a receive that is posted next, under `id`.
    #[inline]
    pub(super) fn note_receive(&self, id: u64) {
        let posted = self.receives_posted.load(Ordering::Relaxed);
        self.receive_ids[(posted & (self.ring_depth - 1)) as usize].store(id, Ordering::Relaxed);
        self.receives_posted.store(posted.wrapping_add(1), Ordering::Release); // IDS
        if self.state() == State::Error {
            self.receive_completions.notify(true); // it is flushed at once: a sleeper must see it
        }
    }

    /// Hands a backlog to the helper thread.
    pub(super) fn help(&self, backlog: Arc<super::queue_pair::Backlog>) {
        self.engine.help(backlog);
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
        ring::close(&self.inbox); // at once, not only when the peer's helper sees the socket's end
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

    /// Where the peer's memory is, before the state becomes `Connected`.
    pub(super) fn set_peer(&self, file: Arc<OwnedFd>) {
        let _ = self.peer.set(file); // a queue pair connects once
    }

    /// Copies its part of a large write, which the arrival `large` announces, with its payload at word
    /// `payload`. Whether all of it is there.
    fn help_with(&self, large: &Arrival, payload: usize, peer: &mut Option<PeerArena>) -> bool {
        let Some((addr, key)) = large.carried_to else { return true };
        let to = RemoteAddress { addr, key };
        let Some(job) = Job::read(&self.inbox, payload, large.bytes as usize) else {
            return true; // a lie: then it is as if the bytes had been written elsewhere
        };
        if peer.is_none() {
            *peer = self.peer.get().and_then(|file| PeerArena::of(file.clone()).ok());
        }
        // Without the peer's memory it is left to the peer.
        if let Some(peer) = peer {
            job.copy(&self.inbox, payload, |offset, bytes| {
                let from = peer.at(job.from.checked_add(offset as u64)?, bytes)?;
                Some((from.cast_const(), self.memory.landing(to.offset(offset as u64), bytes)?))
            });
        }
        job.is_done(&self.inbox, payload)
    }

    /// Puts a finished send where the poller finds it. Called by one thread at a time (the baton).
    #[inline]
    pub(super) fn finish(&self, id: u64, index: u32, opcode: Opcode, status: Status) {
        self.sent.push(id, index, opcode, status);
        self.send_completions.notify(status != Status::Success);
    }

    /// To be called when a half is dropped; with the second one the queue pair is gone.
    pub(super) fn half_dropped(&self) {
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
    arrivals: Option<ArrivalTaker<Part>>,
    sends: bool,
    sent_head: u32,
    /// The peer's memory, mapped when first needed.
    peer: Option<PeerArena>,
}

impl Source {
    pub(super) fn new(core: Arc<Core>, queue: &Arc<Shared>) -> Self {
        let arrivals = Arc::ptr_eq(&core.receive_completions, queue)
            .then(|| ArrivalTaker::new(core.inbox.clone(), core.ring_depth));
        let sends = Arc::ptr_eq(&core.send_completions, queue);
        Source { core, arrivals, sends, sent_head: 0, peer: None }
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn arm(&self, arm: Arm) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.arm(arm);
        }
    }

    pub(super) fn stay_awake(&self, awake: bool) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.stay_awake(awake);
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
            taken = self.take_sents(out);
        }
        for entry in &mut out[taken..] {
            if !self.something_arrived() {
                break;
            }
            let Some(completion) = self.take_arrival() else { break };
            *entry = completion;
            taken += 1;
        }
        taken
    }

    /// Whether [`take_arrival`](Self::take_arrival) is worth calling: all that a poll in vain looks at.
    #[inline]
    fn something_arrived(&self) -> bool {
        self.arrivals.as_ref().is_some_and(ArrivalTaker::ready) || self.core.state() == State::Error
    }

    #[inline]
    fn take_sents(&mut self, out: &mut [WorkCompletion]) -> usize {
        let mut taken = 0;
        while taken < out.len()
            && let Some(completion) = self.take_sent()
        {
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
        let mut arrival = match arrivals.take() {
            Some(arrival) => Some(arrival),
            None if core.state() == State::Error => arrivals.take(), // DRAIN
            None => return None,
        };
        if let Some(large) = arrival.filter(|arrival| arrival.tag & TAG_SHARED != 0)
            && !core.help_with(&large, arrivals.payload(), &mut self.peer)
        {
            arrivals.put_back();
            if core.state() != State::Error {
                return None; // the sender copies the rest
            }
            arrival = None; // it never will
        }
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
                if let Some((addr, key)) = arrival.carried_to
                    && arrival.tag & TAG_SHARED == 0
                {
                    let to = RemoteAddress { addr, key };
                    let payload = arrivals.payload();
                    carried::land(&core.memory, &core.inbox, payload, to, arrival.bytes as usize);
                }
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

/// Whether a request that ended with `status` shows in the completion queue.
#[inline]
pub(super) fn completes(flags: Flags, status: Status) -> bool {
    flags.contains(Flags::SIGNALED) || status != Status::Success
}
