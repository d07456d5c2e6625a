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

/// Returns what the group of an executor with this assignment may have.
pub fn limits_of(assignment: &Assignment) -> GroupLimits {
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
    ];
    let memory = parts.into_iter().fold(OWN_MEMORY, u64::saturating_add);
    GroupLimits { memory, cpus: assignment.pin_to.clone() }
}

fn processors() -> u64 {
    sched_getaffinity(Pid::from_raw(0)).map_or(1, |cpus| {
        (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu) == Ok(true)).count() as u64
    })
}
