//! The sandbox of this process, as its assignment says.
//!
//! ```text
//!   started ──enter: view, rights, files, system calls──▶ devices, threads, connections ──close: sockets──▶ library
//! ```
//! Foreign code runs behind `close`.
//!
//! Elsewhere: what each layer does (`rfaas_sandbox`), which of them there are (the executor manager asks with
//! `executor probe`).

use nix::sched::{CloneFlags, sched_getaffinity, unshare};
use nix::unistd::Pid;
use rfaas_protocol::assignment::Assignment;
use rfaas_sandbox::{Error, Sandbox, Share};

use crate::limits;

/// Copies of a library while it is received and loaded.
const LIBRARY_COPIES: u64 = 3;
/// What a slot has besides input and output, in bytes: headers, and the rest of pages.
const SLOT_EDGES: u64 = 16 << 10;

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// A layer that this node has could not be put on.
    #[error("cannot confine this executor: {0}: {source}", source = .0.source)]
    Layer(#[from] Error),
    /// A namespace could not be entered.
    #[error("cannot confine this executor: unshare: {0}")]
    Namespaces(nix::errno::Errno),
}

/// A process that has given up its rights. Sockets are taken away from it once it has connected.
#[derive(Debug)]
pub struct Confinement {
    sandbox: Sandbox,
    share: Share,
}

impl Confinement {
    /// Confines this process, which was started by itself and has one thread, as `assignment` says; `None`: it does
    /// not say so.
    pub fn enter(assignment: &Assignment) -> Result<Option<Confinement>, ConfinementError> {
        let Some(share) = share(assignment) else { return Ok(None) };
        let Some(assigned) = &assignment.sandbox else { return Ok(None) };
        let sandbox = Sandbox::new(assigned.settings.clone());
        sandbox.enter()?;
        // It is in a mount namespace of its own already.
        let namespaces = sandbox.namespaces() - CloneFlags::CLONE_NEWNS;
        unshare(namespaces).map_err(ConfinementError::Namespaces)?;
        sandbox.furnish(&share)?;
        sandbox.confine(&share)?;
        Ok(Some(Confinement { sandbox, share }))
    }

    /// Confines this process, which was cloned in `sandbox` and has one thread, as `assignment` says.
    pub fn inherit(
        sandbox: Sandbox,
        assignment: &Assignment,
    ) -> Result<Option<Confinement>, ConfinementError> {
        let Some(share) = share(assignment) else { return Ok(None) };
        sandbox.furnish(&share)?;
        sandbox.confine(&share)?;
        Ok(Some(Confinement { sandbox, share }))
    }

    /// Takes sockets away, from all threads.
    pub fn close(&self) -> Result<(), ConfinementError> {
        Ok(self.sandbox.close(&self.share)?)
    }
}

/// Returns what an executor may have.
fn share(assignment: &Assignment) -> Option<Share> {
    let assigned = assignment.sandbox.as_ref()?;
    // Threads of a parallel region are as many as processors; their stacks count as soon as they are there.
    let threads = u64::from(assignment.workers) + processors();
    let stacks = threads.saturating_mul(limits::stack_bytes() as u64);
    let library = LIBRARY_COPIES * u64::from(assignment.code_bytes);
    // On an RDMA device, buffers are private memory of this process.
    let slot = u64::from(assignment.input_bytes) + u64::from(assignment.output_bytes) + SLOT_EDGES;
    let slots = u64::from(assignment.slots) * u64::from(assignment.workers);
    let buffers = slots.saturating_mul(slot);
    Some(Share {
        memory: u64::from(assigned.memory) << 20,
        base: stacks.saturating_add(library).saturating_add(buffers),
        user: assigned.user,
    })
}

/// Returns how many processors this process may use; 1 if that is not known.
fn processors() -> u64 {
    sched_getaffinity(Pid::from_raw(0)).map_or(1, |cpus| {
        (0..nix::sched::CpuSet::count()).filter(|&cpu| cpus.is_set(cpu) == Ok(true)).count() as u64
    })
}
