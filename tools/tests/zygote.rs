//! Executors that are cloned from a zygote: what they are, and what becomes of them and of the node
//! when the zygote is killed or stopped.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::collections::BTreeSet;
use std::fs;
use std::sync::MutexGuard;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas::{Client, Error, Executor};
use rfaas_config::Launch;
use testkit::functions::{c_library, faulty};
use testkit::leftovers::Leftovers;
use testkit::procfs::{self, Stat};
use testkit::run::{kill_9, source};
use testkit::service::{all_is_free, call, call_with_room, cluster, deploy, warm};
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options};

/// A cluster and a client.
struct Scene {
    directory: tempfile::TempDir,
    before: Leftovers,
    cluster: LocalCluster,
    client: Client,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn new(options: Options) -> Self {
        let alone = one_at_a_time();
        let directory = tempfile::tempdir().unwrap();
        let before = Leftovers::list(std::path::Path::new("/nowhere"));
        let cluster = cluster(options);
        let client = cluster.client().unwrap();
        Scene { directory, before, cluster, client, _alone: alone }
    }

    fn deploy(&self, cores: u32) -> Executor {
        deploy(&self.client, cores, &faulty(self.directory.path()), &warm())
    }

    /// An executor whose functions look at their process.
    fn looking(&self) -> Executor {
        let source = source("executor/tests/functions/inherited.c");
        let library = c_library(self.directory.path(), "inherited", &source, &[]);
        deploy(&self.client, 1, &library, &warm())
    }

    fn zygote(&self) -> u32 {
        let [zygote] = self.cluster.zygotes_running()[..] else { panic!("one zygote") };
        zygote
    }

    fn executor(&self) -> u32 {
        let [executor] = self.cluster.executors_running()[..] else { panic!("one executor") };
        executor
    }

    /// Whether executors have guardians here: whether the system lets them have a process
    /// namespace.
    fn has_guardians(&self) -> bool {
        parent_of(self.executor()).is_some_and(|parent| parent.name == "guardian")
    }

    fn ends(self) {
        let Scene { before, cluster, client, .. } = self;
        drop(client);
        cluster.stop().unwrap();
        Leftovers::nothing_new_since(&before, std::path::Path::new("/nowhere"));
    }
}

fn parent_of(id: u32) -> Option<Stat> {
    Stat::of(Stat::of(id)?.parent)
}

fn is_served(executor: &mut Executor) {
    assert_eq!(call(executor, "echo", &[7; 8]).unwrap(), [7; 8]);
}

fn stop(id: u32) {
    kill(Pid::from_raw(id.cast_signed()), Signal::SIGSTOP).unwrap();
}

/// The output of a shell command that a function starts.
fn shell(executor: &mut Executor, command: &str) -> String {
    let printed = call_with_room(executor, "shell", command.as_bytes(), 4096);
    String::from_utf8(printed.unwrap()).unwrap()
}

/// What can be said of the process of an executor that does not differ between two.
fn state_of(id: u32) -> BTreeSet<String> {
    let kind =
        |file: std::path::PathBuf| file.display().to_string().split('[').next().unwrap().to_owned();
    let mut state: BTreeSet<_> = procfs::open_files(id).into_iter().map(kind).collect();
    for file in ["cwd", "root", "exe"] {
        state.insert(format!("{file}: {:?}", fs::read_link(format!("/proc/{id}/{file}"))));
    }
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let keys = ["Name", "Umask", "TracerPid", "Uid", "Gid", "Groups", "SigBlk", "SigCgt", "Cap"];
    let told = |line: &&str| keys.iter().any(|key| line.starts_with(key));
    state.extend(status.lines().filter(told).map(str::to_owned));
    let environment = fs::read_to_string(format!("/proc/{id}/environ")).unwrap();
    state.extend(environment.split('\0').map(str::to_owned));
    state.extend(
        fs::read_to_string(format!("/proc/{id}/limits")).unwrap().lines().map(str::to_owned),
    );
    // Session and group, proc_pid_stat(5).
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let leads = [fields[2], fields[3]].map(|field| field == id.to_string());
    state.insert(format!("leads its group and session: {leads:?}, terminal {}", fields[4]));
    state
}

