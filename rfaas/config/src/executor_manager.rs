//! `executor_manager.json`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::container::{ContainerSettings, Engine};
use super::file::{
    ConfigError, EXECUTOR_MANAGER_PORT, File, Invalid, require, require_heartbeat,
    require_node_name, resource_manager,
};
use super::resource_manager::ResourceManagerNode;
use super::secret::{ClusterSecret, SECRET_VARIABLE, SecretValue};
use rfaas_protocol::assignment::MAX_PRELOADED;
use rfaas_protocol::heartbeat::Heartbeat;
use rfaas_protocol::isolation::{Layer, Layers, NetworkPolicy, UserRange};

/// Most executors that stand by: those of a large node whose cores are all leased at once.
const MOST_PREWARMED: u32 = 256;
/// Executors that stand by unless the settings say how many.
const USUAL_PREWARMED: u32 = 2;

/// Settings of an executor manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorManagerConfig {
    /// The manager itself.
    pub config: ExecutorManagerNode,
    /// The executors that it starts.
    #[serde(default)]
    pub executor: ExecutorSettings,
}

/// Where an executor manager listens, whom it belongs to, what it has to lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorManagerNode {
    /// Name in the device database; empty: its only device.
    #[serde(default)]
    pub rdma_device: String,
    /// Port for clients and executors; 0: any free one.
    #[serde(default = "usual_port")]
    pub rdma_device_port: u16,
    /// Name of this node, as the resource manager knows it.
    pub node_name: String,
    /// IP address or name of the resource manager; empty: there is none.
    #[serde(default)]
    pub resource_manager_address: String,
    /// Its port; 0: the usual one.
    #[serde(default)]
    pub resource_manager_port: u16,
    /// Cluster secret that signs leases, unless it is elsewhere ([`ClusterSecret`]).
    #[serde(default)]
    pub resource_manager_secret: SecretValue,
    /// File that has the cluster secret; empty: none.
    #[serde(default)]
    pub secret_file: String,
    /// Wait for events asleep; false: poll for them.
    #[serde(rename = "rdma-sleep", default = "yes")]
    pub rdma_sleep: bool,
    /// How often it, clients and executors give each other a sign of life, in milliseconds.
    #[serde(default = "usual_heartbeat_ms")]
    pub heartbeat_ms: u32,
    /// Silence after which they give each other up, in milliseconds.
    #[serde(default = "usual_silence_ms")]
    pub silence_ms: u32,
    /// How long leases may last after SIGTERM, SIGHUP or SIGINT, in milliseconds.
    #[serde(default = "usual_drain_ms")]
    pub drain_ms: u32,
    /// Cores to lease without a resource manager; none: those of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Memory to lease without a resource manager, in MB; none: that of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
}

/// How executors are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Launch {
    /// Each is cloned from a process in which the program is loaded.
    #[default]
    Zygote,
    /// Each executes the program.
    Exec,
}

/// How executors run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExecutorSettings {
    /// How they are started.
    pub launch: Launch,
    /// How many stand by, started before there is a lease for them; none: [`prewarmed`](Self::prewarmed).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prewarm: Option<u32>,
    /// Libraries of the operator that these have loaded.
    pub preload: Vec<PathBuf>,
    /// They run in containers of Docker.
    pub use_docker: bool,
    /// They run in containers; none: in processes of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerSettings>,
    /// Accepted, without effect.
    pub repetitions: u32,
    /// Accepted, without effect.
    pub warmup_iters: u32,
    /// Give each worker a CPU of its own.
    pub pin_threads: bool,
    /// Names of environment variables that executors get, besides the usual ones.
    pub environment: Vec<String>,
    /// Most memory of the libraries that the node keeps, in MB; 0: it keeps none.
    pub cache_mb: u32,
    /// Who may find a library that the node keeps.
    pub cache_sharing: CacheSharing,
    /// How functions are kept from the rest of the node.
    pub isolation: Isolation,
    /// What they see besides the directories of the system, read-only.
    pub view: Vec<PathBuf>,
    /// User ids for executors, if the manager is root.
    pub users: UserRange,
    /// Sockets that functions may make; none: as the device needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPolicy>,
}

/// How functions are kept from the rest of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Not at all.
    None,
    /// By the layers that there are.
    #[default]
    Sandbox,
    /// Likewise, but not without these.
    Require(Vec<Layer>),
}

impl Isolation {
    /// Returns the layers that are wanted.
    pub fn wanted(&self) -> Layers {
        match self {
            Isolation::None => Layers::NONE,
            Isolation::Sandbox | Isolation::Require(_) => Layers::all(),
        }
    }

    /// Returns the layers that have to be there.
    pub fn required(&self) -> &[Layer] {
        match self {
            Isolation::None | Isolation::Sandbox => &[],
            Isolation::Require(layers) => layers,
        }
    }
}

impl Default for ExecutorSettings {
    fn default() -> Self {
        ExecutorSettings {
            launch: Launch::default(),
            prewarm: None,
            preload: Vec::new(),
            use_docker: false,
            container: None,
            repetitions: 0,
            warmup_iters: 0,
            pin_threads: false,
            environment: Vec::new(),
            cache_mb: 256,
            cache_sharing: CacheSharing::Tenant,
            isolation: Isolation::default(),
            view: Vec::new(),
            users: UserRange::default(),
            network: None,
        }
    }
}

