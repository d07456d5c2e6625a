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

use std::sync::MutexGuard;

use rfaas::{Client, Deployment, Error, Executor, Pending};
use testkit::{LocalCluster, Options};

use testkit::functions::faulty;
use testkit::service::{all_is_free, cluster, deploy};
use testkit::wait::one_at_a_time;

/// A cluster, a client and the functions that misbehave.
struct Scene {
    cluster: LocalCluster,
    client: Client,
    directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>, // last: the next test begins when everything is gone
}

impl Scene {
    fn new(options: Options) -> Self {
        let alone = one_at_a_time();
        let cluster = cluster(options);
        let client = cluster.client().unwrap();
        Scene { cluster, client, directory: tempfile::tempdir().unwrap(), _alone: alone }
    }

    /// A node of two cores.
    fn small() -> Self {
        Scene::new(Options::default())
    }

    fn deploy(&self, cores: u32, deployment: &Deployment) -> Executor {
        deploy(&self.client, cores, &faulty(self.directory.path()), deployment)
    }

    /// Waits until nobody holds anything of the node.
    fn is_free(&self) {
        all_is_free(&self.cluster);
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
