//! A queue pair as a completion queue sees it: arrivals, finished sends, and what is flushed.
//!
//! DRAIN: after `Error` was seen (Acquire), arrivals are polled once more before anything is
//! flushed. What a peer sent before it left is not lost.

use std::sync::Arc;

use super::arena::Map;
use super::copy::{copy_carried, payload};
use super::core::{Core, TAG_IMMEDIATE, TAG_SHARED, TAG_TOO_LONG, TAG_WRITE};
use super::mapping::Part;
use super::members::QueueMembers;
use super::peer_arena::PeerArena;
use crate::types::{Opcode, RemoteAddress, State, Status, WorkCompletion};
use rdmalib_ring::{Arm, Arrival, ArrivalTaker, MAX_CARRIED};

/// A queue pair as a completion queue sees it: the poller's counters.
#[derive(Debug)]
pub(super) struct PairPoller {
    core: Arc<Core>,
    arrivals: Option<ArrivalTaker<Part>>,
    sends: bool,
    sent_head: u32,
    /// The peer's memory, mapped when first needed.
    peer: Option<PeerArena>,
}

impl PairPoller {
    pub(super) fn new(core: Arc<Core>, queue: &Arc<QueueMembers<Core>>) -> Self {
        let arrivals = Arc::ptr_eq(core.receive_completions(), queue)
            .then(|| ArrivalTaker::new(core.inbox().clone(), core.ring().1));
        let sends = Arc::ptr_eq(core.send_completions(), queue);
        PairPoller { core, arrivals, sends, sent_head: 0, peer: None }
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn arm(&self, arm: Arm) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.arm(arm);
        }
    }

    pub(super) fn stay_awake(&self, awake: bool) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.stay_awake(awake);
        }
    }

    /// Polls the turn slot too, if there is a connection by now. `alone`: no other queue pair is
    /// polled.
    pub(super) fn connect(&mut self, alone: bool) {
        if let (Some(arrivals), Some(slot)) = (&mut self.arrivals, self.core.turn_slot()) {
            arrivals.connect(slot, alone);
        }
    }

    /// [`ArrivalTaker::places_used`].
    #[cfg(test)]
    pub(super) fn places_used(&self) -> u32 {
        self.arrivals.as_ref().map_or(0, ArrivalTaker::places_used)
    }

    pub(super) fn ready(&mut self) -> bool {
        let receives = self.arrivals.as_mut().is_some_and(|arrivals| {
            self.core.receives().has_more(arrivals.taken())
                && (arrivals.ready() || self.core.state() == State::Error)
        });
        receives || (self.sends && self.core.sent().has_more(self.sent_head))
    }

    #[inline]
    pub(super) fn poll(&mut self, out: &mut [WorkCompletion]) -> usize {
        let mut taken = 0;
        if self.sends {
            taken = self.take_sents(out);
        }
        for entry in &mut out[taken..] {
            if !self.something_arrived() {
                break;
            }
            if !self.take_arrival(entry) {
                break;
            }
            taken += 1;
        }
        taken
    }

    /// Whether [`take_arrival`](Self::take_arrival) is worth calling: all that a poll in vain looks
    /// at.
    #[inline]
    fn something_arrived(&mut self) -> bool {
        self.arrivals.as_mut().is_some_and(ArrivalTaker::ready) || self.core.state() == State::Error
    }

    #[inline]
    fn take_sents(&mut self, out: &mut [WorkCompletion]) -> usize {
        let mut taken = 0;
        while taken < out.len()
            && let Some(completion) = self.take_sent()
        {
            out[taken] = completion;
            taken += 1;
        }
        taken
    }

    #[inline]
    fn take_sent(&mut self) -> Option<WorkCompletion> {
        let sent = self.core.sent().take(self.sent_head)?;
        self.sent_head = self.sent_head.wrapping_add(1);
        Some(WorkCompletion {
            id: sent.id,
            status: sent.status,
            opcode: sent.opcode,
            bytes: 0,
            immediate: None,
            queue_pair: self.core.number(),
        })
    }

    /// Fills `out` with the next completion of a receive, if there is one. It is written straight
    /// into its place and not moved there: store-to-load forwarding fails for loads of another size
    /// than the stores, which costs some ten cycles.
    #[inline]
    fn take_arrival(&mut self, out: &mut WorkCompletion) -> bool {
        let Some(arrivals) = &mut self.arrivals else { return false };
        if !self.core.receives().has_more(arrivals.taken()) {
            return false;
        }
        match arrivals.take() {
            Some(arrival) if arrival.tag & TAG_SHARED == 0 => {
                self.complete(&arrival, out);
                true
            }
            other => self.take_with_care(other, out),
        }
    }

    /// A large write, or nothing, which may be the end.
    #[inline(never)]
    fn take_with_care(&mut self, taken: Option<Arrival>, out: &mut WorkCompletion) -> bool {
        let ended = self.core.state() == State::Error;
        let Some(arrivals) = &mut self.arrivals else { return false };
        if taken.is_none() && !ended {
            return false;
        }
        let arrival = taken.or_else(|| {
            if let Some(slot) = self.core.turn_slot() {
                arrivals.connect(slot, false); // it may be new
            }
            arrivals.take() // DRAIN
        });
        let Some(arrival) = arrival else {
            self.flush(out);
            return true;
        };
        if arrival.tag & TAG_SHARED == 0 || self.help_with(&arrival) {
            self.complete(&arrival, out);
            return true;
        }
        let ended = self.core.state() == State::Error;
        if ended && self.help_with(&arrival) {
            self.complete(&arrival, out); // DRAIN
            return true;
        }
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.put_back();
        }
        if ended {
            self.flush(out); // it never will be whole
        } // else the sender copies the rest
        ended
    }

    /// Copies its part of a large write; whether all of it is there.
    fn help_with(&mut self, large: &Arrival) -> bool {
        let Some(arrivals) = &self.arrivals else { return true };
        self.core.help_with(large, arrivals.payload(), &mut self.peer)
    }

    /// Completes the receive that `arrival`, which was taken, is for, into `out`.
    #[inline]
    fn complete(&mut self, arrival: &Arrival, out: &mut WorkCompletion) {
        let core = &*self.core;
        if let Some(arrivals) = &mut self.arrivals {
            if let Some((addr, key)) = arrival.carried_to
                && arrival.tag & TAG_SHARED == 0
            {
                let to = RemoteAddress { addr, key };
                let (ring, payload) = arrivals.payload();
                land(core.memory(), ring, payload, to, arrival.bytes as usize);
            }
            arrivals.done();
        }
        let is_write = arrival.tag & TAG_WRITE != 0;
        let too_long = arrival.tag & TAG_TOO_LONG != 0;
        *out = WorkCompletion {
            id: self.retire_receive(),
            status: if too_long { Status::LocalLengthError } else { Status::Success },
            opcode: if is_write { Opcode::ReceiveWithImmediate } else { Opcode::Receive },
            bytes: arrival.bytes,
            immediate: (arrival.tag & TAG_IMMEDIATE != 0).then_some(arrival.immediate),
            queue_pair: core.number(),
        };
        if too_long {
            core.fail();
        }
    }

    /// Completes the next receive, for which nothing will arrive, into `out`.
    fn flush(&mut self, out: &mut WorkCompletion) {
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.skip();
        }
        *out = WorkCompletion {
            id: self.retire_receive(),
            status: Status::Flushed,
            opcode: Opcode::Receive,
            queue_pair: self.core.number(),
            ..WorkCompletion::default()
        };
    }

    /// The id of the receive that was taken last, whose place is free again.
    #[inline]
    fn retire_receive(&self) -> u64 {
        let taken = self.arrivals.as_ref().map_or(0, ArrivalTaker::taken);
        self.core.receives().retire(taken)
    }
}

/// Copies the `bytes` bytes of a carried payload, in a ring or the turn slot from word
/// `payload_word` on, to where the peer wants them (top of `link`). What the peer may not write,
/// and what was freed since it was allowed to, stays as it is: as if the write had come before
/// that.
#[inline]
fn land(memory: &Map, ring: &Part, payload_word: usize, to: RemoteAddress, bytes: usize) {
    if bytes > MAX_CARRIED {
        return; // a lie
    }
    if let Some(target) = memory.landing(to, bytes) {
        copy_carried(payload(ring, payload_word), target, bytes);
    }
}
