//! A node with a library of functions, and graphs that are run once on it.

use std::path::PathBuf;

use rfaas::{Client, CompiledGraph, Deployment, Error, Graph, Spin};
use serde_json::Value;
use testkit::functions::vectors;
use testkit::service::{all_is_free, cluster};
use testkit::{LocalCluster, Options};

/// Cores of the node.
pub const CORES: u32 = 16;

/// The node, and the library.
pub struct Scene {
    cluster: LocalCluster,
    pub client: Client,
    _directory: tempfile::TempDir,
    pub library: PathBuf,
}

impl Scene {
    pub fn new() -> Scene {
        let cluster = cluster(Options { cores: CORES, memory: 16384, ..Options::default() });
        let directory = tempfile::tempdir().unwrap();
        let library = vectors(directory.path());
        let client = cluster.client().unwrap();
        Scene { cluster, client, _directory: directory, library }
    }

    /// Compiles a graph once nobody has any core.
    pub fn compile(&self, graph: &Graph) -> Result<CompiledGraph, Error> {
        self.all_is_free();
        self.compile_beside(graph)
    }

    /// Waits until what graphs before have given back is free.
    pub fn all_is_free(&self) {
        all_is_free(&self.cluster);
    }

    /// Compiles a graph beside what others have.
    pub fn compile_beside(&self, graph: &Graph) -> Result<CompiledGraph, Error> {
        self.client.compile_with(graph, &Deployment::new().spin(Spin::Never))
    }

    pub fn done(self) {
        all_is_free(&self.cluster);
        self.cluster.stop().unwrap();
    }
}

/// The name of something, which may be a number.
pub fn name(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A list of items, with their keys.
pub fn items<'a>(items: impl IntoIterator<Item = (u32, &'a [u8])>) -> Vec<u8> {
    let mut list = Vec::new();
    for (key, data) in items {
        list.extend(key.to_le_bytes());
        list.extend((data.len() as u32).to_le_bytes());
        list.extend(data);
        list.resize(list.len().next_multiple_of(8), 0);
    }
    list
}

/// What is in a list of items.
pub fn read_items(mut list: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut read = Vec::new();
    while list.len() >= 8 {
        let number = |at: usize| u32::from_le_bytes(list[at..at + 4].try_into().unwrap());
        let (key, bytes) = (number(0), number(4) as usize);
        read.push((key, list[8..8 + bytes].to_vec()));
        list = &list[(8 + bytes).next_multiple_of(8).min(list.len())..];
    }
    read
}
