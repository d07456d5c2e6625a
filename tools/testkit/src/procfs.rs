//! Processes of this machine, from `/proc`, proc(5). Each may be gone a moment later.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// The fields of `/proc/ID/stat`, proc_pid_stat(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name of its program, cut to 15 bytes.
    pub name: String,
    /// `R` running, `S` sleeping, `Z` ended and not yet waited for, …
    pub state: char,
    /// Id of its parent.
    pub parent: u32,
    /// Processor time that it has used, itself and in the kernel for it, in clock ticks.
    ticks: u64,
}

impl Stat {
    /// Of process `id`, unless it is gone.
    pub fn of(id: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
    }

    /// `ID (NAME) STATE PARENT …`; the name may have blanks and parentheses in it.
    fn parse(line: &str) -> Option<Self> {
        let (front, rest) = line.rsplit_once(") ")?;
        let (_, name) = front.split_once('(')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some(Stat {
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: u32::try_from(number(1)?).ok()?,
            ticks: number(11)? + number(12)?,
        })
    }

    /// Whether it has not ended: one that was not waited for yet has.
    pub fn is_running(&self) -> bool {
        self.state != 'Z'
    }

    /// Processor time that it has used, in steps of usually 10 ms.
    pub fn processor_time(&self) -> Duration {
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100); // USER_HZ
        Duration::from_secs_f64(self.ticks as f64 / per_second as f64)
    }
}

/// Processor time of the threads that process `id` has, to the nanosecond: little in many processes is lost in the
/// steps of [`Stat::processor_time`].
pub fn processor_time_of_threads(id: u32) -> Duration {
    let entries = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let nanoseconds = |text: String| text.split(' ').next()?.parse().ok();
    let times = entries.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    times.filter_map(nanoseconds).map(Duration::from_nanos).sum()
}

/// Ids of all processes.
pub fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// All processes, as they were a moment ago.
#[derive(Debug)]
pub struct Processes(BTreeMap<u32, Stat>);

impl Processes {
    /// Those that are there now.
    pub fn now() -> Self {
        Processes(all().filter_map(|id| Some((id, Stat::of(id)?))).collect())
    }

    /// Those that `parent` has started, ended ones that it did not wait for yet too.
    pub fn children(&self, parent: u32) -> impl Iterator<Item = (u32, &Stat)> {
        let all = self.0.iter().map(|(id, stat)| (*id, stat));
        all.filter(move |(_, stat)| stat.parent == parent)
    }
}

/// Ids of the processes that `parent` has started, ended ones that it did not wait for yet too.
pub fn children(parent: u32) -> Vec<u32> {
    Processes::now().children(parent).map(|(id, _)| id).collect()
}

/// Memory of process `id` in bytes, of which it counts what it shares with others in proportion
/// (PSS, proc_pid_smaps(5)); if we may know.
pub fn proportional_memory(id: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).ok()?;
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(kilobytes.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Id that process `id` has for itself: in its own process namespace, proc_pid_status(5).
pub fn own_id(id: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().last()?.parse().ok()
}

/// Whether process `id` is there and has not ended.
pub fn is_running(id: u32) -> bool {
    Stat::of(id).is_some_and(|stat| stat.is_running())
}

/// Whether each thread of process `id` is stopped. A signal that stops a process does so thread by
/// thread, as each is scheduled.
pub fn is_stopped(id: u32) -> bool {
    threads(id).all(|thread| thread.state == 'T')
}

/// Names of the threads of process `id`.
pub fn thread_names(id: u32) -> Vec<String> {
    threads(id).map(|thread| thread.name).collect()
}

fn threads(id: u32) -> impl Iterator<Item = Stat> {
    let entries = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Stat::parse(&fs::read_to_string(entry.path().join("stat")).ok()?))
}

/// File that process `id` runs, if we may know.
pub fn program(id: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{id}/exe")).ok()
}

/// What the open files of process `id` are, as far as we may know.
pub fn open_files(id: u32) -> Vec<PathBuf> {
    let directory = Path::new("/proc").join(id.to_string()).join("fd");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_fields_around_it() {
        let line = "7 (a) Z 1) S 3 7 7 0 -1 4194304 0 0 0 0 5 6 0 0 20 0 1 0 1 1 1";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.name.as_str(), stat.state, stat.parent), ("a) Z 1", 'S', 3));
        assert_eq!(stat.ticks, 11);
        assert!(stat.is_running());
        assert_eq!(Stat::parse("7 (a)"), None);
    }

    #[test]
    fn this_process_is_listed_runs_and_has_a_program() {
        let id = std::process::id();
        assert!(all().any(|other| other == id));
        assert!(is_running(id) && !is_stopped(id));
        assert_eq!(own_id(id), Some(id));
        assert_eq!(program(id), std::env::current_exe().ok());
        assert!(proportional_memory(id).is_some_and(|bytes| bytes > 0));
        assert!(!is_running(u32::MAX));
    }
}
