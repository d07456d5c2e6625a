//! RDMA devices: libibverbs moves the bytes, librdmacm makes the connections.
//!
//! ```text
//!   application ── post, poll ──▶ driver (libibverbs) ──▶ device ──▶ the peer's device
//!   helper thread ◀── events of connections (librdmacm), of the device
//! ```
//! * `bindings` - generated; `library` - loading; `objects`, `memory`, `cm` - each object of the
//!   two libraries, owned once
//! * `open` - opening a device; `device` - what is made from it
//! * `posting` - the halves of a queue pair; `request` - requests in the device's words;
//!   `completion` - and back; `status` - the words
//! * `core` - what the threads share of a queue pair, `places` - its requests; `members` - which
//!   queue pairs a completion queue has; `connect` - how two meet
//! * `engine` - what happens unasked
//!
//! Unsafe code is in `library`, `objects`, `memory`, `cm`, `posting`, `request` and `status`.

mod bindings;
mod cm;
mod completion;
mod connect;
mod core;
mod device;
mod engine;
mod library;
mod members;
mod memory;
mod objects;
mod open;
mod places;
mod posting;
mod request;
mod status;

pub(crate) use self::completion::{CompletionQueue, Waker};
pub(crate) use self::connect::{ConnectRequest, Listener};
pub(crate) use self::device::{Device, Domain};
pub(crate) use self::memory::{MemoryRegion as Region, NeverMapped};
pub(crate) use self::open::prepare;
pub(crate) use self::posting::{ReceiveQueue, SendQueue};
