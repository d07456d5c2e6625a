//! A peer's domain, mapped here: what a remote address and key lead to.
//!
//! The file is the peer's, so its table may lie: every place is checked against the mapping, and a
//! file that could shrink or fault is refused (SEALED, `arena`).
//!
//! The key table is mapped at once, a segment of the domain (`space`) when something in it is first
//! used, and counted (`addresses`): a file may claim any size.

use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::addresses::{Account, Charge, FREE_SEGMENTS};
use super::arena::permits;
use super::closer::{ClosedLater, Passed};
use super::mapping::{Mapping, Part, SharedFile};
use super::space::{DATA_START, PAGE, place, segment};
use crate::types::{Access, Error, Peer, RemoteAddress, Result};
use rdmalib_ring::Words;

/// The file of a peer's domain, checked, and what of it is mapped here.
#[derive(Clone, Debug)]
pub(crate) struct PeerFile {
    file: SharedFile,
    account: Arc<Account>,
}

/// A peer's domain, mapped here.
#[derive(Debug)]
pub(crate) struct PeerArena {
    file: PeerFile,
    table: Mapping,
    /// Segments that were needed so far; the first is that of the last access.
    windows: Vec<Window>,
}

/// A segment of the file, as far as the file goes.
#[derive(Debug)]
struct Window {
    start: u64,
    mapping: Mapping,
}

impl Window {
    #[inline]
    fn at(&self, offset: u64, bytes: usize) -> Option<*mut u8> {
        self.mapping.at(offset.checked_sub(self.start)?, bytes)
    }
}

impl PeerFile {
    /// Checks the file that a peer of `user` sent: accesses to it cannot fault.
    pub(super) fn new(file: ClosedLater<Passed>, user: Peer) -> Result<Self> {
        // First: it asks no filesystem, which may be a process that does not answer.
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS)
            .map_err(|_| Error::Protocol("the peer's memory is not a memfd"))?;
        // hugetlbfs files have seals too, but fault when no huge page is left.
        let kind = fstatfs(&file).map_err(|e| Error::os("fstatfs", e))?.filesystem_type();
        if kind != TMPFS_MAGIC || seals & SealFlag::F_SEAL_SHRINK.bits() == 0 {
            return Err(Error::Protocol("the peer's memory could shrink or fault")); // SEALED
        }
        let file = SharedFile::new(file.map(|Passed(memory)| memory));
        let file = PeerFile { file, account: Account::new(user) };
        if file.len()? < DATA_START {
            return Err(Error::Protocol("the peer's memory has no key table"));
        }
        Ok(file)
    }

    fn len(&self) -> Result<u64> {
        let bytes = fstat(&*self.file).map_err(|e| Error::os("fstat", e))?.st_size;
        u64::try_from(bytes).map_err(|_| Error::Protocol("the peer's memory has no size"))
    }

    /// Counts `bytes` of its segment `number`, if they are to be counted.
    fn charge(&self, number: usize, bytes: usize) -> Option<Option<Charge>> {
        match number {
            ..FREE_SEGMENTS => Some(None),
            _ => self.account.charge(bytes as u64).map(Some),
        }
    }
}

impl PeerArena {
    /// Maps the key table of `file`, for the time being.
    pub(crate) fn new(file: PeerFile) -> Result<Self> {
        let table = Mapping::new(&file.file, 0, DATA_START as usize)?;
        Ok(PeerArena { file, table, windows: Vec::with_capacity(FREE_SEGMENTS) })
    }

    /// The file.
    pub(super) fn file(&self) -> &PeerFile {
        &self.file
    }

    /// Maps the peer's ring, which stays where it is.
    pub(crate) fn map_ring(&self, offset: u64, bytes: usize) -> Result<Part> {
        let len = self.file.len()?;
        let inside = offset.checked_add(bytes as u64).is_some_and(|end| end <= len);
        if !inside || !offset.is_multiple_of(PAGE) {
            return Err(Error::Protocol("the peer's ring is not in its memory"));
        }
        Mapping::new(&self.file.file, offset, bytes).map(Part::from)
    }

    /// Whether the peer's table allows `access` to `bytes` bytes from `at` on.
    #[inline]
    pub(crate) fn permits(&self, at: RemoteAddress, bytes: usize, access: Access) -> bool {
        permits(self.table.words(), at, bytes, access)
    }

