//! Idempotent calls go on when what runs them is killed.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::thread;
use std::time::Duration;

use rfaas::{Constraint, Error, Executor, LeaseRequest};
use testkit::Options;
use testkit::functions::faulty;
use testkit::run::kill_9;
use testkit::service::{all_is_free, cluster, deploy, label, warm};
use testkit::wait::{eventually, one_at_a_time};

/// A call that takes `ms` milliseconds, with its own result.
fn call(executor: &mut Executor, ms: u32) {
    let sleep = executor.function("sleep_ms").unwrap();
    let mut input = executor.input(4).unwrap();
    let mut output = executor.output(64).unwrap();
    input.write(0, &ms.to_ne_bytes()).unwrap();
    let bytes = executor.invoke_idempotent(&sleep, &input, &mut output).unwrap();
    assert_eq!(output.to_vec(..bytes).unwrap(), ms.to_ne_bytes());
}

#[test]
fn idempotent_calls_go_on_when_the_executor_or_its_manager_is_killed() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let mut cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 2, &library, &warm());
    call(&mut executor, 1);
    let (lease, process) = (executor.lease_id(), cluster.executors_running());

    // Idle, and in flight: a new process on the same lease.
    kill_9(process[0]);
    call(&mut executor, 2);
    thread::scope(|scope| {
        scope.spawn(|| call(&mut executor, 500));
        thread::sleep(Duration::from_millis(100));
        cluster.executors_running().into_iter().for_each(kill_9);
    });
    assert_eq!(executor.lease_id(), lease);

    // The manager, likewise: another lease, as soon as there is a node again.
    for ms in [0, 500] {
        thread::scope(|scope| {
            scope.spawn(|| call(&mut executor, ms));
            thread::sleep(Duration::from_millis(100));
            cluster.executor_manager().unwrap().kill();
            thread::sleep(Duration::from_millis(100));
            cluster.start_executor_manager().unwrap();
        });
        call(&mut executor, 3);
    }
    assert_ne!(executor.lease_id(), lease);
    assert_eq!(executor.lease().id(), Some(executor.lease_id()));
    executor.release().unwrap();
    all_is_free(&cluster);
    eventually("no process is left", || cluster.executors_running().is_empty());
    drop(client);
    cluster.stop().unwrap();
}

#[test]
fn an_idempotent_call_goes_on_where_the_constraints_of_its_lease_hold() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let mut cluster = cluster(Options { nodes: 3, cores: 1, memory: 1024, ..Options::default() });
    for node in ["local-node", "local-node-3"] {
        label(&cluster, node, "gpu");
    }
    let client = cluster.client().unwrap();
    let lease = client.lease(LeaseRequest::new(1, 64).has("gpu")).unwrap();
    assert_eq!(lease.node(), "local-node");
    let mut executor = lease.deploy_with(&library, &warm()).unwrap();
    call(&mut executor, 1);
    cluster.executor_manager_of(0).unwrap().kill();
    call(&mut executor, 2);
    assert_eq!(executor.node(), "local-node-3", "the second has room, and no such label");

    // A lease that is on a node because this was named is on no other.
    let lease = client.lease(LeaseRequest::new(1, 64).near("local-node-2")).unwrap();
    let timeout = Duration::from_millis(500);
    let mut executor = lease.deploy_with(&library, &warm().failover_timeout(timeout)).unwrap();
    cluster.start_executor_manager_of(0).unwrap();
    cluster.executor_manager_of(1).unwrap().kill();
    let sleep = executor.function("sleep_ms").unwrap();
    let (input, mut output) = (executor.input(4).unwrap(), executor.output(64).unwrap());
    let error = executor.invoke_idempotent(&sleep, &input, &mut output).unwrap_err();
    let Error::ConstraintUnmet { constraints, .. } = error else { panic!("{error:?}") };
    assert_eq!(constraints, [Constraint::Near]);
    cluster.start_executor_manager_of(1).unwrap();
    call(&mut executor, 3);
    assert_eq!(executor.node(), "local-node-2");
    drop((executor, lease, client));
    cluster.stop().unwrap();
}
