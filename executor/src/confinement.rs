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
use nix::sched::{CloneFlags, unshare};
use rfaas_program::footprint::footprint;
use rfaas_program::local_channel::wait;
use rfaas_protocol::assignment::{AssignedSandbox, Assignment, Instructions, PreloadedLibrary};
use rfaas_sandbox::{Error, Sandbox, Share};

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
    /// The libraries that are loaded before there is a lease.
    preload: Vec<PreloadedLibrary>,
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
        let known = assignment.as_ref().map(|assignment| assignment.memory).or(standby.memory);
        sandbox.furnish(known.map(bytes))?;
        sandbox.confine(assigned.user)?;
        let preload = standby.preload.clone();
        let share = Share { memory: 0, base: 0 };
        Ok(Confinement { sandbox, preload, share, grown: None })
    }

    /// Limits this process to what it may have for `assignment`. `grown`: at its end when somebody else has seen to
    /// `/tmp`.
    pub fn fit(
        &mut self,
        assignment: &Assignment,
        grown: Option<PipeReader>,
    ) -> Result<(), ConfinementError> {
        let base = footprint(assignment, &self.preload);
        self.share = Share { memory: bytes(assignment.memory), base };
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

/// Returns memory of a lease, given in MB, in bytes.
fn bytes(memory: u32) -> u64 {
    u64::from(memory) << 20
}
