//! What is asked of the pool, and how it says no.

use std::sync::Arc;
use std::time::Duration;

use rdmalib::Peer;
use rfaas_protocol::Capacity;
use rfaas_protocol::constraints::{Constraint, Constraints, MAX_GANG, MAX_GROWN};
use rfaas_protocol::lease::{EndReason, LeaseId, MAX_CLIENT_NAME_BYTES};

use super::fair_use::{Limit, Who};
use super::{MAX_CORES, MAX_NODES, MAX_TIMEOUT};

/// A request for leases that can be met in principle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What a lease has; of a request that may be met from several nodes, what they have together.
    pub(super) wanted: Capacity,
    /// How many leases of that.
    pub(super) leases: u32,
    /// Where they may be.
    pub(super) constraints: Constraints,
    /// Leases of the client whose nodes are tried first, those that hold most first. If there are any, what goes to
    /// one node is one lease.
    pub(super) grows: Vec<LeaseId>,
    pub(super) timeout: Duration,
    pub(super) max_nodes: u32,
    pub(super) while_connected: bool,
    pub(super) client: Arc<str>,
    pub(super) peer: Option<Peer>,
}

impl Ask {
    /// Checks a request: memory in MB, `client` is billed. `Err` says which field is wrong and
    /// what it may be.
    pub fn new(cores: u32, memory: u32, timeout: Duration, client: &str) -> Result<Self, String> {
        if !(1..=MAX_CORES).contains(&cores) {
            return Err(format!("cores is {cores}, not between 1 and {MAX_CORES}"));
        }
        if memory == 0 {
            return Err("memory is 0; it is in MB and at least 1".into());
        }
        check_timeout(timeout)?;
        check_name("client", client, MAX_CLIENT_NAME_BYTES)?;
        let wanted = Capacity { cores, memory };
        Ok(Ask {
            wanted,
            leases: 1,
            constraints: Constraints::default(),
            grows: Vec::new(),
            timeout,
            max_nodes: 1,
            while_connected: false,
            client: client.into(),
            peer: None,
        })
    }

    /// Lets it be met from up to `max_nodes` nodes if none has room for all of it.
    pub fn on_nodes(self, max_nodes: u32) -> Result<Self, String> {
        if !(1..=MAX_NODES).contains(&max_nodes) {
            return Err(format!("max_nodes is {max_nodes}, not between 1 and {MAX_NODES}"));
        }
        Ok(Ask { max_nodes, ..self })
    }

    /// Asks for `leases` leases instead of one, all of them or none, where `constraints` allow it.
    pub fn gang(self, leases: u32, constraints: Constraints) -> Result<Self, String> {
        if !(1..=MAX_GANG).contains(&leases) {
            return Err(format!("gang is {leases}, not between 1 and {MAX_GANG}"));
        }
        if self.max_nodes > 1 && (leases > 1 || constraints != Constraints::default()) {
            return Err(
                "max_nodes divides one lease: it goes with neither gang nor constraints".into()
            );
        }
        if u64::from(self.wanted.cores) * u64::from(leases) > u64::from(u32::MAX)
            || u64::from(self.wanted.memory) * u64::from(leases) > u64::from(u32::MAX)
        {
            return Err("the leases have more cores or memory together than can be counted".into());
        }
        constraints.check(leases)?;
        Ok(Ask { leases, constraints, ..self })
    }

    /// Asks for as many workers beside those of `leases`, with a lease for each node that has some of them.
    pub fn growing(self, leases: Vec<LeaseId>) -> Result<Self, String> {
        if leases.len() > MAX_GROWN {
            return Err(format!(
                "grows names {} leases; at most {MAX_GROWN} are possible",
                leases.len()
            ));
        }
        if leases.is_empty() {
            return Err("grows names no lease".into());
        }
        if self.max_nodes > 1 {
            return Err("max_nodes divides one lease: it goes not with grows".into());
        }
        if self.constraints.near.is_some() || !self.constraints.nodes.is_empty() {
            return Err(
                "the leases of grows say where to begin: it goes with neither near nor nodes"
                    .into(),
            );
        }
        Ok(Ask { grows: leases, ..self })
    }

    /// Whether it is for one lease, wherever it is.
    pub(super) fn is_plain(&self) -> bool {
        self.leases == 1 && self.constraints == Constraints::default() && self.grows.is_empty()
    }

    /// Fewest leases that meet it.
    pub(super) fn fewest_leases(&self) -> usize {
        if self.grows.is_empty() { self.leases as usize } else { 1 }
    }

    /// Its constraints, for its leases, if it has any.
    pub(super) fn shared_constraints(&self) -> Option<Arc<Constraints>> {
        let has_some = self.constraints != Constraints::default();
        has_some.then(|| Arc::new(self.constraints.clone()))
    }

