//! What poster, poller and helper thread share of one queue pair.
//!
//! The state only goes forward. The step to `Error` is made once, by the first to notice: a failed
//! request, `disconnect`, or a thread that sees the peer's socket end.
//!
//! Elsewhere: finished sends (`sent`), posted receives (`receives`), how a completion queue reads
//! all of it (`poller`), posting (`queue_pair`), carrying out (`link`).

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock, Weak};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::arena::Map;
use super::closer::ClosedLater;
use super::engine::{EngineHandle, Late, Watched};
use super::mapping::Part;
use super::members::{Member, QueueMembers};
use super::peer::peer_of;
use super::peer_arena::{PeerArena, PeerFile};
use super::receives::Receives;
use super::sent::{Sent, SentRing};
use super::shared_copy::Job;
use super::unread::Connected;
use crate::sync::{AtomicU32, Ordering};
use crate::types::{Error, Flags, Opcode, QueuePairConfig, RemoteAddress, Result, State, Status};
use rdmalib_ring::{Arrival, TurnSlot, close};

/// Deepest send or receive queue: what common network cards offer.
pub(super) const MAX_QUEUE_DEPTH: u32 = 16384;

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
    receives: Receives,
    sent: SentRing,
    send_completions: Arc<QueueMembers<Core>>,
    receive_completions: Arc<QueueMembers<Core>>,
    halves: AtomicU32,
    socket: OnceLock<ClosedLater<Connected>>,
    peer: OnceLock<Peer>,
    engine: Arc<EngineHandle>,
}

