//! How a call ended, in a form that many can share: small and copied. A [`CallError`] is made of it only for the
//! thread that asked.

use std::fmt::Debug;
use std::time::Duration;

/// Whoever a caller's connections belong to. It knows why they end, which a connection does not say.
///
/// A caller asks only while it has nothing to do, and never within a call that succeeds at once.
pub trait Owner {
    /// Why no call can succeed any more.
    type Cause: Copy + Debug + PartialEq;

    /// Returns the end, if it was noted already. Never waits and makes no system call: a waiting
    /// caller asks every 50 µs or so.
    fn noted(&self) -> Option<End<Self::Cause>>;

    /// Returns the cause of an end, if it can be learned now. Never waits. Asked after a connection
    /// has ended.
    fn ask(&self) -> Option<Self::Cause>;
}

/// The end of a callee, as its owner has noted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End<C> {
    /// Its process has ended. Replies that it sent before may only just be there.
    Process(C),
    /// Nothing is to be waited for, even if connections live: it may be that nothing reaches the callee.
    Everything(C),
}

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<C> {
    /// So many bytes of output are there.
    Bytes(u32),
    /// The function returned more than fits; the output's header space says how many.
    OutputTooLarge,
    /// The callee knows no such function.
    UnknownFunction,
    /// The callee could not read the request.
    Malformed,
    /// No reply will come.
    Failed(Failure<C>),
}

/// Why no reply will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure<C> {
    /// The callee is gone, for a reason that its owner has told.
    Ended(C),
    /// The connection is gone, and its owner does not know why.
    Disconnected,
    /// The call took longer than this.
    TimeLimit(Duration),
    /// Its worker was given up for another reason.
    WorkerLost(&'static str),
}

/// Why a call has no result, for the thread that asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError<C: Debug> {
    /// No reply will come, or the call was not posted.
    #[error("no reply: {0:?}")]
    Failed(Failure<C>),
    /// The function returned more than fits.
    #[error("the function returned {needed} bytes, the output holds {capacity}")]
    OutputTooLarge {
        /// Bytes that it returned.
        needed: u64,
        /// Bytes that fit.
        capacity: usize,
    },
    /// The callee knows no function of this number.
    #[error("the callee knows no such function")]
    UnknownFunction,
    /// The callee could not read the request.
    #[error("the callee could not read the request")]
    Malformed,
    /// Every slot of every worker has a call in flight.
    #[error("all slots of all workers are busy")]
    Busy,
    /// The device refused, or this process was forked from the one that has the connections.
    #[error(transparent)]
    Device(#[from] rdmalib::Error),
}
