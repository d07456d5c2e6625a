//! A deployed lease, as an application holds it: makes functions and buffers, and owns what ends
//! with it. Invoking is in `invoke`.

use std::sync::Arc;

use rdmalib::Domain;

use super::buffer::{Input, Output, Owner};
use super::drive::Shared;
use super::failure::Failure;
use super::lease::{Lease, LeaseInner};
use super::{Deployment, Phases};
use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::protocol::lease::{EndReason, LeaseId};
use crate::protocol::node::Bill;

/// A leased, deployed executor: a process on another node that has the library loaded, with one
/// worker for each leased core.
///
/// Dropping it ends the process and, if no [`Lease`] handle is left, gives the lease back without
/// waiting for the bill. Invocations that are still in flight then fail.
#[derive(Debug)]
pub struct Executor {
    // Fields drop in order: the manager is told first, so that it takes the end for what it is.
    lease: Deployed,
    pub(super) data: DataPath,
    /// Its end makes the executor process exit.
    _control: Channel,
    domain: Domain,
    pub(super) owner: Owner,
    pub(super) deployment: Deployment,
    lease_id: LeaseId,
    workers: usize,
    phases: Phases,
}

/// A function of one executor, found by name once.
#[derive(Clone, Debug)]
pub struct Function {
    pub(super) index: u32,
    pub(super) owner: Owner,
}

/// Marks the lease as free for another deployment when dropped.
#[derive(Debug)]
pub(super) struct Deployed(pub(super) Arc<LeaseInner>);

impl Drop for Deployed {
    fn drop(&mut self) {
        self.0.undeployed();
    }
}

/// Fails what is in flight when dropped: invocations may outlive their executor.
#[derive(Debug)]
pub(super) struct DataPath(pub(super) Arc<Shared>);

impl Drop for DataPath {
    fn drop(&mut self) {
        self.0.close(Failure::WorkerLost("its executor was dropped"));
    }
}

/// What a deployment has put together.
pub(super) struct Parts {
    pub(super) lease: Deployed,
    pub(super) shared: Shared,
    pub(super) control: Channel,
    pub(super) domain: Domain,
    pub(super) owner: Owner,
    pub(super) deployment: Deployment,
    pub(super) lease_id: LeaseId,
    pub(super) workers: usize,
    pub(super) phases: Phases,
}

impl Executor {
    pub(super) fn new(parts: Parts) -> Self {
        Executor {
            lease: parts.lease,
            data: DataPath(Arc::new(parts.shared)),
            _control: parts.control,
            domain: parts.domain,
            owner: parts.owner,
            deployment: parts.deployment,
            lease_id: parts.lease_id,
            workers: parts.workers,
            phases: parts.phases,
        }
    }

    /// Worker threads, one for each leased core.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Names of the functions in the library, sorted.
    pub fn functions(&self) -> &[String] {
        self.data.0.functions()
    }

    /// How long the parts of the deployment took.
    pub fn phases(&self) -> &Phases {
        &self.phases
    }

    /// What it was deployed with.
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
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
        Ok(Function { index, owner: self.owner })
    }

    /// Memory for an input of `bytes` bytes, registered, zeroed, 64-byte aligned.
    pub fn input(&self, bytes: usize) -> Result<Input> {
        Input::allocate(&self.domain, self.owner, bytes)
    }

    /// Memory for an output of up to `bytes` bytes, registered, zeroed, 64-byte aligned.
    pub fn output(&self, bytes: usize) -> Result<Output> {
        Output::allocate(&self.domain, self.owner, bytes)
    }

    /// Gives the lease back and waits for its bill; the executor process is then gone.
    pub fn release(self) -> Result<Bill> {
        let bill = self.lease.0.release()?;
        self.data.0.close(Failure::LeaseEnded(EndReason::Released));
        bill.ok_or(Error::ExecutorGone)
    }
}
