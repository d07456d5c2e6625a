//! Starting the program `executor` with posix_spawn(3), from `PATH` or from beside this program.
//! Nothing of this process passes to it but what is given.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use nix::unistd::{AccessFlags, Pid, access};
use rfaas_program::inherited::FEWEST_DESCRIPTORS;
use rfaas_protocol::assignment::LIBRARY_DESCRIPTOR;
use rustix::io::fcntl_dupfd_cloexec;

use super::{Descriptors, StartError};

/// Name of the program.
pub const PROGRAM: &str = "executor";

/// Longest part of `PATH` in a message, so that what to do fits the answer to a client.
const SHOWN_PATH: usize = 100;

/// Descriptors that may be open at the start where the system does not say: those below the fewest
/// that a manager starts with. Numbers beyond the limit could not be closed.
const GUESSED_DESCRIPTORS: RawFd = FEWEST_DESCRIPTORS as RawFd;

/// Has the child lead a session, and with that a process group: `POSIX_SPAWN_SETSID`, which nix has
/// no name for (glibc 2.26, musl 1.1.22).
const SET_SESSION: PosixSpawnFlags = PosixSpawnFlags::from_bits_retain(0x80);

/// The program, and what it gets of this process.
#[derive(Debug)]
pub struct Exec {
    search: OsString,
    /// Where this program is: the last place to look.
    beside: Option<PathBuf>,
    environment: Vec<CString>,
    /// Open when this was made. Ours are closed on exec anyway; the parent of the manager may have
    /// left it some that are not.
    inherited: Vec<RawFd>,
}

impl Exec {
    /// Starts the program from a directory of `search`, else from `beside`, with `environment`.
    pub fn new(
        search: OsString,
        beside: Option<PathBuf>,
        environment: Vec<(OsString, OsString)>,
    ) -> Self {
        let environment = entries(environment);
        Exec { search, beside, environment, inherited: open_descriptors() }
    }

    /// Starts an executor.
    pub fn start(&self, descriptors: &Descriptors<'_>) -> Result<Pid, StartError> {
        let Descriptors { input, streams, more } = descriptors;
        let standard = [input.as_raw_fd(), streams.stdout.as_raw_fd(), streams.stderr.as_raw_fd()];
        self.spawn(&[c"executor"], standard, more)
    }

    /// Starts a zygote that talks over `channel`. What it has to say without that goes to the
    /// standard error of this process.
    pub fn start_zygote(&self, channel: BorrowedFd<'_>) -> Result<Pid, StartError> {
        let standard = [channel.as_raw_fd(), 2, 2];
        self.spawn(&[c"executor", c"zygote"], standard, &[])
    }

    /// Starts the program, which leads a session of its own, with these standard streams, and `more`
    /// numbered from 3 on.
    pub(super) fn spawn(
        &self,
        arguments: &[&CStr],
        standard: [RawFd; 3],
        more: &[BorrowedFd<'_>],
    ) -> Result<Pid, StartError> {
        let program = self.find()?;
        let beyond = LIBRARY_DESCRIPTOR + more.len() as RawFd; // a few
        // Beyond the numbers that they get in the child, where one would be overwritten.
        let more: Result<Vec<_>, _> =
            more.iter().map(|descriptor| fcntl_dupfd_cloexec(descriptor, beyond)).collect();
        let spawned = more.map_err(|_| Errno::EMFILE).and_then(|more| {
            self.spawn_other(&program, arguments, &self.environment, standard, &more)
        });
        spawned.map_err(|errno: Errno| StartError::Exec { program, reason: errno.into() })
    }

    /// Starts another program likewise, with this `environment`.
    pub(super) fn spawn_other(
        &self,
        program: &Path,
        arguments: &[impl AsRef<CStr>],
        environment: &[CString],
        standard: [RawFd; 3],
        more: &[OwnedFd],
    ) -> nix::Result<Pid> {
        let (actions, attributes) = self.prepare(standard, more)?;
        posix_spawn(program, &actions, &attributes, arguments, environment)
    }

    fn prepare(
        &self,
        standard: [RawFd; 3],
        more: &[OwnedFd],
    ) -> nix::Result<(PosixSpawnFileActions, PosixSpawnAttr)> {
        let mut actions = PosixSpawnFileActions::init()?;
        for (to, from) in (0..).zip(standard) {
            actions.add_dup2(from, to)?;
        }
        for &descriptor in &self.inherited {
            actions.add_close(descriptor)?;
        }
        for (to, from) in (LIBRARY_DESCRIPTOR..).zip(more) {
            actions.add_dup2(from.as_raw_fd(), to)?;
        }
        let mut attributes = PosixSpawnAttr::init()?;
        // The manager blocks the signals that it reads from a descriptor, std ignores SIGPIPE, and
        // whoever started the manager may have had it ignore others; nobody inherits anything of
        // it.
        attributes.set_sigmask(&SigSet::empty())?;
        attributes.set_sigdefault(&SigSet::all())?;
        attributes.set_flags(
            SET_SESSION
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
        )?;
        Ok((actions, attributes))
    }

    /// Where programs are looked for first.
    pub(super) fn search(&self) -> &OsStr {
        &self.search
    }

    /// What executors get of the environment.
    pub(super) fn environment(&self) -> &[CString] {
        &self.environment
    }

    /// The first `executor` in `PATH` that can be run, as `execvp` chooses; else the one beside
    /// this program.
    pub fn find(&self) -> Result<PathBuf, StartError> {
        let mut unusable = None;
        for directory in std::env::split_paths(&self.search).chain(self.beside.clone()) {
            let program = directory.join(PROGRAM);
            if !program.is_file() {
                continue;
            }
            match access(&program, AccessFlags::X_OK) {
                Ok(()) => return Ok(program),
                Err(errno) => unusable = unusable.or(Some((program, errno))),
            }
        }
        Err(match unusable {
            Some((program, errno)) => StartError::Exec { program, reason: errno.into() },
            None => StartError::NotFound { path: shown(&self.search) },
        })
    }
}

/// Returns variables as a program gets them.
pub(super) fn entries(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<CString> {
    variables
        .into_iter()
        .map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'='))
        .filter_map(|entry| CString::new(entry).ok()) // the environment has no NUL bytes
        .collect()
}

/// Descriptors of this process beyond the standard ones; closing one in a child that is not open
/// there any more does no harm.
fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return (3..GUESSED_DESCRIPTORS).collect(); // no /proc: any of these may be open
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&descriptor| descriptor > 2)
        .collect()
}

pub(super) fn shown(path: &OsStr) -> String {
    let text = String::from_utf8_lossy(path.as_bytes());
    match text.char_indices().nth(SHOWN_PATH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}
