//! The file of a library: in memory, without a name, and sealed, so that it stays as it is for everybody who has it.
//!
//! ```text
//!   the node has the library:   sealed file ─────────────────────────────────────────▶ loaded
//!   it has not:                 client's code ──copied, hashed──▶ file ──sealed──▶ loaded
//!                                                 (the manager's, if that keeps libraries: `filled` is closed)
//! ```
//! * The client can change its code at any time. What is hashed is the copy that becomes the file.
//! * A file that is sealed can be read as a slice: its bytes cannot change, and it cannot shrink.
//!
//! Elsewhere: keeping files for others (the executor manager's `cache`).

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZero;
use std::ops::Deref;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use rdmalib::Region;
use rfaas_program::local_channel::LocalChannel;
use rfaas_program::sealed_file;
use rfaas_protocol::assignment::{FILLED_DESCRIPTOR, LIBRARY_DESCRIPTOR, LibraryFile};
use rfaas_protocol::library::{LibraryHash, LibraryHasher};

use super::error::LoadError;

/// Bytes that are copied and hashed at a time: they stay in the processor's cache in between.
const CHUNK: usize = 256 << 10;

/// The file that an executor is given by its manager, if any.
#[derive(Debug)]
pub enum GivenFile {
    /// None.
    Absent,
    /// One to be filled with the client's code.
    Empty {
        /// The file.
        file: OwnedFd,
        /// To be closed when it is sealed.
        filled: OwnedFd,
    },
    /// One that has the library.
    Sealed(OwnedFd),
    /// None: the library is loaded.
    Preloaded,
}

/// The descriptors that this process was started with: for a [`GivenFile`], or a channel and files of libraries.
#[derive(Debug)]
pub struct Inherited(Vec<Handed>);

/// One of them.
#[derive(Debug)]
enum Handed {
    /// This number was open at the start.
    Number(RawFd),
    /// This was passed.
    Descriptor(OwnedFd),
}

impl Inherited {
    /// Looks. To be called before this process opens anything, which could get these numbers.
    pub fn at_start() -> Self {
        let numbers = [LIBRARY_DESCRIPTOR, FILLED_DESCRIPTOR].into_iter();
        Inherited(numbers.take_while(|&number| is_open(number)).map(Handed::Number).collect())
    }

    /// Has those that were passed to a process that was cloned, in the order of their numbers.
    pub fn passed(descriptors: Vec<OwnedFd>) -> Self {
        Inherited(descriptors.into_iter().map(Handed::Descriptor).collect())
    }

    /// Takes the channel, and the files of `count` libraries. An error if they are not there.
    pub fn take_channel(self, count: usize) -> io::Result<(LocalChannel, Vec<OwnedFd>)> {
        let mut next = self.in_order();
        let channel = LocalChannel::from(next()?);
        let files: io::Result<_> = (0..count).map(|_| next()).collect();
        Ok((channel, files?))
    }

    fn in_order(self) -> impl FnMut() -> io::Result<OwnedFd> {
        let mut descriptors = self.0.into_iter();
        move || descriptors.next().ok_or(nix::errno::Errno::EBADF)?.take()
    }

    /// Takes those that the assignment names. An error if they are not there.
    pub fn take(self, library: LibraryFile) -> io::Result<GivenFile> {
        let mut next = self.in_order();
        Ok(match library {
            LibraryFile::Absent => GivenFile::Absent,
            LibraryFile::Empty => GivenFile::Empty { file: next()?, filled: next()? },
            LibraryFile::Sealed => GivenFile::Sealed(next()?),
            LibraryFile::Preloaded => GivenFile::Preloaded,
        })
    }
}

impl Handed {
    fn take(self) -> io::Result<OwnedFd> {
        match self {
            Handed::Number(number) => take(number),
            Handed::Descriptor(descriptor) => Ok(descriptor),
        }
    }
}

fn is_open(number: RawFd) -> bool {
    // SAFETY: fcntl(2) with F_GETFD reads and writes no memory, whatever the number is.
    unsafe { nix::libc::fcntl(number, nix::libc::F_GETFD) != -1 }
}

/// Takes a descriptor that this process was started with. What functions start does not inherit it.
fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it was open before this process opened anything, so that no part of it has got this number; nobody else
    // closes it; and `Inherited` is taken once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(descriptor)
}

