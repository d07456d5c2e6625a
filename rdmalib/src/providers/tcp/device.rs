//! The device and its protection domains.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use super::completion::CompletionQueue;
use super::engine::EngineHandle;
use super::handshake::Listener;
use super::memory::{Keys, Region};
use super::queue_pair::{MAX_INLINE_DATA, ReceiveQueue, SendQueue, queue_pair};
use super::wire::MAX_QUEUE_DEPTH;
use crate::contract;
use crate::types::{
    Access, Capabilities, DeviceSpec, Error, Limits, Provider, QueuePairConfig, Result,
};

const MAX_COMPLETION_ENTRIES: u32 = 1 << 22;

/// An open device.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    engine: Arc<EngineHandle>,
    address: IpAddr,
    max_inline_data: u32,
}

impl contract::Device for Device {
    type Domain = Domain;
    type CompletionQueue = CompletionQueue;
    type Listener = Listener;

    fn open(spec: &DeviceSpec) -> Result<Self> {
        let unavailable = |reason: String| Error::DeviceUnavailable {
            device: spec.name.clone(),
            provider: Provider::Tcp,
            reason,
        };
        if spec.ip_address.is_unspecified() {
            let reason = "it needs the address of one interface, not 0.0.0.0 or ::";
            return Err(unavailable(reason.into()));
        }
        // Whether it is one of this machine's.
        if let Err(error) = UdpSocket::bind(SocketAddr::new(spec.ip_address, 0)) {
            return Err(unavailable(format!(
                "{} cannot be used ({error}): it has to be an address of this machine, as `ip address` lists them",
                spec.ip_address
            )));
        }
        Ok(Device {
            engine: Arc::new(EngineHandle::start()?),
            address: spec.ip_address,
            max_inline_data: spec.max_inline_data.min(MAX_INLINE_DATA),
        })
    }

    fn limits(&self) -> Limits {
        Limits {
            max_inline_data: self.max_inline_data,
            max_queue_depth: MAX_QUEUE_DEPTH,
            max_completion_entries: MAX_COMPLETION_ENTRIES,
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            maps_remote_memory: false,
            knows_users: false,
            shares_domain_memory: false,
            key_bits: 32,
            exact_length_errors: true,
        }
    }

    fn domain(&self) -> Result<Domain> {
        Ok(Domain { keys: Arc::default(), device: self.clone() })
    }

    /// No peer can make a domain grow.
    fn fixed_domain(&self, _bytes: usize) -> Result<Domain> {
        self.domain()
    }

    fn completion_queue(&self, capacity: u32) -> Result<CompletionQueue> {
        if !(1..=MAX_COMPLETION_ENTRIES).contains(&capacity) {
            return Err(Error::InvalidArgument("a completion queue has 1 to 4194304 entries"));
        }
        CompletionQueue::new(&self.engine, capacity)
    }

    fn listen(&self, addr: SocketAddr) -> Result<Listener> {
        Listener::new(addr)
    }
}

/// A protection domain.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    keys: Arc<Keys>,
    device: Device,
}

impl contract::Domain for Domain {
    type Region = Region;
    type CompletionQueue = CompletionQueue;
    type SendQueue = SendQueue;
    type ReceiveQueue = ReceiveQueue;

    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        Region::new(&self.keys, bytes, access)
    }

    fn queue_pair(
        &self,
        send: &CompletionQueue,
        receive: &CompletionQueue,
        config: &QueuePairConfig,
    ) -> Result<(SendQueue, ReceiveQueue)> {
        let device = (&self.keys, &self.device.engine, self.device.address);
        queue_pair(device, send, receive, config)
    }
}
