//! A hierarchy of control groups, and the directory in it that is this manager's.
//!
//! ```text
//!   /sys/fs/cgroup/…     the group that this process is in
//!     rfaas-PID-0        this manager's, locked (flock(2)) as long as it lives
//!       1, 2, 3 …        one for each executor
//!       manager          version 2: this process, unless it is in the root. A group has processes or groups
//! ```
//! * A directory `rfaas-…` that nobody has locked is of a manager that was killed: what is left there is killed, and it
//!   is removed. Not while a process is in its group `manager`.
//! * A manager that is in its directory moves back before it gives the lock away, or keeps the lock until it ends.
//!
//! Elsewhere: what is in a group (`mod`).

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rfaas_program::control_groups::{Mount, Version};

/// How the directories of managers begin.
const PREFIX: &str = "rfaas-";
/// Directories that one process may have made before under its id: in other process namespaces, mostly.
const MOST_NAMES: u32 = 1000;
/// Name of the group that this process moves to.
const MANAGER: &str = "manager";

/// What a manager that was killed has left.
#[derive(Debug)]
pub struct Stale {
    /// Its groups, and the directory that they are in.
    pub paths: Vec<PathBuf>,
    /// Held until they are removed, so that nobody else does it too.
    pub lock: File,
}

/// The directory of this manager, removed when this is dropped, if it is empty then.
#[derive(Debug)]
pub struct Hierarchy {
    pub version: Version,
    pub controllers: Vec<&'static str>,
    pub directory: PathBuf,
    /// The group that this process was in before it made room, if it did.
    left: Option<PathBuf>,
    /// `directory`, locked.
    lock: Option<File>,
}

