//! A lease as its handles and its executor hold it together.
//!
//! ```text
//!   granted ──deploy──▶ claimed (connected to its executor manager) ──release, expiry, …──▶ over
//!      │  ▲└renew                 ▲└renew
//!      └──release, drop──▶ over (the resource manager is told)
//! ```
//! The last of them to be dropped gives it back, there and then.
//!
//! Elsewhere: its stages, claiming it, telling its end (`lease_core`), what an application sees (`lease`).

use std::mem;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rfaas_config::OpenDevice;
use rfaas_protocol::constraints::Constraints;
use rfaas_protocol::lease::{EndReason, LeaseId, LeaseTerms, Token, Unusable};
use rfaas_protocol::node::Bill;

use crate::cause::{Cause, Ending};
use crate::error::{Error, Result};
use crate::grantor::Grantor;
use crate::lease_core::{LeaseCore, LeaseStage, LeaseUse};
use crate::library::Library;
use crate::printed::Printed;
use crate::request::{Candidate, LeaseRequest};
use crate::spares::Spares;

/// Longest wait for an executor manager to take a renewal.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a bill: the manager stops the executor within half a second.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for all that functions have printed: the manager waits for a second at most before it answers.
const PRINTED_TIMEOUT: Duration = Duration::from_secs(5);

/// The lease.
pub(crate) struct HeldLease {
    grantor: Arc<Grantor>,
    pub(crate) cores: u16,
    /// In MB.
    pub(crate) memory: u32,
    /// The time that was asked for.
    timeout: Duration,
    /// Where it was to be.
    constraints: Constraints,
    /// Renewals move it.
    expires: Mutex<Expiry>,
    /// Known from the grant on if there is a resource manager.
    granted: Option<LeaseId>,
    first_node: String,
    /// Its number and node, once it was claimed.
    claimed: OnceLock<(LeaseId, String)>,
    /// Its state, for what is not to keep the lease.
    pub(crate) core: Arc<LeaseCore>,
}

impl HeldLease {
    pub(crate) fn new(
        grantor: Arc<Grantor>,
        candidates: Vec<Candidate>,
        timeout: Duration,
    ) -> Result<Arc<Self>> {
        HeldLease::constrained(grantor, candidates, timeout, Constraints::default())
    }

    /// Holds a lease likewise that was asked for with `constraints`.
    pub(crate) fn constrained(
        grantor: Arc<Grantor>,
        candidates: Vec<Candidate>,
        timeout: Duration,
        constraints: Constraints,
    ) -> Result<Arc<Self>> {
        let first = candidates.first().ok_or(Error::Invalid("a lease is for some node"))?;
        let terms = &first.token.terms;
        Ok(Arc::new(HeldLease {
            cores: u16::try_from(terms.cores.get())
                .map_err(|_| Error::Invalid("a lease has at most 65535 cores"))?,
            memory: terms.memory.get(),
            timeout,
            constraints,
            expires: Mutex::new(Expiry::new(end_of(&first.token), timeout)),
            granted: terms.id(),
            first_node: first.node.clone(),
            claimed: OnceLock::new(),
            core: Arc::new(LeaseCore::new(candidates)),
            grantor,
        }))
    }

    pub(crate) fn expires_at(&self) -> SystemTime {
        self.expiry().at
    }

