//! Reaching the resource manager, which may wait: for the name service, and for an answer.

use std::time::Duration;

use rdmalib::Device;
use rfaas::channel::{Channel, ChannelError};
use rfaas::config::{ConfigError, ExecutorManagerNode};
use rfaas::protocol::node::Challenge;
use rfaas::protocol::{Empty, Malformed, Role, parse_prefix};
use rfaas::reach::reach;

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
    /// Nobody there, or refused.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// It answered with something else than a challenge.
    #[error(transparent)]
    Answer(#[from] Malformed),
    /// No helper thread.
    #[error("no thread to connect with: {0}")]
    Thread(std::io::Error),
}

/// A connection, and the challenge to answer on it.
pub type Dialed = Result<(Channel, Challenge), DialError>;

/// On the helper thread: waits for the name service and for the resource manager.
pub fn connect(device: &Device, target: &ExecutorManagerNode) -> Dialed {
    let Some(addresses) = target.resource_manager()? else {
        return Err(DialError::Answer(Malformed::Field("resource_manager_address")));
    };
    let (channel, answer) = reach(device.ip_address(), &addresses, DIAL, |address, limit| {
        let mut channel = Channel::new(device, RECEIVES)?;
        let answer = channel.connect(address, Role::Node, &Empty {}, limit)?;
        Ok((channel, answer))
    })?;
    Ok((channel, parse_prefix(answer.as_slice())?))
}
