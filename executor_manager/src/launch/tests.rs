//! Shell scripts as executors.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use rdmalib_testing::{eventually, wait_for};
use rfaas_protocol::Secret;
use rfaas_protocol::assignment::{AssignedDevice, Assignment, HexSecret, LibraryFile, Standby};
use rfaas_protocol::library::LibraryHash;
use tempfile::TempDir;

use super::child::STOP_GRACE;
use super::*;
use crate::allocations::Exit;

/// Held while a script is written and while a process is started: a process that another test starts
/// at that moment would keep the script open for writing, and such a file cannot be run (ETXTBSY).
static WRITING: Mutex<()> = Mutex::new(());

#[test]
fn a_child_that_a_real_time_signal_has_ended_is_found_and_reaped() {
    let mut command = Command::new("sh");
    let child = {
        let _writing = WRITING.lock();
        command.args(["-c", "kill -37 $$"]).spawn().unwrap()
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    wait_for("its end", || matches!(child::look_at(pid), Ok(Some(_))).then_some(()));
    assert_eq!(child::look_at(pid), Ok(Some(Exit::Signal(37))));
    assert!(child::children().any(|known| known == pid));
    assert!(child::ended_child().is_some(), "it, or the child of another test");
    child::reap(pid);
    assert!(child::look_at(pid).is_err(), "it is reaped");
}

fn instructions(workers: u16) -> Instructions {
    let standby = Standby {
        device: AssignedDevice {
            name: "shm0".into(),
            provider: "shm".into(),
            ip_address: [127, 0, 0, 1].into(),
            max_inline_data: 0,
        },
        manager: "127.0.0.1:10005".parse().unwrap(),
        manager_secret: HexSecret(Secret([1; 16])),
        most_workers: workers,
        open_files: 1024,
        heartbeat_ms: 1000,
        silence_ms: 5000,
        sandbox: None,
        memory: None,
        preload: vec![],
    };
    let assignment = Assignment {
        lease: 7,
        memory: 512,
        client: "127.0.0.1:4000".parse().unwrap(),
        session_secret: HexSecret(Secret([2; 16])),
        workers,
        pin_to: Some((0..workers.into()).collect()),
        slots: 4,
        input_bytes: 64,
        output_bytes: 64,
        code_bytes: 1000,
        code_hash: LibraryHash([0; 32]),
        library: LibraryFile::Absent,
        hot_timeout_ms: -1,
        graph: false,
    };
    Instructions { standby, assignment: Some(assignment) }
}

/// A directory with an executor that does `script`, in which `$DIR` is the directory.
struct Scripted {
    directory: TempDir,
    launcher: Launcher,
}

impl Scripted {
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join(PROGRAM);
        {
            let _writing = WRITING.lock().unwrap();
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        }
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut environment: Vec<_> = std::env::vars_os().collect();
        environment.push(("DIR".into(), directory.path().into()));
        let launcher = Launcher::new(directory.path().into(), None, environment);
        Scripted { directory, launcher }
    }

    fn start(&mut self) -> ExecutorChild {
        let _writing = WRITING.lock().unwrap();
        self.launcher.start(7, &instructions(2), &Library::Absent).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the script wrote to `name`, once it is complete: scripts end a file by renaming it.
    fn read(&self, name: &str) -> String {
        wait_for(name, || fs::read_to_string(self.path(name)).ok())
    }
}

fn reap(executor: &mut ExecutorChild) -> Exit {
    wait_for("the end of the process", || executor.try_reap(Instant::now()))
}

fn exists(pid: i32) -> bool {
    // A zombie that init has not reaped yet does not count: it runs no more.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn an_executor_that_exits_at_once_is_reaped_with_its_status() {
    let mut scripted = Scripted::new("exit 3");
    let mut executor = scripted.start();
    assert_eq!(reap(&mut executor), Exit::Status(3));
    assert_eq!(executor.try_reap(Instant::now()), None, "told once");
    assert!(!Path::new(&format!("/proc/{}", executor.pid())).exists(), "no zombie is left");
}

#[test]
fn an_executor_that_crashes_is_reaped_with_its_signal() {
    let mut scripted = Scripted::new("kill -SEGV $$");
    assert_eq!(reap(&mut scripted.start()), Exit::Signal(Signal::SIGSEGV as i32));
}

#[test]
fn an_executor_that_is_asked_to_stop_may_finish_its_work() {
    let script = "trap 'mv $DIR/ready $DIR/flushed; exit 0' TERM; touch $DIR/ready; \
                  while :; do sleep 0.01; done";
    let mut scripted = Scripted::new(script);
    let mut executor = scripted.start();
    scripted.read("ready");
    let start = Instant::now();
    executor.stop(start, 0);
    executor.stop(start + STOP_GRACE, 0); // does not put the kill off
    assert_eq!(executor.deadline(), Some(start + STOP_GRACE));
    assert_eq!(reap(&mut executor), Exit::Status(0));
    assert!(scripted.path("flushed").exists());
    assert_eq!(executor.deadline(), None);
}

#[test]
fn an_executor_that_ignores_sigterm_is_killed_after_the_grace() {
    let mut scripted =
        Scripted::new("trap '' TERM; touch $DIR/ready; while :; do sleep 0.01; done");
    let mut executor = scripted.start();
    scripted.read("ready");
    let start = Instant::now();
    executor.stop(start, 0);
    assert!(!executor.tick(start + STOP_GRACE - Duration::from_millis(1)), "not before its time");
    assert_eq!(executor.try_reap(Instant::now()), None);
    assert!(executor.tick(start + STOP_GRACE));
    assert_eq!(reap(&mut executor), Exit::Signal(Signal::SIGKILL as i32));
}

#[test]
fn an_executor_that_ends_with_many_others_has_longer_within_reason() {
    let start = Instant::now();
    let grace = |others: usize| {
        let mut scripted = Scripted::new("sleep 30");
        let mut executor = scripted.start();
        executor.stop(start, others);
        executor.deadline().unwrap() - start
    };
    assert_eq!(grace(0), STOP_GRACE);
    assert!(
        STOP_GRACE < grace(100) && grace(100) < grace(200) && grace(usize::MAX) < 5 * STOP_GRACE
    );
}

#[test]
fn signals_that_the_manager_blocks_reach_the_executor() {
    let mask = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD]);
    mask.thread_block().unwrap();
    let mut scripted = Scripted::new("touch $DIR/ready; while :; do sleep 0.01; done");
    let mut executor = scripted.start();
    scripted.read("ready");
    executor.stop(Instant::now(), 0);
    assert_eq!(reap(&mut executor), Exit::Signal(Signal::SIGTERM as i32));
}

