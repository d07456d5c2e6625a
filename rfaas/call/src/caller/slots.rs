//! The input slots of one worker, as its caller knows them: which call each one holds. Pure.
//!
//! ```text
//!   free ──occupy──▶ in flight (ticket, sequence) ──reply of that sequence──▶ free
//! ```
//! * A slot is free again only after its reply. So it stands for at most one call at a time, however far the
//!   sequence has wrapped.
//! * A slot's last request is known here as long as its worker keeps the header too: from a reply that
//!   says that all was well, until another header is written. Such a request is made again without its header.
//! * A reply is not trusted. Unless it names a slot in flight and its sequence, the worker has broken the protocol.

use rdmalib::RemoteAddress;

use super::tickets::Ticket;
use rfaas_protocol::invocation::{ReplyImmediate, ReplyStatus};

/// The slots of one worker.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<SlotState>,
    /// The last one freed is used first: its cache lines are the warmest.
    free: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Default)]
struct SlotState {
    /// The sequence number of the last use, or of the one in flight.
    sequence: u32,
    in_flight: Option<Ticket>,
    /// The request of the last use, or of the one in flight, as long as the worker keeps its header.
    request: Option<KeptRequest>,
}

/// What a request says besides its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptRequest {
    pub function: u16,
    pub reply: RemoteAddress,
    pub capacity: u32,
}

impl Slots {
    pub fn new(count: u16) -> Self {
        Slots {
            slots: vec![SlotState::default(); usize::from(count)],
            free: (0..count).rev().collect(),
        }
    }

    /// Returns how many calls are in flight.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Returns the slot that the next call would use, and the sequence number that it would have there.
    #[inline]
    pub fn next(&self) -> Option<(u16, u32)> {
        let slot = *self.free.last()?;
        Some((slot, self.sequence(slot)))
    }

    /// Returns the sequence number that the next call in `slot` has.
    #[inline]
    pub fn sequence(&self, slot: u16) -> u32 {
        self.slots[usize::from(slot)].sequence.wrapping_add(1)
    }

    /// Returns whether the worker keeps the header of `request` in `slot`.
    #[inline]
    pub fn keeps(&self, slot: u16, request: &KeptRequest) -> bool {
        self.slots[usize::from(slot)].request.as_ref() == Some(request)
    }

    /// Notes the next request in `slot`; `None` if its header will not be kept.
    #[inline]
    pub fn keep(&mut self, slot: u16, request: Option<KeptRequest>) {
        self.slots[usize::from(slot)].request = request;
    }

    /// Gives the next slot to `ticket`.
    #[inline]
    pub fn occupy_next(&mut self, ticket: Ticket) {
        let slot = self.free.pop().expect("only called after `next` found a free slot");
        self.hold(slot, ticket);
    }

    /// Gives `slot`, which is free, to `ticket`.
    #[inline]
    pub fn occupy(&mut self, slot: u16, ticket: Ticket) {
        // It is the last one freed, unless others were freed since.
        let at = self.free.iter().rposition(|free| *free == slot).expect("the slot is free");
        self.free.remove(at);
        self.hold(slot, ticket);
    }

    #[inline]
    fn hold(&mut self, slot: u16, ticket: Ticket) {
        let slot = &mut self.slots[usize::from(slot)];
        slot.sequence = slot.sequence.wrapping_add(1);
        slot.in_flight = Some(ticket);
    }

