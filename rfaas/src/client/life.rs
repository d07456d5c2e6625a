//! What becomes of a lease, and whom its end is told: shared by its handles and executor, and by those who
//! keep no lease alive, the thread that speaks for it (`keepalive`) and invocations (`drive`).
//!
//! * LAST HANDLE - a lease is given back by whoever drops the last handle, there and then. So those who
//!   only look hold this, never the lease, and nobody calls foreign code with the lock held.
//! * ONCE - an end is told once, whoever learned of it first.
//!
//! * ELSEWHERE - a node that refuses the claim, or cannot be reached, is not the end of the lease: the resource manager
//!   exchanges it for one on another node.
//!
//! Elsewhere: handles (`lease`), the connection that is claimed (`manager`).

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::Phases;
use super::failure::Failure;
use super::keepalive::Tended;
use super::lease::LeaseInner;
use super::manager::{Ending, Manager};
use crate::error::{Error, Result};
use rfaas_config::OpenDevice;
use rfaas_protocol::allocation::{Allocate, RefusedBecause};
use rfaas_protocol::channel::ChannelError;
use rfaas_protocol::lease::{EndReason, LeaseId, Token, Unusable};

/// Longest wait for a connection to an executor manager.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Nodes that a lease is claimed at, one after the other, before that it could not be claimed is told: ELSEWHERE. So
/// many failing at once is trouble of another kind, or ours.
const MOST_NODES: usize = 4;

/// One lease's.
#[derive(Debug)]
pub(super) struct Life {
    state: Mutex<LeaseState>,
    end: Mutex<End>,
}

/// What changes in the life of a lease. Locked while it is being deployed or released.
#[derive(Debug)]
pub(super) struct LeaseState {
    pub(super) stage: Stage,
    /// An executor exists.
    deployed: bool,
}

#[derive(Debug)]
pub(super) enum Stage {
    Granted(Vec<Candidate>),
    Claimed(Box<Manager>),
    Over(EndReason),
}

/// What is known of the end, and who wants to know. Locked for a moment only.
#[derive(Debug, Default)]
struct End {
    ending: Option<Ending>,
    tell: Option<OnEnding>,
    /// Waits for results of the executor.
    sleeper: Option<rdmalib::Waker>,
}

/// What an application wants to be called with its lease's end.
pub(super) struct OnEnding(pub(super) Box<dyn FnOnce(Ending) + Send>);

impl std::fmt::Debug for OnEnding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnEnding(..)")
    }
}

/// An executor manager that a lease may be claimed at.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) node: String,
    /// At least one.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) token: Token,
}

