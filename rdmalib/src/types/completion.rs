//! How work requests end.

/// How a work request ended. Names follow `enum ibv_wc_status`, `ibv_poll_cq(3)`.
///
/// Every status but `Success` is also the end of the connection: connect anew, with another queue
/// pair. A call that fails is an [`Error`](crate::Error) instead. The default is `Success`, only so
/// that room for completions can be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// Carried out.
    #[default]
    Success,
    /// At the receiver: a message was longer than the receive buffer it went to.
    LocalLengthError,
    /// The local region does not allow it ([`Access::LOCAL_WRITE`](crate::Access)), or was dropped.
    LocalProtectionError,
    /// The queue pair went into the error state before this request was carried out: the peer
    /// disconnected or died, or an earlier request failed.
    Flushed,
    /// At the sender: the peer could not take the request (a message longer than its buffer).
    RemoteInvalidRequest,
    /// The remote key, range or access right was refused. On shm also: this process maps no more of
    /// the peer's memory ([`limit_peers`](crate::limit_peers)).
    RemoteAccessError,
    /// The peer failed while carrying it out; for example, it has dropped the region of its receive
    /// buffer.
    RemoteOperationError,
    /// The peer's machine did not answer for some time. Not on shm.
    RetryExceeded,
    /// The peer had posted no receive, and all tries were used up ([`RnrRetry`](crate::RnrRetry)).
    RnrRetryExceeded,
    /// Any other failure, with its number in `enum ibv_wc_status`. Only on verbs.
    Other(u32),
}

/// What a completion completes; `enum ibv_wc_opcode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// A send of ours.
    #[default]
    Send,
    /// A write of ours, with or without immediate data.
    Write,
    /// A read of ours.
    Read,
    /// A fetch-add of ours.
    FetchAdd,
    /// A compare-swap of ours.
    CompareSwap,
    /// A posted receive took a peer's send.
    Receive,
    /// A posted receive was used up by a peer's write with immediate data.
    ReceiveWithImmediate,
}

/// One finished work request. With a [`Status`] other than `Success`, only `id`, `status` and
/// `queue_pair` have a meaning.
///
/// The default is room for [`poll`](crate::CompletionQueue::poll) to fill. It is no completion,
/// although its status is `Success`: only as many entries count as `poll` has returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkCompletion {
    /// The `id` that the request was posted with.
    pub id: u64,
    /// How it ended.
    pub status: Status,
    /// What it was.
    pub opcode: Opcode,
    /// Receives: bytes that the peer sent or wrote.
    pub bytes: u32,
    /// Receives: immediate data, in host byte order, if the peer sent any.
    pub immediate: Option<u32>,
    /// Number of the queue pair; [`QueuePair::number`](crate::QueuePair::number).
    pub queue_pair: u32,
}

/// Which completions make an armed completion queue readable; `ibv_req_notify_cq(3)`. For
/// [`arm`](crate::CompletionQueue::arm); [`wait`](crate::CompletionQueue::wait) waits for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// The next one.
    Any,
    /// The next receive whose sender set [`Flags::SOLICITED`](crate::Flags::SOLICITED), or the next
    /// error. SoftRoCE announces no error here, so who waits for the end of a connection arms for any once
    /// that is over.
    Solicited,
}
