//! What an application uses: leases cores, deploys a function library on them, invokes functions.
//!
//! ```text
//!   Client ──lease──▶ Lease ──deploy──▶ Executor ──function, input, output──▶ invoke, submit, in_place
//!   link: asks a      manager, session,      workers, slots, tickets: what is in flight
//!   resource manager  assembly: deploying    drive, wait, reactor: who polls, who sleeps
//!                     keepalive: signs of life, news      failover: going on elsewhere
//! ```
//! For an application that does not wait, nothing polls. One thread per client sleeps for its claimed
//! leases, giving a sign of life every second or so; one per executor is started when a task first sleeps
//! on an asynchronous invocation.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

mod assembly;
mod buffer;
mod database;
mod deployment;
mod drive;
mod executor;
mod failover;
mod failure;
mod in_place;
mod invoke;
mod keepalive;
mod lease;
mod library;
mod life;
mod link;
mod manager;
mod pending;
mod reactor;
mod request;
mod session;
mod slots;
mod tickets;
mod wait;
mod workers;

pub use buffer::{Input, Output};
pub use deployment::{Deployment, Phases};
pub use executor::{Executor, Function};
pub use in_place::{InPlaceCall, InPlaceResult};
pub use lease::Lease;
pub use manager::Ending;
pub use pending::{Completed, Failed, Pending};
pub use request::LeaseRequest;
use rfaas_call::Spin;

use crate::error::{Error, Result};
use keepalive::Keepalive;
use life::Candidate;
use link::Link;
use rdmalib::ForkMark;
use rfaas_config::{ExecutorEntry, ExecutorsDatabase, OpenDevice};
use rfaas_protocol::lease::{ClientName, MAX_CLIENT_NAME_BYTES, Token, Unusable};

/// Name that leases are billed under unless the client has one.
const ANONYMOUS: &str = "anonymous";

/// Leases cores: through a resource manager, or straight from the executor managers of a list. May
/// be used by several threads. A child that is forked while there is one neither uses nor ends what is its parent's:
/// every call there is [`Error::Forked`], also of leases and executors. It connects a client of its own.
#[derive(Clone)]
pub struct Client {
    inner: Arc<ClientInner>,
}

pub(crate) struct ClientInner {
    device: OpenDevice,
    name: ClientName,
    grantor: Grantor,
    keepalive: Keepalive,
    /// Whose it is, and all that is made with it: not a child's that inherits it.
    process: ForkMark,
}

/// Who grants leases.
enum Grantor {
    Manager(Box<Link>),
    /// Nobody: an executor manager without a resource manager takes whoever comes.
    Database(Vec<ExecutorEntry>),
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ClientInner { device, name, grantor, .. } = &*self.inner;
        let mut out = f.debug_struct("Client");
        out.field("name", name).field("device", &device.device);
        match grantor {
            Grantor::Manager(link) => out.field("resource_manager", &link.addresses()),
            Grantor::Database(entries) => out.field("executor_managers", &entries.len()),
        };
        out.finish()
    }
}

impl Client {
    /// Connects to the resource manager at `address` (`host:port`), anonymously. Of a name all addresses are tried.
    pub fn connect(device: OpenDevice, address: impl ToSocketAddrs + fmt::Debug) -> Result<Self> {
        Self::connect_as(device, address, ANONYMOUS)
    }

    /// Connects to the resource manager at `address` (`host:port`); leases are billed to `name`,
    /// which has at most 64 bytes.
    pub fn connect_as(
        device: OpenDevice,
        address: impl ToSocketAddrs + fmt::Debug,
        name: &str,
    ) -> Result<Self> {
        let name = client_name(name)?;
        let grantor = Grantor::Manager(Box::new(Link::connect(&device, resolve(address)?)?));
        Ok(Client::new(device, name, grantor))
    }

    /// Without a resource manager: leases are taken at the executor managers of `database`, in
    /// order, which must run without one too. Nothing is connected yet.
    pub fn with_executors(device: OpenDevice, database: ExecutorsDatabase) -> Result<Self> {
        let name = client_name(ANONYMOUS)?;
        let grantor = Grantor::Database(database.executors);
        Ok(Client::new(device, name, grantor))
    }

