//! What the node may lease out, and what of it is taken.
//!
//! CAPACITY - the cores and memory of all leases together never exceed what the node may lease out when a
//! claim is accepted.

use rfaas_protocol::Capacity;
use rfaas_protocol::allocation::RefusedBecause;

use crate::cpus::CpuPool;
use crate::request::RequestRefusal;

#[derive(Debug)]
pub(super) struct Room {
    /// `None` until somebody has said what there is.
    all: Option<Capacity>,
    taken: Capacity,
    /// The CPUs, if workers are pinned to them.
    cpus: Option<CpuPool>,
}

/// What one lease has taken, until it is given back with [`Room::give_back`].
#[derive(Debug)]
pub(super) struct Taken {
    capacity: Capacity,
    /// The CPU of each worker, if they are pinned.
    pub(super) pins: Option<Vec<usize>>,
}

impl Room {
    /// Nothing to lease until [`set`](Self::set). With `cpus`, workers are pinned.
    pub(super) fn new(cpus: Option<CpuPool>) -> Self {
        Room { all: None, taken: Capacity::NOTHING, cpus }
    }

    /// Sets what there is. It may be less than what is taken.
    pub(super) fn set(&mut self, all: Capacity) {
        self.all = Some(all);
    }

    /// What is free: nothing as long as nobody has said what there is.
    pub(super) fn free(&self) -> Capacity {
        let all = self.all.unwrap_or(Capacity::NOTHING);
        Capacity {
            cores: all.cores.saturating_sub(self.taken.cores),
            memory: all.memory.saturating_sub(self.taken.memory),
        }
    }

    /// Whether `wanted` is free (CAPACITY).
    pub(super) fn check(&self, wanted: Capacity) -> Result<(), RequestRefusal> {
        let none = |reason: String| Err(RequestRefusal::new(RefusedBecause::NoCapacity, reason));
        let Some(all) = self.all else {
            return none("this node has not registered with its resource manager yet".into());
        };
        let (Capacity { cores, memory }, free) = (wanted, self.free());
        if cores > free.cores {
            return none(format!("{cores} cores asked for, {} of {} free", free.cores, all.cores));
        }
        if memory > free.memory {
            return none(format!(
                "{memory} MB of memory asked for, {} of {} free",
                free.memory, all.memory
            ));
        }
        Ok(())
    }

    /// Takes what was found to be free.
    pub(super) fn take(&mut self, wanted: Capacity) -> Taken {
        self.taken.cores += wanted.cores;
        self.taken.memory += wanted.memory;
        Taken { capacity: wanted, pins: self.cpus.as_mut().map(|cpus| cpus.take(wanted.cores)) }
    }

    pub(super) fn give_back(&mut self, taken: &Taken) {
        self.taken.cores -= taken.capacity.cores;
        self.taken.memory -= taken.capacity.memory;
        if let (Some(cpus), Some(pins)) = (&mut self.cpus, &taken.pins) {
            cpus.give_back(pins);
        }
    }

    /// What is taken, and how many workers are pinned.
    #[cfg(test)]
    pub(super) fn taken(&self) -> (Capacity, Option<u32>) {
        (self.taken, self.cpus.as_ref().map(CpuPool::in_use))
    }
}
