//! The workers of one executor and the invocations in flight: posts requests, resolves completions,
//! gives up workers.
//!
//! ```text
//!   worker:   alive ──flushed, failed, protocol broken, out of time──▶ lost (cut, slots forgotten)
//!   its invocations:  out of time, protocol broken ──▶ resolved at once, the reason is known
//!                     connection gone ──▶ orphans ──news from the executor manager──▶ resolved
//! ```
//! A lost worker never comes back: its thread may be in a function that never returns. The executor
//! that replaces all of them is asked for before the next invocation ([`Workers::due`]).
//! * CUT - a worker is disconnected before any of its invocations is resolved as failed, and the
//!   output of each gets another key: a late reply cannot land in a buffer that its owner uses
//!   again.
//! * ROOM - a worker has a posted receive for each slot and more to spare than replies are looked at before
//!   theirs are posted again (`drive`); a request in each slot and as many whose completion is still to come fit
//!   the send queue.
//! * VERDICT - a connection that ends says nothing of the reason. The executor manager does, on
//!   another connection, a little later: orphans wait for it, for at most [`VERDICT_WAIT`]. Its word also
//!   counts alone, while connections live: a process that a function has forked may hold them.
//! * HOSTILE - whatever a worker answers is checked; one that breaks the protocol is cut.
//!
//! Here is no lock and nothing waits. Elsewhere: writing a request (`post`), calls in place (`in_place`), polling
//! and sleeping, one caller or many (`drive`).

use std::task::Waker;
use std::time::{Duration, Instant};

use rdmalib::{Opcode, RemoteAddress, SendQueue, Status, WorkCompletion};

use super::failure::{Failure, Outcome};
use super::slots::Slots;
use super::tickets::{Ticket, Tickets};
use crate::error::Result;
use rfaas_protocol::invocation::{ReplyImmediate, ReplyStatus};

mod call;
mod in_place;
mod post;

pub(super) use call::Call;
pub(super) use in_place::{Found, Place};

/// How long news of the reason may take after a connection has ended.
const VERDICT_WAIT: Duration = Duration::from_secs(1);
/// Receives beyond one a slot: a worker that answers twice is to be found out, not to be blocked.
const SPARE_RECEIVES: u32 = 31;
/// Bit of a request's id: it is a receive, and the rest is the worker. Without it, a write.
const RECEIVE: u64 = 1 << 32;

/// How deep the queues of a worker's connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Depths {
    pub(super) send: u32,
    pub(super) receive: u32,
}

impl Depths {
    /// ROOM. For a worker with `slots` slots, on a device with queues of at most `limit` entries.
    /// Where a send queue is too short for it, some of its invocations wait for others.
    pub(super) fn new(slots: u16, limit: u32) -> Self {
        let slots = u32::from(slots);
        Depths { send: (2 * slots).max(32).min(limit), receive: slots + SPARE_RECEIVES }
    }

    /// Every which write completes: often enough that the send queue never fills with writes whose
    /// completion nobody sees.
    fn signal_every(self) -> u32 {
        (self.send / 4).max(1)
    }

    /// Entries that one worker needs in a completion queue.
    pub(super) fn completions(self) -> u32 {
        self.send + self.receive
    }
}

/// Where a worker's slots are, as it said when it connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotArea {
    pub(super) first: RemoteAddress,
    pub(super) stride: u32,
    pub(super) count: u16,
}

/// The sending half of a worker's connection and what is in flight on it.
#[derive(Debug)]
pub(super) struct Worker {
    send: SendQueue,
    area: SlotArea,
    slots: Slots,
    alive: bool,
    /// Writes since the last that completes.
    unsignalled: u32,
    signal_every: u32,
    max_inline: usize,
    mapped: in_place::Mapped,
}

impl Worker {
    /// A connected worker, its receives posted.
    pub(super) fn new(send: SendQueue, area: SlotArea, depths: Depths, max_inline: u32) -> Self {
        Worker {
            send,
            area,
            slots: Slots::new(area.count),
            alive: true,
            unsignalled: 0,
            signal_every: depths.signal_every(),
            max_inline: (max_inline as usize).min(post::MAX_INLINE),
            mapped: in_place::Mapped::default(),
        }
    }
}

/// The worker whose reply `completion` is: it has used up a receive (ROOM).
#[inline]
pub(super) fn receiver(completion: &WorkCompletion) -> Option<usize> {
    let replied = completion.id & RECEIVE != 0 && completion.status == Status::Success;
    replied.then_some(completion.id as u32 as usize) // the low half
}

/// Id of the receives of `worker`.
pub(super) fn receive_id(worker: usize) -> u64 {
    RECEIVE | worker as u64
}

/// What is known about the reason for lost connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing is asked.
    None,
    /// Asked for since then; orphans wait for it.
    Awaited(Instant),
    /// It is over with this executor.
    Final(Failure),
}

/// What [`Workers::look`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Looked {
    /// The next deadline of an invocation.
    pub(super) until: Option<Instant>,
    /// News of a lost connection is awaited.
    pub(super) news: bool,
}

