//! The client of a hostile function, in a process of its own: this test program again, told by its
//! environment. It says on standard error what it got.
//!
//! ```text
//!   got …        the kind of answer or error
//!   after …      how long the call, or the deployment, took
//!   answer …     what the function says that it did
//! ```

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rfaas::{Client, Devices, Error, LeaseRequest};
use rfaas_config::BenchmarkConfig;
use testkit::LocalCluster;
use testkit::run::{Running, start};
use testkit::service::{call_with_room, warm};

use crate::attacks::{Attack, HUNG, Input, START_TIMEOUT};

/// Environment variables: the function, its input, its library, the time limits of its calls and of its
/// start, and its cluster's files.
const FUNCTION: &str = "HOSTILE_FUNCTION";
const INPUT: &str = "HOSTILE_INPUT";
const LIBRARY: &str = "HOSTILE_LIBRARY";
const MILLISECONDS: &str = "HOSTILE_MILLISECONDS";
const START_MILLISECONDS: &str = "HOSTILE_START_MILLISECONDS";
const CONFIG: &str = "HOSTILE_CONFIG";
const DEVICES: &str = "HOSTILE_DEVICES";

/// What it says.
pub const GOT: &str = "got";
pub const AFTER: &str = "after";
pub const ANSWER: &str = "answer";

/// Of calls that never return, and of others, which do so also on a busy machine.
const HUNG_LIMIT: Duration = Duration::from_secs(2);
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// Of a constructor that never returns, or prints for longer than that; others have the time of a call.
const SLOW_START_LIMIT: Duration = Duration::from_secs(3);
/// Of its lease, in MB; what a memory bomb takes is many times as much.
const MEMORY_MB: u32 = 64;
const OUTPUT_BYTES: usize = 4096;

/// Starts one that makes `attack`.
pub fn spawn(attack: &Attack, input: &str, library: PathBuf, cluster: &LocalCluster) -> Running {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let function = if attack.input == Input::Load { "echo" } else { attack.name };
    let limit = if attack.sees == HUNG { HUNG_LIMIT } else { CALL_LIMIT };
    let is_slow = attack.sees.contains(&START_TIMEOUT);
    let start_limit = if is_slow { SLOW_START_LIMIT } else { CALL_LIMIT };
    command
        .env(FUNCTION, function)
        .env(START_MILLISECONDS, start_limit.as_millis().to_string())
        .env(INPUT, input)
        .env(LIBRARY, library)
        .env(MILLISECONDS, limit.as_millis().to_string())
        .env(CONFIG, cluster.benchmark())
        .env(DEVICES, cluster.devices())
        .env("TMPDIR", cluster.directory());
    start(command)
}

/// Whether this process is such a client.
pub fn is_wanted() -> bool {
    std::env::var_os(FUNCTION).is_some()
}

/// Runs in the client.
pub fn act() {
    let told = |variable: &str| std::env::var(variable).unwrap();
    let config = BenchmarkConfig::load(told(CONFIG)).unwrap().config;
    let device = Devices::load(told(DEVICES)).unwrap().open(&config.rdma_device).unwrap();
    let manager = config.resource_manager().unwrap().expect("the cluster has one");
    let client = Client::connect(device, &manager[..]).unwrap();
    let lease = client.lease(LeaseRequest::new(1, MEMORY_MB)).unwrap();

    let limit = |variable| Duration::from_millis(told(variable).parse().unwrap());
    let deployment = warm().invocation_timeout(limit(MILLISECONDS));
    let deployment = deployment.start_timeout(limit(START_MILLISECONDS));
    let mut begin = Instant::now();
    let deployed = lease.deploy_with(told(LIBRARY), &deployment);
    let got = deployed.and_then(|mut executor| {
        let loaded = begin.elapsed();
        begin = Instant::now();
        let input = told(INPUT);
        let answer = call_with_room(&mut executor, &told(FUNCTION), input.as_bytes(), OUTPUT_BYTES);
        Ok((loaded, answer?, executor))
    });
    let after = begin.elapsed();
    match &got {
        Ok((loaded, answer, _)) => {
            eprintln!("{ANSWER} {}", String::from_utf8_lossy(answer));
            // Of a constructor, its loading counts.
            let after = if told(FUNCTION) == "echo" { *loaded } else { after };
            eprintln!("{AFTER} {after:.1?}\n{GOT} an answer");
        }
        Err(error) => eprintln!("{AFTER} {after:.1?}\n{GOT} {}", kind(error)),
    }
    drop(lease);
    if let Ok((.., executor)) = got {
        // It may have killed the manager that would answer.
        let _ = executor.release();
    }
}

/// The variant of `error` with what it carries, otherwise its text.
fn kind(error: &Error) -> String {
    match error {
        Error::TimeLimit { .. } => "TimeLimit".into(),
        Error::ExecutorGone => "ExecutorGone".into(),
        Error::ExecutorSilent => "ExecutorSilent".into(),
        Error::FunctionCrashed { signal } => format!("FunctionCrashed {{ signal: {signal} }}"),
        Error::FunctionExited { status } => format!("FunctionExited {{ status: {status} }}"),
        Error::LeaseEnded { reason } => format!("LeaseEnded {{ reason: {reason:?} }}"),
        Error::OutputTooLarge { needed, .. } => format!("OutputTooLarge {{ needed: {needed} }}"),
        Error::Protocol(_) => format!("Protocol: {}", rfaas::describe(error)),
        Error::StackOverflow => "StackOverflow".into(),
        Error::MemoryLimit { .. } => "MemoryLimit".into(),
        Error::StartFailed(how) => format!("StartFailed({how:?})"),
        Error::StartTimeout { .. } => START_TIMEOUT.into(),
        Error::WorkerLost { reason } => format!("WorkerLost: {reason}"),
        other => rfaas::describe(other),
    }
}
