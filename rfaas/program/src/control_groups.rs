//! Where control groups are mounted, which of them this process is in, and what memory they leave it:
//! proc_pid_mountinfo(5), cgroups(7).

use std::path::{Path, PathBuf};

/// The two kinds of hierarchies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One for each controller, or for some.
    One,
    /// One for all.
    Two,
}

/// Where a hierarchy of control groups is mounted.
#[derive(Debug)]
pub struct Mount<'a> {
    /// Of which kind it is.
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

    /// Returns the directories of `group` and of all that it is in, as far as they are mounted here. A group that is
    /// not, as in a container that sees only its own, is the mounted one.
    pub fn directories(&self, group: &str) -> Vec<PathBuf> {
        let at = Path::new(self.at);
        let below = Path::new(group).strip_prefix(self.root).unwrap_or(Path::new(""));
        below.ancestors().map(|group| at.join(group)).collect()
    }
}

impl Version {
    /// Returns the file of a group with its limit of memory, in bytes; of version 2 it says `max` if there is none.
    pub fn memory_limit(self) -> &'static str {
        match self {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        }
    }

    /// Returns the path in a line of `/proc/self/cgroup`, `NUMBER:CONTROLLERS:PATH`, if it is the one with
    /// `controller`.
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

/// Returns the smallest limit of memory of the control groups that this process is in, in bytes, if there is any that
/// it can see: of both versions.
pub fn memory_limit() -> Option<u64> {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    smallest_limit(&text("/proc/self/mountinfo"), &text("/proc/self/cgroup"), read)
}

fn smallest_limit(
    mounts: &str,
    groups: &str,
    read: impl Fn(&Path) -> Option<String>,
) -> Option<u64> {
    let limits = mounts.lines().filter_map(|line| {
        let mount = Mount::parse(line, "memory")?;
        let group = mount.group(groups, "memory")?;
        let limit =
            |group: &Path| read(&group.join(mount.version.memory_limit()))?.trim().parse().ok();
        mount.directories(group).iter().filter_map(|group| limit(group)).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
    const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate";

    fn limit(mounts: &str, groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        let files: BTreeMap<_, _> = files.iter().copied().collect();
        smallest_limit(mounts, groups, |path| {
            files.get(path.to_str().unwrap()).map(|text| format!("{text}\n"))
        })
    }

    #[test]
    fn the_smallest_limit_of_a_group_and_of_all_around_it_counts() {
        let files = [
            ("/sys/fs/cgroup/job/memory.max", "3000"),
            ("/sys/fs/cgroup/job/step/memory.max", "max"),
            ("/sys/fs/cgroup/other/memory.max", "1"),
        ];
        assert_eq!(limit(V2, "0::/job/step", &files), Some(3000));
        assert_eq!(limit(V2, "0::/job/step/task", &files), Some(3000));
        assert_eq!(limit(V2, "0::/", &files), None);

        let files = [
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
            ("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "500"),
            ("/sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", "700"),
        ];
        let groups = "9:name=systemd:/\n4:cpu,memory:/job/step\n1:cpu:/\n0::/";
        assert_eq!(limit(V1, groups, &files), Some(500));
        assert_eq!(limit(V1, "4:memory:/", &files), Some(9223372036854771712));
    }

    #[test]
    fn both_versions_may_be_there_at_once() {
        let mounts = format!("{V1}\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw");
        let files = [
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "800"),
            ("/sys/fs/cgroup/unified/b/memory.max", "600"),
        ];
        assert_eq!(limit(&mounts, "4:memory:/a\n0::/b", &files), Some(600));
        assert_eq!(limit(&mounts, "4:memory:/a\n0::/", &files), Some(800));
    }

    #[test]
    fn in_a_container_the_group_that_is_mounted_counts() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let files = [("/sys/fs/cgroup/memory/memory.limit_in_bytes", "400")];
        assert_eq!(limit(mounts, "4:memory:/docker/abc", &files), Some(400));
        assert_eq!(limit(mounts, "4:memory:/../elsewhere", &files), Some(400));
    }

    #[test]
    fn what_cannot_be_read_limits_nothing() {
        assert_eq!(limit("", "", &[]), None);
        assert_eq!(limit("nonsense - cgroup2", "0::/", &[]), None);
        assert_eq!(limit(V2, "0:", &[("/sys/fs/cgroup/memory.max", "5")]), None);
    }
}
