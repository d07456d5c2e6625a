//! The lock-free core of rdmalib's embedded device: one queue pair's incoming half, in the
//! receiver's memory, and the hand-off of a sender's state between two threads.
//!
//! An internal crate of `rdmalib`, apart from it so that a model checker (cfg loom) sees exactly
//! this. Applications use `rfaas`.
//!
//! ```text
//!   word 0        POSTED     receives posted so far           owner ──▶ peer
//!   word 16       ARMED      when to wake the owner           owner ──▶ peer, cleared by the peer
//!   word 17       CLOSED     nothing may be written any more  owner ──▶ peer
//!   word 18       AWAKE      the owner need not be woken      owner ──▶ peer
//!   word 32       turn slot  an arrival                       owner ◀─▶ peer, in the connector's ring
//!   from word 48  receives   [place, key|bytes] × depth       owner ──▶ peer
//!   then          arrivals   one after the other, × depth     peer ──▶ owner
//! ```
//! Arrival `i` belongs to receive `i`. The peer may push it once that receive is posted, and the
//! owner posts receive `i + depth` only after it took arrival `i`. So neither side ever waits here,
//! and an empty poll reads no index of the other side. An arrival goes through the shared turn slot
//! when it is the peer's turn to write there, and otherwise into the next place of the ring, where
//! its sequence number counts the arrivals of the ring.
//!
//! The two ends may live in different processes and do not trust each other: everything shared is a
//! 64-bit atomic, indices are masked, each side keeps its own counters and reads a word once.
//! * PUBLISH (`arrival`): the sequence number is stored after the payload, with Release: a
//!   completion that is seen has its bytes.
//! * `POSTED` is stored with Release in `post` and loaded with Acquire in `may_push`: a peer that
//!   sees the count sees the receive.
//! * WAKE: `arm` stores, fences, then reads the arrivals; `push` stores an arrival, fences, then
//!   reads `ARMED`. Both fences are SeqCst, so at least one of the two sees the other.
//! * AWAKE: for an owner that spins, `push` omits the fence of WAKE, which waits until the arrival
//!   has left the processor. An owner that sleeps after all clears `AWAKE` first, and its next
//!   sleep is short: every arrival of a peer that had not seen the change is there at its end.
//!
//! Elsewhere: the words of an arrival (`arrival`), whose turn it is to write the slot
//! (`turn_slot`), a state that two threads hand over (`handoff`). In `rdmalib`: the bytes of a
//! message, and sleeping.

mod arrival;
mod handoff;
pub mod sync;
mod turn_slot;
mod words;

use std::sync::Arc;

pub use self::arrival::{Arrival, CARRIED, FIRST_LINE, MAX_CARRIED, PAYLOAD};
use self::arrival::{Head, SECOND_LINE};
pub use self::handoff::{HelperEnd, PosterEnd, hand_off};
use self::sync::{AtomicU64, Ordering, compiler_fence, fence};
use self::turn_slot::TurnTaker;
pub use self::turn_slot::{Side, TurnSlot};
pub use self::words::Words;

const POSTED: usize = 0;
/// Two cache lines on: the adjacent-line prefetcher would make them one.
const ARMED: usize = 16;
/// On the line of ARMED, which a sender reads anyway and which seldom changes.
const CLOSED: usize = 17;
const AWAKE: usize = 18;
/// First word of the shared turn slot.
pub const TURN_SLOT: usize = 32;
const RECEIVES: usize = TURN_SLOT + arrival::WORDS;
const WORDS_PER_RECEIVE: usize = 2;

/// Returns the size of a ring, in words, for `depth` (a power of two) receives.
pub const fn words_needed(depth: u32) -> usize {
    arrivals_start(depth) + arrival::WORDS * depth as usize
}

/// Behind the receives, where a pair of lines starts.
const fn arrivals_start(depth: u32) -> usize {
    (RECEIVES + WORDS_PER_RECEIVE * depth as usize).next_multiple_of(arrival::WORDS)
}

