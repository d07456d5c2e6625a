//! What all files of settings have in common: how one is read and checked, and what can be wrong with
//! it. The names and addresses that several of them have.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;

use super::report::{ProgramError, describe};
use rfaas_protocol::heartbeat::Heartbeat;
use rfaas_protocol::lease::MAX_NODE_NAME_BYTES;

/// Port of a resource manager, unless told otherwise.
pub const RESOURCE_MANAGER_PORT: u16 = 10_000;
/// Port of an executor manager, unless told otherwise.
pub const EXECUTOR_MANAGER_PORT: u16 = 10_005;

/// What is wrong with the settings. `Display` and `Debug`, which a `main` that returns it shows, are one line that
/// names the file and what in it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {reason}{}", path.display(), looked_in(path, reason))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said; not a `source`, since it is in the message.
        reason: io::Error,
    },
    /// The file is not JSON, or a value is not of the key's type.
    #[error("{}: line {line}, column {column}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong there, with the name of the key.
        message: String,
    },
    /// A value is of the right type but cannot be used.
    #[error("{}: {invalid}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The key and what is wrong with it.
        invalid: Invalid,
    },
    /// The device database has no such device.
    #[error("{}: no device {name:?}; there is {}", path.display(), list(available))]
    UnknownDevice {
        /// The device database.
        path: PathBuf,
        /// Name asked for.
        name: String,
        /// Names that there are.
        available: Vec<String>,
    },
    /// No device was named and the database leaves a choice.
    #[error(
        "no device chosen: set \"rdma_device\" to one that {} lists: {}",
        path.display(), list(available)
    )]
    NoDeviceChosen {
        /// The device database.
        path: PathBuf,
        /// Names that there are.
        available: Vec<String>,
    },
    /// The device is in the database, but not on this machine.
    #[error(transparent)]
    Open(rdmalib::Error),
    /// An address is neither an IP address nor a name that resolves.
    #[error("address {address:?}: {reason}")]
    Address {
        /// As written.
        address: String,
        /// What the resolver said.
        reason: String,
    },
}

impl ProgramError for ConfigError {
    fn is_wrong_input(&self) -> bool {
        true
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(self))
    }
}

/// A value that a key cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Path of the key, such as `config.rdma_device_port`.
    pub key: String,
    /// What it must be.
    pub reason: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

/// Returns where a file was looked for, if that is not clear from its path: many defaults are
/// relative.
fn looked_in(path: &Path, reason: &io::Error) -> String {
    if path.is_absolute() || reason.kind() != io::ErrorKind::NotFound {
        return String::new();
    }
    let here = std::env::current_dir();
    here.map(|here| format!(", in the directory {}", here.display())).unwrap_or_default()
}

/// Returns the addresses that `host` (an IP address or a name) and `port` stand for, at least one,
/// in the name service's order.
pub fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConfigError> {
    let failed = |reason: String| ConfigError::Address { address: host.to_owned(), reason };
    if host.is_empty() {
        return Err(failed("is empty: give an IP address or a host name".into()));
    }
    let found = (host, port).to_socket_addrs().map_err(|error| failed(error.to_string()))?;
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(failed("the name has no address".into())) } else { Ok(addresses) }
}

/// Largest file of settings or secret that is read, in bytes: a database of some 10,000 nodes fits.
const MOST_BYTES: u64 = 4 << 20;

/// Longest wait for all that comes out of a file that is no regular one: a pipe, for example.
const MOST_WAIT: Duration = Duration::from_secs(5);

/// Returns the content of `path`, which may be a device without an end, or a pipe that nobody writes to.
pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe is opened without waiting for its other end, a terminal without becoming ours.
    let mut file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    } else {
        let end = Instant::now() + MOST_WAIT;
        let mut part = [0; 4096];
        while bytes.len() as u64 <= MOST_BYTES {
            wait_readable(&file, end)?;
            match file.read(&mut part) {
                Ok(0) => break,
                Ok(read) => bytes.extend_from_slice(&part[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    if bytes.len() as u64 > MOST_BYTES {
        let why = format!("is larger than {} MiB", MOST_BYTES >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// Waits until something can be read, or that is over. (Of a pipe that nobody has opened to write, a read without
/// waiting finds the end.)
fn wait_readable(file: &fs::File, end: Instant) -> io::Result<()> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Ok(0) => {
                let why = format!("its end has not come within {} s", MOST_WAIT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What all files have in common.
pub(super) trait File: DeserializeOwned {
    /// Checks what types cannot say.
    fn validate(&self) -> Result<(), Invalid>;

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read_bounded(path)
            .map_err(|reason| ConfigError::Read { path: path.to_owned(), reason })?;
        Self::parse(path, &text)
    }

    /// Reads `text`, which errors say is in `path`.
    fn parse(path: &Path, text: &[u8]) -> Result<Self, ConfigError> {
        if text.trim_ascii().is_empty() {
            let message = "the file is empty, which a failed command leaves with `>`".to_owned();
            return Err(ConfigError::Syntax { path: path.to_owned(), line: 1, column: 1, message });
        }
        let mut json = serde_json::Deserializer::from_slice(text);
        let value: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let key = error.path().to_string();
            syntax(path, &key, &error.into_inner())
        })?;
        json.end().map_err(|error| syntax(path, ".", &error))?;
        value
            .validate()
            .map_err(|invalid| ConfigError::Invalid { path: path.to_owned(), invalid })?;
        Ok(value)
    }
}

/// Returns serde's error with the position where ours has it, and the key in front unless the text
/// names it.
fn syntax(path: &Path, key: &str, error: &serde_json::Error) -> ConfigError {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let text = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    let named = key == "." || !error.is_data();
    let message = if named { text.to_owned() } else { format!("{key}: {text}") };
    // One line, whatever the file had between its quotes.
    let message = message.replace('`', "\"").replace(char::is_control, " ");
    ConfigError::Syntax { path: path.to_owned(), line, column, message }
}

/// Lists `names` for a sentence.
fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Fails with `reason` about `key` unless `holds`.
pub(super) fn require(holds: bool, key: &str, reason: &str) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid { key: key.into(), reason: reason.into() }) }
}

/// Checks the name of a node, under `key`.
pub(super) fn require_node_name(name: &str, key: &str) -> Result<(), Invalid> {
    require(!name.is_empty(), key, "must not be empty")?;
    require(
        name.len() <= MAX_NODE_NAME_BYTES,
        key,
        &format!("has {} bytes, at most {MAX_NODE_NAME_BYTES} are allowed", name.len()),
    )
}

/// Checks the keys `heartbeat_ms` and `silence_ms` of `config`.
pub(super) fn require_heartbeat(heartbeat_ms: u32, silence_ms: u32) -> Result<(), Invalid> {
    require(
        heartbeat_ms >= Heartbeat::SHORTEST_PERIOD_MS,
        "config.heartbeat_ms",
        "must be at least 10 (milliseconds)",
    )?;
    require(
        silence_ms >= heartbeat_ms.saturating_mul(Heartbeat::FEWEST_PERIODS),
        "config.silence_ms",
        "must be at least twice heartbeat_ms, so that one late sign of life does no harm",
    )
}

/// Returns the addresses of the manager that `address` and `port` of a configuration name: none if
/// the address is empty, port 0 being the usual port.
pub(super) fn resource_manager(
    address: &str,
    port: u16,
) -> Result<Option<Vec<SocketAddr>>, ConfigError> {
    if address.is_empty() {
        return Ok(None);
    }
    let port = if port == 0 { RESOURCE_MANAGER_PORT } else { port };
    resolve(address, port).map(Some)
}