    /// What all its leases have together.
    pub(super) fn total(&self) -> Capacity {
        let Capacity { cores, memory } = self.wanted;
        let times = |one: u32| one.saturating_mul(self.leases);
        Capacity { cores: times(cores), memory: times(memory) }
    }

    /// Notes the peer that asks. Limits hold for it under whatever name.
    pub fn by(self, peer: Peer) -> Self {
        Ask { peer: Some(peer), ..self }
    }

    /// Has unclaimed leases end with the connection of their client ([`super::Pool::client_gone`]); the end of
    /// this program ends it too.
    pub fn while_connected(self) -> Self {
        Ask { while_connected: true, ..self }
    }

    /// The number of parts that it may be met in: a part has a core at least.
    pub(super) fn most_parts(&self) -> usize {
        usize::try_from(self.max_nodes.min(self.wanted.cores)).unwrap_or(1)
    }
}

/// Whether `name` can name a node or a client: `Err` says what is wrong with it.
pub(super) fn check_name(what: &str, name: &str, max_bytes: usize) -> Result<(), String> {
    if name.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if name.len() > max_bytes {
        return Err(format!("{what} has {} bytes; at most {max_bytes} are possible", name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("{what} contains a control character"));
    }
    Ok(())
}

/// Whether a lease can last so long from now; `Err` says how long it may.
pub(super) fn check_timeout(timeout: Duration) -> Result<(), String> {
    if timeout < Duration::from_millis(1) || timeout > MAX_TIMEOUT {
        let (ms, max) = (timeout.as_millis(), MAX_TIMEOUT.as_millis());
        return Err(format!("timeout_ms is {ms}, not between 1 and {max}"));
    }
    Ok(())
}

/// Why a lease was not granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// No node can take it now; why, for people.
    #[error("{0}")]
    NoRoom(String),
    /// No node is ready; why, for people.
    #[error("{0}")]
    NoNodes(String),
    /// There would be room without one of these constraints, or without all; why, for people.
    #[error("{why}")]
    Unmet {
        /// Which.
        constraints: Vec<Constraint>,
        /// In words.
        why: String,
    },
    /// Nor can it wait: as many requests do as may, in all or of its peer.
    #[error("{} {most} requests that wait for room: ask again later", waiters(.who.as_ref()))]
    TooManyWait {
        /// The peer, if they are its own.
        who: Option<Who>,
        /// How many may wait.
        most: usize,
    },
    /// The client may not have it.
    #[error(transparent)]
    Limit(#[from] Limit),
}

impl Denied {
    /// The same of a request that has waited.
    pub(super) fn after(self, wait: Duration) -> Self {
        let waited = |why: String| format!("after {wait:?} of waiting: {why}");
        match self {
            Denied::NoRoom(why) => Denied::NoRoom(waited(why)),
            Denied::Unmet { constraints, why } => Denied::Unmet { constraints, why: waited(why) },
            other => other,
        }
    }
}

fn waiters(who: Option<&Who>) -> String {
    who.map_or_else(|| "there are".into(), |who| format!("{who} has"))
}

/// Why a lease was not renewed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotRenewed {
    /// There never was one.
    #[error("lease {0} is not known")]
    Unknown(LeaseId),
    /// It is over.
    #[error("lease {0} has ended")]
    Ended(LeaseId),
    /// It is to end.
    #[error("lease {lease} is ending ({})", .reason.name())]
    Ending {
        /// The lease.
        lease: LeaseId,
        /// Why.
        reason: EndReason,
    },
    /// Its node leaves before it would end then.
    #[error("the node of lease {0} is to leave before: no lease there lasts as long")]
    Leaving(LeaseId),
    /// It is not known where to renew it now.
    #[error("the address of the node of lease {0} is not known at present; try again")]
    NoAddress(LeaseId),
    /// Not a time to renew for.
    #[error("{0}")]
    Timeout(String),
    /// Longer than it may be.
    #[error(transparent)]
    Limit(#[from] Limit),
}

/// Why there is no other lease in exchange for one: it is as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReplaced {
    /// It is not one that was granted and not claimed yet.
    #[error("lease {0} is not one that waits to be claimed")]
    NotUnclaimed(LeaseId),
    /// It was asked for with constraints, which another place need not meet.
    #[error("lease {0} was granted with constraints: give it back and ask again")]
    Constrained(LeaseId),
    /// There is no room elsewhere.
    #[error("no other node has {cores} cores and {memory} MB free now")]
    NoRoom {
        /// Cores of the lease.
        cores: u32,
        /// Memory of the lease, in MB.
        memory: u32,
    },
    /// The client has asked too often.
    #[error(transparent)]
    Limit(#[from] Limit),
}
