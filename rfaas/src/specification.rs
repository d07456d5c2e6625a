//! What stays when an executor process is replaced by another.

use std::sync::Arc;

use rdmalib::Domain;

use crate::buffer::Origin;
use crate::deployment::Deployment;

/// What an executor is deployed from, on its lease or elsewhere. What an application has made for an executor belongs
/// to this and not to the process, so buffers and functions outlive the process, and any number of processes can be
/// started one after the other.
#[derive(Debug)]
pub(crate) struct DeploymentSpecification {
    /// The library.
    pub(crate) code: Arc<[u8]>,
    pub(crate) deployment: Deployment,
    /// The domain of all buffers, and of the connections to whichever workers there are.
    pub(crate) domain: Domain,
    pub(crate) origin: Origin,
}
