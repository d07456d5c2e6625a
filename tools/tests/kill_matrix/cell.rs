//! One cell of the matrix: a cluster and a client of its own, one fault, and what has to be true afterwards.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testkit::test_devices::patience;
use testkit::{LocalCluster, Options, procfs};

use super::{RECOVERY, client};
use testkit::leftovers::Leftovers;
use testkit::run::{Running, ended_by};
use testkit::service::cluster;
use testkit::wait::{eventually, eventually_or};
use testkit::waiting::Waiting;

/// The longest that anything here takes, unless it hangs. What takes longer than its limit is told with how long it
/// took.
const LONGEST: Duration = Duration::from_secs(15);

/// Whom the fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Client,
    Executor,
    ExecutorManager,
    ResourceManager,
}

impl Victim {
    pub const ALL: [Victim; 4] =
        [Victim::Client, Victim::Executor, Victim::ExecutorManager, Victim::ResourceManager];

    fn name(self) -> &'static str {
        match self {
            Victim::Client => "client",
            Victim::Executor => "executor",
            Victim::ExecutorManager => "executor_manager",
            Victim::ResourceManager => "resource_manager",
        }
    }
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Kill,
    /// It goes on only when everything has recovered.
    Stop,
}

impl Fault {
    pub const ALL: [Fault; 2] = [Fault::Kill, Fault::Stop];

    fn signal(self) -> Signal {
        match self {
            Fault::Kill => Signal::SIGKILL,
            Fault::Stop => Signal::SIGSTOP,
        }
    }
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The lease is deployed, and has no call.
    Idle,
    /// The library is being loaded.
    Allocation,
    /// A function runs, on a worker that spins and for a client that does.
    Hot,
    /// A function runs, on a worker that sleeps and for a client that does.
    Warm,
}

impl Moment {
    pub const ALL: [Moment; 4] = [Moment::Idle, Moment::Allocation, Moment::Hot, Moment::Warm];

    pub fn name(self) -> &'static str {
        match self {
            Moment::Idle => "idle_lease",
            Moment::Allocation => "during_allocation",
            Moment::Hot => "hot_invocation",
            Moment::Warm => "warm_invocation",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub victim: Victim,
    pub fault: Fault,
    pub moment: Moment,
}

/// What a cell came to.
#[derive(Debug)]
pub struct Row {
    cell: Cell,
    saw: String,
    billed_as: String,
    recovery: Duration,
    limit: Duration,
}

impl Row {
    pub fn columns(&self) -> [String; 7] {
        let Cell { victim, fault, moment } = self.cell;
        [
            victim.name().into(),
            fault.signal().to_string(),
            moment.name().into(),
            self.saw.clone(),
            self.billed_as.clone(),
            format!("{} ms", self.recovery.as_millis()),
            format!("{} ms", self.limit.as_millis()),
        ]
    }
}

impl Cell {
    pub fn name(self) -> String {
        let Cell { victim, fault, moment } = self;
        let fault = match fault {
            Fault::Kill => "killed",
            Fault::Stop => "stopped",
        };
        format!("{}_{fault}::{}", victim.name(), moment.name())
    }

    pub fn run(self, waiting: &Waiting) -> Row {
        waiting.reset();
        let files = tempfile::tempdir().unwrap();
        let before = Leftovers::list(files.path());
        let mut scene = Scene::begin(self, waiting, &files);
        scene.strike();
        let (saw, recovery) = match self.victim {
            Victim::Client => scene.without_its_client(),
            Victim::Executor => scene.without_its_executor(),
            Victim::ExecutorManager => scene.without_its_executor_manager(),
            Victim::ResourceManager => scene.without_its_resource_manager(),
        };
        let limit = self.limit();
        assert!(recovery <= limit, "recovered after {recovery:?}, not within {limit:?}");
        if let Some(saw) = &saw {
            let expected = self.client_may_see();
            let told = expected.iter().any(|error| saw.starts_with(error));
            assert!(told, "the client saw {saw}, not one of {expected:?}");
        }
        let billed_as = scene.works_again();
        scene.ends();
        Leftovers::nothing_new_since(&before, files.path());
        Row { cell: self, saw: saw.unwrap_or_else(|| "-".into()), billed_as, recovery, limit }
    }

    /// The longest that recovery may take.
    fn limit(self) -> Duration {
        match (self.victim, self.fault) {
            // From when it runs again.
            (Victim::ResourceManager, _) | (_, Fault::Kill) => patience(RECOVERY),
            (_, Fault::Stop) => Options::impatient().heartbeat.silence + patience(RECOVERY),
        }
    }

