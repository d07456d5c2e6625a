//! The library file of a deployment: read whole and hashed, once, after it is known to be one that can be sent.
//!
//! What is no plain file, or larger than can be sent, is refused before any of it is read. No more
//! is read than the file had when it was opened.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_NOCTTY, O_NONBLOCK};

use crate::error::{Error, Result};
use rfaas_protocol::library::{LibraryError, LibraryHash, MAX_LIBRARY_BYTES, exported_functions};

/// A library that can be sent.
pub(crate) struct Library {
    /// Its file.
    pub(crate) code: Vec<u8>,
    /// What nodes know it by.
    pub(crate) hash: LibraryHash,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Library({} bytes, {})", self.code.len(), self.hash)
    }
}

/// Returns the library at `path`, if it is one.
pub(crate) fn read(path: &Path) -> Result<Library> {
    let unreadable = |source| Error::LibraryUnreadable { path: path.to_owned(), source };
    let unusable = |source| Error::Library { path: path.to_owned(), source };
    // A pipe is opened without waiting for its other end, a terminal without becoming ours.
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path);
    let file = file.map_err(unreadable)?;
    let bytes = sendable(&file.metadata().map_err(unreadable)?).map_err(unusable)?;
    let code = read_all(file, bytes).map_err(unreadable)?;
    let code = code.ok_or_else(|| unusable(LibraryError::Changing))?;
    exported_functions(&code).map_err(unusable)?;
    Ok(Library { hash: LibraryHash::of(&code), code })
}

/// Returns the size of a file that may be read.
fn sendable(metadata: &Metadata) -> Result<u64, LibraryError> {
    if !metadata.is_file() {
        return Err(LibraryError::NotFile { found: kind(metadata.file_type()) });
    }
    match metadata.len() {
        bytes if bytes > MAX_LIBRARY_BYTES => {
            Err(LibraryError::TooLarge { bytes, max: MAX_LIBRARY_BYTES })
        }
        bytes => Ok(bytes),
    }
}

/// All of `file`, which had `bytes` bytes; `None` if it has more by now, or less.
fn read_all(file: File, bytes: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut code = Vec::new();
    code.try_reserve_exact(usize::try_from(bytes).unwrap_or(usize::MAX))?;
    file.take(bytes + 1).read_to_end(&mut code)?;
    Ok((code.len() as u64 == bytes).then_some(code))
}

fn kind(of: FileType) -> &'static str {
    match of {
        _ if of.is_dir() => "a directory",
        _ if of.is_fifo() => "a pipe",
        _ if of.is_socket() => "a socket",
        _ if of.is_char_device() || of.is_block_device() => "a device",
        _ => "something else",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // what fails in a helper is the test
mod tests {
    use std::process::Command;

    use super::*;

    fn refused(path: &Path) -> LibraryError {
        match read(path) {
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
    fn a_file_that_changes_while_it_is_read_is_not_read_further() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 100]).unwrap();
        let read = |bytes| read_all(File::open(file.path()).unwrap(), bytes).unwrap();
        assert_eq!(read(99), None);
        assert_eq!(read(101), None);
        assert_eq!(read(100).unwrap().len(), 100);
    }

    #[test]
    fn a_missing_file_is_unreadable() {
        let error = read(Path::new("/nowhere/lib.so")).unwrap_err();
        assert!(matches!(error, Error::LibraryUnreadable { .. }), "{error}");
    }
}
