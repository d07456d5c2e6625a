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
//!
//! Inside there are four layers, and each imports only those above it in this list:
//! * `types`: plain types, which all others speak in
//! * `contract`: what a provider's objects guarantee
//! * `providers`: `shm` (the embedded device: shared memory of one host) and `verbs` (RDMA devices), and
//!   the one enum over them
//! * `facade`: the objects of the picture
//!
//! `process`, `events`, `waiting` and `sync` serve all of them; `faults` stands between facade and
//! providers.

mod contract;
mod events;
mod facade;
#[cfg(feature = "faults")]
pub mod faults;
mod process;
mod providers;
mod sync;
mod types;
mod waiting;

pub use facade::{
    CompletionQueue, ConnectRequest, Device, Domain, Listener, Operation, QueuePair, ReceiveQueue,
    Region, RemoteMapping, SendQueue, Slice, Source, Waker, WorkRequest,
};
pub use process::ForkMark;
pub use providers::shm::{limit_peers, refuse_descriptors};
pub use types::work;
pub use types::{
    Access, Capabilities, DeviceSpec, Error, Flags, Limits, MAX_ACCEPT_DATA, MAX_CONNECT_DATA,
    MAX_REJECT_DATA, Notify, Opcode, Peer, PrivateData, Provider, QueuePairConfig, RemoteAddress,
    Result, RnrRetry, State, Status, WorkCompletion,
};
pub use waiting::WaitingList;
