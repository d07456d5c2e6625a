//! The file of the library: given by the manager, full or to be filled.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Command};
use std::time::Duration;

use common::{DEADLINE, Session, Setup, compile, faulty, spawn_as, wait_for};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;
use rfaas_protocol::assignment::LibraryFile;
use rfaas_protocol::channel::Incoming;
use rfaas_protocol::library::LibraryHash;
use rfaas_protocol::session::{CodeFrom, FromExecutor};

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

/// A file in memory that has `code`, sealed so.
fn file(code: &[u8], sealed: SealFlag) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"library", flags).unwrap());
    file.write_all(code).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(sealed)).unwrap();
    file
}

/// An executor that is started with this file, and with this pipe's end if it is to fill it.
fn spawn(instructions: &str, library: &File, filled: Option<&File>, setup: &Setup) -> Child {
    let mut instructions: serde_json::Value = serde_json::from_str(instructions).unwrap();
    let kind = if filled.is_some() { LibraryFile::Empty } else { LibraryFile::Sealed };
    instructions["assignment"]["library"] = serde_json::to_value(kind).unwrap();
    let of_ours = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let mut script = "exec \"$0\" 3<>".to_owned() + &of_ours(library);
    if let Some(filled) = filled {
        script += " 4>";
        script += &of_ours(filled);
    } else {
        script = script.replace("<>", "<"); // as it can be opened still
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_executor")]);
    shell.envs(setup.env.iter().map(|(key, value)| (key, value)));
    spawn_as(&mut shell, &instructions.to_string())
}

/// An executor that is to fill `library`; what it closes then is at its end for the one that is returned.
fn spawn_to_fill(code: &[u8], library: &File, setup: &Setup) -> (Session, File) {
    let (filled, of_executor) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let of_executor = File::from(of_executor);
    let session = Session::spawn_by(setup, code, |instructions| {
        spawn(instructions, library, Some(&of_executor), setup)
    });
    // The shell has opened its own by the time that the executor dials.
    wait_for("descriptor 4", || {
        std::fs::exists(format!("/proc/{}/fd/4", session.child.id())).ok().filter(|there| *there)
    });
    (session, filled.into())
}

/// Whether the executor has closed its end of the pipe.
fn is_closed(mut filled: &File) -> bool {
    match filled.read(&mut [0]) {
        Ok(bytes) => bytes == 0,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
            false
        }
    }
}

#[test]
fn a_library_that_the_node_has_is_loaded_without_code_of_the_client() {
    let (setup, code) = (Setup::default(), faulty());
    let library = file(&code, seals());
    let mut session = Session::spawn_by(&setup, &code, |instructions| {
        spawn(instructions, &library, None, &setup)
    });
    session.connect(&setup, &code);
    assert_eq!(session.code_from, Some(CodeFrom::Node));
    session.functions = session.listed().unwrap();
    let echo = session.function("echo");
    assert_eq!(session.workers[0].call(echo, b"abc"), b"abc");
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0));
}

#[test]
fn a_file_to_be_filled_has_the_library_and_is_sealed_before_code_of_it_runs() {
    let setup = Setup { env: vec![("FUNCTION_HANG".into(), "start".into())], ..Setup::default() };
    let code = compile("tests/functions/constructor.c", &[]);
    let library = file(b"", SealFlag::empty());
    let (mut session, filled) = spawn_to_fill(&code, &library, &setup);
    session.connect_control(&setup, &code, Duration::ZERO);
    assert_eq!(session.code_from, Some(CodeFrom::Client));
    wait_for("the end of the pipe, while a constructor hangs", || is_closed(&filled).then_some(()));
    let found = fcntl(&library, FcntlArg::F_GET_SEALS).unwrap();
    assert_eq!(SealFlag::from_bits_retain(found), seals());
    let own = format!("/proc/self/fd/{}", library.as_raw_fd());
    assert!(std::fs::read(own).unwrap() == code, "it has what the client has sent");
    session.terminate();
    session.exit_status();
}

#[test]
fn code_that_is_not_what_was_announced_is_refused_and_its_file_not_sealed() {
    let (setup, announced) = (Setup::default(), faulty());
    let mut sent = announced.clone();
    *sent.last_mut().unwrap() ^= 1;
    let library = file(b"", SealFlag::empty());
    let (mut session, filled) = spawn_to_fill(&announced, &library, &setup);
    assert!(!is_closed(&filled), "it has nothing yet");
    session.connect(&setup, &sent);
    let said = session.control.as_mut().unwrap().receive(DEADLINE).unwrap();
    let Incoming::Message(FromExecutor::CodeDiffers(differs)) = said else { panic!("{said:?}") };
    assert_eq!(differs.received, LibraryHash::of(&sent));
    session.control = None;
    assert_eq!(session.exit_status().code(), Some(3));
    assert!(is_closed(&filled));
    assert_eq!(fcntl(&library, FcntlArg::F_GET_SEALS).unwrap(), 0, "nobody will take it");
}

#[test]
fn a_file_that_can_change_or_is_of_another_size_is_not_loaded() {
    let (setup, code) = (Setup::default(), faulty());
    for library in [
        file(&code, SealFlag::empty()),
        file(&code, seals() - SealFlag::F_SEAL_WRITE),
        file(&code[1..], seals()),
        file(b"", seals()),
    ] {
        let mut session = Session::spawn_by(&setup, &code, |instructions| {
            spawn(instructions, &library, None, &setup)
        });
        session.connect(&setup, &code);
        let error = session.listed().unwrap_err();
        assert!(error.contains("not the library that was announced"), "{error}");
        session.control = None;
        assert_eq!(session.exit_status().code(), Some(3));
    }
}

#[test]
fn an_executor_that_is_not_given_the_file_it_is_told_of_says_so() {
    let (setup, code) = (Setup::default(), faulty());
    let mut session = Session::spawn_by(&setup, &code, |instructions| {
        let instructions = instructions.replace("\"absent\"", "\"sealed\"");
        spawn_as(
            Command::new("sh").args(["-c", "exec \"$0\" 3<&-", env!("CARGO_BIN_EXE_executor")]),
            &instructions,
        )
    });
    let mut said = String::new();
    session.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("the library's file"), "{said}");
    assert_eq!(session.exit_status().code(), Some(2));
}
