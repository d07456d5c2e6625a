//! The embedded device and its protection domains.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Shm;
use super::arena::{Arena, Region};
use super::completion::CompletionQueue;
use super::engine::EngineHandle;
use super::handshake::Listener;
use crate::contract;
use crate::types::{Access, Capabilities, DeviceSpec, Error, Limits, Result};

/// Deepest send or receive queue: what common network cards offer.
pub(crate) const MAX_QUEUE_DEPTH: u32 = 16384;
/// Inline data is copied while posting, as all data is here; the limit is that of common cards.
pub(crate) const MAX_INLINE_DATA: u32 = 512;
const MAX_COMPLETION_ENTRIES: u32 = 1 << 22;

/// An open device.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(super) engine: Arc<EngineHandle>,
    max_inline_data: u32,
}

impl Device {
    pub(super) fn open(spec: &DeviceSpec) -> Result<Self> {
        let max_inline_data = spec.max_inline_data.min(MAX_INLINE_DATA);
        Ok(Device { engine: Arc::new(EngineHandle::start()?), max_inline_data })
    }
}

impl contract::Device<Shm> for Device {
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
    pub(super) device: Device,
}

impl contract::Domain<Shm> for Domain {
    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        Region::new(&self.arena, bytes, access)
    }
}
