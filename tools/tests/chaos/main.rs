//! Chaos: clients lease, call and give back on a cluster of several nodes, while its processes are
//! killed and stopped at random, the resource manager included. In the end all capacity is free,
//! nothing is left, and every lease has one bill, the one that its client was told.
//!
//! ```text
//! cargo test -p tools --test chaos                                some 200 lease cycles
//! CHAOS_SEED=$RANDOM CHAOS_CYCLES=2000 cargo test -p tools --test chaos
//! ```
//! * Which process is killed or stopped after which cycle is made of the seed alone (`schedule`); it is printed
//!   first, and with a failure.
//! * A client goes on after any error that says what happened; every other ends it and
//!   fails the run (`client`).
//! * What clients were granted and told is compared with what is billed (`ledger`).
//!
//! Elsewhere: every process at every moment, one at a time (`kill_matrix`).

#![allow(clippy::unwrap_used)] // what does not hold panics; that is what a test does

mod client;
mod ledger;
mod schedule;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testkit::test_devices::patience;
use testkit::{LocalCluster, Options};

use ledger::Received;
use schedule::{Fault, Strike, Victim, schedule};
use testkit::leftovers::Leftovers;
use testkit::run::{Finished, Running, ended_by};
use testkit::service::cluster;
use testkit::wait::{eventually_or, rounds};

/// Environment variables: the seed, and the number of lease cycles.
const SEED: &str = "CHAOS_SEED";
const CYCLES: &str = "CHAOS_CYCLES";

/// The gate's: what fails there is to fail again.
const USUAL_SEED: u64 = 17;
const CLIENTS: usize = 8;
const NODES: usize = 3;
/// Cycles unless more are asked for: half a minute's worth.
const SHORT: u32 = 200;
/// The longest that no client gets on, unless one hangs: everybody was stopped once, and a lease that nobody holds any
/// more has run out.
const STANDSTILL: Duration = Duration::from_secs(40);

