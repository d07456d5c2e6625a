//! Nothing is left behind: no process, shared memory, socket or file, after runs that end well and after those that
//! do not.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::MutexGuard;

use nix::sys::signal::Signal;
use rfaas::Error;
use testkit::leftovers::{Leftovers, is_of_this_build};
use testkit::run::{
    Running, command, ended_by, kill_9, library, run, start, system_tool, transport_benchmarker,
};
use testkit::service::{all_is_free, call, cluster, deploy, warm};
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options, procfs};

const BENCHMARKS: [&str; 3] = ["warm_benchmarker", "cold_benchmarker", "parallel_invocations"];

/// What was there before, and a directory that everything of the test goes to.
struct Scene {
    /// Where the test's programs put temporary files: empty before and after.
    temporary: tempfile::TempDir,
    before: Leftovers,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn new() -> Self {
        let alone = one_at_a_time();
        let temporary = tempfile::tempdir().unwrap();
        let before = Leftovers::list(temporary.path());
        Scene { temporary, before, _alone: alone }
    }

    /// To be called when the cluster is gone: then everything is.
    fn ends_clean(self) {
        Leftovers::nothing_new_since(&self.before, self.temporary.path());
    }

    fn benchmark(&self, cluster: &LocalCluster, name: &str, repetitions: &str) -> Command {
        let mut command = cluster.benchmark_command(name).unwrap();
        command.env("TMPDIR", self.temporary.path());
        command.args(["--repetitions", repetitions, "--hot-timeout", "0"]);
        command.arg("--functions").arg(library("functions"));
        command
    }
}

/// Waits until `cluster` is as it was before any client came: no executor, all cores free.
fn is_idle_again(cluster: &LocalCluster) {
    eventually("executors are gone", || cluster.executors_running().is_empty());
    all_is_free(cluster);
}

/// Files in the directory that the managers have as theirs for temporary files.
fn files_of(cluster: &LocalCluster) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cluster.directory()).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn nothing_is_left_after_runs_that_end_well() {
    let scene = Scene::new();
    // Those that stand by are others after each run.
    let cluster = cluster(Options { prewarm: 0, ..Options::default() });
    let files = files_of(&cluster);
    let idle = Leftovers::list(scene.temporary.path());
    for name in BENCHMARKS {
        run(scene.benchmark(&cluster, name, "2")).success();
        is_idle_again(&cluster);
        Leftovers::nothing_new_since(&idle, scene.temporary.path());
    }
    assert_eq!(files_of(&cluster), files);
    cluster.stop().unwrap();
    scene.ends_clean();
}

#[test]
fn nothing_is_left_after_a_benchmark_is_interrupted() {
    let scene = Scene::new();
    let cluster = cluster(Options::default());
    let files = files_of(&cluster);
    for name in BENCHMARKS {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
            let running = start(scene.benchmark(&cluster, name, "1000000"));
            eventually("an executor runs", || !cluster.executors_running().is_empty());
            running.signal(signal);
            assert!(ended_by(&running.finish(), signal));
            is_idle_again(&cluster);
        }
    }
    assert_eq!(files_of(&cluster), files);
    cluster.stop().unwrap();
    scene.ends_clean();
}

#[test]
fn the_peer_of_the_transport_benchmark_ends_with_it() {
    let files = tempfile::tempdir().unwrap();
    let scene = Scene::new();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut transport = transport_benchmarker(files.path());
        transport.args(["--repetitions", "100000000", "--hot-timeout", "0"]);
        transport.env("TMPDIR", scene.temporary.path());
        let running = start(transport);
        eventually("the peer runs", || !children_of(running.id()).is_empty());
        running.signal(signal);
        assert!(ended_by(&running.finish(), signal));
    }
    scene.ends_clean();
}

#[test]
fn nothing_is_left_after_an_executor_is_killed() {
    let scene = Scene::new();
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &library("functions"), &warm());
    call(&mut executor, "empty", &[1; 64]).unwrap();
    let [process] = cluster.executors_running()[..] else { panic!("one executor") };
    kill_9(process);
    let error = call(&mut executor, "empty", &[1; 64]).unwrap_err();
    assert!(matches!(error, Error::FunctionCrashed { signal: 9 }), "{error:?}");
    // No zombie either: a killed executor is reaped although nobody has released it yet.
    eventually("the executor is reaped", || cluster.executors_running().is_empty());
    drop(executor);
    is_idle_again(&cluster);
    drop(client);
    cluster.stop().unwrap();
    scene.ends_clean();
}

