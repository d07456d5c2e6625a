//! [`LocalCluster`]: a resource manager and executor managers on this machine, for one test, benchmark or
//! afternoon.
//!
//! ```text
//!   a temporary directory: devices.json, server_devices.json, resource_manager.json, …
//!     ├──▶ resource_manager   free ports, from its log        (or none: --skip-resource-manager)
//!     └──▶ executor_manager   a node of the wanted size ──▶ executor, executor, …       (one, or several)
//! ```
//! Nodes are numbered from 0; what does not say which is about that one.
//! * Its ports, files and names of nodes are its own, so several clusters run side by side.
//! * [`LocalCluster::start`] returns when leases can be acquired, or says why not, with the logs.
//! * Dropping it ends its programs and removes its files. So does the death of this process, where the machine has
//!   `setpriv`.

mod error;
mod options;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rfaas::Client;
use rfaas_config::{DeviceEntry, ExecutorsDatabase, OpenDevice};
use tempfile::TempDir;

use crate::http::Http;
use crate::interrupt;
use crate::process::{Launch, Process, ProcessKeeper};
use crate::procfs::{self, Processes, Stat};
use crate::settings::Settings;
use crate::test_devices::{TestDevices, patience};
use crate::wait::eventually;

pub use error::ClusterError;
use error::os;
pub use options::Options;

/// Longest wait for a manager to be ready. Generous: tests run on loaded machines.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a manager to stop, which gives its executors half a second each. Generous as well.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a manager has made nothing more until it is at rest: ten times its pauses between two of what it makes.
const REST: Duration = Duration::from_millis(200);
/// How many ports are tried for the executor manager, whose port must be known before it starts.
const PORT_ATTEMPTS: u32 = 8;

/// A resource manager (unless not wanted) and the executor managers of its nodes, running.
#[derive(Debug)]
pub struct LocalCluster {
    // Order of dropping: executor managers first, so that the resource manager still books their
    // bills; then the files; the keeper last, since the processes die with it.
    executor_managers: Vec<Option<Process>>,
    resource_manager: Option<Process>,
    directory: TempDir,
    keeper: ProcessKeeper,
    settings: Settings,
    http: Option<Http>,
    options: Options,
}

impl LocalCluster {
    /// Starts one and waits until it is ready.
    pub fn start(options: Options) -> Result<Self, ClusterError> {
        let directory = private_directory()?;
        let devices = match &options.devices {
            Some(devices) => devices.clone(),
            None => TestDevices::chosen(options.address)?.max_inline_data(options.max_inline_data),
        };
        let mut settings = Settings::shipped(directory.path(), &devices, &options.node_names());
        options.apply(&mut settings);
        let mut cluster = Self::not_started(directory, settings, options)?;

        let mut attempts = 0..PORT_ATTEMPTS;
        loop {
            cluster.choose_executor_manager_ports();
            match cluster.start_managers() {
                Ok(()) => return Ok(cluster),
                Err(error) if attempts.next().is_none() || !is_port_taken(&error) => {
                    return Err(error);
                }
                Err(_) => {
                    cluster.executor_managers.fill_with(|| None);
                    cluster.resource_manager = None;
                }
            }
        }
    }

    fn not_started(
        directory: TempDir,
        settings: Settings,
        options: Options,
    ) -> Result<Self, ClusterError> {
        interrupt::started(directory.path());
        Ok(LocalCluster {
            executor_managers: settings.nodes.iter().map(|_| None).collect(),
            resource_manager: None,
            directory,
            keeper: ProcessKeeper::start().map_err(os("starting a thread"))?,
            settings,
            http: None,
            options,
        })
    }

    /// Unlike the resource manager's, which are read from its log, these ports must be known before: they are in the
    /// executors database that the resource manager starts with.
    fn choose_executor_manager_ports(&mut self) {
        for node in &mut self.settings.nodes {
            node.config.rdma_device_port = any_port();
        }
    }

    fn start_managers(&mut self) -> Result<(), ClusterError> {
        self.write_settings()?;
        if self.options.resource_manager {
            self.start_resource_manager()?;
        }
        (0..self.nodes()).try_for_each(|node| self.start_executor_manager_of(node))
    }

    fn write_settings(&self) -> Result<(), ClusterError> {
        let Options { cores, memory, .. } = self.options;
        self.settings
            .write(self.address(), cores, memory)
            .map_err(os("writing configuration files"))
    }

