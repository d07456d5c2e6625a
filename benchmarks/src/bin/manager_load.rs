//! How many leases a whole resource manager grants: the real program, with its state in memory and on a disk,
//! executor managers that are only simulated, and clients that lease as fast as they are answered.
//!
//! ```text
//!   clients (threads) ──request──▶ resource_manager ◀──claimed, ended──┐
//!      └── grant ──▶ simulated executor manager of its node ───────────┘ ◀── acknowledged: one lease is over
//! ```
//! A grant is timed from the request to its answer, as the client sees it. Before that: what the manager takes while
//! nodes only give signs of life. After it, with the state on a disk: how soon all nodes are registered again when the
//! manager is killed and started again and they dial as soon as it listens, 64 at a time. All of it shares the cores of
//! this machine, which shows in the figures.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use benchmarks::Printing;
use benchmarks::machine::Machine;
use benchmarks::plan::later;
use benchmarks::report::print_one;
use benchmarks::samples::{Samples, Statistics};
use clap::{Parser, value_parser};
use rdmalib::Device;
use rfaas_config::ClusterSecret;
use rfaas_program::inherited::raise_descriptor_limit;
use rfaas_program::{self as program, Failure};
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::lease::{
    ClientName, EndReason, FromClient, LeaseGranted, LeaseRequest, NodeName, ToClient,
};
use rfaas_protocol::node::{
    Bill, FromNode, LeaseClaimed, LeaseEnded, ManagerProof, NodeHello, Register, ToNode,
};
use rfaas_protocol::{Clock, Empty, Nonce, Nonces, Role, parse_prefix};
use serde::Serialize;
use serde_json::{Value, json};
use testkit::http::Http;
use testkit::interrupt::stop_clusters_on_signals;
use testkit::procfs::{Stat, processor_time_of_threads, proportional_memory};
use testkit::{LocalCluster, Options};

/// Longest wait for anything.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Leases before the measured ones.
const WARM_UP: Duration = Duration::from_millis(500);
/// How often a message that there was no room for is tried again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How often all executor managers look for news: they are not what is measured. Of the leases of a node, the client
/// that has one looks too.
const HEAR_AGAIN: Duration = Duration::from_millis(50);
/// How often an executor manager gives a sign of life, as shipped.
const BEAT: Duration = Duration::from_secs(1);
/// Threads that dial for their share of the nodes, after the manager was started again.
const DIALERS: usize = 64;
/// Pause before a node dials again, the first and the longest, as real executor managers have it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Cores of each node; a lease has one.
const CORES: u32 = 16;
/// Messages that the manager may be ahead, as real executor managers have it.
const RECEIVES: u32 = 64;
/// What the cluster signs with.
const SECRET: u32 = 42;

/// Measures how many leases a resource manager grants, and how soon, with many nodes.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Simulated executor managers.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = value_parser!(u32).range(1..=10_000))]
    nodes: u32,
    /// Clients, each with one request at a time.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// How long to measure, in seconds.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = value_parser!(u64).range(1..))]
    seconds: u64,
    #[command(flatten)]
    printing: Printing,
}

/// What was measured with the state at one place.
#[derive(Debug, Serialize)]
struct Row {
    state: &'static str,
    provider: String,
    leases_per_second: f64,
    grant_us: Statistics<f64>,
    leases_per_commit: f64,
    commit_us: f64,
    manager_cores: f64,
    /// Of a core, while nodes give signs of life and nobody asks for anything.
    idle_percent: f64,
    /// Proportional memory of the manager then, in MB.
    memory_mb: f64,
    /// From the start of a new manager until all nodes are registered with it; only with the state on a disk.
    all_ready_s: Option<f64>,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let _signals = stop_clusters_on_signals(None).map_err(Failure::later)?;
    raise_descriptor_limit().map_err(later)?;
    let rows = [measure(&cli, false)?, measure(&cli, true)?];
    let Cli { nodes, clients, seconds, printing } = cli;
    let machine = Machine::this();
    let object = json!({
        "benchmark": "manager_load",
        "nodes": nodes,
        "clients": clients,
        "seconds": seconds,
        "states": rows,
        "machine": machine,
    });
    let mut table =
        format!("manager_load: {nodes} nodes, {clients} clients, {seconds} s\non {machine}\n\n");
    table += &format!("{:>8}{:>12}{:>14}{:>14}", "state", "leases/s", "grant p50 µs", "p99 µs");
    table += &format!("{:>15}{:>12}{:>15}", "leases/commit", "commit µs", "manager cores");
    table += &format!("{:>10}{:>11}{:>13}\n", "idle, %", "memory, MB", "all ready, s");
    for row in &rows {
        let Row { state, leases_per_second, grant_us, .. } = row;
        table += &format!("{state:>8}{leases_per_second:>12.0}");
        table += &format!("{:>14.0}{:>14.0}", grant_us.p50, grant_us.p99);
        let Row { leases_per_commit, commit_us, manager_cores, .. } = row;
        table += &format!("{leases_per_commit:>15.1}{commit_us:>12.0}{manager_cores:>15.2}");
        let ready = row.all_ready_s.map_or("–".into(), |seconds| format!("{seconds:.2}"));
        table += &format!("{:>10.2}{:>11.0}{ready:>13}\n", row.idle_percent, row.memory_mb);
    }
    print_one(printing, object, table)
}

