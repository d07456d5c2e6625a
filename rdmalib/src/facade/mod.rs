//! The safe facade: what applications use. Each object is one of some provider
//! (`crate::providers`), together with the mark of the process that made it (`crate::process`).

mod completion;
mod connection;
mod device;
mod memory;
mod queue_pair;

pub use self::completion::{CompletionQueue, Waker};
pub use self::connection::{ConnectRequest, Listener};
pub use self::device::Device;
pub use self::memory::{Domain, Operation, Region, RemoteMapping, Slice, Source, WorkRequest};
pub use self::queue_pair::{QueuePair, ReceiveQueue, SendQueue};
