//! Any IP network: the objects of RDMA over TCP, one connection for each queue pair.
//!
//! ```text
//!   SendQueue, ReceiveQueue ──▶ Core: protocol + carrier, one lock ──▶ socket ═══ the peer's
//!   CompletionQueue ───────────▶  │        │
//!   helper thread ─────────────▶  │        └─ carrier: moves bytes, knows sockets
//!                                 └─ protocol: frames, keys, receives, completions; no socket
//! ```
//! The receiver's CPU does what a network card would: it checks key, range and rights of what
//! arrives, and puts it in its place. The thread that polls does so, or sleeps in `wait`; for a
//! queue pair whose owner does neither, the helper thread does.
//!
//! Writes, reads and atomics behind a message that waits for a receive do not wait for it, as they do
//! on a network card; what says that they succeeded does.
//!
//! * `wire`: frames; `protocol`: what they mean, bytes in and bytes out
//! * `carrier`: the socket; another carrier of ordered bytes or messages takes its place here
//! * `memory`: registered memory, keys
//! * `core`: what the threads share of a queue pair; `queue_pair`: posting; `completion`: polling
//!   and sleeping, with `members`; `engine`: the helper thread
//! * `device`: the device and its protection domains
//! * `handshake`: how two ends meet
//!
//! Unsafe code is in `memory` and `carrier`.

mod carrier;
mod completion;
mod core;
mod device;
mod engine;
mod handshake;
mod members;
mod memory;
mod protocol;
mod queue_pair;
mod wire;

pub(crate) use self::completion::{CompletionQueue, Waker};
pub(crate) use self::device::{Device, Domain};
pub(crate) use self::handshake::{ConnectRequest, Listener};
pub(crate) use self::memory::{NeverMapped, Region};
pub(crate) use self::queue_pair::{ReceiveQueue, SendQueue};
