//! The function libraries that this node keeps, so that a client that deploys one again need not send it.
//!
//! ```text
//!   open ─▶ held ──▶ Library::Sealed: the executor loads it
//!     └───▶ not held ─▶ Library::Empty: a file that the executor fills, hashes, seals ──closes `filled`──▶
//!             read, looked at: sealed, of the announced size ──charged──▶ read on the `verifier` thread:
//!             the announced hash ─▶ held
//! ```
//! * A library is found by the tenant that it came from, and by nobody else unless the operator lets tenants share.
//!   No answer depends on what another tenant has. What is left: room. Whoever finds that its own libraries are gone
//!   knows that others have used much.
//! * HOSTILE - an executor that is started with a file runs no foreign code until that is sealed. Still nothing
//!   here believes it: the manager has made the file, and looks at seals, size and hash itself.
//! * BOUNDED - `executor.cache_mb`, and [`MOST_LIBRARIES`]. What is not held yet is memory of its executor.
//! * Nothing is written to a disk: a manager starts with an empty cache.
//!
//! Which go is decided by `entries`; the files are read by `verify`. Elsewhere: filling and loading them (the
//! executor's `library`).

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use rdmalib::Peer;
use rfaas_config::CacheSharing;
use rfaas_program::inherited::{descriptor_limit, told};
use rfaas_program::poll_loop::Bell;
use rfaas_program::sealed_file::{self, reopen};
use rfaas_protocol::assignment::LibraryFile;

use crate::request::Deployment;

mod entries;
mod verify;

use entries::{Entries, Key, Tenant};
use verify::Verifier;

/// Most libraries that are held, if the descriptors suffice: each costs one.
const MOST_LIBRARIES: usize = 1024;

/// What an executor is started with.
#[derive(Debug)]
pub enum Library {
    /// Nothing: it is not to be kept.
    Absent,
    /// A file that it fills, and what it closes then.
    Empty {
        /// The file.
        file: OwnedFd,
        /// To be closed when the file is sealed.
        filled: OwnedFd,
    },
    /// The library.
    Sealed(OwnedFd),
    /// Likewise, one that executors which stand by have loaded.
    Preloaded(OwnedFd),
}

impl Library {
    /// How the assignment of an executor that was started for it says it.
    pub fn kind(&self) -> LibraryFile {
        match self {
            Library::Absent => LibraryFile::Absent,
            Library::Empty { .. } => LibraryFile::Empty,
            Library::Sealed(_) | Library::Preloaded(_) => LibraryFile::Sealed,
        }
    }

    /// The descriptors, in the order in which an executor gets them.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let (file, filled) = match self {
            Library::Absent => (None, None),
            Library::Empty { file, filled } => (Some(file), Some(filled)),
            Library::Sealed(file) | Library::Preloaded(file) => (Some(file), None),
        };
        file.into_iter().chain(filled).map(AsFd::as_fd)
    }
}

/// Names a file that an executor fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FillingId(u64);

/// A file that an executor fills.
#[derive(Debug)]
struct Filling {
    key: Key,
    file: OwnedFd,
    /// At its end when the executor has closed the other one, or is gone.
    filled: File,
}

/// All libraries of this node.
#[derive(Debug)]
pub struct Cache {
    sharing: CacheSharing,
    entries: Entries,
    files: HashMap<Key, File>,
    filling: BTreeMap<FillingId, Filling>,
    next: u64,
    verifier: Option<Verifier>,
}

impl Cache {
    /// An empty one, of `bytes` bytes at most; none: it stays so. `bell` is rung when there is something to
    /// [take in](Self::work).
    pub fn new(bytes: u64, sharing: CacheSharing, bell: Bell) -> Self {
        let verifier = match bytes {
            0 => None,
            _ => Verifier::start(bell)
                .inspect_err(|error| tracing::warn!(%error, "no thread: no library is kept"))
                .ok(),
        };
        let bytes = if verifier.is_some() { bytes } else { 0 };
        let entries = Entries::new(bytes, most_libraries());
        let (files, filling) = (HashMap::new(), BTreeMap::new());
        Cache { sharing, entries, files, filling, next: 0, verifier }
    }

