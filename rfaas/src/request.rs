//! What an application asks for when it leases cores, and where and with what executors are asked for then.

use std::net::SocketAddr;
use std::time::Duration;

use rfaas_call::Spin;
use rfaas_protocol::Secret;
use rfaas_protocol::allocation::Serves;
use rfaas_protocol::constraints::{Constraints, MAX_GANG, MAX_GROWN, MAX_WAIT_MS};
use rfaas_protocol::lease::Token;
use rfaas_protocol::library::LibraryHash;

use crate::error::{Error, Result};

/// What to lease.
///
/// ```
/// use std::time::Duration;
///
/// use rfaas::LeaseRequest;
///
/// // 8 cores and 4096 MB on at most two nodes, for ten minutes
/// let request = LeaseRequest::new(8, 4096).max_nodes(2).timeout(Duration::from_secs(600));
/// # let _ = request;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    pub(crate) cores: u32,
    pub(crate) memory: u32,
    pub(crate) timeout: Duration,
    pub(crate) max_nodes: u32,
    pub(crate) wait: Duration,
    pub(crate) constraints: Constraints,
}

impl LeaseRequest {
    /// Asks for `cores` cores, one worker each, and `memory` MB (of 2²⁰ bytes) for all together, for an hour, on one
    /// node.
    pub fn new(cores: u32, memory: u32) -> Self {
        LeaseRequest {
            cores,
            memory,
            timeout: Duration::from_secs(3600),
            max_nodes: 1,
            wait: Duration::ZERO,
            constraints: Constraints::default(),
        }
    }

    /// Asks for a lease of `timeout`, at least a millisecond, from the grant on.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        LeaseRequest { timeout, ..self }
    }

    /// Allows up to `max_nodes` nodes, at least one, with a lease on each; for
    /// [`Client::lease_many`](crate::Client::lease_many).
    #[must_use]
    pub fn max_nodes(self, max_nodes: u32) -> Self {
        LeaseRequest { max_nodes, ..self }
    }

    /// Has all leases of a [gang](crate::Client::lease_gang) be on one node.
    #[must_use]
    pub fn together(mut self) -> Self {
        self.constraints.together = true;
        self
    }

    /// Has each lease of a [gang](crate::Client::lease_gang) be on a node of its own.
    #[must_use]
    pub fn apart(mut self) -> Self {
        self.constraints.apart = true;
        self
    }

    /// Has the lease be on this node; of a [gang](crate::Client::lease_gang), as many leases as fit there, at least
    /// one.
    #[must_use]
    pub fn near(mut self, node: impl Into<String>) -> Self {
        self.constraints.near = Some(node.into());
        self
    }

    /// Has so many cores stay free on each node that is taken, when it is taken.
    #[must_use]
    pub fn leave_free(mut self, cores: u32) -> Self {
        self.constraints.leave_free = cores;
        self
    }

    /// Has leases of a [gang](crate::Client::lease_gang) with at least so many cores together be on each node that is
    /// taken.
    #[must_use]
    pub fn at_least(mut self, cores: u32) -> Self {
        self.constraints.at_least = cores;
        self
    }

    /// Has each node have this label. Several may be asked for: up to 256 bytes together.
    #[must_use]
    pub fn has(mut self, label: impl Into<String>) -> Self {
        self.constraints.has.push(label.into());
        self
    }

    /// Names the nodes themselves, one for each lease, in order: up to 512 bytes together.
    #[must_use]
    pub fn nodes<N: Into<String>>(mut self, nodes: impl IntoIterator<Item = N>) -> Self {
        self.constraints.nodes = nodes.into_iter().map(Into::into).collect();
        self
    }

    /// Waits for room for up to `wait`, at most an hour, if there is none; the call blocks so long. Those who wait are
    /// served in the order in which they came, as far as there is room for them.
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        LeaseRequest { wait, ..self }
    }

    /// Returns whether it asks for nothing but a lease at once, wherever it is.
    pub(crate) fn is_plain(&self) -> bool {
        self.wait.is_zero() && self.constraints == Constraints::default()
    }

    /// Checks what no manager could honour, for `leases` leases.
    pub(crate) fn validate_gang(&self, leases: u32) -> Result<()> {
        self.validate()?;
        if !(1..=MAX_GANG).contains(&leases) {
            const { assert!(MAX_GANG == 32) }; // as the next line says
            return Err(Error::Invalid("a gang has at least one lease, and at most 32"));
        }
        if self.max_nodes > 1 {
            return Err(Error::Invalid(
                "a lease of several nodes goes with neither gang, constraints nor waiting: use `lease_gang`",
            ));
        }
        if self.wait > Duration::from_millis(MAX_WAIT_MS) {
            return Err(Error::Invalid("a request waits for at most an hour"));
        }
        self.constraints.check(leases).map_err(Error::InvalidConstraint)
    }

    /// Checks what no manager could honour, for `workers` workers beside so many leases.
    pub(crate) fn validate_growth(&self, leases: usize, workers: u32) -> Result<()> {
        const { assert!(MAX_GANG == 32 && MAX_GROWN == 32) }; // as the next lines say
        if !(1..=MAX_GANG).contains(&workers) {
            return Err(Error::Invalid(
                "leases grow by at least one worker, and at most 32 at once",
            ));
        }
        if !(1..=MAX_GROWN).contains(&leases) {
            return Err(Error::Invalid("at least one lease grows, and at most 32 at once"));
        }
        if self.constraints.near.is_some() || !self.constraints.nodes.is_empty() {
            return Err(Error::Invalid(
                "the leases that grow say where to begin: that goes with neither `near` nor `nodes`",
            ));
        }
        self.validate_gang(workers)
    }

    /// Checks what no manager could honour.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.cores == 0 || self.memory == 0 || self.timeout < Duration::from_millis(1) {
            return Err(Error::Invalid(
                "a lease has at least one core, one MB of memory and one millisecond",
            ));
        }
        if self.max_nodes == 0 {
            return Err(Error::Invalid("a request is met on at least one node"));
        }
        Ok(())
    }

    /// Returns the share of the memory that goes with `cores` of the cores, rounded up.
    pub(crate) fn memory_of(&self, cores: u32) -> u32 {
        let share = (u64::from(self.memory) * u64::from(cores)).div_ceil(self.cores.into());
        u32::try_from(share).expect("at most the whole, if `cores` is")
    }

    /// Returns how many of the cores `memory` is enough for.
    pub(crate) fn cores_with(&self, memory: u32) -> u32 {
        let cores = u64::from(memory) * u64::from(self.cores) / u64::from(self.memory);
        u32::try_from(cores).unwrap_or(u32::MAX).min(self.cores)
    }
}

