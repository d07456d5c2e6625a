//! What an application uses: leases cores, deploys a function library on them, invokes functions.
//!
//! ```text
//!   Client ──lease──▶ Lease ──deploy──▶ Executor ──function, input, output──▶ invoke, submit
//!   link: asks a      manager, session,      workers, slots, tickets: what is in flight
//!   resource manager  assembly: deploying    drive, wait, reactor: who polls, who sleeps
//! ```
//! No thread runs and nothing polls for an application that does not wait; one thread per executor
//! is started when a task first sleeps on an asynchronous invocation.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

mod assembly;
mod buffer;
mod deployment;
mod drive;
mod executor;
mod failover;
mod failure;
mod invoke;
mod lease;
mod link;
mod manager;
mod pending;
mod reactor;
mod session;
mod slots;
mod tickets;
mod wait;
mod workers;

use crate::spin::Spin;
pub use buffer::{Input, Output};
pub use deployment::{Deployment, Phases};
pub use executor::{Executor, Function};
pub use lease::{Lease, LeaseRequest};
pub use manager::Ending;
pub use pending::{Completed, Failed, Pending};

use crate::config::{ExecutorEntry, ExecutorsDatabase, OpenDevice};
use crate::error::{Error, Result};
use crate::protocol::lease::{ClientName, LeaseTerms, MAX_CLIENT_NAME_BYTES, NodeName, Token};
use lease::Candidate;
use link::Link;

/// Name that leases are billed under unless the client has one.
const ANONYMOUS: &str = "anonymous";

/// Leases cores: through a resource manager, or straight from the executor managers of a list. May
/// be used by several threads.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<ClientInner>,
}

#[derive(Debug)]
pub(crate) struct ClientInner {
    device: OpenDevice,
    name: ClientName,
    grantor: Grantor,
}

/// Who grants leases.
#[derive(Debug)]
enum Grantor {
    Manager(Box<Link>),
    /// Nobody: an executor manager without a resource manager takes whoever comes.
    Database(Vec<ExecutorEntry>),
}

impl Client {
    /// Connects to the resource manager at `address` (`host:port`), anonymously.
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
        let address = resolve(&device, address)?;
        let grantor = Grantor::Manager(Box::new(Link::connect(&device, address)?));
        Ok(Client { inner: Arc::new(ClientInner { device, name, grantor }) })
    }

    /// Without a resource manager: leases are taken at the executor managers of `database`, in
    /// order, which must run without one too. Nothing is connected yet.
    pub fn with_executors(device: OpenDevice, database: ExecutorsDatabase) -> Result<Self> {
        let name = client_name(ANONYMOUS)?;
        let grantor = Grantor::Database(database.executors);
        Ok(Client { inner: Arc::new(ClientInner { device, name, grantor }) })
    }

    /// Leases cores of some node. Without a resource manager the node is chosen when the lease is
    /// deployed: the first of those with enough cores and memory that takes it.
    pub fn lease(&self, request: LeaseRequest) -> Result<Lease> {
        if request.cores == 0 || request.memory == 0 || request.timeout < Duration::from_millis(1) {
            return Err(Error::Invalid(
                "a lease has at least one core, one MB of memory and one millisecond",
            ));
        }
        let candidates = match &self.inner.grantor {
            Grantor::Manager(link) => {
                vec![link.lease(&self.inner.device, &request, self.inner.name)?]
            }
            Grantor::Database(entries) => self.inner.candidates(entries, &request)?,
        };
        Lease::new(Arc::clone(&self.inner), candidates, request.timeout)
    }
}

impl ClientInner {
    /// Gives back a lease that was not claimed.
    fn give_back(&self, token: Token) {
        if let Grantor::Manager(link) = &self.grantor {
            link.give_back(token);
        }
    }

    /// The nodes of `entries` that have what `request` asks for.
    fn candidates(
        &self,
        entries: &[ExecutorEntry],
        request: &LeaseRequest,
    ) -> Result<Vec<Candidate>> {
        let end = SystemTime::now()
            .checked_add(request.timeout)
            .and_then(|end| u64::try_from(end.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok());
        let fits =
            |entry: &&ExecutorEntry| entry.cores >= request.cores && entry.memory >= request.memory;
        let candidate = |entry: &ExecutorEntry| {
            let node = NodeName::new(&entry.node)
                .ok_or(Error::Invalid("the name of a node in the database is too long"))?;
            let terms = LeaseTerms {
                lease: 0.into(),
                cores: request.cores.into(),
                memory: request.memory.into(),
                expires_at_ms: end.unwrap_or(u64::MAX).into(),
                instance: 0.into(),
                node,
                client: self.name,
            };
            let address = entry.socket_addr()?;
            Ok(Candidate { node: entry.node.clone(), address, token: Token::unsigned(terms) })
        };
        let candidates: Vec<Candidate> =
            entries.iter().filter(fits).map(candidate).collect::<Result<_>>()?;
        if candidates.is_empty() {
            let (cores, memory) = (request.cores, request.memory);
            return Err(Error::LeaseRefused {
                reason: format!(
                    "no node of the executors database has {cores} cores and {memory} MB"
                ),
            });
        }
        Ok(candidates)
    }
}

fn client_name(name: &str) -> Result<ClientName> {
    const { assert!(MAX_CLIENT_NAME_BYTES == 64) }; // as the next line says
    ClientName::new(name).ok_or(Error::Invalid("the name of a client has at most 64 bytes"))
}

/// The address that stands for `address`: of the device's family, if there is a choice.
fn resolve(device: &OpenDevice, address: impl ToSocketAddrs + fmt::Debug) -> Result<SocketAddr> {
    let failed = |reason: String| Error::Address { address: format!("{address:?}"), reason };
    let found: Vec<SocketAddr> =
        address.to_socket_addrs().map_err(|error| failed(error.to_string()))?.collect();
    let like_ours = |found: &&SocketAddr| found.is_ipv4() == device.device.ip_address().is_ipv4();
    found
        .iter()
        .find(like_ours)
        .or(found.first())
        .copied()
        .ok_or_else(|| failed("the name has no address".into()))
}