    fn new(device: OpenDevice, name: ClientName, grantor: Grantor) -> Self {
        let keepalive = Keepalive::default();
        Client {
            inner: Arc::new(ClientInner {
                device,
                name,
                grantor,
                keepalive,
                process: ForkMark::new(),
            }),
        }
    }

    /// Leases cores of some node. Without a resource manager the node is chosen when the lease is
    /// deployed: the first of those with enough cores and memory that takes it.
    pub fn lease(&self, request: LeaseRequest) -> Result<Lease> {
        self.inner.process.check()?;
        request.validate()?;
        if request.max_nodes > 1 {
            return Err(Error::Invalid("a lease is of one node: use `lease_many` for several"));
        }
        let candidates = match &self.inner.grantor {
            Grantor::Manager(link) => link.lease(&self.inner.device, &request, self.inner.name)?,
            Grantor::Database(entries) => database::lease(entries, &request, self.inner.name)?,
        };
        Lease::new(Arc::clone(&self.inner), candidates, request.timeout)
    }

    /// Leases cores of up to `max_nodes` nodes, which together have what `request` asks for: one lease
    /// for each, memory divided in proportion to their cores. All are granted or none; from then on each
    /// has a life of its own. One node is preferred to several.
    ///
    /// ```no_run
    /// # fn example(client: &rfaas::Client) -> rfaas::Result<()> {
    /// let request = rfaas::LeaseRequest::new(64, 4096).max_nodes(4);
    /// let mut executors = Vec::new();
    /// for lease in client.lease_many(request)? {
    ///     println!("{} cores on {}", lease.cores(), lease.node());
    ///     executors.push(lease.deploy("libfunctions.so")?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn lease_many(&self, request: LeaseRequest) -> Result<Vec<Lease>> {
        self.inner.process.check()?;
        request.validate()?;
        let inner = &self.inner;
        let parts = match &inner.grantor {
            Grantor::Manager(link) => {
                let granted = link.lease(&inner.device, &request, inner.name)?;
                granted.into_iter().map(|candidate| vec![candidate]).collect()
            }
            Grantor::Database(entries) => database::divide(entries, &request, inner.name)?,
        };
        let lease = |candidates| Lease::new(Arc::clone(inner), candidates, request.timeout);
        parts.into_iter().map(lease).collect()
    }
}

impl ClientInner {
    /// Gives back a lease that was not claimed.
    fn give_back(&self, token: Token) {
        if let Grantor::Manager(link) = &self.grantor {
            link.give_back(token);
        }
    }

    /// A lease like that of `token`, which could not be used, on another node; `None` if nobody grants one.
    fn replace(&self, token: Token, because: Unusable) -> Option<Candidate> {
        let Grantor::Manager(link) = &self.grantor else { return None };
        link.replace(&self.device, token, because)
            .inspect_err(|error| tracing::debug!(%error, "no lease elsewhere"))
            .ok()
    }

    /// The token of the same lease until `timeout` from now, if it would end before.
    fn renew(&self, token: Token, timeout: Duration) -> Result<Token> {
        match &self.grantor {
            Grantor::Manager(link) => link.renew(&self.device, token, timeout),
            Grantor::Database(_) => Ok(database::renew(token, timeout)),
        }
    }
}

fn client_name(name: &str) -> Result<ClientName> {
    const { assert!(MAX_CLIENT_NAME_BYTES == 64) }; // as the next line says
    ClientName::new(name).ok_or(Error::Invalid("the name of a client has at most 64 bytes"))
}

/// The addresses that `address` stands for, at least one.
fn resolve(address: impl ToSocketAddrs + fmt::Debug) -> Result<Vec<SocketAddr>> {
    let failed = |reason: String| Error::Address { address: format!("{address:?}"), reason };
    let found: Vec<SocketAddr> =
        address.to_socket_addrs().map_err(|error| failed(error.to_string()))?.collect();
    if found.is_empty() { Err(failed("the name has no address".into())) } else { Ok(found) }
}
