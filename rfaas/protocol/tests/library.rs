//! What is callable in a library, for libraries as compilers and linkers make them, and for bytes
//! that nobody made.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use proptest::prelude::*;
use rfaas_protocol::library::{
    Exports, LibraryError, MAX_LIBRARY_BYTES, exported_functions, exports,
};

const SOURCE: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <string.h>
int data = 7;
static uint32_t local(void *in, uint32_t n, void *out) { memcpy(out, in, n); return n; }
uint32_t zebra(void *in, uint32_t n, void *out) { return local(in, n, out); }
uint32_t apple(void *in, uint32_t n, void *out) { printf("%u", n); return local(in, n, out); }
__attribute__((weak)) uint32_t weak(void *in, uint32_t n, void *out) { return zebra(in, n, out); }
__attribute__((visibility("protected"))) uint32_t guarded(void *in, uint32_t n, void *out) {
    return apple(in, n, out);
}
__attribute__((visibility("hidden"))) uint32_t hidden(void *in, uint32_t n, void *out) {
    return apple(in, n, out);
}
"#;
const EXPORTED: [&str; 4] = ["apple", "guarded", "weak", "zebra"];

/// Runs `program` with `args` in `dir`; a compiler or linker that is not there is a failure.
fn run<S: AsRef<OsStr>>(dir: &Path, program: &str, args: &[S]) {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Compiles `source` with `cc` and these flags.
fn compile(source: &str, flags: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("source.c"), source).unwrap();
    let mut args = vec!["-O1", "-o", "result", "source.c"];
    args.extend(flags);
    run(dir.path(), "cc", &args);
    fs::read(dir.path().join("result")).unwrap()
}

fn library(flags: &[&str]) -> Vec<u8> {
    compile(SOURCE, &[&["-shared", "-fPIC"], flags].concat())
}

/// Compiles a library whose symbols have the versions of `map`.
fn versioned(source: &str, map: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), map).unwrap();
    let script = format!("-Wl,--version-script={}", file.path().to_str().unwrap());
    compile(source, &["-shared", "-fPIC", &script])
}

fn number(library: &[u8], at: usize, bytes: usize) -> usize {
    let bytes = &library[at..at + bytes];
    bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

/// `library` without section headers, which the loader does not need.
fn without_sections(library: &[u8]) -> Vec<u8> {
    let mut library = library[..number(library, 40, 8)].to_vec();
    library[40..48].fill(0); // where they are
    library[58..64].fill(0); // how large, how many, which of them has their names
    library
}

/// Returns where the program headers are, each of 56 bytes.
fn program_headers(library: &[u8]) -> impl Iterator<Item = usize> {
    let (first, count) = (number(library, 32, 8), number(library, 56, 2));
    (0..count).map(move |index| first + 56 * index)
}

/// Returns where the bytes end that are loaded.
fn end_of_segments(library: &[u8]) -> usize {
    let loaded = program_headers(library).filter(|at| number(library, *at, 4) == 1);
    loaded.map(|at| number(library, at + 8, 8) + number(library, at + 32, 8)).max().unwrap()
}

/// One library for the tests that only look at its bytes.
fn plain() -> &'static [u8] {
    static PLAIN: OnceLock<Vec<u8>> = OnceLock::new();
    PLAIN.get_or_init(|| library(&[]))
}

#[test]
fn defined_visible_functions_are_listed_by_name() {
    assert_eq!(exported_functions(plain()).unwrap(), EXPORTED);
}

#[test]
fn rfaas_init_is_told_apart_from_what_can_be_called() {
    let source = "#include <stdint.h>\nint32_t rfaas_init(void *api) { return !api; }\nint f(void) { return 0; }";
    let library = compile(source, &["-shared", "-fPIC"]);
    let expected = Exports { functions: vec!["f".into()], batches: vec![], init: true };
    assert_eq!(exports(&library).unwrap(), expected);
    assert!(!exports(plain()).unwrap().init);
    let alone = compile("int rfaas_init(void *api) { return !api; }", &["-shared", "-fPIC"]);
    assert!(matches!(exports(&alone), Err(LibraryError::NoFunctions)));
}

