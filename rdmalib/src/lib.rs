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

pub mod completion;
pub mod connection;
mod debug;
pub mod device;
pub mod error;
mod events;
#[cfg(feature = "faults")]
pub mod faults;
pub mod memory;
pub mod process;
pub mod queue_pair;
mod shm;
mod sync;
mod verbs;
mod waiting;

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
