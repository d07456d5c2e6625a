//! What can go wrong with a zygote and the processes that it clones, before they are executors.

use std::io;

use rfaas_program::local_channel::LocalError;
use rfaas_protocol::VERSION;

/// Why there is no zygote, or it ends.
#[derive(Debug, thiserror::Error)]
pub enum ZygoteError {
    /// No word of a manager.
    #[error("executor_manager starts a zygote, over a socket as standard input: {0}")]
    Channel(#[from] LocalError),
    /// A manager of another release.
    #[error("the executor manager speaks protocol version {theirs}, this program speaks {VERSION}")]
    Version { theirs: u16 },
    /// A message at the wrong time, or with the wrong descriptors.
    #[error("the executor manager asks for what it may not ask for here")]
    Order,
    /// What the devices need cannot be loaded.
    #[error("no RDMA devices: {0}")]
    Device(String),
    /// It is not known which layers there are.
    #[error(transparent)]
    Probe(#[from] rfaas_sandbox::ProbeError),
    /// A layer that was found cannot be put on.
    #[error(transparent)]
    Sandbox(#[from] rfaas_sandbox::Error),
    /// It has more than one thread.
    #[error("a library has started a thread in it")]
    Threads,
    /// See `sibling`.
    #[error("its children would not know their thread ids: the kernel does not say where they are")]
    ThreadIds,
    /// The system failed it.
    #[error("{what}: {source}")]
    Os { what: &'static str, source: io::Error },
}

/// Returns what makes an error of the system one that says what failed.
pub fn os<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ZygoteError {
    move |error| ZygoteError::Os { what, source: error.into() }
}