fn measure(cli: &Cli, on_disk: bool) -> Result<Row, Failure> {
    let options = Options { keeps_state: on_disk, secret: SECRET, ..Options::default() };
    let mut cluster = LocalCluster::start(options).map_err(later)?;
    let device = cluster.open_device().map_err(later)?.device;
    let none = || Failure::later("the cluster has no resource manager");
    let http = cluster.http().ok_or_else(none)?.clone();
    let address = cluster.resource_manager_address().ok_or_else(none)?;
    let id = cluster.resource_manager().ok_or_else(none)?.id();
    // Only simulated nodes are to be leased.
    for node in get(&http, "/nodes")?.as_array().into_iter().flatten() {
        let name = node["node"].as_str().unwrap_or_default();
        let removed = http.post_text(&format!("/remove?node={name}&grace_ms=0"), "");
        removed.map_err(Failure::later)?;
    }
    let nodes = Nodes::connect(&device, address, &http, cli.nodes)?;
    let idle = nodes.idle(id, Duration::from_secs(cli.seconds))?;
    let memory = proportional_memory(id).unwrap_or_default();

    let stop = Mutex::new(false);
    let stopped = || *stop.lock().unwrap_or_else(PoisonError::into_inner);
    let (samples, figures) = thread::scope(|scope| {
        let reaper = scope.spawn(|| nodes.hear(stopped));
        let lease = || lease_until(&device, address, &nodes, stopped);
        let clients: Vec<_> = (0..cli.clients).map(|_| scope.spawn(lease)).collect();
        thread::sleep(WARM_UP);
        let before = Figures::read(&http, id);
        let start = Instant::now();
        thread::sleep(Duration::from_secs(cli.seconds));
        let after = Figures::read(&http, id);
        let end = Instant::now();
        *stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let mut samples = Samples::with_capacity(0);
        for client in clients {
            let timed = client.join().map_err(|_| Failure::later("a client panicked"))??;
            let measured = timed.iter().filter(|(at, _)| (start..end).contains(at));
            measured.for_each(|(_, took)| samples.record(*took));
        }
        reaper.join().map_err(|_| Failure::later("the executor managers panicked"))??;
        Ok::<_, Failure>((samples, after?.since(&before?, end - start)))
    })
    .inspect_err(|_| {
        let _ = writeln!(std::io::stderr(), "{}", cluster.logs()); // if this fails: the error matters more
    })?;
    let all_ready = on_disk.then(|| nodes.return_to(&mut cluster, &device)).transpose()?;
    drop(nodes);
    cluster.stop().map_err(later)?;
    let state = if on_disk { "disk" } else { "memory" };
    let row = figures.row(state, device.provider().to_string(), &samples);
    let (idle_percent, memory_mb) = (100.0 * idle, memory as f64 / 1e6);
    let all_ready_s = all_ready.map(|time| time.as_secs_f64());
    Ok(Row { idle_percent, memory_mb, all_ready_s, ..row })
}

/// What the manager says of itself and the kernel of it.
#[derive(Debug)]
struct Figures {
    ended: f64,
    commits: f64,
    committing_us: f64,
    processor: Duration,
    over: Duration,
}

impl Figures {
    fn read(http: &Http, id: u32) -> Result<Self, Failure> {
        let text = get(http, "/metrics")?;
        let text = text.as_str().unwrap_or_default();
        let sum = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        Ok(Figures {
            ended: sum("rfaas_leases_ended_total"),
            commits: sum("rfaas_state_commits_total"),
            committing_us: sum("rfaas_state_commit_microseconds_total"),
            processor: Stat::of(id).map(|stat| stat.processor_time()).unwrap_or_default(),
            over: Duration::ZERO,
        })
    }

