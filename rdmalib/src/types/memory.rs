//! Rights to registered memory, and how a peer names it.

bitflags::bitflags! {
    /// Who may do what with a region; `ibv_reg_mr(3)`. Reading it locally is always allowed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u32 {
        /// The device may write it for this process: receives, results of reads and atomics.
        const LOCAL_WRITE = 1;
        /// Peers may write it.
        const REMOTE_WRITE = 2;
        /// Peers may read it.
        const REMOTE_READ = 4;
        /// Peers may use fetch-add and compare-swap on it.
        const REMOTE_ATOMIC = 8;
    }
}

/// A place in a peer's memory, and the key that allows its use. Opaque: the owner makes it with
/// [`Region::remote`](crate::Region::remote) and sends it; 16 bytes on a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RemoteAddress {
    /// Address as the device of the owner understands it.
    pub addr: u64,
    /// Remote key (rkey) of the region that holds it. A provider may hand out keys of fewer bits;
    /// one that does not fit is refused as a wrong key is.
    pub key: u64,
}

impl RemoteAddress {
    /// Returns the place `bytes` bytes further on in the same region. Not checked here: the device
    /// checks it when it carries out the request.
    #[must_use]
    #[inline]
    pub fn offset(self, bytes: u64) -> Self {
        RemoteAddress { addr: self.addr.wrapping_add(bytes), key: self.key }
    }
}
