//! What a run may leave behind on a machine: processes, shared memory, sockets, files.
//!
//! Memory of the embedded device is in memfds, and its sockets are abstract: both belong to processes and are gone
//! with the last of them. So the listing is of processes, of what they hold, and of the places for files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::procfs::{self, Stat};

use crate::run::binaries;
use crate::wait::deadline;

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
        let deadline = Instant::now() + deadline() / 4;
        loop {
            let now = Leftovers::list(directory);
            let new: Vec<_> = now.0.difference(&before.0).collect();
            if new.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {new:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Programs of this build that run now, zombies too, and the memory that this test shares.
fn processes() -> Vec<String> {
    let mut found = Vec::new();
    for id in procfs::all() {
        let Some(stat) = Stat::of(id) else { continue };
        if id == std::process::id() {
            let memory = procfs::open_files(id);
            let memory = memory.iter().filter(|file| file.to_string_lossy().starts_with("/memfd:"));
            found.extend(memory.map(|file| format!("{} of this test", file.display())));
        } else if stat.parent == std::process::id() || is_of_this_build(id) {
            found.push(format!("process {id}, {}", stat.name));
        }
    }
    found
}

/// Whether process `id` runs a program that was built with this test.
pub fn is_of_this_build(id: u32) -> bool {
    procfs::program(id).is_some_and(|program| program.parent() == Some(binaries().directory()))
}

/// Abstract sockets of the embedded device that no process of another build holds.
fn sockets() -> Vec<String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    table
        .lines()
        .filter(|line| line.contains("@rdmalib-shm"))
        .filter(|line| !line.split_whitespace().nth(6).is_some_and(is_held_by_others))
        .map(|line| line.split_whitespace().skip(7).collect())
        .collect()
}

fn is_held_by_others(inode: &str) -> bool {
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    let ours = |program: PathBuf| program.starts_with(binaries().directory());
    procfs::all()
        .filter(|id| procfs::open_files(*id).contains(&socket))
        .filter_map(procfs::program)
        .any(|program| !ours(program))
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
