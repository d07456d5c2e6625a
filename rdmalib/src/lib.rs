//! RDMA for programs that must also run without RDMA hardware.
//!
//! One safe API, the objects of libibverbs and librdmacm, over providers that are chosen once, when
//! a [`Device`] is opened:
//!
//! ```text
//!   Device ──▶ Domain ──▶ Region (owned, registered)  ──remote()──▶ RemoteAddress, sent to the peer
//!     │           └─────▶ QueuePair = SendQueue + ReceiveQueue ──connect / accept──▶ the peer's
//!     ├──▶ CompletionQueue ◀── finished work requests of one or several queue pairs
//!     └──▶ Listener ──▶ ConnectRequest
//! ```
//! The crate knows nothing of leases or functions; nothing above it knows devices.

// The model checker (cfg loom) sees the lock-free parts only; the rest needs the real system.
#[cfg(not(loom))]
pub mod completion;
#[cfg(not(loom))]
pub mod connection;
#[cfg(not(loom))]
mod debug;
#[cfg(not(loom))]
pub mod device;
#[cfg(not(loom))]
pub mod error;
#[cfg(not(loom))]
mod events;
#[cfg(all(feature = "faults", not(loom)))]
pub mod faults;
#[cfg(not(loom))]
pub mod memory;
#[cfg(not(loom))]
pub mod process;
#[cfg(not(loom))]
pub mod queue_pair;
#[cfg_attr(loom, allow(dead_code))]
mod shm;
mod sync;
#[cfg(not(loom))]
mod verbs;
#[cfg(not(loom))]
mod waiting;

#[cfg(not(loom))]
pub use {
    completion::{CompletionQueue, Notify, Opcode, Status, Waker, WorkCompletion},
    connection::{
        ConnectRequest, Listener, MAX_ACCEPT_DATA, MAX_CONNECT_DATA, MAX_REJECT_DATA, PrivateData,
    },
    device::{Device, DeviceSpec, Limits, Provider},
    error::{Error, Result},
    memory::{Access, Domain, Region, RemoteAddress, RemoteMapping, Slice},
    process::ForkMark,
    queue_pair::{
        Flags, Operation, QueuePair, QueuePairConfig, ReceiveQueue, RnrRetry, SendQueue, Source,
        State, WorkRequest,
    },
    shm::{limit_peers, refuse_descriptors},
    waiting::{Peer, WaitingList},
};
