//! Who this node is to its cluster: its name, this run of its executor manager, and the secret that
//! proves both and signs leases.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;

use rfaas_config::ClusterSecret;
use rfaas_protocol::Secret;
use rfaas_protocol::lease::NodeName;

/// What the resource manager and clients with its tokens know a node by.
pub struct Identity {
    /// Its name.
    pub name: NodeName,
    /// This run: leases that were granted for another have ended.
    pub instance: NonZeroU64,
    /// Where it listens.
    pub address: SocketAddr,
    /// The cluster secret.
    pub secret: Arc<[u8]>,
    /// What the operator should know about the secret, once it is in use.
    pub warning: Option<String>,
}

impl Identity {
    /// The node of this name at this address, in the cluster of this secret, as it is from now on.
    pub fn new(name: NodeName, address: SocketAddr, secret: &ClusterSecret) -> Self {
        let warning = secret.warning().map(str::to_owned);
        let (instance, secret) = (draw_instance(), Arc::clone(secret.bytes()));
        Identity { name, instance, address, secret, warning }
    }
}

/// A number that no other run of this node will have had.
fn draw_instance() -> NonZeroU64 {
    loop {
        let [instance @ .., _, _, _, _, _, _, _, _] = Secret::generate().0;
        if let Some(instance) = NonZeroU64::new(u64::from_le_bytes(instance)) {
            return instance;
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).finish_non_exhaustive() // never the secret
    }
}
