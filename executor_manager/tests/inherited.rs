//! What a manager is started with: it goes on whatever that is, or says what is wrong; and of it its
//! executors get what they need.

#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas_config::SECRET_VARIABLE;
use rfaas_protocol::allocation::ToClient;

/// Keeps what `env` prints.
const ENVIRONMENT: &str = "trap 'exit 0' TERM
env > $DIR/env.$$ && mv $DIR/env.$$ $DIR/env
while :; do sleep 0.01; done";

#[test]
fn executors_get_what_is_listed_of_the_environment_and_never_the_secret() {
    let mut setup = Setup::new(ENVIRONMENT);
    setup.environment.push("LICENCE_SERVER".into());
    let mut command = setup.command();
    let given = [
        ("HOME", "/somewhere"),
        ("LC_TIME", "C"),
        ("OMP_STACKSIZE", "1G"),
        ("LICENCE_SERVER", "s"),
    ];
    command.envs(given);
    command.env(SECRET_VARIABLE, "the secret of the cluster").env("CLOUD_TOKEN", "of the operator");
    let node = setup.start_as(command);
    let mut client = node.client();
    client.claim(unsigned(1));
    let text = wait_for("an environment", || fs::read_to_string(node.setup.path("env")).ok());
    let has = |line: &str| text.lines().any(|other| other == line);
    for (name, value) in given {
        assert!(has(&format!("{name}={value}")), "{name} is not in\n{text}");
    }
    assert!(!text.contains(SECRET_VARIABLE) && !text.contains("the secret"), "{text}");
    assert!(!text.contains("CLOUD_TOKEN"), "{text}");
}

/// Some user who is not root.
const NOBODY: u32 = 65534;

#[test]
fn a_secret_of_the_environment_is_closed_to_other_processes_of_the_same_user() {
    let mut manager = ResourceManager::new();
    let mut setup = manager.node(OBEDIENT);
    // Where another user than root may run it.
    let copy = setup.path("executor_manager");
    fs::copy(&setup.program, &copy).unwrap();
    fs::set_permissions(setup.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    setup.program = copy;
    let mut command = setup.command();
    if nix::unistd::getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.env(SECRET_VARIABLE, std::str::from_utf8(SECRET).unwrap());
    let mut process = wait_for("a copy that nobody writes to", || match command.spawn() {
        Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => None, // in a fork of another test
        spawned => Some(spawned.unwrap()),
    });
    let _link = manager.register();
    // Files of a process that is closed to its user are root's, proc_pid(5).
    let owner = fs::metadata(format!("/proc/{}/environ", process.id())).unwrap().uid();
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(owner, 0);
}

#[test]
fn how_an_executor_ended_is_known_also_where_sigchld_was_ignored() {
    let node = Setup::new("kill -SEGV $$").start_after("trap '' CHLD");
    let mut client = node.client();
    client.claim(unsigned(1));
    match client.next() {
        ToClient::ExecutorExited(told) => {
            assert_eq!(told.signal.get(), Signal::SIGSEGV as i32);
        }
        other => panic!("{other:?}"),
    }
    node.stop();
}

/// Signals 32 and 33, which glibc has ignored in what posix_spawn(3) starts.
const GLIBCS_OWN: u64 = 3 << 31;

#[test]
fn signals_that_were_blocked_stop_it_and_reach_its_executors() {
    let setup = Setup::new("cat /proc/self/status > $DIR/s; mv $DIR/s $DIR/status; sleep 1000");
    let mut env = Command::new("env"); // of GNU coreutils 8.31
    env.args(["--block-signal", "--ignore-signal=PIPE,CHLD,USR1"]).arg(&setup.program);
    let command = setup.command_by(env);
    let node = setup.start_as(command);
    let mut client = node.client();
    client.claim(unsigned(1));
    let status = wait_for("a status", || fs::read_to_string(node.setup.path("status")).ok());
    for key in ["SigBlk:\t", "SigIgn:\t"] {
        let mask = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        let mask = u64::from_str_radix(mask, 16).unwrap();
        assert_eq!(mask & !GLIBCS_OWN, 0, "{key} {mask:x}");
    }
    client.release();
    node.stop();
}

#[test]
fn a_hangup_that_nohup_ignores_stays_ignored() {
    let node = Setup::new(OBEDIENT).start_after("trap '' HUP");
    node.signal(Signal::SIGHUP);
    let mut client = node.client();
    client.claim(unsigned(1));
    client.release();
    node.stop();
}

#[test]
fn the_executor_learns_the_limit_of_descriptors_that_the_operator_has_set() {
    let node = Setup::new(OBEDIENT).start_after("ulimit -S -n 321");
    let mut client = node.client();
    client.claim(unsigned(1));
    assert_eq!(node.instructions().standby.open_files, 321);
}

#[test]
fn the_fewest_descriptors_serve_a_lease() {
    let node = Setup::new(OBEDIENT).start_after("ulimit -n 64");
    let mut client = node.client();
    client.claim(unsigned(1));
    let standby = node.instructions().standby;
    Worker::connect(standby.manager, standby.manager_secret.0).unwrap();
    client.release();
    node.stop();
}

/// Wherever it runs out of them in a start.
#[test]
fn a_lease_for_which_no_descriptor_is_left_is_refused_with_the_limit_and_what_to_do() {
    let node = Setup::new(OBEDIENT).start();
    let pid = node.pid().to_string();
    let token = unsigned(1);
    let mut client = node.client_for(&token);
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let mut refused = 0;
    for limit in open.. {
        let mut prlimit = Command::new("prlimit");
        let set = prlimit.args(["--pid", &pid, &format!("--nofile={limit}:")]).status().unwrap();
        assert!(set.success());
        match client.ask(allocate(token)) {
            ToClient::Refused(why) => {
                let reason = why.reason.get().unwrap();
                let named =
                    reason.contains(&format!("at most {limit})")) && reason.contains("ulimit -n");
                assert!(named, "{reason}");
                refused += 1;
            }
            ToClient::Allocated(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 4, "a start needs more: {refused}");
    client.release();
    node.stop();
}

#[test]
fn children_that_it_did_not_start_are_reaped() {
    // What the shell started is a child of the program that it becomes.
    let first = "sleep 0.3 & echo $! > $DIR/stranger; sleep 1000 & echo $! > $DIR/lives";
    let node = Setup::new(OBEDIENT).start_after(first);
    let pid = |name| fs::read_to_string(node.setup.path(name)).unwrap().trim().parse::<i32>();
    let (stranger, lives) = (pid("stranger").unwrap(), pid("lives").unwrap());
    let mut client = node.client();
    client.claim(unsigned(1));
    let gone = |pid: i32| (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(());
    wait_for("the end of a stranger's zombie", || gone(stranger));
    let executor = node.executors(1)[0];
    kill(Pid::from_raw(executor), Signal::SIGKILL).unwrap();
    match client.next() {
        ToClient::ExecutorExited(told) => assert_eq!(told.signal.get(), Signal::SIGKILL as i32),
        other => panic!("its own end is not lost among them: {other:?}"),
    }
    assert!(runs(lives));
    kill(Pid::from_raw(lives), Signal::SIGKILL).unwrap();
    wait_for("the end of another one", || gone(lives));
    node.stop();
}

#[test]
fn an_executor_beside_the_program_is_found() {
    let setup = Setup::apart();
    setup.script(OBEDIENT);
    let mut command = setup.command();
    command.env("PATH", "/usr/bin:/bin");
    let node = setup.start_as(command);
    let mut client = node.client();
    client.claim(unsigned(1));
    node.executors(1);
}
