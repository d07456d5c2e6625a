//! Limits of resources, so that functions find those that the operator has set for the executor manager.
//!
//! A crash leaves no core file: it would be as large as everything that is mapped, hold one
//! client's data, and delay the news of the crash until it is written. PR_SET_DUMPABLE would do the
//! same, but take from functions what they may read of themselves in `/proc`, and debuggers.
//!
//! Elsewhere: stacks (`footprint` of `rfaas_program`), all other limits, which pass from the manager to this process as
//! they are.

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// Descriptors of an executor that has no workers: standard streams, events, connections to client and
/// manager, the device.
const OWN_DESCRIPTORS: u64 = 64;
/// Descriptors of a worker: two connections, each a socket, memory of both ends, and doorbells; that is
/// 10 on the embedded device, rounded up.
const DESCRIPTORS_PER_WORKER: u64 = 16;

/// Descriptors that there is room for from the start: 4 KiB of the kernel, and those of 28 workers.
const ROOM: rlim_t = OWN_DESCRIPTORS + 28 * DESCRIPTORS_PER_WORKER;

/// Has the kernel make room for the descriptors of a usual executor. To be called while there is one thread: later the
/// kernel waits for all processors before it takes a larger table (synchronize_rcu in expand_fdtable), some 10 ms in
/// which each thread that opens something waits too.
pub fn make_room() {
    let room = getrlimit(Resource::RLIMIT_NOFILE).map_or(ROOM, |(soft, _)| soft.min(ROOM));
    let last = i32::try_from(room.saturating_sub(1)).unwrap_or(i32::MAX);
    let highest = fcntl(std::io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(last));
    match highest {
        Ok(highest) => drop(nix::unistd::close(highest)),
        Err(errno) => tracing::debug!(%errno, "no room for more descriptors"),
    }
}

/// Sets the limits of this process that hold for every lease.
pub fn set() {
    let core = setrlimit(Resource::RLIMIT_CORE, 0, 0); // nor can a function raise it again
    note(core);
}

/// Sets the limit of descriptors for `workers`. The manager was started with a soft limit of `open_files`
/// descriptors and has raised that.
pub fn set_files(open_files: u64, workers: usize) {
    let files = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, descriptors(open_files, workers, hard), hard)
    });
    note(files);
}

fn note(set: nix::Result<()>) {
    if let Err(errno) = set {
        tracing::debug!(%errno, "a limit stays as it is");
    }
}

/// Returns the soft limit of descriptors: what the operator has set, unless that is too little for the workers.
fn descriptors(open_files: rlim_t, workers: usize, hard: rlim_t) -> rlim_t {
    let needed = OWN_DESCRIPTORS + DESCRIPTORS_PER_WORKER * workers as u64;
    open_files.max(needed).min(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_limit_of_descriptors_counts_unless_workers_need_more() {
        assert_eq!(descriptors(1024, 1, 4096), 1024);
        assert_eq!(descriptors(16, 2, 4096), 96);
        assert_eq!(descriptors(1024, 200, 4096), 3264);
        assert_eq!(descriptors(1024, 1000, 4096), 4096, "nobody may have more");
    }
}
