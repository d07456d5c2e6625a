//! The resource manager: knows the nodes of a cluster, hands out leases on them, watches and bills them.
//!
//! ```text
//!   clients ──(lease)──▶ ┌ loop ─ pool ┐ ◀──(register, report)── executor managers
//!   curl ──▶ http thread ┴─ commands ──┴──▶ ledger ──▶ state ··(bills)··▶ http thread
//! ```
//! Two threads: the loop (`server`) owns all that changes, the other serves HTTP and takes signals. It is
//! not on the path of an invocation, and leases in use go on without it.
//!
//! Pool and state have one writer, the loop's thread. Everybody else asks it (`commands`), or reads what was
//! committed (`state`).

pub mod commands;
pub mod executors_database;
pub mod http;
pub mod metrics;
pub mod placement;
pub mod pool;
pub mod state;

mod client_links;
mod ledger;
mod link;
mod node_links;
mod server;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::SigSet;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rfaas_config::{
    ClientLimits, Devices, ResourceManagerConfig, ResourceManagerNode, SECRET_VARIABLE,
};
use rfaas_program::inherited::{is_ignored, raise_descriptor_limit};
use rfaas_program::{LAST_LINES, log};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use commands::{Commands, commands};
use executors_database::Export;
use ledger::Ledger;
use metrics::LoopEvents;
use pool::{FairUse, NodeSpec, Now, Pool};
use server::{ClusterTerms, Server};
use state::StateFile;

/// Exit status after a second signal: 128 + SIGINT, as shells have it.
const INTERRUPTED: i32 = 130;

/// What a resource manager starts with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Settings.
    pub config: PathBuf,
    /// Devices of this machine.
    pub device_database: PathBuf,
    /// Nodes to start with, besides those of the state.
    pub input_database: Option<PathBuf>,
    /// Where to write the nodes for others to read.
    pub output_database: Option<PathBuf>,
    /// Where nodes, leases and bills are kept, instead of where the settings say.
    pub state_file: Option<PathBuf>,
}

/// Why a resource manager ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It did not start: what it was given is wrong or in use.
    #[error("{0:#}")]
    Start(anyhow::Error),
    /// It failed while it ran.
    #[error("{0:#}")]
    Run(anyhow::Error),
}

/// Runs a resource manager until SIGINT, SIGTERM or SIGHUP. To be called before there is another thread.
pub fn run(options: &Options) -> Result<(), Error> {
    // The program that started it may have blocked the signals that stop it; threads inherit the
    // mask. With SIGXFSZ blocked, a write beyond the limit of file sizes fails, instead of ending
    // the program.
    let mask = SigSet::from_iter([nix::sys::signal::Signal::SIGXFSZ]);
    let mask = mask.thread_set_mask().context("signals cannot be unblocked");
    let (server, http) = mask.and_then(|()| start(options)).map_err(Error::Start)?;
    let served = server.run();
    let stopped = http.stop();
    served.and(stopped).map_err(Error::Run)
}

/// Reads and opens everything, so that what is wrong is reported before anything is served.
fn start(options: &Options) -> anyhow::Result<(Server, HttpThread)> {
    raise_descriptor_limit()?;
    let config = ResourceManagerConfig::load(&options.config)?.config;
    let devices = Devices::load(&options.device_database)?;
    let secret = config.secret()?;
    if std::env::var_os(SECRET_VARIABLE).is_some() {
        // Closes environment and memory to other processes of this user, such as functions of a node that is
        // on this machine.
        set_dumpable(false).context("prctl(PR_SET_DUMPABLE)")?;
    }
    let nodes = match &options.input_database {
        Some(path) => executors_database::load(path)?,
        None => Vec::new(),
    };
    let export = options.output_database.as_deref().map(Export::open).transpose()?;
    rfaas_protocol::channel::limit_peers_to_messages();
    let device = devices.open(&config.rdma_device)?.device;
    let listener = device.listen(config.rdma_device_port)?;
    let addresses = config.http_addresses().context("http_network_address")?;
    let http = TcpListener::bind(&addresses[..])
        .with_context(|| format!("HTTP cannot be served at {}", listed(&addresses)))?;
    let http_address = http.local_addr().context("HTTP address")?;
    // Last: an operator who starts a manager twice reads about the ports.
    let configured =
        Some(Path::new(&config.state_file)).filter(|path| !path.as_os_str().is_empty());
    let state_file = options.state_file.as_deref().or(configured);
    let state = Arc::new(match state_file {
        Some(path) => StateFile::open(path)?,
        None => StateFile::in_memory().context("state in memory")?,
    });

    let events = Arc::new(LoopEvents::default());
    let heartbeat = config.heartbeat();
    let mut ledger = Ledger::new(state.clone(), events.clone(), heartbeat.period);
    let node_return = Duration::from_millis(config.node_return_ms.into());
    let pool = restore(&state, &mut ledger, node_return, nodes).context("state")?;
    let mut pool = pool.with_rules(Now::read(), rules(&config));
    pool.use_settings(config.placement);
    if let Some(export) = &export {
        export.write(&pool.nodes()).context("the executors database could not be written")?;
    }
    if let Some(weak) = secret.warning() {
        tracing::warn!("{weak}");
    }
    if state_file.is_none() {
        tracing::warn!(
            "nodes, leases and bills are lost when this program ends: name a file in state_file to keep \
             them"
        );
    }
    if !http_address.ip().is_loopback() {
        let changes_from: Vec<String> =
            config.http_changes_from.iter().map(|range| String::from(*range)).collect();
        tracing::warn!(
            ?changes_from,
            "other machines reach HTTP at {http_address}, without authentication: they may read; this \
             machine and those of http_changes_from may change something"
        );
    }
    let secret = Arc::clone(secret.bytes());
    let (commands, inbox) = commands().context("eventfd(2) failed")?;
    let access = http::Access::new(&config.http_changes_from, &config.http_network_address);
    let api = http::Api::new(commands.clone(), state, events.clone(), Arc::clone(&secret), access);
    let http = HttpThread::start(http, api, commands.clone())?;
    tracing::info!("Listening on device {}, address {}", device.name(), listener.local_addr());
    tracing::info!("HTTP interface at {http_address}");
    let terms = ClusterTerms { secret, heartbeat, sleep: config.rdma_sleep };
    let ends = (commands, inbox);
    let server = Server::new((device, listener), ends, (pool, ledger), export, events, terms);
    Ok((server.context("too few descriptors; raise `ulimit -n`")?, http))
}