impl Life {
    /// Of a lease that was just granted.
    pub(super) fn new(candidates: Vec<Candidate>) -> Self {
        let state = LeaseState { stage: Stage::Granted(candidates), deployed: false };
        Life { state: Mutex::new(state), end: Mutex::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: somebody deploys, renews or releases the lease, or looks at it just now.
    fn try_lock(&self) -> Option<MutexGuard<'_, LeaseState>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why there is no executor any more, if that is known. Never waits: while the lease is being
    /// released or deployed, nothing is.
    pub(super) fn news(&self) -> Option<Failure> {
        match &mut self.try_lock()?.stage {
            Stage::Granted(_) => None,
            Stage::Claimed(manager) => manager.news(),
            Stage::Over(reason) => Some(Failure::LeaseEnded(*reason)),
        }
    }

    /// Why lease or executor are over, if that was noted; the thread that speaks for the lease does. Never
    /// waits, and makes no system call.
    pub(super) fn over(&self) -> Option<Failure> {
        match &self.try_lock()?.stage {
            Stage::Granted(_) => None,
            Stage::Claimed(manager) => manager.verdict(),
            Stage::Over(reason) => Some(Failure::LeaseEnded(*reason)),
        }
    }

    /// Has `sleeper` woken, once, when lease or executor are over: who sleeps on its connections may not
    /// learn it from those. Takes the place of an earlier one.
    pub(super) fn wake_at_end(&self, sleeper: rdmalib::Waker) {
        self.end().sleeper = Some(sleeper);
    }

    /// The end of the lease, once it is announced or has come. Never waits.
    pub(super) fn ending(&self) -> Option<Ending> {
        if let Some(mut state) = self.try_lock()
            && let Stage::Claimed(manager) = &mut state.stage
        {
            manager.look();
            self.note(manager.ending());
        }
        self.end().ending
    }

    /// Calls `tell` with the end of the lease: at once if it is known, else when it is.
    pub(super) fn on_ending(&self, tell: OnEnding) {
        self.ending(); // noted, if it has come
        let mut end = self.end();
        match end.ending {
            None => {
                let earlier = end.tell.replace(tell);
                drop(end);
                drop(earlier); // foreign code: after the lock
            }
            Some(ending) => {
                drop(end);
                (tell.0)(ending);
            }
        }
    }

    /// Nobody is told any more.
    pub(super) fn tell_nobody(&self) {
        let tell = self.end().tell.take();
        drop(tell); // foreign code: after the lock
    }

    /// Looks after the lease, from the keepalive thread.
    pub(super) fn tend(&self) -> Tended {
        let (tended, over) = {
            let Some(mut state) = self.try_lock() else { return Tended::Busy };
            let Stage::Claimed(manager) = &mut state.stage else { return Tended::Over };
            let tended = manager.tend();
            self.note(manager.ending());
            (tended, manager.verdict().is_some())
        };
        if over {
            // After the lock, for which those who are woken do not wait (`over`).
            self.end().sleeper.take().iter().for_each(rdmalib::Waker::wake);
        }
        self.tell();
        tended
    }

    fn note(&self, ending: Option<Ending>) {
        if ending.is_some() {
            self.end().ending = ending;
        }
    }

    /// ONCE. Tells the end, if it is known and somebody wants to know.
    fn tell(&self) {
        let (ending, tell) = {
            let mut end = self.end();
            let Some(ending) = end.ending else { return };
            (ending, end.tell.take())
        };
        let Some(OnEnding(tell)) = tell else { return };
        // Other leases depend on this thread.
        if catch_unwind(AssertUnwindSafe(|| tell(ending))).is_err() {
            tracing::error!("what was to be called with the end of a lease panicked");
        }
    }
}

impl LeaseState {
    /// Has the executor manager start an executor, as `request` says except for its token. The
    /// lease is claimed afterwards; notes how long it took in `phases`.
    pub(super) fn claim(
        &mut self,
        lease: &LeaseInner,
        request: &Allocate,
        deadline: Instant,
        phases: &mut Phases,
    ) -> Result<LeaseId> {
        if self.deployed {
            return Err(Error::AlreadyDeployed);
        }
        let id = match &mut self.stage {
            Stage::Over(reason) => return Err(Error::LeaseEnded { reason: *reason }),
            Stage::Claimed(manager) => {
                let start = Instant::now();
                if !manager.wait_for_exit(deadline)? {
                    let missing = "the executor before it has not ended yet".into();
                    return Err(Error::StartTimeout { after: start.elapsed(), missing });
                }
                let id = manager.allocate(request, deadline)?;
                phases.submit = start.elapsed();
                id
            }
            Stage::Granted(candidates) => {
                let (id, manager) = claim_somewhere(candidates, lease, request, deadline, phases)?;
                lease.claimed(id, manager.node());
                self.stage = Stage::Claimed(Box::new(manager));
                id
            }
        };
        Ok(id)
    }

    /// The manager of a claimed lease.
    pub(super) fn manager(&mut self) -> Option<&mut Manager> {
        match &mut self.stage {
            Stage::Claimed(manager) => Some(manager),
            Stage::Granted(_) | Stage::Over(_) => None,
        }
    }

    /// The lease belongs to an executor from now on.
    pub(super) fn deployed(&mut self) {
        self.deployed = true;
    }

    /// The executor has gone, or makes room for its successor.
    pub(super) fn undeployed(&mut self) {
        self.deployed = false;
    }
}

/// ELSEWHERE. Claims the lease at one of `candidates`, or one like it at another node; `candidates` are then that's.
fn claim_somewhere(
    candidates: &mut Vec<Candidate>,
    lease: &LeaseInner,
    request: &Allocate,
    deadline: Instant,
    phases: &mut Phases,
) -> Result<(LeaseId, Manager)> {
    let mut refused = None;
    for node in 1..=MOST_NODES {
        let error = match claim_first(candidates, lease.device(), request, deadline, phases) {
            Ok(claimed) => return Ok(claimed),
            Err(error) => error,
        };
        let try_on = node < MOST_NODES && Instant::now() < deadline;
        let because = unusable(&error).filter(|_| try_on);
        let other = because.and_then(|because| lease.replace(candidates, because));
        let error = refused.get_or_insert(error); // the first is what the others follow from
        let Some(other) = other else { break };
        tracing::info!(%error, node = other.node, "the lease is tried at another node");
        *candidates = vec![other];
    }
    Err(refused.unwrap_or(Error::Invalid("a lease is for some node")))
}

/// What `error` says of a node, if another one may do better.
fn unusable(error: &Error) -> Option<Unusable> {
    use RefusedBecause::{BadRequest, BadToken, Draining, LeaseEnded, NoCapacity, SpawnFailed};
    match error {
        Error::Unproved { .. } => Some(Unusable::Unproved),
        Error::Unreachable { source, .. } => match **source {
            ChannelError::Refused(_) => Some(Unusable::Refused),
            _ => Some(Unusable::Unreachable),
        },
        Error::Connection { .. } | Error::NoAnswer { .. } | Error::ExecutorGone => {
            Some(Unusable::Unreachable)
        }
        Error::AllocationRefused { because, .. } => match because {
            BadToken | NoCapacity | SpawnFailed | Draining => Some(Unusable::Refused),
            // So it would be anywhere; or the lease has ended, which is its holder's to know.
            BadRequest | LeaseEnded => None,
        },
        _ => None,
    }
}

/// Claims the lease at the first of `candidates` that takes it.
fn claim_first(
    candidates: &[Candidate],
    device: &OpenDevice,
    request: &Allocate,
    deadline: Instant,
    phases: &mut Phases,
) -> Result<(LeaseId, Manager)> {
    let mut refused = Error::Invalid("a lease is for some node");
    for candidate in candidates {
        let start = Instant::now();
        let timeout = CONNECT_TIMEOUT.min(deadline.saturating_duration_since(start));
        let connected = Manager::connect(device, candidate, timeout);
        phases.connect = start.elapsed();
        let claimed = connected.and_then(|mut manager| {
            let start = Instant::now();
            let id = manager.allocate(request, deadline)?;
            phases.submit = start.elapsed();
            Ok((id, manager))
        });
        match claimed {
            Ok(claimed) => return Ok(claimed),
            // No other manager would take it either.
            Err(error @ Error::AllocationRefused { because: RefusedBecause::BadRequest, .. }) => {
                return Err(error);
            }
            Err(error) => {
                tracing::debug!(%error, node = candidate.node, "lease not claimed there");
                refused = error;
            }
        }
    }
    Err(refused)
}
