//! Which CPUs pinned workers run on: the least used first, so that executors share a CPU only when
//! more cores are leased than there are CPUs. Pure.
//!
//! Elsewhere: setting the affinity, which each worker does for itself.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// The CPUs of this process, and how many workers each has.
#[derive(Clone, Debug)]
pub struct CpuPool {
    /// Number of the CPU and its workers; never empty.
    cpus: Vec<(usize, u32)>,
}

impl CpuPool {
    /// The CPUs that this process may use, which is what a batch system or `taskset` gave it.
    pub fn of_this_process() -> nix::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        Ok(CpuPool::new((0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))))
    }

    /// A pool of the CPUs with these numbers; without any, of CPU 0.
    pub fn new(numbers: impl IntoIterator<Item = usize>) -> Self {
        let mut cpus: Vec<_> = numbers.into_iter().map(|number| (number, 0)).collect();
        if cpus.is_empty() {
            cpus.push((0, 0));
        }
        CpuPool { cpus }
    }

    /// Takes a CPU for each of `workers` workers: distinct ones as far as there are enough.
    pub fn take(&mut self, workers: u32) -> Vec<usize> {
        let mut taken = Vec::new();
        for _ in 0..workers {
            let least = self.cpus.iter_mut().min_by_key(|(number, used)| (*used, *number));
            let (number, used) = least.expect("`new` leaves at least one CPU");
            *used += 1;
            taken.push(*number);
        }
        taken
    }

    /// Gives back what [`take`](CpuPool::take) returned.
    pub fn give_back(&mut self, taken: &[usize]) {
        for number in taken {
            if let Some((_, used)) = self.cpus.iter_mut().find(|(cpu, _)| cpu == number) {
                *used = used.saturating_sub(1);
            }
        }
    }

    /// Workers on all CPUs.
    #[cfg(test)]
    pub fn in_use(&self) -> u32 {
        self.cpus.iter().map(|(_, used)| used).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executors_get_distinct_cpus_of_those_allowed() {
        let mut pool = CpuPool::new([2, 3, 6, 7]);
        assert_eq!(pool.take(2), [2, 3]);
        assert_eq!(pool.take(2), [6, 7]);
        pool.give_back(&[2, 3]);
        assert_eq!(pool.take(1), [2]);
        assert_eq!(pool.take(1), [3]);
    }

    #[test]
    fn more_workers_than_cpus_share_them_evenly() {
        let mut pool = CpuPool::new([0, 1]);
        assert_eq!(pool.take(5), [0, 1, 0, 1, 0]);
        assert_eq!(pool.take(1), [1]);
        pool.give_back(&[0, 1, 0, 1, 0]);
        pool.give_back(&[1]);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn this_process_may_use_some_cpu() {
        assert!(!CpuPool::of_this_process().unwrap().cpus.is_empty());
    }
}