#[test]
fn what_takes_batches_is_told_apart_from_what_does_not() {
    let source = "int f(void) { return 0; }\nint rfaas_batch_g(void) { return 0; }\n\
                  int rfaas_batch_f(void) { return 0; }\nint rfaas_batch_(void) { return 0; }\n";
    let library = compile(source, &["-shared", "-fPIC"]);
    let batches = vec!["f".into(), "g".into()];
    let expected = Exports { functions: vec!["f".into()], batches, init: false };
    assert_eq!(exports(&library).unwrap(), expected);
    let alone = compile("int rfaas_batch_g(void) { return 0; }", &["-shared", "-fPIC"]);
    assert!(exported_functions(&alone).unwrap().is_empty());
}

#[test]
fn bytes_may_lie_at_any_address() {
    let shifted = [&[0], plain()].concat();
    assert_eq!(exported_functions(&shifted[1..]).unwrap(), EXPORTED);
}

#[test]
fn other_layouts_of_the_same_library_list_the_same() {
    for flags in [
        &["-Wl,--hash-style=sysv"][..],
        &["-Wl,--hash-style=gnu"],
        &["-Wl,-z,norelro", "-Wl,-z,noseparate-code"],
        &["-Wl,-z,separate-code", "-Wl,--build-id=none"],
        &["-s"],
        &["-g"],
    ] {
        assert_eq!(exported_functions(&library(flags)).unwrap(), EXPORTED, "{flags:?}");
    }
}

#[test]
#[ignore = "needs ld.gold"]
fn a_library_linked_by_gold_lists_the_same() {
    assert_eq!(exported_functions(&library(&["-fuse-ld=gold"])).unwrap(), EXPORTED);
}

#[test]
#[ignore = "needs ld.lld"]
fn a_library_linked_by_lld_lists_the_same() {
    assert_eq!(exported_functions(&library(&["-fuse-ld=lld"])).unwrap(), EXPORTED);
}

#[test]
fn a_rust_library_lists_its_functions_and_nothing_of_the_standard_library() {
    let dir = tempfile::tempdir().unwrap();
    let source = r#"
        #[unsafe(no_mangle)]
        pub extern "C" fn twice(_: *mut u8, bytes: u32, _: *mut u8) -> u32 {
            println!("{bytes}");
            2 * bytes
        }
        pub fn not_exported() {}
    "#;
    fs::write(dir.path().join("source.rs"), source).unwrap();
    let args = ["--edition=2024", "--crate-type=cdylib", "-o", "result", "source.rs"];
    run(dir.path(), "rustc", &args);
    let library = fs::read(dir.path().join("result")).unwrap();
    assert_eq!(exported_functions(&library).unwrap(), ["twice"]);
}

#[test]
fn the_linkers_own_functions_are_not_listed() {
    let source = "void _init(void) {} void _fini(void) {} int f(void) { return 0; }";
    let library = compile(source, &["-shared", "-fPIC", "-nostartfiles"]);
    assert_eq!(exported_functions(&library).unwrap(), ["f"]);
}

#[test]
fn a_name_in_two_versions_is_listed_once() {
    let source = r#"
        __asm__(".symver old, f@V1"); __asm__(".symver new, f@@V2");
        int old(void) { return 1; } int new(void) { return 2; }
    "#;
    let map = "V1 { global: f; local: *; }; V2 { global: f; } V1;";
    assert_eq!(exported_functions(&versioned(source, map)).unwrap(), ["f"]);
}

#[test]
fn an_old_version_is_not_listed_and_does_not_keep_the_rest_from_it() {
    let source = r#"
        __asm__(".symver old, before@V1");
        int old(void) { return 1; } int now(void) { return 2; }
    "#;
    let map = "V1 { global: before; }; V2 { global: now; local: *; } V1;";
    assert_eq!(exported_functions(&versioned(source, map)).unwrap(), ["now"]);
}

