//! Machines without rdma-core: no program is linked with it, all of them start, and what is asked of a device of
//! provider `verbs` there is told in one line.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::run::{Finished, binaries, library, program, run, source};
use testkit::wait::one_at_a_time;

const PROGRAMS: &[&str] = &[
    "resource_manager",
    "executor_manager",
    "executor",
    "device_generator",
    "quickstart",
    "cluster",
    "echo_client",
    "transport_benchmarker",
    "warm_benchmarker",
    "cold_benchmarker",
    "parallel_invocations",
];

/// Files that the loader maps for `file`, as ldd(1) says.
fn libraries_of(file: &Path) -> BTreeSet<PathBuf> {
    let mut ldd = Command::new("ldd");
    ldd.arg(file);
    let told = run(ldd);
    assert!(told.status.success(), "{}", told.stderr);
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`
    let words = told
        .stdout
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

#[test]
fn no_program_is_linked_with_rdma_libraries() {
    for name in PROGRAMS {
        let libraries = libraries_of(&program(name));
        assert!(libraries.iter().any(|library| library.to_string_lossy().contains("libc.so")));
        for library in libraries {
            let library = library.to_string_lossy().into_owned();
            assert!(
                !["ibverbs", "rdmacm", "mlx", "libnl"].iter().any(|rdma| library.contains(rdma)),
                "{name}: {library}"
            );
        }
    }
}

/// A root directory with our programs, what they are linked with, and nothing else.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = Root(tempfile::tempdir().unwrap());
        for directory in ["proc", "dev", "sys", "tmp"] {
            fs::create_dir(root.0.path().join(directory)).unwrap();
        }
        let libraries = ["functions", "thumbnailer"].map(library);
        let files = PROGRAMS.iter().map(|name| program(name)).chain(libraries);
        for file in files {
            libraries_of(&file).iter().for_each(|library| root.copy(library, library));
            root.copy(&file, &Path::new("/programs").join(file.file_name().unwrap()));
        }
        let sample = binaries().program("sample_image").unwrap();
        root.copy(&sample, Path::new("/programs/sample_image"));
        for file in fs::read_dir(source("config")).unwrap() {
            let file = file.unwrap().path();
            root.copy(&file, &Path::new("/config").join(file.file_name().unwrap()));
        }
        root
    }

    fn copy(&self, from: &Path, to: &Path) {
        let to = self.0.path().join(to.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }

    /// Runs a program with the arguments behind it in a namespace that sees this directory alone.
    fn run(&self, arguments: &[&str]) -> Finished {
        let script = r#"cd "$1"; shift
            for special in proc dev sys; do mount --rbind "/$special" "$special"; done
            exec env -i PATH="$PATH" TMPDIR=/tmp chroot . "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-ec", script, "sh"]);
        command.arg(self.0.path()).args(arguments);
        run(command)
    }
}

#[test]
#[ignore = "needs to make namespaces: root, or user namespaces that this user may have"]
fn the_embedded_device_needs_nothing_of_rdma_core() {
    let _alone = one_at_a_time();
    let root = Root::new();
    let ended = root.run(&["/programs/quickstart", "--json"]);
    assert!(ended.status.success(), "{}", ended.stderr);
    let told: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(told["hot"]["provider"], "shm");
    assert!(told["thumbnail"]["output_bytes"].as_u64().unwrap() > 0);
    for name in PROGRAMS {
        let ended = root.run(&[&format!("/programs/{name}"), "--version"]);
        assert!(ended.status.success(), "{name}: {}", ended.stderr);
    }
}

#[test]
#[ignore = "needs to make namespaces: root, or user namespaces that this user may have"]
fn an_rdma_device_without_rdma_core_is_one_clear_line() {
    let _alone = one_at_a_time();
    let root = Root::new();
    let devices = root.0.path().join("config/devices.json");
    let changed = fs::read_to_string(&devices).unwrap().replace("\"shm\"", "\"verbs\"");
    fs::write(&devices, changed).unwrap();
    let database = "--device-database=/config/devices.json";
    for arguments in [
        ["/programs/resource_manager", "-c=/config/resource_manager.json", database],
        ["/programs/executor_manager", "-c=/config/executor_manager.json", database],
        ["/programs/transport_benchmarker", "-c=/config/benchmark.json", database],
    ] {
        let ended = root.run(&arguments);
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        let line = ended.stderr.trim_end();
        assert_eq!(line.lines().count(), 1, "{line}");
        for word in ["shm0", "verbs", "libibverbs.so.1", "libibverbs1", "\"provider\": \"shm\""] {
            assert!(line.contains(word), "{word} is not in: {line}");
        }
    }
}