    fn since(self, before: &Figures, over: Duration) -> Self {
        Figures {
            ended: self.ended - before.ended,
            commits: self.commits - before.commits,
            committing_us: self.committing_us - before.committing_us,
            processor: self.processor.saturating_sub(before.processor),
            over,
        }
    }

    fn row(&self, state: &'static str, provider: String, grants: &Samples) -> Row {
        let seconds = self.over.as_secs_f64();
        let commits = self.commits.max(1.0);
        Row {
            state,
            provider,
            leases_per_second: self.ended / seconds,
            grant_us: grants.statistics().microseconds(),
            leases_per_commit: self.ended / commits,
            commit_us: self.committing_us / commits,
            manager_cores: self.processor.as_secs_f64() / seconds,
            idle_percent: 0.0,
            memory_mb: 0.0,
            all_ready_s: None,
        }
    }
}

fn get(http: &Http, path: &str) -> Result<Value, Failure> {
    http.get(path).map(|answer| answer.body).map_err(Failure::later)
}

/// Simulated executor managers, by name. The client that has a lease answers for its node.
struct Nodes(BTreeMap<String, Mutex<Channel>>);

impl Nodes {
    fn connect(
        device: &Device,
        manager: SocketAddr,
        http: &Http,
        count: u32,
    ) -> Result<Self, Failure> {
        let mut nodes = BTreeMap::new();
        for number in 0..count {
            let name = format!("simulated-{number}");
            let spec = json!({
                "ip_address": "127.0.0.1", "port": 1, "cores": CORES, "memory": 65_536,
            });
            http.post(&format!("/add?node={name}"), &spec).map_err(Failure::later)?;
            nodes.insert(
                name.clone(),
                Mutex::new(register(device, manager, &name).map_err(node_failed)?),
            );
        }
        Ok(Nodes(nodes))
    }

    /// Takes what the manager says to nodes, and gives signs of life, until the end.
    fn hear(&self, mut stopped: impl FnMut() -> bool) -> Result<(), Failure> {
        let mut beat_at = Instant::now();
        while !stopped() {
            let beat = beat_at <= Instant::now();
            if beat {
                beat_at += BEAT;
            }
            for channel in self.0.values() {
                let mut channel = channel.lock().unwrap_or_else(PoisonError::into_inner);
                while channel.try_receive::<ToNode>().map_err(node_failed)?.is_some() {}
                if beat {
                    channel
                        .send_unannounced(&FromNode::Heartbeat(Clock::now()))
                        .map_err(node_failed)?;
                }
            }
            thread::sleep(HEAR_AGAIN);
        }
        Ok(())
    }

    /// What part of a core the manager, process `id`, takes while nodes only give signs of life.
    fn idle(&self, id: u32, over: Duration) -> Result<f64, Failure> {
        let end = Instant::now() + over + WARM_UP;
        let mut before = None;
        self.hear(|| {
            let now = Instant::now();
            if before.is_none() && now + over >= end {
                before = Some((now, processor_time_of_threads(id)));
            }
            now >= end
        })?;
        let (start, before) = before.unwrap_or((end, Duration::ZERO));
        let used = processor_time_of_threads(id).saturating_sub(before);
        Ok(used.as_secs_f64() / start.elapsed().as_secs_f64())
    }

    /// Has the manager killed and started again; returns how long it takes from then until all nodes are registered.
    fn return_to(&self, cluster: &mut LocalCluster, device: &Device) -> Result<Duration, Failure> {
        let none = || Failure::later("the cluster has no resource manager");
        let manager = cluster.resource_manager_address().ok_or_else(none)?;
        cluster.resource_manager().ok_or_else(none)?.kill();
        let start = Instant::now();
        let all: Vec<_> = self.0.iter().collect();
        let share = |nodes: &[(&String, &Mutex<Channel>)]| -> Result<(), ChannelError> {
            for (name, channel) in nodes {
                let again = register_again(device, manager, name, start + LONGEST_WAIT)?;
                *channel.lock().unwrap_or_else(PoisonError::into_inner) = again;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let shares = all.chunks(all.len().div_ceil(DIALERS));
            let dialers: Vec<_> = shares.map(|nodes| scope.spawn(move || share(nodes))).collect();
            cluster.start_resource_manager().map_err(later)?;
            for dialer in dialers {
                let done =
                    dialer.join().map_err(|_| Failure::later("an executor manager panicked"))?;
                done.map_err(node_failed)?;
            }
            Ok(start.elapsed())
        })
    }

