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
//! * `core`: what the threads share of a queue pair, with `sent` and `receives`; `completion`:
//!   polling each queue pair (`poller`); `members`: which queue pairs a completion queue shows, and
//!   sleeping
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
mod poller;
mod queue_pair;
mod received;
mod receives;
mod sent;
mod shared_copy;
mod space;
mod unread;

pub use self::addresses::limit_peers;
pub(crate) use self::arena::Region;
pub(crate) use self::completion::{CompletionQueue, Waker};
pub(crate) use self::device::{Device, Domain};
pub(crate) use self::handshake::{ConnectRequest, Listener};
pub(crate) use self::mapping::Part;
pub(crate) use self::queue_pair::{ReceiveQueue, SendQueue};
pub use self::received::refuse_descriptors;
