//! What a run may leave behind on a machine: processes, shared memory, sockets, files.
//!
//! Memory of the embedded device is in memfds, and its sockets are abstract: both belong to processes and are gone
//! with the last of them. So the listing is of processes, of what they hold, and of the places for files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{DEADLINE, binaries};

/// Everything of ours that is there now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// Lists it: on the whole machine, and in `directory`.
    pub fn list(directory: &Path) -> Self {
        let mut found = BTreeSet::new();
        found.extend(processes());
        found.extend(sockets());
        for place in ["/dev/shm", "/tmp", "/var/tmp", "/run"] {
            found.extend(files(Path::new(place)).filter(|file| is_ours(file)));
        }
        found.extend(files(directory));
        Leftovers(found)
    }

    /// Fails unless, before long, all that is there now was there before. What only others hold is theirs.
    pub fn nothing_new_since(before: &Leftovers, directory: &Path) {
        let deadline = std::time::Instant::now() + DEADLINE / 4;
        loop {
            let now = Leftovers::list(directory);
            let new: Vec<_> = now.0.difference(&before.0).collect();
            if new.is_empty() {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "left behind: {new:#?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Programs of this build that run now, zombies too, and the memory that they share. The test itself is none.
fn processes() -> Vec<String> {
    let ours = binaries().directory().to_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if id == std::process::id() {
            found.extend(
                memfds(&entry.path()).into_iter().map(|memory| format!("{memory} of ours")),
            );
        } else if parent(&stat) == Some(std::process::id()) {
            found.push(format!("child {id}: {}", stat.split(')').next().unwrap_or_default()));
        } else if fs::read_link(entry.path().join("exe"))
            .is_ok_and(|program| program.parent() == Some(&ours))
        {
            found.push(format!("process {id}: {}", command_line(&entry.path())));
        }
    }
    found
}

fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn command_line(process: &Path) -> String {
    let bytes = fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Shared memory that a process has open.
fn memfds(process: &Path) -> Vec<String> {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .filter(|link| link.contains("/memfd:"))
        .collect()
}

/// Abstract sockets of the embedded device that a process of this build, or this test, has open.
fn sockets() -> Vec<String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    table
        .lines()
        .filter(|line| line.contains("@rdmalib-shm"))
        .filter(|line| line.split_whitespace().nth(6).is_none_or(|inode| held_by_us(inode)))
        .map(|line| line.split_whitespace().skip(7).collect())
        .collect()
}

/// Whether nobody else's process, as far as we may look, holds the socket.
fn held_by_us(inode: &str) -> bool {
    let ours = binaries().directory().to_owned();
    let link = format!("socket:[{inode}]");
    let holders = fs::read_dir("/proc").into_iter().flatten().flatten().filter(|process| {
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        files.filter_map(|f| fs::read_link(f.path()).ok()).any(|to| to.as_os_str() == &*link)
    });
    holders
        .filter_map(|process| fs::read_link(process.path().join("exe")).ok())
        .all(|program| program.starts_with(&ours))
}

fn files(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string())
}

/// Names that our programs would choose.
fn is_ours(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    ["rfaas", "rdmalib", "executor", "shm0", "resource_manager", "libfunctions", "function"]
        .iter()
        .any(|word| name.contains(word))
}
