//! Reaching the resource manager, which may wait: for the name service, and for an answer.
//!
//! PROVED - the resource manager proves that it knows the cluster secret, at the address that was called, before it is
//! sent anything.

use std::time::Duration;

use rfaas_config::{ConfigError, ExecutorManagerNode, OpenDevice};
use rfaas_protocol::channel::{Channel, ChannelError};
use rfaas_protocol::node::{ManagerProof, NodeHello};
use rfaas_protocol::reach::reach;
use rfaas_protocol::{Malformed, Nonce, Nonces, Role, parse_prefix};

/// Longest wait for a connection.
const DIAL: Duration = Duration::from_secs(5);
/// Receives posted: ends of many leases may come at once when a node is withdrawn.
const RECEIVES: u32 = 64;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The configured address cannot be resolved.
    #[error(transparent)]
    Address(#[from] ConfigError),
    /// Nothing listens there, or it refused.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// There is no address.
    #[error(transparent)]
    Answer(#[from] Malformed),
    /// No helper thread.
    #[error("no thread to connect with: {0}")]
    Thread(std::io::Error),
}

impl DialError {
    /// Whether the peer there does not know the cluster secret.
    pub fn is_impostor(&self) -> bool {
        match self {
            DialError::Channel(ChannelError::Unproved { .. }) => true,
            DialError::Channel(ChannelError::NoneReached(tried)) => {
                tried.iter().any(|tried| matches!(tried.error, ChannelError::Unproved { .. }))
            }
            _ => false,
        }
    }
}

/// A connection to the resource manager, and its nonces.
pub type Dialed = Result<(Channel, Nonces), DialError>;

/// On the helper thread: waits for the name service and for the resource manager.
pub fn connect(device: &OpenDevice, target: &ExecutorManagerNode, secret: &[u8]) -> Dialed {
    let Some(addresses) = target.resource_manager()? else {
        return Err(DialError::Answer(Malformed::Field("resource_manager_address")));
    };
    Ok(reach(device.device.ip_address(), &addresses, DIAL, |address, limit| {
        let mut channel = Channel::of_messages(&device.device, RECEIVES)?;
        channel.expect_listener(device.trusted_user);
        let hello = NodeHello { nonce: Nonce::generate() };
        let answer = channel.connect(address, Role::Node, &hello, limit)?;
        let proof = parse_prefix::<ManagerProof>(answer.as_slice());
        match proof.ok().and_then(|proof| proof.verify(&hello, address, secret)) {
            Some(nonces) => Ok((channel, nonces)),
            None => Err(ChannelError::Unproved { address, peer: channel.peer() }),
        }
    })?)
}
