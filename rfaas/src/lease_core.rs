//! The state of a lease, and its end. Only `HeldLease` keeps the lease; observers, the keepalive thread and calls in
//! flight, have a `Weak` of the state.
//!
//! * A lease is given back when its last holder drops it, there and then. So what only observes it has this and
//!   not the lease, and nobody calls foreign code with the lock held.
//! * The application is told of an end once, whichever thread learned of it first.
//! * A node that refuses the claim, or cannot be reached, is not the end of the lease: the resource manager
//!   exchanges it for one on another node.
//!
//! Elsewhere: holding and giving back (`held_lease`), the connection that is claimed (`executor_manager`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use rfaas_call::caller::{End, Owner};
use rfaas_config::OpenDevice;
use rfaas_protocol::allocation::RefusedBecause;
use rfaas_protocol::channel::{Channel, ChannelError};
use rfaas_protocol::lease::{EndReason, LeaseId, Unusable};

use crate::cause::{Cause, Ending};
use crate::deployment::Phases;
use crate::error::{Error, Result};
use crate::executor_manager::{ExecutorManager, Polled};
use crate::request::{Candidate, ExecutorRequest};

/// Longest wait for a connection to an executor manager.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Nodes that a lease is claimed at, one after the other, before the claim fails. If so
/// many fail at once, it is trouble of another kind, or ours.
const MOST_NODES: usize = 4;

/// State of a lease. Only `HeldLease` keeps the lease; observers have a `Weak` of this.
#[derive(Debug)]
pub(crate) struct LeaseCore {
    state: Mutex<LeaseUse>,
    end: Mutex<KnownEnd>,
}

/// What changes while a lease lives. Locked while it is being deployed or released.
#[derive(Debug)]
pub(crate) struct LeaseUse {
    pub(crate) stage: LeaseStage,
    /// The lease belongs to an executor.
    pub(crate) deployed: bool,
}

#[derive(Debug)]
pub(crate) enum LeaseStage {
    Granted(Vec<Candidate>),
    Claimed(Box<ExecutorManager>),
    Over(EndReason),
}

/// What is known of the end, and what is to be done about it. Locked for a moment only.
#[derive(Debug, Default)]
struct KnownEnd {
    ending: Option<Ending>,
    tell: Option<OnEnding>,
    /// Ends the sleep of a thread that waits for results of the executor.
    waker: Option<rdmalib::Waker>,
}

/// What an application wants to be called with its lease's end.
pub(crate) struct OnEnding(pub(crate) Box<dyn FnOnce(Ending) + Send>);

impl std::fmt::Debug for OnEnding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnEnding(..)")
    }
}

/// What is needed to start an executor on a lease, which claims it first if it was only granted.
pub(crate) struct Claim<'a> {
    pub(crate) device: &'a OpenDevice,
    pub(crate) request: &'a ExecutorRequest,
    pub(crate) deadline: Instant,
    /// Exchanges the lease for one like it on another node, if there is one.
    pub(crate) replace: &'a dyn Fn(&[Candidate], Unusable) -> Option<Candidate>,
    /// Makes a connection to an executor manager, or has made one.
    pub(crate) connection: &'a dyn Fn() -> Result<Channel, ChannelError>,
    /// What is to be done while a manager starts the executor.
    pub(crate) meanwhile: &'a dyn Fn(),
}

/// Why calls on the executor of a lease end. It keeps no lease alive: neither does a call that nobody waits for.
#[derive(Debug)]
pub(crate) struct LeaseEnd(Weak<LeaseCore>);

impl LeaseEnd {
    pub(crate) fn of(lease: &Arc<LeaseCore>) -> Self {
        LeaseEnd(Arc::downgrade(lease))
    }
}

impl Owner for LeaseEnd {
    type Cause = Cause;

    fn noted(&self) -> Option<End<Cause>> {
        self.0.upgrade()?.noted_cause().map(|cause| match cause {
            Cause::Exited(_) => End::Process(cause),
            Cause::LeaseEnded(_) | Cause::Gone => End::Everything(cause),
        })
    }

    fn ask(&self) -> Option<Cause> {
        self.0.upgrade()?.ask_cause()
    }
}

