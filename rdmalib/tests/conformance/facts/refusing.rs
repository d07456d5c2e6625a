//! What is not allowed fails, with the right status, and changes nothing.

use rdmalib::{
    Access, Error, Flags, Operation, QueuePair, QueuePairConfig, Region, RemoteAddress, RnrRetry,
    Source, State, Status, WorkRequest,
};

use crate::Fixture;
use crate::ends::*;

/// Writes sixteen bytes to `to` and asserts the failure; the queue pair is over after that.
fn is_refused(client: &mut End, to: RemoteAddress, target: &Region) {
    let before = bytes(target);
    let source = client.region(16);
    source.fill(0..16, 0xff).unwrap();
    assert_eq!(client.run(write(&source, 0..16, to)), Status::RemoteAccessError);
    assert_eq!(bytes(target), before);
    assert_eq!(client.pair.state(), State::Error);
}

pub fn a_wrong_key_changes_no_memory(fixture: &Fixture) {
    for wrong in [1, 1 << 13, u64::from(u32::MAX / 2)] {
        let (server, mut client) = ends(fixture);
        let target = server.region(64);
        let at = target.remote();
        is_refused(&mut client, RemoteAddress { key: at.key.wrapping_add(wrong), ..at }, &target);
    }
}

/// While posting where the provider's keys are narrower, else like any wrong key.
pub fn a_key_wider_than_any_that_is_handed_out_changes_no_memory(fixture: &Fixture) {
    for wide in [1 << 32, 1 << 63] {
        let (server, mut client) = ends(fixture);
        let target = server.region(64);
        let source = client.region(16);
        source.fill(0..16, 0xff).unwrap();
        let to = RemoteAddress { key: target.remote().key | wide, ..target.remote() };
        let operation = write(&source, 0..16, to);
        match client.pair.post(&WorkRequest { id: 1, operation, flags: Flags::SIGNALED }) {
            Ok(()) => assert_eq!(next(&mut client.sends).status, Status::RemoteAccessError),
            Err(error) => assert!(matches!(error, Error::RemoteAccess), "{error:?}"),
        }
        assert_eq!(bytes(&target), [0; 64]);
    }
}

pub fn a_key_of_another_domain_changes_no_memory(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let other = server.device.domain().unwrap();
    let target = other.allocate(64, ALL).unwrap();
    is_refused(&mut client, target.remote(), &target);
}

pub fn a_freed_region_cannot_be_reached(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let target = server.region(64);
    let source = client.region(16);
    assert_eq!(client.run(write(&source, 0..16, target.remote())), Status::Success);
    let at = target.remote();
    drop(target);
    let successor = server.region(64);
    is_refused(&mut client, at, &successor);
}

pub fn an_address_outside_of_the_region_changes_no_memory(fixture: &Fixture) {
    for offset in [49, 64, 1 << 40, u64::MAX, 0u64.wrapping_sub(8)] {
        let (server, mut client) = ends(fixture);
        let target = server.region(64);
        let neighbour = server.region(64);
        is_refused(&mut client, target.remote().offset(offset), &target);
        assert!(bytes(&neighbour).iter().all(|byte| *byte == 0));
    }
}

pub fn a_write_that_comes_with_its_completion_is_refused_like_any_other(fixture: &Fixture) {
    for wrong in 0..4 {
        let (mut server, mut client) = ends(fixture);
        let (target, protected) =
            (server.region(64), server.domain.allocate(64, ALL - Access::REMOTE_WRITE).unwrap());
        server.post_receives(0..1);
        let source = client.region(16);
        source.fill(0..16, 0xff).unwrap();
        let at = target.remote();
        let to = match wrong {
            0 => RemoteAddress { key: at.key.wrapping_add(1), ..at },
            1 => at.offset(49),
            2 => at.offset(0u64.wrapping_sub(8)),
            _ => protected.remote(),
        };
        client.post(0, write_imm(&source, 0..16, to, 7), Flags::WITH_COMPLETION);
        assert_eq!(next(&mut client.sends).status, Status::RemoteAccessError);
        assert_ne!(next(&mut server.receives).status, Status::Success);
        assert!(bytes(&target).iter().chain(&bytes(&protected)).all(|byte| *byte == 0));
    }
}

pub fn a_missing_right_fails_the_request(fixture: &Fixture) {
    let remote = [Access::REMOTE_WRITE, Access::REMOTE_READ, Access::REMOTE_ATOMIC];
    for (n, missing) in remote.into_iter().enumerate() {
        let (server, mut client) = ends(fixture);
        let target = server.domain.allocate(64, ALL - missing).unwrap();
        let before = bytes(&target);
        let local = client.region(16);
        local.fill(0..16, 0xff).unwrap();
        let (into, at) = (local.slice(0..8).unwrap(), target.remote());
        let status = match n {
            0 => client.run(write(&local, 0..8, at)),
            1 => client.run(Operation::Read { into, from: at }),
            _ => client.run(Operation::FetchAdd { into, at, add: 1 }),
        };
        assert_eq!(status, Status::RemoteAccessError);
        assert_eq!(bytes(&target), before);
        assert!(bytes(&local).iter().all(|byte| *byte == 0xff));
    }
}

