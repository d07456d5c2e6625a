//! Libraries that a node keeps, with real processes: who finds one, when it is sent, and that it works as well.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rfaas::{Client, Error, Executor};
use rfaas_config::CacheSharing;
use testkit::functions::faulty;
use testkit::run::kill_9;
use testkit::service::{all_is_free, call, cluster, deploy, warm};
use testkit::test_devices::patience;
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options};

/// A client that is called so.
fn client_called(cluster: &LocalCluster, name: &str) -> Client {
    let manager = cluster.resource_manager_address().unwrap();
    Client::connect_as(cluster.open_device().unwrap(), manager, name).unwrap()
}

/// Calls a function, so that the library is known to work.
fn check(executor: &mut Executor) {
    assert_eq!(call(executor, "echo", b"called").unwrap(), b"called");
}

/// Deploys `library` once, and gives the lease back; returns whether it was sent.
fn sent(client: &Client, library: &Path) -> bool {
    let mut executor = deploy(client, 1, library, &warm());
    check(&mut executor);
    let sent = executor.phases().library_sent;
    executor.release().unwrap();
    sent
}

/// Deploys `library` until the node has it.
fn keep(client: &Client, library: &Path) {
    eventually("the node has the library", || !sent(client, library));
}

/// The library at `path` with `bytes` more at its end, which mean nothing to the loader.
fn longer(path: &Path, bytes: u64) -> PathBuf {
    let longer = path.with_extension(format!("{bytes}.so"));
    std::fs::copy(path, &longer).unwrap();
    let file = OpenOptions::new().write(true).open(&longer).unwrap();
    file.set_len(file.metadata().unwrap().len() + bytes).unwrap();
    longer
}

#[test]
fn a_library_is_sent_once_by_each_client_and_once_by_all_where_they_share() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let another = longer(&library, 1);
    for sharing in [CacheSharing::Tenant, CacheSharing::Cluster] {
        let cluster = cluster(Options { cache_sharing: sharing, ..Options::default() });
        let (alice, bob) = (client_called(&cluster, "alice"), client_called(&cluster, "bob"));
        assert!(sent(&alice, &library), "nobody has deployed it");
        keep(&alice, &library);
        assert_eq!(sent(&bob, &library), sharing == CacheSharing::Tenant);
        keep(&bob, &library);
        assert!(sent(&alice, &another), "nobody has deployed that one");
        assert!(!sent(&client_called(&cluster, "alice"), &library), "another process of alice");
        all_is_free(&cluster);
        cluster.stop().unwrap();
    }
}

#[test]
fn a_library_is_kept_while_the_process_that_it_came_to_still_runs() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let mut first = deploy(&client, 1, &library, &warm());
    assert!(first.phases().library_sent);
    keep(&client, &library);
    let mut second = deploy(&client, 1, &library, &warm());
    assert!(!second.phases().library_sent);
    check(&mut first);
    check(&mut second);
    first.release().unwrap();
    check(&mut second);
    second.release().unwrap();
    cluster.stop().unwrap();
}

#[test]
fn a_process_that_replaces_another_needs_no_code() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let limit = patience(Duration::from_secs(2));
    let deployment = warm().invocation_timeout(limit);
    keep(&client, &library);
    let mut executor = deploy(&client, 1, &library, &deployment);
    assert!(!executor.phases().library_sent);

    executor.restart().unwrap();
    check(&mut executor);
    assert!(!executor.phases().library_sent, "restarted");

    kill_9(cluster.executors_running()[0]);
    let echo = executor.function("echo").unwrap();
    let (input, mut output) = (executor.input(4).unwrap(), executor.output(4).unwrap());
    executor.invoke_idempotent(&echo, &input, &mut output).unwrap();
    assert!(!executor.phases().library_sent, "killed");

    let error = call(&mut executor, "sleep_forever", &[]).unwrap_err();
    assert!(matches!(error, Error::TimeLimit { .. }), "{error}");
    check(&mut executor);
    assert!(!executor.phases().library_sent, "past its time limit");
    executor.release().unwrap();
    cluster.stop().unwrap();
}

#[test]
fn a_manager_that_is_started_again_has_nothing() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let mut cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    keep(&client, &library);
    cluster.executor_manager().unwrap().kill();
    cluster.start_executor_manager().unwrap();
    all_is_free(&cluster);
    assert!(sent(&client, &library));
    keep(&client, &library);
    cluster.stop().unwrap();
}

#[test]
fn what_is_not_kept_is_sent_and_works() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let large = longer(&library, 1 << 20);
    let small = cluster(Options { cache_mb: 1, ..Options::default() });
    let client = small.client().unwrap();
    for _ in 0..3 {
        assert!(sent(&client, &large), "larger than the cache");
    }
    keep(&client, &library);
    assert!(sent(&client, &large));
    assert!(!sent(&client, &library), "it has thrown out nothing");
    small.stop().unwrap();

    let none = cluster(Options { cache_mb: 0, ..Options::default() });
    let client = none.client().unwrap();
    for _ in 0..3 {
        assert!(sent(&client, &library), "there is no cache");
    }
    none.stop().unwrap();
}

/// On RDMA devices nobody says whose a client is that no resource manager knows.
#[test]
fn without_a_resource_manager_a_library_is_kept_where_the_user_is_known() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let cluster = cluster(Options { resource_manager: false, ..Options::default() });
    let client = cluster.client().unwrap();
    assert!(sent(&client, &library));
    if cluster.client_device().unwrap().provider.to_string() == "shm" {
        keep(&client, &library);
    } else {
        assert!(sent(&client, &library));
    }
    cluster.stop().unwrap();
}
