//! Why a cluster on this machine did not start or stop.

use std::io;

use rfaas_config::ConfigError;

use crate::binaries::NotBuilt;
use crate::process::NotStopped;
use crate::test_devices::BadVariable;

/// Why a cluster did not start or stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// A program is missing.
    #[error(transparent)]
    NotBuilt(#[from] NotBuilt),
    /// Files or processes of the cluster.
    #[error("{what} failed")]
    Os {
        /// What was done.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The environment asks for devices, but names none.
    #[error(transparent)]
    Devices(#[from] BadVariable),
    /// The configuration that was to be used as it is cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A client could not connect.
    #[error(transparent)]
    Client(#[from] rfaas::Error),
    /// A manager ended instead of starting, and said why.
    #[error("{program}: {reason}")]
    Refused {
        /// Name of the program.
        program: String,
        /// Its words.
        reason: String,
    },
    /// A manager did not say in time that it is ready.
    #[error("no {awaited:?} from {program}")]
    NotReady {
        /// What its log should have said.
        awaited: &'static str,
        /// The program, how it ended and what it logged.
        program: String,
    },
    /// A manager ended with an error.
    #[error("unclean end: {program}")]
    UncleanEnd {
        /// The program, how it ended and what it logged.
        program: String,
    },
    /// A manager had to be killed.
    #[error(transparent)]
    NotStopped(#[from] NotStopped),
}

pub(super) fn os(what: &'static str) -> impl FnOnce(io::Error) -> ClusterError {
    move |source| ClusterError::Os { what, source }
}
