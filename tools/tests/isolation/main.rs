//! What isolates executors, from the outside: what a node says of it, what a function finds, what an operator may ask
//! for. Each layer by itself is tested in `executor/sandbox`.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rfaas::{Error, ExecutorMemory, LeaseRequest};
use rfaas_config::Isolation;
use rfaas_protocol::isolation::{Layer, Layers};
use testkit::functions::{c_library, faulty};
use testkit::run::source;
use testkit::service::{call, call_with_room, cluster, deploy, warm};
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options};

/// What the function `reach` found.
#[derive(Debug)]
struct Found {
    user: u32,
    process: u32,
    file: Errno,
    socket: Errno,
    namespace: Errno,
}

/// Has a function reach for `file` and more.
fn reach(cluster: &LocalCluster, file: &Path) -> Found {
    let directory = tempfile::tempdir().unwrap();
    let code = source("tools/tests/isolation/reaching.c");
    let library = c_library(directory.path(), "reaching", &code, &[]);
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &library, &warm());
    let found = call(&mut executor, "reach", file.as_os_str().as_encoded_bytes()).unwrap();
    let words: Vec<_> = found.chunks(4).map(|word| word.try_into().unwrap()).collect();
    let [user, process, file, socket, namespace] = words[..] else { panic!("{words:?}") };
    let number = u32::from_le_bytes;
    let errno = |word| Errno::from_raw(number(word).cast_signed());
    Found {
        user: number(user),
        process: number(process),
        file: errno(file),
        socket: errno(socket),
        namespace: errno(namespace),
    }
}

/// The layers that the node of `cluster` says that it has.
fn layers(cluster: &LocalCluster) -> Layers {
    let nodes = cluster.http().unwrap().get("/nodes").unwrap().body;
    let names = nodes[0]["isolation"].as_array().unwrap().clone();
    names.iter().map(|name| name.as_str().unwrap().parse::<Layer>().unwrap()).collect()
}

#[test]
fn a_function_finds_the_layers_that_its_node_says_that_it_has() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let cluster = cluster(Options::default());
    let layers = layers(&cluster);
    assert!(layers.has(Layer::NoNewPrivileges), "it needs nothing: {layers}");
    let found = reach(&cluster, &secret);
    let own = nix::unistd::getuid().as_raw();
    assert_eq!(found.user != own, layers.has(Layer::User), "{found:?} of {layers}");
    assert_eq!(found.process < 16, layers.has(Layer::PidNamespace), "{found:?} of {layers}");
    if layers.has(Layer::View) {
        assert_eq!(found.file, Errno::ENOENT);
    }
    if layers.has(Layer::Seccomp) {
        assert_eq!((found.socket, found.namespace), (Errno::EPERM, Errno::EPERM));
    }
}

/// The directories of control groups that process `id` is in below its manager's.
fn groups_of(id: u32) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap();
    let mut groups = BTreeSet::new();
    for line in text.lines() {
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { panic!() };
        if path.contains("/rfaas-") {
            let mounts =
                [controllers, "unified", ""].map(|mount| format!("/sys/fs/cgroup/{mount}"));
            let paths = mounts.map(|mount| PathBuf::from(mount + path));
            groups.extend(paths.into_iter().find(|path| path.is_dir()));
        }
    }
    groups
}

/// Those that stand by are made for a lease like the last.
#[test]
fn an_executor_that_stood_by_has_what_its_lease_has_whatever_the_last_one_had() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let code = source("executor/tests/functions/inherited.c");
    let library = c_library(directory.path(), "inherited", &code, &[]);
    let [stood, started] = [2, 0].map(|prewarm: u32| {
        let cluster = cluster(Options { prewarm, ..Options::default() });
        let client = cluster.client().unwrap();
        let found = [64, 64, 64, 64, 96, 32].map(|memory| {
            eventually("they stand by", || cluster.executors_standing().len() == prewarm as usize);
            let lease = client.lease(LeaseRequest::new(1, memory)).unwrap();
            let mut executor = lease.deploy_with(&library, &warm()).unwrap();
            let [process] = cluster.executors_running()[..] else { panic!("one executor") };
            let limits = ["memory.max", "memory.limit_in_bytes"];
            let limits = groups_of(process)
                .iter()
                .flat_map(|group| limits.map(|limit| fs::read_to_string(group.join(limit))))
                .flatten()
                .collect::<Vec<_>>();
            let command = b"df -k /tmp | awk '{print $2}'; grep data /proc/self/limits";
            let found = call_with_room(&mut executor, "shell", command, 4096).unwrap();
            executor.release().unwrap();
            (String::from_utf8(found).unwrap(), limits)
        });
        drop(client);
        cluster.stop().unwrap();
        found
    });
    assert_eq!(stood, started);
}

