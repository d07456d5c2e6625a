//! The executor manager: leases this node's cores, starts, watches and bills executor processes.
//!
//! ```text
//!   client ──Allocate, token──▶ clients ─▶ allocations ─▶ launch ─▶ executor process
//!   executor's workers ──fetch-add──▶ accounting ─▶ bill ─▶ upstream ──▶ resource manager
//!   executor ◀──library, or a file to fill──▶ cache
//! ```
//! One thread does everything (`manager`); who holds what is decided by pure code (`allocations`).
//! Nothing here is on the path of an invocation.
//!
//! Elsewhere: granting leases (the resource manager), running functions (the executor).

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::set_dumpable;
use rfaas_config::{Devices, ExecutorManagerConfig, Invalid, Launch, SECRET_VARIABLE};
use rfaas_program::describe;
use rfaas_program::inherited::{descriptor_limit, raise_descriptor_limit};
use rfaas_program::poll_loop::{Acceptor, Bell, Idle};
use rfaas_protocol::Capacity;
use rfaas_protocol::launch::ZygoteSettings;
use rfaas_protocol::lease::NodeName;

mod accounting;
mod allocations;
mod cache;
mod capacity;
mod clients;
mod clock;
mod cpus;
mod ended;
mod environment;
mod executors;
mod groups;
pub mod identity;
mod isolation;
mod launch;
mod lease_log;
mod manager;
mod output;
mod preload;
pub mod request;
#[allow(unsafe_code)] // one call: see there
mod signals;
mod upstream;

use allocations::{Allocations, Event};
use cache::Cache;
use clients::Clients;
use cpus::CpuPool;
use executors::{Executors, check_descriptors};
use identity::Identity;
use launch::Launcher;
use lease_log::LeaseLog;
use manager::{ACCEPT_BATCH, Manager};
use preload::Preload;
use request::Authority;
use signals::Signals;
use upstream::Upstream;

/// Why the manager ended. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not start: something that it was given is wrong, or not there.
    #[error("{0}")]
    Start(String),
    /// It could not start: what this key of its settings names is wrong, or not there.
    #[error("{0}")]
    Setting(Invalid),
    /// It could not start, since who it needs does not answer: the resource manager, an engine of containers.
    #[error("{0}")]
    Unreachable(String),
    /// It was stopped, but not in order.
    #[error("{0}")]
    Stopped(&'static str),
    /// The system failed it.
    #[error("{what}: {source}")]
    Os {
        /// What it was doing.
        what: &'static str,
        /// What the system said.
        source: Errno,
    },
}

impl Error {
    /// Of the file at `path`, which `key` names.
    fn named(key: &str, path: &Path, why: impl Display) -> Self {
        let (key, reason) = (key.to_owned(), format!("{}: {why}", path.display()));
        Error::Setting(Invalid { key, reason })
    }

    fn os(what: &'static str, source: Errno) -> Self {
        Error::Os { what, source }
    }
}

/// What a manager is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its settings.
    pub config: ExecutorManagerConfig,
    /// The devices of this machine.
    pub devices: Devices,
    /// Lease without a resource manager, to every client that asks.
    pub skip_resource_manager: bool,
    /// Wait for a resource manager that is not there yet.
    pub wait: bool,
}

