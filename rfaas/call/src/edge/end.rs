//! How the work of a worker of a graph ends.

use rdmalib::Status;

/// Why a worker of a graph takes no more runs.
#[derive(Debug, thiserror::Error)]
pub enum HopEnd {
    /// It was stopped.
    #[error("stopped")]
    Stopped,
    /// Who sends over an edge is gone.
    #[error("the sender of input {0} is gone")]
    SenderGone(usize),
    /// Who receives over an edge is gone.
    #[error("the receiver of output {0} is gone")]
    ReceiverGone(usize),
    /// A sender does not follow the protocol.
    #[error("the sender of input {input} broke the protocol: {what}")]
    Breach {
        /// Number of the edge.
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
