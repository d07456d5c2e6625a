//! Calls from when they are posted until their outcome is taken by the thread or task that asked: a
//! slab of tickets. Pure.
//!
//! ```text
//!   issue ──▶ waiting ──resolve──▶ done ──take──▶ free
//!                └──abandon (nobody asks any more)──resolve──▶ free
//! ```
//! A ticket is not a slot: a slot is free as soon as its reply is there, even if nobody has taken the result yet. So
//! results that nobody asks for never keep others from calling.
//! * The buffers of an abandoned call live here until it is resolved, because its worker may write to them until
//!   then.
//! * A waker runs foreign code, when it is woken and when it is dropped. Wakers leave through return
//!   values and `woken`, and are used without any lock held.

use std::task::Waker;
use std::time::Instant;

use super::buffer::{InputBuffer, OutputBuffer};
use super::outcome::Outcome;

/// Names a call from [`Tickets::issue`] until its outcome is taken or it is abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u32);

#[cfg(test)]
impl Ticket {
    pub fn new(index: u32) -> Self {
        Ticket(index)
    }
}

/// What an asynchronous call owns.
pub type Buffers = (InputBuffer, OutputBuffer);

/// All tickets of one caller.
#[derive(Debug)]
pub struct Tickets<C> {
    entries: Vec<Entry<C>>,
    free: Vec<Ticket>,
    /// How many of those that wait have a waker.
    watched: usize,
    /// How many were ever resolved. It tells whether anything has changed.
    resolved: u64,
}

#[derive(Debug)]
struct Entry<C> {
    stage: TicketStage<C>,
    /// Bytes that fit into its output.
    capacity: u32,
    /// When it runs out of time, once a clock has been read for it.
    deadline: Option<Instant>,
    waker: Option<Waker>,
    /// The buffers of an abandoned call.
    abandoned: Option<Box<Buffers>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum TicketStage<C> {
    Free,
    Waiting,
    Done(Outcome<C>),
}

impl<C: Copy + PartialEq> Tickets<C> {
    /// Makes room for `count` at once without further allocation.
    pub fn with_capacity(count: usize) -> Self {
        Tickets {
            entries: Vec::with_capacity(count),
            free: Vec::with_capacity(count),
            watched: 0,
            resolved: 0,
        }
    }

    /// Issues a ticket for a call whose output holds `capacity` bytes.
    #[inline]
    pub fn issue(&mut self, capacity: u32, deadline: Option<Instant>) -> Ticket {
        let ticket = match self.free.pop() {
            Some(ticket) => ticket,
            None => self.grow(),
        };
        let entry = &mut self.entries[ticket.0 as usize];
        entry.stage = TicketStage::Waiting;
        entry.capacity = capacity;
        entry.deadline = deadline;
        ticket
    }

    /// Returns how many bytes fit into the output of `ticket`.
    #[inline]
    pub fn capacity(&self, ticket: Ticket) -> u32 {
        self.entries[ticket.0 as usize].capacity
    }

    /// Notes that the call of `ticket` has ended with `outcome`.
    #[inline]
    pub fn resolve(&mut self, ticket: Ticket, outcome: Outcome<C>, woken: &mut Vec<Waker>) {
        let entry = &mut self.entries[ticket.0 as usize];
        self.resolved += 1;
        if entry.abandoned.take().is_some() {
            entry.stage = TicketStage::Free;
            self.free.push(ticket);
            return;
        }
        entry.stage = TicketStage::Done(outcome);
        if let Some(waker) = entry.waker.take() {
            self.watched -= 1;
            woken.push(waker); // foreign code: not here
        }
    }

    /// Returns the outcome of `ticket` if it is there. The ticket is then spent.
    #[inline]
    pub fn take(&mut self, ticket: Ticket) -> Option<Outcome<C>> {
        let entry = &mut self.entries[ticket.0 as usize];
        let TicketStage::Done(outcome) = entry.stage else { return None };
        entry.stage = TicketStage::Free;
        self.free.push(ticket);
        Some(outcome)
    }

    /// Has `waker` woken when `ticket`, which waits, is resolved. Returns the waker that it
    /// replaces, to be dropped without a lock.
    pub fn watch(&mut self, ticket: Ticket, waker: Waker) -> Option<Waker> {
        let previous = self.entries[ticket.0 as usize].waker.replace(waker);
        self.watched += usize::from(previous.is_none());
        previous
    }

    /// Frees `ticket`, whose outcome nobody will take, at once or when it is resolved. Returns what is not needed any
    /// more, to be dropped without a lock.
    pub fn abandon(
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

    /// Returns how many of those that wait have a waker: a task sleeps until they are resolved.
    pub fn watched(&self) -> usize {
        self.watched
    }

    /// Returns how many were ever resolved.
    pub fn resolved(&self) -> u64 {
        self.resolved
    }

    /// Gives `deadline` to all that wait and have none yet. Returns the earliest of all.
    pub fn deadlines(&mut self, deadline: Option<Instant>) -> Option<Instant> {
        self.entries
            .iter_mut()
            .filter(|entry| entry.stage == TicketStage::Waiting)
            .filter_map(|entry| {
                entry.deadline = entry.deadline.or(deadline);
                entry.deadline
            })
            .min()
    }

    /// Returns whether `ticket` waits and is out of time.
    pub fn expired(&self, ticket: Ticket, now: Instant) -> bool {
        let entry = &self.entries[ticket.0 as usize];
        entry.stage == TicketStage::Waiting
            && entry.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Returns whether any waits.
    pub fn any_waiting(&self) -> bool {
        self.entries.iter().any(|entry| entry.stage == TicketStage::Waiting)
    }

    /// Returns all that wait.
    pub fn waiting(&self) -> Vec<Ticket> {
        let waits = |(i, entry): (usize, &Entry<C>)| {
            (entry.stage == TicketStage::Waiting).then_some(Ticket(i as u32))
        };
        self.entries.iter().enumerate().filter_map(waits).collect()
    }

    fn grow(&mut self) -> Ticket {
        let index =
            u32::try_from(self.entries.len()).expect("fewer tickets than buffers in memory");
        self.entries.push(Entry {
            stage: TicketStage::Free,
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
    use crate::caller::outcome::Failure;

    struct Nothing;
    impl Wake for Nothing {
        fn wake(self: Arc<Self>) {}
    }

    const DONE: Outcome<()> = Outcome::Bytes(5);

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
        let mut tickets = Tickets::with_capacity(0);
        let mut woken = Vec::new();
        let (watched, other) = (tickets.issue(1, None), tickets.issue(1, None));
        assert!(tickets.watch(watched, Arc::new(Nothing).into()).is_none());
        assert!(tickets.watch(watched, Arc::new(Nothing).into()).is_some());
        assert_eq!(tickets.watched(), 1);
        tickets.resolve(other, DONE, &mut woken);
        assert!(woken.is_empty());
        tickets.resolve(watched, Outcome::Failed(Failure::Disconnected), &mut woken);
        assert_eq!((woken.len(), tickets.watched()), (1, 0));
    }

    #[test]
    fn the_first_reading_of_a_clock_starts_the_time_of_tickets_without_a_deadline() {
        let mut tickets = Tickets::with_capacity(0);
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
