//! The callee's half of a connection: reads requests, has the function called, replies.
//!
//! ```text
//!   completion ──▶ Requests: which slot, a header of its own or the kept one, checked ──▶ Service::call ──▶ reply
//!        │ none                                                                                              │
//!        └▶ Service::idle: spins, yields or sleeps                          Service::answered, receive again ◀┘
//! ```
//! One thread, one connection, one request after the other, in the order of arrival. How the
//! function is called and what happens between calls is the [`Service`]'s.

mod connection;
mod end;
mod layout;
mod memory;
mod requests;
mod serve;

pub use connection::{CallerConnection, request_queue};
pub use end::ServiceEnd;
pub use layout::{BadLayout, Layout, Slot};
pub use memory::SlotMemory;
pub use serve::{Callee, Service};
