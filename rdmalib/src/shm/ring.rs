//! The wire of the embedded device: one queue pair's incoming half, in the receiver's memory.
//!
//! ```text
//!   word 0        POSTED    receives posted so far           owner ──▶ peer
//!   word 16       ARMED     who is to be woken               owner ──▶ peer, cleared by the peer
//!   word 17       CLOSED    nothing may be written any more  owner ──▶ peer
//!   word 18       AWAKE     nobody is to be woken at all     owner ──▶ peer
//!   word 32       the ball  an arrival                       owner ◀─▶ peer, if the owner is the connector
//!   from word 48  receives  [place, key|bytes] × depth       owner ──▶ peer
//!   then          arrivals  one after the other, × depth     peer ──▶ owner
//! ```
//! Arrival `i` belongs to receive `i`; the peer may push it once that is posted, the owner posts receive
//! `i + depth` only after it took arrival `i`. So neither side ever waits here, and no index of one side is
//! read by the other on an empty poll. An arrival goes by the ball when it is the peer's turn to throw it,
//! and else into the next place of the ring; its stamp there is the number of those in the ring.
//!
//! The two ends may live in different processes and do not trust each other: everything shared is a
//! 64-bit atomic, indices are masked, each side keeps its own counters and reads a word once.
//! * POST - `POSTED` store(Release) in `post`, load(Acquire) in `may_push`: receive before count.
//! * WAKE - `arm` stores, fences, then looks at the arrivals; `push` stores an arrival, fences, then
//!   looks at `ARMED`: at least one of the two sees the other (both fences are SeqCst).
//! * AWAKE - for an owner that spins, `push` does without the fence of WAKE, which waits until the arrival
//!   has left the processor. An owner that sleeps after all takes back `AWAKE` before, and its next sleep is
//!   a nap: so long that every arrival pushed by who had not seen that is there at its end (`completion`).
//!
//! Elsewhere: the words of an arrival (`arrival`), whose turn it is to throw (`ball`), the bytes of a message
//! (`one_sided`, `carried`), ringing and sleeping (`completion`).

mod arrival;
mod ball;

use std::sync::Arc;

#[cfg(test)]
pub(crate) use self::arrival::CARRIED;
pub(crate) use self::arrival::{Arrival, FIRST_LINE, MAX_CARRIED, PAYLOAD};
use self::arrival::{Head, SECOND_LINE};
use self::ball::Catcher;
pub(crate) use self::ball::{Ball, Side};
use crate::sync::{AtomicU64, Ordering, compiler_fence, fence};

const POSTED: usize = 0;
/// Two cache lines on: the adjacent-line prefetcher would make them one.
const ARMED: usize = 16;
/// On the line of ARMED, which a sender reads anyway and which seldom changes.
const CLOSED: usize = 17;
const AWAKE: usize = 18;
pub(super) const BALL: usize = 32;
const RECEIVES: usize = BALL + arrival::WORDS;
const WORDS_PER_RECEIVE: usize = 2;

/// Memory that a ring lies in: at least [`words_needed`] words, zero at first.
pub(crate) trait Words {
    fn words(&self) -> &[AtomicU64];

    /// Has the line of `word` fetched while we go on; only a hint.
    #[inline]
    fn prefetch(&self, _word: usize) {}
}

impl Words for std::sync::Arc<Vec<AtomicU64>> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

/// Size of a ring for `depth` (a power of two) receives.
pub(crate) const fn words_needed(depth: u32) -> usize {
    arrivals_start(depth) + arrival::WORDS * depth as usize
}

/// Behind the receives, where a pair of lines starts.
const fn arrivals_start(depth: u32) -> usize {
    (RECEIVES + WORDS_PER_RECEIVE * depth as usize).next_multiple_of(arrival::WORDS)
}

/// Tells the peer of a ring that the connection has ended here. A peer that follows the protocol begins
/// no request after it has seen this; one that is in the middle of copying ends that copy.
pub(crate) fn close(words: &impl Words) {
    words.words()[CLOSED].store(1, Ordering::Release);
}

/// A posted receive, as the peer sees it: where a message may be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receive {
    /// Remote address, or 0 for a receive without a buffer.
    pub(crate) place: u64,
    pub(crate) key: u32,
    pub(crate) bytes: u32,
}

