//! What the check finds in sources that are made up for it.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use layers::{Arrow, CrateRoot, Modules, Rules};

/// The arrows of a workspace of these files, of which each `NAME/lib.rs` is a library.
fn arrows(files: &[(&str, &str)]) -> Vec<Arrow> {
    let root = tempfile::tempdir().unwrap();
    let mut targets = Vec::new();
    for (name, text) in files {
        let file = root.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        if let Some(library) = name.strip_suffix("/lib.rs") {
            targets.push(CrateRoot { library: Some(library.to_owned()), root: name.into() });
        }
    }
    Modules::read(root.path(), &targets).unwrap().arrows()
}

fn imports(files: &[(&str, &str)]) -> Vec<String> {
    let imported = arrows(files).into_iter().filter(|arrow| !arrow.only_declared);
    imported.map(|arrow| format!("{} {}", arrow.from.display(), arrow.to.display())).collect()
}

fn broken(rules: &str, files: &[(&str, &str)]) -> Vec<String> {
    Rules::parse(rules).unwrap().broken(&BTreeMap::new(), &arrows(files))
}

const PROVIDERS: &str = "modules rdma\n  types\n  providers/shm | providers/verbs\n  *\n";

/// What is broken by a facade, `queue.rs`, over two providers that say `shm` and `verbs`.
fn two_providers(shm: &str, verbs: &str) -> Vec<String> {
    let queue = "use crate::providers::{shm, verbs::Core}; pub struct Queue(Core, shm::Core);";
    let files = [
        ("rdma/lib.rs", "mod providers; pub mod queue; mod types; pub use queue::Queue;"),
        ("rdma/types.rs", "pub struct Status;"),
        ("rdma/queue.rs", queue),
        ("rdma/providers/mod.rs", "pub(crate) mod shm; pub(crate) mod verbs;"),
        ("rdma/providers/shm.rs", shm),
        ("rdma/providers/verbs.rs", verbs),
    ];
    broken(PROVIDERS, &files)
}

#[test]
fn nested_braces_super_and_paths_in_code_are_followed() {
    let found = imports(&[
        ("a/lib.rs", "mod b; mod c; mod d; mod e;"),
        (
            "a/b.rs",
            "use crate::{c::{One, two::{Three, self as four}}, d};\n\
             mod inner { use super::super::e::E; }",
        ),
        ("a/c.rs", "pub mod two; pub struct One;"),
        (
            "a/c/two.rs",
            "pub struct Three; fn f() -> super::One { let _: crate::r#e::E; d::<u8>() }",
        ),
        ("a/d.rs", ""),
        ("a/e.rs", "pub struct E;"),
    ]);
    let expected = [
        "a/b.rs a/c/two.rs",
        "a/b.rs a/c.rs",
        "a/b.rs a/d.rs",
        "a/b.rs a/e.rs",
        "a/c/two.rs a/c.rs",
        "a/c/two.rs a/e.rs",
    ];
    assert_eq!(found, expected);
}

#[test]
fn an_import_leads_to_the_file_that_defines_it_not_to_those_that_pass_it_on() {
    let found = imports(&[
        (
            "low/lib.rs",
            "mod error; mod all; pub use error::{Error, Error as Failure}; pub use all::*;",
        ),
        ("low/error.rs", "pub enum Error { A }"),
        ("low/all.rs", "pub fn help() {} #[macro_export] macro_rules! say { () => {} }"),
        ("high/lib.rs", "mod x; mod y;"),
        ("high/x.rs", "use low::Failure;"),
        ("high/y.rs", "fn f() { low::help(); low::Error::A; low::say!() }"),
    ]);
    let expected = [
        "high/x.rs low/error.rs",
        "high/y.rs low/all.rs",
        "high/y.rs low/error.rs",
        "low/lib.rs low/all.rs",
        "low/lib.rs low/error.rs",
    ];
    assert_eq!(found, expected);
}

