//! A lease as an application has it: cores of a node for some time, deployed as often as wanted, given back once.
//!
//! Elsewhere: what handles and executor share (`held_lease`), starting a process (`session`).

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rfaas_protocol::lease::LeaseId;
use rfaas_protocol::node::Bill;

use crate::buffer::Origin;
use crate::deployed::DeployedExecutor;
use crate::deployment::Deployment;
use crate::error::Result;
use crate::executor::Executor;
use crate::executor_manager::Ending;
use crate::held_lease::HeldLease;
use crate::lease_handle::OnEnding;
use crate::specification::DeploymentSpecification;
use crate::{library, session};

/// A leased share of a node. The lease ends when it is released, when its time is over, or when the last handle and
/// executor are dropped.
///
/// ```no_run
/// # fn example(client: &rfaas::Client) -> rfaas::Result<()> {
/// let lease = client.lease(rfaas::LeaseRequest::new(2, 512))?; // 2 cores, 512 MB, for an hour
/// let executor = lease.deploy("target/release/libfunctions.so")?;
/// println!("{} workers on {}", executor.workers(), lease.node());
/// drop(executor); // the lease lives, since there is a handle of it
/// if let Some(bill) = lease.release()? {
///     println!("{bill:?}");
/// }
/// # Ok(())
/// # }
/// ```
pub struct Lease {
    inner: Arc<HeldLease>,
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
        out.field("memory_mb", &self.inner.memory()).field("time_left", &left).finish()
    }
}

impl Lease {
    pub(crate) fn from_inner(inner: Arc<HeldLease>) -> Self {
        Lease { inner }
    }

    /// Returns its number. Without a resource manager none until the lease is deployed; with one, another if it is then
    /// found a place on another node.
    pub fn id(&self) -> Option<LeaseId> {
        self.inner.id()
    }

    /// Returns the name of its node. Until the lease is deployed that may change: if the node does not take it, another one
    /// is found. Without a resource manager it is then the first node that will be tried.
    pub fn node(&self) -> &str {
        self.inner.node()
    }

    /// Returns the number of its cores.
    pub fn cores(&self) -> u32 {
        self.inner.cores().into()
    }

    /// Returns when it ends by itself.
    pub fn expires_at(&self) -> SystemTime {
        self.inner.expires_at()
    }

    /// Has the lease last until `timeout` from now, if it would end before; returns when it ends. The
    /// managers may refuse ([`Error::LeaseRefused`](crate::Error::LeaseRefused)): the lease then ends when it would have.
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
        deployment.validate()?;
        let specification = DeploymentSpecification {
            code: library::read(path.as_ref())?.into(),
            deployment: deployment.clone(),
            domain: self.inner.device().device.domain()?,
            origin: Origin::generate(),
        };
        let started = session::start(&self.inner, &specification, deployment.start_timeout)?;
        let lease = Arc::clone(&self.inner);
        Ok(Executor::new(DeployedExecutor::new(lease, specification, started)))
    }

    /// Calls `tell`, once, when it becomes known that the lease ends without having been given back: its node is being
    /// withdrawn or its executor manager stopped, and then there is some time left; or its time is over, or its node is
    /// lost. It is called at once if that is known already, else from the thread that gives signs of life for all leases
    /// of the client. So `tell` must not take long, and a lease whose handle `tell` owns is not given back by itself. A
    /// later call takes the place of an earlier one.
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
            return; // the parent has it, and is told
        }
        self.inner.handle().on_ending(OnEnding(Box::new(tell)));
    }

    /// Returns the end of a deployed lease, once it is announced or has come.
    pub fn ending(&self) -> Option<Ending> {
        self.inner.ending()
    }

    /// Gives the lease back and waits for its bill; none if it was never deployed. An executor that
    /// still runs on it is stopped.
    pub fn release(self) -> Result<Option<Bill>> {
        self.inner.release()
    }
}