    /// What its call, or its deployment, may come to.
    fn client_may_see(self) -> &'static [&'static str] {
        let allocating = self.moment == Moment::Allocation;
        match (self.victim, self.fault) {
            // It was stopped, and goes on: its lease is over.
            (Victim::Client, _) if allocating => {
                &["LeaseEnded { reason: ClientGone }", "ExecutorGone", "StartFailed"]
            }
            (Victim::Client, _) => &["LeaseEnded { reason: ClientGone }", "ExecutorGone"],
            (Victim::Executor, Fault::Kill) if allocating => &["StartFailed(Signal(9))"],
            (Victim::Executor, Fault::Stop) if allocating => &["StartFailed(Silent)"],
            (Victim::Executor, Fault::Kill) => &["FunctionCrashed { signal: 9 }"],
            (Victim::Executor, Fault::Stop) => &["ExecutorSilent"],
            (Victim::ExecutorManager, _) if allocating => &["ExecutorGone", "StartFailed"],
            (Victim::ExecutorManager, _) => &["ExecutorGone"],
            (Victim::ResourceManager, _) => &[client::RESULT],
        }
    }
}

/// A cluster, and a client that has reached the moment.
struct Scene<'a> {
    cell: Cell,
    cluster: LocalCluster,
    client: Running,
    waiting: &'a Waiting,
    files: &'a tempfile::TempDir,
    lease: u64,
    executor: u32,
}

impl<'a> Scene<'a> {
    fn begin(cell: Cell, waiting: &'a Waiting, files: &'a tempfile::TempDir) -> Self {
        if cell.moment == Moment::Allocation {
            waiting.hold_loading();
        }
        let cluster = cluster(Options { view: waiting.view(), ..Options::impatient() });
        let mut client = client::spawn(cell.moment, &cluster, waiting, files.path());
        match cell.moment {
            Moment::Idle => drop(hear(&mut client, "ready")),
            Moment::Allocation | Moment::Hot | Moment::Warm => waiting.is_running(),
        }
        let lease = hear(&mut client, "lease").parse().unwrap();
        let [executor] = cluster.executors_running()[..] else { panic!("one executor") };
        Scene { cell, cluster, client, waiting, files, lease, executor }
    }

    fn strike(&mut self) {
        let signal = self.cell.fault.signal();
        match self.cell.victim {
            Victim::Client => self.client.signal(signal),
            Victim::Executor => {
                kill(Pid::from_raw(self.executor.cast_signed()), signal).expect("it runs");
                if self.cell.fault == Fault::Stop {
                    // Its worker could still answer the call that comes next.
                    eventually("the executor has stopped", || procfs::is_stopped(self.executor));
                }
            }
            Victim::ExecutorManager => self.cluster.executor_manager().unwrap().signal(signal),
            Victim::ResourceManager => self.cluster.resource_manager().unwrap().signal(signal),
        }
    }

    fn without_its_client(&mut self) -> (Option<String>, Duration) {
        let recovery = self.recovers(Instant::now());
        if self.cell.fault == Fault::Kill {
            return (None, recovery);
        }
        self.client.signal(Signal::SIGCONT);
        self.make("go");
        (Some(hear(&mut self.client, "saw")), recovery)
    }

    /// The client is told by its call, and gives the lease back.
    fn without_its_executor(&mut self) -> (Option<String>, Duration) {
        let struck = Instant::now();
        self.make("go");
        let recovery = self.recovers(struck);
        (Some(hear(&mut self.client, "saw")), recovery)
    }

    fn without_its_executor_manager(&mut self) -> (Option<String>, Duration) {
        let recovery = self.recovers(Instant::now());
        self.make("go");
        let saw = hear(&mut self.client, "saw");
        match self.cell.fault {
            Fault::Kill => self.cluster.start_executor_manager().unwrap(),
            Fault::Stop => self.cluster.executor_manager().unwrap().signal(Signal::SIGCONT),
        }
        (Some(saw), recovery)
    }

