//! What the threads share of a queue pair: the protocol and its carrier, behind one lock.
//!
//! ```text
//!   poster: post, send ──┐
//!   poller: receive, send, take completions ──┤ Mutex<Inner>
//!   helper: the same, while nobody polls ─────┘
//! ```
//! Who serves the socket: the owner while it polls often or sleeps in `wait`, otherwise the helper
//! (`is_watched`). An owner takes it over with its [`TAKEN_OVER`]th poll in a row. The helper takes
//! it back when it has seen no poll for a tick (`engine`).
//!
//! The lock is hardly ever waited for, and nothing is waited for under it. What is taken under it:
//! the engine's state, the lists of completion queues.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use nix::sys::epoll::EpollFlags;

use super::carrier::{Carrier, Ending, Received};
use super::engine::{Attendance, EngineHandle, Served};
use super::members::{Member, Members};
use super::memory::Keys;
use super::protocol::{Protocol, Terms};
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::types::{QueuePairConfig, Result, State, Status};

/// Polls that found nothing after which an acknowledgement travels alone: whoever answers a request
/// does so before, and the acknowledgement travels with the answer.
const NOTHING_GOES_BACK: u32 = 4;
/// Requests in a row that an owner has answered, before it is expected to answer the next one.
const ANSWERS: u32 = 2;
/// Polls after which the owner serves the socket by itself.
const TAKEN_OVER: u32 = 64;
/// Reads of one turn, so that others have theirs.
const READS: u32 = 16;

/// What every thread that deals with a queue pair shares.
pub(super) struct Core {
    number: u32,
    inner: Mutex<Inner>,
    send_completions: Arc<Members<Core>>,
    receive_completions: Arc<Members<Core>>,
    send_depth: u32,
    receive_depth: u32,
    engine: Arc<EngineHandle>,
    /// The owner has polled since the helper last looked.
    is_polled: AtomicBool,
    halves: AtomicU32,
    peer: OnceLock<String>,
}

/// What is behind the lock.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) protocol: Protocol,
    pub(super) carrier: Option<Carrier>,
    /// The helper serves the socket.
    is_watched: bool,
    /// It also waits for room to send.
    waits_for_room: bool,
    /// Polls since the helper began to serve it.
    polls: u32,
    /// A request of the peer has been carried out, and nothing was posted since.
    is_unanswered: bool,
    /// Polls that found nothing since then.
    idle: u32,
    /// Requests in a row after which something was posted at once.
    answers: u32,
    /// When the helper was told to look for a request that waits for too long.
    due: Option<Instant>,
}

/// Short: completion queues and queue pairs refer to each other.
impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Core({})", self.number)
    }
}

impl Core {
    /// Sets places in both completion queues aside and shows up there.
    pub(super) fn new(
        send: &Arc<Members<Core>>,
        receive: &Arc<Members<Core>>,
        config: &QueuePairConfig,
        keys: &Arc<Keys>,
        engine: &Arc<EngineHandle>,
    ) -> Result<Arc<Self>> {
        let (send_depth, receive_depth) = (config.send_depth, config.receive_depth);
        send.reserve(send_depth)?;
        if let Err(error) = receive.reserve(receive_depth) {
            send.unreserve(send_depth);
            return Err(error);
        }
        let number = crate::process::next_number();
        let core = Arc::new(Core {
            number,
            inner: Mutex::new(Inner {
                protocol: Protocol::new(number, keys.clone(), send_depth, receive_depth),
                carrier: None,
                is_watched: false,
                waits_for_room: false,
                polls: 0,
                is_unanswered: false,
                idle: 0,
                answers: 0,
                due: None,
            }),
            send_completions: send.clone(),
            receive_completions: receive.clone(),
            send_depth,
            receive_depth,
            engine: engine.clone(),
            is_polled: AtomicBool::new(false),
            halves: AtomicU32::new(2),
            peer: OnceLock::new(),
        });
        receive.attach(&core);
        if !Arc::ptr_eq(send, receive) {
            send.attach(&core);
        }
        Ok(core)
    }

    #[inline]
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> State {
        self.lock().protocol.state()
    }

    /// Who is at the other end, once it is connected.
    pub(super) fn peer(&self) -> Option<String> {
        self.peer.get().cloned()
    }

    /// Which of its completions `members` shows: of sends, of receives.
    pub(super) fn shows_in(&self, members: &Arc<Members<Core>>) -> (bool, bool) {
        (
            Arc::ptr_eq(&self.send_completions, members),
            Arc::ptr_eq(&self.receive_completions, members),
        )
    }

