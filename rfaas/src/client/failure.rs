//! How an invocation ended, in a form that many can share: small, copied, turned into an
//! [`Error`] only for the one who asked.

use std::time::Duration;

use crate::error::{Error, Exit};
use rfaas_protocol::lease::EndReason;

/// What a ticket is resolved with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// So many bytes of output are there.
    Bytes(u32),
    /// The function returned more than fits; the output's header space says how many.
    OutputTooLarge,
    /// The worker knows no such function.
    UnknownFunction,
    /// The worker could not read the request.
    Malformed,
    /// No reply will come.
    Failed(Failure),
}

/// Why no reply will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The executor process ended by itself.
    Exited(Exit),
    /// The lease is over.
    LeaseEnded(EndReason),
    /// The connection is gone, and nobody says why.
    Gone,
    /// This invocation took too long.
    TimeLimit,
    /// Its worker was given up for another reason.
    WorkerLost(&'static str),
}

impl Failure {
    /// As an application sees it; `limit` is the deployment's.
    pub(super) fn into_error(self, limit: Duration) -> Error {
        match self {
            Failure::Exited(Exit::Signal(signal)) => Error::FunctionCrashed { signal },
            Failure::Exited(Exit::Status(status)) => Error::FunctionExited { status },
            Failure::Exited(Exit::Silent) => Error::ExecutorSilent,
            Failure::Exited(Exit::Unknown) | Failure::Gone => Error::ExecutorGone,
            Failure::LeaseEnded(reason) => Error::LeaseEnded { reason },
            Failure::TimeLimit => Error::TimeLimit { after: limit },
            Failure::WorkerLost(reason) => Error::WorkerLost { reason },
        }
    }
}
