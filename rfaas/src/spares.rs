//! What the next deployment of a client needs and what depends on nobody: made when the client connects, and when a
//! deployment has used it, while the client waits for something else: the bill of a lease, or else the grant of the next.
//!
//! There is at most one of each. Without one, the deployment makes it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rdmalib::Domain;
use rfaas_config::OpenDevice;
use rfaas_protocol::channel::{Channel, ChannelError};

/// The spares of one client.
#[derive(Debug, Default)]
pub(crate) struct Spares(Mutex<Spare>);

#[derive(Debug, Default)]
struct Spare {
    connection: Option<Channel>,
    domain: Option<Domain>,
}

impl Spares {
    /// Makes what is missing. An error comes again when it is needed.
    pub(crate) fn fill(&self, device: &OpenDevice) {
        let mut spare = self.lock();
        if spare.connection.is_none() {
            spare.connection = connection(device).ok();
        }
        if spare.domain.is_none() {
            spare.domain = device.device.domain().ok();
        }
    }

    /// Returns a connection that may be connected to an executor manager.
    pub(crate) fn connection(&self, device: &OpenDevice) -> Result<Channel, ChannelError> {
        let spare = self.lock().connection.take();
        spare.map_or_else(|| connection(device), Ok)
    }

    /// Returns a domain of which nothing is used.
    pub(crate) fn domain(&self, device: &OpenDevice) -> rdmalib::Result<Domain> {
        let spare = self.lock().domain.take();
        spare.map_or_else(|| device.device.domain(), Ok)
    }

    fn lock(&self) -> MutexGuard<'_, Spare> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connection(device: &OpenDevice) -> Result<Channel, ChannelError> {
    let mut channel = Channel::new(&device.device, device.entry.default_receive_buffer_size)?;
    channel.expect_listener(device.trusted_user);
    Ok(channel)
}
