//! Which inputs of a run are there, and whether the function is to be called. Pure.

use std::time::Instant;

use rfaas_protocol::edge::{EdgeFailure, FailedBecause, Join};

use super::stage::{JoinPlan, Stage};

/// The runs of a stage, one a slot.
#[derive(Debug)]
pub struct Joins {
    plan: JoinPlan,
    /// Number of the function in the graph, and which of its workers this is.
    function: (u16, u16),
    /// The bits of the inputs that are waited for.
    all: u64,
    slots: Box<[Slot]>,
    /// Sizes of inputs, by slot and input.
    bytes: Box<[u32]>,
    inputs: usize,
}

/// What there is of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Inputs that have come, a bit each. None: the last run of this slot is over.
    there: u64,
    /// Those of them that have a value, and that the function gets.
    values: u64,
    /// Those that the function is still to be tried with ([`Join::Any`]).
    untried: u32,
    /// Low byte of its number.
    run: u8,
    /// The function is, or was, called for the last time in this run; or it is not, since the run has failed.
    decided: bool,
    /// What became of that was sent.
    settled: bool,
    /// Why the first input that has none has no value.
    failed: Option<EdgeFailure>,
    /// When the first input came, if that counts.
    since: Option<Instant>,
}

/// What has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// So many bytes.
    Value(u32),
    /// No value, for this reason.
    Failed(EdgeFailure),
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// Nothing: more is to come, or this was too late to matter.
    Waits,
    /// The function is to be called.
    Call,
    /// The run has failed here, or before.
    Failed(EdgeFailure),
}

impl Joins {
    /// Makes those of `stage`, for runs in `slots` slots.
    pub fn new(stage: &Stage, slots: u16) -> Self {
        let (slots, inputs) = (usize::from(slots), stage.inputs.len());
        debug_assert!(inputs <= 64, "a bit each");
        Joins {
            plan: stage.join,
            function: (stage.function.1, stage.member.0),
            all: stage.joined(),
            slots: vec![Slot::default(); slots].into(),
            bytes: vec![0; slots * inputs].into(),
            inputs,
        }
    }

