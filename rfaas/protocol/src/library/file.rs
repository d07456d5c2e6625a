//! The file of a function library: read whole after it is known to be one that can be sent.
//!
//! What is no plain file, or larger than can be sent, is refused before any of it is read. No more is read than the
//! file had when it was opened.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_NOCTTY, O_NONBLOCK};

use super::{LibraryError, MAX_LIBRARY_BYTES};

/// Why a file is not read as a library.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system does not let it be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// It is none that could be sent.
    #[error("it {0}")]
    Unusable(#[from] LibraryError),
}

/// Opens the file at `path`. Returns it and its size.
pub fn open(path: &Path) -> Result<(File, u64), FileError> {
    // A pipe is opened without waiting for its other end, a terminal without becoming ours.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path)?;
    let bytes = sendable(&file.metadata()?)?;
    Ok((file, bytes))
}

/// Returns all of `file`, which had `bytes` bytes when it was opened.
pub fn read_all(file: File, bytes: u64) -> Result<Vec<u8>, FileError> {
    let mut code = Vec::new();
    let room = code.try_reserve_exact(usize::try_from(bytes).unwrap_or(usize::MAX));
    room.map_err(io::Error::from)?;
    file.take(bytes + 1).read_to_end(&mut code)?;
    if code.len() as u64 == bytes { Ok(code) } else { Err(LibraryError::Changing.into()) }
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
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_while_it_is_read_is_not_read_further() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 100]).unwrap();
        let read = |bytes| read_all(File::open(file.path()).unwrap(), bytes);
        for bytes in [99, 101] {
            let error = read(bytes).unwrap_err();
            assert!(matches!(error, FileError::Unusable(LibraryError::Changing)), "{error}");
        }
        assert_eq!(read(100).unwrap().len(), 100);
    }
}
