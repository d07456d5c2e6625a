//! Defects of the original's executor that can be provoked from outside. Each test provokes one and
//! shows the right behaviour.
//!
//! Elsewhere: it dies with its manager, libraries that cannot be loaded, signals (`lifecycle`).

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

mod common;

use std::fs;

use common::{Session, Setup, eventually, faulty};

/// Names of the threads of a process.
fn threads(session: &Session) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", session.child.id())).unwrap();
    // A thread may end between the two.
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(|task| name(task.unwrap())).map(|name| name.trim().to_owned()).collect()
}

/// What the descriptors of a process are, and where its executable mappings come from.
fn open(session: &Session) -> (Vec<String>, Vec<String>) {
    let process = format!("/proc/{}", session.child.id());
    let links = fs::read_dir(format!("{process}/fd")).unwrap();
    let links = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
    let maps = fs::read_to_string(format!("{process}/maps")).unwrap();
    let code = maps.lines().filter(|line| line.contains(" r-xp ")).map(str::to_owned).collect();
    (links.map(|link| link.to_string_lossy().into_owned()).collect(), code)
}

#[test]
fn workers_share_one_library_however_many_they_are() {
    let library = |workers| {
        let mut session = Session::start(&Setup { workers, ..Setup::default() }, &faulty());
        let echo = session.function("echo");
        for worker in &mut session.workers {
            assert_eq!(worker.call(echo, b"abc"), b"abc");
        }
        let (descriptors, code) = open(&session);
        let ours = |name: &&String| name.contains("memfd:functions");
        (code.iter().filter(ours).count(), descriptors.iter().filter(ours).count())
    };
    assert_eq!((library(1), library(4)), ((1, 1), (1, 1)), "mappings and descriptors");
}

#[test]
fn a_worker_whose_connection_is_gone_is_gone_too() {
    for hot_timeout_ms in [-1, 0] {
        let setup = Setup { workers: 2, hot_timeout_ms, ..Setup::default() };
        let mut session = Session::start(&setup, &faulty());
        let echo = session.function("echo");
        assert!(threads(&session).contains(&"worker-0".into()));
        drop(session.workers.remove(0));
        eventually("the end of the worker", || !threads(&session).contains(&"worker-0".into()));
        assert_eq!(session.workers[0].call(echo, b"abc"), b"abc");
    }
}
