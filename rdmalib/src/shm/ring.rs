//! The wire of the embedded device: one queue pair's incoming half, in the receiver's memory.
//!
//! ```text
//!   word 0        POSTED    receives posted so far           owner ──▶ peer
//!   word 16       ARMED     who is to be woken               owner ──▶ peer, cleared by the peer
//!   word 17       CLOSED    nothing may be written any more  owner ──▶ peer
//!   word 18       AWAKE     nobody is to be woken at all     owner ──▶ peer
//!   from word 32  receives  [place, key|bytes] × depth       owner ──▶ peer
//!   then          arrivals  [sequence|immediate, bytes|tag, address, key, payload 12] × depth   peer ──▶ owner
//! ```
//! A receive and its arrival have the same index; the peer may fill arrival `i` once receive `i` is
//! posted, the owner posts receive `i + depth` only after it took arrival `i`. So neither side ever
//! waits here, and no index of one side is read by the other on an empty poll.
//!
//! An arrival is two cache lines, so that a small write travels inside of it: 32 bytes in the line that
//! announces them, up to 96 with the next. That is one line less to fetch from the other processor than
//! payload and announcement apart. Such a payload is *carried*: the owner puts it where it belongs when it
//! takes the arrival (`carried`, LANDING). In place of a large payload, an arrival carries what its owner
//! needs to help with copying it (`shared_copy`).
//!
//! The two ends may live in different processes and do not trust each other: everything shared is a
//! 64-bit atomic, indices are masked, each side keeps its own counters and reads a word once.
//! * POST - `POSTED` store(Release) in `post`, load(Acquire) in `may_push`: receive before count.
//! * PUBLISH - sequence store(Release) in `push`, load(Acquire) in `take`: payload before completion.
//! * WAKE - `arm` stores, fences, then looks at the arrivals; `push` stores an arrival, fences, then
//!   looks at `ARMED`: at least one of the two sees the other (both fences are SeqCst).
//! * AWAKE - for an owner that spins, `push` does without the fence of WAKE, which waits until the arrival
//!   has left the processor. An owner that sleeps after all takes back `AWAKE` before, and its next sleep is
//!   a nap: so long that every arrival pushed by who had not seen that is there at its end (`completion`).
//!
//! Elsewhere: the bytes of a message (`one_sided`, `carried`), ringing and sleeping (`completion`).

use crate::sync::{AtomicU64, Ordering, compiler_fence, fence};

const POSTED: usize = 0;
/// Two cache lines on: the adjacent-line prefetcher would make them one.
const ARMED: usize = 16;
/// On the line of ARMED, which a sender reads anyway and which seldom changes.
const CLOSED: usize = 17;
const AWAKE: usize = 18;
const RECEIVES: usize = 32;
const WORDS_PER_RECEIVE: usize = 2;
/// Two lines of 64 bytes, which processors like to fetch as a pair.
const WORDS_PER_ARRIVAL: usize = 16;
pub(super) const PAYLOAD: usize = 4;
/// Most bytes that an arrival carries.
pub(crate) const MAX_CARRIED: usize = 8 * (WORDS_PER_ARRIVAL - PAYLOAD);
/// Those that are in its first line.
pub(crate) const FIRST_LINE: usize = 32;

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
    arrivals_start(depth) + WORDS_PER_ARRIVAL * depth as usize
}

/// Behind the receives, where a pair of lines starts.
const fn arrivals_start(depth: u32) -> usize {
    (RECEIVES + WORDS_PER_RECEIVE * depth as usize).next_multiple_of(WORDS_PER_ARRIVAL)
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

/// What arrived for one receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) immediate: u32,
    pub(crate) bytes: u32,
    /// Free for the user of the ring.
    pub(crate) tag: u32,
    /// Of a payload that it carries: address and key of where it belongs.
    pub(crate) carried_to: Option<(u64, u32)>,
}

/// Bit of the tag word, above the user's: the arrival carries its payload.
pub(super) const CARRIED: u32 = 1 << 31;

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

/// The owner's half that takes arrivals.
#[derive(Debug)]
pub(crate) struct ArrivalTaker<W> {
    words: W,
    mask: u32,
    taken: u32,
    /// The last payload reached into a second line; so will the next.
    two_lines: bool,
}

impl<W: Words> ArrivalTaker<W> {
    /// For a fresh ring of `depth` receives.
    pub(crate) fn new(words: W, depth: u32) -> Self {
        assert!(depth.is_power_of_two() && words.words().len() >= words_needed(depth));
        ArrivalTaker { words, mask: depth - 1, taken: 0, two_lines: false }
    }

