//! What an attack leaves behind: processes, files, sockets, descriptors of managers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use testkit::procfs::{self, Stat};

/// In the names of all files and sockets that hostile functions make.
const MARK: &str = "rfaas-hostile";
/// Where they make files, besides the directory that managers run in.
const PLACES: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/run"];
/// Descriptors of a manager that may differ: a log, a connection that is being closed.
const DESCRIPTORS: usize = 6;
/// Memory of a manager that may differ, in KiB: what its allocator keeps of what was freed.
const MEMORY_KIB: u64 = 64 << 10;

/// What there is in this pid namespace, and of the machine what bears the mark.
#[derive(Clone, Debug, Default)]
pub struct Left {
    processes: BTreeMap<u32, String>,
    marked: BTreeSet<String>,
    managers: Vec<Holds>,
}

#[derive(Clone, Debug)]
struct Holds {
    descriptors: usize,
    memory_kib: u64,
}

impl Left {
    /// Lists it, with what is in `directory`. `managers` are children of this process that somebody
    /// else waits for. Others that have ended had lost their parent: process 1 has to wait for them.
    pub fn list(managers: &[u32], directory: &Path) -> Self {
        let mut processes = BTreeMap::new();
        for id in procfs::all().filter(|id| *id != std::process::id()) {
            let Some(stat) = Stat::of(id) else { continue };
            if stand_by(id, &stat.name) {
                continue; // that it is there is nobody's doing, and another one than before may be
            }
            if stat.is_running() {
                processes.insert(id, stat.name);
            } else if stat.parent == std::process::id() && !managers.contains(&id) {
                // Fails only if it was waited for meanwhile.
                let _ = waitpid(Pid::from_raw(id.cast_signed()), Some(WaitPidFlag::WNOHANG));
            } else {
                processes.insert(id, format!("{} (a zombie)", stat.name));
            }
        }
        let marked = files(directory).chain(sockets()).collect();
        Left { processes, marked, managers: managers.iter().map(|id| Holds::of(*id)).collect() }
    }

    /// What is there now and was not there `before`, for people.
    pub fn since(&self, before: &Left) -> Vec<String> {
        let mut names = BTreeMap::<String, (usize, u64)>::new();
        for (id, name) in &self.processes {
            if before.processes.get(id) != Some(name) {
                let (count, memory) = names.entry(name.clone()).or_default();
                *count += 1;
                *memory += memory_kib(*id);
            }
        }
        let mut left: Vec<String> = names
            .into_iter()
            .map(|(name, (count, memory))| format!("{count} × {name}, {} MB", memory >> 10))
            .collect();
        let mut marked = BTreeMap::<&str, usize>::new();
        for path in self.marked.difference(&before.marked) {
            let name = path.rsplit('/').next().unwrap_or(path);
            *marked
                .entry(name.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit()))
                .or_default() += 1;
        }
        left.extend(marked.into_iter().map(|(name, count)| format!("{count} × {name}")));
        for (now, before) in self.managers.iter().zip(&before.managers) {
            if now.descriptors > before.descriptors + DESCRIPTORS {
                left.push(format!("{} descriptors", now.descriptors - before.descriptors));
            }
            if now.memory_kib > before.memory_kib + MEMORY_KIB {
                left.push(format!(
                    "{} MB of a manager",
                    (now.memory_kib - before.memory_kib) >> 10
                ));
            }
        }
        left
    }

    /// Ends and removes what is there and was not there `before`.
    pub fn remove(&self, before: &Left) {
        for id in self.processes.keys().filter(|id| !before.processes.contains_key(id)) {
            // Fails only if it has ended.
            let _ = nix::sys::signal::kill(
                Pid::from_raw(id.cast_signed()),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        for file in self.marked.difference(&before.marked) {
            // Sockets end with their processes.
            let _ = fs::remove_file(file);
        }
    }
}

/// Whether a process stands by for the next lease, or guards one that does.
fn stand_by(id: u32, name: &str) -> bool {
    let is_standby = |id: &u32| Stat::of(*id).is_some_and(|stat| stat.name == "standby");
    match name {
        "standby" => true,
        "guardian" => procfs::children(id).iter().any(is_standby),
        _ => false,
    }
}

impl Holds {
    fn of(id: u32) -> Self {
        Holds { descriptors: procfs::open_files(id).len(), memory_kib: memory_kib(id) }
    }
}

/// Memory that process `id` has; none if it is gone.
fn memory_kib(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    value.and_then(|value| value.trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

fn files(directory: &Path) -> impl Iterator<Item = String> {
    let places = PLACES.into_iter().map(Path::new).chain([directory]);
    let entries = places.flat_map(|place| fs::read_dir(place).into_iter().flatten());
    let paths = entries.flatten().map(|entry| entry.path().display().to_string());
    paths.filter(|path| path.contains(MARK))
}

fn sockets() -> impl Iterator<Item = String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let names = table.lines().filter_map(|line| line.split_whitespace().nth(7).map(str::to_owned));
    names.filter(|name| name.contains(MARK)).collect::<Vec<_>>().into_iter()
}
