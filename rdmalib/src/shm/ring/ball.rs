//! The ball: one place for an arrival that both ends of a connection write in turn.
//!
//! ```text
//!   connector ──throws: writes an arrival──▶ acceptor ──throws it back──▶ connector …
//! ```
//! A line that one processor writes and another reads comes over to the reader; before the first can write it
//! again it has to fetch it back. With a ring each way, two that answer each other wait for both, each way: four
//! transfers a round trip. In one place that whoever has read it writes next it is two, as for a line that
//! bounces. So an arrival goes by the ball if it is here, and by the ring if not, as when many are under way.
//! * TURN - only the end that has the ball writes it. It has it again when it has taken what the peer threw:
//!   `here` is stored with Release by the poller after that, loaded with Acquire by the poster.
//! * ORDER - an arrival in the ball has its number among all arrivals as its stamp: those before it that went
//!   by the ring are taken first. Of two that are there, the ball's was thrown before the ring's was pushed, or its
//!   number is not up yet; so who finds one in the ring looks at the ball once more. Who does not know the ball
//!   yet takes nothing: the peer may be faster.
//! * SIDE - the highest bit of a stamp says who wrote it, so nobody takes its own throw for an answer, and the
//!   zeroes of fresh memory are no throw of the connector's, who begins.
//! * PATIENCE - who looks while the peer is about to write takes the lines away from it, which costs more than
//!   looking late. So the first look after a throw waits, as long as earlier ones have shown to be right. (64 bytes
//!   there and back, in two lines: 330 to 400 ns without, 250 with it, 210 for one line that bounces.)

use std::hint::spin_loop;
use std::sync::Arc;

use super::Words;
use super::arrival::{self, Arrival, Head, SECOND_LINE};
use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// It has the ball at first, in its own memory.
    Connector,
    Acceptor,
}

impl Side {
    pub(crate) fn other(self) -> Side {
        match self {
            Side::Connector => Side::Acceptor,
            Side::Acceptor => Side::Connector,
        }
    }

    /// SIDE, ORDER
    pub(crate) fn stamp(self, number: u32) -> u32 {
        let side = match self {
            Side::Connector => 1 << 31,
            Side::Acceptor => 0,
        };
        number.wrapping_add(1) & !(1 << 31) | side
    }
}

/// The ball, as poster and poller of one end share it.
#[derive(Debug)]
pub(crate) struct Ball<W> {
    memory: W,
    word: usize,
    side: Side,
    /// TURN
    here: AtomicBool,
}

impl<W: Words> Ball<W> {
    /// That of a new connection, which is the two lines of `memory` from `word` on.
    pub(super) fn new(memory: W, word: usize, side: Side) -> Arc<Self> {
        assert!(word + arrival::WORDS <= memory.words().len());
        Arc::new(Ball { memory, word, side, here: AtomicBool::new(side == Side::Connector) })
    }

    /// Where it is: memory, first word.
    #[inline]
    pub(super) fn place(&self) -> (&W, usize) {
        (&self.memory, self.word)
    }

    #[inline]
    fn entry(&self) -> &[AtomicU64] {
        &self.memory.words()[self.word..self.word + arrival::WORDS]
    }

    /// Whether it can be thrown.
    #[inline]
    pub(super) fn is_here(&self) -> bool {
        self.here.load(Ordering::Acquire) // TURN
    }

    /// Throws it, as arrival number `number` at the peer. For the poster, if it [`is_here`](Self::is_here).
    #[inline]
    pub(super) fn throw(&self, arrival: Arrival, number: u32) {
        self.here.store(false, Ordering::Relaxed); // ours until the next line
        arrival.write(self.entry(), self.side.stamp(number));
    }
}

/// Most pauses before the first look: some 0.35 µs on the processors whose pause is short (11 ns here, an Intel
/// Xeon). Fewer than the peer's answer takes would be too early each time.
const MOST_PAUSES: u32 = 32;
/// Patience is counted in parts of a pause,
const PARTS: u32 = 16;
/// and a look that came too early is worth so many that were right: four of five are, then. Too early costs some
/// 100 ns, a pause too late 11; between two and eight there was no difference to be measured.
const TOO_EARLY: u32 = 4;

/// The poller's hands.
#[derive(Debug)]
pub(super) struct Catcher<W> {
    ball: Arc<Ball<W>>,
    /// Whether the poller may wait here: it has no other queue pair to look at.
    may_pause: bool,
    patience: u32,
    /// Nobody has looked since the last throw.
    first: bool,
    /// Somebody has, and it was too early.
    early: bool,
}

impl<W: Words> Catcher<W> {
    pub(super) fn new(ball: Arc<Ball<W>>) -> Self {
        Catcher { ball, may_pause: false, patience: 0, first: true, early: false }
    }

    pub(super) fn let_pause(&mut self, may_pause: bool) {
        self.may_pause = may_pause;
    }

    /// Whether the peer has thrown it back, as arrival number `number`; `two_lines` if it is likely to be in both.
    #[inline]
    pub(super) fn ready(&mut self, number: u32, two_lines: bool) -> bool {
        if self.ball.here.load(Ordering::Relaxed) {
            return false;
        }
        if self.first {
            self.first = false;
            self.pause();
        }
        if two_lines {
            // Right before the first, so that both come at the same time.
            self.ball.memory.prefetch(self.ball.word + SECOND_LINE);
        }
        let thrown = self.look(number).is_some();
        self.early |= !thrown;
        thrown
    }

    /// PATIENCE
    #[inline]
    fn pause(&self) {
        if self.may_pause {
            (0..self.patience / PARTS).for_each(|_| spin_loop());
        }
    }

    /// Its head, if the peer has thrown it back as arrival number `number`.
    #[inline]
    pub(super) fn look(&self, number: u32) -> Option<Head> {
        if self.ball.here.load(Ordering::Relaxed) {
            return None;
        }
        let head = Head::read(self.ball.entry());
        (head.stamp() == self.ball.side.other().stamp(number)).then_some(head)
    }

    /// The arrival that was thrown, whose head is `head`.
    #[inline]
    pub(super) fn read(&self, head: Head) -> Arrival {
        Arrival::read(self.ball.entry(), head)
    }

    /// Where it is, between the two: memory, first word.
    #[inline]
    pub(super) fn held(&self) -> (&W, usize) {
        debug_assert!(!self.ball.is_here(), "the poster may be writing there");
        self.ball.place()
    }

    /// What was thrown is taken: the ball is here.
    #[inline]
    pub(super) fn caught(&mut self) {
        self.patience = match self.early {
            true => (self.patience + TOO_EARLY).min(MOST_PAUSES * PARTS),
            false => self.patience.saturating_sub(1),
        };
        (self.first, self.early) = (true, false);
        self.ball.here.store(true, Ordering::Release); // TURN
    }
}

#[cfg(test)]
mod tests;
