//! The service as tests use it: a cluster, a deployment, a call. What fails here ends the test.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rfaas::{Client, Deployment, Executor, LeaseRequest, Spin};
use tempfile::TempDir;

use crate::wait::eventually;
use crate::{LocalCluster, Options, TestDevices, functions};

/// A running cluster.
pub fn cluster(options: Options) -> LocalCluster {
    LocalCluster::start(options).unwrap_or_else(|error| panic!("{error}"))
}

/// A node of eight cores, a client, and the functions for graphs, which are in the directory.
pub fn cluster_for_graphs() -> (LocalCluster, Client, TempDir, PathBuf) {
    let cluster = cluster(Options { cores: 8, memory: 8192, ..Options::default() });
    let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let library = functions::graph(directory.path());
    let client = cluster.client().unwrap_or_else(|error| panic!("{error}"));
    (cluster, client, directory, library)
}

/// The devices that these tests run on, the embedded one at `address`.
pub fn devices_at(address: IpAddr) -> TestDevices {
    TestDevices::chosen(address).unwrap_or_else(|error| panic!("{error}"))
}

/// Waits until the first node of `cluster` is ready and nobody holds anything of it.
pub fn all_is_free(cluster: &LocalCluster) {
    let http = cluster.http().expect("it has a resource manager");
    eventually("the node is ready, all of it is free", || {
        let nodes = http.get("/nodes").unwrap_or_else(|error| panic!("{error}")).body;
        let node = &nodes[0];
        node["state"] == "ready"
            && node["free_cores"] == node["cores"]
            && node["free_memory"] == node["memory"]
    });
}

/// Gives a node a label.
pub fn label(cluster: &LocalCluster, node: &str, label: &str) {
    let http = cluster.http().expect("it has a resource manager");
    let listed = http.get(&format!("/nodes/{node}")).unwrap_or_else(|error| panic!("{error}")).body;
    let keys = ["ip_address", "port", "cores", "memory"];
    let mut entry: serde_json::Map<_, _> =
        keys.iter().map(|key| ((*key).to_owned(), listed[key].clone())).collect();
    entry.insert("labels".into(), vec![label].into());
    let answer = http.post(&format!("/add?node={node}"), &serde_json::Value::Object(entry));
    let answer = answer.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// A small deployment that sleeps while idle: most tests are not about spinning.
pub fn warm() -> Deployment {
    Deployment::new().spin(Spin::Never).input_bytes(4096).output_bytes(4096)
}

/// Leases `cores` cores and deploys `library`.
pub fn deploy(client: &Client, cores: u32, library: &Path, deployment: &Deployment) -> Executor {
    client
        .lease(LeaseRequest::new(cores, 64))
        .and_then(|lease| lease.deploy_with(library, deployment))
        .unwrap_or_else(|error| panic!("{error:?}"))
}

/// Calls `function` with `input`; returns the output, for which there is room for as many bytes.
pub fn call(executor: &mut Executor, function: &str, input: &[u8]) -> rfaas::Result<Vec<u8>> {
    let room = input.len().max(64);
    call_with_room(executor, function, input, room)
}

/// Calls `function` with `input` and an output of `room` bytes.
pub fn call_with_room(
    executor: &mut Executor,
    function: &str,
    input: &[u8],
    room: usize,
) -> rfaas::Result<Vec<u8>> {
    let function = executor.function(function)?;
    let mut sent = executor.input(input.len().max(1))?;
    sent.write(0, input)?;
    sent.set_len(input.len())?;
    let mut output = executor.output(room)?;
    let bytes = executor.invoke(&function, &sent, &mut output)?;
    output.to_vec(..bytes)
}