impl Hierarchy {
    /// Makes directories of this manager for `controllers`, in as many hierarchies as these are in. Returns them with
    /// what others have left there. `Err`: why there are none.
    pub fn all(controllers: &[&'static str]) -> Result<(Vec<Self>, Vec<Stale>), String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
        let (mounts, groups) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
        let mut found: Vec<(Version, PathBuf, Vec<&str>)> = Vec::new();
        for &controller in controllers {
            let (version, own) = own_group(&mounts, &groups, controller)
                .ok_or_else(|| format!("there is no controller {controller}"))?;
            match found.iter_mut().find(|(_, other, _)| *other == own) {
                Some((_, _, controllers)) => controllers.push(controller),
                None => found.push((version, own, vec![controller])),
            }
        }
        let (mut hierarchies, mut left) = (Vec::new(), Vec::new());
        for (version, own, some) in found {
            left.extend(stale(&own).map_err(|error| format!("{}: {error}", own.display()))?);
            hierarchies.push(Hierarchy::make(version, &own, some)?);
        }
        Ok((hierarchies, left))
    }

    fn make(version: Version, own: &Path, controllers: Vec<&'static str>) -> Result<Self, String> {
        let failed = |error: io::Error| format!("{}: {error}", own.display());
        let (directory, lock) = locked_directory(own).map_err(failed)?;
        let (left, lock) = (None, Some(lock));
        let mut hierarchy = Hierarchy { version, controllers, directory, left, lock };
        hierarchy.prepare(own)?; // if it fails, dropping it undoes what was done
        Ok(hierarchy)
    }

    /// Has groups in the directory have the controllers.
    fn prepare(&mut self, own: &Path) -> Result<(), String> {
        let write = |path: PathBuf, text: &str| {
            fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        if self.version == Version::One {
            if self.controllers.contains(&"cpuset") {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let of_own = fs::read_to_string(own.join(file)).map_err(|e| e.to_string())?;
                    write(self.directory.join(file), of_own.trim())?;
                }
                write(self.directory.join("cgroup.clone_children"), "1")?;
            }
            return Ok(());
        }
        let wanted = self.switched('+');
        if write(own.join("cgroup.subtree_control"), &wanted).is_err() {
            // The group has processes. If this is the only one, it can make room.
            let manager = self.directory.join(MANAGER);
            fs::create_dir(&manager).map_err(|error| format!("{}: {error}", manager.display()))?;
            self.left = Some(own.to_owned());
            write(manager.join("cgroup.procs"), "0")?;
            write(own.join("cgroup.subtree_control"), &wanted)
                .map_err(|error| format!("{error}; other processes may be in this group"))?;
        }
        write(self.directory.join("cgroup.subtree_control"), &wanted)
    }

    /// What is written to have (`+`) or not to have (`-`) the controllers in the groups below.
    fn switched(&self, sign: char) -> String {
        let all: Vec<_> = self.controllers.iter().map(|name| format!("{sign}{name}")).collect();
        all.join(" ")
    }

    /// Moves this process back to `own`.
    fn move_back(&self, own: &Path) -> io::Result<()> {
        let enter = || fs::write(own.join("cgroup.procs"), "0");
        if enter().is_ok() {
            return Ok(());
        }
        // A group below which there are controllers takes no process. They limit what is left of executors.
        let mut others = fs::read_dir(&self.directory)?.flatten();
        if others.any(|it| it.file_name() != MANAGER && it.path().is_dir()) {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        for group in [self.directory.as_path(), own] {
            fs::write(group.join("cgroup.subtree_control"), self.switched('-'))?;
        }
        enter()
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        if let Some(own) = &self.left {
            if let Err(error) = self.move_back(own) {
                tracing::debug!(%error, "this process stays in its control group");
                std::mem::forget(self.lock.take()); // closed when the process ends: nobody takes it for stale before
                return;
            }
            let _ = fs::remove_dir(self.directory.join(MANAGER));
        }
        let _ = fs::remove_dir(&self.directory); // what cannot be removed now is stale then
    }
}

/// Returns where the group of this process is that has `controller`. Of version 2, only if it is to be had there.
fn own_group(mounts: &str, groups: &str, controller: &str) -> Option<(Version, PathBuf)> {
    mounts.lines().find_map(|line| {
        let mount = Mount::parse(line, controller)?;
        let group = mount.group(groups, controller)?;
        let own = mount.directories(group).into_iter().next()?;
        let has = |list: String| list.split_whitespace().any(|one| one == controller);
        let available = match mount.version {
            Version::One => true,
            Version::Two => fs::read_to_string(own.join("cgroup.controllers")).is_ok_and(has),
        };
        available.then_some((mount.version, own))
    })
}

/// Makes a directory that is nobody else's.
fn locked_directory(own: &Path) -> io::Result<(PathBuf, File)> {
    for number in 0..MOST_NAMES {
        let path = own.join(format!("{PREFIX}{}-{number}", std::process::id()));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        // Somebody who looks for stale ones may have been faster.
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_ok() && path.exists() {
            return Ok((path, lock));
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Returns the directories of managers that are not there any more.
fn stale(own: &Path) -> io::Result<Vec<Stale>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(own)?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_ok() && !has_process(&path.join(MANAGER)) {
            let groups = fs::read_dir(&path).into_iter().flatten().flatten().map(|it| it.path());
            let mut paths: Vec<_> = groups.filter(|path| path.is_dir()).collect();
            paths.push(path);
            found.push(Stale { paths, lock });
        }
    }
    Ok(found)
}

/// Whether a process is in the group at `path`. Those of other process namespaces are listed, as 0.
fn has_process(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|list| !list.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_stale_if_it_is_not_locked_and_no_manager_is_in_it() {
        let own = tempfile::tempdir().unwrap();
        let path = own.path().join("rfaas-1-0");
        let processes = path.join(MANAGER).join("cgroup.procs");
        fs::create_dir_all(path.join(MANAGER)).unwrap();
        fs::write(&processes, "4711\n").unwrap();
        assert!(stale(own.path()).unwrap().is_empty(), "a manager is there");
        fs::write(&processes, "").unwrap();
        let lock = File::open(&path).unwrap();
        lock.try_lock().unwrap();
        assert!(stale(own.path()).unwrap().is_empty(), "it is locked");
        drop(lock);
        let found = stale(own.path()).unwrap();
        assert_eq!(found[0].paths, [path.join(MANAGER), path]);
    }

    /// In files that stand for those of the kernel.
    #[test]
    fn a_manager_whose_groups_cannot_have_controllers_moves_back() {
        let own = tempfile::tempdir().unwrap();
        fs::create_dir(own.path().join("cgroup.subtree_control")).unwrap(); // cannot be written
        let made = Hierarchy::make(Version::Two, own.path(), vec!["memory", "pids"]);
        assert!(made.unwrap_err().contains("other processes may be in this group"));
        assert_eq!(fs::read_to_string(own.path().join("cgroup.procs")).unwrap(), "0");
    }

    #[test]
    fn a_manager_that_cannot_move_back_keeps_its_lock() {
        let own = tempfile::tempdir().unwrap();
        for file in ["cgroup.subtree_control", "cgroup.procs"] {
            fs::create_dir(own.path().join(file)).unwrap(); // cannot be written
        }
        Hierarchy::make(Version::Two, own.path(), vec!["memory", "pids"]).unwrap_err();
        let [made] = fs::read_dir(own.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(PREFIX))
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        assert!(File::open(&made).unwrap().try_lock().is_err());
    }
}
