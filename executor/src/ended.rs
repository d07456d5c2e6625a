//! How an executor ends.

use std::time::Duration;

use rfaas_program::describe;

use crate::plan::BadAssignment;

/// Longest wait for the manager to take the last lines of the log. It reads them while it runs.
pub const LAST_LINES: Duration = Duration::from_millis(100);

/// Exit status of an executor whose library could not be loaded; its client knows why.
pub const LOAD_FAILED: i32 = 3;

/// Why an executor failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The assignment makes no sense.
    #[error(transparent)]
    Assignment(#[from] BadAssignment),
    /// The device of the assignment cannot be opened.
    #[error("{0}")]
    Device(String),
    /// Anything that went wrong later.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// Exit status: 2 if what was asked for makes no sense, else 1.
    pub fn exit_status(&self) -> i32 {
        match self {
            Error::Assignment(_) | Error::Device(_) => 2,
            Error::Failed(_) => 1,
        }
    }

    pub(crate) fn failed(what: &str, error: &dyn std::error::Error) -> Self {
        Error::Failed(format!("{what}: {}", describe(error)))
    }
}

/// How an executor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Exit status: 0, [`LOAD_FAILED`] or [`MANAGER_LOST`](rfaas_protocol::assignment::MANAGER_LOST).
    pub status: i32,
    /// No code of the library runs any more, so that the process may end in the orderly way ([`leave`](crate::leave)).
    pub orderly: bool,
}
