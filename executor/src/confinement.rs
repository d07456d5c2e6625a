//! The sandbox of this process, as its manager has said.
//!
//! ```text
//!   started ──enter: view, rights, files, system calls──▶ devices, threads ──fit: memory──▶ connections
//!                                                         ──close: sockets──▶ library
//! ```
//! What depends on the lease is behind `fit`. Foreign code runs behind `close`.
//!
//! Elsewhere: what each layer does (`rfaas_sandbox`), which of them there are (the executor manager asks with
//! `executor probe`).

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use nix::sched::{CloneFlags, sched_getaffinity, unshare};
use nix::unistd::Pid;
use rfaas_program::local_channel::wait;
use rfaas_protocol::assignment::{AssignedSandbox, Assignment, Instructions};
use rfaas_sandbox::{Error, Sandbox, Share};

use crate::limits;

/// Copies of a library while it is received and loaded.
const LIBRARY_COPIES: u64 = 3;
/// What a slot has besides input and output, in bytes: headers, and the rest of pages.
const SLOT_EDGES: u64 = 16 << 10;
/// How long it may take to have `/tmp` grow. The guardian takes microseconds.
const GROWN_WITHIN: Duration = Duration::from_secs(2);

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// A layer that this node has could not be put on.
    #[error("cannot confine this executor: {0}: {source}", source = .0.source)]
    Layer(#[from] Error),
    /// A namespace could not be entered.
    #[error("cannot confine this executor: unshare: {0}")]
    Namespaces(nix::errno::Errno),
    /// Its guardian could not, or did not.
    #[error("cannot confine this executor: /tmp is not as large as the memory of its lease")]
    NotGrown,
}

/// A process that has given up its rights. Sockets are taken away from it once it has connected.
#[derive(Debug)]
pub struct Confinement {
    sandbox: Sandbox,
    /// Bytes of the libraries that are loaded before there is a lease.
    preloaded: u64,
    share: Share,
    /// At its end when `/tmp` is as large as it has to be.
    grown: Option<PipeReader>,
}

impl Confinement {
    /// Confines this process, which was started by itself and has one thread, as `instructions` say; `None`: they do
    /// not say so.
    pub fn enter(instructions: &Instructions) -> Result<Option<Confinement>, ConfinementError> {
        let Some(assigned) = &instructions.standby.sandbox else { return Ok(None) };
        let sandbox = Sandbox::new(assigned.settings.clone());
        sandbox.enter()?;
        // It is in a mount namespace of its own already.
        let namespaces = sandbox.namespaces() - CloneFlags::CLONE_NEWNS;
        unshare(namespaces).map_err(ConfinementError::Namespaces)?;
        Confinement::put_on(sandbox, assigned, instructions).map(Some)
    }

    /// Confines this process, which was cloned in `sandbox` and has one thread, as `instructions` say.
    pub fn inherit(
        sandbox: Sandbox,
        instructions: &Instructions,
    ) -> Result<Option<Confinement>, ConfinementError> {
        let Some(assigned) = &instructions.standby.sandbox else { return Ok(None) };
        Confinement::put_on(sandbox, assigned, instructions).map(Some)
    }

    fn put_on(
        sandbox: Sandbox,
        assigned: &AssignedSandbox,
        Instructions { standby, assignment }: &Instructions,
    ) -> Result<Confinement, ConfinementError> {
        sandbox.furnish(assignment.as_ref().map(memory))?;
        sandbox.confine(assigned.user)?;
        let preloaded = standby.preload.iter().map(|library| u64::from(library.bytes)).sum();
        let share = Share { memory: 0, base: 0 };
        Ok(Confinement { sandbox, preloaded, share, grown: None })
    }

    /// Limits this process to what it may have for `assignment`. `grown`: at its end when somebody else has seen to
    /// `/tmp`.
    pub fn fit(
        &mut self,
        assignment: &Assignment,
        grown: Option<PipeReader>,
    ) -> Result<(), ConfinementError> {
        self.share = share(assignment);
        self.share.base = self.share.base.saturating_add(self.preloaded);
        self.grown = grown;
        Ok(self.sandbox.fit(&self.share)?)
    }

    /// Takes sockets away, from all threads.
    pub fn close(self) -> Result<(), ConfinementError> {
        if self.grown.is_some_and(|grown| !is_at_its_end(grown)) {
            return Err(ConfinementError::NotGrown);
        }
        Ok(self.sandbox.close(&self.share)?)
    }
}

/// Returns whether `pipe` is closed within the time, and nothing was written to it.
fn is_at_its_end(mut pipe: PipeReader) -> bool {
    let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    let waited = wait(&mut polled, Some(GROWN_WITHIN)).map_err(io::Error::from);
    let news = polled[0].any().unwrap_or(false);
    waited.is_ok() && news && matches!(pipe.read(&mut [0]), Ok(0))
}

/// Returns the memory of the lease, in bytes.
fn memory(assignment: &Assignment) -> u64 {
    u64::from(assignment.memory) << 20
}

/// Returns what an executor may have.
fn share(assignment: &Assignment) -> Share {
    // Threads of a parallel region are as many as processors; their stacks count as soon as they are there.
    let threads = u64::from(assignment.workers) + processors();
    let stacks = threads.saturating_mul(limits::stack_bytes() as u64);
    let library = LIBRARY_COPIES * u64::from(assignment.code_bytes);
    // On an RDMA device, buffers are private memory of this process.
    let slot = u64::from(assignment.input_bytes) + u64::from(assignment.output_bytes) + SLOT_EDGES;
    let slots = u64::from(assignment.slots) * u64::from(assignment.workers);
    let buffers = slots.saturating_mul(slot);
    Share {
        memory: memory(assignment),
        base: stacks.saturating_add(library).saturating_add(buffers),
    }
}

/// Returns how many processors this process may use; 1 if that is not known.
fn processors() -> u64 {
    sched_getaffinity(Pid::from_raw(0)).map_or(1, |cpus| {
        (0..nix::sched::CpuSet::count()).filter(|&cpu| cpus.is_set(cpu) == Ok(true)).count() as u64
    })
}
