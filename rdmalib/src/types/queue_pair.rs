//! Settings and states of a queue pair.

use std::time::Duration;

/// How often a request is tried while the peer has posted no receive (`rnr_retry_count`,
/// `rdma_connect(3)`: 0 to 6 times, 7 is for ever).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RnrRetry {
    /// So many more tries after the first, `rnr_timer` apart; 0 to 6.
    Times(u8),
    /// Until the peer posts a receive or the connection ends.
    Forever,
}

/// Sizes and behaviour of a queue pair, fixed when it is made. Depths are from 1 to
/// [`Limits::max_queue_depth`](crate::Limits::max_queue_depth).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePairConfig {
    /// Most outstanding requests of the send queue. A request leaves the count when its own or a
    /// later completion of the queue is polled. So at least one in every `send_depth` requests is
    /// [signaled](crate::Flags::SIGNALED).
    pub send_depth: u32,
    /// Most posted receives, counted until their completions are polled.
    pub receive_depth: u32,
    /// Largest inline payload, in bytes; at most
    /// [`Limits::max_inline_data`](crate::Limits::max_inline_data).
    pub max_inline_data: u32,
    /// How often a request is tried while the peer has posted no receive.
    pub rnr_retry: RnrRetry,
    /// Pause between two such tries. On shm and tcp that of the sending side counts. On verbs that of the
    /// receiving side does, because that asks for the pause: in steps from 10 µs to 655 ms, rounded
    /// up.
    pub rnr_timer: Duration,
}

impl Default for QueuePairConfig {
    /// Returns 64 requests each way, no inline data, and tries for ever while the peer has posted
    /// no receive, 640 µs apart (InfiniBand's code 12, the default of most drivers).
    fn default() -> Self {
        QueuePairConfig {
            send_depth: 64,
            receive_depth: 64,
            max_inline_data: 0,
            rnr_retry: RnrRetry::Forever,
            rnr_timer: Duration::from_micros(640),
        }
    }
}

/// Where a queue pair is in its life ([picture](crate::QueuePair)). It only goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not connected. Receives may be posted; posting anything else is
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument).
    Init,
    /// Connected.
    Connected,
    /// Over: what arrived before still completes; every other request, also one that is posted from
    /// now on, completes with [`Status::Flushed`](crate::Status::Flushed).
    Error,
}
