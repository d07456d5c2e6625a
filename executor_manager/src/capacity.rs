//! What this process may use of the machine, which is what there is to lease if nobody else says.
//!
//! A container, a batch job or a systemd unit is a control group with limits of its own, and so may be each
//! group that it is in; the smallest counts. Those of processor time are `available_parallelism`'s to know.

use nix::sys::sysinfo::sysinfo;
use rfaas_config::ExecutorManagerNode;
use rfaas_program::control_groups::memory_limit;
use rfaas_protocol::Capacity;

use crate::Error;

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
    let bytes = memory_limit().map_or(machine, |limit| limit.min(machine));
    u32::try_from((bytes >> 20).max(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_memory() {
        assert!(memory().unwrap() >= 1);
    }
}
