//! A client of the chaos run, in a process of its own: this test program again, told by its environment. It leases,
//! deploys, calls and gives back, over and over, and goes on after every error that says what happened. What it was
//! granted and told it says on standard error, one line each:
//!
//! ```text
//!   lease ID                                                      it was granted
//!   bill ID ALLOCATED_NS HOT_POLLING_NS EXECUTION_NS INVOCATIONS  it was told, when it gave the lease back
//!   error NAME                                                    it was told, and goes on
//!   cycle                                                         a lease is over for it
//! ```
//! What must never happen ends it: a result that is not its own, an error that blames what was right.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rfaas::{Client, Devices, Error, Executor, Lease, LeaseRequest, Result, Spin};
use rfaas_config::BenchmarkConfig;
use testkit::LocalCluster;

use super::schedule::Random;
use testkit::run::{Running, library, start};
use testkit::service::{call, warm};

/// Environment variables: its number, how often it was started before, the seed, its cluster's files, and the file that
/// ends it.
const NUMBER: &str = "CHAOS_CLIENT";
const LIVES: &str = "CHAOS_CLIENT_LIVES";
const SEED: &str = "CHAOS_CLIENT_SEED";
const CONFIG: &str = "CHAOS_CLIENT_CONFIG";
const DEVICES: &str = "CHAOS_CLIENT_DEVICES";
const ENOUGH: &str = "CHAOS_CLIENT_ENOUGH";

/// Time limit of its leases: long enough for a cycle during which everybody is stopped once, and short enough to wait
/// for in the end, as leases last so long whose client was killed while the resource manager was.
pub const LEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an error, so that who is away is not asked without end.
const PAUSE: Duration = Duration::from_millis(20);
/// Most milliseconds between two calls: leases shall be held for some time, so that faults meet them, and there shall
/// not be many more cycles than faults.
const BETWEEN_CALLS_MS: u64 = 200;

/// Whom client `number` is billed as.
pub fn name(number: usize) -> String {
    format!("chaos-{number}")
}

/// Starts client `number`, which was started `lives` times before and ends when there is a file `enough`.
pub fn spawn(
    number: usize,
    lives: u32,
    seed: u64,
    cluster: &LocalCluster,
    enough: &Path,
) -> Running {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .env(NUMBER, number.to_string())
        .env(LIVES, lives.to_string())
        .env(SEED, seed.to_string())
        .env(CONFIG, cluster.benchmark())
        .env(DEVICES, cluster.devices())
        .env(ENOUGH, enough)
        .env("TMPDIR", cluster.directory());
    start(command)
}

/// Whether this process is a client.
pub fn is_wanted() -> bool {
    std::env::var_os(NUMBER).is_some()
}

/// Runs in the client.
pub fn act() {
    let [number, lives, seed] = [NUMBER, LIVES, SEED]
        .map(|variable| std::env::var(variable).unwrap().parse::<u64>().unwrap());
    let mut random = Random::new(seed ^ (number << 32) ^ (lives << 48));
    let enough = path(ENOUGH);
    let mut client = None;
    while !enough.exists() {
        let done = match &client {
            Some(client) => cycle(client, &mut random),
            None => connect(&name(number as usize)).map(|new| client = Some(new)),
        };
        if let Err(error) = done {
            say("error", variant(&error));
            std::thread::sleep(PAUSE);
        }
    }
}

fn connect(name: &str) -> Result<Client> {
    let config = BenchmarkConfig::load(path(CONFIG)).unwrap().config;
    let device = Devices::load(path(DEVICES)).unwrap().open(&config.rdma_device).unwrap();
    let manager = config.resource_manager().unwrap().expect("the cluster has one");
    Client::connect_as(device, &manager[..], name)
}

/// One lease, from the request to its end, whatever that is.
fn cycle(client: &Client, random: &mut Random) -> Result<()> {
    let (cores, memory) = (1 + random.below(2) as u32, 16 + random.below(64) as u32);
    let lease = client.lease(LeaseRequest::new(cores, memory).timeout(LEASE_TIMEOUT))?;
    say("lease", lease.id().expect("there is a resource manager"));
    let done = use_lease(lease, random);
    say("cycle", "");
    done
}

fn use_lease(lease: Lease, random: &mut Random) -> Result<()> {
    if random.below(8) == 0 {
        return Ok(()); // not used at all
    }
    let granted = lease.id();
    let spin = if random.below(4) == 0 { Spin::Always } else { Spin::Never };
    let deployed = lease.deploy_with(library("functions"), &warm().spin(spin));
    let id = lease.id().expect("there is a resource manager");
    if granted != Some(id) {
        say("lease", id); // its node did not take the first one, which was exchanged
    }
    let mut executor = deployed?;
    drop(lease);
    let calls = random.below(8);
    for _ in 0..calls {
        std::thread::sleep(Duration::from_millis(random.below(BETWEEN_CALLS_MS)));
        empty(&mut executor, random)?;
    }
    if random.below(3) > 0 {
        let bill = executor.release()?;
        let [allocated, polling, execution, invocations] =
            [bill.allocated_ns, bill.hot_polling_ns, bill.execution_ns, bill.invocations]
                .map(|count| count.get());
        assert!(invocations <= calls, "billed are {invocations} calls, made were {calls}");
        say("bill", format!("{id} {allocated} {polling} {execution} {invocations}"));
    }
    Ok(())
}

/// A call whose result can be no other call's.
fn empty(executor: &mut Executor, random: &mut Random) -> Result<()> {
    let input: Vec<u8> = (0..8).flat_map(|_| random.next().to_le_bytes()).collect();
    assert_eq!(call(executor, "empty", &input)?, input, "another call's result");
    Ok(())
}

/// The name of its variant, which is one of those that the faults may lead to.
fn variant(error: &Error) -> &'static str {
    match error {
        Error::Unreachable { .. } => "Unreachable",
        Error::NoAnswer { .. } => "NoAnswer",
        Error::Connection { .. } => "Connection",
        Error::LeaseRefused { .. } => "LeaseRefused",
        Error::AllocationRefused { .. } => "AllocationRefused",
        Error::StartFailed(_) => "StartFailed",
        Error::StartTimeout { .. } => "StartTimeout",
        Error::FunctionCrashed { signal: 9 } => "FunctionCrashed",
        Error::WorkerLost { .. } => "WorkerLost",
        Error::ExecutorGone => "ExecutorGone",
        Error::ExecutorSilent => "ExecutorSilent",
        Error::LeaseEnded { .. } => "LeaseEnded",
        other => panic!("told {other}"),
    }
}

fn path(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap().into()
}

/// Tells the test, in one line.
fn say(key: &str, what: impl Display) {
    eprintln!("{key} {what}");
}
