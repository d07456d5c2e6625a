//! The measured call, the same for all: a payload goes there and comes back.

use std::time::{Duration, Instant};

use rfaas_program::Failure;

use crate::pattern;

/// Sends a payload there and back.
pub trait Echo {
    /// Puts `bytes` at `offset` of what is sent next.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure>;

    /// Does what a caller has done before the call, such as building a request. Not measured.
    fn prepare(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// There and back: what is measured. Returns how many bytes came back.
    fn round_trip(&mut self) -> Result<usize, Failure>;

    /// Does a round trip. Returns how long it took, and how many bytes came back.
    fn timed_round_trip(&mut self) -> Result<(Duration, usize), Failure> {
        let start = Instant::now();
        let returned = self.round_trip();
        let took = start.elapsed();
        Ok((took, returned?))
    }

    /// Reads what came back, from `offset` on.
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure>;
}

/// What is known of what comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is what was sent.
    All,
    /// It is as long as what was sent, and the same where that is stamped.
    Stamps,
    /// Nothing.
    Nothing,
}

impl Known {
    /// Of the shipped function of this name.
    pub fn of(function: &str) -> Self {
        match function {
            "empty" => Known::All,
            "edges" => Known::Stamps,
            _ => Known::Nothing,
        }
    }
}

/// Measures one round trip of `len` bytes, and checks that its result is its own, if so much is known.
pub fn once(
    echo: &mut impl Echo,
    known: Known,
    len: usize,
    number: u64,
) -> Result<Duration, Failure> {
    let is_checked = known != Known::Nothing;
    if is_checked {
        pattern::write_stamp(len, number, |offset, bytes| echo.write(offset, bytes))?;
    }
    echo.prepare()?;
    let (took, returned) = echo.timed_round_trip()?;
    if is_checked {
        pattern::compare_length(number, len, returned)?;
        pattern::check_stamp(len, number, |offset, out| echo.read(offset, out))?;
    }
    Ok(took)
}

/// Fails, as repetition `number`, unless one whole payload of `len` bytes comes back as it was sent.
pub fn compare_once(echo: &mut impl Echo, len: usize, number: u64) -> Result<(), Failure> {
    let sent = pattern::payload(len);
    echo.write(0, &sent)?;
    let got = call(echo, usize::MAX)?;
    pattern::compare(number, 0, &sent, &got)
}

/// Makes a call that is not measured. Returns at most `most` bytes of what came back.
pub fn call(echo: &mut impl Echo, most: usize) -> Result<Vec<u8>, Failure> {
    echo.prepare()?;
    let mut got = vec![0; echo.round_trip()?.min(most)];
    echo.read(0, &mut got)?;
    Ok(got)
}
