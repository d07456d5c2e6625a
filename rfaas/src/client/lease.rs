//! A lease: cores of a node for some time, deployed as often as wanted, given back once.
//!
//! ```text
//!   granted ──deploy──▶ claimed (connected to its executor manager) ──release, expiry, …──▶ over
//!      │  ▲└renew                 ▲└renew
//!      └──release, drop──▶ over (the resource manager is told)
//! ```
//! Handles and executors share it: the last of them to be dropped gives it back.
//!
//! Elsewhere: its stages, claiming it, telling its end (`life`).

use std::fmt;
use std::mem;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::failure::Failure;
use super::life::{Candidate, LeaseState, Life, OnEnding, Stage};
use super::manager::Ending;
use super::{Client, ClientInner, Deployment, Executor, LeaseRequest, session};
use crate::error::{Error, Result};
use rfaas_config::OpenDevice;
use rfaas_protocol::lease::{EndReason, LeaseId, LeaseTerms, Token, Unusable};
use rfaas_protocol::node::Bill;

/// Longest wait for an executor manager to take a renewal.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a bill: the manager stops the executor within half a second.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// A leased share of a node. The lease ends when it is released, when its time is over, or when the
/// last handle and executor are dropped.
pub struct Lease {
    inner: Arc<LeaseInner>,
}

/// What handles and executor share.
pub(super) struct LeaseInner {
    client: Arc<ClientInner>,
    cores: u16,
    memory: u32,
    /// As it was asked for.
    timeout: Duration,
    /// Moved by renewals.
    expires_at: Mutex<SystemTime>,
    /// Known from the grant on if there is a resource manager.
    granted: Option<LeaseId>,
    first_node: String,
    claimed: OnceLock<(LeaseId, String)>,
    life: Arc<Life>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Lease");
        match self.id() {
            Some(id) => out.field("id", &id.get()),
            None => out.field("id", &"none until it is deployed"),
        };
        let left = self.expires_at().duration_since(SystemTime::now()).unwrap_or_default();
        out.field("node", &self.node()).field("cores", &self.cores());
        out.field("memory_mb", &self.inner.memory).field("time_left", &left).finish()
    }
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
            granted: LeaseId::new(terms.lease.get()),
            first_node: first.node.clone(),
            claimed: OnceLock::new(),
            life: Arc::new(Life::new(candidates)),
            client,
        };
        Ok(Lease { inner: Arc::new(inner) })
    }

    pub(super) fn from_inner(inner: Arc<LeaseInner>) -> Self {
        Lease { inner }
    }

    /// Its number. Without a resource manager none until the lease is deployed; with one, another if it is then
    /// found a place on another node.
    pub fn id(&self) -> Option<LeaseId> {
        self.inner.id()
    }

    /// Name of its node. Until the lease is deployed that may change: if the node does not take it, another one
    /// is found. Without a resource manager it is then the first node that will be tried.
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
    /// managers may refuse ([`Error::LeaseRefused`]): the lease then ends when it would have.
    pub fn renew(&self, timeout: Duration) -> Result<SystemTime> {
        self.inner.check_process()?;
        self.inner.renew(timeout)
    }

    /// Starts an executor that has the function library at `path`, with the default [`Deployment`].
    pub fn deploy(&self, path: impl AsRef<Path>) -> Result<Executor> {
        self.deploy_with(path, &Deployment::default())
    }

    /// Starts an executor that has the function library at `path`. The lease runs one at a time; it
    /// can be deployed again after a failure, or when the last executor was dropped.
    ///
    /// ```no_run
    /// # fn example(lease: &rfaas::Lease) -> rfaas::Result<()> {
    /// use rfaas::{Deployment, Spin};
    ///
    /// let large_and_idle = Deployment::new().input_bytes(64 << 20).slots(1).spin(Spin::Never);
    /// let executor = lease.deploy_with("libfunctions.so", &large_and_idle)?;
    /// println!("{:?}", executor.functions());
    /// # Ok(())
    /// # }
    /// ```
    pub fn deploy_with(&self, path: impl AsRef<Path>, deployment: &Deployment) -> Result<Executor> {
        self.inner.check_process()?;
        session::deploy(&self.inner, path.as_ref(), deployment)
    }

    /// Calls `tell`, once, when it becomes known that the lease ends without having been given back: its
    /// node is being withdrawn or its executor manager stopped, and then there is some time left; or its
    /// time is over, or its node is lost. At once if that is known already; else from the thread that
    /// speaks for all leases of the client, so `tell` must not take long, and a lease whose handle `tell`
    /// owns is not given back by itself. A later call takes the place of an earlier one.
    ///
    /// What to do until the deadline: let calls finish, start no long ones, lease elsewhere.
    ///
    /// ```no_run
    /// # fn example(lease: &rfaas::Lease) {
    /// use std::sync::mpsc;
    ///
    /// let (tell, ending) = mpsc::channel();
    /// lease.on_ending(move |end| drop(tell.send(end)));
    /// // … between two calls:
    /// if let Ok(end) = ending.try_recv() {
    ///     println!("the lease ends at {:?}: {}", end.at, end.reason.name());
    /// }
    /// # }
    /// ```
    pub fn on_ending(&self, tell: impl FnOnce(Ending) + Send + 'static) {
        if self.inner.check_process().is_err() {
            return; // it is the parent's, which is told
        }
        self.inner.life.on_ending(OnEnding(Box::new(tell)));
    }

    /// The end of a deployed lease, once it is announced or has come.
    pub fn ending(&self) -> Option<Ending> {
        self.inner.check_process().ok()?;
        self.inner.life.ending()
    }

    /// Gives the lease back and waits for its bill; none if it was never deployed. An executor that
    /// still runs on it is stopped.
    pub fn release(self) -> Result<Option<Bill>> {
        self.inner.release()
    }
}