    /// Starts the resource manager, or starts it again after it was killed: then it has the ports that it
    /// had and, with [`Options::keeps_state`], goes on where it was.
    pub fn start_resource_manager(&mut self) -> Result<(), ClusterError> {
        let arguments = vec![
            "--config".into(),
            self.settings.resource_manager_path().into(),
            "--device-database".into(),
            self.settings.server_devices_path().into(),
            "--input-database".into(),
            self.settings.executors_path().into(),
        ];
        let mut manager = self.launch("resource_manager", arguments, None)?;
        let rdma_port = await_line(&mut manager, "Listening on device", port_at_end)?;
        let http_port = await_line(&mut manager, "HTTP interface at", port_at_end)?;
        self.resource_manager = Some(manager);
        self.http = Some(Http::at(format!("http://127.0.0.1:{http_port}")));
        self.settings.resource_manager.config.rdma_device_port = rdma_port;
        self.settings.resource_manager.config.http_network_port = http_port;
        self.settings.set_resource_manager(Some(SocketAddr::new(self.address(), rdma_port)));
        self.write_settings()
    }

    /// Starts the executor manager, or starts it again, at the same address, after it was killed.
    pub fn start_executor_manager(&mut self) -> Result<(), ClusterError> {
        self.start_executor_manager_of(0)
    }

    /// The same of node `node`.
    pub fn start_executor_manager_of(&mut self, node: usize) -> Result<(), ClusterError> {
        let mut arguments: Vec<OsString> = vec![
            "--config".into(),
            self.settings.executor_manager_path(node).into(),
            "--device-database".into(),
            self.settings.server_devices_path().into(),
        ];
        if !self.options.resource_manager {
            arguments.push("--skip-resource-manager".into());
        }
        let path = self.options.executor_path.clone();
        let mut manager = self.launch("executor_manager", arguments, path)?;
        let awaited =
            if self.options.resource_manager { "registered as" } else { "Listening on device" };
        await_line(&mut manager, awaited, |_| Some(()))?;
        self.executor_managers[node] = Some(manager);
        Ok(())
    }

    /// Address of the managers' device.
    fn address(&self) -> IpAddr {
        let name = &self.settings.resource_manager.config.rdma_device;
        let device = self.settings.server_devices.get(name);
        device.map_or(self.options.address, |device| device.ip_address)
    }

    fn launch(
        &self,
        program: &str,
        arguments: Vec<OsString>,
        path: Option<OsString>,
    ) -> Result<Process, ClusterError> {
        let verbose = self.options.talkative.then(|| "-v".into());
        let launch = Launch {
            program: self.options.binaries.program(program)?,
            arguments: arguments.into_iter().chain(verbose).collect(),
            path: path.unwrap_or_else(|| self.path_with_binaries()),
            directory: self.directory().to_owned(),
            show: self.options.show_logs,
        };
        let manager = self.keeper.spawn(&launch).map_err(os("starting a manager"))?;
        interrupt::runs(self.directory(), manager.id());
        Ok(manager)
    }

    fn path_with_binaries(&self) -> OsString {
        let mut path = OsString::from(self.options.binaries.directory());
        if let Some(ours) = std::env::var_os("PATH") {
            path.push(":");
            path.push(ours);
        }
        path
    }

    /// Its private directory: configuration files, and where its programs put temporary files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Device database for clients.
    pub fn devices(&self) -> PathBuf {
        self.settings.devices_path()
    }

    /// Executors database: for clients that use no resource manager.
    pub fn executors(&self) -> PathBuf {
        self.settings.executors_path()
    }

    /// Configuration of benchmarks.
    pub fn benchmark(&self) -> PathBuf {
        self.settings.benchmark_path()
    }

