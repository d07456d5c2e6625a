//! The machine a figure was measured on: without it a figure means nothing.

use std::fmt;
use std::fs;

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
    let this = Pid::from_raw(0);
    let chosen = sched_getaffinity(this).and_then(|cpus| {
        let mut allowed = (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu).unwrap_or(false));
        let cpu = if end == End::First { allowed.next() } else { allowed.next_back() };
        let mut only = CpuSet::new();
        cpu.map_or(Ok(()), |cpu| only.set(cpu))?;
        Ok(only)
    });
    if let Err(errno) = chosen.and_then(|only| sched_setaffinity(this, &only)) {
        eprintln!("warning: an end of the ping-pong has no CPU of its own: {errno}");
    }
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
