//! The input slots of one worker: which invocation each one holds. Pure.
//!
//! ```text
//!   free ──occupy──▶ in flight (ticket, sequence) ──reply of that sequence──▶ free
//! ```
//! * ONE-USE - a slot is free again only after its reply, so at most one invocation is ever meant
//!   by it, however far the sequence has wrapped.
//! * AGAIN - what was asked of a slot is known here as long as its worker has it too: once it has answered that
//!   all was well.
//! * CHECKED - a reply is a worker's word: unless it names a slot in flight and its sequence, the
//!   worker has broken the protocol.

use rdmalib::RemoteAddress;

use super::tickets::Ticket;
use rfaas_protocol::invocation::{ReplyImmediate, ReplyStatus};

/// The slots of one worker.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// Last freed, first used: its lines are the warmest.
    free: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Of the last use, or of the one in flight.
    sequence: u32,
    in_flight: Option<Ticket>,
    /// AGAIN. Of the last use, or of the one in flight.
    asked: Option<Asked>,
}

/// What a request says besides its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) function: u32,
    pub(super) reply: RemoteAddress,
    pub(super) capacity: u32,
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        Slots { slots: vec![Slot::default(); usize::from(count)], free: (0..count).rev().collect() }
    }

    /// Invocations in flight.
    #[inline]
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The slot that the next invocation would use, and the sequence that it would have there.
    #[inline]
    pub(super) fn next(&self) -> Option<(u16, u32)> {
        let slot = *self.free.last()?;
        Some((slot, self.sequence(slot)))
    }

    /// The sequence that the next invocation in `slot` has.
    #[inline]
    pub(super) fn sequence(&self, slot: u16) -> u32 {
        self.slots[usize::from(slot)].sequence.wrapping_add(1)
    }

    /// Whether the next invocation in `slot` asks what the last one there did.
    #[inline]
    pub(super) fn is_again(&self, slot: u16, asked: &Asked) -> bool {
        self.slots[usize::from(slot)].asked.as_ref() == Some(asked)
    }

    /// The next invocation in `slot` asks this; `None` if it is nothing that can be asked again.
    #[inline]
    pub(super) fn ask(&mut self, slot: u16, asked: Option<Asked>) {
        self.slots[usize::from(slot)].asked = asked;
    }

    /// Gives that slot to `ticket`.
    #[inline]
    pub(super) fn occupy_next(&mut self, ticket: Ticket) {
        let slot = self.free.pop().expect("only called after `next` found a free slot");
        self.hold(slot, ticket);
    }

    /// Gives `slot`, which is free, to `ticket`.
    #[inline]
    pub(super) fn occupy(&mut self, slot: u16, ticket: Ticket) {
        // The last one freed, unless others were freed since.
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

    /// The invocation that `reply` answers, or what is wrong with it (CHECKED).
    #[inline]
    pub(super) fn answered(&self, reply: ReplyImmediate) -> Result<Ticket, &'static str> {
        let slot = self
            .slots
            .get(usize::from(reply.slot))
            .ok_or("it answered from a slot that it does not have")?;
        if slot.sequence as u8 != reply.sequence {
            return Err("it answered another invocation than the one in the slot");
        }
        slot.in_flight.ok_or("it answered an invocation twice")
    }

    /// `reply` has [`answered`](Self::answered) the invocation in its slot, which is free again (ONE-USE).
    #[inline]
    pub(super) fn free(&mut self, reply: ReplyImmediate) {
        let slot = &mut self.slots[usize::from(reply.slot)];
        debug_assert!(slot.in_flight.is_some());
        slot.in_flight = None;
        if reply.status != ReplyStatus::Ok {
            slot.asked = None; // AGAIN
        }
        self.free.push(reply.slot);
    }

    /// All invocations in flight.
    pub(super) fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.slots.iter().filter_map(|slot| slot.in_flight)
    }

    /// Forgets all invocations in flight, of a worker that is lost.
    pub(super) fn drain(&mut self) -> Vec<Ticket> {
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
    fn a_slot_is_reused_after_its_reply_and_not_before() {
        let mut slots = Slots::new(1);
        let (slot, sequence) = slots.next().unwrap();
        slots.occupy_next(Ticket::new(7));
        assert_eq!(slots.next(), None);
        assert_eq!(reply(&mut slots, slot, sequence), Ok(Ticket::new(7)));
        assert_eq!(slots.next(), Some((slot, sequence + 1)));
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
    fn what_was_asked_is_known_until_something_else_is_or_it_was_not_well() {
        let mut slots = Slots::new(1);
        let asked =
            |function| Asked { function, reply: RemoteAddress { addr: 64, key: 7 }, capacity: 9 };
        let mut ask = |function, status| {
            let (slot, sequence) = slots.next().unwrap();
            let again = slots.is_again(slot, &asked(function));
            slots.ask(slot, Some(asked(function)));
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

    #[test]
    fn sequences_wrap_around() {
        let mut slots = Slots::new(1);
        slots.slots[0].sequence = u32::MAX;
        let (slot, sequence) = slots.next().unwrap();
        assert_eq!(sequence, 0);
        slots.occupy_next(Ticket::new(3));
        assert_eq!(reply(&mut slots, slot, sequence), Ok(Ticket::new(3)));
    }

    proptest! {
        /// Whatever the order of replies, each finds its own invocation, from any sequence on.
        #[test]
        fn replies_in_any_order_find_their_invocations(
            start in any::<u32>(),
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