    fn expiry(&self) -> MutexGuard<'_, Expiry> {
        self.expires.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns its end, once that is announced or has come.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.check_process().ok()?;
        self.core.ending()
    }

    /// Fails in a child that has inherited it. To be asked before a lock is taken, which a thread may hold that the
    /// child does not have.
    pub(crate) fn check_process(&self) -> Result<()> {
        self.grantor.check_process()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, LeaseUse> {
        self.core.lock()
    }

    pub(crate) fn device(&self) -> &OpenDevice {
        &self.grantor.device
    }

    /// Returns the library at `path`, if it is one.
    pub(crate) fn read_library(&self, path: &Path) -> Result<Arc<Library>> {
        self.grantor.libraries.read(path)
    }

    /// What a deployment may find made.
    pub(crate) fn spares(&self) -> &Spares {
        &self.grantor.spares
    }

    pub(crate) fn id(&self) -> Option<LeaseId> {
        self.claimed.get().map(|(id, _)| *id).or(self.granted)
    }

    pub(crate) fn node(&self) -> &str {
        self.claimed.get().map_or(&self.first_node, |(_, node)| node)
    }

    /// Notes that it was claimed as `id` at `node`. A lease is claimed once and stays so.
    pub(crate) fn claimed(&self, id: LeaseId, node: &str) {
        self.claimed.set((id, node.to_owned())).ok();
    }

    pub(crate) fn release(&self) -> Result<Option<Bill>> {
        self.check_process()?;
        self.core.tell_nobody();
        let mut state = self.lock();
        match mem::replace(&mut state.stage, LeaseStage::Over(EndReason::Released)) {
            LeaseStage::Granted(candidates) => {
                self.give_back(&candidates);
                Ok(None)
            }
            LeaseStage::Claimed(mut manager) => {
                let bill = manager.release(RELEASE_TIMEOUT, &|| self.grantor.prepare());
                if let Some(Cause::LeaseEnded(reason)) = manager.over() {
                    state.stage = LeaseStage::Over(reason);
                }
                Ok(Some(bill?))
            }
            LeaseStage::Over(reason) => {
                state.stage = LeaseStage::Over(reason);
                Err(Error::LeaseEnded { reason })
            }
        }
    }

    /// Acquires another lease like this one, of the same client, where its constraints allow it. Where there is a
    /// choice, its own node is asked last.
    pub(crate) fn another(&self) -> Result<Arc<HeldLease>> {
        let request = LeaseRequest::new(self.cores.into(), self.memory).timeout(self.timeout);
        let constraints = self.constraints.of_one(&self.first_node);
        let candidates = self.grantor.lease(&LeaseRequest { constraints, ..request })?;
        let grantor = Arc::clone(&self.grantor);
        let constraints = self.constraints.clone();
        let lease = HeldLease::constrained(grantor, candidates, self.timeout, constraints)?;
        if let LeaseStage::Granted(candidates) = &mut lease.lock().stage {
            candidates.sort_by_key(|candidate| candidate.node == self.node());
        }
        Ok(lease)
    }

    /// Acquires leases with `workers` times what `request` asks for, beside those of these numbers: one for each node.
    pub(crate) fn grown(
        grantor: &Arc<Grantor>,
        leases: &[LeaseId],
        workers: u32,
        request: &LeaseRequest,
    ) -> Result<Vec<Arc<HeldLease>>> {
        let granted = grantor.grow(leases, workers, request)?;
        let held = |candidate| {
            let constraints = request.constraints.clone();
            let grantor = Arc::clone(grantor);
            HeldLease::constrained(grantor, vec![candidate], request.timeout, constraints)
        };
        granted.into_iter().map(held).collect()
    }

    /// Acquires `cores` cores more beside this lease likewise.
    pub(crate) fn grow(&self, cores: u32) -> Result<Vec<Arc<HeldLease>>> {
        let id = self.current()?;
        let left = self.expiry().ends_by.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            return Err(Error::LeaseEnded { reason: EndReason::Expired });
        }
        let id: Vec<_> = id.into_iter().collect();
        HeldLease::grown(&self.grantor, &id, cores, &self.one_core(left))
    }

    /// Returns its number as leases are grown by it: after exchanges, or the last that is known of it.
    pub(crate) fn grows_as(&self) -> Result<Option<LeaseId>> {
        self.check_process()?;
        Ok(self.current().unwrap_or_else(|_| self.id()))
    }

    /// Returns its number, as it is after exchanges. Fails if it is over.
    fn current(&self) -> Result<Option<LeaseId>> {
        match &mut self.lock().stage {
            LeaseStage::Granted(candidates) => {
                let first = candidates.first().and_then(|candidate| candidate.token.terms.id());
                Ok(first.or(self.granted))
            }
            LeaseStage::Claimed(manager) => {
                manager.poll();
                match manager.over() {
                    Some(cause) => Err(cause.into()),
                    None => Ok(manager.token().terms.id().or(self.granted)),
                }
            }
            LeaseStage::Over(reason) => Err(Error::LeaseEnded { reason: *reason }),
        }
    }

    /// Returns what asks for a core more, with its share of the memory, for as long as is `left`, where the constraints
    /// of this lease allow it. That it was to be on certain nodes does not count: it is there.
    fn one_core(&self, left: Duration) -> LeaseRequest {
        let memory = self.memory.div_ceil(u32::from(self.cores));
        let request = LeaseRequest::new(1, memory).timeout(left);
        let constraints = Constraints { near: None, nodes: Vec::new(), ..self.constraints.clone() };
        LeaseRequest { constraints, ..request }
    }

    /// Returns whether it is claimed, and will be for a while as far as is known.
    pub(crate) fn lives(&self) -> bool {
        match &mut self.lock().stage {
            LeaseStage::Claimed(manager) => {
                manager.poll();
                manager.over().is_none() && manager.ending().is_none()
            }
            LeaseStage::Granted(_) | LeaseStage::Over(_) => false,
        }
    }

    pub(crate) fn renew(&self, timeout: Duration) -> Result<SystemTime> {
        if timeout < Duration::from_millis(1) {
            return Err(Error::Invalid("a lease is renewed for at least one millisecond"));
        }
        let token = match &self.lock().stage {
            LeaseStage::Granted(candidates) => candidates.first().map(|candidate| candidate.token),
            LeaseStage::Claimed(manager) => match manager.over() {
                Some(cause) => return Err(cause.into()),
                None => Some(*manager.token()),
            },
            LeaseStage::Over(reason) => return Err(Error::LeaseEnded { reason: *reason }),
        };
        let token = token.ok_or(Error::Invalid("a lease is for some node"))?;
        let asked = Instant::now();
        // Without the lock: the executor manager waits for signs of life meanwhile.
        let renewed = self.grantor.renew(token, timeout)?;
        let mut state = self.lock();
        let end = match &mut state.stage {
            LeaseStage::Granted(candidates) => {
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
            LeaseStage::Claimed(manager) => {
                manager.renew(renewed, Instant::now() + RENEW_TIMEOUT)?
            }
            LeaseStage::Over(reason) => return Err(Error::LeaseEnded { reason: *reason }),
        };
        self.expiry().renewed(end, asked + timeout);
        Ok(end)
    }

    /// Reads what executors and functions of the lease have written.
    pub(crate) fn read_printed(&self) -> Result<Printed> {
        self.check_process()?;
        match &mut self.lock().stage {
            LeaseStage::Granted(_) => Ok(Printed::default()),
            LeaseStage::Claimed(manager) => manager.read_printed(PRINTED_TIMEOUT),
            LeaseStage::Over(reason) => Err(Error::LeaseEnded { reason: *reason }),
        }
    }

    /// Has the keepalive thread poll the lease, which was just claimed.
    pub(crate) fn keep_alive(&self, state: &mut LeaseUse) {
        let Some(manager) = state.manager() else { return };
        if let Err(error) = self.grantor.keepalive.watch(&self.core, manager) {
            // Calls and waits still give signs of life; an idle application does not.
            tracing::error!(%error, "no thread speaks for this lease: it may be taken for dead");
        }
    }

    /// Treats it as lost: gives it back as far as that is possible without waiting.
    pub(crate) fn give_up(&self) {
        let mut state = self.lock();
        let reason = match &mut state.stage {
            LeaseStage::Granted(candidates) => {
                self.give_back(candidates);
                EndReason::Released
            }
            LeaseStage::Claimed(manager) => {
                let reason = match (manager.over(), manager.ending()) {
                    (Some(Cause::LeaseEnded(reason)), _) | (_, Some(Ending { reason, .. })) => {
                        reason
                    }
                    _ => EndReason::NodeLost,
                };
                manager.release_without_bill();
                reason
            }
            LeaseStage::Over(_) => return,
        };
        state.stage = LeaseStage::Over(reason);
    }

    /// Exchanges it for a lease like it on another node, if there is one and a resource manager to grant it.
    pub(crate) fn replace(&self, candidates: &[Candidate], because: Unusable) -> Option<Candidate> {
        let (Some(_), [candidate, ..]) = (self.granted, candidates) else { return None };
        self.grantor.replace(candidate.token, because)
    }

    /// Tells the resource manager, if there is one, that the lease is not needed.
    fn give_back(&self, candidates: &[Candidate]) {
        if let (Some(_), [candidate, ..]) = (self.granted, candidates) {
            self.grantor.give_back(candidate.token);
        }
    }
}

impl Drop for HeldLease {
    /// Gives the lease back: this was its last holder.
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return; // the parent has it still
        }
        self.core.tell_nobody();
        let stage = mem::replace(&mut self.lock().stage, LeaseStage::Over(EndReason::Released));
        match stage {
            LeaseStage::Granted(candidates) => self.give_back(&candidates),
            LeaseStage::Claimed(mut manager) => manager.release_without_bill(),
            LeaseStage::Over(_) => {}
        }
    }
}

/// When a lease ends by itself.
struct Expiry {
    /// As its managers say, by their clock.
    at: SystemTime,
    /// At the latest, by the clock of this machine that nobody sets: it was granted or renewed for so long.
    ends_by: Instant,
}

impl Expiry {
    /// Of a lease that was just granted.
    fn new(at: SystemTime, timeout: Duration) -> Self {
        Expiry { at, ends_by: Instant::now() + timeout }
    }

    /// It was renewed: until then, or as long as before if that is later.
    fn renewed(&mut self, at: SystemTime, ends_by: Instant) {
        (self.at, self.ends_by) = (at, self.ends_by.max(ends_by));
    }
}

/// Returns when the lease of `token` ends.
fn end_of(token: &Token) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(token.terms.expires_at_ms.get())
}
