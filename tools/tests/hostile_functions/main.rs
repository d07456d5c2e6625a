//! Hostile functions: each of a library of them is called by a client of its own, beside an honest
//! neighbour. What the client got, after how long, what was left and whether it was contained is
//! printed, a row each.
//!
//! ```text
//! test ──unshare──▶ table, process 1 of a pid namespace ──▶ managers ──▶ executors: neighbour, attacker
//!                     │ the neighbour's client, the next client                         ▲
//!                     └──▶ the attacker's client, a process ────────────────────────────┘
//! ```
//! * A function that kills everything that it may ends nothing of the machine: the table is process
//!   1 of its namespace, which no signal from inside ends. All that is left at the end ends with it.
//! * Bombs stop by themselves (`library/takes.cpp`), and nothing that they start lives for more than a
//!   minute.
//! * Contained is what leaves managers, neighbour and next client as they were, leaves nothing
//!   behind, and reaches nothing that is not of its lease (`table`).
//! * A row has to be contained if the node has a layer of isolation that contains it, or none is needed
//!   (`attacks`). The others are shown.
//!
//! Elsewhere: hostile clients and strangers (`strangers`), what a peer writes into shared memory
//! (`rdmalib/src/providers/shm/hostile.rs`).

#![allow(clippy::unwrap_used)] // what does not hold panics; that is what a test does

mod attacks;
mod client;
mod left;
mod libraries;
mod neighbour;
mod scene;
mod table;

use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Trial};

use table::Isolation;

/// The longest that a table takes, unless it hangs.
const LONGEST: Duration = Duration::from_secs(600);

fn main() {
    if client::is_wanted() {
        return client::act();
    }
    if let Some(isolation) = Isolation::wanted() {
        return table::act(isolation);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1); // each has the processors to itself
    let trials = Isolation::ALL.map(|isolation| match impossible() {
        Some(why) => {
            Trial::ignorable_test(isolation.fact(), move || Ok(Completion::ignored_with(why)))
        }
        None => Trial::test(isolation.fact(), move || {
            let status = in_a_namespace(isolation);
            assert!(status.success(), "the table was not printed to its end: {status}");
            Ok(())
        }),
    });
    libtest_mimic::run(&arguments, trials.into()).exit();
}

/// Why there can be no such table here.
fn impossible() -> Option<&'static str> {
    let possible = namespace().arg("true").stderr(Stdio::null()).status();
    match possible {
        Ok(status) if status.success() => None,
        Ok(_) => Some("needs a pid namespace: root, or user namespaces for everybody"),
        Err(_) => Some("needs the program unshare (util-linux)"),
    }
}

/// Runs what comes behind it as process 1 of a pid namespace, which ends with it.
fn namespace() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
}

fn in_a_namespace(isolation: Isolation) -> ExitStatus {
    let mut command = namespace();
    command.arg(std::env::current_exe().unwrap()).stdin(Stdio::null());
    isolation.tell(&mut command);
    let mut child = command.spawn().unwrap();
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begin.elapsed() > LONGEST {
            child.kill().unwrap(); // and with it the namespace
            child.wait().unwrap();
            panic!("the table hangs");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
