//! Plain types: what all layers say to each other. They know no provider and do nothing.
//!
//! * `device`: what opens a device, its limits and capabilities
//! * `memory`: rights and remote addresses
//! * `work`: work requests; the one shape that a request has from the facade to a provider
//! * `completion`: how a request ended
//! * `queue_pair`, `connection`: settings and states of a connection, private data, peers
//! * `error`: what can go wrong before a request is posted

mod completion;
mod connection;
mod device;
mod error;
mod memory;
mod queue_pair;
pub mod work;

pub use self::completion::{Notify, Opcode, Status, WorkCompletion};
pub use self::connection::{MAX_ACCEPT_DATA, MAX_CONNECT_DATA, MAX_REJECT_DATA, Peer, PrivateData};
pub use self::device::{Capabilities, DeviceSpec, Limits, Provider};
pub use self::error::{Error, Result};
pub use self::memory::{Access, RemoteAddress};
pub use self::queue_pair::{QueuePairConfig, RnrRetry, State};
pub use self::work::Flags;
