//! The measured call, for everybody the same: a payload goes there and comes back.

use std::time::{Duration, Instant};

use rfaas_program::Failure;

use crate::effort::Effort;
use benchmarks::pattern;
use benchmarks::samples::Samples;

/// Sends a payload there and back.
pub trait Echo {
    /// Puts `bytes` at `offset` of what is sent next.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure>;

    /// What a caller has done before the call, such as building a request. Not measured.
    fn prepare(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// There and back: what is measured. Returns how many bytes came back.
    fn round_trip(&mut self) -> Result<usize, Failure>;

    /// Reads what came back, from `offset` on.
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure>;
}

/// Measures round trips of `payload` bytes. Each result is checked to be its own, and one whole payload is
/// compared in the end.
pub fn measure(echo: &mut impl Echo, payload: u32, effort: Effort) -> Result<Samples, Failure> {
    let samples = sample(echo, payload, effort)?;
    compare_once(echo, payload)?;
    Ok(samples)
}

/// [`measure`] for a contender that returns no more than the stamps of a payload.
pub fn sample(echo: &mut impl Echo, payload: u32, effort: Effort) -> Result<Samples, Failure> {
    let len = payload as usize; // u32 to usize: 64-bit machines only
    let mut number = 0;
    repeat(effort.warm_up(), || {
        number += 1;
        once(echo, len, number)
    })?;
    let mut samples = Samples::with_capacity(effort.most as usize);
    repeat(effort, || {
        number += 1;
        let took = once(echo, len, number)?;
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

fn once(echo: &mut impl Echo, len: usize, number: u64) -> Result<Duration, Failure> {
    pattern::write_stamp(len, number, |offset, bytes| echo.write(offset, bytes))?;
    echo.prepare()?;
    let start = Instant::now();
    let returned = echo.round_trip();
    let took = start.elapsed();
    pattern::compare_length(number, len, returned?)?;
    pattern::check_stamp(len, number, |offset, out| echo.read(offset, out))?;
    Ok(took)
}

/// Fails unless one whole payload of `payload` bytes comes back as it was sent.
pub fn compare_once(echo: &mut impl Echo, payload: u32) -> Result<(), Failure> {
    let (len, number) = (payload as usize, 0); // not one of those that are counted
    let sent = pattern::payload(len);
    echo.write(0, &sent)?;
    echo.prepare()?;
    let returned = echo.round_trip()?;
    pattern::compare_length(number, len, returned)?;
    let mut got = vec![0; len];
    echo.read(0, &mut got)?;
    pattern::compare(number, 0, &sent, &got)
}

#[cfg(test)]
mod tests {
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