    /// Where clients ask for leases, if there is a resource manager.
    pub fn resource_manager_address(&self) -> Option<SocketAddr> {
        let client = &self.settings.benchmark.config;
        let ip = client.resource_manager_address.parse().ok()?;
        Some(SocketAddr::new(ip, client.resource_manager_port))
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> usize {
        self.settings.nodes.len()
    }

    /// Where clients claim leases.
    pub fn executor_manager_address(&self) -> SocketAddr {
        let node = &self.settings.nodes[0]; // there is one: `Settings`
        SocketAddr::new(self.address(), node.config.rdma_device_port)
    }

    /// The resource manager's HTTP interface, if there is one.
    pub fn http(&self) -> Option<&Http> {
        self.http.as_ref()
    }

    /// The resource manager, if it was started.
    pub fn resource_manager(&mut self) -> Option<&mut Process> {
        self.resource_manager.as_mut()
    }

    /// The executor manager, if it was started.
    pub fn executor_manager(&mut self) -> Option<&mut Process> {
        self.executor_manager_of(0)
    }

    /// The executor manager of node `node`, if it was started.
    pub fn executor_manager_of(&mut self, node: usize) -> Option<&mut Process> {
        self.executor_managers.get_mut(node)?.as_mut()
    }

    /// Process ids of the executors that run now, of all nodes. A guardian without an executor is one that ends. Those
    /// that stand by are not among them.
    pub fn executors_running(&self) -> Vec<u32> {
        let processes = Processes::now();
        let children = self.children(&processes);
        children.flat_map(|(id, stat)| executors_of(id, stat, &processes)).collect()
    }

    /// Process ids of the executors that stand by, of all nodes.
    pub fn executors_standing(&self) -> Vec<u32> {
        let processes = Processes::now();
        let guarded = self.children(&processes).flat_map(|(id, _)| processes.children(id));
        let all = guarded.chain(self.children(&processes));
        let all: BTreeSet<_> =
            all.filter(|(_, stat)| stat.name == "standby").map(|(id, _)| id).collect();
        all.into_iter().collect()
    }

    /// Waits until `executors` of them stand by, and executor managers have made all that they make ahead: they have
    /// had as many descriptors for a while.
    pub fn wait_for_rest(&self, executors: usize) {
        let mut last = (0, Instant::now());
        eventually("executors stand by, and nothing more is made", || {
            let managers = self.executor_managers.iter().flatten();
            let descriptors = managers.map(|manager| procfs::open_files(manager.id()).len()).sum();
            if last.0 != descriptors || self.executors_standing().len() != executors {
                last = (descriptors, Instant::now());
            }
            last.1.elapsed() >= REST
        });
    }

    /// The processes that executor managers have started.
    fn children<'a>(&'a self, of: &'a Processes) -> impl Iterator<Item = (u32, &'a Stat)> {
        let managers = self.executor_managers.iter().flatten();
        managers.flat_map(|manager| of.children(manager.id()))
    }

    /// Process ids of the zygotes that run now, of all nodes.
    pub fn zygotes_running(&self) -> Vec<u32> {
        let processes = Processes::now();
        let children = self.children(&processes);
        children.filter(|(_, stat)| stat.name == "zygote").map(|(id, _)| id).collect()
    }

    /// Program `name` of the built ones with the cluster's configuration files on its command line, as
    /// every benchmark takes them.
    pub fn benchmark_command(&self, name: &str) -> Result<Command, ClusterError> {
        let mut command = Command::new(self.options.binaries.program(name)?);
        command.arg("--config").arg(self.benchmark());
        command.arg("--device-database").arg(self.devices());
        if !self.options.resource_manager {
            command.arg("--executors-database").arg(self.executors());
        }
        command.env("TMPDIR", self.directory());
        Ok(command)
    }

    /// The device that clients use.
    pub fn client_device(&self) -> Result<&DeviceEntry, ClusterError> {
        Ok(self.settings.devices.get(&self.settings.benchmark.config.rdma_device)?)
    }

    /// The same, open.
    pub fn open_device(&self) -> Result<OpenDevice, ClusterError> {
        Ok(self.client_device()?.open()?)
    }

    /// A client: of the resource manager or, where there is none, of the executor manager.
    pub fn client(&self) -> Result<Client, ClusterError> {
        let device = self.open_device()?;
        match self.resource_manager_address() {
            Some(at) => Ok(Client::connect(device, at)?),
            None => {
                let database = ExecutorsDatabase::load(self.executors())?;
                Ok(Client::with_executors(device, database)?)
            }
        }
    }

    /// Built function library `libNAME.so`.
    pub fn library(&self, name: &str) -> Result<PathBuf, ClusterError> {
        Ok(self.options.binaries.library(name)?)
    }

