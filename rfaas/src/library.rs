//! The library of a deployment: its file is read, and hashed.
//!
//! A client keeps what it has deployed last ([`KnownLibraries`]). A file with the same bytes has the same hash and the
//! same functions, and comparing takes a fifth of the time that hashing does. Nothing else of a file tells that it is
//! the same: what is written through a mapping may leave its times as they are.
//!
//! Elsewhere: which files are read, and how much of them (`rfaas_protocol::library::file`).

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use rfaas_protocol::library::file::{FileError, open, read_all};
use rfaas_protocol::library::{LibraryHash, exported_functions};

/// Bytes of libraries that a client keeps: some of usual size, or one that brings a language's runtime.
const MOST_KEPT_BYTES: usize = 64 << 20;
/// Bytes that are read and compared at a time: they stay in the processor's cache in between.
const CHUNK: usize = 64 << 10;

/// A library that can be sent.
pub(crate) struct Library {
    /// Its file.
    pub(crate) code: Vec<u8>,
    /// What nodes know it by.
    pub(crate) hash: LibraryHash,
    /// Where it was read, for errors.
    pub(crate) path: PathBuf,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Library({} bytes, {})", self.code.len(), self.hash)
    }
}

/// The libraries that a client has deployed last.
#[derive(Debug, Default)]
pub(crate) struct KnownLibraries(Mutex<Kept>);

/// In the order in which they were deployed.
#[derive(Debug, Default)]
struct Kept(Vec<(PathBuf, Arc<Library>)>);

impl KnownLibraries {
    /// Returns the library at `path`, if it is one.
    pub(crate) fn read(&self, path: &Path) -> Result<Arc<Library>> {
        let unreadable = |source| Error::LibraryUnreadable { path: path.to_owned(), source };
        let unusable = |source| Error::Library { path: path.to_owned(), source };
        let refused = |error| match error {
            FileError::Unreadable(source) => unreadable(source),
            FileError::Unusable(source) => unusable(source),
        };
        let (mut file, bytes) = open(path).map_err(refused)?;
        let known = self.kept(|kept| kept.last_at(path));
        let library = match known.filter(|known| known.code.len() as u64 == bytes) {
            Some(known) if is_all_of(&mut file, &known.code).map_err(unreadable)? => known,
            _ => {
                file.rewind().map_err(unreadable)?;
                let code = read_all(file, bytes).map_err(refused)?;
                exported_functions(&code).map_err(unusable)?;
                let hash = LibraryHash::of(&code);
                Arc::new(Library { code, hash, path: path.to_owned() })
            }
        };
        self.kept(|kept| kept.note(path, &library));
        Ok(library)
    }

