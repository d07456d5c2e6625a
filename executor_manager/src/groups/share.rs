//! How much the control group of an executor may have: as much as its limit of private memory is where there is no
//! group (`rfaas_sandbox`, the executor's `confinement`), so that one process alone meets that first, which it can handle.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::Pid;
use rfaas_protocol::assignment::Assignment;

use super::GroupLimits;

/// An executor before its share, in bytes: its program, libraries and their heaps, what the kernel keeps for it.
const OWN_MEMORY: u64 = 128 << 20;
/// Copies of a library while it is received and loaded.
const LIBRARY_COPIES: u64 = 3;
/// What a slot has besides input and output, in bytes: headers, and the rest of pages.
const SLOT_EDGES: u64 = 16 << 10;
/// Stack of a worker where there is no limit, in bytes.
const UNLIMITED_STACK: u64 = 64 << 20;

/// Returns what the group of an executor with this assignment may have, which has loaded `preloaded` bytes of libraries
/// before.
pub fn limits_of(assignment: &Assignment, preloaded: u64) -> GroupLimits {
    let leased = u64::from(assignment.memory) << 20;
    let stack = getrlimit(Resource::RLIMIT_STACK).map_or(RLIM_INFINITY, |(soft, _)| soft);
    let stack = if stack == RLIM_INFINITY { UNLIMITED_STACK } else { stack };
    let stacks = (u64::from(assignment.workers) + processors()).saturating_mul(stack);
    let slot = u64::from(assignment.input_bytes) + u64::from(assignment.output_bytes) + SLOT_EDGES;
    let slots = u64::from(assignment.slots) * u64::from(assignment.workers);
    let parts = [
        leased,
        stacks,
        LIBRARY_COPIES * u64::from(assignment.code_bytes),
        slots.saturating_mul(slot),
        preloaded,
    ];
    let memory = parts.into_iter().fold(OWN_MEMORY, u64::saturating_add);
    GroupLimits { memory, cpus: assignment.pin_to.clone() }
}

fn processors() -> u64 {
    sched_getaffinity(Pid::from_raw(0)).map_or(1, |cpus| {
        (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu) == Ok(true)).count() as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_loaded_before_is_not_taken_from_the_lease() {
        let assignment: Assignment = serde_json::from_str(
            r#"{"lease": 7, "memory": 512, "client": "127.0.0.1:4000",
                "session_secret": "000102030405060708090a0b0c0d0e0f", "workers": 2, "pin_to": [1],
                "slots": 1, "input_bytes": 64, "output_bytes": 64, "code_bytes": 1000,
                "code_hash": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "library": "absent", "hot_timeout_ms": 0}"#,
        )
        .unwrap();
        let (without, with) = (limits_of(&assignment, 0), limits_of(&assignment, 5000));
        assert_eq!(with.memory, without.memory + 5000);
        assert_eq!(limits_of(&assignment, u64::MAX).memory, u64::MAX);
    }
}
