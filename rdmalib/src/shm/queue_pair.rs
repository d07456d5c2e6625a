//! Queue pairs of the embedded device: who owns what.
//!
//! ```text
//!   SendQueue (poster) ──carries out at once──▶ peer's memory and ring        `one_sided`
//!        │ receiver not ready: hand-off         ▲
//!        └──▶ Backlog ──helper thread, again and again─┘                       `engine`
//!   ReceiveQueue (poster) ──▶ own ring ◀── peer
//!   Core: what poster, poller, helper share ──▶ Source (poller): arrivals and finished sends
//! ```
//! Posting never waits: a request whose receiver is not ready goes to the backlog, and so does every
//! later one, in order, until the helper has carried them all out and hands the link back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::arena::Arena;
use super::carried::Small;
use super::completion::CompletionQueue;
use super::core::Core;
use super::mapping::Part;
use super::one_sided::{Link, Outcome, OwnedWork, Work};
use super::{Domain, MAX_QUEUE_DEPTH};
use crate::completion::{Opcode, Status};
use crate::error::{Error, Result};
use crate::memory::{Access, RegionInner, RemoteAddress, RemoteMapping, Slice};
use crate::queue_pair::{Flags, QueuePairConfig, RnrRetry, State, WorkRequest};
use rdmalib_ring::{
    HelperEnd, NOWHERE, PosterEnd, Receive, ReceivePoster, Side, hand_off, turn_slot, words_needed,
};

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
    let ring_depth = config.receive_depth.next_power_of_two();
    let (ring_offset, ring) = domain.arena.allocate(8 * words_needed(ring_depth))?;
    let core = Core::new(
        send.shared(),
        receive.shared(),
        config,
        domain.arena.map(),
        (ring_offset, ring.clone()),
        domain.device.engine.clone(),
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
        self.core.number()
    }

    pub(crate) fn state(&self) -> State {
        self.core.state()
    }

    pub(crate) fn disconnect(&mut self) {
        self.core.fail();
    }

    #[cfg(feature = "faults")]
    pub(crate) fn check_room(&self, ahead: u32) -> Result<()> {
        self.core.check_send_room(self.posted.wrapping_add(ahead))
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(crate) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Gives the poster its link to the peer, and poster and poller the turn slot, before the state
    /// becomes `Connected`.
    pub(crate) fn set_link(&mut self, mut link: Link, side: Side) {
        let connector_ring = match side {
            Side::Connector => self.core.inbox(),
            Side::Acceptor => link.ring.memory(),
        };
        let slot = turn_slot(connector_ring.clone(), side);
        link.ring.connect(slot.clone());
        self.core.set_peer(link.memory.file().clone(), slot);
        self.link.with(|state| *state = Some(link)).expect("nothing was posted before");
    }

    /// How the next arrival would go; `None` while requests wait.
    #[cfg(test)]
    pub(super) fn way(&mut self) -> Option<rdmalib_ring::Way> {
        self.link.with(|link| link.as_ref().map(|link| link.ring.way())).flatten()
    }

    #[inline]
    pub(crate) fn post(&mut self, request: &WorkRequest<'_>) -> Result<()> {
        self.core.check_send_room(self.posted)?;
        if !self.post_small(request) {
            self.post_any(request)?;
        }
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// The hot path. `false`: nothing has happened, the request is for [`post_any`](Self::post_any).
    #[inline]
    fn post_small(&mut self, request: &WorkRequest<'_>) -> bool {
        let Some(small) = Small::new(request, &self.arena, self.max_inline_data) else {
            return false;
        };
        let carried = self.link.with(|link| {
            link.as_mut().is_some_and(|link| link.carry(&self.core, &small, request.flags))
        });
        if carried != Some(true) {
            return false;
        }
        if request.flags.contains(Flags::SIGNALED) {
            self.core.finish(request.id, self.posted, Opcode::Write, Status::Success);
        }
        true
    }

    fn post_any(&mut self, request: &WorkRequest<'_>) -> Result<()> {
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
        Ok(())
    }

    /// [`crate::SendQueue::map_remote`].
    pub(crate) fn map_remote(
        &mut self,
        at: RemoteAddress,
        bytes: usize,
        access: Access,
    ) -> Result<RemoteMapping> {
        let map = |link: &mut Option<Link>| match link {
            Some(link) => link.memory.map(at, bytes, access),
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
            self.core.help(self.backlog.clone());
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
    poster: ReceivePoster<Part>,
}

impl ReceiveQueue {
    #[inline]
    pub(crate) fn post(&mut self, id: u64, buffer: Option<Slice<'_>>) -> Result<()> {
        self.core.check_receive_room()?;
        let receive = match buffer {
            None => NOWHERE,
            Some(slice) => {
                let RegionInner::Shm(region) = slice.region.inner() else {
                    return Err(Error::InvalidArgument("buffer is of another device"));
                };
                if !region.memory().is_in(&self.arena) {
                    return Err(Error::InvalidArgument("buffer is of another protection domain"));
                }
                if !region.memory().access().contains(Access::LOCAL_WRITE) {
                    return Err(Error::InvalidArgument("a receive buffer needs LOCAL_WRITE"));
                }
                let bytes = u32::try_from(slice.bytes)
                    .map_err(|_| Error::InvalidArgument("a message has less than 4 GiB"))?;
                let at = region.remote().offset(slice.offset as u64);
                Receive { place: at.addr, key: region.memory().key(), bytes }
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
