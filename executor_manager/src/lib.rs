//! The executor manager: leases this node's cores, starts, watches and bills executor processes.
//!
//! ```text
//!   client ──Allocate, token──▶ clients ─▶ allocations ─▶ spawn ─▶ executor process
//!   executor's workers ──fetch-add──▶ accounting ─▶ bill ─▶ upstream ──▶ resource manager
//! ```
//! One thread does everything (`manager`); who holds what is decided by pure code (`allocations`).
//! Nothing here is on the path of an invocation.
//!
//! Elsewhere: granting leases (the resource manager), running functions (the executor).

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rfaas::config::{Devices, ExecutorManagerConfig, ExecutorManagerNode};
use rfaas::protocol::lease::NodeName;

mod accounting;
mod allocations;
mod clients;
mod cpus;
mod ended;
mod executors;
mod identity;
mod manager;
mod request;
mod signals;
mod spawn;
mod upstream;

use allocations::{Allocations, Capacity, Event};
use clients::Clients;
use cpus::CpuPool;
use executors::Executors;
use identity::Identity;
use manager::Manager;
use request::Authority;
use signals::Signals;
use spawn::Launcher;
use upstream::Upstream;

/// Why the manager ended. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not start: something that it was given is wrong, or not there.
    #[error("{0}")]
    Start(String),
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
    /// Lease without a resource manager, to whoever asks.
    pub skip_resource_manager: bool,
    /// Executors log what they do.
    pub verbose: bool,
}

/// Runs until SIGINT or SIGTERM. To be called before there is another thread, since it blocks these
/// signals in order to read them.
pub fn run(options: &Options) -> Result<(), Error> {
    let signals = Signals::block().map_err(|errno| Error::os("blocking signals", errno))?;
    raise_descriptor_limit();
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
    let device = options.devices.open(&node.rdma_device);
    let device = device.map_err(|error| Error::Start(in_full(&error)))?.device;
    let listener = device.listen(node.rdma_device_port);
    let listener = listener.map_err(|error| Error::Start(in_full(&error)))?;
    let address = listener.local_addr();
    tracing::info!("Listening on device {}, address {address}", device.name());

    let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(|errno| Error::os("creating an eventfd", errno))?;
    let wake = Arc::new(wake);
    let heartbeat = node.heartbeat();
    let mut allocations = Allocations::new(cpus, heartbeat);
    let (authority, upstream) = if options.skip_resource_manager {
        let capacity = own_capacity(node)?;
        let Capacity { cores, memory } = capacity;
        tracing::info!("leasing {cores} cores, {memory} MB without a resource manager");
        allocations.apply(Instant::now(), Event::Capacity(capacity), &mut Vec::new());
        (Authority::Anyone, None)
    } else {
        let secret = node.secret().map_err(|error| Error::Start(error.to_string()))?;
        let identity = Arc::new(Identity::new(name, &secret));
        let authority = Authority::ResourceManager(Arc::clone(&identity));
        let wake = Arc::clone(&wake);
        let upstream = Upstream::new(device.clone(), node.clone(), identity, wake, Instant::now());
        (authority, Some(upstream))
    };
    let launcher = Launcher::from_environment(options.verbose);
    let manager = Manager {
        clients: Clients::new(device.clone(), heartbeat),
        executors: Executors::new(device, address, launcher, heartbeat),
        upstream,
        listener,
        allocations,
        authority,
        signals,
        wake,
        sleep: node.rdma_sleep,
        listener_paused: None,
        drain: Duration::from_millis(node.drain_ms.into()),
        stopping: None,
    };
    manager.run()
}

/// `error` and what caused it, in one line: a message alone does not say what the system said.
fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What to lease if nobody else says: as configured, else what this process may use of the machine.
fn own_capacity(node: &ExecutorManagerNode) -> Result<Capacity, Error> {
    let cores = match node.cores {
        Some(cores) => cores,
        None => std::thread::available_parallelism()
            .ok()
            .and_then(|cores| u32::try_from(cores.get()).ok())
            .ok_or_else(|| Error::Start("cannot find out the cores: set config.cores".into()))?,
    };
    let memory = match node.memory {
        Some(memory) => memory,
        None => std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| total_memory(&text))
            .ok_or_else(|| Error::Start("cannot find out the memory: set config.memory".into()))?,
    };
    Ok(Capacity { cores, memory })
}

/// `MemTotal` of `/proc/meminfo`, in MB.
fn total_memory(meminfo: &str) -> Option<u32> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    u32::try_from(kilobytes / 1024).ok()
}

/// Every client and worker costs descriptors; the usual soft limit of 1024 is for programs that use
/// `select(2)`.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::debug!(%errno, "the limit of open descriptors stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes() {
        let source = rdmalib::Error::Os { call: "bind", source: Errno::EACCES.into() };
        let told = in_full(&source);
        assert!(told.starts_with("bind failed: ") && told.contains("ermission"), "{told}");
    }

    #[test]
    fn total_memory_is_read_in_megabytes() {
        let text = "MemTotal:       24684016 kB\nMemFree:        23000000 kB\n";
        assert_eq!(total_memory(text), Some(24_105));
        assert_eq!(total_memory("MemFree: 1 kB\n"), None);
        assert_eq!(total_memory("MemTotal: many kB\n"), None);
    }
}
