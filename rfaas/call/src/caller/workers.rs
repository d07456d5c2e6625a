//! The workers of one caller and the calls in flight: posts requests, resolves completions, gives up workers.
//!
//! ```text
//!   worker:     alive ──flushed, failed, protocol broken, out of time──▶ lost (cut, its slots forgotten)
//!   its calls:  out of time, protocol broken ──▶ resolved at once, the reason is known
//!               connection gone ──▶ pending at disconnect ──the owner tells the cause──▶ resolved
//! ```
//! A lost worker never comes back: its thread may be in a function that never returns. Whoever owns the connections
//! replaces all of them before the next call ([`Workers::must_be_replaced`]).
//! * CUT FIRST - a worker is disconnected before any of its calls is resolved as failed, and the output of each gets
//!   another key. So a late reply cannot land in a buffer that its owner uses again.
//! * A connection that ends does not say why. The owner learns it elsewhere, a little later: the calls
//!   that were pending at the disconnect wait for it, for at most [`CAUSE_WAIT`]. What the owner has noted also counts
//!   while connections live, because a process that a function has forked may hold them.
//! * A slot that was found for a call in place is not taken out of the free ones. The application's call in place
//!   borrows its caller, so nobody else posts until that ends.
//!
//! Here is no lock and nothing waits. Elsewhere: one worker's connection (`connection`), polling and sleeping
//! (`driver`), one caller or many (`calls`, `caller`).

use std::fmt::Debug;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use rdmalib::{RemoteAddress, RemoteMapping, Status, WorkCompletion};

use super::call::{Call, Place};
use super::connection::{WorkerConnection, is_write, worker_of};
use super::outcome::{CallError, End, Failure, Outcome};
use super::tickets::{Ticket, Tickets};

/// How long the owner may take to learn the cause after a connection has ended.
const CAUSE_WAIT: Duration = Duration::from_secs(1);

/// What posting a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It has a ticket: its worker has it, or it waits for the cause of lost connections.
    Ticket(Ticket),
    /// It has none: all slots are in use.
    Busy,
}

/// Result of what a caller of these does.
type Result<T, C> = std::result::Result<T, CallError<C>>;

/// What is known of the cause of lost connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KnownCause<C> {
    /// No connection has ended, or not all have and the callee lives.
    None,
    /// The owner is asked for it since then. The calls that were pending at the disconnect wait for it.
    Awaited(Instant),
    /// No call can succeed any more.
    Known(Failure<C>),
}

/// What is to happen next without any completion, as of [`Workers::check_deadlines`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The next deadline of a call.
    pub deadline: Option<Instant>,
    /// Whether the cause of a lost connection is awaited.
    pub cause_awaited: bool,
}

/// What a search for a free slot comes to.
#[derive(Debug)]
pub enum Found {
    /// This one is free. The mapping is of all of its worker's slots, if the provider can.
    Slot(Place, Option<Arc<RemoteMapping>>),
    /// All are in use.
    Busy,
    /// There is no worker any more, and the cause is awaited.
    Lost,
}

/// All workers of one caller, and all its calls.
#[derive(Debug)]
pub struct Workers<C> {
    workers: Vec<WorkerConnection>,
    pub(super) tickets: Tickets<C>,
    /// How many there were at first.
    count: usize,
    alive: usize,
    /// The worker that was used last. While it has nothing else to do, it is the one that certainly spins.
    last: usize,
    limit: Duration,
    cause: KnownCause<C>,
    /// Calls whose connection is gone, until the cause is known.
    pending_at_disconnect: Vec<Ticket>,
}

impl<C: Copy + Debug + PartialEq> Workers<C> {
    /// Takes `workers`, at least one, each of which may take `limit` for a call.
    pub fn new(workers: Vec<WorkerConnection>, limit: Duration) -> Self {
        let slots = workers.iter().map(|worker| usize::from(worker.slot_count())).sum();
        Workers {
            count: workers.len(),
            alive: workers.len(),
            workers,
            tickets: Tickets::with_capacity(slots),
            last: 0,
            limit,
            cause: KnownCause::None,
            pending_at_disconnect: Vec::new(),
        }
    }

