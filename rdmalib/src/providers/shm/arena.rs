//! A protection domain's memory: one growable sealed memfd with its key table inside.
//!
//! ```text
//!   offset 0            key table: KEYS × [key|access, offset, bytes, unused]
//!   then                segments: regions and rings, page-aligned; the file grows, it never shrinks
//! ```
//! The owner maps segment by segment (`space`). So does a peer, when it first uses something in a
//! segment; it finds a region through the table. So no descriptor travels for a registration.
//!
//! A remote address is an offset in the file. A process that has the file can write all of it, the
//! table included: the kernel keeps a peer inside the *domain*, and only the peer's own device
//! keeps it inside a *region*. Tenants that must not trust each other get domains of their own.
//! * SEALED: the file cannot shrink (F_SEAL_SHRINK, `memfd_create(2)`), so no access that was
//!   inside once can fault later. Checked on every file that a peer sends.
//! * FIXED: a peer has the file too, and could make it grow by as many pages as the machine has. A
//!   domain whose size is known when it is made is sealed against that (F_SEAL_GROW).
//!
//! Dropping a region clears its key before its memory is given back. A peer that has just checked
//! the key may still finish the copy that it is in; a network card would have finished it before
//! the key is gone. Memory that must not change after a peer was cut off is not to be handed out
//! again. A range that a peer has mapped by itself (`map_remote`) stays mapped there, as its
//! segment does. The last region of a domain of which nothing else is left is not given back:
//! nobody can get its place any more, and a peer that has it mapped keeps its bytes as they were.
//!
//! The next key of a table slot differs from its last ones by a generation.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};

use super::mapping::{Mapping, Part, SharedFile};
use super::space::{
    DATA_START, GENERATIONS, KEY_INDEX_BITS, KEYS, PAGE, SEGMENTS, Space, WORDS_PER_KEY, place,
    segment,
};
use crate::contract;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::types::{Access, Error, RemoteAddress, Result};
use rdmalib_ring::Words;

const TOO_LARGE: Error = Error::InvalidArgument("a region of this size is not addressable");

/// The memory of a domain, at its owner.
#[derive(Debug)]
pub(crate) struct Arena {
    file: SharedFile,
    map: Arc<Map>,
    books: Mutex<Books>,
}

/// Where the file is mapped; also for objects that outlive the domain.
#[derive(Debug)]
pub(crate) struct Map {
    table: Mapping,
    segments: [OnceLock<Arc<Mapping>>; SEGMENTS],
}

/// Which parts of the file and of the table are free.
#[derive(Debug)]
struct Books {
    file_bytes: u64,
    /// It stays as large (FIXED).
    fixed: bool,
    space: Space,
    free_keys: Vec<u16>,
    /// Last generation of each slot that was ever used, so that the next key differs.
    generations: Vec<u32>,
    /// What `generations` starts from: another number in each domain, so that a key of one domain
    /// hardly ever means something in another.
    first_generation: u32,
}

impl Arena {
    /// A domain that grows as it is used.
    pub(crate) fn new() -> Result<Arc<Arena>> {
        Self::with(DATA_START, false)
    }

    /// A domain of a file that has room for `bytes` bytes, in whole pages, and never grows (FIXED).
    pub(crate) fn fixed(bytes: u64) -> Result<Arc<Arena>> {
        let number = Space::default().closed_segment(bytes).ok_or(TOO_LARGE)?;
        let (start, bytes) = segment(number);
        Self::with(start + bytes, true)
    }

