//! The test as an executor that fills files.

use std::io::Write;
use std::os::fd::AsRawFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use rdmalib_testing::eventually;
use rfaas_program::sealed_file::SEALS;
use rfaas_protocol::Secret;
use rfaas_protocol::lease::ClientName;
use rfaas_protocol::library::LibraryHash;

use super::*;

fn cache(bytes: u64) -> Cache {
    Cache::new(bytes, CacheSharing::Tenant, Bell::new().unwrap())
}

/// What `name` deploys.
fn deployment(name: &str, code: &[u8]) -> Deployment {
    Deployment {
        client: ([127, 0, 0, 1], 4000).into(),
        session: Secret([1; 16]),
        hot_timeout_ms: 0,
        input_bytes: 1,
        output_bytes: 1,
        code_bytes: code.len() as u32,
        code_hash: LibraryHash::of(code),
        owner: ClientName::new(name).unwrap(),
        slots: 1,
        graph: false,
    }
}

/// What an executor is started with for `name`, whose lease is signed.
fn open(cache: &mut Cache, name: &str, code: &[u8]) -> Library {
    cache.open(&deployment(name, code), Peer::User(7), true)
}

/// Takes in what there is, until nothing is under way.
fn settle(cache: &mut Cache) {
    eventually("nothing under way", || {
        cache.work();
        let (held, _) = cache.entries.held();
        cache.filling.is_empty() && held == cache.files.len() && cache.entries.all_held()
    });
}

/// Deploys `code` as an executor that writes `written` and puts `seals` on it; returns whether it was there.
fn deploy_as(cache: &mut Cache, name: &str, code: &[u8], written: &[u8], seals: SealFlag) -> bool {
    let was_there = match open(cache, name, code) {
        Library::Sealed(file) => {
            assert_eq!(std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap(), code);
            true
        }
        Library::Empty { file, filled } => {
            let mut file = File::from(file);
            file.write_all(written).unwrap();
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
            drop(filled);
            false
        }
        Library::Absent | Library::Preloaded(_) => false,
    };
    settle(cache);
    was_there
}

/// Deploys `code`; returns whether it was there.
fn deploy(cache: &mut Cache, name: &str, code: &[u8]) -> bool {
    deploy_as(cache, name, code, code, SEALS)
}

#[test]
fn a_library_is_there_for_who_has_deployed_it_and_for_nobody_else() {
    let mut cache = cache(1 << 20);
    assert!(!deploy(&mut cache, "alice", b"library"));
    assert!(deploy(&mut cache, "alice", b"library"));
    assert!(!deploy(&mut cache, "bob", b"library"));
    assert!(deploy(&mut cache, "bob", b"library"));
    assert!(!deploy(&mut cache, "alice", b"another"));
    let of_alice = deployment("alice", b"library");
    for other in [Peer::User(8), Peer::Address([10, 0, 0, 1].into()), Peer::Unknown] {
        let library = cache.open(&of_alice, other, true);
        assert!(matches!(library, Library::Empty { .. }), "alice of {other:?}: {library:?}");
    }
}

#[test]
fn without_a_signature_a_user_has_libraries_and_a_name_has_none() {
    let mut cache = cache(1 << 20);
    assert!(!deploy(&mut cache, "alice", b"library"));
    let of_alice = deployment("alice", b"library");
    assert!(matches!(cache.open(&of_alice, Peer::User(7), false), Library::Sealed(_)));
    for unknown in [Peer::Address([10, 0, 0, 1].into()), Peer::Unknown] {
        assert!(matches!(cache.open(&of_alice, unknown, false), Library::Absent));
    }
}

#[test]
fn where_tenants_share_a_library_is_there_for_everybody() {
    let mut cache = Cache::new(1 << 20, CacheSharing::Cluster, Bell::new().unwrap());
    assert!(!deploy(&mut cache, "alice", b"library"));
    assert!(deploy(&mut cache, "bob", b"library"));
    let stranger = cache.open(&deployment("carol", b"library"), Peer::Unknown, false);
    assert!(matches!(stranger, Library::Sealed(_)), "also whose name nobody has signed");
}