    /// Returns when a call that is posted at `now` is out of time.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        now.checked_add(self.limit)
    }

    /// Returns whether all connections are to be replaced before the next call: workers were given
    /// up, the callee has not ended by itself as far as is known, and replacing it costs no call in
    /// flight or is the only way on.
    #[inline]
    pub(super) fn must_be_replaced(&self) -> bool {
        self.alive < self.count && self.is_replaceable()
    }

    #[cold]
    fn is_replaceable(&self) -> bool {
        match self.cause {
            KnownCause::None => !self.tickets.any_waiting(),
            KnownCause::Awaited(_) => false,
            KnownCause::Known(failure) => matches!(failure, Failure::WorkerLost(_)),
        }
    }

    /// Returns whether calls are in flight and the callee has not ended as far as is known.
    pub(super) fn are_at_work(&self) -> bool {
        !matches!(self.cause, KnownCause::Known(_)) && self.tickets.any_waiting()
    }

    /// Posts `call` to the worker with the least to do. An error is about all workers or about the call; if something
    /// goes wrong with one worker, the call goes to the next.
    #[inline]
    pub(super) fn post(
        &mut self,
        call: &Call<'_>,
        deadline: Option<Instant>,
        woken: &mut Vec<Waker>,
    ) -> Result<Posted, C> {
        if let Some(place) = call.place {
            return self.post_in_place(place, call, deadline, woken);
        }
        loop {
            if let KnownCause::Known(failure) = self.cause {
                return Err(CallError::Failed(failure));
            }
            let Some(index) = self.choose() else {
                if self.alive > 0 {
                    return Ok(Posted::Busy);
                }
                // No worker is left and the check above found no known cause, so it is awaited.
                let ticket = self.tickets.issue(call.room, deadline);
                self.pending_at_disconnect.push(ticket);
                return Ok(Posted::Ticket(ticket));
            };
            self.last = index;
            match self.workers[index].post(index, call) {
                Ok(()) => {
                    let ticket = self.tickets.issue(call.room, deadline);
                    self.workers[index].slots.occupy_next(ticket);
                    return Ok(Posted::Ticket(ticket));
                }
                Err(rdmalib::Error::QueueFull { .. }) => return Ok(Posted::Busy),
                Err(rdmalib::Error::Disconnected) => self.lose(index, None, woken),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Chooses the worker that the next call goes to: the last one while it is idle, else the one with the least in
    /// flight. `None`: no slot is free.
    #[inline]
    fn choose(&self) -> Option<usize> {
        match self.workers.get(self.last) {
            Some(worker) if worker.is_alive() && worker.slots.in_flight() == 0 => Some(self.last),
            _ => self.least_loaded(),
        }
    }

    /// Looks at all, beginning at the last one, so that an idle one is not left for another idle one.
    fn least_loaded(&self) -> Option<usize> {
        let count = self.workers.len();
        let mut best: Option<(usize, usize)> = None;
        for index in (self.last..count).chain(0..self.last.min(count)) {
            let worker = &self.workers[index];
            if !worker.is_alive() || worker.slots.next().is_none() {
                continue;
            }
            match worker.slots.in_flight() {
                0 => return Some(index),
                load if best.is_none_or(|(_, least)| load < least) => best = Some((index, load)),
                _ => {}
            }
        }
        best.map(|(index, _)| index)
    }

    /// Applies a completion: a reply resolves its call, a failure loses its worker.
    #[inline]
    pub(super) fn apply(&mut self, completion: &WorkCompletion, woken: &mut Vec<Waker>) {
        let index = worker_of(completion);
        let Some(worker) = self.workers.get_mut(index).filter(|worker| worker.is_alive()) else {
            return; // a flushed request of a worker that was cut
        };
        if completion.status != Status::Success {
            tracing::debug!(worker = index, status = ?completion.status, "connection lost");
            return self.lose(index, None, woken);
        }
        if is_write(completion) {
            return; // the send queue has room again
        }
        match worker.read_reply(completion, &self.tickets) {
            Ok((ticket, outcome)) => self.tickets.resolve(ticket, outcome, woken),
            Err(breach) => {
                tracing::warn!(worker = index, breach, "worker broke the protocol; it is cut off");
                self.lose(index, Some(breach), woken);
            }
        }
    }

    /// Gives up the workers that are out of time `now`, and asks for the cause of lost connections with `ask`. `noted`
    /// is the end that the owner has noted. To be called when nothing was polled.
    pub(super) fn check_deadlines(
        &mut self,
        now: Instant,
        noted: Option<End<C>>,
        ask: impl FnOnce() -> Option<C>,
        woken: &mut Vec<Waker>,
    ) -> Next {
        match (self.cause, noted) {
            // What it has answered before its end may only just be there: to be polled once more.
            (KnownCause::None, Some(End::Process(_))) => {
                self.cause = KnownCause::Awaited(now);
                let deadline = self.tickets.deadlines(self.deadline(now));
                return Next { deadline, cause_awaited: true };
            }
            (_, Some(End::Process(cause) | End::Everything(cause))) => {
                self.close(Failure::Ended(cause), woken);
            }
            (_, None) => {}
        }
        let deadline = self.deadline(now);
        let mut next = self.tickets.deadlines(deadline);
        if next.is_some_and(|next| next <= now) {
            self.cut_late(now, woken);
            next = self.tickets.deadlines(deadline);
        }
        if let KnownCause::Awaited(since) = self.cause {
            let cause = ask();
            let waited_long = now.saturating_duration_since(since) >= CAUSE_WAIT;
            if cause.is_some() || waited_long {
                self.learn(cause, woken);
            }
        }
        Next { deadline: next, cause_awaited: matches!(self.cause, KnownCause::Awaited(_)) }
    }

    /// Cuts all workers and fails what is still in flight, because of `failure` unless another reason is known already.
    pub(super) fn close(&mut self, failure: Failure<C>, woken: &mut Vec<Waker>) {
        let failure = match self.cause {
            KnownCause::Known(earlier) => earlier,
            KnownCause::None | KnownCause::Awaited(_) => failure,
        };
        self.cause = KnownCause::Known(failure);
        self.workers.clear(); // CUT FIRST: dropping the sending half ends the connection
        self.alive = 0;
        self.pending_at_disconnect.clear(); // they are resolved with all others that wait
        for ticket in self.tickets.waiting() {
            self.tickets.resolve(ticket, Outcome::Failed(failure), woken);
        }
    }

    /// Gives up the workers of invocations that are out of time.
    fn cut_late(&mut self, now: Instant, woken: &mut Vec<Waker>) {
        const BEHIND: &str = "an invocation in it ran past its time limit";
        for index in 0..self.workers.len() {
            if !self.workers[index].slots.tickets().any(|t| self.tickets.expired(t, now)) {
                continue;
            }
            tracing::debug!(worker = index, limit = ?self.limit, "time limit passed; worker cut");
            for ticket in self.cut(index) {
                let late = self.tickets.expired(ticket, now);
                let failure =
                    if late { Failure::TimeLimit(self.limit) } else { Failure::WorkerLost(BEHIND) };
                self.tickets.resolve(ticket, Outcome::Failed(failure), woken);
            }
            self.out_of_workers(Failure::WorkerLost(
                "all workers were given up, the last because an invocation ran past its time limit",
            ));
        }
    }

    /// Gives up worker `index`: it broke the protocol, or (`None`) its connection ended.
    #[cold]
    fn lose(&mut self, index: usize, breach: Option<&'static str>, woken: &mut Vec<Waker>) {
        let tickets = self.cut(index);
        if let Some(breach) = breach {
            let failure = Failure::WorkerLost(breach);
            for ticket in tickets {
                self.tickets.resolve(ticket, Outcome::Failed(failure), woken);
            }
            return self.out_of_workers(failure);
        }
        if let KnownCause::Known(failure) = self.cause {
            for ticket in tickets {
                self.tickets.resolve(ticket, Outcome::Failed(failure), woken);
            }
            return;
        }
        self.pending_at_disconnect.extend(tickets);
        // Also if there are none: whoever calls next is told the cause.
        if self.cause == KnownCause::None {
            self.cause = KnownCause::Awaited(Instant::now());
        }
    }

    /// Ends the connection of worker `index`. Returns its calls in flight.
    fn cut(&mut self, index: usize) -> Vec<Ticket> {
        self.alive -= 1;
        self.workers[index].cut()
    }

    /// If no worker is left, calls fail with `failure` from now on, unless a cause is awaited.
    fn out_of_workers(&mut self, failure: Failure<C>) {
        if self.alive == 0 && self.cause == KnownCause::None {
            self.cause = KnownCause::Known(failure);
        }
    }

    /// The cause of the lost connections is known, or the owner has not learned it in time.
    fn learn(&mut self, cause: Option<C>, woken: &mut Vec<Waker>) {
        if let Some(cause) = cause {
            return self.close(Failure::Ended(cause), woken); // it concerns all workers
        }
        self.cause = match self.alive {
            0 => KnownCause::Known(Failure::Disconnected),
            _ => KnownCause::None, // one connection failed, the callee lives: the others go on
        };
        for ticket in std::mem::take(&mut self.pending_at_disconnect) {
            self.tickets.resolve(ticket, Outcome::Failed(Failure::Disconnected), woken);
        }
    }

    /// Finds a free slot of the worker with the least to do. An error is about all workers or about this process; if
    /// something goes wrong with one worker, the next is tried.
    pub(super) fn find(&mut self, woken: &mut Vec<Waker>) -> Result<Found, C> {
        loop {
            if let KnownCause::Known(failure) = self.cause {
                return Err(CallError::Failed(failure));
            }
            let Some(index) = self.choose() else {
                return Ok(if self.alive > 0 { Found::Busy } else { Found::Lost });
            };
            let worker = &mut self.workers[index];
            match worker.map_inputs() {
                Ok(inputs) => {
                    let (slot, _) = worker.slots.next().expect("chosen for its free slot");
                    return Ok(Found::Slot(Place { worker: index, slot }, inputs));
                }
                Err(rdmalib::Error::Disconnected) => self.lose(index, None, woken),
                Err(rdmalib::Error::RemoteAccess) => {
                    self.lose(index, Some("it offered slots that its key does not open"), woken);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns where the input of `place` is in the mapping of its worker's slots.
    pub(super) fn input_offset(&self, place: Place) -> usize {
        self.workers[place.worker].input_offset(place.slot)
    }

    /// Posts `call` to `place`, as [`Workers::post`] does to any slot. Its input is there, and nowhere else.
    #[inline(never)] // one branch is what it costs other calls
    pub(super) fn post_in_place(
        &mut self,
        place: Place,
        call: &Call<'_>,
        deadline: Option<Instant>,
        woken: &mut Vec<Waker>,
    ) -> Result<Posted, C> {
        loop {
            if let KnownCause::Known(failure) = self.cause {
                return Err(CallError::Failed(failure));
            }
            let worker = &mut self.workers[place.worker]; // they stay in their places until the cause is known
            if !worker.is_alive() {
                return self.post_to_lost(call, deadline);
            }
            let sequence = worker.slots.sequence(place.slot);
            match worker.post_to(place.worker, (place.slot, sequence), call) {
                Ok(()) => {
                    let ticket = self.tickets.issue(call.room, deadline);
                    self.workers[place.worker].slots.occupy(place.slot, ticket);
                    return Ok(Posted::Ticket(ticket));
                }
                Err(rdmalib::Error::QueueFull { .. }) => return Ok(Posted::Busy),
                Err(rdmalib::Error::Disconnected) => self.lose(place.worker, None, woken),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns a ticket for the cause: the worker of `call` is gone, and the call is not posted.
    #[cold]
    fn post_to_lost(&mut self, call: &Call<'_>, deadline: Option<Instant>) -> Result<Posted, C> {
        if self.cause == KnownCause::None {
            let reason = "it was given up before this call, whose input it held";
            return Err(CallError::Failed(Failure::WorkerLost(reason)));
        }
        let ticket = self.tickets.issue(call.room, deadline);
        self.pending_at_disconnect.push(ticket); // until the cause is known
        Ok(Posted::Ticket(ticket))
    }

    /// Maps the output of `place`, `bytes` bytes that its worker says have stayed at `at`.
    pub(super) fn output(
        &mut self,
        place: Place,
        at: RemoteAddress,
        bytes: usize,
    ) -> rdmalib::Result<Arc<RemoteMapping>> {
        match self.workers.get_mut(place.worker) {
            Some(worker) if worker.is_alive() => worker.map_output(place.slot, at, bytes),
            _ => Err(rdmalib::Error::Disconnected),
        }
    }

    /// Cuts a worker that has answered something that cannot be.
    #[cold]
    pub(super) fn breach(&mut self, worker: usize, breach: &'static str, woken: &mut Vec<Waker>) {
        if self.workers.get(worker).is_some_and(|worker| worker.is_alive()) {
            tracing::warn!(worker, breach, "worker broke the protocol; it is cut off");
            self.lose(worker, Some(breach), woken);
        }
    }

    /// Notes that the connection of `worker` has ended.
    #[cold]
    pub(super) fn gone(&mut self, worker: usize, woken: &mut Vec<Waker>) {
        if self.workers.get(worker).is_some_and(|worker| worker.is_alive()) {
            self.lose(worker, None, woken);
        }
    }
}