    /// Its leases go on without it and end without it: it has to learn that when it is back.
    fn without_its_resource_manager(&mut self) -> (Option<String>, Duration) {
        if self.cell.fault == Fault::Stop {
            let heartbeat = Options::impatient().heartbeat;
            std::thread::sleep(heartbeat.silence + heartbeat.period); // so that all have noticed
        }
        self.make("go");
        self.waiting.let_return();
        let saw = hear(&mut self.client, "saw");
        hear(&mut self.client, "free");
        let back = Instant::now();
        match self.cell.fault {
            Fault::Kill => self.cluster.start_resource_manager().unwrap(),
            Fault::Stop => self.cluster.resource_manager().unwrap().signal(Signal::SIGCONT),
        }
        (Some(saw), self.recovers(back))
    }

    /// Waits until nothing of the lease is left: the node has all of its cores and memory, no process runs, the lease
    /// has ended, and there is a bill. How long that took from `since`.
    fn recovers(&self, since: Instant) -> Duration {
        let what = format!("{}: recovered", self.cell.name());
        self.eventually(&what, || {
            let (Some(nodes), Some(leases)) = (self.get("/nodes"), self.get("/leases")) else {
                return false;
            };
            is_free(&nodes[0])
                && leases == Value::Array(Vec::new())
                && !procfs::is_running(self.executor)
                && self.bills(self.lease).len() == 1
        });
        since.elapsed()
    }

    /// The node takes leases: of the client if there still is one, and of another. Returns what the lease that met the
    /// fault was billed as; each has one bill.
    fn works_again(&mut self) -> String {
        self.waiting.let_return();
        self.eventually("the node is ready", || {
            self.get("/nodes").is_some_and(|nodes| nodes[0]["state"] == "ready")
        });
        let mut leases = vec![self.lease];
        self.make("go");
        self.make("again");
        if self.cell.victim != Victim::Client || self.cell.fault != Fault::Kill {
            leases.push(hear(&mut self.client, "again").parse().unwrap());
        }
        let mut other = client::spawn(Moment::Idle, &self.cluster, self.waiting, self.files.path());
        for key in ["lease", "again"] {
            leases.push(hear(&mut other, key).parse().unwrap());
        }
        other.finish().success();

        self.eventually("all leases are billed", || {
            self.get("/leases") == Some(Value::Array(Vec::new()))
        });
        let bills = self.get("/billing").unwrap();
        let mut billed: Vec<_> =
            bills.as_array().unwrap().iter().map(|bill| bill["lease"].as_u64().unwrap()).collect();
        billed.sort_unstable();
        leases.sort_unstable();
        assert_eq!(billed, leases, "each lease has one bill, and nothing else has: {bills}");
        self.bills(self.lease)[0]["reason"].as_str().unwrap().to_owned()
    }

    /// Waits until `done`; a failure shows what everybody has said.
    fn eventually(&self, what: &str, done: impl FnMut() -> bool) {
        let state = || {
            let resources = ["/nodes", "/leases", "/billing"].map(|path| self.get(path));
            format!("{resources:?}\n{}\nclient: {}", self.cluster.logs(), self.client.words())
        };
        eventually_or(what, patience(LONGEST), done, state);
    }

    fn bills(&self, lease: u64) -> Vec<Value> {
        let bills = self.get("/billing").unwrap_or_default();
        let of_lease = |bill: &&Value| bill["lease"] == lease;
        bills.as_array().into_iter().flatten().filter(of_lease).cloned().collect()
    }

    /// What the resource manager answers, if it runs.
    fn get(&self, path: &str) -> Option<Value> {
        self.cluster.http().unwrap().get(path).ok().map(|answer| answer.body)
    }

    fn make(&self, file: &str) {
        std::fs::write(self.files.path().join(file), "").unwrap();
    }

    fn ends(self) {
        let Scene { cell, cluster, client, files, .. } = self;
        let client = client.finish();
        match (cell.victim, cell.fault) {
            (Victim::Client, Fault::Kill) => assert!(ended_by(&client, Signal::SIGKILL)),
            _ => drop(client.success()),
        }
        cluster.stop().unwrap();
        for file in ["go", "again"] {
            std::fs::remove_file(files.path().join(file)).unwrap();
        }
    }
}

fn is_free(node: &Value) -> bool {
    node["cores"].is_u64()
        && node["free_cores"] == node["cores"]
        && node["free_memory"] == node["memory"]
}

/// The rest of the line that begins with `key`, once the client has said it.
fn hear(client: &mut Running, key: &str) -> String {
    let mut heard = None;
    eventually(&format!("the client says {key:?}"), || {
        let ended = client.has_said_all(); // looked at first: its last words count
        heard = client.said(key).pop();
        assert!(heard.is_some() || !ended, "the client ended: {}", client.words());
        heard.is_some()
    });
    heard.unwrap()
}
