//! How often the measured call is made.

use std::time::Instant;

use rfaas_program::Failure;

use crate::effort::Effort;
pub use benchmarks::echo::Echo;
use benchmarks::echo::{Known, compare_once, once};
use benchmarks::samples::Samples;

/// Measures round trips of `payload` bytes. Each result is checked to be its own, and one whole payload is
/// compared in the end.
pub fn measure(echo: &mut impl Echo, payload: u32, effort: Effort) -> Result<Samples, Failure> {
    let samples = sample(echo, payload, effort)?;
    compare_once(echo, payload as usize, 0)?; // a number that no repetition has
    Ok(samples)
}

/// [`measure`] for a contender that returns no more than the stamps of a payload.
pub fn sample(echo: &mut impl Echo, payload: u32, effort: Effort) -> Result<Samples, Failure> {
    let len = payload as usize; // u32 to usize: 64-bit machines only
    let mut number = 0;
    repeat(effort.warm_up(), || {
        number += 1;
        once(echo, Known::Stamps, len, number)
    })?;
    let mut samples = Samples::with_capacity(effort.most as usize);
    repeat(effort, || {
        number += 1;
        let took = once(echo, Known::Stamps, len, number)?;
        samples.record(took);
        Ok(took)
    })?;
    Ok(samples)
}

/// Does `what` as often as `effort` says.
pub fn repeat<T>(
    effort: Effort,
    mut what: impl FnMut() -> Result<T, Failure>,
) -> Result<(), Failure> {
    let start = Instant::now();
    let mut done = 0;
    while !effort.is_over(done, start.elapsed()) {
        what()?;
        done += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Returns what it was given, or after some calls something else.
    struct Mirror {
        payload: Vec<u8>,
        answer: Vec<u8>,
        good: u32,
    }

    impl Echo for Mirror {
        fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
            self.payload[offset..offset + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }

        fn round_trip(&mut self) -> Result<usize, Failure> {
            if self.good > 0 {
                self.good -= 1;
                self.answer.clone_from(&self.payload);
            }
            Ok(self.answer.len())
        }

        fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
            out.copy_from_slice(&self.answer[offset..offset + out.len()]);
            Ok(())
        }
    }

    #[test]
    fn as_many_samples_are_taken_as_the_effort_says() {
        let mut mirror = Mirror { payload: vec![0; 64], answer: vec![], good: u32::MAX };
        let effort = Effort { most: 30, least: 30, time: Duration::ZERO };
        assert_eq!(measure(&mut mirror, 64, effort).unwrap().each().len(), 30);
    }

    #[test]
    fn an_old_answer_is_no_sample() {
        let effort = Effort { most: 30, least: 30, time: Duration::ZERO };
        for good in [0, 1, 10] {
            let mut mirror = Mirror { payload: vec![0; 64], answer: vec![0; 64], good };
            let error = measure(&mut mirror, 64, effort).unwrap_err().to_string();
            assert!(error.contains("wrong result"), "{error}");
        }
    }
}
