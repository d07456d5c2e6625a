//! A peer's domain, mapped here: what a remote address and key lead to.
//!
//! The file is the peer's, so its table may lie: every place is checked against the mapping, and a
//! file that could shrink or fault (SEALED, `arena`) is refused.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::arena::{DATA_START, PAGE, permits};
use super::mapping::{Mapping, Part};
use super::ring::Words;
use crate::error::{Error, Result};
use crate::memory::{Access, RemoteAddress, RemoteMapping};

/// A peer's domain, mapped here.
#[derive(Debug)]
pub(crate) struct PeerArena {
    file: Arc<OwnedFd>,
    mapping: Mapping,
}

impl PeerArena {
    /// Maps the file that a peer sent, after checking that accesses to it cannot fault.
    pub(crate) fn new(file: OwnedFd) -> Result<Self> {
        Self::of(Arc::new(file))
    }

    /// Likewise, for one more mapping of it.
    pub(super) fn of(file: Arc<OwnedFd>) -> Result<Self> {
        // hugetlbfs files have seals too, but fault when no huge page is left.
        let kind = fstatfs(&file).map_err(|e| Error::os("fstatfs", e))?.filesystem_type();
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS)
            .map_err(|_| Error::Protocol("the peer's memory is not a memfd"))?;
        if kind != TMPFS_MAGIC || seals & SealFlag::F_SEAL_SHRINK.bits() == 0 {
            return Err(Error::Protocol("the peer's memory could shrink or fault")); // SEALED
        }
        let bytes = file_len(&file)?;
        if bytes < DATA_START as usize {
            return Err(Error::Protocol("the peer's memory has no key table"));
        }
        let mapping = Mapping::new(&file, 0, bytes)?;
        Ok(PeerArena { file, mapping })
    }

    /// The file.
    pub(super) fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// Maps the peer's ring by itself, so that it stays where it is when the arena is mapped again.
    pub(crate) fn map_ring(&self, offset: u64, bytes: usize) -> Result<Part> {
        let inside =
            offset.checked_add(bytes as u64).is_some_and(|e| e <= self.mapping.len() as u64);
        if !inside || !offset.is_multiple_of(PAGE) {
            return Err(Error::Protocol("the peer's ring is not in its memory"));
        }
        Mapping::new(&self.file, offset, bytes).map(Part::from)
    }

    /// Whether the peer's table allows `access` to `bytes` bytes from `at` on.
    #[inline]
    pub(crate) fn permits(&self, at: RemoteAddress, bytes: usize, access: Access) -> bool {
        permits(self.mapping.words(), at, bytes, access)
    }

    /// Maps the peer's `bytes` bytes at `at` by themselves, if its key allows `access` to all of them. What
    /// follows the range on its last page is mapped with it, and not reached.
    pub(crate) fn map(
        &mut self,
        at: RemoteAddress,
        bytes: usize,
        access: Access,
    ) -> Result<RemoteMapping> {
        self.translate(at, bytes, access).ok_or(Error::RemoteAccess)?;
        let start = at.addr % PAGE;
        let len = start as usize + bytes; // inside of the file, which `translate` has mapped
        let mapping = if access.contains(Access::REMOTE_WRITE) {
            Mapping::new(&self.file, at.addr - start, len)?
        } else {
            Mapping::read_only(&self.file, at.addr - start, len)?
        };
        let part = Part::new(Arc::new(mapping), start, bytes).expect("mapped as asked");
        Ok(RemoteMapping::new(part, access))
    }

    /// Where the peer's `bytes` bytes at `addr` are mapped, if `key` allows `access` to all of them.
    #[inline]
    pub(crate) fn translate(
        &mut self,
        at: RemoteAddress,
        bytes: usize,
        access: Access,
    ) -> Option<*mut u8> {
        if !self.permits(at, bytes, access) {
            return None;
        }
        self.at(at.addr, bytes)
    }

    /// Where `bytes` bytes from `offset` on are mapped, whatever the table says: for what the peer wants to
    /// be read there.
    #[inline]
    pub(super) fn at(&mut self, offset: u64, bytes: usize) -> Option<*mut u8> {
        let inside = self.mapping.at(offset, bytes);
        if inside.is_some() {
            return inside;
        }
        self.remap()?; // the file may have grown, or the peer has lied
        self.mapping.at(offset, bytes)
    }

    #[cfg(test)]
    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    #[cold]
    fn remap(&mut self) -> Option<()> {
        let bytes = file_len(&self.file).ok()?;
        if bytes > self.mapping.len() {
            self.mapping = Mapping::new(&self.file, 0, bytes).ok()?;
        }
        Some(())
    }
}

fn file_len(file: &OwnedFd) -> Result<usize> {
    let clone = file.try_clone().map_err(|e| Error::os("dup", e))?;
    let bytes = File::from(clone).metadata().map_err(|e| Error::os("fstat", e))?.len();
    usize::try_from(bytes).map_err(|_| Error::Protocol("the peer's memory is not addressable"))
}
