//! What the dynamic loader can use can be called, however it came into the library.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

mod common;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use common::{Session, Setup, compile, compile_to};

fn unusual() -> Vec<u8> {
    let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/functions/unusual.map");
    let map = format!("-Wl,--version-script={}", map.to_str().unwrap());
    compile("tests/functions/unusual.c", &[&map])
}

/// `library` as it is without section headers, which the loader does not need.
fn without_sections(mut library: Vec<u8>) -> Vec<u8> {
    let headers = u64::from_le_bytes(library[40..48].try_into().unwrap());
    library[40..48].fill(0); // where they are
    library[58..64].fill(0); // how large, how many, which of them has their names
    library.truncate(headers as usize);
    library
}

/// What each function of `library` makes of "abc".
fn results(library: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut session = Session::start(&Setup::default(), library);
    let names = session.functions.clone();
    let call = |name: String| {
        let function = session.function(&name);
        (name, session.workers[0].call(function, b"abc"))
    };
    names.into_iter().map(call).collect()
}

/// One whose resolver finds nothing for this processor, and an old version, are not among them; the rest is
/// callable nevertheless.
#[test]
fn dispatched_and_untyped_functions_are_called_and_old_versions_do_no_harm() {
    let expected = [("dispatched", b"cba"), ("plain", b"abc"), ("untyped", b"abc")];
    let expected = expected.map(|(name, output)| (name.to_owned(), output.to_vec()));
    assert_eq!(results(&unusual()), expected);
    assert_eq!(results(&without_sections(unusual())), expected);
}

#[test]
fn a_plugin_finds_the_symbols_of_the_librarys_dependencies() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    let source = "tests/functions/plugins.c";
    let core = compile_to(source, &path("libcore.so"), &["-DCORE"]);
    let plugin = compile_to(source, &path("plugin.so"), &["-DPLUGIN"]); // not linked to it
    let rpath = format!("-Wl,-rpath,{}", dir.path().to_str().unwrap());
    let library = path("library.so");
    compile_to(source, &library, &[core.to_str().unwrap(), &rpath, "-ldl"]);

    let mut session = Session::start(&Setup::default(), &std::fs::read(library).unwrap());
    let load_plugin = session.function("load_plugin");
    let said = session.workers[0].call(load_plugin, plugin.as_os_str().as_bytes());
    assert_eq!(said, [21], "{}", String::from_utf8_lossy(&said));
}