    /// Number of arrivals taken (or skipped) so far.
    #[inline]
    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    /// Whether the next arrival is there. The caller makes sure that its receive was posted.
    #[inline]
    pub(crate) fn ready(&self) -> bool {
        let at = arrival_word(self.taken, self.mask);
        if self.two_lines {
            // Right before the first, so that both come at the same time.
            self.words.prefetch(at + WORDS_PER_ARRIVAL / 2);
        }
        let head = self.words.words()[at].load(Ordering::Acquire); // PUBLISH
        (head >> 32) as u32 == self.taken.wrapping_add(1)
    }

    /// Takes the next arrival, if it is there. The caller makes sure that its receive was posted, and
    /// copies what it carries from [`payload`](Self::payload), if anything, before it is posted again.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Arrival> {
        let at = arrival_word(self.taken, self.mask);
        let entry = self.words.words().get(at..at + WORDS_PER_ARRIVAL)?;
        let head = entry[0].load(Ordering::Acquire); // PUBLISH
        if (head >> 32) as u32 != self.taken.wrapping_add(1) {
            return None;
        }
        let body = entry[1].load(Ordering::Relaxed);
        let (bytes, tag) = ((body >> 32) as u32, body as u32);
        let carried_to = (tag & CARRIED != 0)
            .then(|| (entry[2].load(Ordering::Relaxed), entry[3].load(Ordering::Relaxed) as u32));
        self.two_lines =
            carried_to.is_some() && (FIRST_LINE + 1..=MAX_CARRIED).contains(&(bytes as usize));
        self.taken = self.taken.wrapping_add(1);
        Some(Arrival { immediate: head as u32, bytes, tag: tag & !CARRIED, carried_to })
    }

    /// The arrival that was taken last is not complete: it is to be taken again.
    pub(crate) fn put_back(&mut self) {
        self.taken = self.taken.wrapping_sub(1);
    }

    /// The word where the payload of the arrival that was taken last starts.
    #[inline]
    pub(crate) fn payload(&self) -> usize {
        arrival_word(self.taken.wrapping_sub(1), self.mask) + PAYLOAD
    }

    /// Gives up the next receive: nothing will arrive for it any more.
    pub(crate) fn skip(&mut self) {
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

/// The peer's half.
#[derive(Debug)]
pub(crate) struct ArrivalPusher<W> {
    words: W,
    mask: u32,
    pushed: u32,
    posted_seen: u32,
    /// So few known receives are left that it is time to look for more.
    few: u32,
}

impl<W: Words> ArrivalPusher<W> {
    /// For the peer's fresh ring of `depth` receives; `None` if the peer's numbers are wrong.
    pub(crate) fn new(words: W, depth: u32) -> Option<Self> {
        (depth.is_power_of_two() && words.words().len() >= words_needed(depth)).then(|| {
            ArrivalPusher { words, mask: depth - 1, pushed: 0, posted_seen: 0, few: depth / 2 }
        })
    }

    /// The memory that the ring lies in.
    #[inline]
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

    /// The word where the payload of the next arrival starts, for [`MAX_CARRIED`] bytes. To be filled
    /// after [`may_push`](Self::may_push) said yes.
    #[inline]
    pub(crate) fn payload(&self) -> usize {
        arrival_word(self.pushed, self.mask) + PAYLOAD
    }

    /// Fills the next arrival, for which there is a receive ([`may_push`](Self::may_push)). Returns whether
    /// the owner sleeps and must be woken.
    #[inline]
    pub(crate) fn push(&mut self, arrival: Arrival, solicited: bool) -> bool {
        let words = self.words.words();
        let at = arrival_word(self.pushed, self.mask);
        let Some(entry) = words.get(at..at + WORDS_PER_ARRIVAL) else { return false };
        self.pushed = self.pushed.wrapping_add(1);
        let mut tag = arrival.tag;
        if let Some((addr, key)) = arrival.carried_to {
            tag |= CARRIED;
            entry[2].store(addr, Ordering::Relaxed);
            entry[3].store(u64::from(key), Ordering::Relaxed);
        }
        entry[1].store(u64::from(arrival.bytes) << 32 | u64::from(tag), Ordering::Relaxed);
        let head = u64::from(self.pushed) << 32 | u64::from(arrival.immediate);
        entry[0].store(head, Ordering::Release); // PUBLISH
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
    arrivals_start(mask + 1) + WORDS_PER_ARRIVAL * (index & mask) as usize
}

#[cfg(test)]
mod tests;
