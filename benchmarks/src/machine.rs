//! The machine that a figure was measured on.

use std::fmt;
use std::fs;
use std::io::{self, Write};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

/// Processor, cores and kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model name of the processor.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            cpu: model_name(&cpu).unwrap_or(std::env::consts::ARCH).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
        }
    }
}

/// Which end of a ping-pong a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// On the first CPU that the process may use.
    First,
    /// On the last.
    Last,
}

/// Gives this thread a CPU of its own, so that two ends that spin never wait for each other's turn. With a
/// single CPU, or without permission, it stays where it is: the figures then show it.
pub fn settle_down(end: End) {
    settle(Pid::from_raw(0), end);
}

/// The same for every thread of another process, among the CPUs that this thread may use.
pub fn settle_process(id: u32, end: End) {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        settle(Pid::from_raw(thread), end);
    }
}

/// Moves this thread to a CPU, wherever it was settled before.
pub fn move_to(cpu: usize) {
    let mut only = CpuSet::new();
    if let Err(errno) = only.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &only)) {
        warn(errno);
    }
}

/// Number of the CPU of that end, among those that this thread may use.
pub fn cpu_of(end: End) -> Option<usize> {
    chosen(&sched_getaffinity(Pid::from_raw(0)).ok()?, end)
}

fn settle(thread: Pid, end: End) {
    // From the CPUs of this thread: another thread may be settled already.
    let only = sched_getaffinity(Pid::from_raw(0)).and_then(|cpus| {
        let mut only = CpuSet::new();
        chosen(&cpus, end).map_or(Ok(()), |cpu| only.set(cpu))?;
        Ok(only)
    });
    match only.and_then(|only| sched_setaffinity(thread, &only)) {
        Ok(()) | Err(Errno::ESRCH) => {} // a thread that has ended needs none
        Err(errno) => warn(errno),
    }
}

fn warn(errno: Errno) {
    let what = "warning: an end of the ping-pong has no CPU of its own";
    let _ = writeln!(io::stderr(), "{what}: {errno}"); // a warning that cannot be printed is lost
}

fn chosen(cpus: &CpuSet, end: End) -> Option<usize> {
    let mut allowed = (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu).unwrap_or(false));
    if end == End::First { allowed.next() } else { allowed.next_back() }
}

/// `model name : …` on x86; other architectures have no such line.
fn model_name(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} cores, Linux {}", self.cpu, self.cores, self.kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named_where_the_kernel_names_it() {
        assert_eq!(
            model_name("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n"),
            Some("A CPU @ 2 GHz")
        );
        assert_eq!(model_name("processor\t: 0\n"), None);
    }
}
