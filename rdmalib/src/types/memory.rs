//! Rights to registered memory, and how a peer names it.

bitflags::bitflags! {
    /// Who may do what with a region; `ibv_reg_mr(3)`.
    ///
    /// Any combination is allowed, except that `REMOTE_WRITE` and `REMOTE_ATOMIC` need
    /// `LOCAL_WRITE`. Without any right a region is a source of sends and writes: that is always
    /// allowed. The rights bind devices. This process itself may always read and write the bytes
    /// ([`Region::read`](crate::Region::read), [`Region::write`](crate::Region::write)).
    ///
    /// | the region is | it needs |
    /// | --- | --- |
    /// | source of a send or write | – |
    /// | buffer of a receive, `into` of a read or an atomic | `LOCAL_WRITE` |
    /// | target of a peer's write | `LOCAL_WRITE`, `REMOTE_WRITE` |
    /// | target of a peer's read | `REMOTE_READ` |
    /// | target of a peer's fetch-add or compare-swap | `LOCAL_WRITE`, `REMOTE_ATOMIC` |
    /// | mapped by a peer ([`map_remote`](crate::SendQueue::map_remote)) | `REMOTE_READ`, `REMOTE_WRITE` (with `LOCAL_WRITE`), or both, as it asks |
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

/// A place in a peer's memory, and the key that allows its use.
///
/// The owner makes it with [`Region::remote`](crate::Region::remote) and tells the peer both
/// numbers, in a form that the two programs agree on. (`rfaas` sends `addr` and `key` as 8 bytes
/// each, little-endian.) The numbers mean nothing to anybody but devices:
/// [`offset`](Self::offset) is the only arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RemoteAddress {
    /// Address as the device of the owner understands it.
    pub addr: u64,
    /// Remote key (rkey) of the region that holds it. Keys that are handed out have at most
    /// [`Capabilities::key_bits`](crate::Capabilities::key_bits) bits. A wider one is a wrong key:
    /// posting it fails ([`Error::RemoteAccess`](crate::Error::RemoteAccess), verbs), or its
    /// request does ([`Status::RemoteAccessError`](crate::Status::RemoteAccessError), shm, tcp).
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
