//! The device and its protection domains.

use std::net::SocketAddr;
use std::sync::Arc;

use super::completion::CompletionQueue;
use super::connect::Listener;
use super::memory::MemoryRegion;
use super::objects::ProtectionDomain;
use super::open::OpenDevice;
use super::posting::{ReceiveQueue, SendQueue, queue_pair};
use crate::contract;
use crate::types::{Access, Capabilities, DeviceSpec, Error, Limits, QueuePairConfig, Result};

/// An open device.
#[derive(Clone, Debug)]
pub(crate) struct Device(Arc<OpenDevice>);

impl contract::Device for Device {
    type Domain = Domain;
    type CompletionQueue = CompletionQueue;
    type Listener = Listener;

    fn open(spec: &DeviceSpec) -> Result<Self> {
        Ok(Device(Arc::new(OpenDevice::new(spec)?)))
    }

    fn limits(&self) -> Limits {
        self.0.limits
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            maps_remote_memory: false,
            knows_users: false,
            shares_domain_memory: false,
            key_bits: 32,
            exact_length_errors: false, // SoftRoCE; it cannot be told from other devices
        }
    }

    fn domain(&self) -> Result<Domain> {
        let raw = Arc::new(ProtectionDomain::new(&self.0.context)?);
        Ok(Domain { raw, device: self.0.clone() })
    }

    fn fixed_domain(&self, _bytes: usize) -> Result<Domain> {
        self.domain() // no peer can make it larger
    }

    fn completion_queue(&self, capacity: u32) -> Result<CompletionQueue> {
        let most = self.0.limits.max_completion_entries;
        if !(1..=most).contains(&capacity) {
            return Err(Error::InvalidArgument(
                "a completion queue has from 1 entry to the device's limit",
            ));
        }
        CompletionQueue::new(&self.0.context, capacity, most)
    }

    fn listen(&self, addr: SocketAddr) -> Result<Listener> {
        Listener::new(&self.0, addr)
    }
}

/// A protection domain.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    raw: Arc<ProtectionDomain>,
    device: Arc<OpenDevice>,
}

impl contract::Domain for Domain {
    type Region = MemoryRegion;
    type CompletionQueue = CompletionQueue;
    type SendQueue = SendQueue;
    type ReceiveQueue = ReceiveQueue;

    fn allocate(&self, bytes: usize, access: Access) -> Result<MemoryRegion> {
        MemoryRegion::new(&self.raw, bytes, access)
    }

    fn queue_pair(
        &self,
        send: &CompletionQueue,
        receive: &CompletionQueue,
        config: &QueuePairConfig,
    ) -> Result<(SendQueue, ReceiveQueue)> {
        queue_pair(&self.device, &self.raw, send, receive, config)
    }
}
