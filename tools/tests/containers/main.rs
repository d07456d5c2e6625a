//! Executors in containers, of an engine that is none (`engine`): started with bytes on standard input, read, ended by
//! name. What a real engine makes of the same command lines is seen with Podman alone (`podman`).

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rfaas::{Error, LeaseRequest};
use rfaas_config::{ContainerSettings, Engine, Isolation};
use rfaas_protocol::allocation::RefusedBecause;
use tempfile::TempDir;
use testkit::functions::{ends, faulty};
use testkit::run::source;
use testkit::service::{all_is_free, call, cluster, deploy, warm};
use testkit::wait::{eventually, one_at_a_time};
use testkit::{ClusterError, LocalCluster, Options};

mod podman;

/// How long a client waits for an executor here: less than the 10 s that a command may take which removes a container.
const TOLD_WITHIN: Duration = Duration::from_secs(9);

/// A fake engine in a directory of its own.
struct FakeEngine {
    directory: TempDir,
}

impl FakeEngine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::copy(source("tools/tests/containers/engine"), directory.path().join("engine")).unwrap();
        FakeEngine { directory }
    }

    fn options(&self) -> Options {
        let container = ContainerSettings {
            engine: Some(Engine::Podman),
            image: "image".into(),
            command: vec![self.path("engine").display().to_string()],
            options: vec![],
            start_ms: 20_000,
        };
        Options { container: Some(container), ..Options::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn goes_wrong(&self, mode: &str) {
        fs::write(self.path("mode"), mode).unwrap();
    }

    /// The command lines so far that begin with `command`.
    fn said(&self, command: &str) -> Vec<String> {
        let said = fs::read_to_string(self.path("said")).unwrap_or_default();
        said.lines().filter(|line| line.starts_with(command)).map(str::to_owned).collect()
    }

    /// The processes that its containers are.
    fn containers(&self) -> Vec<u32> {
        let files = fs::read_dir(self.directory.path()).unwrap().flatten();
        let files = files.filter(|file| file.path().extension().is_some_and(|end| end == "pid"));
        files.filter_map(|file| fs::read_to_string(file.path()).ok()?.trim().parse().ok()).collect()
    }
}

fn runs(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Why a deployment on `cluster` is refused: in the words of its node.
fn refused(cluster: &LocalCluster, library: &Path) -> String {
    let lease = cluster.client().unwrap().lease(LeaseRequest::new(1, 64)).unwrap();
    match lease.deploy_with(library, &warm().start_timeout(TOLD_WITHIN)) {
        Err(Error::AllocationRefused { because: RefusedBecause::SpawnFailed, reason, .. }) => {
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_function_is_called_in_a_container_and_what_it_prints_is_read() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(engine.options());
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 2, &ends(directory.path()), &warm());
    let [process] = engine.containers()[..] else { panic!("one container") };
    assert!(runs(process));
    call(&mut executor, "print", b"words").unwrap();
    let printed = String::from_utf8(executor.printed().unwrap().stdout()).unwrap();
    assert!(printed.contains("words"), "{printed:?}");
    let bill = executor.release().unwrap();
    assert_eq!(bill.invocations.get(), 1);
    eventually("its end", || !runs(process) && engine.containers().is_empty());
    assert!(engine.said("kill").is_empty(), "it ends on SIGTERM");
    let started = engine.said("run --name=rfaas-local-node-");
    assert_eq!(started.len(), 2, "one that is looked into, one for the lease: {started:?}");
    assert!(started[1].contains(" --label=rfaas.node=local-node-"), "{started:?}");
    drop(client);
    cluster.stop().unwrap();
}

#[test]
fn what_a_container_is_told_of_its_lease() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let directory = tempfile::tempdir().unwrap();
    let options =
        Options { isolation: Isolation::None, pin_threads: true, cores: 1, ..engine.options() };
    let cluster = cluster(options);
    let mut executor = deploy(&cluster.client().unwrap(), 1, &faulty(directory.path()), &warm());
    assert_eq!(call(&mut executor, "echo", &[7]).unwrap(), [7]);
    let [_, started] = &engine.said("run ")[..] else { panic!("{:?}", engine.said("run ")) };
    for words in [" --cpuset-cpus=", " --tmpfs=/tmp:rw,nosuid,nodev,mode=1777,size=67108864 "] {
        assert!(started.contains(words), "no {words} in {started}");
    }
    assert!(!started.contains("secret"), "its instructions are for nobody else: {started}");
    drop(executor);
    cluster.stop().unwrap();
}

#[test]
fn how_a_function_has_ended_its_container_is_told() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(engine.options());
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &faulty(directory.path()), &warm());
    let crash = call(&mut executor, "crash", &[0]).unwrap_err().to_string();
    assert!(crash.contains("signal 11"), "{crash}");
    drop((executor, client));
    cluster.stop().unwrap();
}

#[test]
fn an_engine_that_fails_is_named_with_what_it_said() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let cluster = cluster(engine.options());
    engine.goes_wrong("fails");
    assert_eq!(
        refused(&cluster, &library),
        "podman has not started the executor (status 125); it said: Error: image: image not known"
    );
    all_is_free(&cluster);
    engine.goes_wrong("");
    let mut executor = deploy(&cluster.client().unwrap(), 1, &library, &warm());
    assert_eq!(call(&mut executor, "echo", &[7]).unwrap(), [7]);
    drop(executor);
    cluster.stop().unwrap();
}

