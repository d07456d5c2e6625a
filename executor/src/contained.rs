//! What a container is, seen from inside: so that nothing is said of it that is not there.
//!
//! Elsewhere: comparing it with what was asked for (the executor manager, `launch`).

use std::fs;
use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::getuid;
use rdmalib::{Device, Provider};
use rfaas_protocol::isolation::{ContainedReport, SandboxSettings};
use rfaas_sandbox::{Launch, ProbeError, probe};

/// Where control groups are seen.
const GROUPS: &str = "/sys/fs/cgroup";

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
        memory_limit: memory_limit(
            Path::new(GROUPS),
            &fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        ),
    })
}

/// Returns the limit of the group that is among `groups` (cgroups(7)), of version 2 or 1, where it can be seen: below
/// its path, or as the root in a namespace of its own.
fn memory_limit(root: &Path, groups: &str) -> Option<u64> {
    let files = groups.lines().flat_map(|line| {
        let (controllers, path) = match *line.splitn(3, ':').collect::<Vec<_>>() {
            [_, controllers, path] => (controllers, path),
            _ => ("none", ""),
        };
        let of_version = match controllers {
            "" => Some((root.to_owned(), "memory.max")),
            "memory" => Some((root.join("memory"), "memory.limit_in_bytes")),
            _ => None,
        };
        of_version.into_iter().flat_map(move |(root, name)| {
            [root.join(path.trim_start_matches('/')).join(name), root.join(name)]
        })
    });
    files.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_the_group_is_found_by_its_path_or_as_the_root_of_a_namespace() {
        let groups = tempfile::tempdir().unwrap();
        let root = groups.path();
        for (path, text) in [
            ("memory.max", "max"),
            ("c/memory.max", "700"),
            ("memory/memory.limit_in_bytes", "9223372036854771712"),
            ("memory/c/memory.limit_in_bytes", "600"),
        ] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), format!("{text}\n")).unwrap();
        }
        assert_eq!(memory_limit(root, "0::/c\n"), Some(700));
        assert_eq!(memory_limit(root, "7:cpu:/c\n5:memory:/c\n0::/\n"), Some(600));
        assert_eq!(memory_limit(root, "0::/\n"), None);
        fs::write(root.join("memory.max"), "500\n").unwrap();
        assert_eq!(memory_limit(root, "0::/../elsewhere\n"), Some(500));
        assert_eq!(memory_limit(root, "odd\n"), None);
    }
}
