//! The operator's libraries: read once when the manager starts, and loaded by executors that stand by, one by each:
//! libraries of one process find things of each other (of C++ those that are there once in a process, and dependencies
//! by their name).
//!
//! Every client that deploys one of them finds it here, whether it has deployed it before or not. That it is here is no
//! secret.
//!
//! Elsewhere: libraries of clients (`cache`).

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rfaas_program::sealed_file::{self, reopen};
use rfaas_protocol::assignment::PreloadedLibrary;
use rfaas_protocol::library::file::{FileError, open, read_all};
use rfaas_protocol::library::{LibraryHash, exported_functions};

use crate::Error;

/// What an executor that stands by has loaded: nothing, or one of the libraries. They are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub usize);

impl Kind {
    /// Nothing.
    pub const PLAIN: Kind = Kind(0);
}

/// All of them.
#[derive(Debug, Default)]
pub struct Preload {
    paths: Vec<PathBuf>,
    libraries: Vec<PreloadedLibrary>,
    /// Of each, sealed, to be read only.
    files: Vec<File>,
}

impl Preload {
    /// Reads the libraries at `paths`, which have to be some.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut preload = Preload::default();
        for path in paths {
            let (library, file) =
                read(path).map_err(|error| Error::named("executor.preload", path, error))?;
            tracing::info!(path = %path.display(), hash = %library.hash, "executors that stand by load this library");
            if !preload.libraries.contains(&library) {
                preload.paths.push(path.clone());
                preload.libraries.push(library);
                preload.files.push(file);
            }
        }
        Ok(preload)
    }

    /// Returns how many kinds of executors there are.
    pub fn kinds(&self) -> usize {
        1 + self.libraries.len()
    }

    /// Returns the library of a kind, if it has one, as a list.
    pub fn libraries(&self, kind: Kind) -> &[PreloadedLibrary] {
        one(&self.libraries, kind)
    }

    /// Returns its file, likewise.
    pub fn files(&self, kind: Kind) -> &[File] {
        one(&self.files, kind)
    }

    /// Returns where it was read.
    pub fn path(&self, kind: Kind) -> Option<&Path> {
        one(&self.paths, kind).first().map(PathBuf::as_path)
    }

    /// Returns the kind that has loaded the library of this hash and size.
    pub fn kind_with(&self, hash: LibraryHash, bytes: u32) -> Option<Kind> {
        let at = self.libraries.iter().position(|it| (it.hash, it.bytes) == (hash, bytes))?;
        Some(Kind(at + 1))
    }

    /// Returns a file with the library of this hash and size, if it is one of them.
    pub fn find(&self, hash: LibraryHash, bytes: u32) -> Option<OwnedFd> {
        let file = self.files(self.kind_with(hash, bytes)?).first()?;
        reopen(file).ok().map(OwnedFd::from)
    }
}

/// Of `all` that are of libraries, that of `kind`.
fn one<T>(all: &[T], kind: Kind) -> &[T] {
    kind.0.checked_sub(1).and_then(|at| all.get(at..=at)).unwrap_or_default()
}

fn read(path: &Path) -> Result<(PreloadedLibrary, File), Box<dyn std::error::Error>> {
    let (file, bytes) = open(path)?;
    let code = read_all(file, bytes)?;
    exported_functions(&code).map_err(FileError::from)?;
    let mut file = File::from(sealed_file::create(c"functions")?);
    file.write_all(&code)?;
    sealed_file::seal(&file)?;
    let bytes = u32::try_from(code.len()).expect("at most `MAX_LIBRARY_BYTES`");
    let library = PreloadedLibrary { hash: LibraryHash::of(&code), bytes };
    Ok((library, reopen(&file)?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_no_library_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("text.so");
        fs::write(&text, "no library").unwrap();
        let missing = directory.path().join("missing.so");
        let cases = [
            (text, "ELF"),
            (missing, "No such file"),
            ("/dev/zero".into(), "it is a device, not a file"),
        ];
        for (path, why) in cases {
            let error = Preload::read(std::slice::from_ref(&path)).unwrap_err().to_string();
            let named =
                error.contains("executor.preload") && error.contains(path.to_str().unwrap());
            assert!(named && error.contains(why) && error.lines().count() == 1, "{error}");
        }
    }
}
