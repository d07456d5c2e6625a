//! Mapping a peer's memory: a provider that can map shows that memory, and another says that it
//! cannot.

use rdmalib::{Access, Error, Flags, QueuePairConfig, RemoteAddress, RemoteMapping, State, Status};

use crate::Fixture;
use crate::ends::*;

const BOTH: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);

/// Maps memory of the peer of `end`; `None` where `fixture` is known to have no mappings.
fn map(
    fixture: &Fixture,
    end: &mut End,
    at: RemoteAddress,
    bytes: usize,
    access: Access,
) -> Option<RemoteMapping> {
    let mapping = end.pair.map_remote(at, bytes, access).unwrap();
    assert_eq!(mapping.is_some(), fixture.capabilities.maps_remote_memory);
    mapping
}

pub fn what_is_written_through_a_mapping_is_what_the_owner_reads(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let target = server.region(10_000);
    // From within a page to within another one.
    let at = target.remote().offset(100);
    let Some(mapping) = map(fixture, &mut client, at, 9_000, BOTH) else { return };
    assert_eq!(mapping.len(), 9_000);
    assert_eq!(mapping.as_ptr().addr() % 4096, 100);
    let sent: Vec<u8> = (0..9_000).map(|i| (i % 251) as u8).collect();
    mapping.write(0, &sent).unwrap();
    mapping.fill(8_999..9_000, 7).unwrap();
    // A request of the same connection tells the owner.
    server.post_receives(0..1);
    let source = client.region(1);
    let status = client.run(write_imm(&source, 0..1, target.remote(), 1));
    assert_eq!((status, next(&mut server.receives).status), (Status::Success, Status::Success));
    let seen = bytes(&target);
    assert_eq!(&seen[100..9_099], &sent[..8_999]);
    assert_eq!(seen[9_099], 7);
    assert!(seen[..100].iter().chain(&seen[9_100..]).all(|byte| *byte == 0), "and nothing else");
}

pub fn a_mapping_shows_what_the_owner_writes(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let target = server.region(5_000);
    let Some(mapping) = map(fixture, &mut client, target.remote(), 5_000, BOTH) else { return };
    target.fill(0..5_000, 9).unwrap();
    client.post_receives(0..1);
    let (source, into) = (server.region(1), client.region(1));
    assert_eq!(server.run(write_imm(&source, 0..1, into.remote(), 1)), Status::Success);
    assert_eq!(next(&mut client.receives).status, Status::Success);
    let mut seen = vec![0; 5_000];
    mapping.read(0, &mut seen).unwrap();
    assert_eq!(seen, vec![9; 5_000]);
    assert!(matches!(mapping.read(1, &mut seen), Err(Error::OutOfBounds { offset: 1, .. })));
    assert!(matches!(mapping.write(5_000, &[1]), Err(Error::OutOfBounds { .. })));
    assert!(matches!(mapping.fill(4_999..5_001, 1), Err(Error::OutOfBounds { .. })));
}

pub fn memory_registered_after_connecting_can_be_mapped(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    const BYTES: usize = 5 << 20; // more than what memory grows by
    let target = server.region(BYTES);
    let Some(mapping) = map(fixture, &mut client, target.remote(), BYTES, BOTH) else { return };
    mapping.write(BYTES - 1, &[5]).unwrap();
    assert_eq!(bytes(&target)[BYTES - 1], 5);
}

pub fn a_mapping_is_used_only_for_what_it_was_asked_for(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let target = server.region(64);
    let (mut out, at) = ([1; 64], target.remote());
    if let Some(mapping) = map(fixture, &mut client, at, 64, Access::REMOTE_READ) {
        mapping.read(0, &mut out).unwrap();
        assert_eq!(out, [0; 64]);
        assert!(matches!(mapping.write(0, &[1]), Err(Error::InvalidArgument(_))));
        assert!(matches!(mapping.fill(0..1, 1), Err(Error::InvalidArgument(_))));
    }
    if let Some(mapping) = map(fixture, &mut client, at, 64, Access::REMOTE_WRITE) {
        mapping.write(0, &[1]).unwrap();
        assert!(matches!(mapping.read(0, &mut out), Err(Error::InvalidArgument(_))));
    }
    for access in [Access::empty(), Access::LOCAL_WRITE, ALL] {
        let error = client.pair.map_remote(at, 64, access).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{access:?}");
    }
    assert!(matches!(client.pair.map_remote(at, 0, BOTH), Err(Error::InvalidArgument(_))));
}

