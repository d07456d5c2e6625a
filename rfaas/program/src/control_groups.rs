//! Where control groups are mounted and which of them this process is in: proc_pid_mountinfo(5), cgroups(7). Pure.

use std::path::{Path, PathBuf};

/// The two kinds of hierarchies: one for each controller, or one for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

/// Where a hierarchy of control groups is mounted.
#[derive(Debug)]
pub struct Mount<'a> {
    pub version: Version,
    /// The group that is mounted there.
    root: &'a str,
    at: &'a str,
}

impl<'a> Mount<'a> {
    /// Reads a line of `/proc/self/mountinfo`: `ID PARENT DEVICE ROOT AT OPTIONS … - TYPE SOURCE OPTIONS`. `None`: it
    /// is no hierarchy that may have `controller`.
    pub fn parse(line: &'a str, controller: &str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, at) = (front.next()?, front.next()?);
        let mut back = back.split(' ');
        let (kind, options) = (back.next()?, back.nth(1)?);
        let version = match kind {
            "cgroup2" => Version::Two,
            "cgroup" if options.split(',').any(|option| option == controller) => Version::One,
            _ => return None,
        };
        Some(Mount { version, root, at })
    }

    /// Returns the group of `groups`, the text of `/proc/self/cgroup`, that this process is in here.
    pub fn group<'t>(&self, groups: &'t str, controller: &str) -> Option<&'t str> {
        groups.lines().find_map(|line| self.version.group(line, controller))
    }

    /// Directories of `group` and of all that it is in, as far as they are mounted here. A group that is
    /// not, as in a container that sees only its own, is the mounted one.
    pub fn directories(&self, group: &str) -> Vec<PathBuf> {
        let at = Path::new(self.at);
        let below = Path::new(group).strip_prefix(self.root).unwrap_or(Path::new(""));
        below.ancestors().map(|group| at.join(group)).collect()
    }
}

impl Version {
    /// The file of a group with its limit of memory, in bytes; of version 2 it says `max` if there is none.
    pub fn memory_limit(self) -> &'static str {
        match self {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        }
    }

    /// The path in a line of `/proc/self/cgroup`, `NUMBER:CONTROLLERS:PATH`, if it is the one with `controller`.
    fn group<'t>(self, line: &'t str, controller: &str) -> Option<&'t str> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = match self {
            Version::One => controllers.split(',').any(|one| one == controller),
            Version::Two => controllers.is_empty(),
        };
        ours.then_some(path)
    }
}