    /// Claims a lease and ends it, after taking what its node was told: a node that hears only when
    /// it is its turn in [`hear`](Self::hear) hears less than it says on a busy machine, until the manager
    /// gives it up.
    fn use_lease(&self, granted: &LeaseGranted) -> Result<(), ChannelError> {
        let terms = granted.token.terms;
        let Some(channel) = self.0.get(terms.node.get()?) else { return Ok(()) };
        let reason = EndReason::Released.to_wire();
        for message in [
            FromNode::Claimed(LeaseClaimed { terms }),
            FromNode::Ended(LeaseEnded { terms, reason, bill: Bill::default() }),
        ] {
            let start = Instant::now();
            loop {
                let mut channel = channel.lock().unwrap_or_else(PoisonError::into_inner);
                while channel.try_receive::<ToNode>()?.is_some() {}
                match channel.send(&message) {
                    // So many leases of one node are ahead of the manager.
                    Err(ChannelError::Busy) if start.elapsed() < LONGEST_WAIT => drop(channel),
                    sent => break sent?,
                }
                thread::sleep(LOOK_AGAIN);
            }
        }
        Ok(())
    }
}

fn node_failed(error: ChannelError) -> Failure {
    Failure::later(format!("a simulated node: {error}"))
}

fn register(device: &Device, manager: SocketAddr, name: &str) -> Result<Channel, ChannelError> {
    let mut channel = Channel::new(device, RECEIVES)?;
    let hello = NodeHello { nonce: Nonce::generate() };
    let answer = channel.connect(manager, Role::Node, &hello, LONGEST_WAIT)?;
    let proof: ManagerProof = parse_prefix(answer.as_slice())?;
    let nonces = Nonces { caller: hello.nonce, called: proof.nonce };
    let secret = ClusterSecret::of(&SECRET.into());
    let (name, address) = (NodeName::truncated(name), ([127, 0, 0, 1], 1).into());
    let register = Register::new(name, 1, address, &nonces, secret.bytes());
    channel.send(&FromNode::Register(register))?;
    loop {
        match channel.receive(LONGEST_WAIT)? {
            Incoming::Message(ToNode::Registered(_)) => return Ok(channel),
            Incoming::Message(ToNode::Refused(refused)) => {
                return Err(ChannelError::Refused(refused.reason.get()?.to_owned()));
            }
            _ => {}
        }
    }
}

/// Registers as soon as the manager that was started again lets it.
fn register_again(
    device: &Device,
    manager: SocketAddr,
    name: &str,
    until: Instant,
) -> Result<Channel, ChannelError> {
    let mut pause = BACKOFF.0;
    loop {
        match register(device, manager, name) {
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => thread::sleep(pause),
            registered => return registered,
        }
        pause = (2 * pause).min(BACKOFF.1);
    }
}

/// When each grant came, and how long it took.
type Timed = Vec<(Instant, Duration)>;

/// A client that leases one core after the other until the end.
fn lease_until(
    device: &Device,
    manager: SocketAddr,
    nodes: &Nodes,
    stopped: impl Fn() -> bool,
) -> Result<Timed, Failure> {
    let failed = |error: ChannelError| Failure::later(format!("a client: {error}"));
    let mut channel = Channel::new(device, RECEIVES).map_err(failed)?;
    channel.connect(manager, Role::Lease, &Empty {}, LONGEST_WAIT).map_err(failed)?;
    let request = FromClient::Request(LeaseRequest {
        request: 1.into(),
        cores: 1.into(),
        memory: 1.into(),
        timeout_ms: 60_000.into(),
        max_nodes: 1.into(),
        client: ClientName::truncated("manager_load"),
    });
    let mut timed = Vec::new();
    while !stopped() {
        let start = Instant::now();
        channel.send(&request).map_err(failed)?;
        match channel.receive(LONGEST_WAIT).map_err(failed)? {
            Incoming::Message(ToClient::Granted(granted)) => {
                let now = Instant::now();
                timed.push((now, now - start));
                nodes.use_lease(&granted).map_err(node_failed)?;
            }
            Incoming::Message(ToClient::Refused(refused)) => {
                return Err(Failure::later(format!("a lease was refused: {:?}", refused.reason)));
            }
            Incoming::Message(ToClient::Unmet(_)) | Incoming::Written { .. } => {
                return Err(Failure::later("a message of another kind"));
            }
        }
    }
    Ok(timed)
}
