//! How a call ends, and why something is not done.

use std::fmt;
use std::io;

/// How a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The output is written.
    Value,
    /// The function is called again in the same run. What is written in its output is its input 0 then.
    Again,
    /// It has no value in this run.
    NoValue,
    /// The run fails, with a code.
    Failed(i32),
}

/// A function cannot do what it is to do: the run fails, with a code for who looks into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    code: i32,
}

/// Why something is not done that a function asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denied {
    /// There is no such input or edge.
    NoSuch,
    /// The input did not come, or has no value.
    Absent,
    /// The graph does not say that this function may do that; or the call belongs to none.
    Rights,
    /// More bytes than fit.
    Bounds,
    /// It was sent in this run, or the answer to the call before has not come.
    Busy,
    /// The answer did not come in time.
    Time,
    /// The function that was called has failed, or its worker is gone.
    Lost,
    /// Something that this version of the crate has no name for: its number.
    Other(i32),
}

impl Failure {
    /// Makes one with a code. Those of [`Denied`] are negative.
    pub fn new(code: i32) -> Self {
        Failure { code }
    }

    /// Returns the code.
    pub fn code(self) -> i32 {
        self.code
    }
}

impl Denied {
    /// Returns the number that stands for it in `rfaas_function.h`.
    pub fn code(self) -> i32 {
        match self {
            Denied::NoSuch => -1,
            Denied::Absent => -2,
            Denied::Rights => -3,
            Denied::Bounds => -4,
            Denied::Busy => -5,
            Denied::Time => -6,
            Denied::Lost => -7,
            Denied::Other(code) => code,
        }
    }

    /// Returns what an entry of the table has answered.
    pub(crate) fn check(answer: i32) -> Result<(), Denied> {
        Err(match answer {
            0 => return Ok(()),
            -1 => Denied::NoSuch,
            -2 => Denied::Absent,
            -3 => Denied::Rights,
            -4 => Denied::Bounds,
            -5 => Denied::Busy,
            -6 => Denied::Time,
            -7 => Denied::Lost,
            other => Denied::Other(other),
        })
    }
}

impl From<()> for End {
    fn from((): ()) -> Self {
        End::Value
    }
}

/// The run fails with an error's code.
impl<T: Into<End>, E: Into<Failure>> From<Result<T, E>> for End {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(end) => end.into(),
            Err(error) => End::Failed(error.into().code),
        }
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        End::Failed(failure.code)
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        Failure::new(denied.code())
    }
}

/// Of an [`Output`](crate::Output) that is full: the code of [`Denied::Bounds`]. Of anything else: the number of the
/// system, or 1.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WriteZero => Denied::Bounds.into(),
            _ => Failure::new(error.raw_os_error().unwrap_or(1)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the run fails with code {}", self.code)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Denied::NoSuch => "there is no such input or edge",
            Denied::Absent => "the input did not come, or has no value",
            Denied::Rights => "the graph does not say that this function may do that",
            Denied::Bounds => "more bytes than fit",
            Denied::Busy => "it was sent in this run, or an answer has not come",
            Denied::Time => "the answer did not come in time",
            Denied::Lost => "the function that was called has failed, or its worker is gone",
            Denied::Other(code) => return write!(f, "refused with code {code}"),
        })
    }
}

impl std::error::Error for Failure {}
impl std::error::Error for Denied {}
