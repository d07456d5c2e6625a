//! An executor that stands by: it does all that depends on no lease, and waits for one.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

mod common;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{
    DEADLINE, Manager, Session, Setup, assignment, compile, device, eventually, faulty, standby,
};
use rfaas_program::local_channel::{LocalChannel, to_file};
use rfaas_program::sealed_file;
use rfaas_protocol::Empty;
use rfaas_protocol::assignment::{AssignedSandbox, Instructions, LibraryFile, PreloadedLibrary};
use rfaas_protocol::isolation::{Layer, NetworkPolicy, SandboxSettings, UserRange};
use rfaas_protocol::launch::{FromStandby, ToStandby};
use rfaas_protocol::library::LibraryHash;
use rfaas_protocol::session::CodeFrom;

/// Workers that it is made for.
const MOST_WORKERS: u16 = 3;

/// A sandbox that every user may have.
fn sandbox() -> AssignedSandbox {
    let settings = SandboxSettings {
        layers: [Layer::NoNewPrivileges].into_iter().collect(),
        view: vec![],
        users: UserRange::default(),
        network: NetworkPolicy::None,
        rdma: false,
    };
    AssignedSandbox { settings, user: 0 }
}

struct Standing {
    session: Session,
    channel: LocalChannel,
}

/// Starts one, with the channel as descriptor 3 and the library to be loaded before as 4, from files in `directory`.
fn spawn(
    setup: &Setup,
    manager: &Manager,
    channel: OwnedFd,
    (early, sandbox): (Option<&[u8]>, Option<AssignedSandbox>),
    directory: &Path,
) -> Child {
    let input = directory.join("instructions.json");
    let mut standby = standby(setup, manager.listener.local_addr(), MOST_WORKERS);
    standby.sandbox = sandbox;
    let library = early.map(|code| {
        let preloaded = PreloadedLibrary { hash: LibraryHash::of(code), bytes: code.len() as u32 };
        standby.preload.push(preloaded);
        let mut file = File::from(sealed_file::create(c"early").unwrap());
        file.write_all(code).unwrap();
        sealed_file::seal(&file).unwrap();
        file
    });
    let instructions = Instructions { standby, assignment: None };
    fs::write(&input, serde_json::to_string(&instructions).unwrap()).unwrap();
    let mut script = r#"exec 3<&0; exec "$0" < "$1""#.to_owned();
    if let Some(library) = &library {
        script += &format!(" 4< /proc/{}/fd/{}", std::process::id(), library.as_raw_fd());
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_executor")]);
    let child = shell.arg(input).stdin(channel).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the library is open", || {
        library.is_none() || fs::exists(format!("/proc/{}/fd/4", child.id())).unwrap_or(false)
    });
    child
}

/// The name of the process, proc_pid_comm(5).
fn name(id: u32) -> String {
    fs::read_to_string(format!("/proc/{id}/comm")).unwrap().trim().to_owned()
}

impl Standing {
    fn new(setup: &Setup) -> Self {
        Standing::with(setup, None, None)
    }

    /// One that has loaded `early` and is confined by `sandbox`.
    fn with(setup: &Setup, early: Option<&[u8]>, sandbox: Option<AssignedSandbox>) -> Self {
        let device = device();
        let manager = Manager::new(&device);
        let (channel, theirs) = LocalChannel::pair().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let theirs = theirs.as_fd().try_clone_to_owned().unwrap();
        let child = spawn(setup, &manager, theirs, (early, sandbox), directory.path());
        let listener = device.listen(0).unwrap();
        let mut session = Session::of(device, child, manager, listener);
        for _ in 0..2 {
            let request = session.manager.listener.next(DEADLINE).unwrap().expect("it dials");
            session.manager.accept(&session.device, request);
        }
        let (FromStandby::Ready(_), _) = channel.receive(Some(DEADLINE)).unwrap();
        assert_eq!(name(session.child.id()), "standby");
        Standing { session, channel }
    }

    /// Gives it a lease of `setup`, whose `/tmp` grows when what is returned is dropped.
    fn assign(&self, setup: &Setup, code: &[u8]) -> io::PipeWriter {
        self.assign_with(setup, code, LibraryFile::Absent)
    }

    fn assign_with(&self, setup: &Setup, code: &[u8], library: LibraryFile) -> io::PipeWriter {
        let mut assignment = assignment(setup, self.session.listener.local_addr(), code);
        assignment.library = library;
        let file = to_file(c"assignment", &assignment).unwrap();
        let (grown, growing) = io::pipe().unwrap();
        let given = [file.as_fd(), grown.as_fd()];
        self.channel.send(&ToStandby::Assign(Empty {}), &given).unwrap();
        growing
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        self.session.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }
}

