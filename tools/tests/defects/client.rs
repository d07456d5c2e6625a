//! The client library and the benchmarks: what is deployed, how it starts, who is asked.

use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use rfaas::{Client, Error, LeaseRequest};
use rfaas_config::{Isolation, Launch};
use rfaas_protocol::allocation::RefusedBecause;
use testkit::{Options, procfs};

use super::Scene;
use testkit::functions::{adder, c_library, faulty};
use testkit::run::{library, run};
use testkit::service::{call, call_with_room, deploy, warm};
use testkit::wait::rounds;

#[test]
fn a_missing_library_is_an_error() {
    let scene = Scene::small();
    let lease = scene.client.lease(LeaseRequest::new(1, 64)).unwrap();
    let error = lease.deploy("missing.so").unwrap_err();
    assert!(matches!(error, Error::LibraryUnreadable { .. }), "{error:?}");
    // The lease is none the worse for it.
    let mut executor = lease.deploy_with(library("functions"), &warm()).unwrap();
    assert_eq!(call(&mut executor, "empty", &[1; 8]).unwrap(), [1; 8]);
    executor.release().unwrap();
    scene.ends();
}

#[test]
fn the_client_runs_no_code_of_the_library() {
    // Its constructor leaves a file.
    let scene = Scene::new(Options { isolation: Isolation::None, ..Options::default() });
    let marks = scene.directory.path().join("marks");
    fs::create_dir(&marks).unwrap();
    let source = scene.directory.path().join("constructor.c");
    let text = format!(
        "#include <stdint.h>\n#include <stdio.h>\n#include <unistd.h>\n\
         __attribute__((constructor)) static void constructor(void) {{\n\
             char name[4096];\n\
             snprintf(name, sizeof name, \"{}/%d\", (int)getpid());\n\
             fclose(fopen(name, \"w\"));\n\
         }}\n\
         uint32_t one(void *in, uint32_t n, void *out) {{ *(char *)out = 1; return 1; }}\n",
        marks.display()
    );
    fs::write(&source, text).unwrap();
    let library = c_library(scene.directory.path(), "constructor", &source, &[]);
    let mut executor = deploy(&scene.client, 1, &library, &warm());
    assert_eq!(call(&mut executor, "one", &[0]).unwrap(), [1]);
    let ran: Vec<_> =
        fs::read_dir(&marks).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let [process] = scene.cluster.executors_running()[..] else { panic!("one executor") };
    let own_id = procfs::own_id(process).unwrap();
    assert_eq!(ran, [own_id.to_string().as_str()], "only in the executor, once");
    executor.release().unwrap();
    scene.ends();
}

#[test]
fn only_functions_that_the_library_exports_are_callable() {
    let scene = Scene::small();
    let source = scene.directory.path().join("symbols.c");
    fs::write(
        &source,
        "#include <stdint.h>\n#include <stdlib.h>\n#include <string.h>\n\
         int data = 1;\n\
         static uint32_t internal(void) { return 1; }\n\
         __attribute__((visibility(\"hidden\"))) uint32_t hidden(void) { return internal(); }\n\
         uint32_t zeta(void *in, uint32_t n, void *out) { memcpy(out, in, n); return hidden() ? n : 0; }\n\
         uint32_t alpha(void *in, uint32_t n, void *out) { return (uint32_t)atoi(in); }\n",
    )
    .unwrap();
    // The tables of a library are where its linker put them.
    for (name, flags) in [
        ("plain", &[][..]),
        ("sysv", &["-Wl,--hash-style=sysv"][..]),
        ("stripped", &["-s"][..]),
        ("separate", &["-Wl,-z,separate-code", "-g"][..]),
    ] {
        let library = c_library(scene.directory.path(), name, &source, flags);
        let mut executor = deploy(&scene.client, 1, &library, &warm());
        assert_eq!(executor.functions(), ["alpha", "zeta"], "{name}");
        assert_eq!(call(&mut executor, "zeta", b"12").unwrap(), b"12");
        assert_eq!(call_with_room(&mut executor, "alpha", b"12\0", 64).unwrap().len(), 12);
        for not_there in ["internal", "hidden", "data", "memcpy", "atoi", "_init"] {
            let error = executor.function(not_there).unwrap_err();
            assert!(matches!(error, Error::UnknownFunction { .. }), "{error:?}");
        }
        executor.release().unwrap();
        scene.is_free();
    }
    scene.ends();
}

#[test]
fn more_than_64_workers_all_answer() {
    let scene = Scene::new(Options { cores: 80, memory: 4096, ..Options::default() });
    let deployment = warm().slots(1).input_bytes(64).output_bytes(64);
    let mut executor = scene.deploy(80, &deployment);
    assert_eq!(executor.workers(), 80);
    let function = executor.function("echo").unwrap();
    let mut inputs: Vec<_> = (0..80).map(|_| executor.input(8).unwrap()).collect();
    let mut outputs: Vec<_> = (0..80).map(|_| executor.output(8).unwrap()).collect();
    for (i, input) in (0..).zip(&mut inputs) {
        input.fill(i);
    }
    for _ in 0..3 {
        let sizes = executor.invoke_all(&function, &inputs, &mut outputs).unwrap();
        assert_eq!(sizes, [8; 80]);
        for (i, output) in (0..).zip(&outputs) {
            assert_eq!(output.to_vec(..).unwrap(), [i; 8]);
        }
    }
    executor.release().unwrap();
    scene.ends();
}