impl LeaseInner {
    /// [`Error::Forked`] in a child that has inherited it. To be asked before a lock is taken: a thread that the
    /// child does not have may hold it.
    pub(super) fn check_process(&self) -> Result<()> {
        Ok(self.client.process.check()?)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.life.lock()
    }

    /// For those who are not to keep the lease.
    pub(super) fn life(&self) -> &Arc<Life> {
        &self.life
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

    /// It was claimed as `id` at `node`. Once: a lease is claimed once and stays so.
    pub(super) fn claimed(&self, id: LeaseId, node: &str) {
        self.claimed.set((id, node.to_owned())).ok();
    }

    /// The executor was dropped.
    pub(super) fn undeployed(&self) {
        self.lock().undeployed();
    }

    pub(super) fn release(&self) -> Result<Option<Bill>> {
        self.check_process()?;
        self.life.tell_nobody();
        let mut state = self.lock();
        match mem::replace(&mut state.stage, Stage::Over(EndReason::Released)) {
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

    fn renew(&self, timeout: Duration) -> Result<SystemTime> {
        if timeout < Duration::from_millis(1) {
            return Err(Error::Invalid("a lease is renewed for at least one millisecond"));
        }
        let token = match &self.lock().stage {
            Stage::Granted(candidates) => candidates.first().map(|candidate| candidate.token),
            Stage::Claimed(manager) => match manager.over() {
                Some(failure) => return Err(failure.into_error(Duration::ZERO)),
                None => Some(*manager.token()),
            },
            Stage::Over(reason) => return Err(Error::LeaseEnded { reason: *reason }),
        };
        let token = token.ok_or(Error::Invalid("a lease is for some node"))?;
        // Without the lock: the executor manager waits for signs of life meanwhile.
        let renewed = self.client.renew(token, timeout)?;
        let mut state = self.lock();
        let end = match &mut state.stage {
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
    pub(super) fn keep_alive(&self, state: &mut LeaseState) {
        let Some(manager) = state.manager() else { return };
        if let Err(error) = self.client.keepalive.watch(&self.life, manager) {
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

    /// A lease like this one on another node, in exchange for it, if there is one and a resource manager to grant it.
    pub(super) fn replace(&self, candidates: &[Candidate], because: Unusable) -> Option<Candidate> {
        let (Some(_), [candidate, ..]) = (self.granted, candidates) else { return None };
        self.client.replace(candidate.token, because)
    }

    /// Tells the resource manager, if there is one, that the lease is not needed.
    fn give_back(&self, candidates: &[Candidate]) {
        if let (Some(_), [candidate, ..]) = (self.granted, candidates) {
            self.client.give_back(candidate.token);
        }
    }
}

impl Drop for LeaseInner {
    /// LAST HANDLE.
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return; // the parent has it still
        }
        self.life.tell_nobody();
        let stage = mem::replace(&mut self.lock().stage, Stage::Over(EndReason::Released));
        match stage {
            Stage::Granted(candidates) => self.give_back(&candidates),
            Stage::Claimed(mut manager) => manager.release_unheard(),
            Stage::Over(_) => {}
        }
    }
}

/// When the lease of `token` ends.
fn end_of(token: &Token) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(token.terms.expires_at_ms.get())
}
