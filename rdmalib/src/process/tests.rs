//! Forks of this test program.

use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::*;
use crate::{
    Access, CompletionQueue, Device, DeviceSpec, Domain, Flags, Notify, Operation, Provider,
    QueuePair, QueuePairConfig, Region, Source, State, Status, WorkRequest,
};

const PATIENCE: Duration = Duration::from_secs(30);

struct End {
    pair: QueuePair,
    region: Region,
    completions: CompletionQueue,
    domain: Domain,
    device: Device,
}

fn end() -> End {
    let device = Device::open(&DeviceSpec {
        name: "shm0".into(),
        provider: Provider::Shm,
        ip_address: "127.0.0.78".parse().unwrap(),
        max_inline_data: 64,
    })
    .unwrap();
    let domain = device.domain().unwrap();
    let completions = device.completion_queue(64).unwrap();
    let config = QueuePairConfig {
        send_depth: 16,
        receive_depth: 16,
        max_inline_data: 64,
        ..Default::default()
    };
    let pair = QueuePair::new(&domain, &completions, &completions, &config).unwrap();
    let region = domain.allocate(4096, Access::all()).unwrap();
    End { pair, region, completions, domain, device }
}

fn connected() -> [End; 2] {
    let (mut server, mut client) = (end(), end());
    let mut listener = server.device.listen(0).unwrap();
    let to = listener.local_addr();
    std::thread::scope(|scope| {
        scope.spawn(|| client.pair.connect(to, &[], PATIENCE).unwrap());
        let request = listener.next(PATIENCE).unwrap().unwrap();
        request.accept(&mut server.pair, &[]).unwrap();
    });
    [server, client]
}

fn next(queue: &mut CompletionQueue) -> crate::WorkCompletion {
    let start = std::time::Instant::now();
    loop {
        match queue.poll_one() {
            Some(completion) => return completion,
            None => assert!(start.elapsed() < PATIENCE, "no completion comes"),
        }
    }
}

/// Sends 8 bytes from one end into the region of the other.
fn write(from: &mut End, to: &mut End, value: u64) {
    to.pair.post_receive(1, None).unwrap();
    let bytes = value.to_ne_bytes();
    let request = WorkRequest {
        id: 2,
        operation: Operation::Write {
            source: Source::Inline(&bytes),
            to: to.region.remote(),
            immediate: Some(3),
        },
        flags: Flags::SIGNALED,
    };
    from.pair.post(&request).unwrap();
    assert_eq!(next(&mut from.completions).status, Status::Success);
    assert_eq!(next(&mut to.completions).immediate, Some(3));
    assert_eq!(to.region.load_u64(0).unwrap(), value);
}

/// The child's exit status is the number of the first fact that does not hold.
fn facts(ends: [End; 2]) -> i32 {
    let [mut one, other] = ends;
    let request = WorkRequest {
        id: 9,
        operation: Operation::Send { source: Source::Inline(&[1]), immediate: None },
        flags: Flags::SIGNALED,
    };
    let forked = |error: Option<Error>| matches!(error, Some(Error::Forked));
    let held = [
        one.pair.state() == State::Error,
        forked(one.pair.post(&request).err()),
        forked(one.pair.post_receive(9, None).err()),
        forked(one.domain.allocate(4096, Access::all()).err()),
        forked(one.device.domain().err()),
        forked(one.device.completion_queue(1).err()),
        forked(one.device.listen(0).err()),
        forked(one.region.write(0, &[0xff; 8]).err()),
        forked(one.region.fill(0..8, 0xff).err()),
        forked(one.region.store_u64(0, 1).err()),
        forked(one.region.read(0, &mut [0; 8]).err()),
        forked(one.region.load_u64(0).err()),
        forked(one.pair.connect(([127, 0, 0, 78], 1).into(), &[], PATIENCE).err()),
        one.completions.poll_one().is_none(),
        forked(one.completions.arm(Notify::Any).err()),
        forked(one.completions.wait(Some(PATIENCE)).err()),
        forked(one.completions.acknowledge().err()),
    ];
    one.completions.waker().wake();
    one.pair.disconnect();
    drop((one, other));
    // What is the child's own works.
    let [mut one, mut other] = connected();
    write(&mut one, &mut other, 7);
    drop((one, other));
    held.iter().position(|held| !held).map_or(0, |fact| fact as i32 + 1)
}

#[test]
fn a_child_neither_uses_nor_ends_what_it_inherits() {
    let [mut one, mut other] = connected();
    write(&mut one, &mut other, 1);
    write(&mut other, &mut one, 2);
    // SAFETY: the child uses what glibc makes usable after a fork (memory, threads of its own) and
    // what this module promises, and ends without running what the test's process would at its end.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let facts =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| facts([one, other])));
            // SAFETY: ends the child, whatever it holds.
            unsafe { libc::_exit(facts.unwrap_or(99)) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
    assert_eq!((one.pair.state(), other.pair.state()), (State::Connected, State::Connected));
    assert_eq!(one.region.load_u64(0).unwrap(), 2);
    write(&mut one, &mut other, 3);
    write(&mut other, &mut one, 4);
}

#[test]
fn a_mark_is_not_that_of_a_child_which_can_make_its_own() {
    let mark = ForkMark::new();
    assert!(mark.is_here() && ForkMark::new().is_here());
    // SAFETY: the child makes atomic accesses and ends at once.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let own = ForkMark::new();
            let right = !mark.is_here() && own.is_here() && own.number != mark.number;
            // SAFETY: _exit(2) has no preconditions.
            unsafe { libc::_exit(if right { 42 } else { 1 }) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 42));
        }
    }
    assert!(mark.is_here());
}