pub fn a_mapping_that_the_key_does_not_allow_is_refused_and_harms_nothing(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let target = server.region(64);
    let neighbour = server.region(64);
    let unwritable = server.domain.allocate(64, ALL - Access::REMOTE_WRITE).unwrap();
    let unreadable = server.domain.allocate(64, ALL - Access::REMOTE_READ).unwrap();
    let freed = server.region(64).remote();
    let at = target.remote();
    for (at, bytes, access) in [
        (RemoteAddress { key: at.key.wrapping_add(1 << 13), ..at }, 64, Access::REMOTE_READ),
        (RemoteAddress { key: neighbour.remote().key, ..at }, 64, Access::REMOTE_READ),
        (RemoteAddress { key: 0, ..at }, 64, Access::REMOTE_READ),
        (freed, 64, Access::REMOTE_READ),
        (at, 65, Access::REMOTE_READ),
        (at, usize::MAX, Access::REMOTE_READ),
        (at.offset(1), 64, Access::REMOTE_READ),
        (at.offset(u64::MAX), 2, Access::REMOTE_READ),
        (unwritable.remote(), 64, BOTH),
        (unreadable.remote(), 64, BOTH),
    ] {
        match client.pair.map_remote(at, bytes, access) {
            Err(Error::RemoteAccess) => assert!(fixture.capabilities.maps_remote_memory),
            Ok(None) => assert!(!fixture.capabilities.maps_remote_memory),
            other => panic!("{at:?} {bytes} {access:?}: {other:?}"),
        }
    }
    let source = client.region(64);
    assert_eq!(client.run(write(&source, 0..64, at)), Status::Success);
    assert_eq!(client.pair.state(), State::Connected);
}

pub fn a_mapping_may_be_made_while_requests_wait(fixture: &Fixture) {
    let (mut server, mut client) = ends(fixture);
    let (target, source) = (server.region(64), client.region(64));
    client.post(1, write_imm(&source, 0..64, target.remote(), 5), Flags::SIGNALED);
    let mapping = map(fixture, &mut client, target.remote(), 64, BOTH);
    server.post_receives(0..1);
    assert_eq!(next(&mut server.receives).immediate, Some(5));
    assert_eq!(next(&mut client.sends).status, Status::Success);
    if let Some(mapping) = mapping {
        mapping.write(0, &[3; 64]).unwrap();
        assert_eq!(bytes(&target), [3; 64]);
    }
}

pub fn a_mapping_outlives_key_and_connection(fixture: &Fixture) {
    let (server, mut client) = ends_with(fixture, &QueuePairConfig::default());
    let target = server.region(64);
    target.fill(0..64, 4).unwrap();
    let mapping = map(fixture, &mut client, target.remote(), 64, BOTH);
    drop((target, server, client));
    if let Some(mapping) = mapping {
        // Whatever is there now, it is memory and can be read.
        mapping.read(0, &mut [0; 64]).unwrap();
        mapping.write(0, &[1; 64]).unwrap();
    }
}

/// Its owner is gone, and nobody else can have got the memory.
pub fn what_is_mapped_of_a_domains_last_region_stays_as_it_was(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let other = server.region(64);
    let last = server.region(10_000);
    last.fill(0..10_000, 4).unwrap();
    let mapping = map(fixture, &mut client, last.remote(), 10_000, Access::REMOTE_READ);
    drop((server, other));
    drop(last);
    if let Some(mapping) = mapping {
        let mut seen = vec![0; 10_000];
        mapping.read(0, &mut seen).unwrap();
        assert_eq!(seen, vec![4; 10_000]);
    }
}

pub fn nothing_is_mapped_without_a_connection(fixture: &Fixture) {
    let (server, mut client) = ends(fixture);
    let target = server.region(64);
    let (_, other) = open(fixture);
    let mut unconnected = End::new(&other, &QueuePairConfig::default());
    match unconnected.pair.map_remote(target.remote(), 64, BOTH) {
        Err(Error::InvalidArgument(_)) => assert!(fixture.capabilities.maps_remote_memory),
        Ok(None) => assert!(!fixture.capabilities.maps_remote_memory),
        other => panic!("{other:?}"),
    }
    client.pair.disconnect();
    match client.pair.map_remote(target.remote(), 64, BOTH) {
        Err(Error::Disconnected) => assert!(fixture.capabilities.maps_remote_memory),
        Ok(None) => assert!(!fixture.capabilities.maps_remote_memory),
        other => panic!("{other:?}"),
    }
}
