//! What functions print, end to end: their caller reads it, and nobody else.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rfaas::{Error, Executor, LeaseRequest, OutputStream};
use testkit::functions::{c_library, ends};
use testkit::service::{all_is_free, call, cluster, deploy, warm};
use testkit::wait::one_at_a_time;
use testkit::{LocalCluster, Options};

/// A cluster whose managers log all they can, and the library.
fn scene(directory: &tempfile::TempDir) -> (LocalCluster, PathBuf) {
    (cluster(Options { talkative: true, ..Options::default() }), ends(directory.path()))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn what_functions_print_is_read_by_their_caller_and_is_in_no_log() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let (cluster, library) = scene(&directory);
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &library, &warm());
    assert!(executor.printed().unwrap().is_empty());
    let (mut out, mut err) = (String::new(), String::new());
    for word in ["first", "second", "3rd"] {
        call(&mut executor, "print", word.as_bytes()).unwrap();
        out += &format!("{word}\n");
        err += &format!("{} bytes\n", word.len());
        // At once: what a function has written before its result is there.
        let printed = executor.printed().unwrap();
        assert_eq!((text(printed.stdout()), text(printed.stderr())), (out.clone(), err.clone()));
        assert_eq!(printed.dropped(), 0);
    }
    // A second lease has nothing of the first, nor the first of it.
    let mut other = deploy(&client, 1, &library, &warm());
    call(&mut other, "print", b"of the other").unwrap();
    assert_eq!(text(other.printed().unwrap().stdout()), "of the other\n");
    assert_eq!(text(executor.printed().unwrap().stdout()), out);
    for executor in [executor, other] {
        executor.release().unwrap();
    }
    all_is_free(&cluster);
    let logs = cluster.logs();
    for word in ["second", "6 bytes", "of the other"] {
        assert!(!logs.contains(word), "{word} is in\n{logs}");
    }
    cluster.stop().unwrap();
}

#[test]
fn last_words_are_there_when_the_end_is_known_and_after_a_restart() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let (cluster, library) = scene(&directory);
    let client = cluster.client().unwrap();
    let limit = Duration::from_secs(2);
    let mut executor = deploy(&client, 1, &library, &warm().invocation_timeout(limit));
    let mut expected = String::new();
    for _ in 0..3 {
        let error = call(&mut executor, "last_words", &[]).unwrap_err();
        assert!(matches!(error, Error::FunctionCrashed { signal: 11 }), "{error:?}");
        expected += "out: about to fail\nerr: this is why\n";
        assert_eq!(executor.printed().unwrap().to_string(), expected);
        executor.restart().unwrap();
        assert_eq!(executor.printed().unwrap().to_string(), expected);
    }
    let error = call(&mut executor, "run_for_ever", &[]).unwrap_err();
    assert!(matches!(error, Error::TimeLimit { .. }), "{error:?}");
    assert_eq!(executor.printed().unwrap().to_string(), format!("{expected}still at it\n"));
    drop(executor);
    all_is_free(&cluster);
    cluster.stop().unwrap();
}

#[test]
fn of_a_flood_the_end_is_kept_and_the_rest_is_counted() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let (cluster, library) = scene(&directory);
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &library, &warm());
    const BYTES: u32 = 3_000_000;
    call(&mut executor, "flood", &BYTES.to_ne_bytes()).unwrap();
    let printed = executor.printed().unwrap();
    let kept = printed.stdout();
    assert!(kept.ends_with(b"\nthe end\n"), "{}", String::from_utf8_lossy(&kept[..]));
    assert_eq!(kept.len() as u64 + printed.dropped(), u64::from(BYTES) + 9);
    assert!(kept.len() <= 256 << 10 && kept.len() > 200_000, "{printed:?}");
    executor.release().unwrap();
    cluster.stop().unwrap();
}

#[test]
fn what_a_constructor_prints_before_it_crashes_is_read_from_the_lease() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let (cluster, _) = scene(&directory);
    let client = cluster.client().unwrap();
    let source = directory.path().join("bad_start.c");
    let code = "#include <stdint.h>\n#include <stdlib.h>\n#include <unistd.h>\n\
        __attribute__((constructor)) static void start(void) {\n\
            if (write(2, \"no licence\\n\", 11) == 11) abort();\n\
        }\n\
        uint32_t nothing(void *in, uint32_t n, void *out) { return 0; }\n";
    fs::write(&source, code).unwrap();
    let library = c_library(directory.path(), "bad_start", &source, &[]);
    let lease = client.lease(LeaseRequest::new(1, 64)).unwrap();
    assert!(lease.printed().unwrap().is_empty(), "not deployed");
    let error = lease.deploy_with(&library, &warm()).unwrap_err();
    assert!(matches!(error, Error::StartFailed(_)), "{error:?}");
    let printed = lease.printed().unwrap();
    let pieces: Vec<_> = printed.pieces().collect();
    assert_eq!(pieces, [(OutputStream::Stderr, &b"no licence\n"[..])]);
    drop(lease);
    cluster.stop().unwrap();
}

#[test]
fn what_was_printed_is_read_after_the_end_of_a_lease_but_not_after_its_release() {
    let _alone = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let (cluster, library) = scene(&directory);
    let client = cluster.client().unwrap();
    let request = LeaseRequest::new(1, 64).timeout(Duration::from_secs(3));
    let lease = client.lease(request).unwrap();
    let mut executor = lease.deploy_with(&library, &warm()).unwrap();
    call(&mut executor, "print", b"before the end").unwrap();
    let error = until_it_fails(&mut executor);
    assert!(matches!(error, Error::LeaseEnded { .. }), "{error:?}");
    assert_eq!(text(executor.printed().unwrap().stdout()), "before the end\n");

    let mut executor = deploy(&client, 1, &library, &warm());
    call(&mut executor, "print", b"x").unwrap();
    let lease = executor.lease();
    executor.release().unwrap();
    let error = lease.printed().unwrap_err();
    assert!(matches!(error, Error::LeaseEnded { .. }), "{error:?}");
    cluster.stop().unwrap();
}

/// Calls until that fails.
fn until_it_fails(executor: &mut Executor) -> Error {
    loop {
        if let Err(error) = call(executor, "echo", &[1; 8]) {
            return error;
        }
    }
}