    /// From `Init` to `Connected`, over `carrier`.
    pub(super) fn connected(
        self: &Arc<Self>,
        carrier: Carrier,
        terms: Terms,
        peer: String,
    ) -> Result<()> {
        let mut inner = self.lock();
        inner.protocol.connected(terms)?;
        let _ = self.peer.set(peer); // it connects once
        let served = Arc::downgrade(self); // first: as what it is
        let watched = self.engine.add(self.number, served, &carrier);
        inner.carrier = Some(carrier);
        inner.is_watched = true;
        if let Err(error) = watched {
            inner.protocol.end(Status::Flushed);
            self.after(&mut inner);
            return Err(error);
        }
        drop(inner);
        self.receive_completions.changed();
        self.send_completions.changed();
        Ok(())
    }

    /// Ends the connection. What has arrived is completed first.
    pub(super) fn disconnect(&self, staging: &mut [u8]) {
        let mut inner = self.lock();
        if inner.protocol.state() == State::Error {
            return;
        }
        self.receive(&mut inner, staging, READS * READS);
        inner.protocol.acknowledge();
        if let Inner { protocol, carrier: Some(carrier), .. } = &mut *inner {
            carrier.send(protocol);
        }
        inner.protocol.end(Status::Flushed);
        self.after(&mut inner);
    }

    /// To be called when a half is dropped; with the second one the queue pair is gone.
    pub(super) fn half_dropped(&self) {
        if self.halves.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        self.disconnect(&mut []);
        self.engine.forget(self.number);
        self.send_completions.detach(self.number);
        self.receive_completions.detach(self.number);
        self.send_completions.unreserve(self.send_depth);
        self.receive_completions.unreserve(self.receive_depth);
    }
}

/// Serving the socket, under the lock.
impl Core {
    /// What the owner does in each poll.
    #[inline]
    pub(super) fn look(&self, inner: &mut Inner, staging: &mut [u8]) {
        if !self.is_polled.load(Ordering::Relaxed) {
            self.is_polled.store(true, Ordering::Relaxed);
        }
        if inner.carrier.is_none() {
            return;
        }
        let came = self.read(inner, staging, 1);
        let mut is_changed = came || inner.waits_for_room;
        if !came && inner.is_unanswered {
            inner.idle += 1;
            if inner.idle >= NOTHING_GOES_BACK {
                (inner.is_unanswered, inner.answers) = (false, 0);
                inner.protocol.acknowledge();
                is_changed = true;
            }
        }
        if inner.is_watched {
            inner.polls += 1;
            if inner.polls >= TAKEN_OVER {
                self.take_over(inner);
            }
        }
        if is_changed || inner.protocol.state() == State::Error {
            self.after(inner);
        }
    }

    /// What the owner does before it sleeps, and when there was something.
    pub(super) fn look_before_wait(&self, inner: &mut Inner, staging: &mut [u8]) {
        self.read(inner, staging, READS);
        self.after(inner);
    }

    /// The owner found nothing and is about to sleep.
    pub(super) fn tell_before_sleep(&self, inner: &mut Inner) {
        if inner.protocol.owes_acknowledgement() {
            (inner.is_unanswered, inner.answers) = (false, 0);
            inner.protocol.acknowledge();
            self.after(inner);
        }
    }

    /// Reads for the owner, who may answer; whether anything came.
    #[inline]
    fn read(&self, inner: &mut Inner, staging: &mut [u8], reads: u32) -> bool {
        let before = inner.protocol.carried_out();
        let came = self.receive(inner, staging, reads);
        if inner.protocol.carried_out() != before {
            (inner.is_unanswered, inner.idle) = (true, 0);
            // An owner that does not poll often may not come back soon, and one that has not
            // answered may not do so now.
            if inner.is_watched || inner.answers < ANSWERS {
                inner.protocol.acknowledge();
            }
        }
        came
    }

    /// Something is posted: acknowledgements travel with it.
    #[inline]
    pub(super) fn note_answer(inner: &mut Inner) {
        if inner.is_unanswered {
            inner.is_unanswered = false;
            inner.answers = (inner.answers + 1).min(ANSWERS);
        }
    }

    /// Takes all that there is, and leaves nothing to be told: what a thread does that is not about
    /// to come back at once.
    pub(super) fn look_before_sleep(&self, inner: &mut Inner, staging: &mut [u8]) {
        self.receive(inner, staging, READS);
        if inner.protocol.owes_acknowledgement() {
            inner.protocol.acknowledge();
        }
        self.after(inner);
    }

    /// What the helper does when there is something.
    fn help(&self, staging: &mut [u8]) {
        let mut inner = self.lock();
        self.look_before_sleep(&mut inner, staging);
    }

