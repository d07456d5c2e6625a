//! The engine's program: run to its end at the start of this manager, and later beside its loop.
//!
//! Every run has an end: what takes longer is killed, with what it has started.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::iter;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{AccessFlags, Pid, access};
use rfaas_program::local_channel::wait;

use crate::launch::child::pidfd_of;
use crate::launch::exec::{Exec, entries, shown};
use crate::signals::Signals;

/// Most that is read of what a run has printed, in bytes.
const MOST_PRINTED: u64 = 64 << 10;

/// Where the program is, and what it gets of the environment.
#[derive(Debug)]
pub struct Engine {
    program: PathBuf,
    environment: Vec<CString>,
}

/// What a run came to.
#[derive(Debug)]
pub struct Printed {
    /// The exit status; `None`: a signal ended it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Engine {
    /// Finds `program`, with which each command begins. It gets `environment`.
    pub fn find(
        program: &str,
        search: &std::ffi::OsStr,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> io::Result<Engine> {
        let program = if Path::new(program).is_absolute() {
            access(program, AccessFlags::X_OK)?;
            PathBuf::from(program)
        } else {
            let mut places = std::env::split_paths(search).map(|place| place.join(program));
            let runs =
                |place: &PathBuf| place.is_file() && access(place, AccessFlags::X_OK).is_ok();
            places.find(runs).ok_or_else(|| {
                io::Error::other(format!("there is none in PATH={}", shown(search)))
            })?
        };
        Ok(Engine { program, environment: entries(environment) })
    }

    /// The program at this path.
    pub fn at(program: &Path, environment: Vec<CString>) -> Engine {
        Engine { program: program.to_owned(), environment }
    }

    /// Starts it with these words, of which the first is its name.
    pub fn spawn(
        &self,
        exec: &Exec,
        words: &[String],
        standard: [BorrowedFd<'_>; 3],
    ) -> io::Result<Pid> {
        let words: Result<Vec<CString>, _> =
            words.iter().map(|w| CString::new(w.as_str())).collect();
        let standard = standard.map(|descriptor| descriptor.as_raw_fd());
        let spawned = exec.spawn_other(&self.program, &words?, &self.environment, standard, &[]);
        Ok(spawned?)
    }

    /// Starts it beside the loop: it has until `kill_at`. What it prints is not read.
    pub fn help(&self, exec: &Exec, words: &[String], kill_at: Instant) -> io::Result<Helper> {
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        let pid = self.spawn(exec, words, [nothing.as_fd(); 3])?;
        Ok(Helper { pid, pidfd: pidfd_of(pid), kill_at: Some(kill_at) })
    }

    /// Runs it to its end, and kills it after `within`, or when one of `signals` is to stop this manager: then the
    /// error is [`Interrupted`](io::ErrorKind::Interrupted).
    pub fn run(
        &self,
        exec: &Exec,
        words: &[String],
        within: Duration,
        signals: Option<&Signals>,
    ) -> io::Result<Printed> {
        let nothing = File::open("/dev/null")?;
        let printed = || memfd_create(c"printed", MFdFlags::MFD_CLOEXEC).map(File::from);
        let (stdout, stderr) = (printed()?, printed()?);
        let deadline = Instant::now() + within;
        let pid = self.spawn(exec, words, [nothing.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
        let mut helper = Helper { pid, pidfd: pidfd_of(pid), kill_at: Some(deadline) };
        let status = loop {
            if let Some(status) = helper.try_wait() {
                break status;
            }
            if let Some(signals) = signals
                && signals.take()?.stop
            {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(io::Error::other(format!("not finished after {within:?}")));
            }
            helper.sleep(deadline - now, signals)?;
        };
        let status = match status {
            Some(WaitStatus::Exited(_, status)) => Some(status),
            _ => None,
        };
        Ok(Printed { status, stdout: text(stdout)?, stderr: text(stderr)? })
    }
}

fn text(mut file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MOST_PRINTED).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A run of the engine that is waited for. It is killed when this is dropped, and reaped with the children that this
/// program has not started.
#[derive(Debug)]
pub struct Helper {
    pid: Pid,
    pidfd: Option<OwnedFd>,
    /// `None`: it was killed, or has ended.
    kill_at: Option<Instant>,
}

impl Helper {
    /// Whether it is this child, which nobody else may reap: signals go to its number.
    pub fn waits_for(&self, child: Pid) -> bool {
        self.kill_at.is_some() && self.pid == child
    }

    /// When it is to be looked at again at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.kill_at
    }

    /// Returns whether it has ended, or its time is over, at which it is killed.
    pub fn is_over(&mut self, now: Instant) -> bool {
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill();
        }
        self.kill_at.is_none() || self.try_wait().is_some()
    }

    /// Lets it go on without being waited for.
    pub fn leave(mut self) {
        self.kill_at = None;
    }

    /// Returns how it ended, if it has: `None` inside if others have reaped it.
    fn try_wait(&mut self) -> Option<Option<WaitStatus>> {
        match waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::StillAlive) => None,
            ended => {
                self.kill_at = None;
                Some(ended.ok())
            }
        }
    }

    fn kill(&mut self) {
        if self.kill_at.is_some() && self.try_wait().is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL); // not reaped: the number is still its own
            self.kill_at = None;
        }
    }

    fn sleep(&self, within: Duration, signals: Option<&Signals>) -> io::Result<()> {
        /// Between two looks where the kernel has no pidfds.
        const LOOK_AGAIN: Duration = Duration::from_millis(10);
        match &self.pidfd {
            Some(ended) => {
                let descriptors = iter::once(ended.as_fd()).chain(signals.map(AsFd::as_fd));
                let polled = descriptors.map(|it| PollFd::new(it, PollFlags::POLLIN));
                wait(&mut polled.collect::<Vec<_>>(), Some(within))?;
            }
            None => std::thread::sleep(within.min(LOOK_AGAIN)),
        }
        Ok(())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn a_run_ends_when_this_manager_is_to_stop() {
        let signals = Signals::block().unwrap(); // of this thread
        let exec = Exec::new("".into(), None, Vec::new());
        let sleep = Engine::at(Path::new("/bin/sleep"), Vec::new());
        let within = Duration::from_secs(60);
        let run = |seconds: &str| {
            sleep.run(&exec, &["sleep".into(), seconds.into()], within, Some(&signals))
        };
        assert_eq!(run("0").unwrap().status, Some(0));
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(run("1000").unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
