//! Why a callee has ended.

use rdmalib::Status;

/// Why a callee serves no more requests.
#[derive(Debug, thiserror::Error)]
pub enum ServiceEnd {
    /// It was stopped.
    #[error("stopped")]
    Stopped,
    /// The caller ended the connection, or is gone.
    #[error("the client ended the connection")]
    Disconnected,
    /// The caller does not follow the protocol.
    #[error("the client broke the protocol: {0}")]
    Breach(&'static str),
    /// A reply could not be written where the caller wanted it.
    #[error("a reply was not taken: {0:?}")]
    Reply(Status),
    /// The caller posts no receives for the replies that it asks for.
    #[error("the client does not take replies")]
    NotTaken,
    /// The device refused a request.
    #[error(transparent)]
    Device(#[from] rdmalib::Error),
}