#[test]
fn an_executor_leads_a_session_of_its_own_and_has_no_terminal() {
    let script = "( : < /dev/tty ) 2>&- && echo terminal > $DIR/has; read line < /proc/self/stat
echo \"$line\" > $DIR/s; mv $DIR/s $DIR/stat; while :; do sleep 0.01; done";
    let mut scripted = Scripted::new(script);
    let executor = scripted.start();
    let stat = scripted.read("stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let pid = executor.pid().to_string();
    // proc_pid_stat(5): state, parent, group, session, terminal.
    assert_eq!(fields[1..5], [&std::process::id().to_string(), &pid, &pid, "0"]);
    assert!(!scripted.path("has").exists(), "it could open the terminal of its manager");
}

#[test]
fn what_a_function_forked_is_gone_with_its_executor() {
    let script = "sleep 1000 & echo $! > $DIR/child; mv $DIR/child $DIR/pid; kill -SEGV $$";
    let mut scripted = Scripted::new(script);
    let mut executor = scripted.start();
    let child: i32 = scripted.read("pid").trim().parse().unwrap();
    reap(&mut executor);
    eventually("the end of its child", || !exists(child));
}

#[test]
fn an_executor_gets_its_instructions_and_no_other_descriptor() {
    let script = "cat > $DIR/input; ls /proc/self/fd > $DIR/list; mv $DIR/list $DIR/descriptors";
    let mut scripted = Scripted::new(script);
    let secret_of_another = tempfile::tempfile().unwrap(); // std opens it with O_CLOEXEC, as we all do
    let mut executor = scripted.start();
    assert_eq!(reap(&mut executor), Exit::Status(0));
    let parsed: Instructions = serde_json::from_str(&scripted.read("input")).unwrap();
    assert_eq!(parsed, instructions(2));
    let open: BTreeSet<String> = scripted.read("descriptors").lines().map(String::from).collect();
    // 3 is the directory that `ls` reads.
    assert_eq!(open, ["0", "1", "2", "3"].map(String::from).into());
    drop(secret_of_another);
}

#[test]
fn instructions_longer_than_a_pipe_holds_are_passed_whole_even_if_nobody_reads_it() {
    let mut scripted = Scripted::new("exit 0");
    let started = {
        let _writing = WRITING.lock().unwrap();
        scripted.launcher.start(7, &instructions(u16::MAX), &Library::Absent)
    };
    assert_eq!(reap(&mut started.unwrap()), Exit::Status(0));
}

/// Another process that traces `pid`; it lets go when it is dropped.
struct Tracer(Child);

impl Tracer {
    fn of(pid: i32, options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("tracer");
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/testkit/programs/tracer.c");
        let _writing = WRITING.lock().unwrap();
        let compiled = Command::new("cc").arg("-o").arg(&program).arg(source).status().unwrap();
        assert!(compiled.success());
        let mut command = Command::new(program);
        command.arg(pid.to_string()).args(options).stderr(Stdio::piped());
        let mut tracer = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(tracer.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "traces\n");
        Tracer(tracer)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn the_end_of_an_executor_that_another_process_traces_is_known() {
    let killed = Exit::Signal(Signal::SIGKILL as i32);
    for (options, end) in [(&[][..], killed), (&["exit"], killed), (&[], Exit::Status(3))] {
        // Without a child, whose SIGCHLD its tracer would have to let through.
        let script = "echo > $DIR/ready; read line < $DIR/go; exit 3";
        let mut scripted = Scripted::new(script);
        mkfifo(&scripted.path("go"), Mode::S_IRWXU).unwrap();
        let mut executor = scripted.start();
        scripted.read("ready");
        let pid = executor.pid();
        let tracer = Tracer::of(pid, options);
        match end {
            Exit::Status(_) => fs::write(scripted.path("go"), "\n").unwrap(),
            _ => executor.kill(Instant::now()),
        }
        assert_eq!(reap(&mut executor), end);
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "it is there as long as its tracer");
        drop(tracer);
        eventually("it can be reaped", || {
            super::reap(Pid::from_raw(pid));
            !Path::new(&format!("/proc/{pid}")).exists()
        });
    }
}

#[test]
fn an_executor_that_is_dropped_is_killed() {
    let mut scripted =
        Scripted::new("trap '' TERM; echo $$ > $DIR/p; mv $DIR/p $DIR/pid; sleep 1000");
    let executor = scripted.start();
    let pid: i32 = scripted.read("pid").trim().parse().unwrap();
    drop(executor);
    eventually("the end of its process", || !exists(pid));
}

#[test]
fn a_missing_executor_is_an_error_that_names_path_and_remedy() {
    let empty = tempfile::tempdir().unwrap();
    fs::create_dir(empty.path().join(PROGRAM)).unwrap(); // a directory is no program
    let mut launcher = Launcher::new(empty.path().into(), None, Vec::new());
    let error = launcher.start(7, &instructions(1), &Library::Absent).unwrap_err().to_string();
    let found = format!("cannot start `executor`: not found in PATH={}", empty.path().display());
    assert!(error.starts_with(&found), "{error}");
    assert!(error.contains("add the programs' directory"), "{error}");

    let long = "/nowhere".repeat(1000);
    let error = Launcher::new(long.into(), None, Vec::new())
        .start(7, &instructions(1), &Library::Absent)
        .unwrap_err();
    assert!(error.to_string().len() <= 240, "must fit the answer to a client: {error}");
    assert!(
        Launcher::new(OsString::new(), None, Vec::new())
            .start(7, &instructions(1), &Library::Absent)
            .is_err()
    );
}

#[test]
fn an_executor_that_cannot_be_run_is_an_error_that_names_it() {
    let mut scripted = Scripted::new("exit 0");
    let program = scripted.path(PROGRAM);
    fs::write(&program, "#!/nowhere/sh\n").unwrap();
    let error =
        scripted.launcher.start(7, &instructions(1), &Library::Absent).unwrap_err().to_string();
    assert!(error.contains(&program.display().to_string()), "{error}");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
    let error =
        scripted.launcher.start(7, &instructions(1), &Library::Absent).unwrap_err().to_string();
    assert!(error.contains("EACCES") || error.contains("ermission denied"), "{error}");
}
