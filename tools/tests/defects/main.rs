//! Defects of the original that can be provoked from outside: each test provokes one, whose number ends its name, and
//! shows the right behaviour.
//!
//! Tests of other files show the rest.
//!
//! | defect | where |
//! | --- | --- |
//! | A7 | what a client that breaks the protocol sends: `executor/tests/invocations.rs` |
//! | B3, B4 | `executor_manager/src/allocations/tests.rs` (times of more than 32 bits), `executor_manager/tests/leases.rs` (a forged bill) |
//! | C3, C10 | also a client that is killed, at every moment: `kill_matrix` |
//! | C11 | also the database is written whenever nodes change: `resource_manager/tests/start_and_stop.rs` |
//! | C13 | also an altered token: `rfaas/protocol/tests/protocol.rs`; an impostor of a node: `resource_manager/tests/end_to_end.rs` |
//! | C14 | an input database that cannot be read: `resource_manager/tests/start_and_stop.rs`, `tools/tests/bad_input.rs` |
//! | D1 | `a_cold_start_is_told_by_phases` in `end_to_end` |
//! | E2, E8 | dead executors, orphans: `leftovers`, `kill_matrix` |
//! | E9 | with D5, in `client` |
//! | E15 | also the end of a resource manager: `kill_matrix` |
//! | E19 | a node that falls silent, and a link that goes down: `kill_matrix` (stopped processes), `faults` |

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