/// A receive without a buffer: what the words of a fresh ring say.
pub(crate) const NOWHERE: Receive = Receive { place: 0, key: 0, bytes: 0 };

/// When the owner wants to be woken; the value of `ARMED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Arm {
    Never = 0,
    Any = 1,
    Solicited = 2,
}

/// The owner's half that posts receives.
#[derive(Debug)]
pub(crate) struct ReceivePoster<W> {
    words: W,
    mask: u32,
    posted: u32,
    /// What the ring holds, as it was written here.
    written: Box<[Receive]>,
}

impl<W: Words> ReceivePoster<W> {
    /// For a fresh ring of `depth` receives.
    pub(crate) fn new(words: W, depth: u32) -> Self {
        assert!(depth.is_power_of_two() && words.words().len() >= words_needed(depth));
        ReceivePoster {
            words,
            mask: depth - 1,
            posted: 0,
            written: vec![NOWHERE; depth as usize].into(),
        }
    }

    /// Posts the next receive; returns how many are posted now. The caller keeps to the depth.
    #[inline]
    pub(crate) fn post(&mut self, receive: Receive) -> u32 {
        let words = self.words.words();
        let written = &mut self.written[(self.posted & self.mask) as usize];
        if *written != receive {
            // Only then: the peer may be reading its neighbours on the same line.
            *written = receive;
            let at = receive_word(self.posted, self.mask);
            words[at].store(receive.place, Ordering::Relaxed);
            let key_bytes = u64::from(receive.key) << 32 | u64::from(receive.bytes);
            words[at + 1].store(key_bytes, Ordering::Relaxed);
        }
        self.posted = self.posted.wrapping_add(1);
        words[POSTED].store(u64::from(self.posted), Ordering::Release); // POST
        self.posted
    }
}

/// The ball of a connection: in the ring of the connector, which `memory` is.
pub(crate) fn ball<W: Words>(memory: W, side: Side) -> Arc<Ball<W>> {
    Ball::new(memory, BALL, side)
}

/// The owner's half that takes arrivals.
#[derive(Debug)]
pub(crate) struct ArrivalTaker<W> {
    words: W,
    mask: u32,
    taken: u32,
    /// How many places of the ring were used.
    from_ring: u32,
    /// Nothing is taken without it (ORDER): before it is known, and after a receive was given up.
    ball: Option<Catcher<W>>,
    given_up: bool,
    /// Whether the last one came by the ball.
    by_ball: bool,
    /// The last payload reached into a second line; so will the next.
    two_lines: bool,
}

impl<W: Words> ArrivalTaker<W> {
    /// For a fresh ring of `depth` receives.
    pub(crate) fn new(words: W, depth: u32) -> Self {
        assert!(depth.is_power_of_two() && words.words().len() >= words_needed(depth));
        ArrivalTaker {
            words,
            mask: depth - 1,
            taken: 0,
            from_ring: 0,
            ball: None,
            given_up: false,
            by_ball: false,
            two_lines: false,
        }
    }

    /// Catches the ball of the connection, which is made, from now on. `may_pause`: a first look may be put off
    /// (PATIENCE).
    pub(crate) fn play(&mut self, ball: &Arc<Ball<W>>, may_pause: bool) {
        if self.given_up {
            return;
        }
        self.ball.get_or_insert_with(|| Catcher::new(ball.clone())).let_pause(may_pause);
    }

    /// Number of arrivals taken (or skipped) so far.
    #[inline]
    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    /// How many places of the ring were used.
    #[cfg(test)]
    pub(crate) fn places_used(&self) -> u32 {
        self.from_ring
    }

    /// Whether the next arrival is there. The caller makes sure that its receive was posted.
    #[inline]
    pub(crate) fn ready(&mut self) -> bool {
        if self.ball.is_none() {
            return false;
        }
        if self.two_lines && !self.by_ball {
            // Right before the first, so that both come at the same time.
            self.words.prefetch(arrival_word(self.from_ring, self.mask) + SECOND_LINE);
        }
        if self.look_at_ring().is_some() {
            return true; // or one by the ball, which came before it
        }
        let two_lines = self.two_lines && self.by_ball;
        self.ball.as_mut().is_some_and(|ball| ball.ready(self.taken, two_lines))
    }

    #[inline]
    fn ring_entry(&self) -> &[AtomicU64] {
        let at = arrival_word(self.from_ring, self.mask);
        &self.words.words()[at..at + arrival::WORDS]
    }

