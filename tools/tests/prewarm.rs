//! Executors that stand by: a lease has one at once, another one takes its place, and none is left in the end.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use rfaas::{Error, Executor, Exit, LeaseRequest};
use rfaas_protocol::isolation::UserRange;
use testkit::functions::{c_library, faulty};
use testkit::leftovers::Leftovers;
use testkit::procfs::{self, Stat};
use testkit::run::{kill_9, source};
use testkit::service::{call, call_with_room, cluster, deploy, warm};
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options};

const NOWHERE: &str = "/nowhere";

fn all_stand(cluster: &LocalCluster, count: usize) -> Vec<u32> {
    eventually("they stand by", || cluster.executors_standing().len() == count);
    cluster.executors_standing()
}

fn shell(executor: &mut Executor, command: &str) -> String {
    let printed = call_with_room(executor, "shell", command.as_bytes(), 4096);
    String::from_utf8(printed.unwrap()).unwrap()
}

#[test]
fn a_lease_has_one_that_stood_by_and_another_one_takes_its_place() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let before = Leftovers::list(Path::new(NOWHERE));
    let cluster = cluster(Options::default());
    let stood = all_stand(&cluster, 2);
    let client = cluster.client().unwrap();
    let library = faulty(directory.path());
    for cores in [1, 2] {
        let mut executor = deploy(&client, cores, &library, &warm());
        let [process] = cluster.executors_running()[..] else { panic!("one executor") };
        if cores == 1 {
            assert!(stood.contains(&process), "{process} of {stood:?}");
        }
        assert_eq!(call(&mut executor, "echo", &[7; 8]).unwrap(), [7; 8]);
        let now = all_stand(&cluster, 2);
        assert!(!now.contains(&process));
        let bill = executor.release().unwrap();
        assert_eq!(bill.invocations.get(), 1);
    }
    drop(client);
    cluster.stop().unwrap();
    Leftovers::nothing_new_since(&before, Path::new(NOWHERE));
}

#[test]
fn one_that_is_killed_is_replaced_and_costs_no_lease() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    for killed in all_stand(&cluster, 2) {
        kill_9(killed);
    }
    let mut executor = deploy(&client, 1, &faulty(directory.path()), &warm());
    assert_eq!(call(&mut executor, "echo", &[1]).unwrap(), [1]);
    all_stand(&cluster, 2);
    drop((executor, client));
    cluster.stop().unwrap();
}

/// A lease of more workers than one that stands by can have needs a user, of which those that stand by have the last.
#[test]
fn a_lease_that_needs_what_those_that_stand_by_have_gets_it() {
    const MANY: u32 = 65;
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let users = UserRange { count: 3, ..UserRange::default() };
    let cluster = cluster(Options { cores: 1 + MANY, users, ..Options::default() });
    let client = cluster.client().unwrap();
    let mut small = deploy(&client, 1, &library, &warm());
    all_stand(&cluster, 2);
    let mut large = deploy(&client, MANY, &library, &warm());
    for executor in [&mut small, &mut large] {
        assert_eq!(call(executor, "echo", &[7; 8]).unwrap(), [7; 8]);
    }
    if getuid().is_root() {
        all_stand(&cluster, 1); // with the user that is left
    }
    large.release().unwrap();
    all_stand(&cluster, 2);
    drop((small, client));
    cluster.stop().unwrap();
}

#[test]
fn with_none_that_stand_by_a_lease_is_served_as_well() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(Options { prewarm: 0, ..Options::default() });
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &faulty(directory.path()), &warm());
    assert_eq!(call(&mut executor, "echo", &[1]).unwrap(), [1]);
    assert!(cluster.executors_standing().is_empty());
    drop((executor, client));
    cluster.stop().unwrap();
}

/// What a function finds of its process that depends on the lease, and must not depend on when it was started.
#[test]
fn a_function_finds_the_same_whether_its_executor_stood_by_or_not() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let source = source("executor/tests/functions/inherited.c");
    let library = c_library(directory.path(), "inherited", &source, &[]);
    let [stood, started] = [2, 0].map(|prewarm| {
        let cluster = cluster(Options { prewarm, ..Options::default() });
        all_stand(&cluster, prewarm as usize);
        let client = cluster.client().unwrap();
        let mut executor = deploy(&client, 1, &library, &warm());
        let found = shell(
            &mut executor,
            "cat /proc/self/limits; grep -e Cap -e Sig -e NoNew -e Seccomp: /proc/self/status; \
             df -k /tmp | awk '{print $2}'; ls /proc/self/fd; readlink /proc/self/fd/0; pwd",
        );
        let [process] = cluster.executors_running()[..] else { panic!("one executor") };
        let files = procfs::open_files(process).len();
        let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().count();
        assert!(Stat::of(process).unwrap().name == "executor");
        drop((executor, client));
        cluster.stop().unwrap();
        (found, files, threads)
    });
    assert_eq!(stood, started);
}

