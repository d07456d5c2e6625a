//! A lease: cores of a node for some time, deployed as often as wanted, given back once.
//!
//! ```text
//!   granted ──deploy──▶ claimed (connected to its executor manager) ──release, expiry, …──▶ over
//!      │  ▲└renew                 ▲└renew, tend (from `keepalive`)
//!      └──release, drop──▶ over (the resource manager is told)
//! ```
//! Handles and executors share it: the last of them to be dropped gives it back.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::failure::Failure;
use super::keepalive::Tended;
use super::manager::{Ending, Manager};
use super::{Client, ClientInner, Deployment, Executor, LeaseRequest, Phases, session};
use crate::config::OpenDevice;
use crate::error::{Error, Result};
use crate::protocol::allocation::{Allocate, RefusedBecause};
use crate::protocol::lease::{EndReason, LeaseId, LeaseTerms, Token};
use crate::protocol::node::Bill;

/// Longest wait for a connection to an executor manager.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an executor manager to take a renewal.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a bill: the manager stops the executor within half a second.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// A leased share of a node. The lease ends when it is released, when its time is over, or when the
/// last handle and executor are dropped.
#[derive(Debug)]
pub struct Lease {
    inner: Arc<LeaseInner>,
}

/// What handles and executor share.
#[derive(Debug)]
pub(super) struct LeaseInner {
    client: Arc<ClientInner>,
    cores: u16,
    memory: u32,
    /// As it was asked for.
    timeout: Duration,
    /// Moved by renewals.
    expires_at: Mutex<SystemTime>,
    /// Whom to tell of the end.
    on_ending: Mutex<Option<OnEnding>>,
    /// Known from the grant on if there is a resource manager.
    granted: Option<LeaseId>,
    first_node: String,
    claimed: OnceLock<(LeaseId, String)>,
    state: Mutex<LeaseState>,
}

/// What changes in the life of a lease. Locked while it is being deployed or released.
#[derive(Debug)]
pub(super) struct LeaseState {
    stage: Stage,
    /// An executor exists.
    deployed: bool,
}

#[derive(Debug)]
enum Stage {
    Granted(Vec<Candidate>),
    Claimed(Box<Manager>),
    Over(EndReason),
}

/// What an application wants to be called with its lease's end.
struct OnEnding(Box<dyn FnOnce(Ending) + Send>);

impl std::fmt::Debug for OnEnding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnEnding(..)")
    }
}

/// An executor manager that a lease may be claimed at.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) node: String,
    pub(super) address: SocketAddr,
    pub(super) token: Token,
}

impl Lease {
    pub(super) fn new(
        client: Arc<ClientInner>,
        candidates: Vec<Candidate>,
        timeout: Duration,
    ) -> Result<Self> {
        let first = candidates.first().ok_or(Error::Invalid("a lease is for some node"))?;
        let terms = &first.token.terms;
        let inner = LeaseInner {
            cores: u16::try_from(terms.cores.get())
                .map_err(|_| Error::Invalid("a lease has at most 65535 cores"))?,
            memory: terms.memory.get(),
            timeout,
            expires_at: Mutex::new(end_of(&first.token)),
            on_ending: Mutex::new(None),
            granted: LeaseId::new(terms.lease.get()),
            first_node: first.node.clone(),
            claimed: OnceLock::new(),
            state: Mutex::new(LeaseState { stage: Stage::Granted(candidates), deployed: false }),
            client,
        };
        Ok(Lease { inner: Arc::new(inner) })
    }

    pub(super) fn from_inner(inner: Arc<LeaseInner>) -> Self {
        Lease { inner }
    }

    /// Its number. Without a resource manager none until the lease is deployed.
    pub fn id(&self) -> Option<LeaseId> {
        self.inner.id()
    }

    /// Name of its node. Without a resource manager, until the lease is deployed, that of the first
    /// node that will be tried.
    pub fn node(&self) -> &str {
        self.inner.node()
    }

    /// Its cores.
    pub fn cores(&self) -> u32 {
        self.inner.cores.into()
    }

