//! The operator's libraries: read once when the manager starts, and loaded by executors that stand by.
//!
//! Every client that deploys one of them finds it here, whether it has deployed it before or not. That it is here is no
//! secret.
//!
//! Elsewhere: libraries of clients (`cache`).

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rfaas_program::sealed_file::{self, reopen};
use rfaas_protocol::assignment::PreloadedLibrary;
use rfaas_protocol::library::{LibraryHash, exported_functions};

use crate::Error;

/// All of them.
#[derive(Debug, Default)]
pub struct Preload {
    libraries: Vec<PreloadedLibrary>,
    /// Of each, sealed, to be read only.
    files: Vec<File>,
}

impl Preload {
    /// Reads the libraries at `paths`, which have to be some.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut preload = Preload::default();
        for path in paths {
            let (library, file) = read(path).map_err(|error| {
                Error::Start(format!("executor.preload: {}: {error}", path.display()))
            })?;
            tracing::info!(path = %path.display(), hash = %library.hash, "library is preloaded");
            if !preload.libraries.contains(&library) {
                preload.libraries.push(library);
                preload.files.push(file);
            }
        }
        Ok(preload)
    }

    /// Returns what they are.
    pub fn libraries(&self) -> &[PreloadedLibrary] {
        &self.libraries
    }

    /// Returns their files, in the same order.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Returns a file with the library of this hash and size, if it is one of them.
    pub fn find(&self, hash: LibraryHash, bytes: u32) -> Option<OwnedFd> {
        let at = self.libraries.iter().position(|it| (it.hash, it.bytes) == (hash, bytes))?;
        reopen(&self.files[at]).ok().map(OwnedFd::from)
    }
}

fn read(path: &Path) -> Result<(PreloadedLibrary, File), Box<dyn std::error::Error>> {
    let code = fs::read(path)?;
    let bytes = u32::try_from(code.len()).map_err(|_| "it is larger than 4 GiB")?;
    exported_functions(&code).map_err(|error| format!("it {error}"))?;
    let mut file = File::from(sealed_file::create(c"functions")?);
    file.write_all(&code)?;
    sealed_file::seal(&file)?;
    let library = PreloadedLibrary { hash: LibraryHash::of(&code), bytes };
    Ok((library, reopen(&file)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_library_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("text.so");
        fs::write(&text, "no library").unwrap();
        for (path, why) in [(text, "ELF"), (directory.path().join("missing.so"), "No such file")] {
            let error = Preload::read(std::slice::from_ref(&path)).unwrap_err().to_string();
            let named =
                error.contains("executor.preload") && error.contains(path.to_str().unwrap());
            assert!(named && error.contains(why) && error.lines().count() == 1, "{error}");
        }
    }
}