    /// Reads up to `reads` times; whether anything came.
    fn receive(&self, inner: &mut Inner, staging: &mut [u8], reads: u32) -> bool {
        let Inner { protocol, carrier: Some(carrier), .. } = inner else { return false };
        let mut came = false;
        if staging.is_empty() {
            return false;
        }
        for _ in 0..reads {
            if !protocol.is_open() {
                if protocol.state() == State::Connected && carrier.discard() {
                    protocol.end(Status::Flushed);
                }
                break;
            }
            match carrier.receive(protocol, staging) {
                Received::Nothing => break,
                Received::Some => came = true,
                Received::All => {
                    came = true;
                    break;
                }
                Received::End(Ending::Closed) => protocol.end(Status::Flushed),
                Received::End(Ending::Silent) => protocol.end(Status::RetryExceeded),
            }
        }
        came
    }

    /// Sends what there is, and tells whom it concerns what is new.
    #[inline]
    pub(super) fn after(&self, inner: &mut Inner) {
        if let Inner { protocol, carrier: Some(carrier), .. } = inner {
            let is_blocked = carrier.send(protocol);
            protocol.end_if_told();
            if protocol.state() == State::Error {
                self.close(inner);
            } else {
                if is_blocked != inner.waits_for_room {
                    self.wait_for_room(inner, is_blocked);
                }
                self.note_deadline(inner);
            }
        }
        let news = inner.protocol.take_news();
        if news.sends {
            self.send_completions.notify(news.urgent);
        }
        if news.receives {
            self.receive_completions.notify(news.urgent);
        }
    }

    /// Gives the socket back; the peer reads what was sent, and then the end.
    #[cold]
    fn close(&self, inner: &mut Inner) {
        let Some(carrier) = inner.carrier.take() else { return };
        self.send_completions.forget(&carrier);
        self.receive_completions.forget(&carrier);
        carrier.shut_down();
        self.engine.linger(self.number, carrier);
    }

    /// The socket takes no more, or does so again.
    #[cold]
    fn wait_for_room(&self, inner: &mut Inner, is_blocked: bool) {
        inner.waits_for_room = is_blocked;
        if inner.is_watched {
            self.set_watched(inner, true);
        } else if is_blocked && self.is_asleep() {
            self.set_watched(inner, true); // the sleeper does not know
        }
    }

    #[inline]
    fn note_deadline(&self, inner: &mut Inner) {
        // One look is noted at a time: later deadlines are found by it.
        if let Some(due) = inner.protocol.deadline()
            && inner.due.is_none_or(|noted| due < noted)
        {
            inner.due = Some(due);
            self.engine.call_at(due, self.number);
        }
    }

    /// Looks for requests of the peer that have waited for too long.
    fn expire(&self, now: Instant) {
        let mut inner = self.lock();
        inner.due = None;
        inner.protocol.expire(now);
        self.after(&mut inner);
    }

    /// A thread sleeps on one of its completion queues.
    pub(super) fn is_asleep(&self) -> bool {
        self.send_completions.is_asleep() || self.receive_completions.is_asleep()
    }

    fn set_watched(&self, inner: &mut Inner, is_watched: bool) {
        let Some(carrier) = &inner.carrier else { return };
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, is_watched);
        flags.set(EpollFlags::EPOLLOUT, is_watched && inner.waits_for_room);
        inner.is_watched = is_watched;
        inner.polls = 0;
        if let Err(error) = self.engine.modify(self.number, carrier, flags) {
            tracing::error!(%error, "a connection cannot be waited for");
        }
    }

    /// The helper serves the socket from now on: the owner may not come soon.
    pub(super) fn leave_to_helper(&self, inner: &mut Inner) {
        inner.polls = 0;
        if !inner.is_watched {
            self.set_watched(inner, true);
        }
    }

    /// The owner serves the socket from now on.
    pub(super) fn take_over(&self, inner: &mut Inner) {
        if inner.is_watched && inner.carrier.is_some() && !inner.waits_for_room {
            self.set_watched(inner, false);
            self.engine.attend(self.number);
        }
    }

    /// The helper's look at a queue pair that its owner serves; whether the owner goes on.
    fn is_attended(&self, staging: &mut [u8]) -> Attendance {
        if self.is_polled.swap(false, Ordering::Relaxed) {
            return Attendance::Polled;
        }
        if self.is_asleep() {
            return Attendance::Asleep;
        }
        let mut inner = self.lock();
        self.leave_to_helper(&mut inner);
        self.look_before_sleep(&mut inner, staging);
        Attendance::Gone
    }
}

impl Member for Core {
    fn number(&self) -> u32 {
        self.number
    }
}

impl Served for Core {
    fn help(&self, staging: &mut [u8]) {
        self.help(staging);
    }

    fn expire(&self, now: Instant) {
        self.expire(now);
    }

    fn is_attended(&self, staging: &mut [u8]) -> Attendance {
        self.is_attended(staging)
    }

    fn is_asleep(&self) -> bool {
        self.is_asleep()
    }
}
