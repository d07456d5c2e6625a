//! The shared turn slot: one place for an arrival that both ends of a connection write in turn.
//!
//! ```text
//!   connector ──sends: writes an arrival──▶ acceptor ──sends its own──▶ connector …
//! ```
//! A cache line that one processor writes and another reads moves to the reader. Before the first
//! processor can write it again, it has to fetch it back. With a ring each way, two ends that
//! answer each other wait for both moves, each way: four transfers a round trip. In one slot that
//! the last reader writes next it is two. So an arrival goes through the slot if its sender owns
//! the slot, and through the ring otherwise, for example when many arrivals are under way.
//! * Only the end that owns the slot writes it. An end owns it again when it has taken what the
//!   peer sent. The poller stores `owned` with Release after that, the poster loads it with
//!   Acquire.
//! * TAKE ORDER: the sequence number in the slot is the arrival's number among all arrivals, so
//!   arrivals that went through the ring before it are taken first. If the slot and the ring both
//!   hold an arrival, either the slot's was sent first, or its number is not due yet. A poller that
//!   finds an arrival in the ring therefore polls the slot once more. A poller that does not know
//!   the slot yet takes nothing, because the peer may be faster.
//! * The highest bit of a sequence number, the sender bit, names the writer. So no end takes its own
//!   arrival for an answer, and the zeroes of fresh memory are no arrival of the connector, which
//!   owns the slot at first.
//! * A poll while the peer is about to write takes the lines away from the peer, which costs more
//!   than a late poll. So the first poll after a send waits for the first-poll delay: as long as
//!   earlier polls have shown to be right.

use std::hint::spin_loop;
use std::sync::Arc;

use crate::arrival::{self, Arrival, Head, SECOND_LINE};
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::words::Words;

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that connected. The slot lies in its memory, and it owns the slot at first.
    Connector,
    /// The end that accepted.
    Acceptor,
}

impl Side {
    /// Returns the peer's side.
    #[inline]
    pub fn other(self) -> Side {
        match self {
            Side::Connector => Side::Acceptor,
            Side::Acceptor => Side::Connector,
        }
    }

    /// Returns the sequence number that this side writes for arrival `number` (TAKE ORDER), with the
    /// sender bit.
    #[inline]
    pub fn sequence(self, number: u32) -> u32 {
        let side = match self {
            Side::Connector => 1 << 31,
            Side::Acceptor => 0,
        };
        number.wrapping_add(1) & !(1 << 31) | side
    }
}

/// The slot, as poster and poller of one end share it.
#[derive(Debug)]
pub struct TurnSlot<W> {
    memory: W,
    word: usize,
    side: Side,
    /// Whether this end may write it.
    owned: AtomicBool,
}

impl<W: Words> TurnSlot<W> {
    /// That of a new connection: the two lines of `memory` from `word` on.
    pub(crate) fn new(memory: W, word: usize, side: Side) -> Arc<Self> {
        assert!(word + arrival::WORDS <= memory.words().len());
        Arc::new(TurnSlot { memory, word, side, owned: AtomicBool::new(side == Side::Connector) })
    }

    /// Where it is: memory, first word.
    #[inline]
    pub(crate) fn place(&self) -> (&W, usize) {
        (&self.memory, self.word)
    }

    #[inline]
    fn entry(&self) -> &[AtomicU64] {
        &self.memory.words()[self.word..self.word + arrival::WORDS]
    }

    /// Whether this end may write it.
    #[inline]
    pub(crate) fn is_owned(&self) -> bool {
        self.owned.load(Ordering::Acquire) // with `take_ownership`
    }

    /// Sends `arrival`, the peer's number `number`. For the poster, if the slot is owned.
    #[inline]
    pub(crate) fn send(&self, arrival: Arrival, number: u32) {
        // We still own the slot here: the peer takes over only when it sees the sequence number
        // stored below.
        self.owned.store(false, Ordering::Relaxed);
        arrival.write(self.entry(), self.side.sequence(number));
    }
}

/// Most pauses before the first poll: some 0.35 µs on processors with a short pause instruction.
/// With fewer, a poll would come before the peer's answer each time.
const MOST_PAUSES: u32 = 32;
/// The delay is counted in parts of a pause.
const PARTS: u32 = 16;
/// A poll that came too early adds so many parts, one that came in time takes away one: then four
/// of five polls come in time. A poll too early costs about as much as nine pauses.
const TOO_EARLY: u32 = 4;

/// The poller's view of the slot.
#[derive(Debug)]
pub(crate) struct TurnTaker<W> {
    slot: Arc<TurnSlot<W>>,
    /// Whether the poller may wait here: it has no other queue pair to poll.
    may_pause: bool,
    /// The first-poll delay, in parts of a pause.
    delay: u32,
    /// Nobody has polled since the last send.
    first: bool,
    /// A poll since then came too early.
    early: bool,
}

impl<W: Words> TurnTaker<W> {
    pub(crate) fn new(slot: Arc<TurnSlot<W>>) -> Self {
        TurnTaker { slot, may_pause: false, delay: 0, first: true, early: false }
    }

    pub(crate) fn let_pause(&mut self, may_pause: bool) {
        self.may_pause = may_pause;
    }

    /// Whether the peer has sent arrival number `number`. `two_lines` if it is likely to fill both.
    #[inline]
    pub(crate) fn ready(&mut self, number: u32, two_lines: bool) -> bool {
        if self.slot.owned.load(Ordering::Relaxed) {
            return false;
        }
        if self.first {
            self.first = false;
            self.pause();
        }
        if two_lines {
            // Right before the first line, so that both come at the same time.
            self.slot.memory.prefetch(self.slot.word + SECOND_LINE);
        }
        let sent = self.poll(number).is_some();
        self.early |= !sent;
        sent
    }

    /// Waits for the first-poll delay.
    #[inline]
    fn pause(&self) {
        if self.may_pause {
            (0..self.delay / PARTS).for_each(|_| spin_loop());
        }
    }

    /// Returns the head of arrival number `number`, if the peer has sent it.
    #[inline]
    pub(crate) fn poll(&self, number: u32) -> Option<Head> {
        if self.slot.owned.load(Ordering::Relaxed) {
            return None;
        }
        let head = Head::read(self.slot.entry());
        (head.sequence() == self.slot.side.other().sequence(number)).then_some(head)
    }

    /// Reads the arrival that was sent, whose head is `head`.
    #[inline]
    pub(crate) fn read(&self, head: Head) -> Arrival {
        Arrival::read(self.slot.entry(), head)
    }

    /// Where the arrival is between `read` and `take_ownership`: memory, first word.
    #[inline]
    pub(crate) fn place(&self) -> (&W, usize) {
        debug_assert!(!self.slot.is_owned(), "the poster may be writing there");
        self.slot.place()
    }

    /// Takes the ownership of the slot, whose arrival is not read any more.
    #[inline]
    pub(crate) fn take_ownership(&mut self) {
        self.delay = match self.early {
            true => (self.delay + TOO_EARLY).min(MOST_PAUSES * PARTS),
            false => self.delay.saturating_sub(1),
        };
        (self.first, self.early) = (true, false);
        self.slot.owned.store(true, Ordering::Release); // after reading the arrival
    }
}

#[cfg(test)]
mod tests;