#[test]
fn an_engine_that_fails_is_told_before_what_it_left_is_removed() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let cluster = cluster(engine.options());
    engine.goes_wrong("stuck");
    assert_eq!(
        refused(&cluster, &library),
        "podman has not started the executor (status 125); it said: Error: image: image not known"
    );
    eventually("what removes it", || engine.said("rm ").len() == 1);
    all_is_free(&cluster); // when the time of that is over
    cluster.stop().unwrap();
}

#[test]
fn an_engine_that_hangs_is_killed_when_its_time_is_over() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let mut options = engine.options();
    options.container.as_mut().unwrap().start_ms = 3000;
    let cluster = cluster(options);
    engine.goes_wrong("deaf");
    assert_eq!(
        refused(&cluster, &library),
        "podman has not started the executor within 3s; it said: nothing"
    );
    assert!(engine.said("rm ").is_empty(), "who waits is told before anything else is tried");
    eventually("what removes it", || !engine.said("rm ").is_empty());
    all_is_free(&cluster);
    assert_eq!(engine.said("kill rfaas-local-node-").len(), 1);
    assert_eq!(engine.said("rm --force rfaas-local-node-").len(), 1, "nothing was there to kill");
    cluster.stop().unwrap();
}

#[test]
fn a_container_that_is_the_engine_s_own_process_is_ended_by_signals() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let directory = tempfile::tempdir().unwrap();
    let mut options = engine.options();
    options.container.as_mut().unwrap().engine = Some(Engine::Apptainer);
    let cluster = cluster(options);
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &faulty(directory.path()), &warm());
    assert_eq!(call(&mut executor, "echo", &[7]).unwrap(), [7]);
    let crash = call(&mut executor, "crash", &[0]).unwrap_err().to_string();
    assert!(crash.contains("signal 11"), "{crash}");
    executor.restart().unwrap();
    let [process] = cluster.executors_running()[..] else { panic!("one executor") };
    drop((executor, client));
    all_is_free(&cluster);
    assert!(!runs(process));
    assert_eq!(engine.said("exec ").len(), 3, "one that is looked into, two for the lease");
    assert_eq!(engine.said("").len(), 3, "and nothing else is asked of it");
    let environment = fs::read_to_string(engine.path("environment")).unwrap();
    assert!(!environment.contains("APPTAINERENV_PATH="), "the image has its own: {environment}");
    cluster.stop().unwrap();
}

#[test]
fn a_container_that_does_not_stop_is_killed_by_name() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(engine.options());
    engine.goes_wrong("stubborn");
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &faulty(directory.path()), &warm());
    assert_eq!(call(&mut executor, "echo", &[7]).unwrap(), [7]);
    let [process] = engine.containers()[..] else { panic!("one container") };
    cluster.stop().unwrap(); // in order, although it takes a while
    assert!(!runs(process));
    assert_eq!(engine.said("kill rfaas-local-node-").len(), 1);
    assert_eq!(engine.said("rm --force rfaas-local-node-").len(), 1, "the engine hangs too");
    drop((executor, client));
}

#[test]
fn what_a_killed_manager_has_left_is_removed_by_the_next() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = cluster(engine.options());
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &faulty(directory.path()), &warm());
    assert_eq!(call(&mut executor, "echo", &[7]).unwrap(), [7]);
    let [process] = engine.containers()[..] else { panic!("one container") };
    // Its executor would end with its manager; one that a function keeps from that would not.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(process.cast_signed()),
        nix::sys::signal::Signal::SIGSTOP,
    )
    .unwrap();
    cluster.executor_manager().unwrap().kill();
    assert!(runs(process));
    cluster.start_executor_manager().unwrap();
    eventually("its end", || !runs(process));
    assert_eq!(engine.said("rm --force rfaas-local-node-").len(), 1);
    drop((executor, client));
    cluster.stop().unwrap();
}

#[test]
fn what_cannot_be_removed_keeps_no_manager_from_its_start() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let directory = tempfile::tempdir().unwrap();
    fs::write(engine.path("old.pid"), "").unwrap();
    engine.goes_wrong("keeps");
    let cluster = cluster(engine.options());
    assert_eq!(engine.said("rm --force old").len(), 1);
    let mut executor = deploy(&cluster.client().unwrap(), 1, &faulty(directory.path()), &warm());
    assert_eq!(call(&mut executor, "echo", &[7]).unwrap(), [7]);
    drop(executor);
    cluster.stop().unwrap();
}

#[test]
fn a_manager_whose_engine_or_image_is_of_no_use_does_not_start() {
    let _alone = one_at_a_time();
    let engine = FakeEngine::new();
    let refused = |options| match LocalCluster::start(options) {
        Err(ClusterError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let with = |command: &str| {
        let mut options = engine.options();
        options.container.as_mut().unwrap().command = vec![command.into()];
        options
    };
    let missing = refused(with("no-such-engine"));
    assert!(
        missing.contains("executor.container: `no-such-engine`: there is none in PATH="),
        "{missing}"
    );
    let own = engine.path("engine").display().to_string();
    engine.goes_wrong("broken");
    let broken = refused(with(&own));
    let words = format!(
        "executor.container: `{own} ps`: ended with status 125; it said: Error: no storage"
    );
    assert!(broken.contains(&words), "{broken}");
    engine.goes_wrong("fails");
    let image = refused(with(&own));
    let words = format!(
        "executor.container: `{own} run`: ended with status 125; it said: Error: image: image not known"
    );
    assert!(image.contains(&words), "{image}");
}
