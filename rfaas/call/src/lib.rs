//! How a function is called over a connection.
//!
//! This crate is internal: applications use `rfaas`.

mod sharing;
mod spin;

pub use sharing::Sharing;
pub use spin::Spin;
