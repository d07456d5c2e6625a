//! A deployed lease, as an application holds it: makes functions and buffers, and owns what ends
//! with it.
//!
//! ```text
//!   running ──worker given up, nothing else in flight──▶ stopped ──next call, restart──▶ running
//!      │ executor ended by itself: calls fail and say why        │ it fails: the next call tries again
//!      └──restart──▶ running, a new process                      └──drop──▶ the lease is free
//! ```
//! A thread in a function that never returns can only be ended with its process. So a worker is not
//! repaired: the process is replaced as a whole, on the same lease, and what the application has made
//! for it goes on (`session`, AGAIN).
//!
//! Elsewhere: invoking (`invoke`, `in_place`), moving to another lease (`failover`).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffer::{Input, Output, Owner};
use super::drive::DataPath;
use super::failure::Failure;
use super::in_place::Aside;
use super::lease::{Lease, LeaseInner};
use super::session::{self, Blueprint, Started};
use super::{Deployment, Phases};
use crate::error::{Error, Result};
use rfaas_protocol::Malformed;
use rfaas_protocol::channel::Channel;
use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::Bill;

/// A leased, deployed executor: a process on another node that has the library loaded, with one
/// worker for each leased core.
///
/// A call past its time limit costs its worker. The next call that finds nothing in flight, or no
/// worker left, starts a new process first, as [`restart`](Self::restart) does. A process that a
/// function has crashed or ended is not replaced unasked: calls say how it ended.
///
/// Dropping it ends the process and, if no [`Lease`] handle is left, gives the lease back without
/// waiting for the bill. Invocations that are still in flight then fail.
pub struct Executor {
    // Fields drop in order: the manager is told first, so that it takes the end for what it is.
    pub(super) lease: Deployed,
    pub(super) data: DataPath,
    /// Its end makes the executor process exit. `None`: stopped, to be replaced.
    control: Option<Channel>,
    pub(super) blueprint: Blueprint,
    lease_id: LeaseId,
    phases: Phases,
    /// Its end is announced and nobody else has taken over (`failover`); not tried again before.
    pub(super) stays_until: Option<Instant>,
    /// For calls in place, one after the other.
    pub(super) aside: Option<Aside>,
}

/// A function of one executor, found by name once.
#[derive(Clone)]
pub struct Function {
    pub(super) index: u32,
    pub(super) owner: Owner,
}

/// Marks the lease as free for another deployment when dropped.
pub(super) struct Deployed(pub(super) Arc<LeaseInner>);

impl Drop for Deployed {
    fn drop(&mut self) {
        if self.0.check_process().is_ok() {
            self.0.undeployed();
        }
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Executor");
        out.field("node", &self.node()).field("lease", &self.lease_id.get());
        out.field("workers", &self.workers()).field("functions", &self.functions().len());
        out.field("running", &!self.is_stopped()).finish()
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function(number {})", self.index)
    }
}

impl Executor {
    pub(super) fn new(lease: Deployed, blueprint: Blueprint, started: Started) -> Self {
        Executor {
            lease,
            data: DataPath::new(started.shared),
            control: Some(started.control),
            blueprint,
            lease_id: started.lease_id,
            phases: started.phases,
            stays_until: None,
            aside: None,
        }
    }

    /// Worker threads, one for each leased core.
    pub fn workers(&self) -> usize {
        usize::from(self.lease.0.cores())
    }

    /// Names of the functions in the library, sorted.
    pub fn functions(&self) -> &[String] {
        self.data.functions()
    }

    /// How long the parts of the deployment took, or of the last restart.
    pub fn phases(&self) -> &Phases {
        &self.phases
    }

    /// What it was deployed with.
    pub fn deployment(&self) -> &Deployment {
        &self.blueprint.deployment
    }

    /// Number of the lease.
    pub fn lease_id(&self) -> LeaseId {
        self.lease_id
    }

    /// Name of the node.
    pub fn node(&self) -> &str {
        self.lease.0.node()
    }

    /// The lease: to deploy it again after this executor has crashed and was dropped, or to ask
    /// when it ends. While a handle lives, dropping the executor does not give the lease back.
    pub fn lease(&self) -> Lease {
        Lease::from_inner(Arc::clone(&self.lease.0))
    }

    /// The function called `name`.
    pub fn function(&self, name: &str) -> Result<Function> {
        let functions = self.functions();
        let index = functions.iter().position(|function| function == name).ok_or_else(|| {
            Error::UnknownFunction { name: name.to_owned(), available: functions.to_vec() }
        })?;
        let index = u32::try_from(index).expect("the wire counts functions in 32 bits");
        Ok(Function { index, owner: self.blueprint.owner })
    }

    /// Memory for an input of `bytes` bytes, registered, zeroed, 64-byte aligned.
    pub fn input(&self, bytes: usize) -> Result<Input> {
        Input::allocate(&self.blueprint.domain, self.blueprint.owner, bytes)
    }

    /// Memory for an output of up to `bytes` bytes, registered, zeroed, 64-byte aligned.
    pub fn output(&self, bytes: usize) -> Result<Output> {
        Output::allocate(&self.blueprint.domain, self.blueprint.owner, bytes)
    }

    /// Ends the executor process, whatever its functions do, and starts a new one with the same
    /// library on the same lease. Buffers and functions stay valid; what the library kept in memory
    /// is gone. Invocations in flight fail with [`Error::WorkerLost`].
    ///
    /// After an error there is no process; the next call, or another restart, tries again.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_within(self.blueprint.deployment.start_timeout)
    }

    pub(super) fn restart_within(&mut self, timeout: Duration) -> Result<()> {
        self.data.check_process()?;
        self.stop();
        let started = session::start_again(&self.lease, &self.blueprint, timeout)?;
        self.check_functions(&started)?;
        self.install(started);
        tracing::info!(lease = %self.lease_id, "executor replaced");
        Ok(())
    }

    /// Ends the executor process. Its workers are cut first, so that nothing of it reaches buffers
    /// that are used again.
    pub(super) fn stop(&mut self) {
        self.data.close(Failure::WorkerLost("its executor was ended to be replaced"));
        self.control = None;
    }

    /// There is no executor process, by our own will.
    #[inline]
    pub(super) fn is_stopped(&self) -> bool {
        self.control.is_none()
    }

    /// Functions go by their index: another process must have the same ones.
    pub(super) fn check_functions(&self, started: &Started) -> Result<()> {
        if started.shared.functions() == self.functions() {
            Ok(())
        } else {
            Err(Malformed::Field("function list").into())
        }
    }

    pub(super) fn install(&mut self, started: Started) {
        self.data = DataPath::new(started.shared);
        self.control = Some(started.control);
        self.lease_id = started.lease_id;
        self.phases = started.phases;
    }

    /// Gives the lease back and waits for its bill; the executor process is then gone.
    pub fn release(self) -> Result<Bill> {
        let bill = self.lease.0.release()?;
        self.data.close(Failure::LeaseEnded(EndReason::Released));
        bill.ok_or(Error::ExecutorGone)
    }
}
