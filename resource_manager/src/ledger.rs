//! When changes of the pool become durable: before anything is said or done about them.
//!
//! ```text
//!   pool ──take_changes──▶ pending ──urgent, or a period old──▶ one commit ──▶ actions, answers
//! ```
//! DURABLE FIRST - the loop settles with the ledger before it carries out an action or sends an answer. So what
//! was sent is still known after a crash. If a commit fails, nothing is sent and the loop ends, since it could
//! not keep what it would promise; leases in use go on without it.
//!
//! All that came in one pass of the loop is one commit: a disk that needs milliseconds for each is then
//! no limit on leases per second, only on how soon each is granted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metrics::LoopEvents;
use crate::pool::{Changes, Now};
use crate::state::{StateError, StateFile};

/// Keeps changes until they are committed.
#[derive(Debug)]
pub(crate) struct Ledger {
    state: Arc<StateFile>,
    events: Arc<LoopEvents>,
    /// Longest time that changes wait on which nothing depends.
    delay: Duration,
    pending: Changes,
    /// When those of them that wait have to be committed.
    due: Option<Instant>,
}

impl Ledger {
    pub(crate) fn new(state: Arc<StateFile>, events: Arc<LoopEvents>, delay: Duration) -> Self {
        Ledger { state, events, delay, pending: Changes::default(), due: None }
    }

    /// Takes what changed. When this returns, everything that actions or answers depend on is durable.
    pub(crate) fn settle(&mut self, now: Now, changes: Changes) -> Result<(), StateError> {
        let Changes { nodes, leases, bills, policy, urgent } = changes;
        self.pending.nodes.extend(nodes);
        self.pending.leases.extend(leases);
        self.pending.bills.extend(bills);
        self.pending.policy = policy.or(self.pending.policy);
        if self.pending.is_empty() {
            return Ok(());
        }
        let due = *self.due.get_or_insert(now.monotonic + self.delay);
        if urgent || due <= now.monotonic { self.commit() } else { Ok(()) }
    }

    /// Commits what has waited; for the end of the program.
    pub(crate) fn close(&mut self) -> Result<(), StateError> {
        if self.pending.is_empty() { Ok(()) } else { self.commit() }
    }

    /// When [`settle`](Self::settle) has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.due
    }

    fn commit(&mut self) -> Result<(), StateError> {
        let start = Instant::now();
        self.state.commit(&self.pending)?;
        self.events.committed(start.elapsed());
        self.pending = Changes::default();
        self.due = None;
        Ok(())
    }
}
