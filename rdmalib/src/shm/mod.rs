//! The embedded device: the objects of RDMA over shared memory between processes of one host.
//!
//! ```text
//!   process A                            │ process B
//!   SendQueue ── write, send, atomics ───┼──▶ arena (memfd): regions, receive rings
//!   CompletionQueue ◀── ring ◀───────────┼─── SendQueue
//!   helper thread ◀── Unix socket: doorbell bytes, end of the peer ──▶ helper thread
//! ```
//! The sender's CPU does what a network card would: it checks the remote key against the table in
//! the target's arena, copies, and fills the target's ring. The target's CPU does nothing until it
//! polls. No system call on the way, unless the target sleeps.
//!
//! * crate `rdmalib_ring` - posted receives one way, arrivals the other, in a ring or in the shared turn
//!   slot; and the ownership hand-off between poster and helper
//! * `arena` - memory and keys at their owner, `peer_arena` at a peer, `mapping`; `addresses` - how much of peers
//!   is mapped at most
//! * `one_sided` - carrying out a request; `carried` - a small write, in its arrival; `shared_copy` - a
//!   large one, with the receiver's help
//! * `queue_pair` - posting; `core`, `completion` - finished work and who is told of it
//! * `engine` - what happens unasked (sleeping is in `crate::events`)
//! * `handshake` - how two processes meet; `received` - messages with descriptors; `closer` - descriptors that peers
//!   have a part in are closed; `unread` - what peers do not read has a bound

mod addresses;
mod arena;
mod carried;
mod closer;
mod completion;
mod core;
mod engine;
mod handshake;
#[cfg(test)]
mod hostile;
mod mapping;
mod one_sided;
mod peer_arena;
mod queue_pair;
mod received;
mod shared_copy;
mod space;
mod unread;

pub(crate) use device::{Device, Domain, MAX_INLINE_DATA, MAX_QUEUE_DEPTH};
pub use {addresses::limit_peers, received::refuse_descriptors};
pub(crate) use {
    arena::Region,
    completion::{CompletionQueue, Waker},
    handshake::{ConnectRequest, Listener},
    mapping::Part,
    queue_pair::{ReceiveQueue, SendQueue, queue_pair},
};

mod device {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::arena::{Arena, Region};
    use super::completion::CompletionQueue;
    use super::engine::EngineHandle;
    use super::handshake::Listener;
    use crate::device::{DeviceSpec, Limits};
    use crate::error::{Error, Result};
    use crate::memory::Access;

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
        pub(crate) fn open(spec: &DeviceSpec) -> Result<Self> {
            let max_inline_data = spec.max_inline_data.min(MAX_INLINE_DATA);
            Ok(Device { engine: Arc::new(EngineHandle::start()?), max_inline_data })
        }

        pub(crate) fn limits(&self) -> Limits {
            Limits {
                max_inline_data: self.max_inline_data,
                max_queue_depth: MAX_QUEUE_DEPTH,
                max_completion_entries: MAX_COMPLETION_ENTRIES,
            }
        }

        pub(crate) fn domain(&self) -> Result<Domain> {
            Ok(Domain { arena: Arena::new()?, device: self.clone() })
        }

        pub(crate) fn fixed_domain(&self, bytes: usize) -> Result<Domain> {
            Ok(Domain { arena: Arena::fixed(bytes as u64)?, device: self.clone() })
        }

        pub(crate) fn completion_queue(&self, capacity: u32) -> Result<CompletionQueue> {
            if !(1..=MAX_COMPLETION_ENTRIES).contains(&capacity) {
                return Err(Error::InvalidArgument("a completion queue has 1 to 4194304 entries"));
            }
            CompletionQueue::new(capacity)
        }

        pub(crate) fn listen(&self, addr: SocketAddr) -> Result<Listener> {
            Listener::new(addr)
        }
    }

    /// A protection domain.
    #[derive(Clone, Debug)]
    pub(crate) struct Domain {
        pub(super) arena: Arc<Arena>,
        pub(super) device: Device,
    }

    impl Domain {
        pub(crate) fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
            Region::new(&self.arena, bytes, access)
        }
    }
}