    /// Returns the call that `reply` answers, or what is wrong with it.
    #[inline]
    pub fn answered(&self, reply: ReplyImmediate) -> Result<Ticket, &'static str> {
        let slot = self
            .slots
            .get(usize::from(reply.slot))
            .ok_or("it answered from a slot that it does not have")?;
        if slot.sequence as u8 != reply.sequence {
            return Err("it answered another invocation than the one in the slot");
        }
        slot.in_flight.ok_or("it answered an invocation twice")
    }

    /// Frees the slot whose call `reply` has [`answered`](Self::answered).
    #[inline]
    pub fn free(&mut self, reply: ReplyImmediate) {
        let slot = &mut self.slots[usize::from(reply.slot)];
        debug_assert!(slot.in_flight.is_some());
        slot.in_flight = None;
        if reply.status != ReplyStatus::Ok {
            slot.request = None; // the worker keeps the header only after a success
        }
        self.free.push(reply.slot);
    }

    /// Returns all calls in flight.
    pub fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.slots.iter().filter_map(|slot| slot.in_flight)
    }

    /// Forgets and returns all calls in flight, of a worker that is lost.
    pub fn drain(&mut self) -> Vec<Ticket> {
        let tickets = self.tickets().collect();
        self.slots.clear();
        self.free.clear();
        tickets
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A reply for `sequence` arrives from `slot`.
    fn reply(slots: &mut Slots, slot: u16, sequence: u32) -> Result<Ticket, &'static str> {
        let reply = ReplyImmediate { slot, status: ReplyStatus::Ok, sequence: sequence as u8 };
        let ticket = slots.answered(reply)?;
        slots.free(reply);
        Ok(ticket)
    }

    #[test]
    fn a_slot_may_be_chosen_among_the_free_ones() {
        let mut slots = Slots::new(3);
        for (slot, ticket) in [(2, 7), (0, 8)] {
            let sequence = slots.sequence(slot);
            slots.occupy(slot, Ticket::new(ticket));
            assert_eq!((slot, sequence), (slot, 1));
        }
        assert_eq!((slots.next(), slots.in_flight()), (Some((1, 1)), 2));
        assert_eq!(reply(&mut slots, 2, 1), Ok(Ticket::new(7)));
        assert_eq!(reply(&mut slots, 0, 1), Ok(Ticket::new(8)));
        slots.occupy(2, Ticket::new(9)); // freed before another one
        assert_eq!((slots.next(), slots.in_flight()), (Some((0, 2)), 1));
        assert_eq!(reply(&mut slots, 2, 2), Ok(Ticket::new(9)));
    }

    #[test]
    fn a_second_reply_is_found_out_whether_the_slot_is_free_or_in_use_again() {
        let mut slots = Slots::new(2);
        let (slot, sequence) = slots.next().unwrap();
        slots.occupy_next(Ticket::new(0));
        reply(&mut slots, slot, sequence).unwrap();
        assert!(reply(&mut slots, slot, sequence).is_err());
        slots.occupy_next(Ticket::new(1));
        assert!(reply(&mut slots, slot, sequence).is_err());
        assert_eq!(slots.in_flight(), 1);
    }

    #[test]
    fn a_reply_from_a_slot_that_does_not_exist_is_found_out() {
        let mut slots = Slots::new(2);
        assert!(reply(&mut slots, 2, 1).is_err());
        assert!(reply(&mut slots, u16::MAX, 0).is_err());
    }

    #[test]
    fn a_request_is_kept_until_another_is_made_or_its_reply_is_a_failure() {
        let mut slots = Slots::new(1);
        let asked = |function| KeptRequest {
            function,
            reply: RemoteAddress { addr: 64, key: 7 },
            capacity: 9,
        };
        let mut ask = |function, status| {
            let (slot, sequence) = slots.next().unwrap();
            let again = slots.keeps(slot, &asked(function));
            slots.keep(slot, Some(asked(function)));
            slots.occupy_next(Ticket::new(0));
            let reply = ReplyImmediate { slot, status, sequence: sequence as u8 };
            slots.answered(reply).unwrap();
            slots.free(reply);
            again
        };
        assert!(!ask(1, ReplyStatus::Ok));
        assert!(ask(1, ReplyStatus::Ok));
        assert!(!ask(2, ReplyStatus::Ok));
        assert!(ask(2, ReplyStatus::OutputTooLarge));
        assert!(!ask(2, ReplyStatus::Ok));
    }

    proptest! {
        /// Whatever the order of replies, each finds its own invocation, from any sequence on, also where
        /// that wraps around. A slot is used again after its reply, and not before.
        #[test]
        fn replies_in_any_order_find_their_invocations(
            start in prop_oneof![any::<u32>(), u32::MAX - 20..=u32::MAX],
            count in 1u16..20,
            steps in proptest::collection::vec(any::<(bool, proptest::sample::Index)>(), 1..400),
        ) {
            let mut slots = Slots::new(count);
            slots.slots.iter_mut().for_each(|slot| slot.sequence = start);
            let mut in_flight: Vec<(u16, u32, Ticket)> = Vec::new();
            for (number, (post, which)) in steps.into_iter().enumerate() {
                if post {
                    let ticket = Ticket::new(number as u32);
                    match slots.next() {
                        Some((slot, sequence)) => {
                            prop_assert!(in_flight.iter().all(|(taken, ..)| *taken != slot));
                            slots.occupy_next(ticket);
                            in_flight.push((slot, sequence, ticket));
                        }
                        None => prop_assert_eq!(in_flight.len(), usize::from(count)),
                    }
                } else if !in_flight.is_empty() {
                    let (slot, sequence, ticket) =
                        in_flight.swap_remove(which.index(in_flight.len()));
                    prop_assert_eq!(reply(&mut slots, slot, sequence), Ok(ticket));
                }
                prop_assert_eq!(slots.in_flight(), in_flight.len());
            }
        }
    }
}