/// An executor manager that a lease may be claimed at.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) node: String,
    /// At least one.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) token: Token,
}

/// What an executor is asked for with; what proves that it may be asked for is the connection's.
#[derive(Debug)]
pub(crate) struct ExecutorRequest {
    /// Where the client listens for the executor.
    pub(crate) client: SocketAddr,
    /// What executor and workers show there.
    pub(crate) session: Secret,
    pub(crate) spin: Spin,
    pub(crate) input_bytes: u32,
    pub(crate) output_bytes: u32,
    pub(crate) code_bytes: u32,
    pub(crate) code_hash: LibraryHash,
    pub(crate) slots: u16,
    pub(crate) serves: Serves,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_divided_in_proportion_and_rounded_up() {
        let request = LeaseRequest::new(3, 100);
        assert_eq!([1, 2, 3].map(|cores| request.memory_of(cores)), [34, 67, 100]);
        assert_eq!(LeaseRequest::new(u32::MAX, u32::MAX).memory_of(u32::MAX), u32::MAX);
    }

    #[test]
    fn memory_is_enough_for_the_cores_whose_share_it_holds_and_for_no_more() {
        for (cores, memory) in [(3, 100), (7, 5), (1, 1), (u32::MAX, 1), (5, u32::MAX)] {
            let request = LeaseRequest::new(cores, memory);
            for has in [0, 1, 4, 33, 34, 66, 67, 99, 100, 101, u32::MAX] {
                let enough = request.cores_with(has);
                assert!(enough == 0 || request.memory_of(enough) <= has, "{request:?} {has}");
                assert!(
                    enough == cores || request.memory_of(enough + 1) > has,
                    "{request:?} {has}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = LeaseRequest::new(1, 1);
        assert!(good.validate().is_ok());
        let good = || good.clone();
        for bad in [
            LeaseRequest::new(0, 1),
            LeaseRequest::new(1, 0),
            good().timeout(Duration::ZERO),
            good().max_nodes(0),
        ] {
            assert!(matches!(bad.validate(), Err(Error::Invalid(_))), "{bad:?}");
        }
    }
}
