//! JSON: the files of `config/`, what programs of one node pass to each other, and what travels over HTTP. Any text is
//! read as each of them. What was read is written as something that reads as the same.

use std::fmt::Debug;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use executor::plan::Plan;
use nix::sys::memfd::{MFdFlags, memfd_create};
use rfaas_api as api;
use rfaas_config::{
    BenchmarkConfig, ConfigError, Devices, ExecutorManagerConfig, ExecutorsDatabase, ProgramError,
    ResourceManagerConfig, describe,
};
use rfaas_program::local_channel::from_file;
use rfaas_protocol::assignment::Instructions;
use rfaas_protocol::isolation::{IsolationReport, SandboxSettings};
use rfaas_protocol::launch::ZygoteSettings;
use rfaas_protocol::lease::Token;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::assert_line;

pub(crate) fn run(bytes: &[u8]) {
    files(bytes);
    passed(bytes);
    travelled(bytes);
}

/// A file that exists only as a descriptor, and its path.
struct Named(File, PathBuf);

impl Named {
    fn new(bytes: &[u8]) -> Named {
        let mut file =
            File::from(memfd_create(c"settings", MFdFlags::MFD_CLOEXEC).expect("memory"));
        file.write_all(bytes).expect("memory");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Named(file, path)
    }
}

fn files(bytes: &[u8]) {
    let Named(_file, path) = &Named::new(bytes);
    if let Some(devices) = file(path, |path| Devices::load(path)) {
        for found in [devices.get("shm0"), devices.get(""), devices.only()] {
            match found {
                Ok(entry) => assert!(devices.devices.contains(entry)),
                Err(error) => assert_error(&error),
            }
        }
    }
    if let Some(settings) = file(path, |path| ResourceManagerConfig::load(path)) {
        let config = settings.config;
        assert!(config.heartbeat().silence >= config.heartbeat().period);
    }
    if let Some(settings) = file(path, |path| ExecutorManagerConfig::load(path)) {
        let isolation = settings.executor.isolation;
        let (wanted, required) = (isolation.wanted(), isolation.required());
        assert!(required.iter().all(|layer| wanted.has(*layer)), "what is required is tried");
    }
    file(path, |path| ExecutorsDatabase::load(path));
    file(path, |path| BenchmarkConfig::load(path));
}

/// Loads a file.
fn file<T: Serialize>(path: &Path, load: impl Fn(&Path) -> Result<T, ConfigError>) -> Option<T> {
    let loaded = load(path).map_err(|error| assert_error(&error)).ok()?;
    let text = serde_json::to_string(&loaded).expect("settings are JSON");
    let Named(_file, path) = &Named::new(text.as_bytes());
    match load(path) {
        Ok(again) => assert_eq!(serde_json::to_string(&again).expect("likewise"), text),
        Err(error) => panic!("what was written is not read: {error}\n{text}"),
    }
    Some(loaded)
}

fn assert_error(error: &ConfigError) {
    assert!(error.is_wrong_input());
    assert_line(&describe(error));
}

/// What a manager, a zygote and an executor pass to each other.
fn passed(bytes: &[u8]) {
    let instructions = value(bytes, |bytes| from_file::<Instructions>(bytes));
    if let Some(assignment) = instructions.and_then(|instructions| instructions.assignment) {
        let (workers, inputs) = (assignment.workers, assignment.input_bytes);
        match Plan::try_from(assignment) {
            Ok(plan) => {
                assert_eq!(plan.workers.len(), usize::from(workers));
                assert_eq!(plan.layout.input_bytes(), inputs);
            }
            Err(bad) => assert_line(&bad.to_string()),
        }
    }
    value(bytes, |bytes| from_file::<ZygoteSettings>(bytes));
    value(bytes, |bytes| from_file::<SandboxSettings>(bytes));
    value(bytes, |bytes| from_file::<IsolationReport>(bytes));
}

/// What travels over HTTP, as clients read it.
fn travelled(bytes: &[u8]) {
    json::<api::NewNode>(bytes);
    json::<api::Node>(bytes);
    json::<api::RemovedNode>(bytes);
    json::<api::LeaseRequest>(bytes);
    json::<api::Renewal>(bytes);
    json::<api::Lease>(bytes);
    json::<api::EndedLease>(bytes);
    json::<api::Bill>(bytes);
    json::<api::ClientBill>(bytes);
    json::<api::Health>(bytes);
    json::<api::Error>(bytes);
    if let Some(grant) = json::<api::Grant>(bytes) {
        let debug = format!("{grant:?}");
        let shown = Token::from_text(&grant.token).is_ok() && debug.contains(&grant.token);
        assert!(!shown, "a token is in a log: {debug}");
    }
}

fn json<T: DeserializeOwned + Serialize + Debug>(bytes: &[u8]) -> Option<T> {
    let read = value(bytes, |bytes| serde_json::from_slice::<T>(bytes))?;
    assert_line(&format!("{read:?}"));
    Some(read)
}

/// Reads a value, writes it, and reads that.
fn value<T: Serialize, E: std::error::Error>(
    bytes: &[u8],
    read: impl Fn(&[u8]) -> Result<T, E>,
) -> Option<T> {
    let value = read(bytes).ok()?; // why not, the log escapes
    let text = serde_json::to_string(&value).expect("it was JSON");
    match read(text.as_bytes()) {
        Ok(again) => assert_eq!(serde_json::to_string(&again).expect("likewise"), text),
        Err(error) => panic!("what was written is not read: {error}\n{text}"),
    }
    Some(value)
}