    /// When it ends by itself.
    pub fn expires_at(&self) -> SystemTime {
        *self.inner.expires_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the lease last until `timeout` from now, if it would end before; returns when it ends. The
    /// resource manager may refuse: the lease then ends when it would have.
    pub fn renew(&self, timeout: Duration) -> Result<SystemTime> {
        self.inner.renew(timeout)
    }

    /// Starts an executor that has the function library at `path`, with the default [`Deployment`].
    pub fn deploy(&self, path: impl AsRef<Path>) -> Result<Executor> {
        self.deploy_with(path, &Deployment::default())
    }

    /// Starts an executor that has the function library at `path`. The lease runs one at a time; it
    /// can be deployed again after a failure, or when the last executor was dropped.
    pub fn deploy_with(&self, path: impl AsRef<Path>, deployment: &Deployment) -> Result<Executor> {
        session::deploy(&self.inner, path.as_ref(), deployment)
    }

    /// Calls `tell`, once, when it becomes known that the lease ends without having been given back: its
    /// node is being withdrawn, and then there is some time left; or its time is over, or its node is
    /// lost. At once if that is known already; else from a thread of the client's, so `tell` should not
    /// take long. A later call takes the place of an earlier one.
    ///
    /// What to do until the deadline: let calls finish, start no long ones, lease elsewhere.
    pub fn on_ending(&self, tell: impl FnOnce(Ending) + Send + 'static) {
        *self.inner.on_ending() = Some(OnEnding(Box::new(tell)));
        self.inner.tell_ending(self.ending());
    }

    /// The end of a deployed lease, once it is announced or has come.
    pub fn ending(&self) -> Option<Ending> {
        match &mut self.inner.lock().stage {
            Stage::Claimed(manager) => {
                manager.look();
                manager.ending()
            }
            Stage::Granted(_) | Stage::Over(_) => None,
        }
    }

    /// Gives the lease back and waits for its bill; none if it was never deployed. An executor that
    /// still runs on it is stopped.
    pub fn release(self) -> Result<Option<Bill>> {
        self.inner.release()
    }
}

impl LeaseInner {
    pub(super) fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn device(&self) -> &OpenDevice {
        &self.client.device
    }

    pub(super) fn cores(&self) -> u16 {
        self.cores
    }

    fn id(&self) -> Option<LeaseId> {
        self.claimed.get().map(|(id, _)| *id).or(self.granted)
    }

    pub(super) fn node(&self) -> &str {
        self.claimed.get().map_or(&self.first_node, |(_, node)| node)
    }

    /// Why there is no executor any more, if that is known. Never waits: while the lease is being
    /// released or deployed, nothing is.
    pub(super) fn news(&self) -> Option<Failure> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        match &mut state.stage {
            Stage::Granted(_) => None,
            Stage::Claimed(manager) => manager.news(),
            Stage::Over(reason) => Some(Failure::LeaseEnded(*reason)),
        }
    }

    /// The executor was dropped.
    pub(super) fn undeployed(&self) {
        self.lock().undeployed();
    }

    pub(super) fn release(&self) -> Result<Option<Bill>> {
        let mut state = self.lock();
        match std::mem::replace(&mut state.stage, Stage::Over(EndReason::Released)) {
            Stage::Granted(candidates) => {
                self.give_back(&candidates);
                Ok(None)
            }
            Stage::Claimed(mut manager) => {
                let bill = manager.release(RELEASE_TIMEOUT);
                if let Some(Failure::LeaseEnded(reason)) = manager.over() {
                    state.stage = Stage::Over(reason);
                }
                Ok(Some(bill?))
            }
            Stage::Over(reason) => {
                state.stage = Stage::Over(reason);
                Err(Error::LeaseEnded { reason })
            }
        }
    }

    /// Another lease like this one, of the same client. Where there is a choice, its own node is
    /// asked last.
    pub(super) fn another(&self) -> Result<Arc<LeaseInner>> {
        let client = Client { inner: Arc::clone(&self.client) };
        let request = LeaseRequest::new(self.cores.into(), self.memory).timeout(self.timeout);
        let lease = client.lease(request)?.inner;
        if let Stage::Granted(candidates) = &mut lease.lock().stage {
            candidates.sort_by_key(|candidate| candidate.node == self.node());
        }
        Ok(lease)
    }

    /// Whether it is claimed, and as far as is known will be for a while.
    pub(super) fn lives(&self) -> bool {
        match &mut self.lock().stage {
            Stage::Claimed(manager) => {
                manager.look();
                manager.over().is_none() && manager.ending().is_none()
            }
            Stage::Granted(_) | Stage::Over(_) => false,
        }
    }

