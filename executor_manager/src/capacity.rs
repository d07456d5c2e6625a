//! What this process may use of the machine, which is what there is to lease if nobody else says.
//!
//! A container, a batch job or a systemd unit is a control group with limits of its own, and so may be each
//! group that it is in; the smallest counts. Those of processor time are `available_parallelism`'s to know.

use std::path::Path;

use nix::sys::sysinfo::sysinfo;
use rfaas_config::ExecutorManagerNode;
use rfaas_protocol::Capacity;

use crate::Error;
use crate::groups::Mount;

/// What to lease if nobody else says: as configured, else what this process may use of the machine.
pub fn own(node: &ExecutorManagerNode) -> Result<Capacity, Error> {
    let cores = match node.cores {
        Some(cores) => cores,
        None => std::thread::available_parallelism()
            .ok()
            .and_then(|cores| u32::try_from(cores.get()).ok())
            .ok_or_else(|| Error::Start("cannot find out the cores: set config.cores".into()))?,
    };
    let memory = match node.memory {
        Some(memory) => memory,
        None => memory()
            .ok_or_else(|| Error::Start("cannot find out the memory: set config.memory".into()))?,
    };
    Ok(Capacity { cores, memory })
}

/// Memory that this process may use, in MB, at least 1.
fn memory() -> Option<u32> {
    let machine = sysinfo().ok()?.ram_total();
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let limit = group_limit(&text("/proc/self/mountinfo"), &text("/proc/self/cgroup"), read);
    let bytes = limit.map_or(machine, |limit| limit.min(machine));
    u32::try_from((bytes >> 20).max(1)).ok()
}

/// The smallest limit of memory of the control groups that this process is in, in bytes, if there is any:
/// of both versions, proc_pid_mountinfo(5) and cgroups(7).
fn group_limit(mounts: &str, groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
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
        group_limit(mounts, groups, |path| {
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
        assert!(memory().unwrap() >= 1);
    }
}