impl LeaseCore {
    /// Makes one for a lease that was just granted.
    pub(crate) fn new(candidates: Vec<Candidate>) -> Self {
        let state = LeaseUse { stage: LeaseStage::Granted(candidates), deployed: false };
        LeaseCore { state: Mutex::new(state), end: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, LeaseUse> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: another thread deploys, renews, releases or polls the lease just now.
    fn try_lock(&self) -> Option<MutexGuard<'_, LeaseUse>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn end(&self) -> MutexGuard<'_, KnownEnd> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns why there is no executor any more, after reading what its manager has sent. Never waits: while the lease
    /// is being released or deployed, nothing is known.
    pub(crate) fn ask_cause(&self) -> Option<Cause> {
        match &mut self.try_lock()?.stage {
            LeaseStage::Granted(_) => None,
            LeaseStage::Claimed(manager) => {
                manager.poll();
                manager.cause()
            }
            LeaseStage::Over(reason) => Some(Cause::LeaseEnded(*reason)),
        }
    }

    /// Returns why there is no executor any more, if that was noted; the keepalive thread does. Never waits, and makes
    /// no system call.
    pub(crate) fn noted_cause(&self) -> Option<Cause> {
        match &self.try_lock()?.stage {
            LeaseStage::Granted(_) => None,
            LeaseStage::Claimed(manager) => manager.cause(),
            LeaseStage::Over(reason) => Some(Cause::LeaseEnded(*reason)),
        }
    }

    /// Uses `waker`, once, when lease or executor are over: a thread that sleeps on the executor's connections may not
    /// learn it from those. Takes the place of an earlier one.
    pub(crate) fn wake_at_end(&self, waker: rdmalib::Waker) {
        self.end().waker = Some(waker);
    }

    /// Returns the end of the lease, once it is announced or has come. Never waits.
    pub(crate) fn ending(&self) -> Option<Ending> {
        if let Some(mut state) = self.try_lock()
            && let LeaseStage::Claimed(manager) = &mut state.stage
        {
            manager.poll();
            self.note(manager.ending());
        }
        self.end().ending
    }

    /// Calls `tell` with the end of the lease: at once if it is known, else when it is.
    pub(crate) fn on_ending(&self, tell: OnEnding) {
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

    /// Drops what was to be called with the end.
    pub(crate) fn tell_nobody(&self) {
        let tell = self.end().tell.take();
        drop(tell); // foreign code: after the lock
    }

    /// Polls the lease, from the keepalive thread.
    pub(crate) fn poll(&self) -> Polled {
        let (polled, over) = {
            let Some(mut state) = self.try_lock() else { return Polled::Busy };
            let LeaseStage::Claimed(manager) = &mut state.stage else { return Polled::Over };
            let polled = manager.poll_armed();
            self.note(manager.ending());
            (polled, manager.cause().is_some())
        };
        if over {
            // After the lock, for which the woken thread does not wait (`noted_cause`).
            self.end().waker.take().iter().for_each(rdmalib::Waker::wake);
        }
        self.tell();
        polled
    }

    fn note(&self, ending: Option<Ending>) {
        if ending.is_some() {
            self.end().ending = ending;
        }
    }

    /// Tells the end once, if it is known and somebody wants to know.
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

impl LeaseUse {
    /// Has the executor manager start an executor. If the lease was only granted, this claims it. Notes how long it
    /// took in `phases`. Returns the lease's number, and its node if it was claimed just now.
    pub(crate) fn start_executor(
        &mut self,
        claim: &Claim<'_>,
        phases: &mut Phases,
    ) -> Result<(LeaseId, Option<String>)> {
        if self.deployed {
            return Err(Error::AlreadyDeployed);
        }
        match &mut self.stage {
            LeaseStage::Over(reason) => Err(Error::LeaseEnded { reason: *reason }),
            LeaseStage::Claimed(manager) => {
                let start = Instant::now();
                if !manager.wait_for_exit(claim.deadline)? {
                    let missing = "the executor before it has not ended yet".into();
                    return Err(Error::StartTimeout { after: start.elapsed(), missing });
                }
                let id =
                    manager.request_executor(claim.request, claim.deadline, claim.meanwhile)?;
                phases.submit = start.elapsed();
                Ok((id, None))
            }
            LeaseStage::Granted(candidates) => {
                let (id, manager) = claim_somewhere(candidates, claim, phases)?;
                let node = manager.node().to_owned();
                self.stage = LeaseStage::Claimed(Box::new(manager));
                Ok((id, Some(node)))
            }
        }
    }

    /// Returns the manager of a claimed lease.
    pub(crate) fn manager(&mut self) -> Option<&mut ExecutorManager> {
        match &mut self.stage {
            LeaseStage::Claimed(manager) => Some(manager),
            LeaseStage::Granted(_) | LeaseStage::Over(_) => None,
        }
    }
}

/// Claims the lease at one of `candidates`, or one like it at another node. `candidates` are then those of
/// that.
fn claim_somewhere(
    candidates: &mut Vec<Candidate>,
    claim: &Claim<'_>,
    phases: &mut Phases,
) -> Result<(LeaseId, ExecutorManager)> {
    let mut refused = None;
    for node in 1..=MOST_NODES {
        let error = match claim_first(candidates, claim, phases) {
            Ok(claimed) => return Ok(claimed),
            Err(error) => error,
        };
        let try_on = node < MOST_NODES && Instant::now() < claim.deadline;
        let because = unusable(&error).filter(|_| try_on);
        let other = because.and_then(|because| (claim.replace)(candidates, because));
        let error = refused.get_or_insert(error); // the first is what the others follow from
        let Some(other) = other else { break };
        tracing::info!(%error, node = other.node, "the lease is tried at another node");
        *candidates = vec![other];
    }
    Err(refused.unwrap_or(Error::Invalid("a lease is for some node")))
}

/// Returns what `error` says of a node, if another one may do better.
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
    claim: &Claim<'_>,
    phases: &mut Phases,
) -> Result<(LeaseId, ExecutorManager)> {
    let mut refused = Error::Invalid("a lease is for some node");
    for candidate in candidates {
        let start = Instant::now();
        let timeout = CONNECT_TIMEOUT.min(claim.deadline.saturating_duration_since(start));
        let connected =
            ExecutorManager::connect(claim.device, candidate, timeout, claim.connection);
        phases.connect = start.elapsed();
        let claimed = connected.and_then(|mut manager| {
            let start = Instant::now();
            let id = manager.request_executor(claim.request, claim.deadline, claim.meanwhile)?;
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