/// What is known once there is a connection.
#[derive(Debug)]
struct Peer {
    /// Its memory, for large writes of its.
    file: PeerFile,
    slot: Arc<TurnSlot<Part>>,
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
        send: &Arc<QueueMembers<Core>>,
        receive: &Arc<QueueMembers<Core>>,
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
        let core = Arc::new(Core {
            number: crate::process::next_number(),
            state: AtomicU32::new(INIT),
            memory: memory.clone(),
            inbox,
            ring_offset,
            ring_depth: config.receive_depth.next_power_of_two(),
            receives: Receives::new(config.receive_depth),
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

    #[inline]
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

    /// Offset and depth of the receive ring.
    pub(crate) fn ring(&self) -> (u64, u32) {
        (self.ring_offset, self.ring_depth)
    }

    #[inline]
    pub(super) fn receives(&self) -> &Receives {
        &self.receives
    }

    #[inline]
    pub(super) fn sent(&self) -> &SentRing {
        &self.sent
    }

    pub(super) fn send_completions(&self) -> &Arc<QueueMembers<Core>> {
        &self.send_completions
    }

    pub(super) fn receive_completions(&self) -> &Arc<QueueMembers<Core>> {
        &self.receive_completions
    }

    /// Where the domain's memory is.
    #[inline]
    pub(super) fn memory(&self) -> &Map {
        &self.memory
    }

    /// The shared turn slot, once there is a connection.
    pub(super) fn turn_slot(&self) -> Option<&Arc<TurnSlot<Part>>> {
        self.peer.get().map(|peer| &peer.slot)
    }

    /// Counts a receive that is posted next, under `id`. For the thread that posts receives.
    #[inline]
    pub(super) fn note_receive(&self, id: u64) {
        self.receives.note(id);
        if self.state() == State::Error {
            self.receive_completions.notify(true); // it is flushed at once: a sleeper must see it
        }
    }

    /// Hands work that waits for the peer to the helper thread.
    pub(super) fn help(&self, late: Arc<dyn Late>) {
        self.engine.help(late);
    }

    /// From `Init` to `Connected`, over `socket`; or to `Error`, if that cannot be watched.
    pub(super) fn connected(self: &Arc<Self>, socket: ClosedLater<Connected>) -> Result<()> {
        if self.socket.set(socket).is_err() {
            return Err(Error::InvalidArgument("queue pair was connected before"));
        }
        let socket = self.socket.get().expect("just set");
        let _ = self.state.compare_exchange(INIT, CONNECTED, Ordering::AcqRel, Ordering::Acquire);
        self.receive_completions.changed(); // the turn slot is known
        let this: Weak<Self> = Arc::downgrade(self);
        let watched = self
            .receive_completions
            .watch(self, socket)
            .and_then(|()| self.engine.watch(self.number, this, socket));
        if watched.is_err() {
            self.fail();
        }
        watched
    }

    /// Who is at the other end, once it is connected.
    pub(crate) fn peer(&self) -> Option<String> {
        self.socket.get().map(|socket| peer_of(socket))
    }

    /// Goes into the error state, once: the peer learns it, everything outstanding is flushed.
    pub(crate) fn fail(&self) {
        if self.state.swap(ERROR, Ordering::AcqRel) == ERROR {
            return;
        }
        close(&self.inbox); // at once, not only when the peer's helper sees the socket's end
        if let Some(socket) = self.socket.get() {
            let _ = socket.shutdown(std::net::Shutdown::Both); // ENOTCONN: the peer was faster
        }
        self.send_completions.notify(true);
        self.receive_completions.notify(true);
    }

    /// Wakes the peer, which sleeps. A full socket has woken it already.
    #[cold]
    pub(super) fn ring_doorbell(&self) {
        if let Some(socket) = self.socket.get() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = send(socket.as_raw_fd(), &[1], flags); // a broken socket is seen by its watchers
        }
    }

    /// Keeps the peer's memory and the turn slot, before the state becomes `Connected`.
    pub(super) fn set_peer(&self, file: PeerFile, slot: Arc<TurnSlot<Part>>) {
        let _ = self.peer.set(Peer { file, slot }); // a queue pair connects once
    }

    /// The memory of the receive ring.
    pub(super) fn inbox(&self) -> &Part {
        &self.inbox
    }

    /// Copies its part of a large write, which the arrival `large` announces, with its payload in
    /// `ring` from word `payload` on. Whether all of it is there.
    pub(super) fn help_with(
        &self,
        large: &Arrival,
        (ring, payload): (&Part, usize),
        peer: &mut Option<PeerArena>,
    ) -> bool {
        let Some((addr, key)) = large.carried_to else { return true };
        let to = RemoteAddress { addr, key };
        let Some(job) = Job::read(ring, payload, large.bytes as usize) else {
            return true; // a lie: then it is as if the bytes had been written elsewhere
        };
        if peer.is_none() {
            *peer = self.peer.get().and_then(|peer| PeerArena::new(peer.file.clone()).ok());
        }
        // Without the peer's memory it is left to the peer.
        if let Some(peer) = peer {
            job.copy(ring, payload, |offset, bytes| {
                let from = peer.at(job.from.checked_add(offset as u64)?, bytes)?;
                Some((from.cast_const(), self.memory.landing(to.offset(offset as u64), bytes)?))
            });
        }
        job.is_done(ring, payload)
    }

    /// Puts a finished send where the poller finds it. Called by one thread at a time (the
    /// ownership hand-off).
    #[inline]
    pub(super) fn finish(&self, id: u64, index: u32, opcode: Opcode, status: Status) {
        self.sent.push(index, Sent { id, opcode, status });
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
        self.send_completions.unreserve(self.sent.depth());
        self.receive_completions.unreserve(self.receives.depth());
    }
}

impl Member for Core {
    fn number(&self) -> u32 {
        self.number
    }

    fn take_doorbells(&self) {
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
}

impl Watched for Core {
    fn peer_ended(&self) {
        self.fail();
    }
}

/// Whether a request that ended with `status` shows in the completion queue.
#[inline]
pub(super) fn completes(flags: Flags, status: Status) -> bool {
    flags.contains(Flags::SIGNALED) || status != Status::Success
}
