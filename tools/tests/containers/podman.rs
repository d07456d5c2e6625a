//! Executors in containers of Podman, in a root directory that is made here: no image, no registry. On the devices that
//! the environment names, else on the embedded one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rfaas_config::{ContainerSettings, Engine};
use testkit::functions::ends;
use testkit::run::system_tool;
use testkit::service::{call, cluster, deploy, warm};
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

fn layers(cluster: &LocalCluster) -> Vec<String> {
    let nodes = cluster.http().unwrap().get("/nodes").unwrap().body;
    serde_json::from_value(nodes[0]["isolation"].clone()).unwrap()
}

#[test]
#[ignore = "needs root, podman, crun and catatonit"]
fn functions_are_called_in_a_container_of_podman() {
    let _alone = one_at_a_time();
    system_tool("podman");
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("image");
    make_root(&root);
    let stores = STORES
        .iter()
        .map(|(flag, name)| format!("{flag}={}", directory.path().join(name).display()));
    let plain = PLAIN.iter().map(|word| (*word).to_owned());
    let command: Vec<_> = ["podman".to_owned()].into_iter().chain(stores).chain(plain).collect();
    let container = ContainerSettings {
        engine: Some(Engine::Podman),
        image: root.display().to_string(),
        command: command.clone(),
        options: vec![],
        start_ms: u32::try_from(START.as_millis()).unwrap(),
    };
    let begin = std::time::Instant::now();
    let cluster = cluster(Options { container: Some(container), ..Options::default() });
    println!("the node is ready after {:?}, isolated by {:?}", begin.elapsed(), layers(&cluster));
    for layer in ["mount_namespace", "view", "pid_namespace", "capabilities", "no_new_privileges"] {
        assert!(layers(&cluster).iter().any(|found| found == layer), "no {layer}");
    }
    let client = cluster.client().unwrap();
    let begin = std::time::Instant::now();
    let deployment = warm().start_timeout(START);
    let mut executor = deploy(&client, 1, &ends(directory.path()), &deployment);
    println!("an executor is ready after {:?}", begin.elapsed());
    assert_eq!(call(&mut executor, "echo", b"there and back").unwrap(), b"there and back");
    call(&mut executor, "print", b"words").unwrap();
    let printed = String::from_utf8(executor.printed().unwrap().stdout()).unwrap();
    assert!(printed.contains("words"), "{printed:?}");
    // Where the engine takes more than a second to end, the client has given up by then, and the manager tells.
    call(&mut executor, "call_abort", &[0]).unwrap_err();
    eventually("its end is told", || cluster.logs().contains("exit=Signal(6)"));
    drop((executor, client));
    cluster.stop().unwrap();
    eventually("nothing is left", || {
        let mut list = Command::new(&command[0]);
        let listed = list.args(&command[1..]).args(["ps", "--all", "--quiet"]).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        listed.stdout.is_empty()
    });
}