/// Where the code of a library comes from.
#[derive(Debug)]
pub enum Code {
    /// The client writes it.
    FromClient {
        /// Where it does.
        region: Region,
        /// What becomes of it, and what is closed then. `None`: a file of our own.
        into: Option<(OwnedFd, OwnedFd)>,
    },
    /// The node has it.
    FromNode(OwnedFd),
}

/// A sealed file.
#[derive(Debug)]
pub struct SealedFile {
    file: OwnedFd,
    bytes: usize,
}

impl SealedFile {
    /// Returns the file of the library that `announced` is the hash of, and which has `bytes` bytes.
    pub fn of(code: Code, bytes: usize, announced: &LibraryHash) -> Result<Self, LoadError> {
        match code {
            Code::FromNode(file) => SealedFile::new(file, bytes),
            Code::FromClient { region, into } => {
                let (file, filled) = match into {
                    Some((file, filled)) => (file, Some(filled)),
                    None => {
                        let file = sealed_file::create(c"functions");
                        (file.map_err(failed("memfd_create"))?, None)
                    }
                };
                let mut file = File::from(file);
                let received = copy(&region, &mut file)?;
                if received != *announced {
                    return Err(LoadError::Differs { received });
                }
                sealed_file::seal(&file).map_err(failed("fcntl"))?;
                drop(filled); // the manager may have it now; no code of it has run
                SealedFile::new(file.into(), bytes)
            }
        }
    }

    /// Checks that `file` is sealed and has `bytes` bytes.
    fn new(file: OwnedFd, bytes: usize) -> Result<Self, LoadError> {
        sealed_file::check(&file, bytes as u64).map_err(|error| {
            let source = format!("it is not the library that was announced: {error}");
            let source = io::Error::other(source);
            LoadError::Memory { call: "taking the library of the node", source }
        })?;
        Ok(SealedFile { file, bytes })
    }

    /// Returns its bytes.
    pub fn map(&self) -> Result<MappedFile<'_>, LoadError> {
        let nothing = || failed("mmap")(nix::errno::Errno::EINVAL); // of a library without a byte
        let bytes = NonZero::new(self.bytes).ok_or_else(nothing)?;
        let flags = MapFlags::MAP_PRIVATE;
        // SAFETY: a new mapping, at an address that the kernel chooses: it takes nobody's memory.
        let first = unsafe { mmap(None, bytes, ProtFlags::PROT_READ, flags, &self.file, 0) };
        Ok(MappedFile { first: first.map_err(failed("mmap"))?, bytes, _of: self })
    }

    /// Returns the descriptor.
    pub fn into_descriptor(self) -> OwnedFd {
        self.file
    }
}

/// The bytes of a sealed file.
pub struct MappedFile<'a> {
    first: NonNull<c_void>,
    bytes: NonZero<usize>,
    _of: &'a SealedFile,
}

impl Deref for MappedFile<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped, readable, until this is dropped. They are those of a file that is sealed,
        // whose size was looked at since: nobody can change them or take them away.
        unsafe { std::slice::from_raw_parts(self.first.cast().as_ptr(), self.bytes.get()) }
    }
}

impl Drop for MappedFile<'_> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no slice of it outlives this.
        let unmapped = unsafe { munmap(self.first, self.bytes.get()) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours");
    }
}

/// Appends the code in `region` to `file`; returns its hash.
fn copy(region: &Region, file: &mut File) -> Result<LibraryHash, LoadError> {
    let mut chunk = vec![0; CHUNK.min(region.len())];
    let mut hasher = LibraryHasher::default();
    for offset in (0..region.len()).step_by(CHUNK) {
        let chunk = &mut chunk[..CHUNK.min(region.len() - offset)];
        let memory = |source| LoadError::Memory { call: "reading the code", source };
        region.read(offset, chunk).map_err(|error| memory(io::Error::other(error)))?;
        hasher.update(chunk);
        let written = file.write_all(chunk);
        written.map_err(|source| LoadError::Memory { call: "write", source })?;
    }
    Ok(hasher.finish())
}

fn failed(call: &'static str) -> impl Fn(nix::errno::Errno) -> LoadError {
    move |errno| LoadError::Memory { call, source: errno.into() }
}

/// The descriptor.
impl AsFd for SealedFile {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}
