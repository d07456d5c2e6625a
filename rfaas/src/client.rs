//! A client: acquires leases, through a resource manager or straight from the executor managers of a list.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use rfaas_config::{ExecutorsDatabase, OpenDevice};
use rfaas_protocol::lease::{ClientName, MAX_CLIENT_NAME_BYTES};

use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::grantor::{Grantor, Source};
use crate::graph::{CompiledGraph, Graph};
use crate::held_lease::HeldLease;
use crate::lease::Lease;
use crate::request::Candidate;
use crate::request::LeaseRequest;
use crate::resource_manager::ResourceManager;

/// Name that leases are billed under unless the client has one.
const ANONYMOUS: &str = "anonymous";

/// Leases cores: through a resource manager, or straight from the executor managers of a list.
/// Several threads may use it.
///
/// A process that is forked while there is a client neither uses nor ends what is its parent's: every call there is
/// [`Error::Forked`], also of leases and executors. It connects a client of its own.
///
/// ```no_run
/// use rfaas::{Client, Devices, LeaseRequest};
///
/// # fn example() -> rfaas::Result<()> {
/// let devices = Devices::load("config/devices.json")?;
/// let client = Client::connect(devices.open("shm0")?, "127.0.0.1:10000")?;
/// let lease = client.lease(LeaseRequest::new(2, 512))?; // 2 cores, 512 MB
/// println!("{} cores on {} until {:?}", lease.cores(), lease.node(), lease.expires_at());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    grantor: Arc<Grantor>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Client");
        out.field("name", &self.grantor.name).field("device", &self.grantor.device.device);
        match &self.grantor.source {
            Source::Manager(manager) => out.field("resource_manager", &manager.addresses()),
            Source::Database(entries) => out.field("executor_managers", &entries.len()),
        };
        out.finish()
    }
}