    #[inline]
    fn look_at_ring(&self) -> Option<Head> {
        let head = Head::read(self.ring_entry());
        (head.stamp() == self.from_ring.wrapping_add(1)).then_some(head)
    }

    /// Takes the next arrival, if it is there. The caller makes sure that its receive was posted, and
    /// copies what it carries from [`payload`](Self::payload), if anything, before it says
    /// [`done`](Self::done).
    #[inline(always)] // so that what it has read stays in registers
    pub(crate) fn take(&mut self) -> Option<Arrival> {
        self.ball.as_ref()?;
        let arrival = self.take_ball().or_else(|| {
            let head = self.look_at_ring()?;
            // One by the ball may have come before it (ORDER).
            self.take_ball().or_else(|| {
                let arrival = Arrival::read(self.ring_entry(), head);
                self.from_ring = self.from_ring.wrapping_add(1);
                self.by_ball = false;
                Some(arrival)
            })
        })?;
        self.two_lines = arrival.has_two_lines();
        self.taken = self.taken.wrapping_add(1);
        Some(arrival)
    }

    #[inline]
    fn take_ball(&mut self) -> Option<Arrival> {
        let ball = self.ball.as_ref()?;
        let arrival = ball.read(ball.look(self.taken)?);
        self.by_ball = true;
        Some(arrival)
    }

    /// The arrival that was taken last is not complete: it is to be taken again.
    pub(crate) fn put_back(&mut self) {
        self.taken = self.taken.wrapping_sub(1);
        if !self.by_ball {
            self.from_ring = self.from_ring.wrapping_sub(1);
        }
    }

    /// Where the payload of the arrival that was taken last is, before that is [`done`](Self::done): memory,
    /// first word.
    #[inline]
    pub(crate) fn payload(&self) -> (&W, usize) {
        let (memory, word) = match &self.ball {
            Some(ball) if self.by_ball => ball.held(),
            _ => (&self.words, arrival_word(self.from_ring.wrapping_sub(1), self.mask)),
        };
        (memory, word + PAYLOAD)
    }

    /// What was taken last is not looked at any more.
    #[inline]
    pub(crate) fn done(&mut self) {
        if let Some(ball) = &mut self.ball
            && self.by_ball
        {
            ball.caught();
        }
    }

    /// Gives up the next receive. Nothing is taken after that: the next arrival would be the one for it.
    pub(crate) fn skip(&mut self) {
        (self.ball, self.given_up) = (None, true);
        self.taken = self.taken.wrapping_add(1);
    }

    /// Says whether the owner will not sleep (AWAKE).
    pub(crate) fn stay_awake(&self, awake: bool) {
        self.words.words()[AWAKE].store(awake.into(), Ordering::Relaxed);
    }

    /// Says who is to be woken. After it returns, look at the arrivals once more before sleeping.
    pub(crate) fn arm(&self, arm: Arm) {
        self.words.words()[ARMED].store(arm as u64, Ordering::Relaxed);
        fence(Ordering::SeqCst); // WAKE
    }
}

/// How an arrival goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In a place of its own, which stays as it is until the owner has posted a receive for the next one there.
    Ring,
    /// In the place that the peer writes next.
    Ball,
}

/// The peer's half.
#[derive(Debug)]
pub(crate) struct ArrivalPusher<W> {
    words: W,
    mask: u32,
    pushed: u32,
    /// How many places of the ring were used.
    in_ring: u32,
    ball: Option<Arc<Ball<W>>>,
    posted_seen: u32,
    /// So few known receives are left that it is time to look for more.
    few: u32,
}

impl<W: Words> ArrivalPusher<W> {
    /// For the peer's fresh ring of `depth` receives; `None` if the peer's numbers are wrong.
    pub(crate) fn new(words: W, depth: u32) -> Option<Self> {
        (depth.is_power_of_two() && words.words().len() >= words_needed(depth)).then(|| {
            ArrivalPusher {
                words,
                mask: depth - 1,
                pushed: 0,
                in_ring: 0,
                ball: None,
                posted_seen: 0,
                few: depth / 2,
            }
        })
    }

    /// Throws the ball of the connection from now on.
    pub(crate) fn play(&mut self, ball: Arc<Ball<W>>) {
        self.ball = Some(ball);
    }

