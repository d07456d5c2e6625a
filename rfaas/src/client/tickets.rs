//! Invocations between being posted and being taken by whoever asked: a slab of tickets. Pure.
//!
//! ```text
//!   issue ──▶ waiting ──resolve──▶ done ──take──▶ free
//!                └──abandon (nobody asks any more)──resolve──▶ free
//! ```
//! A ticket is not a slot: a slot is free as soon as its reply is there, though nobody has taken
//! the result yet. So results that are not asked for never keep others from being invoked.
//! * KEPT - the buffers of an abandoned invocation live here until it is resolved: until then its
//!   worker may write to them.
//! * OUTSIDE - wakers run foreign code, when woken and when dropped. They leave through return
//!   values and `woken`, to be used without any lock held.

use std::task::Waker;
use std::time::Instant;

use super::buffer::{Input, Output};
use super::failure::Outcome;

/// Names an invocation from [`Tickets::issue`] until it is taken or abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u32);

#[cfg(test)]
impl Ticket {
    pub(super) fn new(index: u32) -> Self {
        Ticket(index)
    }
}

/// What an asynchronous invocation owns.
pub(super) type Buffers = (Input, Output);

/// All tickets of one executor.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    entries: Vec<Entry>,
    free: Vec<Ticket>,
    /// Waiting ones with a waker.
    watched: usize,
    /// How many were ever resolved: tells whether anything has changed.
    resolved: u64,
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// Bytes that fit into its output.
    capacity: u32,
    /// When it runs out of time, once a clock has been read for it.
    deadline: Option<Instant>,
    waker: Option<Waker>,
    /// KEPT. Of an abandoned one; a blocking invocation has none.
    abandoned: Option<Box<Buffers>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Waiting,
    Done(Outcome),
}

impl Tickets {
    /// Room for `count` at once without further allocation.
    pub(super) fn with_capacity(count: usize) -> Self {
        Tickets {
            entries: Vec::with_capacity(count),
            free: Vec::with_capacity(count),
            ..Tickets::default()
        }
    }

    /// A ticket for an invocation whose output holds `capacity` bytes.
    #[inline]
    pub(super) fn issue(&mut self, capacity: u32, deadline: Option<Instant>) -> Ticket {
        let ticket = match self.free.pop() {
            Some(ticket) => ticket,
            None => self.grow(),
        };
        let entry = &mut self.entries[ticket.0 as usize];
        entry.state = State::Waiting;
        entry.capacity = capacity;
        entry.deadline = deadline;
        ticket
    }

    /// Bytes that fit into the output of `ticket`.
    #[inline]
    pub(super) fn capacity(&self, ticket: Ticket) -> u32 {
        self.entries[ticket.0 as usize].capacity
    }

    /// The invocation has ended with `outcome`.
    #[inline]
    pub(super) fn resolve(&mut self, ticket: Ticket, outcome: Outcome, woken: &mut Vec<Waker>) {
        let entry = &mut self.entries[ticket.0 as usize];
        self.resolved += 1;
        if entry.abandoned.take().is_some() {
            entry.state = State::Free;
            self.free.push(ticket);
            return;
        }
        entry.state = State::Done(outcome);
        if let Some(waker) = entry.waker.take() {
            self.watched -= 1;
            woken.push(waker); // OUTSIDE
        }
    }

    /// The outcome, if it is there; the ticket is then spent.
    #[inline]
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Outcome> {
        let entry = &mut self.entries[ticket.0 as usize];
        let State::Done(outcome) = entry.state else { return None };
        entry.state = State::Free;
        self.free.push(ticket);
        Some(outcome)
    }

    /// Wakes `waker` when `ticket`, which waits, is resolved. Returns the one that it replaces
    /// (OUTSIDE).
    pub(super) fn watch(&mut self, ticket: Ticket, waker: Waker) -> Option<Waker> {
        let previous = self.entries[ticket.0 as usize].waker.replace(waker);
        self.watched += usize::from(previous.is_none());
        previous
    }

    /// Nobody will take the outcome of `ticket`: frees it, at once or when it is resolved. Returns
    /// what is not needed any more (OUTSIDE).
    pub(super) fn abandon(
        &mut self,
        ticket: Ticket,
        buffers: Buffers,
    ) -> (Option<Waker>, Option<Buffers>) {
        if self.take(ticket).is_some() {
            return (None, Some(buffers));
        }
        let entry = &mut self.entries[ticket.0 as usize];
        entry.abandoned = Some(Box::new(buffers));
        let waker = entry.waker.take();
        self.watched -= usize::from(waker.is_some());
        (waker, None)
    }