#[test]
fn it_serves_the_lease_that_comes() {
    let code = faulty();
    for workers in [1, MOST_WORKERS] {
        let setup = Setup { workers, ..Setup::default() };
        let mut standing = Standing::new(&setup);
        drop(standing.assign(&setup, &code));
        drop(standing.channel); // it has all that it needs
        let session = &mut standing.session;
        session.connect(&setup, &code);
        session.functions = session.listed().unwrap();
        let echo = session.function("echo");
        for worker in &mut session.workers {
            assert_eq!(worker.call(echo, b"abc"), b"abc");
        }
        assert_eq!(name(session.child.id()), "executor");
        session.terminate();
        assert_eq!(session.exit_status().code(), Some(0));
        assert_eq!(session.manager.invocations(), u64::from(workers));
    }
}

#[test]
fn a_library_that_it_has_loaded_before_is_served_and_another_one_as_well() {
    let setup = Setup::default();
    let early = compile("tests/functions/inherited.c", &[]);
    let mut standing = Standing::with(&setup, Some(&early), None);
    let maps = format!("/proc/{}/maps", standing.session.child.id());
    let mapped = || fs::read_to_string(&maps).unwrap().contains("/memfd:early");
    assert!(mapped(), "before there is a lease");
    drop(standing.assign_with(&setup, &early, LibraryFile::Preloaded));
    let session = &mut standing.session;
    session.connect(&setup, &early);
    assert_eq!(session.code_from, Some(CodeFrom::Node), "nobody sends it");
    session.functions = session.listed().unwrap();
    let shell = session.function("shell");
    assert_eq!(session.workers[0].call(shell, b"echo here"), b"here\n");

    let other = faulty();
    let mut standing = Standing::with(&setup, Some(&early), None);
    drop(standing.assign(&setup, &other));
    let session = &mut standing.session;
    session.connect(&setup, &other);
    session.functions = session.listed().unwrap();
    let echo = session.function("echo");
    assert_eq!(session.workers[0].call(echo, b"abc"), b"abc");
}

/// What becomes of the pipe that says that `/tmp` is as large as the lease has memory.
type Growing = fn(&mut Option<io::PipeWriter>);

#[test]
fn in_a_sandbox_it_serves_when_its_tmp_has_grown_and_else_runs_no_foreign_code() {
    let grows: Growing = |growing| *growing = None;
    let fails: Growing = |growing| growing.take().unwrap().write_all(&[1]).unwrap();
    let is_never_told: Growing = |_| {};
    for (growth, serves) in [(grows, true), (fails, false), (is_never_told, false)] {
        let setup = Setup::default();
        // Its constructor would print.
        let code = compile("tests/functions/early.c", &[]);
        let mut standing = Standing::with(&setup, None, Some(sandbox()));
        let mut growing = Some(standing.assign(&setup, &code));
        growth(&mut growing);
        standing.session.connect(&setup, &code);
        if serves {
            standing.session.functions = standing.session.listed().unwrap();
            standing.session.terminate();
        }
        assert_eq!(standing.session.exit_status().code(), Some(if serves { 0 } else { 1 }));
        let said = standing.said();
        assert_eq!(said.contains("constructed"), serves, "{said}");
        assert_eq!(said.contains("/tmp is not as large as the memory"), !serves, "{said}");
    }
}

#[test]
fn it_ends_with_its_manager_and_on_its_word() {
    let setup = Setup::default();
    let mut deserted = Standing::new(&setup);
    drop(deserted.channel);
    assert_eq!(deserted.session.exit_status().code(), Some(0));
    let mut asked = Standing::new(&setup);
    asked.session.terminate();
    assert_eq!(asked.session.exit_status().code(), Some(0));
    let mut cut_off = Standing::new(&setup);
    cut_off.session.manager.connections.pop();
    assert_eq!(cut_off.session.exit_status().code(), Some(0));
}

#[test]
fn it_takes_no_assignment_that_it_is_not_made_for() {
    let setup = Setup { workers: MOST_WORKERS + 1, ..Setup::default() };
    let mut standing = Standing::new(&setup);
    drop(standing.assign(&setup, b"code"));
    assert_eq!(standing.session.exit_status().code(), Some(2));
    let said = standing.said();
    assert!(said.contains("at most 3") && said.lines().count() == 1, "{said}");
}

#[test]
fn what_is_no_assignment_ends_it_in_one_line() {
    let mut standing = Standing::new(&Setup::default());
    let file: File = to_file(c"assignment", &"nonsense").unwrap();
    standing.channel.send(&ToStandby::Assign(Empty {}), &[file.as_fd()]).unwrap();
    assert_eq!(standing.session.exit_status().code(), Some(1));
    let said = standing.said();
    assert!(said.contains("the assignment") && said.lines().count() == 1, "{said}");
}
