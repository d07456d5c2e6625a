//! What goes into the pool and out of it besides nodes and leases: the time, names of connections, and
//! what is to be done.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rfaas_protocol::lease::{EndReason, LeaseId};

use super::Capacity;

/// One moment on both clocks: deadlines run on the first, tokens and bills show the second.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For deadlines.
    pub monotonic: Instant,
    /// For people and tokens.
    pub wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Now { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// When the other clock will show `wall`; this moment if it has.
    pub(super) fn until(self, wall: SystemTime) -> Instant {
        self.monotonic + wall.duration_since(self.wall).unwrap_or_default()
    }
}

/// Names a connection of an executor manager, while it lasts and never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the node to end a lease.
    EndLease {
        /// Its connection.
        link: LinkId,
        /// The lease.
        lease: LeaseId,
        /// Why.
        reason: EndReason,
        /// How long running invocations may go on.
        grace: Duration,
    },
    /// Tell the node that the end of a lease was booked.
    AcknowledgeEnd {
        /// Its connection.
        link: LinkId,
        /// The lease.
        lease: LeaseId,
    },
    /// Tell the node what the operator says of it now.
    TellNode {
        /// Its connection.
        link: LinkId,
        /// What it may lease out.
        capacity: Capacity,
        /// When it leaves.
        leaves_at: Option<Instant>,
    },
    /// End the node's connection, telling it why.
    Close {
        /// Its connection.
        link: LinkId,
        /// For its log.
        reason: String,
    },
    /// Look up the node's address and report it with [`Pool::resolved`](super::Pool::resolved).
    Resolve {
        /// The node.
        node: Arc<str>,
        /// Host name.
        host: Arc<str>,
    },
    /// The set of nodes changed: the executors database is to be written.
    NodesChanged,
}

/// Events since the start, for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Leases granted, or taken over from an earlier run of this manager.
    pub granted: u64,
    /// Requests that could not be met.
    pub denied: u64,
    /// Leases ended, by [`EndReason`] as it was first known; index is its number.
    pub ended: [u64; 8],
}