/// Tells the peer of a ring that the connection has ended here. A peer that follows the protocol
/// begins no request after it has seen this, and finishes a copy that it has begun.
pub fn close(words: &impl Words) {
    words.words()[CLOSED].store(1, Ordering::Release);
}

/// A posted receive, as the peer sees it: where a message may be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive {
    /// Remote address, or 0 for a receive without a buffer.
    pub place: u64,
    /// Key of the region that holds the buffer.
    pub key: u32,
    /// Length of the buffer, in bytes.
    pub bytes: u32,
}

/// A receive without a buffer: what the words of a fresh ring say.
pub const NOWHERE: Receive = Receive { place: 0, key: 0, bytes: 0 };

/// When the owner wants to be woken; the value of `ARMED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Arm {
    /// Not at all.
    Never = 0,
    /// At the next arrival.
    Any = 1,
    /// At the next arrival whose sender asks for it.
    Solicited = 2,
}

/// The owner's half that posts receives.
#[derive(Debug)]
pub struct ReceivePoster<W> {
    words: W,
    mask: u32,
    posted: u32,
    /// The ring's receives, as they were written here.
    written: Box<[Receive]>,
}

impl<W: Words> ReceivePoster<W> {
    /// For a fresh ring of `depth` receives.
    pub fn new(words: W, depth: u32) -> Self {
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
    pub fn post(&mut self, receive: Receive) -> u32 {
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
        words[POSTED].store(u64::from(self.posted), Ordering::Release); // after the receive
        self.posted
    }
}

/// Makes the shared turn slot of a connection, in the ring of the connector, which `memory` is.
pub fn turn_slot<W: Words>(memory: W, side: Side) -> Arc<TurnSlot<W>> {
    TurnSlot::new(memory, TURN_SLOT, side)
}

/// The owner's half that takes arrivals.
#[derive(Debug)]
pub struct ArrivalTaker<W> {
    words: W,
    mask: u32,
    taken: u32,
    /// How many places of the ring were used.
    from_ring: u32,
    /// Nothing is taken without it (TAKE ORDER in `turn_slot`): before it is known, and after a
    /// receive was given up.
    slot: Option<TurnTaker<W>>,
    given_up: bool,
    /// Whether the last arrival came through the turn slot.
    by_slot: bool,
    /// The last payload reached into a second line, so the next one probably will.
    two_lines: bool,
}

impl<W: Words> ArrivalTaker<W> {
    /// For a fresh ring of `depth` receives.
    pub fn new(words: W, depth: u32) -> Self {
        assert!(depth.is_power_of_two() && words.words().len() >= words_needed(depth));
        ArrivalTaker {
            words,
            mask: depth - 1,
            taken: 0,
            from_ring: 0,
            slot: None,
            given_up: false,
            by_slot: false,
            two_lines: false,
        }
    }

    /// Takes arrivals from the connection's turn slot too, from now on. `may_pause`: the first poll
    /// after a send may be delayed.
    pub fn connect(&mut self, slot: &Arc<TurnSlot<W>>, may_pause: bool) {
        if self.given_up {
            return;
        }
        self.slot.get_or_insert_with(|| TurnTaker::new(slot.clone())).let_pause(may_pause);
    }

    /// Returns how many arrivals were taken or skipped so far.
    #[inline]
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// Returns how many arrivals came through the ring.
    pub fn places_used(&self) -> u32 {
        self.from_ring
    }

    /// Whether the next arrival is there. The caller makes sure that its receive was posted.
    #[inline]
    pub fn ready(&mut self) -> bool {
        if self.slot.is_none() {
            return false;
        }
        if self.two_lines && !self.by_slot {
            // Right before the first line, so that both come at the same time.
            self.words.prefetch(arrival_word(self.from_ring, self.mask) + SECOND_LINE);
        }
        if self.poll_ring().is_some() {
            return true; // or one in the slot, which came before it
        }
        let two_lines = self.two_lines && self.by_slot;
        self.slot.as_mut().is_some_and(|slot| slot.ready(self.taken, two_lines))
    }

