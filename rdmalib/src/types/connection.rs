//! What travels in a handshake, and who is at the other end.

use std::net::IpAddr;

use super::error::{Error, Result};

/// Most private data in a connection request, in bytes; `rdma_connect(3)`.
pub const MAX_CONNECT_DATA: usize = 56;
/// Most private data in an acceptance, in bytes; `rdma_accept(3)`.
pub const MAX_ACCEPT_DATA: usize = 196;
/// Most private data in a rejection, in bytes; `rdma_reject(3)`.
pub const MAX_REJECT_DATA: usize = 148;

/// Private data of a handshake message. On verbs, which does not carry the length, it may be longer
/// than what the peer passed, padded with zeros: a reader has to know how much it expects. It is
/// what a peer says, and so to be checked. `Debug` shows only its length.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateData(Box<[u8]>);

impl PrivateData {
    pub(crate) fn new(data: &[u8], max: usize) -> Result<Self> {
        if data.len() > max {
            return Err(Error::PrivateDataTooLong { bytes: data.len(), max });
        }
        Ok(PrivateData(data.into()))
    }

    pub(crate) fn nothing() -> Self {
        PrivateData(Box::default())
    }

    /// Returns the bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateData({} bytes)", self.0.len()) // may hold a token: never logged
    }
}

/// Who is at the other end, as far as the device knows and the peer cannot choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Peer {
    /// Processes of this user of this machine, as the kernel says (embedded device).
    User(u32),
    /// The machine with this address of the RDMA network.
    Address(IpAddr),
    /// The device does not know.
    Unknown,
}