#[test]
fn comments_strings_other_crates_and_tests_are_no_imports() {
    let found = imports(&[
        ("a/lib.rs", "mod b; mod c; #[cfg(test)] mod tests;"),
        (
            "a/b.rs",
            "//! crate::c::C\n\
             use std::fs; /* /* */ use crate::c; */ const S: &str = \"\\\" use crate::c;\";\n\
             const R: &str = r#\"use \"crate::c;\"#; const C: char = '\\'';\n\
             #[cfg(test)] use crate::c::{C}; #[cfg(test)] mod tests { use crate::c::C; }\n\
             struct S { #[cfg(test)] seen: crate::c::C, other: u8 }\n\
             #[cfg(all(test, unix))] fn t<A, B>() { crate::c::f() } fn f(b: &'static str) {}",
        ),
        ("a/c.rs", ""),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_facade_over_providers_breaks_no_rule() {
    let provider = "use crate::types::Status; pub struct Core;";
    assert!(two_providers(provider, provider).is_empty());
}

#[test]
fn a_provider_that_imports_the_facade_breaks_the_rule() {
    let provider = "use crate::types::Status; pub struct Core;";
    for back in [
        "use crate::Queue;",
        "use crate::{queue::{self}};",
        "fn f(q: &super::super::queue::Queue) {}",
    ] {
        let found = two_providers(provider, &format!("\n{provider}\n{back}"));
        let expected = "rdma/providers/verbs.rs:3 imports rdma/queue.rs, which is not below it";
        assert_eq!(found, [expected], "{back}");
    }
}

#[test]
fn a_provider_that_imports_the_other_breaks_the_rule() {
    let found = two_providers("use super::verbs::Core;", "pub struct Core;");
    let expected = "rdma/providers/shm.rs:1 imports rdma/providers/verbs.rs, which is not below it";
    assert_eq!(found, [expected]);
}

#[test]
fn a_file_without_a_layer_and_a_rule_about_nothing_are_reported() {
    let files = [("a/lib.rs", "mod b; mod c;"), ("a/b.rs", ""), ("a/c.rs", "use crate::b;")];
    assert_eq!(broken("modules a\n  b\n  lib\n", &files), ["a/c.rs is in no layer"]);
    assert_eq!(broken("modules x\n  *\n", &files), ["x has no modules"]);
    assert_eq!(broken("acyclic x\n", &files), ["x has no modules"]);
    assert!(Rules::parse("acyclical a\n").is_err());
    assert!(Rules::parse("  a\n").is_err());
}

#[test]
fn a_circle_of_files_is_reported_once() {
    let files = |back: &'static str| {
        let (b, c) = ("use crate::c;", "use crate::d;");
        [("a/lib.rs", "mod b; mod c; mod d;"), ("a/b.rs", b), ("a/c.rs", c), ("a/d.rs", back)]
    };
    assert!(broken("acyclic a\n", &files("")).is_empty());
    let found = broken("acyclic a\n", &files("use crate::b;"));
    assert_eq!(found, ["a circle: a/b.rs -> a/c.rs -> a/d.rs -> a/b.rs"]);
    // What a module declares counts: a child that uses its parent is one thing in two files.
    let parent = [("a/lib.rs", "mod b; struct Here;"), ("a/b.rs", "use super::Here;")];
    let found = broken("acyclic a\n", &parent);
    assert_eq!(found, ["a circle: a/b.rs -> a/lib.rs -> a/b.rs"]);
}

#[test]
fn a_crate_that_depends_on_one_above_or_beside_it_breaks_the_rule() {
    let rules = Rules::parse("crates\n  low\n  left | right\n  top more # together\n").unwrap();
    let crates = |uses: &[(&str, &str)]| {
        let names = ["low", "left", "right", "top", "more"];
        let mut all: BTreeMap<_, _> = names.map(|name| (name.to_owned(), BTreeSet::new())).into();
        for (name, used) in uses {
            all.entry((*name).to_owned()).or_default().insert((*used).to_owned());
        }
        rules.broken(&all, &[])
    };
    let down = [("left", "low"), ("top", "right"), ("top", "more"), ("more", "top")];
    assert!(crates(&down).is_empty());
    let not_below =
        |name, used| vec![format!("crate {name} depends on {used}, which is not below it")];
    assert_eq!(crates(&[("low", "top")]), not_below("low", "top"));
    assert_eq!(crates(&[("left", "right")]), not_below("left", "right"));
    assert_eq!(crates(&[("new", "low")]), ["crate new is in no layer"]);
}

#[test]
fn a_crate_never_uses_one_that_is_below_it_but_kept_from_it() {
    let rules = Rules::parse("crates\n  low\n  middle\n  top\nnever top: low\n").unwrap();
    let broken = |uses: &[&str]| {
        let of = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let crates = [("low", of(&[])), ("middle", of(&["low"])), ("top", of(uses))];
        rules.broken(&crates.map(|(name, uses)| (name.to_owned(), uses)).into(), &[])
    };
    assert!(broken(&["middle"]).is_empty());
    assert_eq!(broken(&["middle", "low"]), ["crate top depends on low, which it never may"]);

    let unknown = Rules::parse("never gone: low\n").unwrap();
    let crates = [("low".to_owned(), BTreeSet::new())].into();
    let broken = unknown.broken(&crates, &[]);
    assert!(broken.contains(&"`never` names gone, which is no crate".to_owned()));
    assert!(Rules::parse("never low\n").is_err());
}

#[test]
fn only_code_that_no_build_but_a_test_has_is_left_out() {
    let import = |condition: &str| {
        let text = format!("#[cfg({condition})] use crate::c::C;");
        !imports(&[("a/lib.rs", "mod b; mod c;"), ("a/b.rs", &text), ("a/c.rs", "pub struct C;")])
            .is_empty()
    };
    for left_out in ["test", "all(test, not(loom))", "any(test, all(test, unix))"] {
        assert!(!import(left_out), "{left_out}");
    }
    for seen in
        ["not(test)", "any(test, feature = \"faults\")", "feature = \"test\"", "all(unix, loom)"]
    {
        assert!(import(seen), "{seen}");
    }
}

#[test]
fn a_module_without_a_file_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("lib.rs"), "mod lost;").unwrap();
    let target = CrateRoot { library: None, root: Path::new("lib.rs").into() };
    let error = Modules::read(root.path(), &[target]).unwrap_err();
    assert_eq!(error.to_string(), "lib.rs: module lost has no file");
}
