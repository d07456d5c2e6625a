//! Executor processes: how they come to be. Nothing here waits.
//!
//! ```text
//!   Launcher::start ─▶ exec: posix_spawn(3) of the program `executor` ─▶ ExecutorChild (`child`)
//! ```
//! * An executor gets its assignment on standard input, sockets of its own (`output`) as standard
//!   output and error, the library's file (`cache`), no other descriptor of the manager, no signal blocked or ignored, and of the environment what
//!   is listed (`environment`).
//! * It leads a session, and in it a process group, which it can leave for no other: the terminal
//!   that the manager was started from is out of its reach.
//!
//! Elsewhere: its end (`child`), when to stop one (`allocations`). An executor asks the kernel itself to die
//! with its manager.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{AccessFlags, access};
use rfaas_protocol::assignment::Assignment;

use crate::cache::Library;
use crate::environment;
use crate::output::{Outputs, StandardStreams};

mod child;
mod exec;
mod remains;

pub use child::{ExecutorChild, ended_child, reap};
use exec::Exec;

/// Name of the program.
const PROGRAM: &str = "executor";

/// Longest part of `PATH` in a message, so that what to do fits the answer to a client.
const SHOWN_PATH: usize = 100;

/// Why an executor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No directory of `PATH` has it, nor our own; the operator must set it.
    #[error(
        "cannot start `{PROGRAM}`: not found in PATH={path} nor beside executor_manager; add the \
         programs' directory to its PATH and restart it"
    )]
    NotFound {
        /// The value, shortened.
        path: String,
    },
    /// It is there but cannot be run.
    #[error("cannot start `{}`: {reason}", program.display())]
    Exec {
        /// Where it was found.
        program: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The assignment could not be passed on.
    #[error("cannot pass its assignment to `{PROGRAM}`: {0}")]
    Assignment(io::Error),
    /// There are no sockets, or no thread, for what it writes.
    #[error("cannot read what `{PROGRAM}` writes: {0}")]
    Output(io::Error),
}

/// Starts executors.
#[derive(Debug)]
pub struct Launcher {
    program: Program,
    exec: Exec,
    outputs: Outputs,
}

/// The descriptors that an executor starts with.
#[derive(Debug)]
struct Descriptors {
    /// The assignment, as standard input.
    input: File,
    streams: StandardStreams,
    /// The library's file, as [`LIBRARY_DESCRIPTOR`](rfaas_protocol::assignment::LIBRARY_DESCRIPTOR) and the next.
    library: Vec<OwnedFd>,
}

impl Launcher {
    /// Starts executors from this process's `PATH`, else from its own directory, with what they get of its
    /// environment, variables named `more` too.
    pub fn from_environment(more: &[String]) -> Self {
        let environment = environment::of_executors(more);
        let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_owned()));
        Launcher::new(std::env::var_os("PATH").unwrap_or_default(), beside, environment)
    }

    fn new(
        search: OsString,
        beside: Option<PathBuf>,
        environment: Vec<(OsString, OsString)>,
    ) -> Self {
        let environment = environment
            .into_iter()
            .map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'='))
            .filter_map(|entry| CString::new(entry).ok()) // the environment has no NUL bytes
            .collect();
        let program = Program { search, beside };
        Launcher { program, exec: Exec::new(environment), outputs: Outputs::default() }
    }

    /// What executors write.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// Whether there is an executor to start.
    pub fn check(&self) -> Result<(), StartError> {
        self.program.find().map(drop)
    }

    /// Starts an executor for `assignment`, which says what it has of `library`.
    pub fn start(
        &mut self,
        assignment: &Assignment,
        library: Library,
    ) -> Result<ExecutorChild, StartError> {
        let program = self.program.find()?;
        // A file and not a pipe: it takes an assignment of any length at once.
        let input = assignment_file(assignment).map_err(StartError::Assignment)?;
        let (output, streams) =
            self.outputs.follow(assignment.lease).map_err(StartError::Output)?;
        let failed =
            |errno: Errno| StartError::Exec { program: program.clone(), reason: errno.into() };
        let library = library.into_descriptors();
        let descriptors = Descriptors { input, streams, library };
        let pid = self.exec.start(&program, descriptors).map_err(failed)?;
        Ok(ExecutorChild::new(pid, output))
    }
}

/// Where the program is looked for.
#[derive(Debug)]
struct Program {
    search: OsString,
    /// Where this program is: the last place to look.
    beside: Option<PathBuf>,
}

impl Program {
    /// The first `executor` in `PATH` that can be run, as `execvp` chooses; else the one beside this program.
    fn find(&self) -> Result<PathBuf, StartError> {
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

/// The assignment as a file that exists only as a descriptor, which a child gets only as its input.
fn assignment_file(assignment: &Assignment) -> io::Result<File> {
    let json = serde_json::to_vec(assignment)?;
    let mut file = File::from(memfd_create(c"assignment", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&json)?;
    file.rewind()?; // the offset is the child's too
    Ok(file)
}

fn shown(path: &OsStr) -> String {
    let text = String::from_utf8_lossy(path.as_bytes());
    match text.char_indices().nth(SHOWN_PATH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests;