    fn with(file_bytes: u64, fixed: bool) -> Result<Arc<Arena>> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create("rdmalib-shm", flags).map_err(|e| Error::os("memfd_create", e))?;
        set_len(&file, file_bytes)?;
        let mut seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        seals.set(SealFlag::F_SEAL_GROW, fixed);
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| Error::os("F_ADD_SEALS", e))?;
        let file = SharedFile::new(file.into());
        let table = Mapping::new(&file, 0, DATA_START as usize)?;
        let books = Books {
            file_bytes,
            fixed,
            space: Space::default(),
            free_keys: Vec::new(),
            generations: Vec::new(),
            // Knuth's multiplicative hash: neighbours are far apart.
            first_generation: crate::process::next_number().wrapping_mul(2_654_435_761)
                % GENERATIONS,
        };
        let map = Map { table, segments: std::array::from_fn(|_| OnceLock::new()) };
        Ok(Arc::new(Arena { file, map: Arc::new(map), books: Mutex::new(books) }))
    }

    /// Where the file is mapped.
    pub(super) fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// The descriptor that a peer gets when it connects.
    pub(super) fn file(&self) -> &SharedFile {
        &self.file
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range of whole pages, zeroed; returns its offset. Regions are released again; a ring's
    /// place is not used again while the domain lives, since a peer that has not noticed the end of
    /// the connection may still write there.
    pub(super) fn allocate(&self, bytes: usize) -> Result<(u64, Part)> {
        let rounded = (bytes as u64).checked_next_multiple_of(PAGE).ok_or(TOO_LARGE)?;
        let mut books = self.books();
        let offset = match books.space.take(rounded) {
            Some(offset) => offset,
            None => {
                self.open_segment(&mut books, rounded)?;
                books.space.take(rounded).expect("a segment that holds it was just opened")
            }
        };
        drop(books);
        let part = place(offset).and_then(|(number, at)| {
            Part::new(self.map.segments[number].get()?.clone(), at, bytes)
        });
        Ok((offset, part.expect("what is free lies in one open segment")))
    }

    fn open_segment(&self, books: &mut Books, bytes: u64) -> Result<()> {
        let number = books.space.closed_segment(bytes).ok_or(TOO_LARGE)?;
        let (start, bytes) = segment(number);
        if books.fixed && books.file_bytes < start + bytes {
            return Err(Error::InvalidArgument("the domain was made for less memory"));
        }
        // Mapped before the file grows: one too large to be mapped would be that for all peers.
        let mapping =
            Mapping::new(&self.file, start, usize::try_from(bytes).map_err(|_| TOO_LARGE)?)?;
        if books.file_bytes < start + bytes {
            set_len(&self.file, start + bytes)?;
            books.file_bytes = start + bytes;
        }
        self.map.segments[number]
            .set(Arc::new(mapping))
            .expect("closed until now, and the books are locked");
        books.space.open(number);
        Ok(())
    }

    fn release(&self, offset: u64, bytes: usize) {
        let rounded = (bytes as u64).next_multiple_of(PAGE);
        // Gives the pages back and zeroes the range for its next user.
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&**self.file, flags, offset as i64, rounded as i64) {
            Ok(()) => self.books().space.give(offset, rounded),
            Err(errno) => tracing::error!(%errno, "cannot give shared memory back; leaked"),
        }
    }

    fn publish_key(&self, offset: u64, bytes: usize, access: Access) -> Result<u32> {
        let mut books = self.books();
        let index = match books.free_keys.pop() {
            Some(index) => index,
            None if books.generations.len() < KEYS => {
                let first = books.first_generation;
                books.generations.push(first);
                (books.generations.len() - 1) as u16
            }
            None => return Err(Error::OutOfKeys { max: KEYS }),
        };
        // Generation 0 is skipped so that no key is 0.
        let last = &mut books.generations[usize::from(index)];
        *last = *last % GENERATIONS + 1;
        let key = *last << KEY_INDEX_BITS | u32::from(index);
        let entry = &self.map.table.words()[WORDS_PER_KEY * usize::from(index)..][..WORDS_PER_KEY];
        entry[1].store(offset, Ordering::Relaxed);
        entry[2].store(bytes as u64, Ordering::Relaxed);
        entry[0].store(u64::from(key) << 32 | u64::from(access.bits()), Ordering::Release);
        Ok(key)
    }

    fn revoke_key(&self, key: u32) {
        let index = key as usize & (KEYS - 1);
        self.map.table.words()[WORDS_PER_KEY * index].store(0, Ordering::Release); // before the memory is given back
        self.books().free_keys.push(index as u16);
    }
}

