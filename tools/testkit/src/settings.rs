//! The configuration files of a cluster: the shipped ones of `config/` with a few values changed.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rfaas_config::{
    BenchmarkConfig, Devices, ExecutorEntry, ExecutorManagerConfig, ExecutorsDatabase,
    ResourceManagerConfig,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::test_devices::TestDevices;

/// The shipped files, as they were when this was built: a cluster needs no source tree to run.
mod shipped {
    pub const RESOURCE_MANAGER: &str = include_str!("../../../config/resource_manager.json");
    pub const EXECUTOR_MANAGER: &str = include_str!("../../../config/executor_manager.json");
    pub const BENCHMARK: &str = include_str!("../../../config/benchmark.json");
}

const DEVICES: &str = "devices.json";
const SERVER_DEVICES: &str = "server_devices.json";
const RESOURCE_MANAGER: &str = "resource_manager.json";
const EXECUTOR_MANAGER: &str = "executor_manager.json";
const EXECUTORS: &str = "executors_database.json";
const BENCHMARK: &str = "benchmark.json";
const STATE: &str = "resource_manager.state";

/// Device that a cluster's programs and clients use unless RDMA devices are asked for: the shipped one.
pub const DEVICE: &str = "shm0";

/// The files, as values until they are written.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    directory: PathBuf,
    /// Devices of clients, and of managers.
    pub devices: Devices,
    pub server_devices: Devices,
    pub resource_manager: ResourceManagerConfig,
    /// The executor manager of each node.
    pub nodes: Vec<ExecutorManagerConfig>,
    pub benchmark: BenchmarkConfig,
}

impl Settings {
    /// The shipped ones, to be written into `directory`: on `devices`, with a node of each of these names, all ports
    /// to be chosen.
    pub fn shipped(directory: &Path, devices: &TestDevices, nodes: &[String]) -> Self {
        let mut settings = Settings {
            directory: directory.to_owned(),
            devices: devices.client_database(),
            server_devices: devices.server_database(),
            resource_manager: parse(shipped::RESOURCE_MANAGER),
            nodes: vec![parse(shipped::EXECUTOR_MANAGER); nodes.len()],
            benchmark: parse(shipped::BENCHMARK),
        };
        let manager = &mut settings.resource_manager.config;
        manager.rdma_device.clone_from(&devices.server.name);
        manager.rdma_device_port = 0;
        manager.http_network_address = "127.0.0.1".into();
        manager.http_network_port = 0;
        for (node, name) in settings.nodes.iter_mut().zip(nodes) {
            node.config.node_name.clone_from(name);
            node.config.rdma_device.clone_from(&devices.server.name);
            node.config.rdma_device_port = 0;
        }
        settings.benchmark.config.rdma_device.clone_from(&devices.client.name);
        settings.set_resource_manager(None);
        settings
    }

    /// Where executor managers and clients find the resource manager.
    pub fn set_resource_manager(&mut self, at: Option<SocketAddr>) {
        let (address, port) = at.map_or((String::new(), 0), |at| (at.ip().to_string(), at.port()));
        for node in &mut self.nodes {
            let node = &mut node.config;
            (node.resource_manager_address, node.resource_manager_port) = (address.clone(), port);
        }
        let client = &mut self.benchmark.config;
        (client.resource_manager_address, client.resource_manager_port) = (address, port);
    }

    /// Writes all files; the executors database has all nodes, at `address`.
    pub fn write(&self, address: IpAddr, cores: u32, memory: u32) -> io::Result<()> {
        let entry = |node: &ExecutorManagerConfig| ExecutorEntry {
            node: node.config.node_name.clone(),
            address: address.to_string(),
            port: node.config.rdma_device_port,
            cores,
            memory,
            labels: Vec::new(),
        };
        let database = ExecutorsDatabase { executors: self.nodes.iter().map(entry).collect() };
        write(&self.devices_path(), &self.devices)?;
        write(&self.server_devices_path(), &self.server_devices)?;
        write(&self.resource_manager_path(), &self.resource_manager)?;
        for (number, node) in self.nodes.iter().enumerate() {
            write(&self.executor_manager_path(number), node)?;
        }
        write(&self.executors_path(), &database)?;
        write(&self.benchmark_path(), &self.benchmark)
    }

    pub fn devices_path(&self) -> PathBuf {
        self.directory.join(DEVICES)
    }

    pub fn server_devices_path(&self) -> PathBuf {
        self.directory.join(SERVER_DEVICES)
    }

    pub fn resource_manager_path(&self) -> PathBuf {
        self.directory.join(RESOURCE_MANAGER)
    }

    /// Of node `number`; the first one has the usual name.
    pub fn executor_manager_path(&self, number: usize) -> PathBuf {
        match number {
            0 => self.directory.join(EXECUTOR_MANAGER),
            more => self.directory.join(format!("executor_manager_{more}.json")),
        }
    }

    /// Where a resource manager may keep its state.
    pub fn state_path(&self) -> PathBuf {
        self.directory.join(STATE)
    }

    pub fn executors_path(&self) -> PathBuf {
        self.directory.join(EXECUTORS)
    }

    pub fn benchmark_path(&self) -> PathBuf {
        self.directory.join(BENCHMARK)
    }
}

fn parse<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("a test reads every shipped file")
}

/// At once: a program that starts meanwhile reads what was there before, or all of it.
fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_string_pretty(value)? + "\n")?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_are_adapted_and_written_whole() {
        let directory = tempfile::tempdir().unwrap();
        let at: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let names = ["one", "two"].map(String::from);
        let devices = TestDevices::embedded(at.ip());
        let mut settings = Settings::shipped(directory.path(), &devices, &names);
        settings.set_resource_manager(Some(at));
        for (port, node) in (7..).zip(&mut settings.nodes) {
            node.config.rdma_device_port = port;
        }
        settings.write(at.ip(), 2, 512).unwrap();

        let devices = Devices::load(settings.devices_path()).unwrap();
        assert_eq!(devices.get(DEVICE).unwrap().provider.to_string(), "shm");
        let node = Devices::load(settings.server_devices_path()).unwrap();
        assert_eq!(node.devices, devices.devices);
        let manager = ResourceManagerConfig::load(settings.resource_manager_path()).unwrap();
        assert_eq!(manager.config.http_network_port, 0);
        let database = ExecutorsDatabase::load(settings.executors_path()).unwrap();
        for (number, name) in names.iter().enumerate() {
            let node = ExecutorManagerConfig::load(settings.executor_manager_path(number)).unwrap();
            assert_eq!(node.config.resource_manager().unwrap(), Some(vec![at]));
            assert_eq!(node.config.node_name, *name);
            let entry = &database.executors[number];
            assert_eq!((&entry.node, entry.port), (name, node.config.rdma_device_port));
            assert_eq!((entry.cores, entry.memory), (2, 512));
        }
        let benchmark = BenchmarkConfig::load(settings.benchmark_path()).unwrap();
        assert_eq!(benchmark.config.resource_manager().unwrap(), Some(vec![at]));
    }
}
