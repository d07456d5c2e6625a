//! Options of a cluster on this machine.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use rfaas_config::{
    CacheSharing, ContainerSettings, ExecutorSettings, Isolation, Launch, ResourceManagerNode,
};
use rfaas_protocol::heartbeat::Heartbeat;
use rfaas_protocol::isolation::UserRange;

use crate::binaries::Binaries;
use crate::settings::Settings;
use crate::test_devices::{TestDevices, patience};

/// Silence after which a peer is given up, unless a test is about that. The 5 s that are shipped are too short on one
/// core that is busy with other things: an executor that starts there is treated as silent.
const PATIENT_SILENCE: Duration = Duration::from_secs(30);

/// Options of a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes it has, at least one, all alike.
    pub nodes: usize,
    /// Cores that each node leases out; need not be those of this machine.
    pub cores: u32,
    /// Memory that each node leases out, in MB.
    pub memory: u32,
    /// Whether there is a resource manager.
    pub resource_manager: bool,
    /// Whether the resource manager keeps nodes, leases and bills in a file, and goes on with them when it is
    /// started again.
    pub keeps_state: bool,
    /// Signs of life between all of its programs and clients.
    pub heartbeat: Heartbeat,
    /// How long leases may last after an executor manager was asked to stop.
    pub drain: Duration,
    /// How long an executor manager whose connection has ended may stay away before its leases end.
    pub node_return: Duration,
    /// How executors are started.
    pub launch: Launch,
    /// How many of them stand by on each node.
    pub prewarm: u32,
    /// What they run in, if they run in containers: then none stands by.
    pub container: Option<ContainerSettings>,
    /// Libraries that these have loaded.
    pub preload: Vec<PathBuf>,
    /// How functions are kept from their node.
    pub isolation: Isolation,
    /// Directories that functions see besides the system's.
    pub view: Vec<PathBuf>,
    /// Users of executors, if managers are root.
    pub users: UserRange,
    /// Whether workers are pinned to CPUs.
    pub pin_threads: bool,
    /// Most memory of the libraries that a node keeps, in MB.
    pub cache_mb: u32,
    /// Who finds them.
    pub cache_sharing: CacheSharing,
    /// Whether the managers sleep while there is nothing to do.
    pub rdma_sleep: bool,
    /// The cluster secret.
    pub secret: u32,
    /// Name of the node. Names of further nodes have a number behind it.
    pub node: String,
    /// Address of the embedded device, IPv4 or IPv6; on it an address is only a name. Not used on the devices
    /// that the environment names ([`test_devices`](crate::test_devices)).
    pub address: IpAddr,
    /// Devices to run on, as they are, instead of all that.
    pub devices: Option<TestDevices>,
    /// Largest message that is sent inline, in bytes.
    pub max_inline_data: u32,
    /// Whether managers log everything down to debug.
    pub talkative: bool,
    /// Whether the logs of managers go to the standard error of this program too.
    pub show_logs: bool,
    /// Where the programs are.
    pub binaries: Binaries,
    /// `PATH` of the executor manager, which starts `executor` from it; by default the binaries' directory
    /// in front of ours.
    pub executor_path: Option<OsString>,
}

impl Default for Options {
    /// A node of two cores and 1024 MB, sleeping managers, a resource manager that keeps its state. A silent peer is
    /// given up later than as shipped.
    fn default() -> Self {
        let manager = ResourceManagerNode::default();
        Options {
            nodes: 1,
            cores: 2,
            memory: 1024,
            resource_manager: true,
            keeps_state: true,
            heartbeat: Heartbeat { silence: PATIENT_SILENCE, ..manager.heartbeat() },
            drain: Duration::from_secs(2), // as shipped
            node_return: Duration::from_millis(manager.node_return_ms.into()),
            launch: Launch::default(),
            prewarm: ExecutorSettings::default().prewarmed(),
            container: None,
            preload: Vec::new(),
            isolation: Isolation::default(),
            view: Vec::new(),
            users: UserRange::default(),
            pin_threads: false,
            cache_mb: ExecutorSettings::default().cache_mb,
            cache_sharing: CacheSharing::Tenant,
            rdma_sleep: true,
            secret: 42,
            node: "local-node".into(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            devices: None,
            max_inline_data: 0,
            talkative: true,
            show_logs: false,
            binaries: Binaries::beside_this_program(),
            executor_path: None,
        }
    }
}

impl Options {
    /// The usual cluster, which gives up a peer that is silent for a second: for tests that stop processes.
    pub fn impatient() -> Self {
        Options {
            heartbeat: Heartbeat {
                period: patience(Duration::from_millis(100)),
                silence: patience(Duration::from_secs(1)),
            },
            drain: patience(Duration::from_millis(500)),
            node_return: patience(Duration::from_secs(1)),
            ..Options::default()
        }
    }

    /// Names of the nodes, in order.
    pub(super) fn node_names(&self) -> Vec<String> {
        let more = (2..=self.nodes).map(|number| format!("{}-{number}", self.node));
        std::iter::once(self.node.clone()).chain(more).collect()
    }

    /// Puts them into the configuration files.
    pub(super) fn apply(&self, settings: &mut Settings) {
        let (heartbeat_ms, silence_ms) = (self.heartbeat.period_ms(), self.heartbeat.silence_ms());
        let state_file = self.keeps_state.then(|| settings.state_path().display().to_string());
        let manager = &mut settings.resource_manager.config;
        manager.rdma_secret = self.secret.into();
        manager.rdma_sleep = self.rdma_sleep;
        manager.heartbeat_ms = heartbeat_ms;
        manager.silence_ms = silence_ms;
        manager.node_return_ms = milliseconds(self.node_return);
        manager.state_file = state_file.unwrap_or_default();
        for node in &mut settings.nodes {
            node.executor.launch = self.launch;
            node.executor.prewarm = self.container.is_none().then_some(self.prewarm);
            node.executor.container = self.container.clone();
            node.executor.preload = self.preload.clone();
            node.executor.isolation = self.isolation.clone();
            node.executor.view = self.view.clone();
            node.executor.users = self.users;
            node.executor.pin_threads = self.pin_threads;
            node.executor.cache_mb = self.cache_mb;
            node.executor.cache_sharing = self.cache_sharing;
            let node = &mut node.config;
            node.resource_manager_secret = self.secret.into();
            node.rdma_sleep = self.rdma_sleep;
            node.heartbeat_ms = heartbeat_ms;
            node.silence_ms = silence_ms;
            node.drain_ms = milliseconds(self.drain);
            node.cores = Some(self.cores);
            node.memory = Some(self.memory);
        }
    }
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
