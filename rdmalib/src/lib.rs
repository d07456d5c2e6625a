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
pub mod device;
pub mod error;
pub mod memory;
pub mod queue_pair;
mod shm;
mod sync;

pub use completion::{CompletionQueue, Notify, Opcode, Status, Waker, WorkCompletion};
pub use connection::{
    ConnectRequest, Listener, MAX_ACCEPT_DATA, MAX_CONNECT_DATA, MAX_REJECT_DATA, PrivateData,
};
pub use device::{Device, DeviceSpec, Limits, Provider};
pub use error::{Error, Result};
pub use memory::{Access, Domain, Region, RemoteAddress, Slice};
pub use queue_pair::{
    Flags, Operation, QueuePair, QueuePairConfig, ReceiveQueue, RnrRetry, SendQueue, Source, State,
    WorkRequest,
};