    fn kept<T>(&self, with: impl FnOnce(&mut Kept) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    /// Returns what was last deployed from `path`.
    fn last_at(&self, path: &Path) -> Option<Arc<Library>> {
        self.0.iter().find(|(of, _)| of == path).map(|(_, library)| Arc::clone(library))
    }

    /// Keeps `library`, which was just read at `path`. What was deployed longest ago makes room.
    fn note(&mut self, path: &Path, library: &Arc<Library>) {
        self.0.retain(|(of, _)| of != path);
        self.0.push((path.to_owned(), Arc::clone(library)));
        let mut bytes: usize = self.0.iter().map(|(_, library)| library.code.len()).sum();
        while bytes > MOST_KEPT_BYTES {
            bytes -= self.0.remove(0).1.code.len();
        }
    }
}

/// Returns whether `code` is all that is in `file`, which is read from its begin.
fn is_all_of(file: &mut File, code: &[u8]) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK];
    let mut left = code;
    loop {
        let read = match file.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        match left.split_at_checked(read) {
            _ if read == 0 => return Ok(left.is_empty()),
            Some((expected, rest)) if expected == &chunk[..read] => left = rest,
            _ => return Ok(false),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // what fails in a helper is the test
mod tests {
    use std::process::Command;

    use rfaas_protocol::library::{LibraryError, MAX_LIBRARY_BYTES};

    use super::*;

    fn refused(path: &Path) -> LibraryError {
        match KnownLibraries::default().read(path) {
            Err(Error::Library { source, path: named }) if named == path => source,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_library_that_is_too_large_is_refused_before_it_is_read_with_size_and_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.so");
        let bytes = MAX_LIBRARY_BYTES + 1; // none of them on the disk
        File::create(&path).unwrap().set_len(bytes).unwrap();
        let error = refused(&path);
        let LibraryError::TooLarge { bytes: told, max } = error else { panic!("{error}") };
        assert_eq!((told, max), (bytes, MAX_LIBRARY_BYTES));
        assert_eq!(
            error.to_string(),
            "has 4294967296 bytes, a function library has at most 4294967295"
        );
    }

    #[test]
    fn what_is_no_file_is_refused_by_what_it_is_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe.so");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let link = dir.path().join("link.so");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for (path, found) in [(dir.path(), "a directory"), (&pipe, "a pipe"), (&link, "a device")] {
            assert_eq!(refused(path).to_string(), format!("is {found}, not a file"));
        }
    }

    #[test]
    fn a_missing_file_is_unreadable() {
        let error = KnownLibraries::default().read(Path::new("/nowhere/lib.so")).unwrap_err();
        assert!(matches!(error, Error::LibraryUnreadable { .. }), "{error}");
    }

    /// A library of so many bytes, which are not looked at.
    fn library(bytes: usize) -> Arc<Library> {
        Arc::new(Library { code: vec![0; bytes], hash: LibraryHash([7; 32]), path: PathBuf::new() })
    }

    #[test]
    fn a_file_is_a_known_library_only_with_all_of_its_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut code = vec![7; CHUNK + 100];
        std::fs::write(file.path(), &code).unwrap();
        let is = |code: &[u8]| is_all_of(&mut File::open(file.path()).unwrap(), code).unwrap();
        assert!(is(&code));
        assert!(!is(&code[1..]), "it has one more");
        assert!(!is(&[code.as_slice(), &[7]].concat()), "it has one less");
        for at in [0, CHUNK - 1, CHUNK, CHUNK + 99] {
            code[at] += 1;
            assert!(!is(&code), "byte {at}");
            code[at] -= 1;
        }
    }

    #[test]
    fn a_file_that_was_changed_in_place_is_another_library_whatever_its_times_say() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut libc = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
        let libc = libc.find(|path| path.contains("/libc.so") || path.contains("/libc-"));
        let mut code = std::fs::read(libc.expect("tests are linked with the C library")).unwrap();
        code.push(0); // behind its sections, where it means nothing
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &code).unwrap();
        let modified = file.as_file().metadata().unwrap().modified().unwrap();
        let known = KnownLibraries::default();
        let first = known.read(file.path()).unwrap();
        assert!(Arc::ptr_eq(&first, &known.read(file.path()).unwrap()), "it is kept");

        *code.last_mut().unwrap() = 1;
        std::fs::write(file.path(), &code).unwrap();
        file.as_file().set_modified(modified).unwrap();
        let second = known.read(file.path()).unwrap();
        assert!(second.code == code && second.hash == LibraryHash::of(&code));
        assert!(Arc::ptr_eq(&second, &known.read(file.path()).unwrap()), "this one now");
        assert_ne!(first.hash, second.hash);
    }

    #[test]
    fn what_was_deployed_longest_ago_makes_room_and_what_is_too_large_is_not_kept() {
        let (mut kept, half) = (Kept::default(), library(MOST_KEPT_BYTES / 2));
        let has = |kept: &Kept, path: &str| kept.last_at(Path::new(path)).is_some();
        for path in ["a", "b", "a", "c"] {
            kept.note(Path::new(path), &half);
        }
        assert_eq!(["a", "b", "c"].map(|path| has(&kept, path)), [true, false, true]);
        kept.note(Path::new("c"), &library(10));
        assert_eq!(kept.0.len(), 2, "there is one of a path");
        kept.note(Path::new("d"), &library(MOST_KEPT_BYTES + 1));
        assert!(kept.0.is_empty());
    }
}