    #[inline]
    fn ring_entry(&self) -> &[AtomicU64] {
        let at = arrival_word(self.from_ring, self.mask);
        &self.words.words()[at..at + arrival::WORDS]
    }

    #[inline]
    fn poll_ring(&self) -> Option<Head> {
        let head = Head::read(self.ring_entry());
        (head.sequence() == self.from_ring.wrapping_add(1)).then_some(head)
    }

    /// Takes the next arrival, if it is there. The caller makes sure that its receive was posted,
    /// and copies a carried payload from [`payload`](Self::payload) before it calls
    /// [`done`](Self::done).
    #[inline(always)] // so that what it has read stays in registers
    pub fn take(&mut self) -> Option<Arrival> {
        self.slot.as_ref()?;
        let arrival = self.take_from_slot().or_else(|| {
            let head = self.poll_ring()?;
            // One in the slot may have come before it (TAKE ORDER in `turn_slot`).
            self.take_from_slot().or_else(|| {
                let arrival = Arrival::read(self.ring_entry(), head);
                self.from_ring = self.from_ring.wrapping_add(1);
                self.by_slot = false;
                Some(arrival)
            })
        })?;
        self.two_lines = arrival.has_two_lines();
        self.taken = self.taken.wrapping_add(1);
        Some(arrival)
    }

    #[inline]
    fn take_from_slot(&mut self) -> Option<Arrival> {
        let slot = self.slot.as_ref()?;
        let arrival = slot.read(slot.poll(self.taken)?);
        self.by_slot = true;
        Some(arrival)
    }

    /// Puts back the arrival that was taken last, which is not complete: it will be taken again.
    pub fn put_back(&mut self) {
        self.taken = self.taken.wrapping_sub(1);
        if !self.by_slot {
            self.from_ring = self.from_ring.wrapping_sub(1);
        }
    }

    /// Returns where the payload of the arrival that was taken last is: memory, first word. Valid
    /// until [`done`](Self::done).
    #[inline]
    pub fn payload(&self) -> (&W, usize) {
        let (memory, word) = match &self.slot {
            Some(slot) if self.by_slot => slot.place(),
            _ => (&self.words, arrival_word(self.from_ring.wrapping_sub(1), self.mask)),
        };
        (memory, word + PAYLOAD)
    }

    /// Ends the use of the arrival that was taken last.
    #[inline]
    pub fn done(&mut self) {
        if let Some(slot) = &mut self.slot
            && self.by_slot
        {
            slot.take_ownership();
        }
    }

    /// Gives up the next receive. Nothing is taken after that, because the next arrival would be
    /// the one for that receive.
    pub fn skip(&mut self) {
        (self.slot, self.given_up) = (None, true);
        self.taken = self.taken.wrapping_add(1);
    }

    /// Tells the peer whether the owner stays awake (AWAKE).
    pub fn stay_awake(&self, awake: bool) {
        self.words.words()[AWAKE].store(awake.into(), Ordering::Relaxed);
    }

    /// Tells the peer when to wake the owner. After it returns, the owner polls once more before it
    /// sleeps.
    pub fn arm(&self, arm: Arm) {
        self.words.words()[ARMED].store(arm as u64, Ordering::Relaxed);
        fence(Ordering::SeqCst); // WAKE
    }
}

/// How an arrival travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In a place of its own, which stays as it is until the owner has posted a receive for the
    /// next arrival there.
    Ring,
    /// In the slot that the peer writes next.
    TurnSlot,
}

/// The peer's half: pushes arrivals.
#[derive(Debug)]
pub struct ArrivalPusher<W> {
    words: W,
    mask: u32,
    pushed: u32,
    /// How many places of the ring were used.
    in_ring: u32,
    slot: Option<Arc<TurnSlot<W>>>,
    posted_seen: u32,
    /// With so few known receives left, the count of posted ones is read again.
    few: u32,
}

