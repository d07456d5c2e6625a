//! What can go wrong with calls, clients, leases, nodes and time, provoked from outside: each test
//! provokes one thing, and shows what happens instead.
//!
//! Tests of other files show the rest.
//!
//! | what goes wrong | where |
//! | --- | --- |
//! | a client breaks the protocol | `executor/tests/invocations.rs` |
//! | times of more than 32 bits; a forged bill | `executor_manager/src/allocations/tests.rs`, `executor_manager/tests/leases.rs` |
//! | a client or manager is killed, at every moment; processes are stopped | `kill_matrix` |
//! | the database of nodes cannot be read, or is not written when nodes change | `resource_manager/tests/start_and_stop.rs`, `bad_input` |
//! | an altered token; an impostor of a node | `rfaas/protocol/tests`, `resource_manager/tests/end_to_end.rs` |
//! | the phases of a cold start are not measured | `end_to_end` |
//! | executors outlive their manager, or die unnoticed | `leftovers`, `kill_matrix` |
//! | a node falls silent, a link goes down | `faults`, `kill_matrix` |

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

mod calls;
mod client;
mod leases;
mod nodes;
mod time;

use rfaas::{Client, Deployment, Error, Executor, Pending};
use testkit::{LocalCluster, Options};

use testkit::functions::faulty;
use testkit::service::{cluster, deploy};
use testkit::wait::eventually;

/// A cluster, a client and the functions that misbehave.
struct Scene {
    cluster: LocalCluster,
    client: Client,
    directory: tempfile::TempDir,
}

impl Scene {
    fn new(options: Options) -> Self {
        let cluster = cluster(options);
        let client = cluster.client().unwrap();
        Scene { cluster, client, directory: tempfile::tempdir().unwrap() }
    }

    /// A node of two cores.
    fn small() -> Self {
        Scene::new(Options::default())
    }

    fn deploy(&self, cores: u32, deployment: &Deployment) -> Executor {
        deploy(&self.client, cores, &faulty(self.directory.path()), deployment)
    }

    /// Waits until nobody holds a core of the node.
    fn is_free(&self) {
        let http = self.cluster.http().unwrap();
        eventually("all cores are free", || {
            let nodes = http.get("/nodes").unwrap().body;
            nodes[0]["free_cores"] == nodes[0]["cores"]
        });
    }

    fn ends(self) {
        drop(self.client);
        self.cluster.stop().unwrap();
    }
}

/// Starts `function` with `input` and room for at least 64 bytes of output.
fn submit(executor: &mut Executor, function: &str, input: &[u8]) -> Result<Pending, Error> {
    let function = executor.function(function)?;
    let mut sent = executor.input(input.len())?;
    sent.write(0, input)?;
    let output = executor.output(input.len().max(64))?;
    Ok(executor.submit(&function, sent, output)?)
}

/// The output of an invocation that succeeds.
fn result(pending: Pending) -> Vec<u8> {
    let completed = pending.wait().unwrap();
    completed.output.to_vec(..completed.bytes).unwrap()
}
