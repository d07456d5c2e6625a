//! A client that means harm to its executor, and through it to the node or to other tenants: what it
//! announces and does not send, and calls into memory that is not its own.
//!
//! Elsewhere: requests that make no sense (`invocations`), what a peer does to the device
//! (`rdmalib/src/providers/shm/hostile.rs`).

mod common;

use std::io::Read;
use std::time::Duration;

use common::{Session, Setup, exit_status, faulty, spawn};
use nix::sys::resource::{UsageWho, getrusage};

/// Two gigabytes, which a lease of as much memory may announce.
const ANNOUNCED: u32 = 2 << 30;
/// What a child of this test may have had of memory at most, in KiB: compilers too.
const MEMORY_KIB: i64 = 256 << 10;

#[test]
fn two_gigabytes_of_code_that_are_announced_and_not_sent_take_no_memory() {
    let byte = [0x7f];
    let setup = Setup::default();
    let mut session = Session::spawn_by(&setup, &byte, |instructions| {
        let announced = format!("\"code_bytes\":{ANNOUNCED}");
        let lies = instructions.replace("\"code_bytes\":1", &announced);
        assert!(lies.contains(&announced), "{instructions}");
        spawn(&lies, &setup.env)
    });
    session.connect_control(&setup, &byte, Duration::ZERO);
    let status = exit_status(&mut session.child);
    assert_eq!(status.code(), Some(1), "{status:?}");
    let mut log = String::new();
    session.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains(&format!("sent 1 bytes of code instead of {ANNOUNCED}")), "{log}");
    let most = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss();
    assert!(most < MEMORY_KIB, "{most} KiB");
}

#[test]
fn code_that_is_announced_and_of_which_no_byte_is_sent_is_not_waited_for_for_ever() {
    let setup = Setup::default();
    let mut session = Session::spawn_by(&setup, &[], |instructions| {
        let lies = instructions.replace("\"code_bytes\":0", "\"code_bytes\":1000");
        assert_ne!(lies, instructions);
        spawn(&lies, &setup.env)
    });
    session.connect(&setup, &[]);
    let status = exit_status(&mut session.child);
    assert_eq!(status.code(), Some(1), "{status:?}");
    let mut log = String::new();
    session.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("the client sent no code within") && log.lines().count() == 1, "{log}");
}

#[test]
fn a_call_into_a_slot_of_another_tenant_is_never_made() {
    let mut honest = Session::start(&Setup::default(), &faulty());
    let count = honest.function("count");
    assert_eq!(honest.workers[0].call(count, &[]), 1_u32.to_ne_bytes());
    let theirs = honest.workers[0].hello;
    // Its address and key, and what is near them.
    for (far, near) in [(0, 0), (64, 0), (0, 1), (0, u64::MAX), (1 << 20, 0)] {
        let mut hostile = Session::start(&Setup::default(), &faulty());
        let worker = &mut hostile.workers[0];
        worker.hello.input_addr = theirs.input_addr.get().wrapping_add(far).into();
        worker.hello.input_key = theirs.input_key.get().wrapping_add(near).into();
        worker.submit(0, count, &[]);
        // An answer is that of its own worker: two processes may give out the same numbers.
        if let Some(reply) = worker.reply() {
            assert_eq!((far, near), (0, 0), "{reply:?}");
        }
    }
    assert_eq!(honest.workers[0].call(count, &[]), 2_u32.to_ne_bytes());
}