impl Map {
    /// Where a peer's `bytes` bytes for `at` belong, if it may write all of them. There is
    /// memory as long as this value lives.
    #[inline]
    pub(super) fn landing(&self, at: RemoteAddress, bytes: usize) -> Option<*mut u8> {
        if !permits(self.table.words(), at, bytes, Access::REMOTE_WRITE) {
            return None;
        }
        let (number, start) = place(at.addr)?;
        self.segments.get(number)?.get()?.at(start, bytes)
    }
}

/// Whether the key table allows `access` to `bytes` bytes from `at` on. Its words may be lies.
#[inline]
pub(super) fn permits(
    table: &[AtomicU64],
    at: RemoteAddress,
    bytes: usize,
    access: Access,
) -> bool {
    let index = at.key as usize & (KEYS - 1);
    let entry = &table[WORDS_PER_KEY * index..][..WORDS_PER_KEY];
    let head = entry[0].load(Ordering::Acquire);
    let (start, size) = (entry[1].load(Ordering::Relaxed), entry[2].load(Ordering::Relaxed));
    let allowed = Access::from_bits_truncate(head as u32).contains(access);
    if head >> 32 != at.key || at.key == 0 || !allowed || at.addr < start {
        return false;
    }
    let end = (at.addr.checked_add(bytes as u64), start.checked_add(size));
    matches!(end, (Some(end), Some(limit)) if end <= limit)
}

/// A registered region, at its owner. Dropping it revokes the key; the memory goes with the last
/// request that still refers to it.
#[derive(Debug)]
pub(crate) struct Region(Arc<RegionMemory>);

/// The memory of a region, also while a request that waits refers to it.
#[derive(Debug)]
pub(crate) struct RegionMemory {
    part: Part,
    offset: u64,
    bytes: usize,
    key: u32,
    access: Access,
    revoked: AtomicBool,
    arena: Arc<Arena>,
}

impl Region {
    pub(crate) fn new(arena: &Arc<Arena>, bytes: usize, access: Access) -> Result<Self> {
        let (offset, part) = arena.allocate(bytes)?;
        let key = match arena.publish_key(offset, bytes, access) {
            Ok(key) => key,
            Err(error) => {
                arena.release(offset, bytes);
                return Err(error);
            }
        };
        Ok(Region(Arc::new(RegionMemory {
            part,
            offset,
            bytes,
            key,
            access,
            revoked: AtomicBool::new(false),
            arena: arena.clone(),
        })))
    }

    #[inline]
    pub(crate) fn memory(&self) -> &Arc<RegionMemory> {
        &self.0
    }
}

impl contract::Region for Region {
    #[inline]
    fn len(&self) -> usize {
        self.0.bytes
    }

    #[inline]
    fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    #[inline]
    fn remote(&self) -> RemoteAddress {
        RemoteAddress { addr: self.0.offset, key: self.0.key.into() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.0.revoked.store(true, Ordering::Release);
        self.0.arena.revoke_key(self.0.key); // before the memory is given back
    }
}

impl RegionMemory {
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.part.as_ptr()
    }

    /// Its key, as the domain's table has it.
    #[inline]
    pub(super) fn key(&self) -> u32 {
        self.key
    }

    /// Where it starts in the domain's file.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    #[inline]
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    #[inline]
    pub(crate) fn revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Whether this memory lies in `arena`.
    #[inline]
    pub(crate) fn is_in(&self, arena: &Arc<Arena>) -> bool {
        Arc::ptr_eq(&self.arena, arena)
    }
}

impl Drop for RegionMemory {
    fn drop(&mut self) {
        if Arc::strong_count(&self.arena) > 1 {
            self.arena.release(self.offset, self.bytes);
        } // else the file goes as a whole
    }
}

