//! Queue pairs of the embedded device: what each thread owns.
//!
//! ```text
//!   SendQueue (poster) ──carries out at once──▶ peer's memory and ring        `link`
//!        │ receiver not ready: hand-off         ▲
//!        └──▶ Backlog ──helper thread, again and again─┘                       `engine`
//!   ReceiveQueue (poster) ──▶ own ring ◀── peer
//!   Core: what poster, poller, helper share ──▶ PairPoller (poller): arrivals and finished sends
//! ```
//! Posting never waits. A request whose receiver is not ready goes to the backlog, and so does
//! every later one, in order, until the helper has carried them all out and hands the link back.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::arena::{Arena, Region, RegionMemory};
use super::closer::ClosedLater;
use super::completion::CompletionQueue;
use super::core::{Core, MAX_QUEUE_DEPTH};
use super::engine::{EngineHandle, Late};
use super::handshake::{ConnectRequest, connect_to};
use super::link::{Link, MAX_BYTES, Outcome, OwnedWork, PostedWork, Work};
use super::mapping::{Part, SharedFile};
use super::unread::Connected;
use crate::contract::{self, Memory};
use crate::types::work::{MessageLimits, Slice, WorkRequest};
use crate::types::{
    Access, Error, Flags, Opcode, PrivateData, QueuePairConfig, RemoteAddress, Result, RnrRetry,
    State, Status,
};
use rdmalib_ring::{
    HelperEnd, NOWHERE, PosterEnd, Receive, ReceivePoster, Side, hand_off, turn_slot, words_needed,
};

/// Inline data is copied while posting, as all data is here; the limit is that of common cards.
pub(super) const MAX_INLINE_DATA: u32 = 512;

/// Returns the memory of `region`, if that is in `arena`.
#[inline]
fn memory_in<'a, M: Memory<'a, Region>>(
    arena: &Arc<Arena>,
    region: M,
) -> Result<&'a Arc<RegionMemory>> {
    let Some(region) = region.of_provider() else {
        return Err(Error::InvalidArgument("memory region is of another device"));
    };
    if !region.memory().is_in(arena) {
        return Err(Error::InvalidArgument("memory region is of another protection domain"));
    }
    Ok(region.memory())
}