#[test]
fn a_function_that_is_dispatched_when_it_is_loaded_is_listed() {
    let source = r#"
        static int f(void) { return 1; }
        static void *choose(void) { return f; }
        int dispatched(void) __attribute__((ifunc("choose")));
    "#;
    assert_eq!(
        exported_functions(&compile(source, &["-shared", "-fPIC"])).unwrap(),
        ["dispatched"]
    );
}

#[test]
fn of_symbols_without_type_those_that_are_code_are_listed() {
    let source = r#"
        __asm__(".text\n.globl code\ncode: ret\n"
                ".data\n.globl bytes\nbytes: .long 7\n"
                ".globl number\nnumber = 0x1000\n");
    "#;
    assert_eq!(exported_functions(&compile(source, &["-shared", "-fPIC"])).unwrap(), ["code"]);
}

#[test]
fn a_library_without_section_headers_lists_the_same() {
    for flags in [&["-Wl,--hash-style=sysv"][..], &["-Wl,--hash-style=gnu"], &["-s"]] {
        let library = without_sections(&library(flags));
        assert_eq!(exported_functions(&library).unwrap(), EXPORTED, "{flags:?}");
    }
}

#[test]
fn a_name_that_is_too_long_for_the_wire_is_not_listed() {
    let (fits, too_long) = ("a".repeat(512), "b".repeat(513));
    let source = format!("int {fits}(void) {{ return 0; }} int {too_long}(void) {{ return 0; }}");
    let library = compile(&source, &["-shared", "-fPIC"]);
    assert_eq!(exported_functions(&library).unwrap(), [fits]);
}

#[test]
fn a_library_with_too_long_names_alone_is_told_their_limit() {
    let source = format!("int {}(void) {{ return 0; }}", "b".repeat(513));
    let error = exported_functions(&compile(&source, &["-shared", "-fPIC"])).unwrap_err();
    assert!(matches!(error, LibraryError::NamesTooLong), "{error}");
    assert!(error.to_string().contains("512 bytes"), "{error}");
}

#[test]
fn a_library_with_more_functions_than_can_be_numbered_is_refused() {
    let symbols = |count: usize| {
        let symbol =
            |number| format!("\".globl f{number}\\n.type f{number},%function\\nf{number}:\\n\"\n");
        let all: String = (0..count).map(symbol).collect();
        exported_functions(&compile(
            &format!("__asm__(\".text\\n\"\n{all});"),
            &["-shared", "-fPIC"],
        ))
    };
    assert_eq!(symbols(65_536).unwrap().len(), 65_536);
    let error = symbols(65_537).unwrap_err();
    assert!(matches!(error, LibraryError::TooManyFunctions), "{error}");
}

#[test]
fn a_file_that_is_not_elf_is_refused() {
    for bytes in [&b""[..], b"\x7fEL", b"#!/bin/sh\n", b"!<arch>\n"] {
        let error = exported_functions(bytes).unwrap_err();
        assert!(matches!(error, LibraryError::NotElf), "{error}");
    }
}

#[test]
fn executables_and_object_files_are_refused() {
    let program = "int f(void) { return 0; } int main(void) { return f(); }";
    let refused = |flags: &[&str], expected: &str| {
        let error = exported_functions(&compile(program, flags)).unwrap_err();
        let LibraryError::NotSharedObject { found } = error else { panic!("{error}") };
        assert_eq!(found, expected);
    };
    refused(&["-no-pie"], "an executable");
    refused(&["-pie", "-fPIE", "-rdynamic"], "an executable");
    refused(&["-c"], "an object file");
}

#[test]
fn a_library_without_functions_is_refused() {
    let data = compile("int data = 1;", &["-shared", "-fPIC"]);
    assert!(matches!(exported_functions(&data), Err(LibraryError::NoFunctions)));
    let hidden = compile("int f(void) { return 0; }", &["-shared", "-fPIC", "-fvisibility=hidden"]);
    assert!(matches!(exported_functions(&hidden), Err(LibraryError::NoFunctions)));
}

