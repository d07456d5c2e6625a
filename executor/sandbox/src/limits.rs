//! Limits of resources (setrlimit(2)), hard ones: no function can raise them.
//!
//! Memory is limited by RLIMIT_DATA, which counts what is private and writable. RLIMIT_AS would count the
//! buffers of the client too, which are shared and mapped as they are used, and reservations that are
//! never used. The limit holds for each process: a function that forks has as much again for each. Shared
//! memory that a function makes by itself is not counted. A control group limits both, where there is
//! one (`groups` of the executor manager).
//!
//! Elsewhere: descriptors, stacks (the program `executor`), the size of `/tmp` (`view`).

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use rfaas_protocol::isolation::{Layer, MAX_TASKS, OWN_MEMORY, SandboxSettings};

use crate::error::{Error, failed};
use crate::share::Share;

/// Of proc_pid_oom_score_adj(5).
const MOST_EXPENDABLE: &str = "1000";

/// Sets all limits but those that depend on the share.
pub fn set(settings: &SandboxSettings) -> Result<(), Error> {
    if settings.layers.has(Layer::User) {
        // It counts what the user has, who is shared by all executors without this layer.
        lower(Resource::RLIMIT_NPROC, MAX_TASKS, "of processes")?;
        if settings.rdma {
            // Registered memory counts as locked. Root has no limit, if it may raise this one; later nobody can.
            let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        }
    }
    // When the node has no memory left, functions end before anybody else. Without /proc, they do not.
    let _ = fs::write("/proc/self/oom_score_adj", MOST_EXPENDABLE);
    lower(Resource::RLIMIT_CORE, 0, "of core files")?;
    lower(Resource::RLIMIT_RTPRIO, 0, "of real-time priorities")?;
    lower(Resource::RLIMIT_NICE, 0, "of priorities")?;
    lower(Resource::RLIMIT_MSGQUEUE, 0, "of message queues")
}

/// Sets the limits of memory.
pub fn set_memory(settings: &SandboxSettings, share: &Share) -> Result<(), Error> {
    let memory = OWN_MEMORY.saturating_add(share.base).saturating_add(share.memory);
    lower(Resource::RLIMIT_DATA, memory, "of memory")?;
    if settings.layers.has(Layer::User) && settings.rdma {
        lower(Resource::RLIMIT_MEMLOCK, memory, "of locked memory")?;
    }
    Ok(())
}

/// Sets the limit of file sizes, which memory files have too: those of the device are made before.
pub fn set_file_size(share: &Share) -> Result<(), Error> {
    let bytes = share.memory.saturating_add(share.base);
    lower(Resource::RLIMIT_FSIZE, bytes, "of file sizes")
}

/// Sets both limits to `value`, unless they are lower.
fn lower(resource: Resource, value: u64, what: &str) -> Result<(), Error> {
    let (_, hard) = getrlimit(resource).map_err(failed(Layer::Limits, "getrlimit"))?;
    let value = value.min(hard);
    setrlimit(resource, value, value).map_err(failed(Layer::Limits, format!("limit {what}")))
}