/// `addresses`, for a sentence.
fn listed(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    addresses.join(" or ")
}

/// What clients may hold, and how long a lease waits for its claim.
fn rules(config: &ResourceManagerNode) -> FairUse {
    let ClientLimits { cores, memory, leases, unclaimed, timeout_ms, requests_per_second } =
        config.limits;
    let unclaimed = Some(unclaimed);
    let timeout = timeout_ms.map(Duration::from_millis);
    let claim_timeout = config.claim_timeout();
    FairUse { claim_timeout, cores, memory, leases, unclaimed, timeout, requests_per_second }
}

/// The pool that the state is of, with `imported` nodes added; committed.
fn restore(
    state: &StateFile,
    ledger: &mut Ledger,
    node_return: Duration,
    imported: Vec<NodeSpec>,
) -> anyhow::Result<Pool> {
    let now = Now::read();
    let mut pool = match state.snapshot(now.wall)? {
        Some(snapshot) => {
            let (nodes, leases) = (snapshot.nodes.len(), snapshot.leases.len());
            tracing::info!(nodes, leases, "state of an earlier run taken over");
            Pool::restore(now, node_return, snapshot)
        }
        None => {
            let pool = Pool::new(now, node_return);
            state.begin(pool.first_id())?;
            pool
        }
    };
    for spec in imported {
        let node = spec.name().clone();
        if let Err(conflict) = pool.import_node(now, spec) {
            tracing::warn!(?node, %conflict, "the node stays as the state has it");
        }
    }
    ledger.settle(now, pool.take_changes())?;
    Ok(pool)
}

/// The thread that serves HTTP and takes signals.
struct HttpThread {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// Stops the loop however the HTTP thread ends: a manager that nobody can reach must not look alive.
struct StopsLoop(Commands);

impl Drop for StopsLoop {
    fn drop(&mut self) {
        let _ = self.0.stop(); // the loop has ended before: all the better
    }
}

impl HttpThread {
    fn start(listener: TcpListener, api: http::Api, commands: Commands) -> anyhow::Result<Self> {
        listener.set_nonblocking(true).context("HTTP socket")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime for HTTP")?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (listener, signals) = {
            let _inside = runtime.enter();
            (tokio::net::TcpListener::from_std(listener).context("HTTP socket")?, Signals::new()?)
        };
        let serve = move || serve_http(&runtime, listener, signals, stopped, api, commands);
        let thread = std::thread::Builder::new().name("http".into()).spawn(serve);
        Ok(HttpThread { stop, thread: thread.context("no thread for HTTP")? })
    }

    /// Ends the thread; connections end with it. Fails if it was not there any more.
    fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(()); // to nobody if it panicked, which `join` tells
        self.thread.join().map_err(|_| anyhow::anyhow!("the HTTP thread panicked"))
    }
}

fn serve_http(
    runtime: &Runtime,
    listener: tokio::net::TcpListener,
    mut signals: Signals,
    stopped: tokio::sync::oneshot::Receiver<()>,
    api: http::Api,
    commands: Commands,
) {
    let stops_loop = StopsLoop(commands.clone());
    let watch_signals = async move {
        let mut interrupts = 0;
        loop {
            let name = signals.next().await;
            interrupts += u32::from(name == INTERRUPT);
            if interrupts > 1 {
                log::finish(LAST_LINES);
                std::process::exit(INTERRUPTED);
            }
            tracing::info!("{name}: stopping; a second {INTERRUPT} stops at once");
            let _ = commands.stop(); // it is stopping already
        }
    };
    runtime.block_on(async move {
        let serving = http::serve(listener, http::router(api));
        tokio::select! {
            () = serving => tracing::error!("the HTTP interface ended"),
            () = watch_signals => {}
            _ = stopped => {}
        }
    });
    drop(stops_loop);
}

/// The signal of somebody who waits at a terminal.
const INTERRUPT: &str = "SIGINT";

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// None where it is ignored, as nohup(1) has it.
    hang_up: Option<Signal>,
    child: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("signals cannot be handled");
        Ok(Signals {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hang_up: match is_ignored(SignalKind::hangup().as_raw_value()) {
                true => None,
                false => Some(take(SignalKind::hangup())?),
            },
            child: take(SignalKind::child())?,
        })
    }

    /// The next signal that asks to stop. Meanwhile what became a child of this process is reaped: it starts
    /// none, but as process 1 of a container it inherits those of others.
    async fn next(&mut self) -> &'static str {
        loop {
            reap();
            let hang_up = async {
                match &mut self.hang_up {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => return INTERRUPT,
                _ = self.terminate.recv() => return "SIGTERM",
                _ = hang_up => return "SIGHUP",
                _ = self.child.recv() => {}
            }
        }
    }
}

/// Reaps the children that have ended. There are as many as processes end in this container.
fn reap() {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    while waitid(Id::All, look).is_ok_and(|status| status != WaitStatus::StillAlive) {}
}
