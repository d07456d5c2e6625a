//! Hot invocations make no system call, neither in the client's thread nor in the worker's: strace(1) is attached to
//! one after the other while calls go on.
//!
//! ```text
//!   client's thread   ┌▶ getppid ──▶ call `mark`: getppid in the worker ──▶ call `echo` 10,000 times ─┐
//!                     └──────────────────────── until told to stop ◀──────────────────────────────────┘
//! ```
//! * The calls of a thread between two getppid of its own are those of one round; nothing else makes that call.
//! * A wait that takes longer than some 50 µs gives the CPU away now and then
//!   (sched_yield): nobody can answer faster whose CPU somebody else has. Each side has a CPU of
//!   its own here, but so has the rest of the machine. So a round may have such calls, and no
//!   others; and there must be one without any. A call that hot invocations make by themselves is
//!   in every round.
//! * Each stop of a traced thread looks to it as if its CPU were crowded, so that it yields more for 100 ms
//!   (`executor/src/spin.rs`), which stops it again. So a trace is short, and there are many.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid, gettid};
use rfaas::{Executor, Spin};
use testkit::functions::c_library;
use testkit::run::{source, start, system_tool};
use testkit::service::{cluster, deploy, warm};
use testkit::wait::{deadline, one_at_a_time};
use testkit::{LocalCluster, Options};

/// Payload of a call.
const BYTES: usize = 64;
/// How long one trace lasts: tens of rounds.
const TRACE: Duration = Duration::from_millis(1_500);
/// Time between two traces, longer than a worker thinks that its CPU is crowded.
const FRESH: Duration = Duration::from_millis(200);

/// A thread that calls without a pause, as in the picture above, until it is dropped.
struct Caller {
    id: i32,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Caller {
    fn start(mut executor: Executor, calls: u32) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let (told, id) = channel();
        let thread = thread::spawn(move || {
            move_to_the_last_cpu(); // pinned workers have the first
            let [mark, echo] = ["mark", "echo"].map(|name| executor.function(name).unwrap());
            let (input, mut output) =
                (executor.input(BYTES).unwrap(), executor.output(BYTES).unwrap());
            told.send(gettid().as_raw()).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                getppid();
                executor.invoke(&mark, &input, &mut output).unwrap();
                for _ in 0..calls {
                    executor.invoke(&echo, &input, &mut output).unwrap();
                }
            }
        });
        Caller { id: id.recv().unwrap(), stop, thread: Some(thread) }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "an invocation failed");
    }
}

fn move_to_the_last_cpu() {
    let this = Pid::from_raw(0);
    let ours = sched_getaffinity(this).unwrap();
    let last = (0..CpuSet::count()).rev().find(|cpu| ours.is_set(*cpu).unwrap()).unwrap();
    let mut only = CpuSet::new();
    only.set(last).unwrap();
    sched_setaffinity(this, &only).unwrap();
}

/// The cluster's only worker: its thread.
fn worker(cluster: &LocalCluster) -> i32 {
    let [executor] = cluster.executors_running()[..] else { panic!("one executor") };
    let mut threads = fs::read_dir(format!("/proc/{executor}/task")).unwrap().flatten();
    let worker = threads.find(|thread| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.trim() == "worker-0")
    });
    worker
        .expect("a worker has its number for a name")
        .file_name()
        .to_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// Names of the system calls that `thread` makes within [`TRACE`], by round; whole rounds only.
fn trace(thread: i32, file: &Path) -> Vec<Vec<String>> {
    let mut strace = Command::new("strace");
    strace.args(["-e", "signal=none", "-p", &thread.to_string(), "-o"]).arg(file);
    let mut strace = start(strace);
    strace.says("attached");
    thread::sleep(TRACE);
    strace.signal(Signal::SIGINT); // lets go of the thread
    strace.finish();
    let text = fs::read_to_string(file).unwrap();
    let mut rounds = vec![];
    for call in text.lines().filter_map(|line| Some(line.split_once('(')?.0)) {
        match (call, rounds.last_mut()) {
            ("getppid", _) => rounds.push(vec![]),
            (_, None) => {} // the end of the round that we came into
            (_, Some(round)) => round.push(call.to_owned()),
        }
    }
    rounds.pop(); // we left within it
    rounds
}

/// A cluster with a worker that spins as told, and a client that has it make `calls` calls a round.
fn calling(spin: Spin, calls: u32) -> (LocalCluster, Caller) {
    system_tool("strace");
    let cluster = cluster(Options { pin_threads: true, ..Options::default() });
    let library =
        c_library(cluster.directory(), "mark", &source("tools/testkit/functions/mark.c"), &[]);
    let executor = deploy(&cluster.client().unwrap(), 1, &library, &warm().spin(spin));
    let caller = Caller::start(executor, calls);
    (cluster, caller)
}

#[test]
#[ignore = "needs two CPUs, strace, and the permission to trace processes"]
fn ten_thousand_hot_invocations_make_no_system_call_on_either_side() {
    let _alone = one_at_a_time();
    let (cluster, caller) = calling(Spin::Always, 10_000);
    let file = cluster.directory().join("trace");
    for (side, thread) in [("client", caller.id), ("worker", worker(&cluster))] {
        let begin = Instant::now();
        let mut disturbed = 0;
        loop {
            let rounds = trace(thread, &file);
            for call in rounds.iter().flatten() {
                assert_eq!(call, "sched_yield", "a call of the {side} that no wait explains");
            }
            if rounds.iter().any(|round| round.is_empty()) {
                break;
            }
            disturbed += rounds.len();
            assert!(
                begin.elapsed() < deadline(),
                "the {side} yields in each of {disturbed} rounds; the last: {:?}",
                rounds.last().map(Vec::len)
            );
            thread::sleep(FRESH);
        }
    }
    drop(caller);
    cluster.stop().unwrap();
}

/// The same tracer sees what warm invocations do.
#[test]
#[ignore = "needs two CPUs, strace, and the permission to trace processes"]
fn warm_invocations_make_system_calls_on_both_sides() {
    let _alone = one_at_a_time();
    let (cluster, caller) = calling(Spin::Never, 10);
    let file = cluster.directory().join("trace");
    for thread in [caller.id, worker(&cluster)] {
        let rounds = trace(thread, &file);
        assert!(!rounds.is_empty());
        assert!(rounds.iter().all(|round| !round.is_empty()), "{rounds:?}");
    }
    drop(caller);
    cluster.stop().unwrap();
}