fn main() {
    if client::is_wanted() {
        return client::act();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1); // leftovers are looked for in the whole machine
    let trial = |name: &str, run: fn()| {
        Trial::test(name, move || {
            run();
            Ok(())
        })
    };
    let trials = vec![
        trial(
            "the_seed_alone_decides_which_faults_come_when",
            schedule::the_seed_alone_decides_which_faults_come_when,
        ),
        trial("every_lease_ends_and_is_billed_once_whatever_is_killed", chaos),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

fn chaos() {
    let seed = number(SEED).unwrap_or(USUAL_SEED);
    let cycles = number(CYCLES).map_or(rounds(SHORT), |cycles| u32::try_from(cycles).unwrap());
    println!("\nchaos: {SEED}={seed} {CYCLES}={cycles}");
    let run = std::panic::AssertUnwindSafe(|| Run::start(seed).go(cycles));
    if let Err(panic) = std::panic::catch_unwind(run) {
        println!("chaos failed with {SEED}={seed} {CYCLES}={cycles}");
        std::panic::resume_unwind(panic);
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// A cluster and its clients.
struct Run {
    seed: u64,
    begun: Instant,
    before: Leftovers,
    files: tempfile::TempDir,
    cluster: LocalCluster,
    clients: Vec<Life>,
    away: Vec<Away>,
    /// When a cycle ended last, and how many had.
    progress: (Instant, u32),
    /// What earlier lives have come to.
    cycles_before: u32,
    received: BTreeMap<String, Received>,
    strikes: BTreeMap<String, usize>,
    /// How many grants nobody may have heard of.
    lost: usize,
}

/// A client that runs.
struct Life {
    running: Running,
    lives: u32,
}

/// Somebody who was killed or stopped.
struct Away {
    victim: Victim,
    fault: Fault,
    /// The executor that was stopped.
    process: Option<Pid>,
    until: Instant,
}

impl Run {
    fn start(seed: u64) -> Self {
        let files = tempfile::tempdir().unwrap();
        let before = Leftovers::list(files.path());
        let cluster =
            cluster(Options { nodes: NODES, cores: 3, memory: 512, ..Options::impatient() });
        let mut run = Run {
            seed,
            begun: Instant::now(),
            before,
            files,
            cluster,
            clients: Vec::new(),
            away: Vec::new(),
            progress: (Instant::now(), 0),
            cycles_before: 0,
            received: BTreeMap::new(),
            strikes: BTreeMap::new(),
            lost: 0,
        };
        run.clients = (0..CLIENTS).map(|number| run.life(number, 0)).collect();
        run
    }

    fn life(&self, number: usize, lives: u32) -> Life {
        let enough = self.files.path().join("enough");
        let running = client::spawn(number, lives, self.seed, &self.cluster, &enough);
        Life { running, lives }
    }

    fn go(mut self, cycles: u32) {
        let mut strikes = schedule(self.seed, cycles, CLIENTS, NODES).into_iter().peekable();
        loop {
            self.bring_back();
            let now = self.somebody_gets_on();
            if let Some(strike) = strikes.next_if(|strike| strike.cycle <= now) {
                self.strike(strike);
            } else if now >= cycles && self.away.is_empty() {
                return self.ends();
            } else {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// How many cycles have ended; more than before, or not long ago.
    fn somebody_gets_on(&mut self) -> u32 {
        for number in 0..self.clients.len() {
            let running = &mut self.clients[number].running;
            let ended = running.has_ended()
                && !self.away.iter().any(|away| away.victim == Victim::Client(number));
            assert!(!ended, "a client ended: {}", running.words());
        }
        let now = self.cycles();
        if now > self.progress.1 {
            self.progress = (Instant::now(), now);
        }
        let stands = self.progress.0.elapsed() >= patience(STANDSTILL);
        assert!(!stands, "nobody gets on after cycle {now}\n{}", self.state());
        now
    }

    /// How many have ended.
    fn cycles(&self) -> u32 {
        let now: usize = self.clients.iter().map(|life| life.running.said("cycle").len()).sum();
        self.cycles_before + u32::try_from(now).unwrap()
    }

    fn strike(&mut self, strike: Strike) {
        let Strike { victim, fault, away, .. } = strike;
        if self.is_away(victim) {
            println!("  {strike}: is away already");
            return;
        }
        println!("  {strike}");
        *self.strikes.entry(format!("{} {fault:?}", victim.name())).or_default() += 1;
        let signal = match fault {
            Fault::Kill => Signal::SIGKILL,
            Fault::Stop => Signal::SIGSTOP,
        };
        let mut process = None;
        match victim {
            Victim::Executor(any) => {
                let running = self.cluster.executors_running();
                if running.is_empty() {
                    return;
                }
                let id = Pid::from_raw(running[any % running.len()].cast_signed());
                // It may just have ended by itself.
                let _ = kill(id, signal);
                process = Some(id);
            }
            Victim::ExecutorManager(node) => {
                self.cluster.executor_manager_of(node).unwrap().signal(signal);
            }
            Victim::Client(number) => self.clients[number].running.signal(signal),
            Victim::ResourceManager => self.cluster.resource_manager().unwrap().signal(signal),
        }
        self.away.push(Away { victim, fault, process, until: Instant::now() + patience(away) });
    }

    fn is_away(&self, victim: Victim) -> bool {
        self.away.iter().any(|away| away.victim == victim)
    }

    /// Those that were away long enough go on, or are started again.
    fn bring_back(&mut self) {
        let now = Instant::now();
        // An executor manager that starts has to reach the resource manager.
        let alone = self.is_away(Victim::ResourceManager);
        let is_due = |away: &Away| {
            let waits = alone
                && away.fault == Fault::Kill
                && matches!(away.victim, Victim::ExecutorManager(_));
            away.until <= now && !waits
        };
        let (due, later) = std::mem::take(&mut self.away).into_iter().partition(is_due);
        self.away = later;
        for away in due {
            match away.fault {
                Fault::Kill => self.start_again(away.victim),
                Fault::Stop => self.go_on(away),
            }
        }
    }

    fn start_again(&mut self, victim: Victim) {
        match victim {
            Victim::Executor(_) => {}
            Victim::ExecutorManager(node) => self.cluster.start_executor_manager_of(node).unwrap(),
            Victim::Client(number) => self.another_life(number),
            Victim::ResourceManager => {
                self.lost += CLIENTS; // each may have asked
                self.cluster.start_resource_manager().unwrap();
            }
        }
    }

    fn go_on(&mut self, away: Away) {
        let signal = Signal::SIGCONT;
        match away.victim {
            Victim::Executor(_) => {
                let process = away.process.expect("noted when it was stopped");
                let _ = kill(process, signal); // its manager may have killed it
            }
            Victim::ExecutorManager(node) => {
                self.cluster.executor_manager_of(node).unwrap().signal(signal);
            }
            Victim::Client(number) => self.clients[number].running.signal(signal),
            Victim::ResourceManager => self.cluster.resource_manager().unwrap().signal(signal),
        }
    }

    /// Starts client `number` again, which was killed.
    fn another_life(&mut self, number: usize) {
        let new = self.life(number, self.clients[number].lives + 1);
        let Life { running, .. } = std::mem::replace(&mut self.clients[number], new);
        self.cycles_before += u32::try_from(running.said("cycle").len()).unwrap();
        self.lost += 1;
        let finished = self.over(number, running);
        assert!(ended_by(&finished, Signal::SIGKILL), "{finished:?}");
    }

    /// A client has ended, or will now: what it has said is kept.
    fn over(&mut self, number: usize, mut running: Running) -> Finished {
        eventually_or(
            "a client ends",
            patience(STANDSTILL),
            || running.has_ended(),
            || self.state(),
        );
        let finished = running.finish();
        self.received.entry(client::name(number)).or_default().add(&finished);
        finished
    }

    fn ends(mut self) {
        std::fs::write(self.files.path().join("enough"), "").unwrap();
        for (number, life) in std::mem::take(&mut self.clients).into_iter().enumerate() {
            self.over(number, life.running).success();
        }
        let limit = patience(client::LEASE_TIMEOUT + STANDSTILL);
        eventually_or("all capacity is free", limit, || self.is_idle(), || self.state());
        let [bills, sums] = ["/billing", "/billing?by=client"].map(|path| self.get(path).unwrap());
        let outcome = ledger::compare(&self.received, &bills, &sums, self.lost);
        println!("  faults: {:?}", self.strikes);
        let mut errors = BTreeMap::<&str, usize>::new();
        for (error, times) in self.received.values().flat_map(|received| &received.errors) {
            *errors.entry(error).or_default() += times;
        }
        println!("  received by clients: {errors:?}");
        println!("  {outcome:?} in {} s", self.begun.elapsed().as_secs());
        let Run { cluster, before, files, .. } = self;
        cluster.stop().unwrap();
        std::fs::remove_file(files.path().join("enough")).unwrap();
        Leftovers::nothing_new_since(&before, files.path());
    }

    /// Whether every node takes leases and has all of its capacity, and nothing runs.
    fn is_idle(&self) -> bool {
        let (Some(nodes), Some(leases)) = (self.get("/nodes"), self.get("/leases")) else {
            return false;
        };
        let nodes = nodes.as_array().unwrap();
        let free = |node: &Value| {
            node["state"] == "ready"
                && node["free_cores"] == node["cores"]
                && node["free_memory"] == node["memory"]
        };
        nodes.len() == NODES
            && nodes.iter().all(free)
            && leases == Value::Array(Vec::new())
            && self.cluster.executors_running().is_empty()
    }

    /// What the resource manager answers.
    fn get(&self, path: &str) -> Option<Value> {
        self.cluster.http().unwrap().get(path).ok().map(|answer| answer.body)
    }

    /// For a failure: what everybody has said.
    fn state(&self) -> String {
        let resources = ["/nodes", "/leases"].map(|path| self.get(path));
        let tail = |text: String| {
            let lines: Vec<_> = text.lines().rev().take(12).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        let clients = self.clients.iter().map(|life| tail(life.running.words()));
        let clients: Vec<_> =
            clients.enumerate().map(|(i, words)| format!("client {i}:\n{words}")).collect();
        format!("{resources:?}\n{}\n{}", self.cluster.logs(), clients.join("\n"))
    }
}