#[test]
fn an_executor_has_a_control_group_of_its_own_and_none_is_left() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let mut cluster = cluster(Options { pin_threads: true, ..Options::default() });
    let grouped = layers(&cluster).has(Layer::ControlGroup);
    let client = cluster.client().unwrap();
    let deployed = || deploy(&client, 1, &library, &warm());
    let group = |cluster: &LocalCluster| {
        let [executor] = cluster.executors_running()[..] else { panic!("one executor") };
        let groups = groups_of(executor);
        assert_eq!(!groups.is_empty(), grouped, "{groups:?}");
        groups
    };
    let are_gone = |what: &str, groups: &BTreeSet<PathBuf>| {
        eventually(what, || groups.iter().all(|group| !group.exists()));
    };
    let executor = deployed();
    let first = group(&cluster);
    executor.release().unwrap();
    are_gone("the group of an executor that has ended", &first);
    let executor = deployed();
    let second = group(&cluster);
    assert!(first.is_disjoint(&second), "none is used again");
    cluster.executor_manager().unwrap().kill();
    drop(executor);
    eventually("the end of its executor", || cluster.executors_running().is_empty());
    cluster.start_executor_manager().unwrap();
    are_gone("the groups of a manager that was killed", &second);
    let managers = second.iter().filter_map(|group| Some(group.parent()?.to_owned())).collect();
    are_gone("its directories", &managers);
    drop(client);
    cluster.stop().unwrap();
}

#[test]
fn who_was_ended_for_want_of_memory_is_told_how_much_there_was() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let code = source("tools/tests/isolation/reaching.c");
    let library = c_library(directory.path(), "reaching", &code, &[]);
    let cluster = cluster(Options::default());
    let grouped = layers(&cluster).has(Layer::ControlGroup);
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &library, &warm());
    match call(&mut executor, "share_memory", &[0]) {
        Err(Error::MemoryLimit { memory: Some(memory), .. }) if grouped => {
            let ExecutorMemory { limit_mb, used_mb } = memory;
            assert!(limit_mb > 128 && (limit_mb - 2..=limit_mb).contains(&used_mb), "{memory:?}");
        }
        Ok(_) if !grouped => {} // nobody counts shared memory
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_isolation_a_function_does_what_the_manager_may() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "content").unwrap();
    let cluster = cluster(Options { isolation: Isolation::None, ..Options::default() });
    assert_eq!(layers(&cluster), Layers::NONE);
    let found = reach(&cluster, &file);
    assert_eq!(found.user, nix::unistd::getuid().as_raw());
    let nothing = Errno::from_raw(0);
    assert_eq!((found.file, found.socket), (nothing, nothing), "{found:?}");
}

#[test]
fn a_manager_does_not_start_without_a_layer_that_is_required() {
    let _alone = one_at_a_time();
    // No manager has both: root needs no user namespace, and only root has users.
    let both = vec![Layer::User, Layer::UserNamespace];
    let refused =
        LocalCluster::start(Options { isolation: Isolation::Require(both), ..Options::default() });
    let Err(error) = refused else { panic!("it has started") };
    let error = error.to_string();
    assert!(error.contains("executor.isolation requires user"), "{error}");
    let required = Isolation::Require(vec![Layer::NoNewPrivileges]);
    drop(cluster(Options { isolation: required, ..Options::default() }));
}