/// Not beyond the limit of file sizes, which counts for memory files too: the kernel would end the
/// process (SIGXFSZ, `setrlimit(2)`).
fn set_len(file: &OwnedFd, bytes: u64) -> Result<()> {
    match getrlimit(Resource::RLIMIT_FSIZE) {
        Ok((limit, _)) if bytes > limit => return Err(Error::FileSizeLimit { bytes, limit }),
        _ => {}
    }
    let bytes = i64::try_from(bytes).map_err(|_| Error::InvalidArgument("region too large"))?;
    nix::unistd::ftruncate(file, bytes).map_err(|e| Error::os("ftruncate of shared memory", e))
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use proptest::prelude::*;

    use super::super::closer::Passed;
    use super::super::peer_arena::{PeerArena, PeerFile};
    use super::*;
    use crate::contract::Region as _;
    use crate::types::Peer;

    fn peer_of(arena: &Arena) -> PeerArena {
        let file = arena.file().try_clone().unwrap();
        PeerArena::new(PeerFile::new(Passed(file).into(), Peer::Unknown).unwrap()).unwrap()
    }

    const ALL: Access = Access::all();

    #[test]
    fn a_region_is_reached_through_its_key_and_no_further() {
        let arena = Arena::new().unwrap();
        let region = Region::new(&arena, 100, Access::LOCAL_WRITE | Access::REMOTE_WRITE).unwrap();
        let mut peer = peer_of(&arena);
        let at = region.remote();
        assert!(peer.translate(at, 100, Access::REMOTE_WRITE).is_some());
        assert!(peer.translate(at.offset(99), 1, Access::REMOTE_WRITE).is_some());
        assert!(peer.translate(at.offset(100), 0, Access::REMOTE_WRITE).is_some());
        for (at, bytes, access) in [
            (at, 101, Access::REMOTE_WRITE),
            (at.offset(100), 1, Access::REMOTE_WRITE),
            (at.offset(u64::MAX), 1, Access::REMOTE_WRITE),
            (at, usize::MAX, Access::REMOTE_WRITE),
            (at, 1, Access::REMOTE_READ),
            (RemoteAddress { key: at.key + 1, ..at }, 1, Access::REMOTE_WRITE),
            (RemoteAddress { key: 0, ..at }, 1, Access::REMOTE_WRITE),
            (RemoteAddress { key: at.key | 1 << 32, ..at }, 1, Access::REMOTE_WRITE),
        ] {
            assert_eq!(peer.translate(at, bytes, access), None, "{at:?} {bytes} {access:?}");
        }
    }

    #[test]
    fn a_freed_region_has_no_key_and_its_successor_another() {
        let arena = Arena::new().unwrap();
        let first = Region::new(&arena, 10, ALL).unwrap();
        let old = first.remote();
        drop(first);
        let mut peer = peer_of(&arena);
        assert_eq!(peer.translate(old, 1, Access::REMOTE_READ), None);
        let second = Region::new(&arena, 10, ALL).unwrap();
        assert_eq!(second.remote().addr, old.addr, "the memory is used again");
        assert_ne!(second.remote().key, old.key);
        assert_eq!(peer.translate(old, 1, Access::REMOTE_READ), None);
    }

    #[test]
    fn a_peer_follows_when_the_domain_grows() {
        let arena = Arena::new().unwrap();
        let mut peer = peer_of(&arena);
        let region = Region::new(&arena, 5 << 20, ALL).unwrap();
        let there = peer.translate(region.remote(), 5 << 20, Access::REMOTE_WRITE).unwrap();
        const LAST: usize = (5 << 20) - 1;
        // SAFETY: translate checked five megabytes from `there` on.
        let last = unsafe { there.add(LAST) };
        // SAFETY: nobody else uses them.
        unsafe { last.write_volatile(7) };
        // SAFETY: the region has five megabytes.
        let last = unsafe { region.as_ptr().add(LAST) };
        // SAFETY: its last byte, and the region is alive.
        assert_eq!(unsafe { last.read_volatile() }, 7);
    }

    #[test]
    fn memory_that_could_shrink_is_refused() {
        let file = memfd_create("x", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        set_len(&file, DATA_START).unwrap();
        assert!(matches!(
            PeerFile::new(Passed(file).into(), Peer::Unknown),
            Err(Error::Protocol(_))
        ));
        let pipe = nix::unistd::pipe().unwrap().0;
        assert!(matches!(
            PeerFile::new(Passed(pipe).into(), Peer::Unknown),
            Err(Error::Protocol(_))
        ));
    }

    #[test]
    fn a_fixed_domain_is_grown_by_nobody_who_has_its_file() {
        let arena = Arena::fixed(3 << 20).unwrap();
        let region = Region::new(&arena, 3 << 20, ALL).unwrap();
        assert!(peer_of(&arena).translate(region.remote(), 3 << 20, ALL).is_some());
        assert!(matches!(Region::new(&arena, 8 << 20, ALL), Err(Error::InvalidArgument(_))));
        let longer = i64::try_from(arena.books().file_bytes).unwrap() + 1;
        let file: &OwnedFd = arena.file();
        assert_eq!(nix::unistd::ftruncate(file, longer), Err(nix::errno::Errno::EPERM));
        let more = fallocate(file, FallocateFlags::empty(), 0, longer);
        assert_eq!(more, Err(nix::errno::Errno::EPERM));
    }

    #[test]
    fn a_table_full_of_lies_leads_nowhere() {
        let arena = Arena::new().unwrap();
        let mut peer = peer_of(&arena);
        let entry = &arena.map.table.words()[4..8];
        let key: u64 = 1 << KEY_INDEX_BITS | 1;
        entry[0].store(key << 32 | u64::from(ALL.bits()), Ordering::Relaxed);
        entry[1].store(u64::MAX - 5, Ordering::Relaxed);
        entry[2].store(u64::MAX, Ordering::Relaxed);
        for addr in [0, u64::MAX - 5, u64::MAX - 1, 1 << 40] {
            assert_eq!(peer.translate(RemoteAddress { addr, key }, 8, Access::REMOTE_WRITE), None);
        }
    }

    proptest! {
        /// The table may say what it likes: what a peer is to be given lies in a segment, and what
        /// we are to have of a peer lies in its file.
        #[test]
        fn whatever_the_table_says_a_place_is_inside_of_a_mapping(
            range in prop_oneof![Just((0, u64::MAX)), any::<(u64, u64)>()],
            segment_of_end in prop_oneof![Just(0), Just(2), 0..SEGMENTS],
            before_end in prop_oneof![3 => -100..200i64, 1 => any::<i64>()],
            past_end in prop_oneof![3 => -2..3i64, 1 => any::<i64>()],
        ) {
            let bytes = (before_end.wrapping_add(past_end) as usize).max(1);
            let arena = Arena::new().unwrap();
            for bytes in [1, 3 << 20] {
                arena.allocate(bytes).unwrap(); // in segments 0 and 2: what is between them is not mapped
            }
            let mut peer = peer_of(&arena);
            let key: u64 = 1 << KEY_INDEX_BITS | 1;
            let entry = &arena.map.table.words()[4..8];
            entry[0].store(key << 32 | u64::from(ALL.bits()), Ordering::Relaxed);
            entry[1].store(range.0, Ordering::Relaxed);
            entry[2].store(range.1, Ordering::Relaxed);
            let (start, len) = segment(segment_of_end);
            let at = RemoteAddress { addr: (start + len).wrapping_add_signed(-before_end), key };
            let inside = |at: *mut u8, mapping: &Mapping| {
                let offset = (at as usize).wrapping_sub(mapping.as_ptr() as usize);
                offset.checked_add(bytes).is_some_and(|end| end <= mapping.len())
            };
            if let Some(there) = arena.map.landing(at, bytes) {
                let mut segments = arena.map.segments.iter().filter_map(OnceLock::get);
                prop_assert!(segments.any(|segment| inside(there, segment)));
            }
            if let Some(there) = peer.translate(at, bytes, Access::REMOTE_WRITE) {
                prop_assert!(peer.mappings().any(|mapping| inside(there, mapping)));
            }
        }
    }
}
