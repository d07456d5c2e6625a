//! A queue pair as a completion queue sees it: arrivals, finished sends, and what is flushed.
//!
//! * DRAIN - after `Error` was seen (Acquire) arrivals are looked at once more before anything is
//!   flushed: what a peer sent before it left is not lost.

use std::sync::Arc;

use super::super::carried;
use super::super::completion::Shared;
use super::super::mapping::Part;
use super::super::peer_arena::PeerArena;
use super::super::ring::{Arm, ArrivalTaker};
use super::{Core, TAG_IMMEDIATE, TAG_SHARED, TAG_TOO_LONG, TAG_WRITE};
use crate::completion::{Opcode, Status, WorkCompletion};
use crate::memory::RemoteAddress;
use crate::queue_pair::State;
use crate::sync::Ordering;

/// A queue pair as a completion queue sees it: the poller's counters.
#[derive(Debug)]
pub(in super::super) struct Source {
    core: Arc<Core>,
    arrivals: Option<ArrivalTaker<Part>>,
    sends: bool,
    sent_head: u32,
    /// The peer's memory, mapped when first needed.
    peer: Option<PeerArena>,
}

impl Source {
    pub(in super::super) fn new(core: Arc<Core>, queue: &Arc<Shared>) -> Self {
        let arrivals = Arc::ptr_eq(&core.receive_completions, queue)
            .then(|| ArrivalTaker::new(core.inbox.clone(), core.ring_depth));
        let sends = Arc::ptr_eq(&core.send_completions, queue);
        Source { core, arrivals, sends, sent_head: 0, peer: None }
    }

    pub(in super::super) fn core(&self) -> &Core {
        &self.core
    }

    pub(in super::super) fn arm(&self, arm: Arm) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.arm(arm);
        }
    }

    pub(in super::super) fn stay_awake(&self, awake: bool) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.stay_awake(awake);
        }
    }

    /// Catches the ball, if there is a connection by now. `alone`: nobody else is polled.
    pub(in super::super) fn play(&mut self, alone: bool) {
        if let (Some(arrivals), Some(peer)) = (&mut self.arrivals, self.core.peer.get()) {
            arrivals.play(&peer.ball, alone);
        }
    }

    /// [`ArrivalTaker::places_used`].
    #[cfg(test)]
    pub(in super::super) fn places_used(&self) -> u32 {
        self.arrivals.as_ref().map_or(0, ArrivalTaker::places_used)
    }

    pub(in super::super) fn ready(&mut self) -> bool {
        let receives = self.arrivals.as_mut().is_some_and(|arrivals| {
            arrivals.taken() != self.core.receives_posted.load(Ordering::Acquire)
                && (arrivals.ready() || self.core.state() == State::Error)
        });
        receives || (self.sends && self.core.sent.has_more(self.sent_head))
    }

    #[inline]
    pub(in super::super) fn poll(&mut self, out: &mut [WorkCompletion]) -> usize {
        let mut taken = 0;
        if self.sends {
            taken = self.take_sents(out);
        }
        for entry in &mut out[taken..] {
            if !self.something_arrived() {
                break;
            }
            let Some(completion) = self.take_arrival() else { break };
            *entry = completion;
            taken += 1;
        }
        taken
    }

    /// Whether [`take_arrival`](Self::take_arrival) is worth calling: all that a poll in vain looks at.
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
        let sent = self.core.sent.take(self.sent_head)?;
        self.sent_head = self.sent_head.wrapping_add(1);
        Some(WorkCompletion {
            id: sent.id,
            status: sent.status,
            opcode: sent.opcode,
            bytes: 0,
            immediate: None,
            queue_pair: self.core.number,
        })
    }

    #[inline]
    fn take_arrival(&mut self) -> Option<WorkCompletion> {
        let arrivals = self.arrivals.as_mut()?;
        let core = &*self.core;
        let index = arrivals.taken();
        if index == core.receives_posted.load(Ordering::Acquire) {
            return None; // IDS
        }
        let mut arrival = match arrivals.take() {
            Some(arrival) => Some(arrival),
            None if core.state() == State::Error => {
                if let Some(peer) = core.peer.get() {
                    arrivals.play(&peer.ball, false); // it may be news
                }
                arrivals.take() // DRAIN
            }
            None => return None,
        };
        if let Some(large) = arrival.filter(|arrival| arrival.tag & TAG_SHARED != 0)
            && !core.help_with(&large, arrivals.payload(), &mut self.peer)
        {
            if core.state() != State::Error {
                arrivals.put_back();
                return None; // the sender copies the rest
            }
            if !core.help_with(&large, arrivals.payload(), &mut self.peer) {
                arrivals.put_back(); // DRAIN
                arrival = None; // it never will
            }
        }
        let id = core.receive_ids[(index & (core.ring_depth - 1)) as usize].load(Ordering::Relaxed);
        let mut completion =
            WorkCompletion { id, queue_pair: core.number, ..WorkCompletion::default() };
        match arrival {
            None => {
                arrivals.skip();
                completion.status = Status::Flushed;
                completion.opcode = Opcode::Receive;
            }
            Some(arrival) => {
                let write = arrival.tag & TAG_WRITE != 0;
                completion.opcode =
                    if write { Opcode::ReceiveWithImmediate } else { Opcode::Receive };
                completion.bytes = arrival.bytes;
                completion.immediate =
                    (arrival.tag & TAG_IMMEDIATE != 0).then_some(arrival.immediate);
                if let Some((addr, key)) = arrival.carried_to
                    && arrival.tag & TAG_SHARED == 0
                {
                    let to = RemoteAddress { addr, key };
                    let (ring, payload) = arrivals.payload();
                    carried::land(&core.memory, ring, payload, to, arrival.bytes as usize);
                }
                arrivals.done();
                if arrival.tag & TAG_TOO_LONG != 0 {
                    completion.status = Status::LocalLengthError;
                }
            }
        }
        core.receives_taken.store(arrivals.taken(), Ordering::Release);
        if completion.status == Status::LocalLengthError {
            core.fail();
        }
        Some(completion)
    }
}