#[test]
fn a_library_of_the_operator_is_never_sent_and_loaded_before_there_is_a_lease() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    for prewarm in [2, 0] {
        let preload = vec![library.clone()];
        let cluster = cluster(Options { prewarm, preload, ..Options::default() });
        // As many without it, for other libraries.
        let stood = all_stand(&cluster, 2 * prewarm as usize);
        let has_it = |id: &&u32| {
            fs::read_to_string(format!("/proc/{id}/maps")).unwrap().contains("/memfd:functions")
        };
        // They have their names before.
        eventually("the library is loaded", || {
            stood.iter().filter(has_it).count() == prewarm as usize
        });
        let client = cluster.client().unwrap();
        let mut executor = deploy(&client, 1, &library, &warm());
        assert!(!executor.phases().library_sent, "with {prewarm} that stand by");
        assert_eq!(call(&mut executor, "echo", &[1]).unwrap(), [1]);
        drop((executor, client));
        cluster.stop().unwrap();
    }
}

/// Of C++, what is there once in a process, such as a static variable of an inline function, is that of the library
/// which is loaded first.
#[test]
fn a_library_of_the_operator_changes_nothing_for_another_one() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let [operators, clients] = [1, 2].map(|version| {
        let text = format!(
            "#include <stdint.h>\n\
             int once = {version};\n\
             __asm__(\".type once, @gnu_unique_object\");\n\
             uint32_t version(void *in, uint32_t bytes, void *out) {{\n\
                 *(uint8_t *)out = once;\n\
                 return 1;\n\
             }}\n"
        );
        compiled(directory.path(), &format!("once{version}"), &text)
    });
    let preload = vec![operators.clone()];
    let cluster = cluster(Options { preload, ..Options::default() });
    let client = cluster.client().unwrap();
    all_stand(&cluster, 4);
    for (library, version) in [(&clients, 2), (&operators, 1), (&clients, 2), (&clients, 2)] {
        let mut executor = deploy(&client, 1, library, &warm());
        assert_eq!(call(&mut executor, "version", &[7]).unwrap(), [version]);
        executor.release().unwrap();
    }
    drop(client);
    cluster.stop().unwrap();
}

/// A library of the operator whose constructor does `what`.
fn constructing(directory: &Path, name: &str, what: &str) -> PathBuf {
    let text = format!(
        "#include <stdint.h>\n\
         #include <stdlib.h>\n\
         #include <unistd.h>\n\
         __attribute__((constructor)) static void construct(void) {{ {what}; }}\n\
         uint32_t nothing(void *in, uint32_t bytes, void *out) {{ return 0; }}\n"
    );
    compiled(directory, name, &text)
}

/// The library of this text in C.
fn compiled(directory: &Path, name: &str, text: &str) -> PathBuf {
    let source = directory.join(format!("{name}.c"));
    fs::write(&source, text).unwrap();
    c_library(directory, name, &source, &[])
}

#[test]
fn a_library_of_the_operator_that_cannot_be_loaded_stops_no_lease() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let before = Leftovers::list(Path::new(NOWHERE));
    let good = faulty(directory.path());
    for (name, what) in
        [("crashes", "abort()"), ("exits", "_exit(7)"), ("hangs", "for (;;) pause()")]
    {
        let preload = vec![constructing(directory.path(), name, what)];
        let cluster = cluster(Options { preload, ..Options::default() });
        let client = cluster.client().unwrap();
        for _ in 0..3 {
            let mut executor = deploy(&client, 1, &good, &warm());
            assert_eq!(call(&mut executor, "echo", &[7; 8]).unwrap(), [7; 8], "{name}");
            executor.release().unwrap();
        }
        if name != "hangs" {
            eventually("the operator hears of it", || {
                cluster.logs().contains("an executor that stood by is gone")
            });
        }
        drop(client);
        cluster.stop().unwrap(); // also while a constructor hangs
    }
    Leftovers::nothing_new_since(&before, Path::new(NOWHERE));
}

#[test]
fn one_that_dies_with_its_lease_on_the_way_costs_that_deployment_and_no_other() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let stood = all_stand(&cluster, 2);
    // It has been given the lease and cannot have read that.
    stood.iter().for_each(|id| signal(*id, Signal::SIGSTOP));
    eventually("they are stopped", || stood.iter().all(|id| procfs::is_stopped(*id)));
    let lease = client.lease(LeaseRequest::new(1, 64)).unwrap();
    let failed = std::thread::scope(|scope| {
        let deploying = scope.spawn(|| lease.deploy_with(&library, &warm()).map(drop));
        eventually("one has the lease", || {
            cluster.logs().contains("an executor that stood by has the lease")
        });
        stood.iter().for_each(|id| kill_9(*id));
        deploying.join().unwrap().unwrap_err()
    });
    assert!(matches!(failed, Error::StartFailed(Exit::Signal(9))), "{failed:?}");
    drop(lease);
    let mut executor = deploy(&client, 1, &library, &warm());
    assert_eq!(call(&mut executor, "echo", &[7; 8]).unwrap(), [7; 8]);
    all_stand(&cluster, 2);
    drop((executor, client));
    cluster.stop().unwrap();
}

fn signal(id: u32, signal: Signal) {
    kill(Pid::from_raw(id.cast_signed()), signal).unwrap();
}
