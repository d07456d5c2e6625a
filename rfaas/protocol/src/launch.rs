//! Executor manager and the processes of the program `executor` that start executors for it, over
//! sockets of their own.
//!
//! ```text
//!   zygote ◀──Prepare + ZygoteSettings────────────────────────── manager     once
//!   zygote ──Ready + IsolationReport───────────────────────────▶ manager     once
//!   zygote ◀──Start + instructions, streams, lifeline, more───── manager     for each executor
//!   zygote ──Started + pidfd, or NotStarted────────────────────▶ manager
//!
//!   child ◀──Go + its group───────────────────────────────────── manager     over the lifeline, once it has the pidfd
//!   guardian ◀──Grow + end of a pipe──────────────────────────── manager     likewise
//!   guardian ◀──Stop──────────────────────────────────────────── manager     likewise
//!   guardian ──Ended───────────────────────────────────────────▶ manager
//!
//!   executor ──Ready───────────────────────────────────────────▶ manager     if it stands by
//!   executor ◀──Assign + assignment, pipe, library────────────── manager     once, last
//! ```
//! What stands behind a plus is a descriptor. Settings, report, instructions and assignment are files in memory
//! with a JSON object. The processes are parts of one release and of one machine, started by the
//! manager. They trust each other.

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32};

use super::isolation::SandboxSettings;
use super::{Empty, Text, messages, wire};

/// Largest JSON object that is passed, in bytes: instructions with a pinned CPU for each of 65,535
/// workers, and room for the rest.
pub const MAX_JSON_BYTES: u64 = 1 << 20;

/// What a zygote prepares for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZygoteSettings {
    /// `"verbs"`, `"tcp"` or `"shm"`: of the device that executors use.
    pub provider: String,
    /// How executors are isolated. Of the layers it takes those that are to be had.
    pub sandbox: SandboxSettings,
}

wire! {
    /// The first message of each side: this is what it speaks.
    pub struct Speaks [2 bytes] {
        /// Version of its protocol ([`VERSION`](super::VERSION)).
        pub version: U16,
    }

    /// The process that was wanted: a child of the manager, the guardian of an executor or the
    /// executor itself. Its pidfd comes with this.
    pub struct Started [4 bytes] {
        /// Its process id.
        pub pid: U32,
    }

    /// There is no process.
    pub struct NotStarted [242 bytes] {
        /// What the system said.
        pub reason: Text<240>,
    }

    /// The executor has got a lease of other memory than was expected. Its `/tmp` is to hold as much. The end of a
    /// pipe comes with this. It is closed when that is so, and written to if it cannot be.
    pub struct Grow [4 bytes] {
        /// Memory of the lease, in MB.
        pub memory: U32,
    }

    /// How an executor ended, of which its guardian is the parent.
    pub struct Ended [8 bytes] {
        /// Signal that killed it; 0: none did.
        pub signal: U32,
        /// Exit status, if no signal did.
        pub status: U32,
    }
}

messages! {
    /// Zygote to executor manager.
    pub enum FromZygote {
        /// Once, first: it takes requests from now on.
        1 => Ready(Speaks),
        /// An answer.
        2 => Started(Started),
        /// Likewise.
        3 => NotStarted(NotStarted),
    }
}

messages! {
    /// Executor manager to zygote.
    pub enum ToZygote {
        /// Once, first.
        1 => Prepare(Speaks),
        /// An executor is wanted. Its descriptors come with this, in this order: the instructions, standard
        /// output, standard error, the guardian's end of the lifeline; then those of the library's file or, if the
        /// executor stands by, its end of the channel over which the assignment comes, and the files of libraries that
        /// it loads before.
        2 => Start(Empty),
    }
}

messages! {
    /// Guardian to executor manager.
    pub enum FromGuardian {
        /// Once, last.
        1 => Ended(Ended),
    }
}

messages! {
    /// Executor manager to a process that was cloned, which becomes a guardian or an executor.
    pub enum ToGuardian {
        /// The executor is to be asked to end.
        1 => Stop(Empty),
        /// Once, first, also to an executor that has no guardian: the manager has it now, and it may begin. Before
        /// that it moves into its control group, by writing `0` to each file that comes with this.
        2 => Go(Empty),
        /// It has a lease of other memory than was expected.
        3 => Grow(Grow),
    }
}

messages! {
    /// Executor that stands by to executor manager.
    pub enum FromStandby {
        /// Once: what does not depend on a lease is done.
        1 => Ready(Empty),
    }
}

messages! {
    /// Executor manager to an executor that stands by.
    pub enum ToStandby {
        /// Once, last: there is a lease. The assignment comes with this, then, if it has other memory than was
        /// expected, the other end of the pipe of [`Grow`], and the descriptors of the library's file. Foreign code has
        /// to wait for the end of the pipe.
        1 => Assign(Empty),
    }
}
