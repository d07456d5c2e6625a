//! The sandbox of executors: what keeps foreign code from the rest of a node.
//!
//! ```text
//!   once        probe    tries each layer in a child, then all; says why one is not to be had
//!               enter    namespaces that all executors share, and the view: a root of their own
//!   each        clone    with `namespaces()`
//!               furnish  own /proc, private /tmp             still with the rights to mount
//!               confine  limits, user, capabilities, Landlock, seccomp   before foreign code
//!               close    sockets                             after it has connected, before foreign code
//! ```
//! * A layer that was found is put on or the executor does not start: nothing here goes on without it.
//! * What is refused fails with an error that the function sees (EPERM, EACCES, EROFS, ENOMEM). It does not end it, but
//!   for a file that is larger than it may be: that is SIGXFSZ (setrlimit(2)).
//! * Everything is for a process with one thread, but for [`Sandbox::close`], which is for all its threads.
//!
//! Elsewhere: names of layers (`rfaas_protocol::isolation`), starting processes (the program `executor`), settings
//! (`rfaas_config`).

#[allow(unsafe_code)] // fork: see there
mod attempt;
mod error;
mod files;
mod filter;
mod limits;
#[allow(unsafe_code)] // one call: see there
mod mounts;
mod probe;
mod rights;
mod sandbox;
mod share;
mod syscalls;
mod view;

#[doc(hidden)]
pub use attempt::{Failure, attempt};
pub use error::Error;
pub use probe::{Launch, ProbeError, probe};
pub use sandbox::Sandbox;
pub use share::Share;
