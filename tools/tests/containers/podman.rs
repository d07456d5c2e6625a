//! Executors in containers of Podman, in a root directory that is made here: no image, no registry. On the devices that
//! the environment names, else on the embedded one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas::Executor;
use rfaas_config::{ContainerSettings, Engine};
use tempfile::TempDir;
use testkit::functions::ends;
use testkit::procfs::Stat;
use testkit::run::system_tool;
use testkit::service::{all_is_free, call, cluster, deploy, warm};
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options};

/// A start takes half a minute where the processor is emulated.
const START: Duration = Duration::from_secs(240);
/// What Podman keeps its containers in: nothing of the machine's.
const STORES: [(&str, &str); 2] = [("--root", "root"), ("--runroot", "run")];
/// What runs without system services, and in a root directory in memory.
const PLAIN: [&str; 2] = ["--storage-driver=vfs", "--cgroup-manager=cgroupfs"];
/// Directories of a root directory that engines mount something on.
const DIRECTORIES: [&str; 7] = ["dev", "etc", "proc", "run", "sys", "tmp", "usr/lib"];
/// What is needed of an image: by the functions, and on RDMA devices rdma-core, with what it loads.
const LIBRARIES: [&str; 6] = [
    "libstdc++.so.6",
    "libibverbs.so.1",
    "librdmacm.so.1",
    "libnl-3.so.200",
    "libnl-route-3.so.200",
    "libibverbs",
];

/// Makes a root directory with nothing but these in it, as far as this machine has them.
fn make_root(root: &Path) {
    for directory in DIRECTORIES {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for (name, target) in [("lib", "usr/lib"), ("lib64", "usr/lib")] {
        std::os::unix::fs::symlink(target, root.join(name)).unwrap();
    }
    let copies = r#"cd "$0" && for name in "$@"; do
        for file in /usr/lib/*-linux-gnu/$name /lib/*-linux-gnu/$name; do
            if [ -e "$file" ]; then mkdir -p ".${file%/*}" && cp -rL "$file" ".${file%/*}"; fi
        done
    done; if [ -d /etc/libibverbs.d ]; then cp -r /etc/libibverbs.d etc; fi"#;
    let mut shell = Command::new("sh");
    let copied = shell.args(["-c", copies]).arg(root).args(LIBRARIES).status().unwrap();
    assert!(copied.success());
}

/// A node whose executors run in containers of Podman, with stores and a root directory of its own.
struct Node {
    cluster: LocalCluster,
    /// What each command of Podman begins with.
    command: Vec<String>,
    library: PathBuf,
    begin: Instant,
    _directory: TempDir,
}

impl Node {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("image");
        make_root(&root);
        let stores = STORES.iter().map(|(flag, name)| {
            let store = directory.path().join(name);
            format!("{flag}={}", store.display())
        });
        let plain = PLAIN.iter().map(|word| (*word).to_owned());
        let command: Vec<_> =
            ["podman".to_owned()].into_iter().chain(stores).chain(plain).collect();
        let container = ContainerSettings {
            engine: Some(Engine::Podman),
            image: root.display().to_string(),
            command: command.clone(),
            options: vec![],
            start_ms: u32::try_from(START.as_millis()).unwrap(),
        };
        let begin = Instant::now();
        let library = ends(directory.path());
        let cluster = cluster(Options { container: Some(container), ..Options::default() });
        Node { cluster, command, library, begin, _directory: directory }
    }

    fn tell(&self, what: &str) {
        println!("{:6.1} s: {what}", self.begin.elapsed().as_secs_f64());
    }

    fn layers(&self) -> Vec<String> {
        let nodes = self.cluster.http().unwrap().get("/nodes").unwrap().body;
        serde_json::from_value(nodes[0]["isolation"].clone()).unwrap()
    }

    fn deploy(&self) -> Executor {
        let client = self.cluster.client().unwrap();
        let executor = deploy(&client, 1, &self.library, &warm().start_timeout(START));
        self.tell("an executor is ready");
        executor
    }

    /// The containers that there are, whether they run or not.
    fn containers(&self) -> usize {
        let mut list = Command::new(&self.command[0]);
        let list = list.args(&self.command[1..]).args(["ps", "--all", "--quiet"]);
        let listed = list.output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        listed.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count()
    }

    /// Stops the one executor that there is, as a function can that keeps it from ending.
    fn stop_executor(&self) {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let named = ids.filter(|&id| Stat::of(id).is_some_and(|stat| stat.name == "executor"));
        let [executor] = named.collect::<Vec<_>>()[..] else { panic!("not one executor") };
        kill(Pid::from_raw(executor.cast_signed()), Signal::SIGSTOP).unwrap();
    }
}

#[test]
#[ignore = "needs root, podman, crun and catatonit"]
fn functions_are_called_in_a_container_of_podman_whose_end_is_seen_to() {
    let _alone = one_at_a_time();
    system_tool("podman");
    let mut node = Node::start();
    let layers = node.layers();
    node.tell(&format!("the node is ready, isolated by {}", layers.join(", ")));
    for layer in ["mount_namespace", "view", "pid_namespace", "capabilities", "no_new_privileges"] {
        assert!(layers.iter().any(|found| found == layer), "no {layer}");
    }

    let mut executor = node.deploy();
    assert_eq!(call(&mut executor, "echo", b"there and back").unwrap(), b"there and back");
    call(&mut executor, "print", b"words").unwrap();
    let printed = String::from_utf8(executor.printed().unwrap().stdout()).unwrap();
    assert!(printed.contains("words"), "{printed:?}");
    // Where the engine takes more than a second to end, the client has given up by then, and the manager tells.
    call(&mut executor, "call_abort", &[0]).unwrap_err();
    eventually("its end is told", || node.cluster.logs().contains("exit=Signal(6)"));
    node.tell("a function has ended it");
    drop(executor);
    all_is_free(&node.cluster);

    let executor = node.deploy();
    node.stop_executor();
    drop(executor);
    all_is_free(&node.cluster);
    node.tell("one that does not stop was killed by name");
    assert_eq!(node.containers(), 0);

    let executor = node.deploy();
    node.stop_executor();
    node.cluster.executor_manager().unwrap().kill();
    assert_eq!(node.containers(), 1, "it outlasts its manager");
    node.cluster.start_executor_manager().unwrap();
    node.tell("another manager runs");
    assert_eq!(node.containers(), 0);
    drop(executor);
    node.cluster.stop().unwrap();
}