/// Starts what is in `executor_path` by itself. A manager that wants to know which layers its
/// executors have would not start with what is no executor.
fn with_executors_of(executor_path: Option<OsString>) -> Options {
    let (launch, isolation) = (Launch::Exec, Isolation::None);
    Options { executor_path, launch, isolation, ..Options::default() }
}

#[test]
fn an_executor_that_cannot_be_started_is_a_refusal() {
    let unusable = tempfile::tempdir().unwrap();
    let program = unusable.path().join("executor");
    fs::write(&program, "#!/nowhere/sh\n").unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let executor_path = Some(unusable.path().into());
    let scene = Scene::new(with_executors_of(executor_path));
    let lease = scene.client.lease(LeaseRequest::new(1, 64)).unwrap();
    let error = lease.deploy_with(library("functions"), &warm()).unwrap_err();
    let Error::AllocationRefused { because, ref reason, .. } = error else { panic!("{error:?}") };
    assert_eq!(because, RefusedBecause::SpawnFailed);
    assert!(reason.contains("executor"), "{reason}");
    drop(lease);
    scene.is_free();
    scene.ends();
}

#[test]
fn an_executor_that_never_connects_or_ends_at_once_is_an_error_in_time() {
    for (script, limit) in [("exec sleep 600", 500), ("exit 7", 60_000)] {
        let fake = tempfile::tempdir().unwrap();
        let program = fake.path().join("executor");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, executable).unwrap();
        let mut path = OsString::from(fake.path());
        path.push(":/usr/bin:/bin");
        let scene = Scene::new(with_executors_of(Some(path)));
        let lease = scene.client.lease(LeaseRequest::new(1, 64)).unwrap();
        let deployment = warm().start_timeout(Duration::from_millis(limit));
        let error = lease.deploy_with(library("functions"), &deployment).unwrap_err();
        let told = matches!(error, Error::StartTimeout { .. } | Error::StartFailed(_));
        assert!(told, "{error:?}");
        drop(lease);
        scene.is_free();
        scene.ends();
    }
}

#[test]
fn a_release_ends_although_the_executor_manager_has_died() {
    let mut scene = Scene::small();
    let executor = scene.deploy(1, &warm());
    scene.cluster.executor_manager().unwrap().kill();
    let error = executor.release().unwrap_err();
    assert!(matches!(error, Error::ExecutorGone), "{error:?}");
    scene.ends();
}

#[test]
fn ipv6_and_long_names_work() {
    let address = "::1".parse().unwrap();
    let node = "n".repeat(128);
    let scene = Scene::new(Options { address, node: node.clone(), ..Options::default() });
    let mut executor = scene.deploy(1, &warm());
    assert_eq!(call(&mut executor, "echo", &[6; 64]).unwrap(), [6; 64]);
    assert_eq!(executor.node(), node);
    executor.release().unwrap();
    scene.ends();
}

#[test]
fn more_workers_than_a_device_posts_receives_work() {
    let scene = Scene::new(Options { cores: 6, ..Options::default() });
    let mut device = scene.cluster.open_device().unwrap();
    device.entry.default_receive_buffer_size = 1;
    let client =
        Client::connect(device, scene.cluster.resource_manager_address().unwrap()).unwrap();
    let mut executor = deploy(&client, 6, &faulty(scene.directory.path()), &warm());
    let function = executor.function("echo").unwrap();
    let inputs: Vec<_> = (0..24).map(|_| executor.input(64).unwrap()).collect();
    let mut outputs: Vec<_> = (0..24).map(|_| executor.output(64).unwrap()).collect();
    for _ in 0..5 {
        let sizes = executor.invoke_all(&function, &inputs, &mut outputs).unwrap();
        assert_eq!(sizes, [64; 24]);
    }
    drop(executor);
    drop(client);
    scene.ends();
}

#[test]
fn a_run_that_ends_well_says_nothing_on_standard_error() {
    let scene = Scene::small();
    for name in ["warm_benchmarker", "cold_benchmarker", "parallel_invocations"] {
        let mut benchmark = scene.cluster.benchmark_command(name).unwrap();
        benchmark.args(["--repetitions", "2"]).arg("--functions").arg(library("functions"));
        assert_eq!(run(benchmark).success().stderr, "", "{name}");
        scene.is_free();
    }
    scene.ends();
}

#[test]
fn buffers_can_be_made_and_dropped_without_end() {
    let scene = Scene::small();
    let mut executor = scene.deploy(1, &warm());
    // 20 GiB in all, and more regions than any device has keys for.
    for round in 0..rounds(20_000) {
        let mut input = executor.input(1 << 20).unwrap();
        input.write(0, &round.to_ne_bytes()).unwrap();
    }
    assert_eq!(call(&mut executor, "echo", &[5; 64]).unwrap(), [5; 64]);
    executor.release().unwrap();
    scene.ends();
}

#[test]
fn a_lease_follows_a_release_without_a_pause() {
    let scene = Scene::small();
    let library = adder(scene.directory.path(), "add1", 1);
    // All cores of the node each time: none may be missing afterwards, and no claim may come too early.
    for round in 0..20u8 {
        let mut executor = deploy(&scene.client, 2, &library, &warm());
        assert_eq!(call(&mut executor, "add1", &[round; 4]).unwrap(), [round + 1; 4]);
        executor.release().unwrap();
    }
    scene.ends();
}
