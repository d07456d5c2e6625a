//! Executor manager to the executor process that it starts: one JSON object on standard input, and the descriptors
//! that it says are there.
//!
//! ```text
//!   Instructions { standby, assignment }      started for a lease
//!   Instructions { standby }  … Assign        stands by until there is a lease (`launch`)
//! ```
//! Not on the command line, because secrets there are visible to every user of the node.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::isolation::SandboxSettings;
use crate::library::LibraryHash;

/// Exit status of an executor that has ended because its manager gave no sign of life: `EX_TEMPFAIL` of
/// sysexits.h, "temporary failure; the user is invited to retry". A manager that was only stopped finds
/// it when it goes on.
pub const MANAGER_LOST: i32 = 75;

/// Signal that an executor dies of when a function has used up the stack of its worker: SIGSTKFLT, "stack fault", which
/// no kernel sends.
pub const STACK_OVERFLOW: i32 = 16;

/// Signal that an executor dies of when a function has ended it after memory was refused: SIGPWR, which a
/// kernel sends to process 1 alone.
pub const MEMORY_LIMIT: i32 = 30;

/// What an executor writes to standard error before it lets foreign code run. What comes before is its own log, and
/// goes to its manager's, for the operator. What comes behind is the lease's: nobody could tell whether a function has
/// written it. No line of a log has this byte.
pub const FUNCTIONS_WRITE: u8 = 0;

/// The descriptor that is the library's file, unless [`LibraryFile::Absent`].
pub const LIBRARY_DESCRIPTOR: i32 = 3;

/// The descriptor of which the other end is the manager's, if the library's file [is to be
/// filled](LibraryFile::Empty). It is closed when the file is filled and sealed, before any code of the library runs.
pub const FILLED_DESCRIPTOR: i32 = 4;

/// Most libraries that are loaded before there is a lease: each costs its manager a descriptor.
pub const MAX_PRELOADED: usize = 16;

/// What an executor has of the library's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LibraryFile {
    /// Nothing. The client sends the code, and the executor keeps it to itself.
    Absent,
    /// A file in memory, still empty. The client sends the code; the executor writes it there and seals it, for
    /// others that come.
    Empty,
    /// A file in memory that has the library and is sealed. The client sends nothing.
    Sealed,
    /// No file: the library is one of those that this executor has loaded before. The client sends nothing.
    Preloaded,
}

/// What an executor is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instructions {
    /// What it has to know before it works.
    pub standby: Standby,
    /// What it works for; `None`: that comes later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment: Option<Assignment>,
}

/// What an executor has to know before there is a lease: enough to do everything that depends on none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standby {
    /// Device to open.
    pub device: AssignedDevice,
    /// Executor manager, for accounting.
    pub manager: SocketAddr,
    /// What workers show there, 32 hex digits.
    pub manager_secret: HexSecret,
    /// Most worker threads that it will have.
    pub most_workers: u16,
    /// Soft limit of open descriptors that the manager was started with: it raises its own.
    pub open_files: u64,
    /// How often executor and manager give a [sign of life](super::accounting), in milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which the other side is given up, in milliseconds.
    pub silence_ms: u32,
    /// What keeps it from the rest of the node; `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<AssignedSandbox>,
    /// Memory that its lease is expected to have, in MB: its `/tmp` holds as much from the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
    /// Libraries that it loads before it has a lease; their sealed files come with this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preload: Vec<PreloadedLibrary>,
}

/// A library of the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreloadedLibrary {
    /// What it is known by.
    pub hash: LibraryHash,
    /// Its size, in bytes.
    pub bytes: u32,
}

/// What an executor works for: a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Its id; for logs.
    pub lease: u64,
    /// Its memory, in MB.
    pub memory: u32,
    /// Client to dial.
    pub client: SocketAddr,
    /// What executor and workers show there, 32 hex digits.
    pub session_secret: HexSecret,
    /// Worker threads.
    pub workers: u16,
    /// CPU of each worker, if workers are pinned.
    pub pin_to: Option<Vec<usize>>,
    /// Input slots of each worker.
    pub slots: u16,
    /// Largest input, in bytes.
    pub input_bytes: u32,
    /// Largest output, in bytes.
    pub output_bytes: u32,
    /// Size of the function library, in bytes.
    pub code_bytes: u32,
    /// What it is known by.
    pub code_hash: LibraryHash,
    /// Its file, as far as that is here.
    pub library: LibraryFile,
    /// Polling mode, as in [`Allocate`](super::allocation::Allocate).
    pub hot_timeout_ms: i64,
    /// Workers serve a graph: what each is for is told by the [client](super::session::ToExecutor).
    pub graph: bool,
}

/// The sandbox of an executor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignedSandbox {
    /// The layers that this node has, and what all its executors share.
    pub settings: SandboxSettings,
    /// Its number among the executors that run.
    pub user: u32,
}

/// The manager's device entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignedDevice {
    /// Name.
    pub name: String,
    /// `"verbs"`, `"tcp"` or `"shm"`.
    pub provider: String,
    /// Address of its interface.
    pub ip_address: IpAddr,
    /// Largest inline payload, in bytes.
    pub max_inline_data: u32,
}

/// A [`Secret`](super::Secret) as hex digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HexSecret(pub super::Secret);

impl From<HexSecret> for String {
    fn from(secret: HexSecret) -> String {
        secret.0.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for HexSecret {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "a secret is 32 hex digits";
        let mut bytes = [0; 16];
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| WRONG)?;
        }
        Ok(HexSecret(super::Secret(bytes)))
    }
}

impl std::fmt::Debug for HexSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HexSecret(..)")
    }
}
