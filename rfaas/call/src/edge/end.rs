//! How the work of a worker of a graph ends.

use rdmalib::Status;

/// Why a worker of a graph takes no more runs.
#[derive(Debug, thiserror::Error)]
pub enum HopEnd {
    /// It was stopped.
    #[error("stopped")]
    Stopped,
    /// Who sends over a link is gone: the first of its edges.
    #[error("the sender of input {0} is gone")]
    SenderGone(usize),
    /// Who receives over a link is gone: the first of its edges.
    #[error("the receiver of output {0} is gone")]
    ReceiverGone(usize),
    /// A sender does not follow the protocol.
    #[error("the sender of input {input} broke the protocol: {what}")]
    Breach {
        /// Number of the edge, or of the first one of its link where it names none.
        input: usize,
        /// What it did.
        what: &'static str,
    },
    /// A payload could not be written where the receiver wants it.
    #[error("output {output} was not taken: {status:?}")]
    NotTaken {
        /// Number of the edge.
        output: usize,
        /// What the device says; success if it says nothing, and the receiver takes nothing.
        status: Status,
    },
    /// The library has no such function, which is checked before.
    #[error("the library has no function of number {0}")]
    NoFunction(u32),
    /// The device refused a request.
    #[error(transparent)]
    Device(#[from] rdmalib::Error),
}
