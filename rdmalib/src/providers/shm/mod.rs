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
//! polls. No system call is made, unless the target sleeps.
//!
//! * crate `rdmalib_ring`: posted receives one way, arrivals the other, in a ring or in the shared
//!   turn slot; the ownership hand-off between poster and helper
//! * `device`: the device and its protection domains
//! * `arena`: memory and keys at their owner; `space`: layout of the file; `peer_arena`: a peer's
//!   domain; `mapping`: mapped memory; `addresses`: bounds on it
//! * `queue_pair`: posting; `link`: carrying out a request; `copy`: its bytes; `shared_copy`: the
//!   bytes of a large write, with the receiver's help
//! * `core`: what the threads share of a queue pair; `completion`: polling; `members`: which queue
//!   pairs a completion queue shows, and sleeping
//! * `engine`: the helper thread
//! * `handshake`: how two processes meet; `peer`: who is at the other end; `received`: messages
//!   with descriptors; `closer`: closing descriptors that peers have a part in; `unread`:
//!   acceptances that peers do not read

mod addresses;
mod arena;
mod closer;
mod completion;
mod copy;
mod core;
mod device;
mod engine;
mod handshake;
#[cfg(test)]
mod hostile;
mod link;
mod mapping;
mod members;
mod peer;
mod peer_arena;
mod queue_pair;
mod received;
mod shared_copy;
mod space;
mod unread;

use crate::contract::ProviderTypes;
use crate::types::{DeviceSpec, QueuePairConfig, Result};

pub use self::addresses::limit_peers;
pub(crate) use self::arena::Region;
pub(crate) use self::completion::{CompletionQueue, Waker};
pub(crate) use self::device::{Device, Domain};
pub(crate) use self::handshake::{ConnectRequest, Listener};
pub(crate) use self::mapping::Part;
pub(crate) use self::queue_pair::{ReceiveQueue, SendQueue};
pub use self::received::refuse_descriptors;

/// The embedded device as a provider.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shm {}

impl ProviderTypes for Shm {
    type Device = Device;
    type Domain = Domain;
    type Region = Region;
    type CompletionQueue = CompletionQueue;
    type Waker = Waker;
    type SendQueue = SendQueue;
    type ReceiveQueue = ReceiveQueue;
    type RemoteMemory = Part;
    type Listener = Listener;
    type ConnectRequest = ConnectRequest;

    fn open(spec: &DeviceSpec) -> Result<Device> {
        Device::open(spec)
    }

    fn queue_pair(
        domain: &Domain,
        send: &CompletionQueue,
        receive: &CompletionQueue,
        config: &QueuePairConfig,
    ) -> Result<(SendQueue, ReceiveQueue)> {
        queue_pair::queue_pair(domain, send, receive, config)
    }
}