#[test]
fn what_is_not_the_library_that_was_announced_is_not_kept() {
    for (written, seals) in [
        (&b"garbled"[..], SEALS),
        (b"lib", SEALS),
        (b"library and more", SEALS),
        (b"", SEALS),
        (b"library", SealFlag::empty()),
        (b"library", SEALS - SealFlag::F_SEAL_WRITE),
        (b"library", SEALS - SealFlag::F_SEAL_SHRINK),
        (b"library", SEALS - SealFlag::F_SEAL_GROW),
        (b"library", SEALS - SealFlag::F_SEAL_SEAL),
    ] {
        let mut cache = cache(1 << 20);
        assert!(!deploy_as(&mut cache, "alice", b"library", written, seals));
        assert_eq!(cache.entries.held(), (0, 0), "{written:?} {seals:?}");
        assert!(!deploy(&mut cache, "alice", b"library"));
        assert!(deploy(&mut cache, "alice", b"library"), "the next one is kept");
    }
}

#[test]
fn an_executor_that_ends_before_it_has_filled_its_file_leaves_nothing_behind() {
    let mut cache = cache(1 << 20);
    let library = open(&mut cache, "alice", b"library");
    assert!(!cache.work(), "it may still fill it");
    assert_eq!(cache.filling.len(), 1);
    drop(library);
    assert!(cache.work());
    assert!(cache.filling.is_empty());
    assert_eq!(cache.entries.held(), (0, 0));
}

#[test]
fn what_an_executor_says_instead_of_closing_ends_it() {
    let mut cache = cache(1 << 20);
    let Library::Empty { file: _file, filled } = open(&mut cache, "alice", b"library") else {
        panic!("it is not here")
    };
    let mut filled = File::from(filled);
    let _ = filled.write(&[7; 4096]).unwrap();
    assert!(cache.work());
    assert!(cache.filling.is_empty());
    assert!(filled.write(&[7]).is_err(), "nobody listens any more");
}

#[test]
fn a_library_that_many_fill_at_a_time_is_kept_once() {
    let mut cache = cache(1 << 20);
    let all: Vec<_> = (0..20).map(|_| open(&mut cache, "alice", b"library")).collect();
    for library in all {
        let Library::Empty { file, filled } = library else { panic!("nobody has filled it") };
        let mut file = File::from(file);
        file.write_all(b"library").unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)).unwrap();
        drop(filled);
    }
    settle(&mut cache);
    assert_eq!(cache.entries.held(), (1, 4096));
}

#[test]
fn a_library_larger_than_the_cache_is_not_kept_and_with_no_cache_none_is() {
    let mut small = cache(8192);
    assert!(!deploy(&mut small, "alice", b"library"));
    assert!(matches!(open(&mut small, "alice", &[1; 8193]), Library::Absent));
    assert!(deploy(&mut small, "alice", b"library"), "it has thrown out nothing");
    let mut none = cache(0);
    assert!(matches!(open(&mut none, "alice", b"library"), Library::Absent));
}

#[test]
fn a_thousand_libraries_stay_within_the_bound() {
    const PAGES: u64 = 10;
    let mut cache = cache(PAGES * 4096);
    for library in 0..1000_u32 {
        assert!(!deploy(&mut cache, "alice", &library.to_le_bytes()));
        let (held, bytes) = cache.entries.held();
        assert!(held as u64 <= PAGES && bytes <= PAGES * 4096 && cache.files.len() == held);
    }
    let of_last = |library: u32| library.to_le_bytes();
    assert!(deploy(&mut cache, "alice", &of_last(999)), "the last is there");
    assert!(!deploy(&mut cache, "alice", &of_last(0)), "the first is not");
}

#[test]
fn who_has_a_library_keeps_it_when_it_makes_room() {
    let mut cache = cache(4096);
    assert!(!deploy(&mut cache, "alice", b"library"));
    let Library::Sealed(file) = open(&mut cache, "alice", b"library") else { panic!("kept") };
    assert!(!deploy(&mut cache, "alice", b"another"));
    assert_eq!(cache.files.len(), 1);
    let code = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    assert_eq!(code, b"library");
    assert!(
        File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).is_err()
            || File::from(file).write_all(b"x").is_err(),
        "and cannot change it"
    );
}
