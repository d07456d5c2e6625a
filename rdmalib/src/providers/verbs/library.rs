//! libibverbs and librdmacm, loaded at run time: the same program starts where they are missing.

#![allow(unsafe_code)]

use std::error::Error as _;
use std::sync::OnceLock;
use std::{fmt, io};

use super::bindings::ibverbs::Ibverbs;
use super::bindings::rdmacm::Rdmacm;

/// Names that every release of rdma-core has had since its interfaces were versioned.
const IBVERBS: &str = "libibverbs.so.1";
const RDMACM: &str = "librdmacm.so.1";

/// Both libraries. Never unloaded: they keep state in the process (providers, fork handling).
pub(super) struct Library {
    pub(super) verbs: Ibverbs,
    pub(super) cm: Rdmacm,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Library") // two tables of functions
    }
}

/// The libraries, loaded at the first call; `Err` says what is missing and what to do.
pub(super) fn library() -> Result<&'static Library, String> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<Library, String> {
    // SAFETY: the constructors of rdma-core's libraries may run at any time in any thread, and the
    // functions are called as their headers declare them, from which the bindings were made.
    let verbs = unsafe { Ibverbs::new(IBVERBS) }.map_err(|error| missing(IBVERBS, &error))?;
    // SAFETY: as above.
    let cm = unsafe { Rdmacm::new(RDMACM) }.map_err(|error| missing(RDMACM, &error))?;
    // Before any memory is registered: programs of ours start others (ibv_fork_init(3)).
    // SAFETY: no arguments, and no verbs object exists yet.
    let errno = unsafe { verbs.ibv_fork_init() };
    if errno != 0 {
        let error = io::Error::from_raw_os_error(errno);
        return Err(format!("ibv_fork_init failed: {error}"));
    }
    Ok(Library { verbs, cm })
}

fn missing(name: &str, error: &libloading::Error) -> String {
    // libloading's own message is only "dlopen failed".
    let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    format!(
        "{name} cannot be loaded ({cause}); install libibverbs1, librdmacm1 and ibverbs-providers, \
         or use a device with \"provider\": \"shm\""
    )
}

/// The error of a call that returned an `errno`, or -1 with `errno` set.
pub(super) fn failure(returned: i32) -> io::Error {
    if returned > 0 { io::Error::from_raw_os_error(returned) } else { io::Error::last_os_error() }
}

/// Checks a call that returns 0, an `errno`, or -1 with `errno` set; rdma-core has both kinds.
pub(super) fn check(returned: i32) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(failure(returned)) }
}
