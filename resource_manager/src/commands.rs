//! How other threads reach the pool: they send work to the server's loop, ring its bell, and get the
//! answer back. No lock is shared.
//!
//! ```text
//!   http handler ──Work──▶ channel ──▶ loop: work(pool) ▶ actions ▶ database ▶ answer ──oneshot──▶ handler
//!                  bell ─▶ eventfd ─▶ (poll)
//! ```
//! An answer is sent after the actions were carried out: when a node was added, it is in the executors database
//! before the answer says so.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use rfaas_program::poll_loop::Bell;
use tokio::sync::oneshot;

use crate::pool::{Action, Now, Pool};

/// Sends an answer to the one that waits for it.
pub type SendAnswer = Box<dyn FnOnce() + Send>;

/// Something to do with the pool; its answer is sent when the actions have been carried out.
pub type Work = Box<dyn FnOnce(&mut Pool, Now, &mut Vec<Action>) -> SendAnswer + Send>;

/// What the loop is sent.
pub enum Command {
    /// To be done.
    Work(Work),
    /// Leave the loop.
    Stop,
}

/// The loop is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the resource manager is stopping")]
pub struct Stopped;

/// Sends commands to the loop; cheap to clone.
#[derive(Clone)]
pub struct Commands {
    queue: Sender<Command>,
    bell: Bell,
}

/// The loop's end.
pub struct Inbox {
    queue: Receiver<Command>,
    bell: Bell,
}

/// Both ends. Fails only if the process has no descriptor left.
pub fn commands() -> nix::Result<(Commands, Inbox)> {
    let bell = Bell::new()?;
    let (sender, receiver) = channel();
    Ok((Commands { queue: sender, bell: bell.clone() }, Inbox { queue: receiver, bell }))
}

impl Commands {
    /// Has `work` done and waits for what it returns.
    pub async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pool, Now, &mut Vec<Action>) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (sender, receiver) = oneshot::channel();
        self.send(Command::Work(Box::new(move |pool, now, out| {
            let answer = work(pool, now, out);
            Box::new(move || drop(sender.send(answer))) // the asker may have gone: its right
        })))?;
        receiver.await.map_err(|_| Stopped)
    }

    /// Has `work` done some time.
    pub fn tell(
        &self,
        work: impl FnOnce(&mut Pool, Now, &mut Vec<Action>) + Send + 'static,
    ) -> Result<(), Stopped> {
        self.send(Command::Work(Box::new(move |pool, now, out| {
            work(pool, now, out);
            Box::new(|| ())
        })))
    }

    /// Makes the loop end.
    pub fn stop(&self) -> Result<(), Stopped> {
        self.send(Command::Stop)
    }

    fn send(&self, command: Command) -> Result<(), Stopped> {
        self.queue.send(command).map_err(|_| Stopped)?;
        self.bell.ring();
        Ok(())
    }
}

impl Inbox {
    /// What came first, if anything did.
    pub fn try_next(&self) -> Option<Command> {
        self.queue.try_recv().ok() // disconnected is as good as empty: nobody asks
    }

    /// Silences the bell; before looking for commands, so that none is missed.
    pub fn acknowledge(&self) {
        self.bell.silence();
    }
}

/// Readable when there may be commands.
impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