pub fn a_read_into_protected_memory_fails(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let from = server.region(64);
    from.fill(0..64, 1).unwrap();
    let into = client.domain.allocate(64, Access::REMOTE_READ).unwrap();
    let read = Operation::Read { into: into.slice(0..8).unwrap(), from: from.remote() };
    assert_eq!(client.run(read), Status::LocalProtectionError);
    assert!(bytes(&into).iter().all(|byte| *byte == 0));
}

pub fn a_receive_into_protected_memory_is_refused(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let protected = server.domain.allocate(64, Access::REMOTE_READ).unwrap();
    let refused = server.pair.post_receive(1, Some(protected.slice(0..8).unwrap()));
    assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    // Nothing was posted, and nothing was harmed.
    server.post_receives(2..3);
    let message = Operation::Send { source: Source::Inline(&[]), immediate: None };
    assert_eq!(client.run(message), Status::Success);
    assert_eq!(next(&mut server.receives).id, 2);
}

pub fn a_misaligned_atomic_is_refused(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let (word, old) = (server.region(64), client.region(8));
    let at = word.remote().offset(4);
    let into = || old.slice(0..8).unwrap();
    for operation in [
        Operation::FetchAdd { into: into(), at, add: 1 },
        Operation::CompareSwap { into: into(), at, expect: 0, swap: 1 },
    ] {
        let request = WorkRequest { id: 0, operation, flags: Flags::SIGNALED };
        let refused = client.pair.post(&request);
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    }
    assert!(bytes(&word).iter().all(|byte| *byte == 0));
    let add = Operation::FetchAdd { into: into(), at: word.remote().offset(8), add: 1 };
    assert_eq!(client.run(add), Status::Success); // nothing was harmed
}

pub fn a_message_longer_than_its_receive_fails_both_sides(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let buffer = server.region(64);
    server.pair.post_receive(3, Some(buffer.slice(0..4).unwrap())).unwrap();
    let message = Operation::Send { source: Source::Inline(&[9; 5]), immediate: None };
    assert_eq!(fixture.status(client.run(message)), Status::RemoteInvalidRequest);
    let done = next(&mut server.receives);
    assert_eq!((done.id, fixture.status(done.status)), (3, Status::LocalLengthError));
    assert_eq!(server.pair.state(), State::Error);
}

pub fn an_unsignaled_request_that_fails_completes(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let (source, target) = (client.region(8), server.region(8));
    client.post(1, write(&source, 0..8, target.remote()), Flags::empty());
    let wrong = RemoteAddress { key: 0, ..target.remote() };
    client.post(2, write(&source, 0..8, wrong), Flags::empty());
    client.post(3, write(&source, 0..8, target.remote()), Flags::empty());
    let done = next(&mut client.sends);
    assert_eq!((done.id, done.status), (2, Status::RemoteAccessError));
    let done = next(&mut client.sends);
    assert_eq!((done.id, done.status), (3, Status::Flushed));
}

pub fn a_full_send_queue_is_an_error_not_a_wait(fixture: &Fixture) {
    let config = QueuePairConfig { send_depth: 4, ..QueuePairConfig::default() };
    let (server, mut client) = ends_with(fixture, &config);
    let (source, target) = (client.region(8), server.region(8));
    let request =
        |flags| WorkRequest { id: 1, operation: write(&source, 0..8, target.remote()), flags };
    for _ in 0..3 {
        client.pair.post(&request(Flags::empty())).unwrap();
    }
    client.pair.post(&request(Flags::SIGNALED)).unwrap();
    let full = client.pair.post(&request(Flags::SIGNALED));
    assert!(matches!(full, Err(Error::QueueFull { depth: 4 })), "{full:?}");
    // The polled completion makes room for itself and for those before it.
    next(&mut client.sends);
    for _ in 0..4 {
        client.pair.post(&request(Flags::SIGNALED)).unwrap();
    }
    let (posted, full) = client.pair.post_list(&[request(Flags::SIGNALED); 2]);
    assert!(posted == 0 && matches!(full, Err(Error::QueueFull { .. })));
}

pub fn a_full_receive_queue_is_an_error(fixture: &Fixture) {
    let config = QueuePairConfig { receive_depth: 3, ..QueuePairConfig::default() };
    let (mut server, mut client) = ends_with(fixture, &config);
    server.post_receives(0..3);
    let full = server.pair.post_receive(9, None);
    assert!(matches!(full, Err(Error::QueueFull { depth: 3 })), "{full:?}");
    let message = Operation::Send { source: Source::Inline(&[]), immediate: None };
    assert_eq!(client.run(message), Status::Success);
    next(&mut server.receives);
    server.post_receives(3..4);
    assert!(server.pair.post_receive(9, None).is_err());
}