/// Makes the two halves of a queue pair, whose receives lie in `arena`.
pub(super) fn queue_pair(
    arena: &Arc<Arena>,
    engine: &Arc<EngineHandle>,
    send: &CompletionQueue,
    receive: &CompletionQueue,
    config: &QueuePairConfig,
) -> Result<(SendQueue, ReceiveQueue)> {
    let depths = [config.send_depth, config.receive_depth];
    if depths.iter().any(|depth| !(1..=MAX_QUEUE_DEPTH).contains(depth)) {
        return Err(Error::InvalidArgument("queue depths are from 1 to 16384"));
    }
    if config.max_inline_data > MAX_INLINE_DATA {
        return Err(Error::InvalidArgument("max_inline_data is larger than the device's limit"));
    }
    let ring_depth = config.receive_depth.next_power_of_two();
    let (ring_offset, ring) = arena.allocate(8 * words_needed(ring_depth))?;
    let core = Core::new(
        send.members(),
        receive.members(),
        config,
        arena.map(),
        (ring_offset, ring.clone()),
        engine.clone(),
    )?;
    let (poster, helper) = hand_off(None);
    let backlog = Arc::new(Backlog {
        core: core.clone(),
        rnr_retry: config.rnr_retry,
        rnr_timer: config.rnr_timer.max(Duration::from_micros(1)),
        queue: Mutex::new(Waiting { helper, works: VecDeque::new(), tries: 0 }),
    });
    let receive = ReceiveQueue {
        poster: ReceivePoster::new(ring, ring_depth),
        core: core.clone(),
        arena: arena.clone(),
    };
    let send = SendQueue {
        limits: MessageLimits { inline: config.max_inline_data as usize, bytes: MAX_BYTES },
        arena: arena.clone(),
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

    /// Whether a request that found no receive `tries` times has to fail.
    fn exhausted(&self, tries: u8) -> bool {
        matches!(self.rnr_retry, RnrRetry::Times(retries) if tries > retries)
    }
}

impl Late for Backlog {
    fn first_try_after(&self) -> Duration {
        self.rnr_timer
    }

    /// When nothing waits any more, the poster has the link again.
    fn try_again(&self, now: Instant) -> Option<Instant> {
        let mut queue = self.queue();
        let Waiting { helper, works, tries } = &mut *queue;
        while let Some(work) = works.front() {
            let carried_out = helper.with(|link| {
                let link = link.as_mut().expect("only a connected queue pair has a backlog");
                link.carry_out(&self.core, &work.as_posted())
            });
            match carried_out {
                Some(Outcome::Done) => {}
                Some(Outcome::NotReady) => {
                    *tries = tries.saturating_add(1);
                    if !self.exhausted(*tries) {
                        return Some(now + self.rnr_timer);
                    }
                    no_receive(&self.core, &work.as_posted());
                }
                None => return None, // the poster has it: nothing can be waiting
            }
            works.pop_front();
            *tries = 0;
        }
        helper.give_back();
        None
    }
}

/// Ends `work`, for which the peer has posted no receive in time, and the connection.
fn no_receive(core: &Core, work: &PostedWork<'_>) {
    core.finish(work.request.id, work.index, work.opcode(), Status::RnrRetryExceeded);
    core.fail();
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct SendQueue {
    core: Arc<Core>,
    arena: Arc<Arena>,
    limits: MessageLimits,
    posted: u32,
    link: PosterEnd<Option<Link>>,
    backlog: Arc<Backlog>,
}

impl SendQueue {
    #[cfg(test)]
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The receive ring, and the file of the domain that it is in.
    fn place(&self) -> (&SharedFile, (u64, u32)) {
        (self.arena.file(), self.core.ring())
    }

    /// Connected to the peer at the other end of `link` and `socket`. Poster and poller have the
    /// turn slot before the state becomes `Connected`.
    fn connected(
        &mut self,
        mut link: Link,
        socket: ClosedLater<Connected>,
        side: Side,
    ) -> Result<()> {
        let connector_ring = match side {
            Side::Connector => self.core.inbox(),
            Side::Acceptor => link.ring.memory(),
        };
        let slot = turn_slot(connector_ring.clone(), side);
        link.ring.connect(slot.clone());
        self.core.set_peer(link.memory.file().clone(), slot);
        self.link.with(|state| *state = Some(link)).expect("nothing was posted before");
        self.core.connected(socket)
    }

    /// How the next arrival would go; `None` while requests wait.
    #[cfg(test)]
    pub(super) fn way(&mut self) -> Option<rdmalib_ring::Way> {
        self.link.with(|link| link.as_ref().map(|link| link.ring.way())).flatten()
    }

    /// Carries `work` out on the link, or hands it to the helper.
    #[inline(never)] // takes `work` by value: the hot path then need not have it in memory
    fn carry_out(&mut self, work: PostedWork<'_>) -> Result<()> {
        let work = &work;
        let outcome = self.link.with(|link| match link {
            Some(link) => Ok(link.carry_out(&self.core, work)),
            None if self.core.state() == State::Error => {
                self.core.finish(work.request.id, work.index, work.opcode(), Status::Flushed);
                Ok(Outcome::Done)
            }
            None => Err(Error::InvalidArgument("queue pair is not connected")),
        });
        match outcome.transpose()? {
            Some(Outcome::Done) => {}
            Some(Outcome::NotReady) if self.backlog.exhausted(1) => no_receive(&self.core, work),
            Some(Outcome::NotReady) | None => self.post_late(work),
        }
        Ok(())
    }

    /// The receiver is not ready, or earlier requests wait for it: the helper carries on.
    #[cold]
    fn post_late(&mut self, work: &PostedWork<'_>) {
        let mut queue = self.backlog.queue();
        let first = queue.works.is_empty();
        queue.works.push_back(work.keep());
        if first {
            // The lock is held: the helper has just given back, or never had it.
            self.link.give();
            queue.tries = 1;
            self.core.help(self.backlog.clone());
        }
    }
}

impl contract::SendQueue for SendQueue {
    type Region = Region;
    type RemoteMemory = Part;
    type ConnectRequest = ConnectRequest;

    fn number(&self) -> u32 {
        self.core.number()
    }

    fn state(&self) -> State {
        self.core.state()
    }

    fn peer(&self) -> Option<String> {
        self.core.peer()
    }

    fn connect(
        &mut self,
        to: SocketAddr,
        listener: Option<u32>,
        private_data: &PrivateData,
        timeout: Duration,
    ) -> Result<PrivateData> {
        let (link, socket, answer) = connect_to(self.place(), to, listener, private_data, timeout)?;
        self.connected(link, socket, Side::Connector)?;
        Ok(answer)
    }

    fn accept(&mut self, request: ConnectRequest, private_data: &PrivateData) -> Result<()> {
        let (link, socket) = request.accept(self.place(), private_data)?;
        self.connected(link, socket, Side::Acceptor)
    }

    fn disconnect(&mut self) {
        self.core.fail();
    }

    #[inline]
    fn post<'a, M: Memory<'a, Region>>(
        &mut self,
        request: &WorkRequest<M, &'a [u8]>,
    ) -> Result<()> {
        self.core.sent().check_room(self.posted)?;
        let arena = &self.arena;
        let request = request.check(self.limits, |region| memory_in(arena, region))?;
        let work = Work { index: self.posted, request };
        // The hot path.
        let carried = self.link.with(|link| {
            link.as_mut().is_some_and(|link| link.try_write_in_arrival(&self.core, &work))
        });
        if carried != Some(true) {
            self.carry_out(work)?;
        } else if request.flags.contains(Flags::SIGNALED) {
            self.core.finish(request.id, self.posted, Opcode::Write, Status::Success);
        }
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    fn post_list<'a, M: Memory<'a, Region>>(
        &mut self,
        requests: &[WorkRequest<M, &'a [u8]>],
    ) -> (usize, Result<()>) {
        for (posted, request) in requests.iter().enumerate() {
            if let Err(error) = self.post(request) {
                return (posted, Err(error));
            }
        }
        (requests.len(), Ok(()))
    }

    #[cfg(feature = "faults")]
    fn check_room(&self, ahead: u32) -> Result<()> {
        self.core.sent().check_room(self.posted.wrapping_add(ahead))
    }

    fn map_remote(
        &mut self,
        at: RemoteAddress,
        bytes: usize,
        access: Access,
    ) -> Result<Option<Part>> {
        let map = |link: &mut Option<Link>| match link {
            Some(link) => link.memory.map(at, bytes, access).map(Some),
            None => Err(Error::InvalidArgument("queue pair is not connected")),
        };
        if self.core.state() == State::Error {
            return Err(Error::Disconnected);
        }
        if let Some(mapped) = self.link.with(map) {
            return mapped;
        }
        // Requests wait, and the helper has the link, unless it has just given it back.
        let mapped = self.backlog.queue().helper.with(map);
        mapped
            .or_else(|| self.link.with(map))
            .expect("nobody but the poster gives it to the helper")
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
    poster: ReceivePoster<Part>,
}

impl contract::ReceiveQueue for ReceiveQueue {
    type Region = Region;

    #[inline]
    fn post<'a, M: Memory<'a, Region>>(&mut self, id: u64, buffer: Option<Slice<M>>) -> Result<()> {
        self.core.receives().check_room()?;
        let receive = match buffer {
            None => NOWHERE,
            Some(slice) => {
                let memory = memory_in(&self.arena, slice.region)?;
                if !memory.access().contains(Access::LOCAL_WRITE) {
                    return Err(Error::InvalidArgument("a receive buffer needs LOCAL_WRITE"));
                }
                let bytes = u32::try_from(slice.bytes)
                    .map_err(|_| Error::InvalidArgument("a message has less than 4 GiB"))?;
                let place = memory.offset() + slice.offset as u64;
                Receive { place, key: memory.key(), bytes }
            }
        };
        self.core.note_receive(id);
        self.poster.post(receive);
        Ok(())
    }
}

impl Drop for ReceiveQueue {
    fn drop(&mut self) {
        self.core.half_dropped();
    }
}