    /// Maps the peer's `bytes` bytes at `at` by themselves, if its key allows `access` to all of
    /// them. What follows the range on its last page is mapped with it, and not reached.
    pub(crate) fn map(&mut self, at: RemoteAddress, bytes: usize, access: Access) -> Result<Part> {
        if !self.permits(at, bytes, access) {
            return Err(Error::RemoteAccess);
        }
        self.segment_of(at.addr, bytes).ok_or(Error::RemoteAccess)?;
        let start = at.addr % PAGE;
        let len = start as usize + bytes; // inside of the file, just checked
        let charge =
            self.file.account.charge(len as u64).ok_or(Error::OutOfAddresses { bytes: len })?;
        let mapping = if access.contains(Access::REMOTE_WRITE) {
            Mapping::new(&self.file.file, at.addr - start, len)?
        } else {
            Mapping::read_only(&self.file.file, at.addr - start, len)?
        };
        let mapping = Arc::new(mapping.charged(Some(charge)));
        Ok(Part::new(mapping, start, bytes).expect("mapped as asked"))
    }

    /// Where the peer's `bytes` bytes at `addr` are mapped, if `key` allows `access` to all of
    /// them.
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

    /// Where `bytes` bytes from `offset` on are mapped, whatever the table says: for what the peer
    /// wants to be read there.
    #[inline]
    pub(super) fn at(&mut self, offset: u64, bytes: usize) -> Option<*mut u8> {
        let last = self.windows.first().and_then(|window| window.at(offset, bytes));
        if last.is_some() {
            return last;
        }
        self.find(offset, bytes)
    }

    /// Finds the segment, or maps it now.
    #[cold]
    fn find(&mut self, offset: u64, bytes: usize) -> Option<*mut u8> {
        match self.windows.iter().position(|window| window.at(offset, bytes).is_some()) {
            Some(found) => self.windows.swap(0, found),
            None => self.open(offset, bytes)?,
        }
        self.windows.first()?.at(offset, bytes)
    }

    /// Maps the segment that has these bytes, if there is one: perhaps again, since the file has
    /// grown.
    fn open(&mut self, offset: u64, bytes: usize) -> Option<()> {
        let (number, start, len) = self.segment_of(offset, bytes)?;
        let charge = self.file.charge(number, len)?;
        let mapping = Mapping::new(&self.file.file, start, len).ok()?.charged(charge);
        // Only now: if there is no room for more of it, what is mapped of it stays so.
        self.windows.retain(|window| window.start != start);
        self.windows.insert(0, Window { start, mapping });
        Some(())
    }

    /// The segment that these bytes lie in as a whole, where it starts, and how much of it the file
    /// has.
    fn segment_of(&self, offset: u64, bytes: usize) -> Option<(usize, u64, usize)> {
        let (number, _) = place(offset)?;
        let (start, len) = segment(number);
        let end = (start + len).min(self.file.len().ok()?);
        let inside = offset.checked_add(bytes as u64).is_some_and(|needed| needed <= end);
        let len = usize::try_from(end.checked_sub(start)?).ok()?;
        inside.then_some((number, start, len))
    }

    #[cfg(test)]
    pub(super) fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.windows.iter().map(|window| &window.mapping)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    use super::super::addresses::MOST_OF_PEER;
    use super::*;

    #[test]
    fn what_is_mapped_stays_so_if_there_is_no_room_for_what_the_file_grows_by() {
        let (start, _) = segment(FREE_SEGMENTS); // the first that is counted
        let file = memfd_create("x", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let set_pages = |file: &OwnedFd, pages| {
            ftruncate(file, i64::try_from(start + pages * PAGE).unwrap()).unwrap();
        };
        set_pages(&file, 1);
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        let grown = file.try_clone().unwrap();
        let mut peer =
            PeerArena::new(PeerFile::new(Passed(file).into(), Peer::Unknown).unwrap()).unwrap();
        let place = peer.at(start, 8).unwrap();
        set_pages(&grown, 2);
        let rest = peer.file.account.charge(MOST_OF_PEER - 2 * PAGE).unwrap();
        assert_eq!(peer.at(start + PAGE, 8), None);
        assert_eq!(peer.at(start, 8), Some(place), "it was unmapped all the same");
        drop(rest);
        assert!(peer.at(start + PAGE, 8).is_some());
        assert_eq!(peer.mappings().count(), 1, "the smaller window is replaced");
    }
}
