//! Peers: what users would pick instead, each with an echo of its own in another process.

pub mod grpc;
pub mod http;
pub mod unix;