impl Client {
    /// Connects to the resource manager at `address` (`host:port`), anonymously. If the host has
    /// several addresses, all are tried.
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
        let manager = ResourceManager::connect(&device, resolve(address)?)?;
        Ok(Client::new(device, name, Source::Manager(Arc::new(manager))))
    }

    /// Without a resource manager: leases are taken at the executor managers of `database`, in
    /// order, which must run without one too. Nothing is connected yet.
    pub fn with_executors(device: OpenDevice, database: ExecutorsDatabase) -> Result<Self> {
        let name = client_name(ANONYMOUS)?;
        Ok(Client::new(device, name, Source::Database(database.executors)))
    }

    fn new(device: OpenDevice, name: ClientName, source: Source) -> Self {
        let grantor = Grantor::new(device, name, source);
        grantor.prepare();
        Client { grantor: Arc::new(grantor) }
    }

    /// Leases cores of some node. Without a resource manager the node is chosen when the lease is
    /// deployed: the first of those with enough cores and memory that takes it.
    pub fn lease(&self, request: LeaseRequest) -> Result<Lease> {
        self.take(self.grantor.lease(&request)?, &request)
    }

    fn take(&self, candidates: Vec<Candidate>, request: &LeaseRequest) -> Result<Lease> {
        let grantor = Arc::clone(&self.grantor);
        let constraints = request.constraints.clone();
        let held = HeldLease::constrained(grantor, candidates, request.timeout, constraints);
        held.map(Lease::from_inner)
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
        let parts = self.grantor.lease_many(&request)?;
        parts.into_iter().map(|candidates| self.take(candidates, &request)).collect()
    }

    /// Leases `leases` times what `request` asks for: all of it or none. Where its leases are, its constraints say;
    /// they may be on one node, or on several. From then on each has a life of its own.
    ///
    /// # Errors
    /// [`Error::ConstraintUnmet`]: there would be room without a constraint, which it names.
    /// [`Error::LeaseRefused`]: there is no room, or not in time if the request [waits](LeaseRequest::wait). Nothing is
    /// held then.
    ///
    /// ```no_run
    /// # fn example(client: &rfaas::Client) -> rfaas::Result<()> {
    /// use std::time::Duration;
    ///
    /// // 8 leases of 2 cores, on nodes with a GPU, 4 cores or more on each; within a minute
    /// let request = rfaas::LeaseRequest::new(2, 1024).has("gpu").at_least(4);
    /// for lease in client.lease_gang(8, request.wait(Duration::from_secs(60)))? {
    ///     println!("{} cores on {}", lease.cores(), lease.node());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn lease_gang(&self, leases: u32, request: LeaseRequest) -> Result<Vec<Lease>> {
        let granted = self.grantor.lease_gang(leases, &request)?;
        let mut request = request;
        if leases > 1 {
            request.constraints.near = None; // it is of the gang: another of its leases may be there
        }
        granted.into_iter().map(|candidate| self.take(vec![candidate], &request)).collect()
    }

    /// Leases `workers` times what `request` asks for beside `leases` of this client, which stay as they are: all of it
    /// or none. Nodes of these leases come first, those with most of their cores first of all, as far as there is room
    /// and the constraints of `request` allow it; then others do, as for new leases. Returns one lease for each node,
    /// which has all workers there. A lease that has ended or is ending, or that is billed to another name, counts for
    /// nothing.
    ///
    /// # Errors
    /// As for [`lease_gang`](Self::lease_gang). [`Error::Invalid`]: more than 32 workers or leases, or `request` names
    /// nodes itself.
    ///
    /// ```no_run
    /// # fn example(client: &rfaas::Client, gang: Vec<rfaas::Lease>) -> rfaas::Result<()> {
    /// // 4 workers of 2 cores more, where most of the gang is
    /// let gang: Vec<_> = gang.iter().collect();
    /// for lease in client.grow(&gang, 4, rfaas::LeaseRequest::new(2, 1024))? {
    ///     println!("{} cores more on {}", lease.cores(), lease.node());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn grow(
        &self,
        leases: &[&Lease],
        workers: u32,
        request: LeaseRequest,
    ) -> Result<Vec<Lease>> {
        let ids = leases.iter().map(|lease| lease.grows_as());
        let ids: Vec<_> = ids.filter_map(Result::transpose).collect::<Result<_>>()?;
        let grown = HeldLease::grown(&self.grantor, &ids, workers, &request)?;
        Ok(grown.into_iter().map(Lease::from_inner).collect())
    }

    /// Leases a core for each function of `graph`, starts their executors, and connects their workers: all of it or
    /// nothing. With the default [`Deployment`]: four runs may be under way.
    pub fn compile(&self, graph: &Graph) -> Result<CompiledGraph> {
        self.compile_with(graph, &Deployment::default())
    }

    /// Does the same as `deployment` says: runs that may be under way are its [slots](Deployment::slots), the limit of
    /// a run is its [`invocation_timeout`](Deployment::invocation_timeout). Sizes are those of the graph.
    ///
    /// # Errors
    /// * [`Error::InvalidGraph`]: its functions or edges; [`Error::UnknownFunction`], [`Error::LibraryUnreadable`],
    ///   [`Error::Library`]: its libraries; [`Error::InvalidConstraint`]. Nothing was leased.
    /// * [`Error::ConstraintUnmet`]: there would be room for a lane without a constraint, which it names.
    /// * What [`lease`](Self::lease) and [`Lease::deploy_with`] return. Leases that were granted are given back.
    pub fn compile_with(&self, graph: &Graph, deployment: &Deployment) -> Result<CompiledGraph> {
        CompiledGraph::compile(&self.grantor, graph, deployment)
    }
}

fn client_name(name: &str) -> Result<ClientName> {
    const { assert!(MAX_CLIENT_NAME_BYTES == 64) }; // as the next line says
    ClientName::new(name).ok_or(Error::Invalid("the name of a client has at most 64 bytes"))
}

/// Returns the addresses that `address` stands for, at least one.
fn resolve(address: impl ToSocketAddrs + fmt::Debug) -> Result<Vec<SocketAddr>> {
    let failed = |reason: String| Error::Address { address: format!("{address:?}"), reason };
    let found: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => failed(format!("{error}; an address is host:port")),
            _ => failed(error.to_string()),
        })?
        .collect();
    if found.is_empty() { Err(failed("the name has no address".into())) } else { Ok(found) }
}
