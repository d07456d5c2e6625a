//! Which inputs of a run are there. Pure.

use rfaas_protocol::edge::{EdgeFailure, EdgeStatus};

use super::incoming::Arrival;

/// The runs of a worker, one a slot: a function is called when all of its inputs are there.
#[derive(Debug)]
pub(super) struct Joins {
    /// The bit of each input.
    all: u64,
    slots: Box<[Join]>,
    /// Sizes of inputs, by slot and input.
    bytes: Box<[u32]>,
    inputs: usize,
}

/// What there is of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Join {
    /// Inputs that are there, a bit each. None: the last run of this slot is over.
    there: u64,
    /// Low byte of its number.
    run: u8,
    /// What the first of them says that has failed.
    failed: Option<EdgeFailure>,
}

/// What becomes of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joined {
    /// More is to come, or it was there already.
    Waits,
    /// That was the last one.
    Complete {
        /// Why the function is not to be called.
        failed: Option<EdgeFailure>,
    },
}

impl Joins {
    /// Makes those of a worker with `inputs` inputs, from 1 to 64, and `slots` slots.
    pub(super) fn new(inputs: usize, slots: u16) -> Self {
        debug_assert!((1..=64).contains(&inputs));
        let all = u64::MAX >> (64 - inputs.clamp(1, 64));
        let slots = usize::from(slots);
        let joins = vec![Join::default(); slots].into();
        Joins { all, slots: joins, bytes: vec![0; slots * inputs].into(), inputs }
    }

    /// Notes an arrival of input number `input`; `failure` is read if it says that the run has failed.
    #[inline]
    pub(super) fn arrived<E: From<&'static str>>(
        &mut self,
        input: usize,
        arrival: &Arrival,
        failure: impl FnOnce() -> Result<EdgeFailure, E>,
    ) -> Result<Joined, E> {
        let slot = usize::from(arrival.slot);
        let join = &mut self.slots[slot];
        let bit = 1 << input;
        if join.there == 0 {
            join.run = arrival.run;
        } else if join.run != arrival.run {
            return Err("it began a run in a slot that is in use".into());
        } else if join.there & bit != 0 {
            return Err("it wrote to a slot twice in a run".into());
        }
        if arrival.status == EdgeStatus::Failed {
            let failure = failure()?;
            join.failed.get_or_insert(failure);
        }
        self.bytes[slot * self.inputs + input] = arrival.bytes;
        join.there |= bit;
        if join.there != self.all {
            return Ok(Joined::Waits);
        }
        join.there = 0;
        Ok(Joined::Complete { failed: join.failed.take() })
    }

    /// Returns how many bytes of input number `input` the run in `slot` has.
    #[inline]
    pub(super) fn bytes(&self, slot: u16, input: usize) -> u32 {
        self.bytes[usize::from(slot) * self.inputs + input]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILURE: EdgeFailure = EdgeFailure {
        because: zerocopy::little_endian::U16::new(1),
        function: zerocopy::little_endian::U16::new(7),
        returned: zerocopy::little_endian::U32::new(9),
        most: zerocopy::little_endian::U64::new(8),
    };

    fn arrive(
        joins: &mut Joins,
        input: usize,
        (slot, run): (u16, u8),
        status: EdgeStatus,
    ) -> Result<Joined, &'static str> {
        let arrival = Arrival { slot, run, status, bytes: 10 + input as u32 };
        joins.arrived(input, &arrival, || Ok(FAILURE))
    }

    #[test]
    fn a_run_is_complete_when_all_inputs_are_there_in_whatever_order() {
        let mut joins = Joins::new(3, 2);
        let mut arrive = |input, slot| arrive(&mut joins, input, (slot, 5), EdgeStatus::Value);
        assert_eq!(arrive(2, 0), Ok(Joined::Waits));
        assert_eq!(arrive(0, 1), Ok(Joined::Waits));
        assert_eq!(arrive(0, 0), Ok(Joined::Waits));
        assert_eq!(arrive(1, 0), Ok(Joined::Complete { failed: None }));
        assert_eq!(arrive(1, 1), Ok(Joined::Waits));
        assert_eq!(arrive(2, 1), Ok(Joined::Complete { failed: None }));
        assert_eq!([0, 1, 2].map(|input| joins.bytes(0, input)), [10, 11, 12]);
    }

    #[test]
    fn the_last_of_64_inputs_counts_like_the_first() {
        let mut joins = Joins::new(64, 1);
        for input in 0..63 {
            let joined = arrive(&mut joins, input, (0, 1), EdgeStatus::Value);
            assert_eq!(joined, Ok(Joined::Waits));
        }
        let joined = arrive(&mut joins, 63, (0, 1), EdgeStatus::Value);
        assert_eq!(joined, Ok(Joined::Complete { failed: None }));
    }

    #[test]
    fn one_failure_fails_the_run_and_only_that() {
        let mut joins = Joins::new(2, 1);
        assert_eq!(arrive(&mut joins, 1, (0, 1), EdgeStatus::Failed), Ok(Joined::Waits));
        let failed = Some(FAILURE);
        let joined = arrive(&mut joins, 0, (0, 1), EdgeStatus::Value);
        assert_eq!(joined, Ok(Joined::Complete { failed }));
        assert_eq!(arrive(&mut joins, 1, (0, 2), EdgeStatus::Value), Ok(Joined::Waits));
        let joined = arrive(&mut joins, 0, (0, 2), EdgeStatus::Value);
        assert_eq!(joined, Ok(Joined::Complete { failed: None }));
    }

    #[test]
    fn a_sender_that_writes_twice_or_to_another_run_is_found_out() {
        let mut joins = Joins::new(2, 1);
        assert_eq!(arrive(&mut joins, 0, (0, 1), EdgeStatus::Value), Ok(Joined::Waits));
        assert!(arrive(&mut joins, 0, (0, 1), EdgeStatus::Value).is_err());
        assert!(arrive(&mut joins, 1, (0, 2), EdgeStatus::Value).is_err());
    }
}