impl ExecutorSettings {
    /// Returns what executors run in, and what that is run by, if they run in containers.
    pub fn contained(&self) -> Option<(Engine, &ContainerSettings)> {
        let container = self.container.as_ref()?;
        let docker = self.use_docker.then_some(Engine::Docker);
        Some((container.engine.or(docker)?, container))
    }

    /// Returns how many executors stand by.
    pub fn prewarmed(&self) -> u32 {
        match self.container {
            Some(_) => 0, // refused unless it is 0
            None => self.prewarm.unwrap_or(USUAL_PREWARMED),
        }
    }

    /// Returns how many executors stand by in all: so many without a library, and with each of the operator's.
    pub fn standing(&self) -> u32 {
        let kinds =
            u32::try_from(self.preload.len()).map_or(u32::MAX, |count| count.saturating_add(1));
        self.prewarmed().saturating_mul(kinds)
    }

    /// Checks what has to do with containers.
    fn validate_container(&self) -> Result<(), Invalid> {
        let Some(container) = &self.container else {
            let without = "needs `executor.container` with an `image`: what executors run in";
            return require(!self.use_docker, "executor.use_docker", without);
        };
        let docker = matches!(container.engine, None | Some(Engine::Docker));
        let other = "is for docker: leave it out where `executor.container` names another `engine`";
        require(!self.use_docker || docker, "executor.use_docker", other)?;
        let Some((engine, container)) = self.contained() else {
            let missing = "must be \"podman\", \"docker\" or \"apptainer\"";
            return require(false, "executor.container.engine", missing);
        };
        container.validate(engine)?;
        let none_stands = "must be 0 with `executor.container`: containers do not stand by";
        require(self.prewarm.unwrap_or(0) == 0, "executor.prewarm", none_stands)?;
        let none_loads = "must be empty with `executor.container`: containers load nothing before";
        require(self.preload.is_empty(), "executor.preload", none_loads)
    }
}

/// Who may find a library that a node keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheSharing {
    /// The client that it came from.
    Tenant,
    /// Every client, which can then find out by the time that it takes whether another one has used a library.
    Cluster,
}

impl ExecutorManagerConfig {
    /// Reads the settings at `path`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::read(path.as_ref())
    }
}

impl ExecutorManagerNode {
    /// Returns where the resource manager is, if there is one: all addresses of its name.
    pub fn resource_manager(&self) -> Result<Option<Vec<SocketAddr>>, ConfigError> {
        resource_manager(&self.resource_manager_address, self.resource_manager_port)
    }

    /// Returns the cluster secret, from wherever it is configured.
    pub fn secret(&self) -> Result<ClusterSecret, ConfigError> {
        ClusterSecret::load(&self.resource_manager_secret, &self.secret_file)
    }

    /// Signs of life between it, clients and executors.
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat::from_ms(self.heartbeat_ms, self.silence_ms)
    }
}

impl File for ExecutorManagerConfig {
    fn validate(&self) -> Result<(), Invalid> {
        require_node_name(&self.config.node_name, "config.node_name")?;
        require_heartbeat(self.config.heartbeat_ms, self.config.silence_ms)?;
        require(self.config.cores != Some(0), "config.cores", "must be at least 1")?;
        require(self.config.memory != Some(0), "config.memory", "must be at least 1 (MB)")?;
        for name in &self.executor.environment {
            let key = "executor.environment";
            require(
                !name.is_empty() && !name.contains(['=', '\0']),
                key,
                &format!("has {name:?}, which is no name of a variable"),
            )?;
            require(
                name != SECRET_VARIABLE,
                key,
                "must not name RFAAS_SECRET: functions would have the secret of the cluster",
            )?;
        }
        for path in &self.executor.view {
            require(
                path.is_absolute() && path.parent().is_some(),
                "executor.view",
                &format!("has {path:?}: each is the absolute path of a directory or a file, not /"),
            )?;
        }
        let standing = self.executor.standing();
        let most = format!(
            "makes {standing} executors stand by, with those of `executor.preload`, and may make {MOST_PREWARMED}: each \
             is a process that nobody uses yet"
        );
        require(standing <= MOST_PREWARMED, "executor.prewarm", &most)?;
        let preload = &self.executor.preload;
        let most = &format!("has {} libraries, and may have {MAX_PRELOADED}", preload.len());
        require(preload.len() <= MAX_PRELOADED, "executor.preload", most)?;
        for path in preload {
            let absolute = &format!("has {path:?}: each is the absolute path of a library");
            require(path.is_absolute(), "executor.preload", absolute)?;
        }
        let UserRange { first, count } = self.executor.users;
        // The last id but one: -1 is none (setresuid(2)).
        let fits = count > 0 && first.checked_add(count).is_some();
        let ids = "must have a `first` from 1 and a `count` from 1, all of them below 4294967295";
        require(first > 0 && fits, "executor.users", ids)?;
        let more = format!("must have a `count` above {standing}: each that stands by has a user");
        require(standing < count, "executor.users", &more)?;
        self.executor.validate_container()
    }
}

fn usual_port() -> u16 {
    EXECUTOR_MANAGER_PORT
}

/// Returns that of the resource manager's settings.
fn usual_heartbeat_ms() -> u32 {
    ResourceManagerNode::default().heartbeat_ms
}

/// Returns that of the resource manager's settings.
fn usual_silence_ms() -> u32 {
    ResourceManagerNode::default().silence_ms
}

/// Returns a time that is long enough for most calls that run, short enough for a batch system that
/// wants its node back.
fn usual_drain_ms() -> u32 {
    2000
}

fn yes() -> bool {
    true
}