    /// What an executor is to be started with for `deployment`. `origin`: where its client is. `is_signed`: a resource
    /// manager has signed whose lease it is.
    pub fn open(&mut self, deployment: &Deployment, origin: Peer, is_signed: bool) -> Library {
        let user = match origin {
            Peer::User(user) => Some(user),
            _ => None,
        };
        let tenant = match self.sharing {
            CacheSharing::Cluster => Some(Tenant::Everybody),
            // Who says itself what it is called, and of which the user is not known, has nothing of its own.
            CacheSharing::Tenant if is_signed || user.is_some() => {
                Tenant::client(&deployment.owner, user)
            }
            CacheSharing::Tenant => None,
        };
        let (hash, bytes) = (deployment.code_hash, deployment.code_bytes);
        match tenant.map(|tenant| Key { tenant, hash, bytes }) {
            Some(key) if self.entries.could_hold(bytes) => self.open_key(key),
            _ => Library::Absent,
        }
    }

    fn open_key(&mut self, key: Key) -> Library {
        if self.entries.find(&key) {
            match self.files.get(&key).map(reopen) {
                Some(Ok(file)) => {
                    tracing::debug!(hash = %key.hash, "library found");
                    return Library::Sealed(file.into());
                }
                error => {
                    tracing::debug!(hash = %key.hash, ?error, "library lost");
                    self.entries.cancel(&key);
                    self.files.remove(&key);
                }
            }
        }
        let (hash, bytes) = (key.hash, key.bytes);
        match self.empty(key) {
            Ok(library) => {
                tracing::debug!(%hash, bytes, "library not here");
                library
            }
            Err(error) => {
                let error = told(&error);
                tracing::warn!(error, "no file for a library: it is not kept");
                Library::Absent
            }
        }
    }

    /// A file for an executor to fill, which is looked at when it is filled.
    fn empty(&mut self, key: Key) -> io::Result<Library> {
        let file = sealed_file::create(c"functions")?;
        let (filled, filled_by_executor) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let ours = file.try_clone()?;
        self.next += 1;
        let filling = Filling { key, file: ours, filled: filled.into() };
        self.filling.insert(FillingId(self.next), filling);
        Ok(Library::Empty { file, filled: filled_by_executor })
    }

    /// Descriptors that are readable when an executor has filled a file.
    pub fn descriptors(&self) -> impl Iterator<Item = (FillingId, BorrowedFd<'_>)> {
        self.filling.iter().map(|(id, filling)| (*id, filling.filled.as_fd()))
    }

    /// Takes in what executors have filled and what was found to be the right library. Returns whether there was
    /// anything.
    pub fn work(&mut self) -> bool {
        let ended: Vec<_> = self
            .filling
            .iter()
            .filter(|(_, filling)| filling.has_ended())
            .map(|(id, _)| *id)
            .collect();
        let mut worked = !ended.is_empty();
        for id in ended {
            if let Some(filling) = self.filling.remove(&id) {
                self.take_in(filling);
            }
        }
        while let Some(verdict) = self.verifier.as_ref().and_then(Verifier::verdict) {
            worked = true;
            match verdict.file {
                Ok(file) => {
                    self.entries.verified(&verdict.key);
                    let (libraries, bytes) = self.entries.held();
                    tracing::debug!(hash = %verdict.key.hash, libraries, bytes, "library kept");
                    self.files.insert(verdict.key, file);
                }
                Err(why) => {
                    tracing::debug!(hash = %verdict.key.hash, %why, "library not kept");
                    self.entries.cancel(&verdict.key);
                }
            }
        }
        worked
    }

    /// Has a file read that an executor has filled, if it may be kept.
    fn take_in(&mut self, Filling { key, file, .. }: Filling) {
        if let Err(why) = sealed_file::check(&file, key.bytes.into()) {
            tracing::debug!(hash = %key.hash, %why, "library not kept");
            return;
        }
        let mut gone = Vec::new();
        if !self.entries.charge(key.clone(), &mut gone) {
            tracing::debug!(hash = %key.hash, "library not kept: it is here already, or too many come at once");
            return;
        }
        for gone in gone {
            tracing::debug!(hash = %gone.hash, "library makes room");
            self.files.remove(&gone);
        }
        if !self.verifier.as_ref().is_some_and(|verifier| verifier.read(key.clone(), file)) {
            tracing::debug!(hash = %key.hash, "library not kept: too many come at once");
            self.entries.cancel(&key);
        }
    }
}

impl Filling {
    /// Whether the executor has closed its end. Something that it has written there instead means nothing, and ends
    /// it too.
    fn has_ended(&self) -> bool {
        let read = (&self.filled).read(&mut [0]);
        !matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// An eighth of the descriptors: the others are for clients and executors.
fn most_libraries() -> usize {
    usize::try_from(descriptor_limit() / 8).unwrap_or(MOST_LIBRARIES).min(MOST_LIBRARIES)
}

#[cfg(test)]
mod tests;
