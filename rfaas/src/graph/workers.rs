//! The workers of a lane, connected, and what the client may lose them by.
//!
//! A worker that is gone takes its lane with it: all connections are dropped, at which all its executors end, and
//! others are started. So nothing of an old run can land in a new one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdmalib::{CompletionQueue, Region};
use rfaas_call::edge::{EdgeAt, InLink, OutLink};
use rfaas_protocol::channel::Channel;
use rfaas_protocol::edge::EdgeShape;

use crate::cause::Cause;
use crate::lease_core::LeaseCore;

/// How long managers may take to say why a worker is gone.
const CAUSE_WITHIN: Duration = Duration::from_secs(1);
/// Pause between two questions for that, which rings no bell.
const NAP: Duration = Duration::from_millis(1);

/// One executor of a lane.
pub(super) struct Member {
    /// Numbers of its functions.
    pub(super) functions: Vec<usize>,
    /// Which of the workers of these it is.
    pub(super) worker: usize,
    /// Of its lease. Whoever has the workers does not keep that.
    pub(super) lease: Arc<LeaseCore>,
    /// Its end makes the executor exit.
    pub(super) _control: Channel,
}

/// All executors of a lane, and what connects the client with them.
pub(super) struct Workers {
    pub(super) members: Vec<Member>,
    /// To each worker, by member: those that take no input have an edge of no bytes, whose end tells of theirs.
    pub(super) to_workers: Vec<OutLink>,
    /// Members that take the input.
    pub(super) sources: Vec<usize>,
    /// A copy of the input of each run, and where they are.
    pub(super) inputs: Region,
    pub(super) input: EdgeShape,
    /// From workers: outputs of the graph, and what tells that workers are done; and from which member each link is.
    pub(super) outputs: Vec<InLink>,
    pub(super) from: Vec<usize>,
    /// On which of these links each end is.
    pub(super) ends: Vec<EdgeAt>,
    pub(super) arrivals: CompletionQueue,
}

/// Why a lane is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// This member's executor, or its lease, has ended.
    Ended(usize, Cause),
    /// A run was under way for so long.
    TimeLimit(Duration),
    /// This member broke the protocol, or nobody says why it is gone.
    Worker(usize, &'static str),
    /// The device of this machine refused something.
    Here,
}

pub(super) fn lost_here(error: rdmalib::Error) -> Loss {
    tracing::error!(%error, "the device of this machine fails a graph");
    Loss::Here
}

impl Workers {
    /// Returns what is readable when something has arrived, once that was armed.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.arrivals.as_fd()
    }

    /// Fails if an executor or its lease is over, of which `known` tells.
    pub(super) fn check(&self, known: fn(&LeaseCore) -> Option<Cause>) -> Result<(), Loss> {
        let known = self.members.iter().map(|member| known(&member.lease));
        match known.enumerate().find_map(|(member, cause)| Some((member, cause?))) {
            Some((member, cause)) => Err(Loss::Ended(member, cause)),
            None => Ok(()),
        }
    }

    /// Returns why a worker is gone, of which `member` is the one that was noticed: what managers say, or else
    /// `otherwise`.
    #[cold]
    pub(super) fn why_lost(&self, member: usize, otherwise: &'static str) -> Loss {
        let deadline = Instant::now() + CAUSE_WITHIN;
        loop {
            if let Err(loss) = self.check(LeaseCore::ask_cause) {
                return loss;
            }
            if Instant::now() >= deadline {
                return Loss::Worker(member, otherwise);
            }
            std::thread::sleep(NAP);
        }
    }
}