pub fn too_much_inline_data_is_refused(fixture: &Fixture) {
    let config = QueuePairConfig { max_inline_data: 16, ..QueuePairConfig::default() };
    let (server, mut client) = ends_with(fixture, &config);
    let target = server.region(64);
    let operation =
        Operation::Write { source: Source::Inline(&[1; 17]), to: target.remote(), immediate: None };
    let refused = client.pair.post(&WorkRequest { id: 0, operation, flags: Flags::SIGNALED });
    assert!(matches!(refused, Err(Error::InlineTooLarge { bytes: 17, max: 16 })), "{refused:?}");
    stays_empty(&mut client.sends);
    assert_eq!(client.pair.state(), State::Connected);
}

pub fn memory_of_another_domain_cannot_be_posted(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let target = server.region(8);
    let foreign = client.device.domain().unwrap().allocate(8, ALL).unwrap();
    let operation = write(&foreign, 0..8, target.remote());
    assert!(client.pair.post(&WorkRequest { id: 0, operation, flags: Flags::empty() }).is_err());
    assert!(client.pair.post_receive(0, Some(foreign.slice(0..8).unwrap())).is_err());
}

pub fn objects_of_two_devices_do_not_fit_together(fixture: &Fixture) {
    let (server, client) = open(fixture); // also where it is the same device: it is opened twice
    let config = QueuePairConfig::default();
    let mut ends = [End::new(&server, &config), End::new(&client, &config)];
    let [one, other] = &ends;
    for (sends, receives) in [(&one.sends, &other.receives), (&other.sends, &one.receives)] {
        let mixed = QueuePair::new(&one.domain, sends, receives, &config);
        assert!(matches!(mixed, Err(Error::InvalidArgument(_))), "{mixed:?}");
    }
    let (mut listener, to) = listen(&server);
    let mut connector = End::new(&client, &config);
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| connector.pair.connect(to, &[], PATIENCE));
        let request = listener.next(PATIENCE).unwrap().expect("a connector comes");
        let accepted = request.accept(&mut ends[1].pair, &[]);
        assert!(matches!(accepted, Err(Error::InvalidArgument(_))), "{accepted:?}");
        let refused = refused.join().expect("connecting does not panic");
        assert!(matches!(refused, Err(Error::Rejected { .. })), "{refused:?}");
    });
    for end in [&ends[0], &ends[1], &connector] {
        assert_eq!(end.pair.state(), State::Init);
    }
}

pub fn a_completion_queue_cannot_overflow(fixture: &Fixture) {
    let (device, _) = open(fixture);
    let domain = device.domain().unwrap();
    let queue = device.completion_queue(100).unwrap();
    let config = QueuePairConfig { send_depth: 30, receive_depth: 30, ..Default::default() };
    let first = QueuePair::new(&domain, &queue, &queue, &config).unwrap();
    let second = QueuePair::new(&domain, &queue, &queue, &config);
    let refused = second.expect_err("too small");
    assert!(matches!(refused, Error::CompletionQueueTooSmall { capacity: 100, .. }), "{refused:?}");
    drop(first);
    QueuePair::new(&domain, &queue, &queue, &config).expect("the place is free again");
}

pub fn nothing_is_posted_before_connecting(fixture: &Fixture) {
    let (device, _) = open(fixture);
    let mut end = End::new(&device, &QueuePairConfig::default());
    assert_eq!(end.pair.state(), State::Init);
    let operation = Operation::Send { source: Source::Inline(&[]), immediate: None };
    let early = end.pair.post(&WorkRequest { id: 0, operation, flags: Flags::SIGNALED });
    assert!(matches!(early, Err(Error::InvalidArgument(_))), "{early:?}");
    for wrong in [
        QueuePairConfig { send_depth: 0, ..Default::default() },
        QueuePairConfig { receive_depth: u32::MAX, ..Default::default() },
        QueuePairConfig { max_inline_data: u32::MAX, ..Default::default() },
        QueuePairConfig { rnr_retry: RnrRetry::Times(7), ..Default::default() },
    ] {
        let queue = device.completion_queue(1000).unwrap();
        assert!(QueuePair::new(&end.domain, &queue, &queue, &wrong).is_err(), "{wrong:?}");
    }
}

pub fn an_empty_region_is_refused(fixture: &Fixture) {
    let (device, _) = open(fixture);
    let domain = device.domain().unwrap();
    assert!(matches!(domain.allocate(0, ALL), Err(Error::InvalidArgument(_))));
    let remote_only = domain.allocate(8, Access::REMOTE_WRITE);
    assert!(matches!(remote_only, Err(Error::InvalidArgument(_))));
    assert!(domain.allocate(usize::MAX, ALL).is_err());
    let region = domain.allocate(8, ALL).unwrap();
    assert_eq!(region.as_ptr().addr() % 64, 0);
    assert!(matches!(region.slice(4..9), Err(Error::OutOfBounds { .. })));
    assert!(matches!(region.read(usize::MAX, &mut [0; 2]), Err(Error::OutOfBounds { .. })));
    assert!(matches!(region.write(8, &[1]), Err(Error::OutOfBounds { .. })));
}