    /// The memory that the ring lies in.
    pub(crate) fn memory(&self) -> &W {
        &self.words
    }

    /// Whether the owner has closed the ring.
    #[inline]
    pub(crate) fn closed(&self) -> bool {
        self.words.words()[CLOSED].load(Ordering::Acquire) != 0
    }

    /// Whether the owner has posted a receive for the next arrival.
    #[inline]
    pub(crate) fn may_push(&mut self) -> bool {
        if self.posted_seen == self.pushed {
            self.look_at_posted();
        }
        self.posted_seen != self.pushed
    }

    /// The receive of the next arrival, which there is ([`may_push`](Self::may_push)). The values are the
    /// owner's: not to be trusted.
    #[inline]
    pub(crate) fn receive(&self) -> Receive {
        let words = self.words.words();
        let at = receive_word(self.pushed, self.mask);
        let key_bytes = words[at + 1].load(Ordering::Relaxed);
        Receive {
            place: words[at].load(Ordering::Relaxed),
            key: (key_bytes >> 32) as u32,
            bytes: key_bytes as u32,
        }
    }

    /// The owner's line is read once for all receives that it has posted since.
    #[inline]
    fn look_at_posted(&mut self) {
        let posted = self.words.words()[POSTED].load(Ordering::Acquire) as u32; // POST
        // More than `depth` ahead is a lie; the ring would still be safe, its order not.
        if posted.wrapping_sub(self.pushed) <= self.mask + 1 {
            self.posted_seen = posted;
        }
    }

    /// How the next arrival is to go.
    #[inline]
    pub(crate) fn way(&self) -> Way {
        match &self.ball {
            Some(ball) if ball.is_here() => Way::Ball,
            _ => Way::Ring,
        }
    }

    /// Where the payload of the next arrival is, if it goes that way, for [`MAX_CARRIED`] bytes: memory, first
    /// word. To be filled after [`may_push`](Self::may_push) said yes.
    #[inline]
    pub(crate) fn payload(&self, way: Way) -> (&W, usize) {
        let (memory, word) = match (&self.ball, way) {
            (Some(ball), Way::Ball) => ball.place(),
            _ => (&self.words, arrival_word(self.in_ring, self.mask)),
        };
        (memory, word + PAYLOAD)
    }

    /// Fills the next arrival, for which there is a receive ([`may_push`](Self::may_push)), the way that was
    /// [found](Self::way) for it; any may go by the ring. Returns whether the owner sleeps and must be woken.
    #[inline]
    pub(crate) fn push(&mut self, way: Way, arrival: Arrival, solicited: bool) -> bool {
        let words = self.words.words();
        match (&self.ball, way) {
            (Some(ball), Way::Ball) => ball.throw(arrival, self.pushed),
            _ => {
                let at = arrival_word(self.in_ring, self.mask);
                self.in_ring = self.in_ring.wrapping_add(1);
                arrival.write(&words[at..at + arrival::WORDS], self.in_ring);
            }
        }
        self.pushed = self.pushed.wrapping_add(1);
        // The look comes after the arrival in the program; for more, see AWAKE.
        compiler_fence(Ordering::SeqCst);
        let asleep = words[AWAKE].load(Ordering::Relaxed) == 0 && self.is_to_be_woken(solicited);
        if self.posted_seen.wrapping_sub(self.pushed) <= self.few {
            // Now, while the owner is at work, and not when the next message must not wait.
            self.look_at_posted();
        }
        asleep
    }

    /// Whether the owner sleeps on what was pushed last. Says so once.
    #[inline]
    fn is_to_be_woken(&self, solicited: bool) -> bool {
        fence(Ordering::SeqCst); // WAKE
        let word = &self.words.words()[ARMED];
        let armed = word.load(Ordering::Relaxed);
        if armed == Arm::Any as u64 || (armed == Arm::Solicited as u64 && solicited) {
            return word.swap(Arm::Never as u64, Ordering::Relaxed) != Arm::Never as u64;
        }
        false
    }
}

#[inline]
fn receive_word(index: u32, mask: u32) -> usize {
    RECEIVES + WORDS_PER_RECEIVE * (index & mask) as usize
}

#[inline]
pub(super) fn arrival_word(index: u32, mask: u32) -> usize {
    arrivals_start(mask + 1) + arrival::WORDS * (index & mask) as usize
}

#[cfg(test)]
mod tests;
