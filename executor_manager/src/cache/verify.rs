//! Whether a file is the library that it is said to be, found out on a thread of its own: the manager's loop does not
//! wait while a file is read.
//!
//! * One file is read at a time, and [`MOST_WAITING`] wait. What comes when there are more is not kept.
//! * A file that is sealed stays what it was found to be.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use rfaas_program::poll_loop::Bell;
use rfaas_program::sealed_file::{self, NotSealed, reopen};
use rfaas_protocol::library::{LibraryHash, LibraryHasher};

use super::Key;

/// Files that wait to be read.
const MOST_WAITING: usize = 16;
/// Bytes read at a time: they stay in the processor's cache until they are hashed.
const CHUNK: usize = 256 << 10;
/// Stack of the thread.
const STACK_BYTES: usize = 256 << 10;

/// Why a file is not kept.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It can still change, or is not as large as was announced.
    #[error(transparent)]
    NotSealed(#[from] NotSealed),
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

fn verify(file: OwnedFd, key: &Key) -> Result<File, Unfit> {
    sealed_file::check(&file, key.bytes.into())?;
    let file = reopen(&file)?;
    let mut hasher = LibraryHasher::default();
    let mut chunk = vec![0; CHUNK.min(key.bytes as usize)];
    let mut at = 0;
    while at < u64::from(key.bytes) {
        let read = file.read_at(&mut chunk, at)?;
        if read == 0 {
            return Err(NotSealed::Size { bytes: at }.into());
        }
        hasher.update(&chunk[..read]);
        at += read as u64;
    }
    let hash = hasher.finish();
    if hash == key.hash { Ok(file) } else { Err(Unfit::Differs { hash }) }
}
