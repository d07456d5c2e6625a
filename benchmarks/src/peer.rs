//! The other process of a ping-pong.
//!
//! It does not outlive the value that stands for it, nor the thread that started it.

use std::process::{Child, Command};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use rfaas_program::Failure;

/// A process, which does not outlive this value.
#[derive(Debug)]
pub struct PeerProcess(Child);

impl PeerProcess {
    /// Starts `command`, which says where its input and output are.
    pub fn start(mut command: Command) -> Result<Self, Failure> {
        let child = command.spawn();
        child
            .map(PeerProcess)
            .map_err(|error| Failure::later(format!("the peer process did not start: {error}")))
    }

    /// Whether it has.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In the other process: has the kernel kill it when its starter dies.
pub fn die_with_the_starter() -> Result<(), Failure> {
    set_pdeathsig(Signal::SIGKILL).map_err(Failure::later)
}
