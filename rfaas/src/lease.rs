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
use crate::cause::Ending;
use crate::deployed::DeployedExecutor;
use crate::deployment::{Deployment, DeploymentSpecification};
use crate::error::Result;
use crate::executor::Executor;
use crate::held_lease::HeldLease;
use crate::lease_core::OnEnding;
use crate::printed::Printed;
use crate::session;

/// A leased share of a node. The lease ends when it is released, when its time is over, when the last handle and
/// executor are dropped, or when node or operator end it ([`on_ending`](Self::on_ending)).
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
        out.field("memory_mb", &self.inner.memory).field("time_left", &left).finish()
    }
}

impl Lease {
    pub(crate) fn from_inner(inner: Arc<HeldLease>) -> Self {
        Lease { inner }
    }

    /// Returns its number.
    ///
    /// With a resource manager there is one at once. The first deployment may change it: if the node does not take the
    /// lease, another node is found, and the lease there has another number. Without a resource manager there is none
    /// until the lease is deployed.
    pub fn id(&self) -> Option<LeaseId> {
        self.inner.id()
    }

    /// Returns its number as leases are grown by it.
    pub(crate) fn grows_as(&self) -> Result<Option<LeaseId>> {
        self.inner.grows_as()
    }

    /// Returns the name of its node.
    ///
    /// The first deployment may change it: if the node does not take the lease, another one is found. Without a
    /// resource manager it is, until then, the first node that will be tried.
    pub fn node(&self) -> &str {
        self.inner.node()
    }

    /// Returns the number of its cores.
    pub fn cores(&self) -> u32 {
        self.inner.cores.into()
    }

    /// Returns when it ends by itself.
    pub fn expires_at(&self) -> SystemTime {
        self.inner.expires_at()
    }

    /// Has the lease last until `timeout` from now, if it would end before; returns when it ends. After an error it
    /// ends when it would have.
    ///
    /// # Errors
    /// [`Error::LeaseRefused`](crate::Error::LeaseRefused): a manager does not want it.
    /// [`Error::LeaseEnded`](crate::Error::LeaseEnded): it is too late.
    /// [`Error::Invalid`](crate::Error::Invalid): less than a millisecond. The managers may also not be reached.
    pub fn renew(&self, timeout: Duration) -> Result<SystemTime> {
        self.inner.check_process()?;
        self.inner.renew(timeout)
    }

    /// Leases `cores` cores more, up to 32, as close to this lease as there is room: on its node, else on others, all
    /// of them or none. Each has the memory that a core of this lease has, rounded up. They last as long as this lease
    /// does now, and are where the constraints of this lease allow them, but for `near` and `nodes`. `together` and
    /// `apart` hold against this lease only: not against others that were granted with it.
    ///
    /// This lease stays as it is: its executor and its workers serve on. The cores are leases of their own, one for
    /// each node, with a bill and an end of their own: deploy them to have more workers.
    /// [`Client::grow`](crate::Client::grow) grows several leases at once, by what one asks for.
    ///
    /// # Errors
    /// As for [`Client::grow`](crate::Client::grow). [`Error::LeaseEnded`](crate::Error::LeaseEnded): this lease is
    /// over, or has no millisecond left.
    ///
    /// ```no_run
    /// # fn example(lease: &rfaas::Lease) -> rfaas::Result<()> {
    /// let mut executors = vec![lease.deploy("libfunctions.so")?];
    /// for more in lease.grow(4)? {
    ///     executors.push(more.deploy("libfunctions.so")?); // while the first one serves
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn grow(&self, cores: u32) -> Result<Vec<Lease>> {
        self.inner.check_process()?;
        Ok(self.inner.grow(cores)?.into_iter().map(Lease::from_inner).collect())
    }

    /// Starts an executor that has the function library at `path`, with the default [`Deployment`]. The file is one of
    /// this machine: it is read here, and sent to the node unless that has it. Fails as
    /// [`deploy_with`](Self::deploy_with) does.
    pub fn deploy(&self, path: impl AsRef<Path>) -> Result<Executor> {
        self.deploy_with(path, &Deployment::default())
    }

    /// Starts an executor that has the function library at `path`. The file is one of this machine: it is read here,
    /// and sent to the node unless that has it. The lease runs one at a time; it can be deployed again after
    /// a failure, or when the last executor was dropped.
    ///
    /// # Errors
    /// * [`Error::LibraryUnreadable`](crate::Error::LibraryUnreadable), [`Error::Library`](crate::Error::Library): the
    ///   file; nothing was sent. [`Error::LoadFailed`](crate::Error::LoadFailed): the node cannot load it.
    ///   [`Error::LibraryGarbled`](crate::Error::LibraryGarbled): other bytes have arrived.
    /// * [`Error::AlreadyDeployed`](crate::Error::AlreadyDeployed), [`Error::Invalid`](crate::Error::Invalid).
    /// * [`Error::Unreachable`](crate::Error::Unreachable), [`Error::Unproved`](crate::Error::Unproved),
    ///   [`Error::AllocationRefused`](crate::Error::AllocationRefused): the node, after others were tried as far as
    ///   there are some.
    /// * [`Error::StartFailed`](crate::Error::StartFailed), [`Error::StartTimeout`](crate::Error::StartTimeout): the
    ///   process.
    /// * [`Error::LeaseEnded`](crate::Error::LeaseEnded), [`Error::ExecutorGone`](crate::Error::ExecutorGone): the
    ///   lease.
    /// * [`Error::Rdma`](crate::Error::Rdma): this machine; for example, the [port](crate::DeviceEntry::port) is taken.
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
            library: self.inner.read_library(path.as_ref())?,
            deployment: deployment.clone(),
            domain: self.inner.spares().domain(self.inner.device())?,
            origin: Origin::generate(),
        };
        let started = session::start(&self.inner, &specification, deployment.start_timeout)?;
        let lease = Arc::clone(&self.inner);
        Ok(Executor::new(DeployedExecutor::new(lease, specification, started)))
    }

    /// Calls `tell`, once, when it becomes known that the lease ends without having been given back. If its node is
    /// withdrawn or its executor manager stops, there is some time left until [`Ending::at`]. If its time is over or
    /// its node is lost, there is none.
    ///
    /// If the end is known already, `tell` is called at once, in this thread. Otherwise it is called in the thread that
    /// gives signs of life for all leases of the client, so it must not take long. A later `on_ending` replaces an
    /// earlier one. If `tell` owns a handle of the lease, dropping the other handles does not give the lease back.
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
        self.inner.core.on_ending(OnEnding(Box::new(tell)));
    }

    /// Returns the end of a deployed lease, once it is announced or has come. `None` before, and in a forked child.
    pub fn ending(&self) -> Option<Ending> {
        self.inner.ending()
    }

    /// Reads what functions have written on standard output and error, of all executors of the lease so far, as
    /// [`Executor::printed`](crate::Executor::printed) does: also when one did not start, or has crashed.
    pub fn printed(&self) -> Result<Printed> {
        self.inner.read_printed()
    }

    /// Gives the lease back and waits for its bill; none if it was never deployed. An executor that
    /// still runs on it is stopped.
    ///
    /// After an error there is no lease either: [`Error::LeaseEnded`](crate::Error::LeaseEnded) if it was over before,
    /// [`Error::NoAnswer`](crate::Error::NoAnswer), [`Error::ExecutorGone`](crate::Error::ExecutorGone) or
    /// [`Error::Connection`](crate::Error::Connection) if the bill did not come.
    pub fn release(self) -> Result<Option<Bill>> {
        self.inner.release()
    }
}