impl<W: Words> ArrivalPusher<W> {
    /// For the peer's fresh ring of `depth` receives; `None` if the peer's numbers are wrong.
    pub fn new(words: W, depth: u32) -> Option<Self> {
        (depth.is_power_of_two() && words.words().len() >= words_needed(depth)).then(|| {
            ArrivalPusher {
                words,
                mask: depth - 1,
                pushed: 0,
                in_ring: 0,
                slot: None,
                posted_seen: 0,
                few: depth / 2,
            }
        })
    }

    /// Sends through the connection's turn slot too, from now on.
    pub fn connect(&mut self, slot: Arc<TurnSlot<W>>) {
        self.slot = Some(slot);
    }

    /// Returns the memory that the ring lies in.
    pub fn memory(&self) -> &W {
        &self.words
    }

    /// Returns whether the owner has closed the ring.
    #[inline]
    pub fn closed(&self) -> bool {
        self.words.words()[CLOSED].load(Ordering::Acquire) != 0
    }

    /// Returns whether the owner has posted a receive for the next arrival.
    #[inline]
    pub fn may_push(&mut self) -> bool {
        if self.posted_seen == self.pushed {
            self.read_posted();
        }
        self.posted_seen != self.pushed
    }

    /// Returns the receive of the next arrival, which there is ([`may_push`](Self::may_push)). The
    /// values are the owner's and may be lies.
    #[inline]
    pub fn receive(&self) -> Receive {
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
    fn read_posted(&mut self) {
        let posted = self.words.words()[POSTED].load(Ordering::Acquire) as u32; // before the receive
        // More than `depth` ahead is a lie; the ring would still be safe, its order not.
        if posted.wrapping_sub(self.pushed) <= self.mask + 1 {
            self.posted_seen = posted;
        }
    }

    /// Returns how the next arrival should travel.
    #[inline]
    pub fn way(&self) -> Way {
        match &self.slot {
            Some(slot) if slot.is_owned() => Way::TurnSlot,
            _ => Way::Ring,
        }
    }

    /// Returns where the payload of the next arrival goes, if it travels that way: memory, first
    /// word. There is room for [`MAX_CARRIED`] bytes, once [`may_push`](Self::may_push) has said
    /// yes.
    #[inline]
    pub fn payload(&self, way: Way) -> (&W, usize) {
        let (memory, word) = match (&self.slot, way) {
            (Some(slot), Way::TurnSlot) => slot.place(),
            _ => (&self.words, arrival_word(self.in_ring, self.mask)),
        };
        (memory, word + PAYLOAD)
    }

    /// Pushes the next arrival, for which there is a receive ([`may_push`](Self::may_push)), by the
    /// way that [`way`](Self::way) returned for it, or by the ring. Returns whether the owner
    /// sleeps and must be woken.
    #[inline]
    pub fn push(&mut self, way: Way, arrival: Arrival, solicited: bool) -> bool {
        let words = self.words.words();
        match (&self.slot, way) {
            (Some(slot), Way::TurnSlot) => slot.send(arrival, self.pushed),
            _ => {
                let at = arrival_word(self.in_ring, self.mask);
                self.in_ring = self.in_ring.wrapping_add(1);
                arrival.write(&words[at..at + arrival::WORDS], self.in_ring);
            }
        }
        self.pushed = self.pushed.wrapping_add(1);
        // `AWAKE` is read after the arrival is stored, in program order; for more, see AWAKE.
        compiler_fence(Ordering::SeqCst);
        let asleep = words[AWAKE].load(Ordering::Relaxed) == 0 && self.is_to_be_woken(solicited);
        if self.posted_seen.wrapping_sub(self.pushed) <= self.few {
            // Now, while the owner is at work, and not when the next message must not wait.
            self.read_posted();
        }
        asleep
    }

    /// Whether the owner sleeps on what was pushed last; true once for each sleep.
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

/// Returns the first word of the ring's place for arrival `index` of those in the ring.
#[inline]
pub fn arrival_word(index: u32, mask: u32) -> usize {
    arrivals_start(mask + 1) + arrival::WORDS * (index & mask) as usize
}

#[cfg(test)]
mod tests;