    /// What the managers have logged, for failure messages.
    pub fn logs(&self) -> String {
        let managers = std::iter::once(&self.resource_manager).chain(&self.executor_managers);
        managers.flatten().map(|manager| format!("{manager}\n")).collect()
    }

    /// The managers, in the order in which they are stopped.
    fn managers(&mut self) -> impl Iterator<Item = &mut Process> {
        self.executor_managers
            .iter_mut()
            .chain(std::iter::once(&mut self.resource_manager))
            .flatten()
    }

    /// Stops all managers in order, and their executors with them. An error if one of them did not stop
    /// when asked to, or ended with a failure.
    pub fn stop(mut self) -> Result<(), ClusterError> {
        for manager in self.managers() {
            let running = manager.exit_status().is_none();
            let status = manager.stop(patience(STOP_TIMEOUT))?;
            if running && !status.success() {
                return Err(ClusterError::UncleanEnd { program: manager.to_string() });
            }
        }
        Ok(())
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        // In order and asked first, so that nothing is left even where `stop` was not reached.
        for manager in self.managers() {
            if let Err(error) = manager.stop(patience(STOP_TIMEOUT)) {
                tracing::warn!(%error, "a manager of the local cluster was killed");
            }
        }
        interrupt::stopped(self.directory());
    }
}

/// The executors that child `id` of an executor manager stands for.
fn executors_of(id: u32, stat: &Stat, processes: &Processes) -> Vec<u32> {
    match stat.name.as_str() {
        "zygote" | "standby" => Vec::new(),
        "guardian" => {
            let of = |all: &Processes| -> Vec<(u32, String)> {
                all.children(id).map(|(id, stat)| (id, stat.name.clone())).collect()
            };
            let mut guarded = of(processes);
            if guarded.is_empty() {
                guarded = of(&Processes::now()); // it may have become a guardian while they were listed
            }
            if guarded.is_empty() {
                return vec![id];
            }
            guarded.retain(|(_, name)| name == "executor");
            guarded.into_iter().map(|(id, _)| id).collect()
        }
        _ => vec![id],
    }
}

fn private_directory() -> Result<TempDir, ClusterError> {
    tempfile::Builder::new()
        .prefix("rfaas-cluster-")
        .tempdir()
        .map_err(os("making the cluster's directory"))
}

/// Waits until `manager` logs a line with `awaited` in it, and returns what `read` gets from the rest of it.
fn await_line<T>(
    manager: &mut Process,
    awaited: &'static str,
    mut read: impl FnMut(&str) -> Option<T>,
) -> Result<T, ClusterError> {
    let found = manager.wait_for(patience(START_TIMEOUT), |line| read(line.split_once(awaited)?.1));
    found.ok_or_else(|| {
        manager.wait(Duration::from_millis(100)); // so that the error has its exit status, if it has ended
        let log = manager.log();
        match log.lines().find_map(|line| line.strip_prefix("error: ")) {
            Some(reason) => {
                ClusterError::Refused { program: manager.name().into(), reason: reason.into() }
            }
            None => ClusterError::NotReady { awaited, program: manager.to_string() },
        }
    })
}

/// The number at the end: ` shm0, address 127.0.0.1:10000` → 10000.
fn port_at_end(rest: &str) -> Option<u16> {
    rest.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A port that most likely is free: below the range that systems choose from by themselves
/// (`ip_local_port_range`, ip(7), starts at 32768).
fn any_port() -> u16 {
    let random = RandomState::new().build_hasher().finish();
    16384 + (random % 16384) as u16
}

fn is_port_taken(error: &ClusterError) -> bool {
    matches!(error, ClusterError::Refused { reason, .. } if reason.contains("in use"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binaries::Binaries;

    #[test]
    fn ports_are_read_from_the_managers_logs() {
        assert_eq!(port_at_end(" shm0, address 127.0.0.1:10005"), Some(10005));
        assert_eq!(port_at_end(" shm0, port 10005\n"), Some(10005));
        assert_eq!(port_at_end(" [::1]:5000"), Some(5000));
        assert_eq!(port_at_end(" shm0, "), None);
    }

    #[test]
    fn a_cluster_without_its_programs_says_what_to_build() {
        let binaries = Binaries::in_directory("/nowhere");
        let error = LocalCluster::start(Options { binaries, ..Options::default() }).unwrap_err();
        assert!(error.to_string().contains("cargo build"), "{error}");
    }
}
