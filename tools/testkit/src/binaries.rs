//! Where the built programs and function libraries are: in the directory of the running program or,
//! for tests and examples, the one above it.

use std::path::{Path, PathBuf};

/// A program or library that should have been built.
#[derive(Debug, thiserror::Error)]
#[error("{name} is not in {}: build it first, `{}`", directory.display(), build(directory))]
pub struct NotBuilt {
    name: String,
    directory: PathBuf,
}

/// What makes the programs in `directory`.
fn build(directory: &Path) -> &'static str {
    if directory.ends_with("release") { "cargo build --release" } else { "cargo build --workspace" }
}

/// The directory that holds what `cargo build` made.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Next to the running program. A test runs in `target/PROFILE/deps` and an example in
    /// `target/PROFILE/examples`: what they start is one directory up.
    pub fn beside_this_program() -> Self {
        let mut directory = std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(Path::to_path_buf))
            .unwrap_or_else(|| PathBuf::from("."));
        if directory.ends_with("deps") || directory.ends_with("examples") {
            directory.pop();
        }
        Binaries { directory }
    }

    /// In `directory`.
    pub fn in_directory(directory: impl Into<PathBuf>) -> Self {
        Binaries { directory: directory.into() }
    }

    /// The directory, for `PATH`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Program `name`.
    pub fn program(&self, name: &str) -> Result<PathBuf, NotBuilt> {
        self.file(name)
    }

    /// Function library `libNAME.so`.
    pub fn library(&self, name: &str) -> Result<PathBuf, NotBuilt> {
        self.file(&format!("lib{name}.so"))
    }

    fn file(&self, name: &str) -> Result<PathBuf, NotBuilt> {
        let path = self.directory.join(name);
        if path.is_file() {
            Ok(path)
        } else {
            Err(NotBuilt { name: name.to_owned(), directory: self.directory.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_is_named_with_its_place() {
        let error = |directory: &str| {
            Binaries::in_directory(directory).library("functions").unwrap_err().to_string()
        };
        let debug = error("/nowhere");
        assert!(debug.contains("libfunctions.so is not in /nowhere"), "{debug}");
        assert!(debug.contains("cargo build --workspace"), "{debug}");
        let release = error("/nowhere/release");
        assert!(release.contains("cargo build --release"), "{release}");
    }
}
