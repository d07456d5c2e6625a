//! What an application asks for when it leases cores, and where and with what executors are asked for then.

use std::net::SocketAddr;
use std::time::Duration;

use rfaas_call::Spin;
use rfaas_protocol::Secret;
use rfaas_protocol::allocation::Serves;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    pub(crate) cores: u32,
    pub(crate) memory: u32,
    pub(crate) timeout: Duration,
    pub(crate) max_nodes: u32,
}

impl LeaseRequest {
    /// Asks for `cores` cores, one worker each, and `memory` MB (of 2²⁰ bytes) for all together, for an hour, on one
    /// node.
    pub fn new(cores: u32, memory: u32) -> Self {
        LeaseRequest { cores, memory, timeout: Duration::from_secs(3600), max_nodes: 1 }
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
        for bad in [
            LeaseRequest::new(0, 1),
            LeaseRequest::new(1, 0),
            good.timeout(Duration::ZERO),
            good.max_nodes(0),
        ] {
            assert!(matches!(bad.validate(), Err(Error::Invalid(_))), "{bad:?}");
        }
    }
}
