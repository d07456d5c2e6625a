//! Starting a program with posix_spawn(3): nothing of this process passes to it but what is given.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use nix::unistd::Pid;
use rfaas_program::inherited::FEWEST_DESCRIPTORS;
use rfaas_protocol::assignment::LIBRARY_DESCRIPTOR;

use super::Descriptors;

/// Descriptors that may be open at the start where the system does not say: those below the fewest
/// that a manager starts with. Numbers beyond the limit could not be closed.
const GUESSED_DESCRIPTORS: RawFd = FEWEST_DESCRIPTORS as RawFd;

/// Has the child lead a session, and with that a process group: `POSIX_SPAWN_SETSID`, which nix has no name for
/// (glibc 2.26, musl 1.1.22).
const SET_SESSION: PosixSpawnFlags = PosixSpawnFlags::from_bits_retain(0x80);

/// What all programs get that this process starts.
#[derive(Debug)]
pub struct Exec {
    environment: Vec<CString>,
    /// Open when this was made. Ours are closed on exec anyway; the parent of the manager may have
    /// left it some that are not.
    inherited: Vec<RawFd>,
}

impl Exec {
    /// Starts programs with `environment`.
    pub fn new(environment: Vec<CString>) -> Self {
        Exec { environment, inherited: open_descriptors() }
    }

    /// Starts an executor.
    pub fn start(&self, program: &Path, descriptors: Descriptors) -> nix::Result<Pid> {
        let Descriptors { input, streams, library } = descriptors;
        let standard = [input.as_raw_fd(), streams.stdout.as_raw_fd(), streams.stderr.as_raw_fd()];
        self.spawn(program, &[c"executor"], standard, library)
    }

    /// Starts `program`, which leads a session of its own, with these standard streams, and `more` numbered from 3 on.
    fn spawn(
        &self,
        program: &Path,
        arguments: &[&CStr],
        standard: [RawFd; 3],
        more: Vec<OwnedFd>,
    ) -> nix::Result<Pid> {
        let beyond = LIBRARY_DESCRIPTOR + more.len() as RawFd; // a few
        let more: io::Result<Vec<_>> = more.into_iter().map(|d| moved_beyond(beyond, d)).collect();
        let more = more.map_err(|_| Errno::EMFILE)?;
        let mut actions = PosixSpawnFileActions::init()?;
        for (to, from) in (0..).zip(standard) {
            actions.add_dup2(from, to)?;
        }
        for &descriptor in &self.inherited {
            actions.add_close(descriptor)?;
        }
        for (to, from) in (LIBRARY_DESCRIPTOR..).zip(&more) {
            actions.add_dup2(from.as_raw_fd(), to)?;
        }
        let mut attributes = PosixSpawnAttr::init()?;
        // The manager blocks the signals that it reads from a descriptor, std ignores SIGPIPE, and whoever
        // started the manager may have had it ignore others; nobody inherits anything of it.
        attributes.set_sigmask(&SigSet::empty())?;
        attributes.set_sigdefault(&SigSet::all())?;
        attributes.set_flags(
            SET_SESSION
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
        )?;
        posix_spawn(program, &actions, &attributes, arguments, &self.environment)
    }
}

/// Moves a descriptor beyond the numbers that descriptors get in a child, where it would be overwritten.
fn moved_beyond(first: RawFd, descriptor: OwnedFd) -> io::Result<OwnedFd> {
    if descriptor.as_raw_fd() >= first {
        return Ok(descriptor);
    }
    moved_beyond(first, descriptor.try_clone()?) // a higher number, since this one is in use
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
