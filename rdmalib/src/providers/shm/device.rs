//! The embedded device and its protection domains.

use std::net::SocketAddr;
use std::sync::Arc;

use super::arena::{Arena, Region};
use super::completion::CompletionQueue;
use super::core::MAX_QUEUE_DEPTH;
use super::engine::EngineHandle;
use super::handshake::Listener;
use super::queue_pair::{MAX_INLINE_DATA, ReceiveQueue, SendQueue, queue_pair};
use crate::contract;
use crate::types::{Access, Capabilities, DeviceSpec, Error, Limits, QueuePairConfig, Result};

const MAX_COMPLETION_ENTRIES: u32 = 1 << 22;

/// An open device.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    engine: Arc<EngineHandle>,
    max_inline_data: u32,
}

impl contract::Device for Device {
    type Domain = Domain;
    type CompletionQueue = CompletionQueue;
    type Listener = Listener;

    fn open(spec: &DeviceSpec) -> Result<Self> {
        let max_inline_data = spec.max_inline_data.min(MAX_INLINE_DATA);
        Ok(Device { engine: Arc::new(EngineHandle::start()?), max_inline_data })
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
            maps_remote_memory: true,
            knows_users: true,
            shares_domain_memory: true,
            key_bits: 32,
            exact_length_errors: true,
        }
    }

    fn domain(&self) -> Result<Domain> {
        Ok(Domain { arena: Arena::new()?, device: self.clone() })
    }

    fn fixed_domain(&self, bytes: usize) -> Result<Domain> {
        Ok(Domain { arena: Arena::fixed(bytes as u64)?, device: self.clone() })
    }

    fn completion_queue(&self, capacity: u32) -> Result<CompletionQueue> {
        if !(1..=MAX_COMPLETION_ENTRIES).contains(&capacity) {
            return Err(Error::InvalidArgument("a completion queue has 1 to 4194304 entries"));
        }
        CompletionQueue::new(capacity)
    }

    fn listen(&self, addr: SocketAddr) -> Result<Listener> {
        Listener::new(addr)
    }
}

/// A protection domain.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    pub(super) arena: Arc<Arena>,
    device: Device,
}

impl contract::Domain for Domain {
    type Region = Region;
    type CompletionQueue = CompletionQueue;
    type SendQueue = SendQueue;
    type ReceiveQueue = ReceiveQueue;

    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        Region::new(&self.arena, bytes, access)
    }

    fn queue_pair(
        &self,
        send: &CompletionQueue,
        receive: &CompletionQueue,
        config: &QueuePairConfig,
    ) -> Result<(SendQueue, ReceiveQueue)> {
        queue_pair(&self.arena, &self.device.engine, send, receive, config)
    }
}
