//! Where the leases of a client come from, and what all of them share.

use std::sync::Arc;
use std::time::Duration;

use rdmalib::ForkMark;
use rfaas_config::{ExecutorEntry, OpenDevice};
use rfaas_protocol::lease::{ClientName, GraphWorker, LeaseId, Token, Unusable};

use crate::database;
use crate::error::{Error, Result};
use crate::keepalive::Keepalive;
use crate::library::KnownLibraries;
use crate::request::Candidate;
use crate::request::LeaseRequest;
use crate::resource_manager::ResourceManager;
use crate::spares::Spares;

/// Nobody else knows of all nodes, or has a request wait.
const NEEDS_MANAGER: Error = Error::Invalid(
    "constraints, gangs, growing and waiting need a resource manager to be connected to",
);

/// Where leases come from.
pub(crate) enum Source {
    /// A resource manager grants them.
    Manager(Arc<ResourceManager>),
    /// Nobody grants them: an executor manager without a resource manager takes any client.
    Database(Vec<ExecutorEntry>),
}

/// What a client and its leases share.
pub(crate) struct Grantor {
    pub(crate) device: OpenDevice,
    pub(crate) name: ClientName,
    pub(crate) source: Source,
    pub(crate) keepalive: Keepalive,
    pub(crate) libraries: KnownLibraries,
    pub(crate) spares: Spares,
    /// The process that has it and all that is made with it. A child that inherits them has neither.
    process: ForkMark,
}

impl Grantor {
    pub(crate) fn new(device: OpenDevice, name: ClientName, source: Source) -> Self {
        let process = ForkMark::new();
        let (keepalive, libraries) = (Keepalive::default(), KnownLibraries::default());
        let spares = Spares::default();
        Grantor { device, name, source, keepalive, libraries, spares, process }
    }

    /// Fails in a child that has inherited it.
    pub(crate) fn check_process(&self) -> Result<()> {
        Ok(self.process.check()?)
    }

    /// Asks for a lease on one node. Returns where it may be claimed.
    pub(crate) fn lease(&self, request: &LeaseRequest) -> Result<Vec<Candidate>> {
        self.check_process()?;
        request.validate()?;
        if request.max_nodes > 1 {
            return Err(Error::Invalid("a lease is of one node: use `lease_many` for several"));
        }
        match &self.source {
            Source::Manager(manager) if request.is_plain() => self.lease_from(manager, request),
            Source::Manager(_) => self.lease_gang(1, request),
            Source::Database(entries) if request.is_plain() => {
                database::lease(entries, request, self.name)
            }
            Source::Database(_) => Err(NEEDS_MANAGER),
        }
    }

    /// Asks for `leases` leases at once, with constraints, all of them or none. Returns where each may be claimed.
    pub(crate) fn lease_gang(&self, leases: u32, request: &LeaseRequest) -> Result<Vec<Candidate>> {
        self.check_process()?;
        request.validate_gang(leases)?;
        let Source::Manager(manager) = &self.source else { return Err(NEEDS_MANAGER) };
        manager.lease_gang(&self.device, (leases, request), &[], self.name, &|| self.prepare())
    }

    /// Asks for `workers` workers beside the leases of these numbers, all of them or none. Returns where the lease of
    /// each node may be claimed.
    pub(crate) fn grow(
        &self,
        leases: &[LeaseId],
        workers: u32,
        request: &LeaseRequest,
    ) -> Result<Vec<Candidate>> {
        self.check_process()?;
        let Source::Manager(manager) = &self.source else { return Err(NEEDS_MANAGER) };
        request.validate_growth(leases.len(), workers)?;
        manager.lease_gang(&self.device, (workers, request), leases, self.name, &|| self.prepare())
    }

    /// Asks for `leases` leases at once, all of them or none. Returns where each may be claimed. Without a resource
    /// manager nobody keeps their room until then.
    pub(crate) fn lease_all(
        &self,
        leases: u32,
        request: &LeaseRequest,
    ) -> Result<Vec<Vec<Candidate>>> {
        match &self.source {
            Source::Manager(_) => {
                let granted = self.lease_gang(leases, request)?;
                Ok(granted.into_iter().map(|candidate| vec![candidate]).collect())
            }
            Source::Database(_) => (0..leases).map(|_| self.lease(request)).collect(),
        }
    }

    /// Asks for leases on several nodes. Returns where each may be claimed.
    pub(crate) fn lease_many(&self, request: &LeaseRequest) -> Result<Vec<Vec<Candidate>>> {
        self.check_process()?;
        request.validate()?;
        if !request.is_plain() {
            request.validate_gang(1)?;
            return Ok(vec![self.lease(request)?]);
        }
        match &self.source {
            Source::Manager(manager) => {
                let granted = self.lease_from(manager, request)?;
                Ok(granted.into_iter().map(|candidate| vec![candidate]).collect())
            }
            Source::Database(entries) => database::divide(entries, request, self.name),
        }
    }

    /// Asks `manager` for leases. Meanwhile it makes what claiming one takes.
    fn lease_from(
        &self,
        manager: &Arc<ResourceManager>,
        request: &LeaseRequest,
    ) -> Result<Vec<Candidate>> {
        manager.lease(&self.device, request, self.name, &|| self.prepare())
    }

    /// Makes what claiming a lease takes, unless it is there.
    pub(crate) fn prepare(&self) {
        self.spares.fill(&self.device);
    }

    /// Tells the resource manager, if there is one, what a lease is for.
    pub(crate) fn note(&self, worker: GraphWorker) {
        if let Source::Manager(manager) = &self.source {
            manager.note(worker);
        }
    }

    /// Gives back a lease that was not claimed.
    pub(crate) fn give_back(&self, token: Token) {
        if let Source::Manager(manager) = &self.source {
            manager.give_back(token);
        }
    }

    /// Exchanges the lease of `token`, which could not be used, for one like it on another node; `None` if nobody
    /// grants one.
    pub(crate) fn replace(&self, token: Token, because: Unusable) -> Option<Candidate> {
        let Source::Manager(manager) = &self.source else { return None };
        manager
            .replace(&self.device, token, because)
            .inspect_err(|error| tracing::debug!(%error, "no lease elsewhere"))
            .ok()
    }

    /// Returns a token of the same lease until `timeout` from now, if it would end before.
    pub(crate) fn renew(&self, token: Token, timeout: Duration) -> Result<Token> {
        match &self.source {
            Source::Manager(manager) => manager.renew(&self.device, token, timeout),
            Source::Database(_) => Ok(database::renew(token, timeout)),
        }
    }
}
