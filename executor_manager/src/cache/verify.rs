//! Whether a file is the library that it is said to be, found out on a thread of its own: the manager's loop does not
//! wait while a file is read.
//!
//! * One file is read at a time, and [`MOST_WAITING`] wait. What comes when there are more is not kept.
//! * A file that is sealed stays what it was found to be.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use rfaas_program::poll_loop::Bell;
use rfaas_protocol::library::{LibraryHash, LibraryHasher};

use super::Key;

/// Files that wait to be read.
const MOST_WAITING: usize = 16;
/// Bytes read at a time: they stay in the processor's cache until they are hashed.
const CHUNK: usize = 256 << 10;
/// Stack of the thread.
const STACK_BYTES: usize = 256 << 10;

/// What makes a file stay as it is.
pub const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// Why a file is not kept.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It can still change.
    #[error("it is not sealed")]
    NotSealed,
    /// It is not as large as was announced.
    #[error("it has {bytes} bytes")]
    Size {
        /// Its size.
        bytes: u64,
    },
    /// It is another library.
    #[error("its SHA-256 is {hash}")]
    Differs {
        /// What it has.
        hash: LibraryHash,
    },
    /// It cannot be looked at.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

/// A file that was read: the library of `key`, or not.
#[derive(Debug)]
pub struct Verdict {
    /// What it should be.
    pub key: Key,
    /// The file, to be read only.
    pub file: Result<File, Unfit>,
}

/// The thread, and the ways to it and back.
#[derive(Debug)]
pub struct Verifier {
    waiting: SyncSender<(Key, OwnedFd)>,
    verdicts: Receiver<Verdict>,
}

impl Verifier {
    /// Starts the thread, which rings `bell` after each verdict. It ends when this is dropped.
    pub fn start(bell: Bell) -> io::Result<Self> {
        let (waiting, files) = mpsc::sync_channel::<(Key, OwnedFd)>(MOST_WAITING);
        let (judged, verdicts) = mpsc::channel();
        thread::Builder::new().name("verifier".into()).stack_size(STACK_BYTES).spawn(
            move || {
                for (key, file) in files {
                    let file = verify(file, &key);
                    if judged.send(Verdict { key, file }).is_err() {
                        return; // nobody asks any more
                    }
                    bell.ring();
                }
            },
        )?;
        Ok(Verifier { waiting, verdicts })
    }

    /// Has `file` read. False if too many wait.
    pub fn read(&self, key: Key, file: OwnedFd) -> bool {
        self.waiting.try_send((key, file)).is_ok()
    }

    /// The next verdict, if there is one.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdicts.try_recv().ok()
    }
}

/// Checks that `file` is sealed and has `bytes` bytes: cheap, and no proof of what it is.
pub fn is_sealed(file: &OwnedFd, bytes: u32) -> Result<(), Unfit> {
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(io::Error::from)?;
    if !SealFlag::from_bits_truncate(seals).contains(SEALS) {
        return Err(Unfit::NotSealed);
    }
    match u64::try_from(nix::sys::stat::fstat(file).map_err(io::Error::from)?.st_size) {
        Ok(size) if size == u64::from(bytes) => Ok(()),
        Ok(bytes) => Err(Unfit::Size { bytes }),
        Err(_) => Err(Unfit::Size { bytes: 0 }),
    }
}

/// Opens a file again, to be read only: whoever gets it shares neither place nor flags with others.
pub fn reopen(file: &impl AsRawFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn verify(file: OwnedFd, key: &Key) -> Result<File, Unfit> {
    is_sealed(&file, key.bytes)?;
    let file = reopen(&file)?;
    let mut hasher = LibraryHasher::default();
    let mut chunk = vec![0; CHUNK.min(key.bytes as usize)];
    let mut at = 0;
    while at < u64::from(key.bytes) {
        let read = file.read_at(&mut chunk, at)?;
        if read == 0 {
            return Err(Unfit::Size { bytes: at });
        }
        hasher.update(&chunk[..read]);
        at += read as u64;
    }
    let hash = hasher.finish();
    if hash == key.hash { Ok(file) } else { Err(Unfit::Differs { hash }) }
}
