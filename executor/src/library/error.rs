//! Why a library cannot be used.

use std::io;

use rfaas_protocol::library::{LibraryError, LibraryHash};

/// Why a library cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its file is not one that could be called.
    #[error("the library {0}")]
    Library(#[from] LibraryError),
    /// The dynamic loader refused it, in its words: a missing dependency, an undefined symbol.
    #[error("{0}")]
    Loader(String),
    /// What the client has sent is not what it had announced.
    #[error(
        "the code that came has the SHA-256 {received}, which is not the one that was announced"
    )]
    Differs {
        /// What came.
        received: LibraryHash,
    },
    /// It does not want to be called.
    #[error(
        "its rfaas_init returned {returned} in worker {worker}; 0 is to say that it can be called"
    )]
    Init {
        /// What its `rfaas_init` returned.
        returned: i32,
        /// In which worker.
        worker: u16,
    },
    /// A file without a name has a path only there.
    #[error(
        "/proc is not mounted on this node: a function library is loaded through /proc/self/fd"
    )]
    NoProc,
    /// It could not be put into memory.
    #[error("{call} failed: {source}")]
    Memory {
        /// Name of the call.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
}