#[test]
fn a_library_for_another_processor_is_refused() {
    let found = |at: usize, bytes: &[u8]| {
        let mut library = plain().to_vec();
        library[at..at + bytes.len()].copy_from_slice(bytes);
        match exported_functions(&library) {
            Err(LibraryError::OtherArchitecture { found }) => found,
            other => panic!("{other:?}"),
        }
    };
    let machine: u16 = if cfg!(target_arch = "x86_64") { 183 } else { 62 }; // aarch64, x86_64
    let name = if cfg!(target_arch = "x86_64") { "aarch64" } else { "x86_64" };
    assert_eq!(found(18, &machine.to_ne_bytes()), name);
    assert_eq!(found(18, &0xfffe_u16.to_ne_bytes()), "ELF machine 65534");
    assert_eq!(found(4, &[1]), "a 32-bit processor");
    let other_order = if cfg!(target_endian = "little") { 2 } else { 1 };
    assert!(found(5, &[other_order]).ends_with("-endian processor"));
}

#[test]
fn a_library_that_was_cut_off_is_damaged() {
    let library = without_sections(plain()); // what is behind its last segment, nobody needs
    for len in [4, 16, 63, 64, library.len() / 2, end_of_segments(&library) - 1] {
        let error = exported_functions(&library[..len]).unwrap_err();
        assert!(matches!(error, LibraryError::Damaged { .. }), "{len} bytes: {error}");
    }
}

#[test]
fn messages_are_one_line() {
    let errors = [
        LibraryError::NotElf,
        LibraryError::NoFunctions,
        LibraryError::NotSharedObject { found: "an executable" },
        LibraryError::Damaged { reason: "x".into() },
        LibraryError::NamesTooLong,
        LibraryError::TooManyFunctions,
        LibraryError::TooLarge { bytes: 1 << 32, max: MAX_LIBRARY_BYTES },
        LibraryError::NotFile { found: "a pipe" },
        LibraryError::Changing,
    ];
    assert!(errors.iter().all(|error| !error.to_string().contains('\n')));
}

fn with_versions() -> &'static [u8] {
    static VERSIONED: OnceLock<Vec<u8>> = OnceLock::new();
    VERSIONED.get_or_init(|| versioned(SOURCE, "V { global: *; };"))
}

/// Numbers at which arithmetic and comparisons turn, and any others.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..0x5000,
        Just(u64::MAX),
        Just(1 << 63),
        Just(u64::from(u32::MAX)),
        (0u64..64).prop_map(|below| u64::MAX - below),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Anywhere, and where it hurts: in the header, the program headers, and the tables that they lead to.
    #[test]
    fn overwritten_libraries_never_panic(
        changes in prop::collection::vec((0usize..4, any::<prop::sample::Index>(), value()), 1..20),
        len in any::<prop::sample::Index>(),
        cut in prop::bool::weighted(0.2),
    ) {
        let mut library = with_versions().to_vec();
        let headers = 64 + 56 * program_headers(&library).count();
        let dynamic = program_headers(&library).find(|at| number(&library, *at, 4) == 2).unwrap();
        let dynamic = (number(&library, dynamic + 8, 8), number(&library, dynamic + 32, 8));
        for (place, at, value) in changes {
            let (start, bytes) = match place {
                0 => (0, library.len()),
                1 => (0, headers),
                2 => (headers, 0x800), // hashes, symbols, names, versions: the linker puts them first
                _ => dynamic,
            };
            let at = (start + at.index(bytes)) & !7;
            library[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if cut {
            library.truncate(len.index(library.len()));
        }
        let _ = exported_functions(&library);
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = exported_functions(&bytes);
        if bytes.len() >= 20 {
            bytes[..20].copy_from_slice(&plain()[..20]);
        }
        let _ = exported_functions(&bytes);
    }
}
