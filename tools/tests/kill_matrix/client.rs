//! The client of a cell, in a process of its own: this test program again, told by its environment. It says on
//! standard error what it does, one line each.
//!
//! ```text
//!   lease ID      it has a lease
//!   ready         (idle lease) it has called once, and waits for the file `go`
//!   saw …         what its call, or its deployment, came to: `its result`, or the error
//!   free          it has given the lease back, or dropped it
//!   again ID      there was the file `again`: it has had another lease, which worked
//! ```

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rfaas::{Client, Deployment, Devices, Error, Executor, Lease, LeaseRequest, Result, Spin};
use rfaas_config::BenchmarkConfig;
use testkit::LocalCluster;

use super::cell::Moment;
use testkit::run::{Running, start};
use testkit::service::{call, warm};
use testkit::wait::deadline;
use testkit::waiting::Waiting;

/// Environment variables: the moment at which it waits, its cluster's files, its library, and where
/// the files are that it looks for.
const MOMENT: &str = "KILL_MATRIX_MOMENT";
const CONFIG: &str = "KILL_MATRIX_CONFIG";
const DEVICES: &str = "KILL_MATRIX_DEVICES";
const LIBRARY: &str = "KILL_MATRIX_LIBRARY";
const FILES: &str = "KILL_MATRIX_FILES";

/// What it says that it saw if nothing went wrong.
pub const RESULT: &str = "its result";

/// Starts one that waits at `moment`.
pub fn spawn(moment: Moment, cluster: &LocalCluster, waiting: &Waiting, files: &Path) -> Running {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .env(MOMENT, moment.name())
        .env(CONFIG, cluster.benchmark())
        .env(DEVICES, cluster.devices())
        .env(LIBRARY, waiting.library())
        .env(FILES, files)
        .env("TMPDIR", cluster.directory());
    start(command)
}

/// Whether this process is a client.
pub fn is_wanted() -> bool {
    std::env::var_os(MOMENT).is_some()
}

/// Runs in the client.
pub fn act() {
    let text = std::env::var(MOMENT).unwrap();
    let moment = Moment::ALL.into_iter().find(|moment| moment.name() == text).unwrap();
    let files = path(FILES);
    let config = BenchmarkConfig::load(path(CONFIG)).unwrap().config;
    let device = Devices::load(path(DEVICES)).unwrap().open(&config.rdma_device).unwrap();
    let manager = config.resource_manager().unwrap().expect("the cluster has one");
    let client = Client::connect(device, &manager[..]).unwrap();

    let lease = client.lease(LeaseRequest::new(1, 64)).unwrap();
    say("lease", lease.id().unwrap());
    match wait_at(moment, &lease, &files) {
        Ok(executor) => {
            say("saw", RESULT);
            drop(lease);
            let bill = executor.release().unwrap();
            assert!(bill.allocated_ns.get() > 0, "{bill:?}");
        }
        Err(error) => {
            say("saw", seen(&error));
            drop(lease);
        }
    }
    say("free", "");
    wait_for(&files.join("again"));
    say("again", works(&client));
}

/// The variant of `error` with what it carries, if a fault of the matrix leads to it, otherwise its text.
fn seen(error: &Error) -> String {
    match error {
        Error::ExecutorGone => "ExecutorGone".into(),
        Error::ExecutorSilent => "ExecutorSilent".into(),
        Error::FunctionCrashed { signal } => format!("FunctionCrashed {{ signal: {signal} }}"),
        Error::LeaseEnded { reason } => format!("LeaseEnded {{ reason: {reason:?} }}"),
        Error::StartFailed(how) => format!("StartFailed({how:?})"),
        other => rfaas::describe(other),
    }
}

/// Deploys and calls, such that the fault comes at `moment`. The executor, which has answered.
fn wait_at(moment: Moment, lease: &Lease, files: &Path) -> Result<Executor> {
    let deploy = |deployment: &Deployment| lease.deploy_with(path(LIBRARY), deployment);
    match moment {
        Moment::Idle => {
            let mut executor = deploy(&warm())?;
            echo(&mut executor)?;
            say("ready", "");
            wait_for(&files.join("go"));
            echo(&mut executor)?;
            Ok(executor)
        }
        Moment::Allocation => {
            let mut executor = deploy(&warm())?;
            echo(&mut executor)?;
            Ok(executor)
        }
        Moment::Hot | Moment::Warm => {
            let spin = if moment == Moment::Hot { Spin::Always } else { Spin::Never };
            let mut executor = deploy(&warm().spin(spin))?;
            assert_eq!(call(&mut executor, "wait", &[7; 8])?, [7; 8]);
            echo(&mut executor)?;
            Ok(executor)
        }
    }
}

fn echo(executor: &mut Executor) -> Result<()> {
    assert_eq!(call(executor, "echo", &[5; 64])?, [5; 64]);
    Ok(())
}

/// Has a lease from beginning to end, which must work: at once, or when the manager is connected again.
fn works(client: &Client) -> String {
    let lease = match client.lease(LeaseRequest::new(1, 64)) {
        // The connection ended while nobody looked: the call that notices it says so, the next one connects.
        Err(Error::Connection { .. } | Error::NoAnswer { .. }) => {
            client.lease(LeaseRequest::new(1, 64))
        }
        other => other,
    };
    let lease = lease.unwrap();
    let id = lease.id().unwrap().to_string();
    let mut executor = lease.deploy_with(path(LIBRARY), &warm()).unwrap();
    echo(&mut executor).unwrap();
    drop(lease);
    executor.release().unwrap();
    id
}

fn path(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap().into()
}

fn wait_for(file: &Path) {
    let start = Instant::now();
    while !file.exists() {
        assert!(start.elapsed() < deadline(), "nobody made {}", file.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Tells the test, in one line.
fn say(key: &str, what: impl Display) {
    eprintln!("{key} {what}");
}