/// All workers of one executor, and all its invocations.
#[derive(Debug)]
pub(super) struct Workers {
    workers: Vec<Worker>,
    pub(super) tickets: Tickets,
    /// At first.
    count: usize,
    alive: usize,
    /// Used last: while it has nothing else to do, it is the one that certainly spins.
    last: usize,
    limit: Duration,
    verdict: Verdict,
    /// Invocations whose connection is gone, until the verdict.
    orphans: Vec<Ticket>,
}

impl Workers {
    /// `workers`, at least one, that may take `limit` for an invocation.
    pub(super) fn new(workers: Vec<Worker>, limit: Duration) -> Self {
        let slots = workers.iter().map(|worker| usize::from(worker.area.count)).sum();
        Workers {
            count: workers.len(),
            alive: workers.len(),
            workers,
            tickets: Tickets::with_capacity(slots),
            last: 0,
            limit,
            verdict: Verdict::None,
            orphans: Vec::new(),
        }
    }

    /// When an invocation that is posted at `now` is out of time.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        now.checked_add(self.limit)
    }

    /// Whether a new executor is due: workers were given up, as far as is known the executor has not
    /// ended by itself, and it is the last chance or costs no invocation that is in flight.
    #[inline]
    pub(super) fn due(&self) -> bool {
        self.alive < self.count && self.is_replaceable()
    }

    #[cold]
    fn is_replaceable(&self) -> bool {
        match self.verdict {
            Verdict::None => !self.tickets.any_waiting(),
            Verdict::Awaited(_) => false,
            Verdict::Final(failure) => matches!(failure, Failure::WorkerLost(_)),
        }
    }

    /// Whether invocations are in flight on an executor that has not ended as far as is known.
    pub(super) fn at_work(&self) -> bool {
        !matches!(self.verdict, Verdict::Final(_)) && self.tickets.any_waiting()
    }

    /// Posts `call` to the worker with the least to do. `None`: all slots are in use. An error is
    /// about the executor as a whole or about the call; what goes wrong with one worker goes to the
    /// next.
    #[inline]
    pub(super) fn post(
        &mut self,
        call: &Call<'_>,
        deadline: Option<Instant>,
        woken: &mut Vec<Waker>,
    ) -> Result<Option<Ticket>> {
        if let Some(place) = call.place {
            return self.post_in_place(place, call, deadline, woken);
        }
        loop {
            if let Verdict::Final(failure) = self.verdict {
                return Err(failure.into_error(self.limit));
            }
            let Some(index) = self.choose() else {
                if self.alive > 0 {
                    return Ok(None);
                }
                let ticket = self.tickets.issue(call.room, deadline);
                self.orphans.push(ticket); // VERDICT. It is awaited, else it would be final.
                return Ok(Some(ticket));
            };
            self.last = index;
            match self.workers[index].post(index, call) {
                Ok(()) => {
                    let ticket = self.tickets.issue(call.room, deadline);
                    self.workers[index].slots.occupy_next(ticket);
                    return Ok(Some(ticket));
                }
                Err(rdmalib::Error::QueueFull { .. }) => return Ok(None),
                Err(rdmalib::Error::Disconnected) => self.lose(index, None, woken),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The worker that the next invocation goes to: the last one while it is idle, else the one
    /// with the least in flight. `None`: no slot is free.
    #[inline]
    fn choose(&self) -> Option<usize> {
        match self.workers.get(self.last) {
            Some(worker) if worker.alive && worker.slots.in_flight() == 0 => Some(self.last),
            _ => self.least_loaded(),
        }
    }

    /// Beginning at the last one, so that an idle one is not left for another idle one.
    fn least_loaded(&self) -> Option<usize> {
        let count = self.workers.len();
        let mut best: Option<(usize, usize)> = None;
        for index in (self.last..count).chain(0..self.last.min(count)) {
            let worker = &self.workers[index];
            if !worker.alive || worker.slots.next().is_none() {
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

    /// Takes a completion: a reply resolves its invocation, a failure loses its worker.
    #[inline]
    pub(super) fn apply(&mut self, completion: &WorkCompletion, woken: &mut Vec<Waker>) {
        let index = completion.id as u32 as usize; // the low half; the bit above it is the kind
        let Some(worker) = self.workers.get_mut(index).filter(|worker| worker.alive) else {
            return; // of a worker that was cut: its flushed requests
        };
        if completion.status != Status::Success {
            tracing::debug!(worker = index, status = ?completion.status, "connection lost");
            return self.lose(index, None, woken);
        }
        if completion.id & RECEIVE == 0 {
            return; // a write that was told to complete; the send queue has room again
        }
        match worker.read_reply(completion, &self.tickets) {
            Ok((ticket, outcome)) => self.tickets.resolve(ticket, outcome, woken),
            Err(breach) => {
                tracing::warn!(worker = index, breach, "worker broke the protocol; it is cut off");
                self.lose(index, Some(breach), woken);
            }
        }
    }

    /// It is `now`: gives up workers that are out of time, and reads `news` of lost connections. `over`: why it
    /// is over with lease or executor, as far as was heard without asking. To be called when nothing was polled.
    pub(super) fn look(
        &mut self,
        now: Instant,
        over: Option<Failure>,
        news: impl FnOnce() -> Option<Failure>,
        woken: &mut Vec<Waker>,
    ) -> Looked {
        match (self.verdict, over) {
            // What it has answered before its end may only just be there: to be polled once more.
            (Verdict::None, Some(Failure::Exited(_))) => {
                self.verdict = Verdict::Awaited(now);
                return Looked { until: self.tickets.deadlines(self.deadline(now)), news: true };
            }
            // No result is waited for, even if connections live: it may be that nothing reaches the node.
            (_, Some(failure)) => self.close(failure, woken),
            (_, None) => {}
        }
        let deadline = self.deadline(now);
        let mut until = self.tickets.deadlines(deadline);
        if until.is_some_and(|until| until <= now) {
            self.cut_late(now, woken);
            until = self.tickets.deadlines(deadline);
        }
        if let Verdict::Awaited(since) = self.verdict {
            let news = news();
            let over = now.saturating_duration_since(since) >= VERDICT_WAIT;
            if news.is_some() || over {
                self.judge(news, woken);
            }
        }
        Looked { until, news: matches!(self.verdict, Verdict::Awaited(_)) }
    }

    /// Cuts all workers and fails what is still in flight, because of `failure` unless another
    /// reason is known already.
    pub(super) fn close(&mut self, failure: Failure, woken: &mut Vec<Waker>) {
        let failure = match self.verdict {
            Verdict::Final(earlier) => earlier,
            Verdict::None | Verdict::Awaited(_) => failure,
        };
        self.verdict = Verdict::Final(failure);
        self.workers.clear(); // CUT: dropping the sending half ends the connection
        self.alive = 0;
        self.orphans.clear(); // they wait, as all others do that are resolved here
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
                let failure = if late { Failure::TimeLimit } else { Failure::WorkerLost(BEHIND) };
                self.tickets.resolve(ticket, Outcome::Failed(failure), woken);
            }
            self.out_of_workers(Failure::WorkerLost(
                "all workers were given up, the last because an invocation ran past its time limit",
            ));
        }
    }

    /// Worker `index` is lost: it broke the protocol, or (`None`) its connection ended.
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
        if let Verdict::Final(failure) = self.verdict {
            for ticket in tickets {
                self.tickets.resolve(ticket, Outcome::Failed(failure), woken);
            }
            return;
        }
        self.orphans.extend(tickets);
        // Also without orphans: whoever invokes next is told the reason.
        if self.verdict == Verdict::None {
            self.verdict = Verdict::Awaited(Instant::now());
        }
    }

    /// CUT. Ends the connection of worker `index`; returns its invocations in flight.
    fn cut(&mut self, index: usize) -> Vec<Ticket> {
        let worker = &mut self.workers[index];
        worker.send.disconnect();
        worker.alive = false;
        worker.mapped = in_place::Mapped::default();
        self.alive -= 1;
        worker.slots.drain()
    }

    /// If no worker is left, invocations fail with `failure` from now on, unless news is awaited.
    fn out_of_workers(&mut self, failure: Failure) {
        if self.alive == 0 && self.verdict == Verdict::None {
            self.verdict = Verdict::Final(failure);
        }
    }

    /// The reason for the lost connections is known, or nobody has told it in time.
    fn judge(&mut self, news: Option<Failure>, woken: &mut Vec<Waker>) {
        if let Some(failure) = news {
            return self.close(failure, woken); // of the executor as a whole
        }
        self.verdict = match self.alive {
            0 => Verdict::Final(Failure::Gone),
            _ => Verdict::None, // one connection failed, the executor lives: the others go on
        };
        for ticket in std::mem::take(&mut self.orphans) {
            self.tickets.resolve(ticket, Outcome::Failed(Failure::Gone), woken);
        }
    }
}

impl Worker {
    /// HOSTILE. What a receive completion answers, or what is wrong with it.
    #[inline]
    fn read_reply(
        &mut self,
        completion: &WorkCompletion,
        tickets: &Tickets,
    ) -> Result<(Ticket, Outcome), &'static str> {
        let (Opcode::ReceiveWithImmediate, Some(immediate)) =
            (completion.opcode, completion.immediate)
        else {
            return Err("it sent something that is not a reply");
        };
        let reply = ReplyImmediate::from_wire(immediate)
            .map_err(|_| "it answered with a status that does not exist")?;
        let ticket = self.slots.answered(reply)?;
        let outcome = match reply.status {
            // Then it did not go where it should, for there it does not fit.
            ReplyStatus::Ok if completion.bytes > tickets.capacity(ticket) => {
                return Err("it answered with more bytes than the output holds");
            }
            ReplyStatus::Ok => Outcome::Bytes(completion.bytes),
            ReplyStatus::OutputTooLarge => Outcome::OutputTooLarge,
            ReplyStatus::UnknownFunction => Outcome::UnknownFunction,
            ReplyStatus::Malformed => Outcome::Malformed,
        };
        self.slots.free(reply);
        Ok((ticket, outcome))
    }
}