    /// Looks after it, from the keepalive thread.
    pub(super) fn tend(&self) -> Tended {
        let (tended, ending) = match self.state.try_lock() {
            Err(TryLockError::WouldBlock) => return Tended::Busy,
            Err(TryLockError::Poisoned(_)) => return Tended::Over,
            Ok(mut state) => match &mut state.stage {
                Stage::Claimed(manager) => (manager.tend(), manager.ending()),
                Stage::Granted(_) | Stage::Over(_) => return Tended::Over,
            },
        };
        self.tell_ending(ending); // foreign code: after the lock
        tended
    }

    fn tell_ending(&self, ending: Option<Ending>) {
        let Some(ending) = ending else { return };
        let tell = self.on_ending().take();
        if let Some(OnEnding(tell)) = tell {
            tell(ending);
        }
    }

    fn on_ending(&self) -> MutexGuard<'_, Option<OnEnding>> {
        self.on_ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self, timeout: Duration) -> Result<SystemTime> {
        let token = match &self.lock().stage {
            Stage::Granted(candidates) => candidates.first().map(|candidate| candidate.token),
            Stage::Claimed(manager) => Some(*manager.token()),
            Stage::Over(reason) => return Err(Error::LeaseEnded { reason: *reason }),
        };
        let token = token.ok_or(Error::Invalid("a lease is for some node"))?;
        // Without the lock: the executor manager waits for signs of life meanwhile.
        let renewed = self.client.renew(token, timeout)?;
        let end = match &mut self.lock().stage {
            Stage::Granted(candidates) => {
                for candidate in candidates {
                    // There is one, or they are unsigned and differ in the node's name only.
                    let end = renewed.terms.expires_at_ms;
                    candidate.token = match self.granted {
                        Some(_) => renewed,
                        None => {
                            let terms = candidate.token.terms;
                            Token::unsigned(LeaseTerms { expires_at_ms: end, ..terms })
                        }
                    };
                }
                end_of(&renewed)
            }
            Stage::Claimed(manager) => manager.renew(renewed, Instant::now() + RENEW_TIMEOUT)?,
            Stage::Over(reason) => return Err(Error::LeaseEnded { reason: *reason }),
        };
        *self.expires_at.lock().unwrap_or_else(PoisonError::into_inner) = end;
        Ok(end)
    }

    /// Has the keepalive thread look after the lease, which was just claimed.
    pub(super) fn keep_alive(self: &Arc<Self>, state: &mut LeaseState) {
        let Some(manager) = state.manager() else { return };
        if let Err(error) = self.client.keepalive.watch(self, manager) {
            // Calls and waits still give signs of life; an idle application does not.
            tracing::error!(%error, "no thread speaks for this lease: it may be taken for dead");
        }
    }

    /// Gives it back for lost, as far as that is possible without waiting.
    pub(super) fn give_up(&self) {
        let mut state = self.lock();
        if let Stage::Claimed(manager) = &mut state.stage {
            let reason = match (manager.over(), manager.ending()) {
                (Some(Failure::LeaseEnded(reason)), _) | (_, Some(Ending { reason, .. })) => reason,
                _ => EndReason::NodeLost,
            };
            manager.release_unheard();
            state.stage = Stage::Over(reason);
        }
    }

    /// Tells the resource manager, if there is one, that the lease is not needed.
    fn give_back(&self, candidates: &[Candidate]) {
        if let (Some(_), [candidate, ..]) = (self.granted, candidates) {
            self.client.give_back(candidate.token);
        }
    }
}

impl Drop for LeaseInner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut state.stage, Stage::Over(EndReason::Released)) {
            Stage::Granted(candidates) => self.give_back(&candidates),
            Stage::Claimed(mut manager) => manager.release_unheard(),
            Stage::Over(_) => {}
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
                let (id, manager) =
                    claim_first(candidates, lease.device(), request, deadline, phases)?;
                // Set once: a lease is claimed once and stays so.
                lease.claimed.set((id, manager.node().to_owned())).ok();
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

/// When the lease of `token` ends.
fn end_of(token: &Token) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(token.terms.expires_at_ms.get())
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