/// Runs until SIGINT, SIGTERM or SIGHUP. To be called before there is another thread, since it blocks these
/// signals in order to read them.
pub fn run(options: &Options) -> Result<(), Error> {
    let signals = Signals::block().map_err(|errno| Error::os("blocking signals", errno))?;
    let open_files = raise_descriptor_limit().map_err(|error| Error::Start(error.to_string()))?;
    let node = &options.config.config;
    let name = NodeName::new(&node.node_name)
        .ok_or_else(|| Error::Start(format!("node_name {:?} is too long", node.node_name)))?;
    if node.resource_manager_address.is_empty() && !options.skip_resource_manager {
        return Err(Error::Start(
            "resource_manager_address is empty: set it to the address of the resource manager, or \
             pass --skip-resource-manager to lease this node without one"
                .into(),
        ));
    }
    let cpus = if options.config.executor.pin_threads {
        let cpus = CpuPool::of_this_process();
        Some(cpus.map_err(|errno| Error::os("reading which CPUs may be used", errno))?)
    } else {
        None
    };
    let settings = &options.config.executor;
    if settings.launch == Launch::Zygote {
        check_descriptors(settings.standing(), descriptor_limit()).map_err(Error::Start)?;
    }
    let preload = Preload::read(&settings.preload)?;
    let mut launcher = Launcher::from_environment(&settings.environment);
    launcher.check().map_err(|error| Error::Start(error.to_string()))?;
    if !Path::new("/proc/self/fd").exists() {
        tracing::warn!("/proc is not mounted: executors cannot load function libraries without it");
    }
    rfaas_protocol::channel::limit_peers_to_messages();
    let opened = options.devices.open(&node.rdma_device);
    let opened = opened.map_err(|error| Error::Start(describe(&error)))?;
    let device = opened.device.clone();
    let mut wanted = isolation::wanted(settings, device.provider())?;
    let contained = settings.contained();
    let groups = match contained {
        Some(_) => None, // the engine makes them
        None => isolation::groups(&mut wanted, settings.pin_threads),
    };
    if contained.is_none() && settings.launch == Launch::Zygote {
        let (provider, sandbox) = (device.provider().to_string(), wanted.clone());
        launcher.use_zygote(ZygoteSettings { provider, sandbox });
    }
    let listener = device.listen(node.rdma_device_port);
    let listener = listener.map_err(|error| Error::Start(describe(&error)))?;
    let address = listener.local_addr();
    tracing::info!("Listening on device {}, address {address}", device.name());

    let bell = Bell::new().map_err(|errno| Error::os("creating an eventfd", errno))?;
    let heartbeat = node.heartbeat();
    let mut allocations = Allocations::new(cpus, heartbeat);
    hide_environment();
    launcher.wait_until_ready();
    let isolation = match contained {
        Some(contained) => {
            // Of managers on one machine no two have all of it, unless their ports are any free ones; and one has the
            // same after its restart.
            let (ip, port) = (device.spec().ip_address, node.rdma_device_port);
            let (address, at) = (&node.resource_manager_address, node.resource_manager_port);
            let manager = format!("{address} {at} {ip} {port} {}", node.node_name);
            let containers = launcher.use_containers(contained, (&node.node_name, &manager));
            let containers = containers.map_err(|error| Error::Start(error.to_string()))?;
            isolation::settle_in_containers(containers, settings, wanted, &signals)?
        }
        None => isolation::settle(&mut launcher, settings, wanted, groups)?,
    };
    // No descriptor gets into a container, and so no file of a library.
    let cache_mb = if contained.is_some() { 0 } else { settings.cache_mb };
    let (authority, upstream) = if options.skip_resource_manager {
        let capacity = capacity::own(node)?;
        let Capacity { cores, memory } = capacity;
        tracing::info!("leasing {cores} cores, {memory} MB without a resource manager");
        allocations.apply(Instant::now(), Event::Capacity(capacity), &mut Vec::new());
        (Authority::Anyone, None)
    } else {
        let secret = node.secret().map_err(|error| Error::Start(error.to_string()))?;
        let identity = Arc::new(Identity::new(name, address, &secret));
        let authority = Authority::ResourceManager(Arc::clone(&identity));
        let (layers, bell) = (isolation.active, bell.clone());
        let mut upstream =
            Upstream::new(opened, node.clone(), identity, layers, bell, Instant::now());
        if options.wait {
            upstream.wait();
        }
        (authority, Some(upstream))
    };
    launcher.outputs().ring_with_answers(bell.clone());
    let no_set = |errno| Error::os("creating an epoll set", errno);
    let manager = Manager {
        clients: Clients::new(device.clone(), heartbeat).map_err(no_set)?,
        lease_log: LeaseLog::new(Instant::now()),
        cache: Cache::new(u64::from(cache_mb) << 20, settings.cache_sharing, bell.clone()),
        executors: Executors::new(
            device,
            address,
            (launcher, isolation.alone),
            heartbeat,
            open_files,
            (settings.prewarmed(), preload),
        )
        .map_err(no_set)?,
        upstream,
        acceptor: Acceptor::new(listener, ACCEPT_BATCH),
        allocations,
        authority,
        signals,
        bell,
        idle: if node.rdma_sleep { Idle::Sleep } else { Idle::Poll },
        drain: Duration::from_millis(node.drain_ms.into()),
        stopping: None,
        strangers: true,
        interrupts: 0,
    };
    manager.run()
}

/// With the secret in the environment, closes environment and memory of this process to others of the same
/// user, who are our functions (proc_pid_environ(5), ptrace(2)); also if this manager does not use it. A secret in a
/// file is theirs to read anyway.
fn hide_environment() {
    if std::env::var_os(SECRET_VARIABLE).is_some()
        && let Err(errno) = set_dumpable(false)
    {
        tracing::warn!(%errno, "functions may read {SECRET_VARIABLE} in the environment of this process");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes() {
        let source = rdmalib::Error::Os { call: "bind", source: Errno::EACCES.into() };
        let told = describe(&source);
        assert!(told.starts_with("bind failed: ") && told.contains("ermission"), "{told}");
    }
}