    /// Notes that `input` has come for `run` in `slot`; `now` is asked for where time counts.
    #[inline]
    pub fn arrived(
        &mut self,
        (slot, run): (u16, u8),
        number: usize,
        input: Input,
        now: impl FnOnce() -> Instant,
    ) -> Result<Joined, &'static str> {
        let at = usize::from(slot);
        let join = &mut self.slots[at];
        let bit = 1 << number;
        if join.there == 0 {
            *join = Slot { run, ..Slot::default() };
            join.since = self.plan.within.map(|_| now());
        } else if join.run != run {
            return Err("it began a run in a slot that is in use");
        } else if join.there & bit != 0 {
            return Ok(Joined::Waits); // once more: what was there first counts
        }
        join.there |= bit;
        match input {
            Input::Value(bytes) => {
                self.bytes[at * self.inputs + number] = bytes;
                if !join.decided {
                    join.values |= bit;
                }
            }
            Input::Failed(failure) => {
                join.failed.get_or_insert(failure);
            }
        }
        Ok(self.decide(slot, matches!(input, Input::Value(_))))
    }

    /// Decides after an input has come, with a value or without.
    #[inline]
    fn decide(&mut self, slot: u16, value: bool) -> Joined {
        let join = &mut self.slots[usize::from(slot)];
        if join.decided {
            return Joined::Waits;
        }
        let (values, left) = (join.values.count_ones(), (self.all & !join.there).count_ones());
        let all_there = left == 0;
        match self.plan.kind {
            Join::All if !all_there => Joined::Waits,
            Join::All => {
                join.decided = true;
                join.failed.map_or(Joined::Call, Joined::Failed)
            }
            Join::Of if values >= self.plan.wanted => {
                join.decided = true;
                Joined::Call
            }
            Join::Of if values + left < self.plan.wanted => self.too_few(slot),
            Join::Of => Joined::Waits,
            Join::Any if value => {
                join.untried += 1;
                Joined::Call
            }
            Join::Any if all_there && join.untried == 0 => self.too_few(slot),
            Join::Any => Joined::Waits,
        }
    }

    /// Too few inputs have a value.
    #[cold]
    fn too_few(&mut self, slot: u16) -> Joined {
        let join = &mut self.slots[usize::from(slot)];
        join.decided = true;
        if let (Join::All, Some(failure)) = (self.plan.kind, join.failed) {
            return Joined::Failed(failure); // those that are there in time have all failed
        }
        let wanted = if self.plan.kind == Join::Of { self.plan.wanted } else { 1 };
        Joined::Failed(EdgeFailure {
            because: FailedBecause::TooFew.to_wire(),
            function: self.function.0.into(),
            member: self.function.1.into(),
            unused: 0.into(),
            returned: join.values.count_ones().into(),
            most: wanted.into(),
        })
    }

    /// Returns whether a call that was to be made is still to be made.
    #[inline]
    pub(super) fn is_wanted(&self, slot: u16, run: u8) -> bool {
        let join = &self.slots[usize::from(slot)];
        join.run == run && join.there != 0 && !join.settled && (!self.is_any() || !join.decided)
    }

    /// Returns whether each input is tried by itself.
    #[inline]
    pub(super) fn is_any(&self) -> bool {
        self.plan.kind == Join::Any
    }

    /// Notes that the function, tried with an input, has no value. Returns why the run has failed, if that was the
    /// last.
    #[cold]
    pub(super) fn tried_in_vain(&mut self, slot: u16) -> Option<EdgeFailure> {
        let all = self.all;
        let join = &mut self.slots[usize::from(slot)];
        join.untried = join.untried.saturating_sub(1);
        if join.untried > 0 || join.there != all {
            return None;
        }
        join.values = 0;
        match self.too_few(slot) {
            Joined::Failed(failure) => Some(failure),
            Joined::Waits | Joined::Call => None,
        }
    }

    /// Notes that what became of the run in `slot` was sent.
    #[inline]
    pub fn settle(&mut self, slot: u16) {
        let join = &mut self.slots[usize::from(slot)];
        (join.decided, join.settled) = (true, true);
    }

    /// Returns whether the run in `slot` is over: all has come, and all was sent. Then the slot is free for the next.
    #[inline]
    pub fn is_over(&mut self, slot: u16) -> bool {
        let join = &mut self.slots[usize::from(slot)];
        let over = join.settled && join.there == self.all;
        if over {
            join.there = 0;
        }
        over
    }

    /// Returns the slot and run of a call that is due since the time for more inputs is over, and when the next one is.
    pub fn due(&mut self, now: Instant) -> (Option<(u16, u8, Joined)>, Option<Instant>) {
        let Some(within) = self.plan.within.filter(|_| !self.is_any()) else { return (None, None) };
        let mut next: Option<Instant> = None;
        for slot in 0..self.slots.len() {
            let join = &mut self.slots[slot];
            let waits = join.there != 0 && !join.decided;
            let Some(since) = join.since.filter(|_| waits) else { continue };
            let at = since + within;
            if at > now {
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            let (run, slot) = (join.run, slot as u16); // one of at most 1024
            let joined = if join.values == 0 { self.too_few(slot) } else { Joined::Call };
            self.slots[usize::from(slot)].decided = true;
            return (Some((slot, run, joined)), Some(now));
        }
        (None, next)
    }

    /// Returns how many bytes of input `number` the run in `slot` has. `None`: none that the function gets.
    #[inline]
    pub fn bytes(&self, slot: u16, number: usize) -> Option<u32> {
        let at = usize::from(slot);
        let there = self.slots[at].values & 1 << number != 0;
        there.then(|| self.bytes[at * self.inputs + number])
    }

    /// Returns the first input that the function gets.
    #[inline]
    pub(super) fn first(&self, slot: u16) -> Option<usize> {
        let values = self.slots[usize::from(slot)].values;
        (values != 0).then(|| values.trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use rfaas_protocol::edge::{InputKind, Takes};

    use super::super::stage::{InputFrom, StageInput};
    use super::*;

    const FAILURE: EdgeFailure = EdgeFailure {
        because: zerocopy::little_endian::U16::new(1),
        function: zerocopy::little_endian::U16::new(7),
        member: zerocopy::little_endian::U16::new(3),
        unused: zerocopy::little_endian::U16::new(0),
        returned: zerocopy::little_endian::U32::new(9),
        most: zerocopy::little_endian::U32::new(8),
    };

    fn joins(inputs: usize, kind: Join, wanted: u32, within: Option<Duration>) -> Joins {
        let input = |number| StageInput { from: InputFrom::Edge(number), kind: InputKind::Whole };
        let stage = Stage {
            function: (0, 7),
            member: (0, 1),
            join: JoinPlan { kind, wanted, within },
            takes: Takes::Whole,
            batch: None,
            inputs: (0..inputs).map(input).collect(),
            outputs: Vec::new(),
        };
        Joins::new(&stage, 2)
    }

    fn arrive(
        joins: &mut Joins,
        number: usize,
        slot: u16,
        run: u8,
    ) -> Result<Joined, &'static str> {
        joins.arrived((slot, run), number, Input::Value(10 + number as u32), Instant::now)
    }

    fn fail(joins: &mut Joins, number: usize) -> Joined {
        joins.arrived((0, 1), number, Input::Failed(FAILURE), Instant::now).unwrap()
    }

    #[test]
    fn a_run_is_complete_when_all_inputs_are_there_in_whatever_order() {
        let mut joins = joins(3, Join::All, 0, None);
        assert_eq!(arrive(&mut joins, 2, 0, 5), Ok(Joined::Waits));
        assert_eq!(arrive(&mut joins, 0, 1, 5), Ok(Joined::Waits));
        assert_eq!(arrive(&mut joins, 0, 0, 5), Ok(Joined::Waits));
        assert_eq!(arrive(&mut joins, 1, 0, 5), Ok(Joined::Call));
        assert_eq!([0, 1, 2].map(|number| joins.bytes(0, number)), [Some(10), Some(11), Some(12)]);
        joins.settle(0);
        assert!(joins.is_over(0));
        assert_eq!(arrive(&mut joins, 1, 1, 5), Ok(Joined::Waits));
        assert_eq!(arrive(&mut joins, 2, 1, 5), Ok(Joined::Call));
        assert!(!joins.is_over(1), "it is not sent yet");
    }

    #[test]
    fn the_last_of_64_inputs_counts_like_the_first() {
        let mut joins = joins(64, Join::All, 0, None);
        for number in 0..63 {
            assert_eq!(arrive(&mut joins, number, 0, 1), Ok(Joined::Waits));
        }
        assert_eq!(arrive(&mut joins, 63, 0, 1), Ok(Joined::Call));
    }

    #[test]
    fn one_failure_fails_the_run_and_only_that() {
        let mut joins = joins(2, Join::All, 0, None);
        assert_eq!(fail(&mut joins, 1), Joined::Waits);
        assert_eq!(arrive(&mut joins, 0, 0, 1), Ok(Joined::Failed(FAILURE)));
        joins.settle(0);
        assert!(joins.is_over(0));
        assert_eq!(arrive(&mut joins, 1, 0, 2), Ok(Joined::Waits));
        assert_eq!(arrive(&mut joins, 0, 0, 2), Ok(Joined::Call));
    }

    #[test]
    fn a_sender_that_writes_to_another_run_is_found_out_and_one_that_writes_twice_changes_nothing()
    {
        let mut joins = joins(2, Join::All, 0, None);
        assert_eq!(arrive(&mut joins, 0, 0, 1), Ok(Joined::Waits));
        assert_eq!(
            joins.arrived((0, 1), 0, Input::Failed(FAILURE), Instant::now),
            Ok(Joined::Waits)
        );
        assert!(arrive(&mut joins, 1, 0, 2).is_err());
        assert_eq!(arrive(&mut joins, 1, 0, 1), Ok(Joined::Call));
        assert_eq!(joins.bytes(0, 0), Some(10));
    }

    #[test]
    fn the_first_two_of_three_are_taken_and_the_slot_waits_for_the_third() {
        let mut joins = joins(3, Join::Of, 2, None);
        assert_eq!(arrive(&mut joins, 2, 0, 1), Ok(Joined::Waits));
        assert_eq!(arrive(&mut joins, 0, 0, 1), Ok(Joined::Call));
        assert_eq!([0, 1, 2].map(|number| joins.bytes(0, number)), [Some(10), None, Some(12)]);
        joins.settle(0);
        assert!(!joins.is_over(0), "the third is on its way");
        assert!(arrive(&mut joins, 1, 0, 2).is_err(), "of another run");
        assert_eq!(arrive(&mut joins, 1, 0, 1), Ok(Joined::Waits));
        assert_eq!(joins.bytes(0, 1), None, "it was too late");
        assert!(joins.is_over(0));
    }

    #[test]
    fn two_of_three_bear_one_failure_and_not_two() {
        let mut joins = joins(3, Join::Of, 2, None);
        assert_eq!(fail(&mut joins, 0), Joined::Waits);
        assert_eq!(arrive(&mut joins, 1, 0, 1), Ok(Joined::Waits));
        assert_eq!(arrive(&mut joins, 2, 0, 1), Ok(Joined::Call));
        joins.settle(0);
        assert!(joins.is_over(0));
        assert_eq!(fail(&mut joins, 0), Joined::Waits);
        let Joined::Failed(failure) = fail(&mut joins, 1) else { panic!("one is left of two") };
        assert_eq!(failure.because, FailedBecause::TooFew.to_wire());
        assert_eq!((failure.function.get(), failure.returned.get(), failure.most.get()), (7, 0, 2));
    }

    #[test]
    fn each_is_tried_until_one_has_a_value() {
        let mut joins = joins(3, Join::Any, 0, None);
        assert_eq!(arrive(&mut joins, 1, 0, 1), Ok(Joined::Call));
        assert!(joins.is_wanted(0, 1));
        assert_eq!(joins.tried_in_vain(0), None);
        assert_eq!(arrive(&mut joins, 0, 0, 1), Ok(Joined::Call));
        joins.settle(0);
        assert_eq!(arrive(&mut joins, 2, 0, 1), Ok(Joined::Waits), "a later one does nothing");
        assert!(!joins.is_wanted(0, 1));
        assert!(joins.is_over(0));
    }

    #[test]
    fn a_run_in_which_none_has_a_value_has_failed() {
        let mut joins = joins(2, Join::Any, 0, None);
        assert_eq!(arrive(&mut joins, 1, 0, 1), Ok(Joined::Call));
        assert_eq!(arrive(&mut joins, 0, 0, 1), Ok(Joined::Call));
        assert_eq!(joins.tried_in_vain(0), None);
        let failure = joins.tried_in_vain(0).unwrap();
        assert_eq!(failure.because, FailedBecause::TooFew.to_wire());
        joins.settle(0);
        assert!(joins.is_over(0));
        assert_eq!(fail(&mut joins, 0), Joined::Waits);
        assert!(matches!(fail(&mut joins, 1), Joined::Failed(_)));
    }

    #[test]
    fn after_some_time_what_is_there_is_enough() {
        let within = Duration::from_millis(10);
        let mut joins = joins(3, Join::All, 0, Some(within));
        let start = Instant::now();
        assert_eq!(joins.due(start), (None, None));
        let arrived = joins.arrived((1, 4), 2, Input::Value(5), || start);
        assert_eq!(arrived, Ok(Joined::Waits));
        assert_eq!(joins.due(start), (None, Some(start + within)));
        let (due, _) = joins.due(start + within);
        assert_eq!(due, Some((1, 4, Joined::Call)));
        assert_eq!((joins.first(1), joins.bytes(1, 2)), (Some(2), Some(5)));
        joins.settle(1);
        assert_eq!(joins.due(start + within), (None, None));
        assert_eq!(arrive(&mut joins, 0, 1, 4), Ok(Joined::Waits));
        assert!(!joins.is_over(1));
        assert_eq!(arrive(&mut joins, 1, 1, 4), Ok(Joined::Waits));
        assert!(joins.is_over(1));
    }

    proptest! {
        /// Whatever comes, in whatever order: a function is called at most once in a run unless each input is tried,
        /// and every run in which all has come is decided.
        #[test]
        fn a_run_is_decided_once_and_always(
            inputs in 1usize..8, wanted in 1u32..8, kind in 0u8..3,
            order in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 8),
        ) {
            let kind = [Join::All, Join::Of, Join::Any][usize::from(kind)];
            let mut joins = joins(inputs, kind, wanted.min(inputs as u32), None);
            let mut left: Vec<usize> = (0..inputs).collect();
            let (mut calls, mut failures) = (0, 0);
            for (index, fails) in order.iter().take(inputs) {
                let number = left.swap_remove(index.index(left.len()));
                let input = if *fails { Input::Failed(FAILURE) } else { Input::Value(1) };
                match joins.arrived((0, 9), number, input, Instant::now).unwrap() {
                    Joined::Waits => {}
                    Joined::Failed(_) => { failures += 1; joins.settle(0) }
                    Joined::Call if kind == Join::Any => {
                        calls += 1;
                        if joins.tried_in_vain(0).is_some() { failures += 1; joins.settle(0) }
                    }
                    Joined::Call => { calls += 1; joins.settle(0) }
                }
            }
            match kind {
                Join::Any => prop_assert!(failures == 1 && calls <= inputs),
                _ => prop_assert_eq!(calls + failures, 1),
            }
            prop_assert!(joins.is_over(0));
        }
    }
}
