//! The threat model tells the truth: the tests that it names are there, and each hostile function has
//! its place in it.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs;

use testkit::run::source;

/// What stands in backticks in the document.
fn quoted(document: &str) -> impl Iterator<Item = &str> {
    document.split('`').skip(1).step_by(2)
}

#[test]
fn each_test_that_the_threat_model_names_is_there() {
    let document = fs::read_to_string(source("docs/threat-model.md")).unwrap();
    let named = quoted(&document).filter_map(|words| words.split_once(".rs:"));
    let mut tests = 0;
    for (file, test) in named {
        let text = fs::read_to_string(source(&format!("{file}.rs")))
            .unwrap_or_else(|error| panic!("{file}.rs: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "{file}.rs has no test {test}");
        tests += 1;
    }
    assert!(tests > 20, "the document names {tests} tests");
}

#[test]
fn each_hostile_function_has_its_place_in_the_threat_model() {
    let document = fs::read_to_string(source("docs/threat-model.md")).unwrap();
    let quoted: Vec<&str> = quoted(&document).collect();
    let library = source("tools/tests/hostile_functions/library");
    let files = fs::read_dir(library).unwrap().map(|file| file.unwrap().path());
    let text: String = files.map(|file| fs::read_to_string(file).unwrap()).collect();
    let functions = text.lines().filter_map(|line| line.strip_prefix("FUNCTION("));
    let functions: Vec<&str> = functions.filter_map(|line| line.split(')').next()).collect();
    assert!(functions.len() > 30, "{functions:?}");
    for function in functions {
        let behaves = ["echo", "settle"].contains(&function);
        assert!(behaves || quoted.contains(&function), "{function} is not in the document");
    }
}