#[test]
fn nothing_is_left_after_the_executor_manager_is_killed() {
    let scene = Scene::new();
    let mut cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 2, &library("functions"), &warm());
    call(&mut executor, "empty", &[1; 64]).unwrap();
    let [process] = cluster.executors_running()[..] else { panic!("one executor") };
    cluster.executor_manager().unwrap().kill();
    eventually("its executor has ended", || !procfs::is_running(process));
    let error = call(&mut executor, "empty", &[1; 64]).unwrap_err();
    assert!(matches!(error, Error::ExecutorGone | Error::WorkerLost { .. }), "{error:?}");
    drop(executor);

    cluster.start_executor_manager().unwrap();
    is_idle_again(&cluster); // it came back without the lease, so that is over
    let mut again = deploy(&client, 2, &library("functions"), &warm());
    assert_eq!(call(&mut again, "empty", &[3; 8]).unwrap(), [3; 8]);
    drop(again);
    is_idle_again(&cluster);
    drop(client);
    cluster.stop().unwrap();
    scene.ends_clean();
}

#[test]
fn executors_end_with_an_executor_manager_that_is_asked_to_stop() {
    for resource_manager in [true, false] {
        let scene = Scene::new();
        let cluster = cluster(Options { resource_manager, ..Options::default() });
        let client = cluster.client().unwrap();
        let executor = deploy(&client, 2, &library("functions"), &warm());
        assert_eq!(cluster.executors_running().len(), 1);
        cluster.stop().unwrap();
        drop(executor);
        drop(client);
        scene.ends_clean();
    }
}

#[test]
fn nothing_is_left_after_everything_is_killed_at_once() {
    let scene = Scene::new();
    let mut cluster = cluster(Options::default());
    let running = start(scene.benchmark(&cluster, "warm_benchmarker", "1000000"));
    eventually("an executor runs", || !cluster.executors_running().is_empty());
    let executors = cluster.executors_running();
    cluster.executor_manager().unwrap().kill();
    cluster.resource_manager().unwrap().kill();
    kill_9(running.id());
    running.finish();
    eventually("the executor has ended", || !executors.iter().any(|id| procfs::is_running(*id)));
    drop(cluster);
    scene.ends_clean();
}

#[test]
fn an_interrupted_cluster_takes_everything_with_it() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let scene = Scene::new();
        let running = start_cluster(&scene);
        running.signal(signal);
        running.finish().success();
        scene.ends_clean();
    }
}

#[test]
fn further_signals_do_not_keep_an_interrupted_cluster_from_taking_everything_with_it() {
    for signals in [[Signal::SIGTERM, Signal::SIGHUP], [Signal::SIGINT, Signal::SIGTERM]] {
        let scene = Scene::new();
        let running = start_cluster(&scene);
        signals.iter().for_each(|signal| running.signal(*signal));
        running.finish().success();
        scene.ends_clean();
    }
}

#[test]
fn a_second_ctrl_c_ends_a_cluster_whose_managers_hang() {
    system_tool("setpriv");
    let scene = Scene::new();
    let running = start_cluster(&scene);
    for manager in children_of(running.id()) {
        let manager = nix::unistd::Pid::from_raw(manager.cast_signed());
        nix::sys::signal::kill(manager, Signal::SIGSTOP).unwrap();
    }
    // Two that come together count as one.
    eventually("it has ended", || {
        running.signal(Signal::SIGINT);
        !procfs::is_running(running.id())
    });
    running.finish().success(); // after the first alone it would have failed: managers did not stop in time
    scene.ends_clean();
}

#[test]
fn the_processes_of_a_killed_cluster_die_with_it() {
    system_tool("setpriv");
    let scene = Scene::new();
    let idle = Leftovers::list(Path::new("/nowhere"));
    let running = start_cluster(&scene);
    kill_9(running.id());
    assert!(ended_by(&running.finish(), Signal::SIGKILL));
    // Its directory stays: nobody was left who could remove it.
    Leftovers::nothing_new_since(&idle, Path::new("/nowhere"));
}

/// The program `cluster`, once both of its managers run.
fn start_cluster(scene: &Scene) -> Running {
    let mut command = command("cluster", ["--cores", "1"]);
    command.env("TMPDIR", scene.temporary.path());
    let running = start(command);
    eventually("both managers run", || {
        let managers = children_of(running.id());
        let ready = |file: &str| {
            std::fs::read_dir(scene.temporary.path())
                .unwrap()
                .any(|directory| directory.unwrap().path().join(file).is_file())
        };
        managers.len() == 2 && ready("benchmark.json")
    });
    running
}

/// Processes of this build that process `id` has started.
fn children_of(id: u32) -> Vec<u32> {
    procfs::children(id).into_iter().filter(|child| is_of_this_build(*child)).collect()
}