#[test]
fn an_executor_is_the_same_process_whether_it_is_cloned_or_executed() {
    let [cloned, executed] = [Launch::Zygote, Launch::Exec].map(|launch| {
        let scene = Scene::new(Options { launch, ..Options::default() });
        let directory = scene.cluster.directory().display().to_string();
        let mut executor = scene.looking();
        let status = shell(&mut executor, "cat /proc/self/status");
        let mut state = state_of(scene.executor());
        state.extend(status.lines().filter(|line| line.starts_with("Sig")).map(str::to_owned));
        state.insert(format!(
            "input: {}",
            shell(&mut executor, "readlink /proc/self/fd/0; ls /proc/self/fd")
        ));
        executor.release().unwrap();
        scene.ends();
        state.into_iter().map(|line| line.replace(&directory, "DIR")).collect::<BTreeSet<_>>()
    });
    let different: Vec<_> = cloned.symmetric_difference(&executed).collect();
    assert!(different.is_empty(), "{different:#?}");
}

#[test]
fn a_killed_zygote_costs_no_lease_and_there_is_another() {
    let scene = Scene::new(Options::default());
    let mut running = scene.deploy(1);
    is_served(&mut running);
    let killed = scene.zygote();
    kill_9(killed);
    let mut next = scene.deploy(1);
    is_served(&mut next);
    eventually("there is another", || {
        !procfs::is_running(killed)
            && matches!(scene.cluster.zygotes_running()[..], [id] if id != killed)
    });
    is_served(&mut running);
    let bills = [running, next].map(|executor| executor.release().unwrap().invocations.get());
    assert_eq!(bills, [2, 1]);
    scene.ends();
}

#[test]
fn a_zygote_that_is_stopped_keeps_nobody_waiting() {
    let scene = Scene::new(Options::default());
    let mut running = scene.deploy(1);
    let stopped = scene.zygote();
    stop(stopped);
    let mut next = scene.deploy(1);
    is_served(&mut next);
    is_served(&mut running);
    // One that is to stand by has that name a little later.
    eventually("each lease has one", || scene.cluster.executors_running().len() == 2);
    eventually("there is another zygote", || {
        !procfs::is_running(stopped) && scene.cluster.zygotes_running().len() == 1
    });
    next.release().unwrap();
    let mut third = scene.deploy(1);
    is_served(&mut third);
    for executor in [running, third] {
        executor.release().unwrap();
    }
    scene.ends();
}

/// How long a process sleeps that a function leaves behind, which is how it is found.
const LEFT: &str = "1234.5678";

/// Leaves a process without a parent, in a session of its own.
fn leave_process(executor: &mut Executor) {
    shell(executor, &format!("setsid -f sleep {LEFT} < /dev/null > /dev/null 2>&1"));
    eventually("it is left", is_left);
}

fn is_left() -> bool {
    let sleeps = format!("sleep\0{LEFT}\0");
    procfs::all().any(|id| {
        fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| line == sleeps.as_bytes())
    })
}

#[test]
fn nothing_outlives_a_killed_manager() {
    let mut scene = Scene::new(Options::default());
    let mut executor = scene.looking();
    if scene.has_guardians() {
        leave_process(&mut executor);
    }
    let (zygote, process) = (scene.zygote(), scene.executor());
    scene.cluster.executor_manager().unwrap().kill();
    eventually("all of them are gone", || {
        !procfs::is_running(zygote) && !procfs::is_running(process) && !is_left()
    });
    drop(executor);
    scene.cluster.start_executor_manager().unwrap();
    all_is_free(&scene.cluster);
    scene.ends();
}

#[test]
fn what_a_function_leaves_in_a_session_of_its_own_ends_with_the_lease() {
    let scene = Scene::new(Options::default());
    let mut executor = scene.looking();
    if scene.has_guardians() {
        leave_process(&mut executor);
    }
    executor.release().unwrap();
    eventually("it has ended", || !is_left());
    scene.ends();
}

#[test]
fn how_an_executor_ends_is_told_exactly() {
    let scene = Scene::new(Options::default());
    for (function, input, signal) in
        [("crash", &[][..], Signal::SIGSEGV), ("abort_now", &[], Signal::SIGABRT)]
    {
        let mut executor = scene.deploy(1);
        let error = call(&mut executor, function, input).unwrap_err();
        let told =
            matches!(error, Error::FunctionCrashed { signal: told } if told == signal as i32);
        assert!(told, "{function}: {error:?}");
    }
    for status in [0, 7, 255] {
        let mut executor = scene.deploy(1);
        let error = call(&mut executor, "exit_with", &u32::to_ne_bytes(status)).unwrap_err();
        let told = matches!(error, Error::FunctionExited { status: told } if told == status as i32);
        assert!(told, "{status}: {error:?}");
    }
    let mut executor = scene.deploy(1);
    kill_9(scene.executor());
    let error = call(&mut executor, "echo", &[1]).unwrap_err();
    assert!(matches!(error, Error::FunctionCrashed { signal: 9 }), "{error:?}");
    drop(executor);
    scene.ends();
}