    /// Waiting ones with a waker: somebody sleeps elsewhere until they are resolved.
    pub(super) fn watched(&self) -> usize {
        self.watched
    }

    /// How many were ever resolved.
    pub(super) fn resolved(&self) -> u64 {
        self.resolved
    }

    /// Gives `deadline` to all waiting ones that have none yet; returns the earliest of all.
    pub(super) fn deadlines(&mut self, deadline: Option<Instant>) -> Option<Instant> {
        self.entries
            .iter_mut()
            .filter(|entry| entry.state == State::Waiting)
            .filter_map(|entry| {
                entry.deadline = entry.deadline.or(deadline);
                entry.deadline
            })
            .min()
    }

    /// Whether `ticket` waits and is out of time.
    pub(super) fn expired(&self, ticket: Ticket, now: Instant) -> bool {
        let entry = &self.entries[ticket.0 as usize];
        entry.state == State::Waiting && entry.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether any waits.
    pub(super) fn any_waiting(&self) -> bool {
        self.entries.iter().any(|entry| entry.state == State::Waiting)
    }

    /// All that wait.
    pub(super) fn waiting(&self) -> Vec<Ticket> {
        let waits = |(i, entry): (usize, &Entry)| {
            (entry.state == State::Waiting).then_some(Ticket(i as u32))
        };
        self.entries.iter().enumerate().filter_map(waits).collect()
    }

    fn grow(&mut self) -> Ticket {
        let index =
            u32::try_from(self.entries.len()).expect("fewer tickets than buffers in memory");
        self.entries.push(Entry {
            state: State::Free,
            capacity: 0,
            deadline: None,
            waker: None,
            abandoned: None,
        });
        Ticket(index)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;
    use std::time::Duration;

    use super::*;
    use crate::client::failure::Failure;

    struct Nothing;
    impl Wake for Nothing {
        fn wake(self: Arc<Self>) {}
    }

    const DONE: Outcome = Outcome::Bytes(5);

    #[test]
    fn an_outcome_is_taken_once_and_then_the_ticket_is_used_again() {
        let mut tickets = Tickets::with_capacity(1);
        let mut woken = Vec::new();
        let ticket = tickets.issue(64, None);
        assert_eq!(tickets.take(ticket), None);
        tickets.resolve(ticket, DONE, &mut woken);
        assert_eq!(tickets.take(ticket), Some(DONE));
        assert_eq!(tickets.take(ticket), None);
        assert_eq!(tickets.issue(64, None), ticket);
        assert!(woken.is_empty());
    }

    #[test]
    fn a_watched_ticket_hands_out_its_waker_when_resolved_and_only_then() {
        let mut tickets = Tickets::default();
        let mut woken = Vec::new();
        let (watched, other) = (tickets.issue(1, None), tickets.issue(1, None));
        assert!(tickets.watch(watched, Arc::new(Nothing).into()).is_none());
        assert!(tickets.watch(watched, Arc::new(Nothing).into()).is_some());
        assert_eq!(tickets.watched(), 1);
        tickets.resolve(other, DONE, &mut woken);
        assert!(woken.is_empty());
        tickets.resolve(watched, Outcome::Failed(Failure::Gone), &mut woken);
        assert_eq!((woken.len(), tickets.watched()), (1, 0));
    }

    #[test]
    fn the_first_look_at_a_clock_starts_the_time_of_tickets_without_a_deadline() {
        let mut tickets = Tickets::default();
        let now = Instant::now();
        let (early, late) = (now + Duration::from_secs(1), now + Duration::from_secs(2));
        assert_eq!(tickets.deadlines(Some(late)), None);
        let first = tickets.issue(1, Some(early));
        let second = tickets.issue(1, None);
        assert_eq!(tickets.deadlines(Some(late)), Some(early));
        assert!(tickets.expired(first, early) && !tickets.expired(second, early));
        assert!(tickets.expired(second, late));
        tickets.resolve(first, DONE, &mut Vec::new());
        assert!(!tickets.expired(first, late));
        assert_eq!(tickets.deadlines(None), Some(late));
        assert_eq!(tickets.waiting(), [second]);
    }
}
