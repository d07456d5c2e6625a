//! Which CPU a worker runs on: the one that it is pinned to, or another one when it has to share its own.
//!
//! Two threads that spin look busy to the scheduler wherever they are, so it may leave both on one CPU
//! while another is idle, and each waits for the other's turn to end: tens of microseconds instead of
//! a fraction of one. A worker that notices (`spin`) therefore moves on by itself, unless a function has bound its
//! thread (OpenMP, hwloc): what others have set stays.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// Pins this thread to `cpu`. A CPU that is not there, or not ours, only costs speed.
pub fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    let pinned = cpus.set(cpu).and_then(|()| sched_setaffinity(THIS_THREAD, &cpus));
    if let Err(errno) = pinned {
        tracing::warn!(cpu, %errno, "worker not pinned: check the CPUs that this node leases");
    }
}

/// The CPUs that a thread may use.
#[derive(Clone, Copy, Debug)]
pub struct Cpus(CpuSet);

impl Cpus {
    /// Those of this thread.
    pub fn of_this_thread() -> nix::Result<Self> {
        sched_getaffinity(THIS_THREAD).map(Cpus)
    }

    /// Moves this thread to another of them, if there is another; it may be moved on from there as ever. One
    /// that may not use just these any more was bound by somebody else, and stays.
    pub fn move_on(&self) {
        if sched_getaffinity(THIS_THREAD) != Ok(self.0) {
            return;
        }
        let others = sched_getcpu().and_then(|here| {
            let mut others = self.0;
            others.unset(here)?;
            Ok(others)
        });
        // With no other CPU, or without permission, it stays: that costs speed only.
        let moved = others.and_then(|others| sched_setaffinity(THIS_THREAD, &others));
        if moved.is_ok() {
            // Of the thread's own CPUs, so it cannot be refused unless they have just been taken.
            let _ = sched_setaffinity(THIS_THREAD, &self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_moves_on_is_elsewhere_and_as_free_as_before() {
        let cpus = Cpus::of_this_thread().unwrap();
        let here = sched_getcpu().unwrap();
        cpus.move_on();
        assert_eq!(Cpus::of_this_thread().unwrap().0, cpus.0);
        let alone = (0..CpuSet::count()).filter(|cpu| cpus.0.is_set(*cpu).unwrap()).count() == 1;
        let mut only = CpuSet::new();
        only.set(here).unwrap();
        Cpus(only).move_on();
        assert_eq!(Cpus::of_this_thread().unwrap().0, cpus.0, "not its own");
        if alone {
            assert_eq!(sched_getcpu().unwrap(), here);
        }
    }

    #[test]
    fn a_thread_that_was_bound_meanwhile_stays_bound() {
        let cpus = Cpus::of_this_thread().unwrap();
        let here = sched_getcpu().unwrap();
        pin(here);
        cpus.move_on();
        assert_eq!(sched_getcpu().unwrap(), here);
        let mut only = CpuSet::new();
        only.set(here).unwrap();
        assert_eq!(Cpus::of_this_thread().unwrap().0, only);
    }
}
