//! Why an executor has no results any more, as the lease half knows it, and what calls that fail come to.

use std::time::Instant;

use rfaas_call::caller::{CallError, Failure};
use rfaas_protocol::Malformed;
use rfaas_protocol::assignment::STACK_OVERFLOW;
use rfaas_protocol::lease::EndReason;

use crate::error::{Error, Exit};

/// The end of a lease that was not given back: its node is being withdrawn, or its time is over, or its node
/// was lost. Told by [`Lease::on_ending`](crate::Lease::on_ending) and [`Lease::ending`](crate::Lease::ending).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: EndReason,
    /// When the lease ends. Calls in flight then fail.
    pub at: Instant,
}

/// Why there is no executor any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its process ended by itself.
    Exited(Exit),
    /// Its lease is over.
    LeaseEnded(EndReason),
    /// Its node or its manager is gone, and nobody says why.
    Gone,
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Exited(Exit::Signal(STACK_OVERFLOW)) => Error::StackOverflow,
            Cause::Exited(Exit::MemoryRefused { leased_mb, memory }) => {
                Error::MemoryLimit { leased_mb, memory }
            }
            Cause::Exited(Exit::Signal(signal)) => Error::FunctionCrashed { signal },
            Cause::Exited(Exit::Status(status)) => Error::FunctionExited { status },
            Cause::Exited(Exit::Silent) => Error::ExecutorSilent,
            Cause::Exited(Exit::Unknown) | Cause::Gone => Error::ExecutorGone,
            Cause::LeaseEnded(reason) => Error::LeaseEnded { reason },
        }
    }
}

impl From<Failure<Cause>> for Error {
    fn from(failure: Failure<Cause>) -> Self {
        match failure {
            Failure::Ended(cause) => cause.into(),
            Failure::Disconnected => Error::ExecutorGone,
            Failure::TimeLimit(after) => Error::TimeLimit { after },
            Failure::WorkerLost(reason) => Error::WorkerLost { reason },
        }
    }
}

impl From<CallError<Cause>> for Error {
    fn from(error: CallError<Cause>) -> Self {
        match error {
            CallError::Failed(failure) => failure.into(),
            CallError::OutputTooLarge { needed, capacity } => {
                Error::OutputTooLarge { needed, capacity }
            }
            // The number came from the executor's own list: it contradicts itself.
            CallError::UnknownFunction => Malformed::Field("function list").into(),
            CallError::Malformed => Malformed::Field("request header").into(),
            CallError::Busy => Error::AllSlotsBusy,
            CallError::Device(error) => error.into(),
        }
    }
}
