//! What an executor needs besides the memory of its lease. Both its limit of private memory (the program `executor`)
//! and that of its control group (the executor manager) are made of it. They are the same, unless its workers are
//! pinned: then it sees its own processors only, of which its limit has fewer stacks.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t};
use nix::unistd::Pid;
use rfaas_protocol::assignment::{Assignment, PreloadedLibrary};

/// Copies of a library while it is received and loaded.
const LIBRARY_COPIES: u64 = 3;
/// What a slot has besides input and output, in bytes: headers, and the rest of pages.
const SLOT_EDGES: u64 = 16 << 10;

/// Stack of a worker where the operator has set no limit, in bytes: eight times the usual limit. Only what
/// a function uses is taken.
const UNLIMITED_STACK_BYTES: u64 = 64 << 20;
/// Largest stack of a worker, in bytes: 128 workers of such stacks fit into the address space.
const MAX_STACK_BYTES: u64 = 64 << 30;
/// Smallest, in bytes: for the worker itself.
const MIN_STACK_BYTES: u64 = 256 << 10;

/// Returns what an executor needs for `assignment`, in bytes, if it has the libraries `preload` too: stacks, buffers
/// and libraries. To be asked in the manager or in the executor, which have the same limits.
pub fn footprint(assignment: &Assignment, preload: &[PreloadedLibrary]) -> u64 {
    // Threads of a parallel region are as many as processors; their stacks count as soon as they are there.
    let threads = u64::from(assignment.workers) + processors();
    // On an RDMA device, buffers are private memory of the executor.
    let slot = u64::from(assignment.input_bytes) + u64::from(assignment.output_bytes) + SLOT_EDGES;
    let slots = u64::from(assignment.slots) * u64::from(assignment.workers);
    let preloaded = preload.iter().map(|library| u64::from(library.bytes));
    let parts = [
        threads.saturating_mul(stack_bytes() as u64),
        LIBRARY_COPIES * u64::from(assignment.code_bytes),
        slots.saturating_mul(slot),
    ];
    parts.into_iter().chain(preloaded).fold(0, u64::saturating_add)
}

/// Returns the stack of a worker, in bytes: what pthread_create(3) gives a thread.
pub fn stack_bytes() -> usize {
    let soft = getrlimit(Resource::RLIMIT_STACK).map_or(RLIM_INFINITY, |(soft, _)| soft);
    stack(soft)
}

fn stack(soft: rlim_t) -> usize {
    let bytes = match soft {
        RLIM_INFINITY => UNLIMITED_STACK_BYTES,
        limit => limit.clamp(MIN_STACK_BYTES, MAX_STACK_BYTES),
    };
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Returns how many processors this process may use; 1 if that is not known.
fn processors() -> u64 {
    sched_getaffinity(Pid::from_raw(0)).map_or(1, |cpus| {
        (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu) == Ok(true)).count() as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_as_large_as_the_limit_says_within_reason() {
        for (limit, bytes) in [
            (8 << 20, 8usize << 20),
            (64 << 20, 64 << 20),
            (RLIM_INFINITY, 64 << 20),
            (1, 256 << 10),
            (RLIM_INFINITY - 1, 64 << 30),
        ] {
            assert_eq!(stack(limit), bytes, "{limit}");
        }
    }
}
