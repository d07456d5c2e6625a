//! What a container is, seen from inside: so that nothing is said of it that is not there.
//!
//! Elsewhere: comparing it with what was asked for (the executor manager, `launch`).

use std::fs;

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::getuid;
use rdmalib::{Device, Provider};
use rfaas_program::control_groups::memory_limit;
use rfaas_protocol::isolation::{ContainedReport, SandboxSettings};
use rfaas_sandbox::{Launch, ProbeError, probe};

/// Why no executor can work in a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainedError {
    /// Layers could not be tried.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The image lacks what RDMA devices need.
    #[error("the image: {0}")]
    Device(String),
}

/// Returns what this process, which was started in a container, can be confined by, and what the container is. To be
/// called while there is one thread.
pub fn contained(settings: &SandboxSettings) -> Result<ContainedReport, ContainedError> {
    let own = probe(settings, Launch::Exec)?;
    if settings.rdma {
        Device::prepare(Provider::Verbs).map_err(ContainedError::Device)?; // behind it: libraries may start threads
    }
    let namespaces = fs::read_dir("/proc/self/ns").into_iter().flatten().flatten();
    let namespaces = namespaces.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((name, fs::read_link(entry.path()).ok()?))
    });
    let read_only = statvfs("/").is_ok_and(|root| root.flags().contains(FsFlags::ST_RDONLY));
    Ok(ContainedReport {
        own,
        namespaces: namespaces.collect(),
        root_is_read_only: read_only,
        user: getuid().as_raw(),
        memory_limit: memory_limit(),
    })
}
